package config

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

const documented = "../../docs/config.md"

const docsIntro = `# Settings

Every key, what it means, and its default. This page is made from the same texts as
` + "[deploy/runscd.toml](../deploy/runscd.toml)" + `, which is a file to start with; ` + "`runscd config`" + `
prints the settings in effect. The file is ` + "`/etc/runscd/runscd.toml`" + `, or that of
` + "`--config`" + `; the files ` + "`<its name>.d/*.toml`" + ` are read after it, in the order of their
names, and a later one wins, key by key.

A daemon reads its settings when it starts.
`

// settingsTable is the part of docs/config.md of a struct's plain fields.
func settingsTable(t *testing.T, v reflect.Value) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("\n| key | default | |\n|---|---|---|\n")
	for f, value := range v.Fields() {
		if f.Type.Kind() == reflect.Struct || f.Type == reflect.TypeFor[map[string]Handler]() {
			continue
		}
		key := f.Tag.Get("toml")
		key, _, _ = strings.Cut(key, ",")
		line, err := toml.Marshal(map[string]any{"x": value.Interface()})
		if err != nil {
			t.Fatal(err)
		}
		_, shown, _ := strings.Cut(strings.TrimSpace(string(line)), " = ")
		if f.Type.Kind() == reflect.Map {
			shown = "{}"
		}
		text := strings.ReplaceAll(strings.ReplaceAll(f.Tag.Get("comment"), "\n", " "), "<", "&lt;")
		fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", key, shown, text)
	}
	return b.String()
}

// TestSettingsAreDocumented compares docs/config.md with the settings.
func TestSettingsAreDocumented(t *testing.T) {
	defaults := reflect.ValueOf(*Default())
	want := docsIntro + settingsTable(t, defaults)
	for f, value := range defaults.Fields() {
		if f.Type.Kind() != reflect.Struct {
			continue
		}
		table := f.Tag.Get("toml")
		want += fmt.Sprintf("\n## [%s]\n", table) + settingsTable(t, value)
		if table == "runtime" {
			handlers, _ := f.Type.FieldByName("Handlers")
			want += fmt.Sprintf("\n## [runtime.handlers.&lt;name&gt;]\n\n%s\n", handlers.Tag.Get("comment"))
			want += settingsTable(t, reflect.ValueOf(Default().Runtime.Handlers["runsc"]))
		}
	}
	if *update {
		if err := os.WriteFile(documented, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(documented); err != nil || string(got) != want {
		t.Errorf("%s is not what the settings say; run go test ./internal/config -update (%v)", documented, err)
	}
}
