package runscd_test

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var link = regexp.MustCompile(`\]\(([^)]+)\)`)

// TestLinks holds the links between the documents against the tree.
func TestLinks(t *testing.T) {
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, more...) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			name, _, _ := strings.Cut(m[1], "#")
			if strings.Contains(name, "://") || name == "" {
				continue
			}
			if _, err := fs.Stat(os.DirFS("."), path.Join(path.Dir(page), name)); err != nil {
				t.Errorf("%s: link %s: %v", page, m[1], err)
			}
		}
	}
}
