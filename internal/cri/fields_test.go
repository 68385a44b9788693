package cri

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fieldRow is a row of a table in docs/fields.md: a field, what becomes of it,
// and which tests show that.
var fieldRow = regexp.MustCompile("^\\| `([^`]+)` \\| \\*\\*(honoured|kept|refused)\\*\\*(?:: [^|]+)? \\| ([^|]+) \\|$")

// TestFieldsAreDecided has a decision in docs/fields.md for each field of the
// messages that describe a pod, in the messages' order, and tests that are there.
func TestFieldsAreDecided(t *testing.T) {
	text, err := os.ReadFile("../../docs/fields.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := testNames(t)
	for _, m := range []proto.Message{&runtime.PodSandboxConfig{}, &runtime.ContainerConfig{}} {
		message := m.ProtoReflect().Descriptor()
		_, section, found := strings.Cut(string(text), "\n## "+string(message.Name())+"\n")
		if !found {
			t.Fatalf("docs/fields.md has no section %s", message.Name())
		}
		section, _, _ = strings.Cut(section, "\n## ")
		var rows []string
		refused := map[string]bool{}
		for line := range strings.Lines(section) {
			if !strings.HasPrefix(line, "| `") {
				continue
			}
			row := fieldRow.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
			if row == nil {
				t.Errorf("a row of another form: %s", line)
				continue
			}
			rows = append(rows, row[1])
			refused[row[1]] = row[2] == "refused"
			for name := range strings.SplitSeq(row[3], ", ") {
				if !tests[name] {
					t.Errorf("%s %s: there is no test %q", message.Name(), row[1], name)
				}
			}
		}
		asked := askedFor(t, m)
		for _, row := range rows {
			if !refused[row] && !onlyZero.MatchString(row) && !asked[row] {
				t.Errorf("%s %s: in no request of internal/spec/testdata", message.Name(), row)
			}
		}
		if want := fieldsOf(message, "", refused); !slices.Equal(rows, want) {
			for _, f := range want {
				if !slices.Contains(rows, f) {
					t.Errorf("%s %s: not decided in docs/fields.md", message.Name(), f)
				}
			}
			for i, f := range rows {
				if !slices.Contains(want, f) {
					t.Errorf("%s %s: no field, or one of a refused message", message.Name(), f)
				} else if slices.Contains(rows[:i], f) {
					t.Errorf("%s %s: decided twice", message.Name(), f)
				}
			}
			if !t.Failed() {
				t.Errorf("%s: rows in another order than the fields", message.Name())
			}
		}
	}
}

// onlyZero are the fields of which the zero value alone is not refused.
var onlyZero = regexp.MustCompile(`(\.ipc|userns_options\.mode|\.[ug]id(s|Mappings)\.container_id)$`)

// askedFor are the paths of the fields that are set in the requests of the table that
// shows what specs they become.
func askedFor(t *testing.T, of proto.Message) map[string]bool {
	t.Helper()
	file := map[protoreflect.Name]string{"PodSandboxConfig": "pod.json", "ContainerConfig": "container.json"}[of.ProtoReflect().Descriptor().Name()]
	rows, err := filepath.Glob("../spec/testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	asked := map[string]bool{}
	var note func(m protoreflect.Message, prefix string)
	note = func(m protoreflect.Message, prefix string) {
		m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			path := prefix + string(f.Name())
			asked[path] = true
			switch {
			case f.Message() == nil || f.IsMap():
			case f.IsList():
				for i := range v.List().Len() {
					note(v.List().Get(i).Message(), path+".")
				}
			default:
				note(v.Message(), path+".")
			}
			return true
		})
	}
	for _, row := range rows {
		archive, err := txtar.ParseFile(row)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range archive.Files {
			if part.Name != file {
				continue
			}
			m := of.ProtoReflect().New()
			if err := protojson.Unmarshal(part.Data, m.Interface()); err != nil {
				t.Fatalf("%s: %v", row, err)
			}
			note(m, "")
		}
	}
	return asked
}

// fieldsOf are the paths of a message's fields, of those that are messages the
// paths in them unless the message is refused as a whole.
func fieldsOf(m protoreflect.MessageDescriptor, prefix string, refused map[string]bool) []string {
	var paths []string
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		path := prefix + string(f.Name())
		if f.Message() == nil || f.IsMap() || refused[path] {
			paths = append(paths, path)
			continue
		}
		paths = append(paths, fieldsOf(f.Message(), path+".", refused)...)
	}
	return paths
}

// testNames are the test functions of the module.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	function := regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)
	names := map[string]bool{}
	root := os.DirFS("../..")
	for _, dir := range []string{"internal", "test"} {
		err := fs.WalkDir(root, dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := fs.ReadFile(root, path)
			for _, f := range function.FindAllSubmatch(text, -1) {
				names[string(f[1])] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return names
}
