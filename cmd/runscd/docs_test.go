package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write docs/man")

const manuals = "../../docs/man"

// commands are the root command and all below it.
func commands(c *cobra.Command) []*cobra.Command {
	list := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		list = append(list, commands(sub)...)
	}
	return list
}

// manual is the manual page of a command.
func manual(t *testing.T, c *cobra.Command) []byte {
	t.Helper()
	c.DisableAutoGenTag = true // it has the date
	var page bytes.Buffer
	date := time.Unix(0, 0).UTC()
	if err := doc.GenMan(c, &doc.GenManHeader{Section: "8", Manual: "runscd", Source: "runscd", Date: &date}, &page); err != nil {
		t.Fatal(err)
	}
	return bytes.Replace(page.Bytes(), []byte(date.Format("Jan 2006")), nil, 1) // a page that is the same is not changed
}

// TestManuals compares docs/man with what the commands say of themselves.
func TestManuals(t *testing.T) {
	var pages []string
	for _, c := range commands(command()) {
		name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".8"
		pages = append(pages, name)
		path, want := filepath.Join(manuals, name), manual(t, c)
		if *update {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what the command says; run go test ./cmd/runscd -run Manuals -update (%v)", path, err)
		}
	}
	entries, err := os.ReadDir(manuals)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(pages, e.Name()) {
			t.Errorf("%s is of no command", e.Name())
		}
	}
}

// TestEveryFlagIsDocumented looks at all commands and flags for a text, and at
// README.md for each command.
func TestEveryFlagIsDocumented(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commands(command()) {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") || strings.Contains(c.Short, "\n") {
			t.Errorf("%s: short text %q", c.CommandPath(), c.Short)
		}
		if !strings.Contains(string(readme), c.CommandPath()) {
			t.Errorf("README.md has nothing of %s", c.CommandPath())
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" || strings.HasSuffix(f.Usage, ".") {
				t.Errorf("%s --%s: usage %q", c.CommandPath(), f.Name, f.Usage)
			}
		})
	}
}

// TestExamplesOfREADME has all command lines that README.md shows parsed.
func TestExamplesOfREADME(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(readme)) {
		line, ok := strings.CutPrefix(line, "    runscd ")
		if !ok {
			continue
		}
		n++
		line, _, _ = strings.Cut(line, "#")
		c, args, err := command().Find(strings.Fields(line))
		if err == nil {
			err = c.ParseFlags(args)
		}
		if err == nil {
			err = c.ValidateArgs(c.Flags().Args())
		}
		if err != nil || !c.Runnable() {
			t.Errorf("runscd %s: %v", line, err)
		}
	}
	if n < 7 {
		t.Errorf("%d examples", n)
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out, err := execute(t, "completion", shell); err != nil || !strings.Contains(out, "runscd") {
			t.Errorf("%s: %v: %.100s", shell, err, out)
		}
	}
	if out, err := execute(t, "__complete", "doctor", "--o"); err != nil || !strings.Contains(out, "--output") {
		t.Errorf("%v: %s", err, out)
	}
}
