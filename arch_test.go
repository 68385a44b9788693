// Package runscd_test checks the rules of the tree that a machine can check.
// docs/ARCHITECTURE.md says what they are for.
package runscd_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/runscd/runscd/"

// floors are the packages of the product from the bottom to the top. A package
// imports only packages of lower floors.
var floors = [][]string{
	{"internal/runsc", "internal/stdio", "internal/monitor", "internal/store", "internal/config", "internal/pause", "internal/forward", "internal/stats", "internal/systemd", "internal/checkpoint", "internal/limit"},
	{"internal/proc", "internal/spec", "internal/image", "internal/network"},
	{"internal/pod"},
	{"internal/cri", "internal/stream"},
	{"internal/observe", "internal/doctor", "internal/report"},
	{"cmd/runscd"},
}

// reserved are imports that belong to a few packages.
var reserved = []struct {
	imports []string
	to      []string
}{
	{[]string{"os/exec"}, []string{"internal/runsc", "internal/monitor", "internal/network", "internal/config", "cmd/runscd"}},
	{
		[]string{"google.golang.org/grpc/codes", "google.golang.org/grpc/status", "github.com/containerd/errdefs/pkg/errgrpc"},
		[]string{"internal/cri", "cmd/runscd"},
	},
}

// Sizes that nothing in the product exceeds.
const (
	maxFileLines = 500
	maxFuncLines = 75
	maxMethods   = 30
	maxParams    = 5
)

// vague are names that say nothing about what is in a package or file.
var vague = []string{"util", "utils", "helper", "helpers", "common", "manager", "base", "types", "misc"}

// rule is something that must not be in the tree.
type rule struct {
	name string
	todo string // what to do about it
	find func(*dir) []finding
	// tests says that the rule holds in tests too.
	tests bool
	// bad and good are files by path that show what it finds and what not.
	bad, good map[string]string
}

var rules = []rule{
	{
		name: "floor",
		todo: "import from lower floors only: move the code down, or let the upper package pass it in",
		find: upwardImports,
		bad: map[string]string{
			"internal/store/a.go": `package store; import "` + module + `internal/pod"`,
			"internal/proc/a.go":  `package proc; import "` + module + `internal/spec"`,
			"internal/novel/a.go": `package novel`,
		},
		good: map[string]string{"internal/pod/a.go": `package pod; import "` + module + `internal/spec"`},
	},
	{
		name: "reserved import",
		todo: "leave it to the packages that it is for, see reserved in arch_test.go",
		find: reservedImports,
		bad: map[string]string{
			"internal/pod/a.go":  `package pod; import "google.golang.org/grpc/codes"`,
			"internal/spec/a.go": `package spec; import "os/exec"`,
		},
		good: map[string]string{"internal/cri/a.go": `package cri; import "google.golang.org/grpc/codes"`},
	},
	{
		name: "package doc",
		todo: "say above the package clause of one file what the package keeps true, beginning with \"Package name\", for a command with \"Command name\"",
		find: missingDoc,
		bad: map[string]string{
			"internal/a/a.go": "package a",
			"internal/b/b.go": "// B is a package.\npackage b",
			"cmd/c/main.go":   "// Package main is a command.\npackage main",
		},
		good: map[string]string{
			"internal/a/a.go": "package a", "internal/a/doc.go": "// Package a is one.\npackage a",
			"cmd/c/main.go": "// Command c is one.\npackage main",
		},
	},
	{
		name:  "vague name",
		todo:  "name it by its content",
		find:  vagueNames,
		tests: true,
		bad:   map[string]string{"internal/util/a.go": "package util", "internal/pod/helpers_test.go": "package pod"},
		good:  map[string]string{"internal/pod/based.go": "package pod"},
	},
	{
		name:  "init function",
		todo:  "do it in main, or in a constructor",
		find:  initFuncs,
		tests: true,
		bad:   map[string]string{"internal/a/a.go": "package a; func init() {}"},
		good:  map[string]string{"internal/a/a.go": "package a; func (a) init() {}"},
	},
	{
		name: "time.Sleep",
		todo: "wait for the event itself, or for a timer and the context",
		find: sleeps,
		bad:  map[string]string{"internal/a/a.go": "package a; func f() { go time.Sleep(1) }"},
		good: map[string]string{"internal/a/a.go": "package a; func f() { sleep.Sleep(1) }"},
	},
	{
		name: "failed to",
		todo: "name the thing that went wrong: errors are noun phrases with %w",
		find: failedTo,
		bad:  map[string]string{"internal/a/a.go": `package a; var e = fmt.Errorf("failed to open: %w", err)`},
		good: map[string]string{"internal/a/a.go": `package a; var e = []string{"failed to load "}`},
	},
	{
		name: "global variable",
		todo: "make it a constant, a field or an argument; only errors and tables are global",
		find: globals,
		bad: map[string]string{
			"internal/a/a.go": "package a; var mu sync.Mutex",
			"internal/b/b.go": "package b; var n = 0",
			"internal/c/c.go": "package c; var p = &T{}",
			"internal/d/d.go": "package d; var m = make(map[string]int)",
			"internal/e/e.go": "package e; var a, b = []int{1}, open()",
		},
		good: map[string]string{"internal/a/a.go": `package a; var (
			_ I = (*T)(nil)
			ErrX = errors.New("x")
			re = regexp.MustCompile("x")
			table = map[string]int{"a": 1}
			index = func() map[int]string { return nil }()
		)
		//go:embed x
		var image []byte`},
	},
	{
		name: "checklocks",
		todo: "put mu above the fields that it guards and mark each with // +checklocks:mu; the others stand above mu or behind an empty line",
		find: unguarded,
		bad: map[string]string{
			"internal/a/a.go": "package a; type T struct {\n\tmu sync.Mutex\n\tn int\n}",
			"internal/b/b.go": "package b; type T struct {\n\tn int\n\tmu sync.Mutex\n}",
		},
		good: map[string]string{"internal/a/a.go": `package a
		type T struct {
			id string
			mu sync.RWMutex
			// n counts.
			// +checklocks:mu
			n int
			m int // +checklocks:mu

			other int
		}`},
	},
	{
		name: "file length",
		todo: fmt.Sprintf("split it by what a reader looks for; at most %d lines", maxFileLines),
		find: longFiles,
		bad:  map[string]string{"internal/a/a.go": "package a" + strings.Repeat("\n", maxFileLines+1)},
		good: map[string]string{"internal/a/a.go": "package a" + strings.Repeat("\n", maxFileLines)},
	},
	{
		name: "function length",
		todo: fmt.Sprintf("give its steps names; at most %d lines", maxFuncLines),
		find: longFuncs,
		bad:  map[string]string{"internal/a/a.go": "package a; func f() {" + strings.Repeat("\n", maxFuncLines) + "}"},
		good: map[string]string{"internal/a/a.go": "package a; func f() {" + strings.Repeat("\n", maxFuncLines-1) + "}"},
	},
	{
		name: "parameters",
		todo: fmt.Sprintf("pass a struct; at most %d besides the context", maxParams),
		find: manyParams,
		bad:  map[string]string{"internal/a/a.go": "package a; func f(a, b, c int, d, e, f string) {}"},
		good: map[string]string{"internal/a/a.go": "package a; func f(ctx context.Context, a, b, c int, d, e string, _ bool) {}"},
	},
	{
		name: "methods",
		todo: fmt.Sprintf("split the type by its concerns; at most %d methods, but for gRPC servers", maxMethods),
		find: manyMethods,
		bad:  map[string]string{"internal/a/a.go": "package a; type T[P any] struct{}\n" + strings.Repeat("func (*T[P]) m() {}\n", maxMethods+1)},
		good: map[string]string{"internal/a/a.go": "package a; type T struct{ v1.UnimplementedRuntimeServiceServer }\n" +
			strings.Repeat("func (*T) m() {}\n", maxMethods+1)},
	},
}

// dir is the Go files of one directory.
type dir struct {
	path  string // from the root of the module, with slashes; "." for that itself
	files []*file
}

type file struct {
	*ast.File
	path string
	set  *token.FileSet
}

// finding is where something is, and what.
type finding struct {
	at   string
	what string
}

func (f *file) found(n ast.Node, format string, args ...any) finding {
	return finding{fmt.Sprintf("%s:%d", f.path, f.line(n.Pos())), fmt.Sprintf(format, args...)}
}

func (f *file) line(p token.Pos) int { return f.set.Position(p).Line }

// isTest tells whether a file is of tests: by its name, or as part of test/.
func isTest(name string) bool {
	return strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "test/")
}

func TestTree(t *testing.T) {
	dirs, err := parseTree(os.DirFS("."))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			for _, f := range r.check(dirs) {
				t.Errorf("%s: %s\n\t%s", f.at, f.what, r.todo)
			}
		})
	}
}

// TestRules shows that the rules find what they are for, and nothing else.
func TestRules(t *testing.T) {
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			bad, err := parseFiles(r.bad)
			if err != nil {
				t.Fatal(err)
			}
			good, err := parseFiles(r.good)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range bad {
				if got := r.check([]*dir{d}); len(got) == 0 {
					t.Errorf("%s: nothing found", d.path)
				}
			}
			for _, f := range r.check(good) {
				t.Errorf("%s: found in a good file: %s", f.at, f.what)
			}
		})
	}
}

func (r *rule) check(dirs []*dir) []finding {
	var found []finding
	for _, d := range dirs {
		if !r.tests {
			d = &dir{d.path, slices.DeleteFunc(slices.Clone(d.files), func(f *file) bool { return isTest(f.path) })}
		}
		if len(d.files) > 0 {
			found = append(found, r.find(d)...)
		}
	}
	return found
}

// parseTree parses the module's Go files.
func parseTree(root fs.FS) ([]*dir, error) {
	files := map[string]string{}
	err := fs.WalkDir(root, ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && (name == "build" || name == "bin" || e.Name() == "testdata" || len(name) > 1 && strings.HasPrefix(e.Name(), ".")):
			return fs.SkipDir // not of this module
		case e.IsDir() || path.Ext(name) != ".go":
			return nil
		}
		text, err := fs.ReadFile(root, name)
		files[name] = string(text)
		return err
	})
	if err != nil {
		return nil, err
	}
	return parseFiles(files)
}

func parseFiles(files map[string]string) ([]*dir, error) {
	byPath := map[string]*dir{}
	for name, text := range files {
		set := token.NewFileSet()
		parsed, err := parser.ParseFile(set, name, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		d := byPath[path.Dir(name)]
		if d == nil {
			d = &dir{path: path.Dir(name)}
			byPath[d.path] = d
		}
		d.files = append(d.files, &file{parsed, name, set})
	}
	dirs := make([]*dir, 0, len(byPath))
	for _, d := range byPath {
		dirs = append(dirs, d)
	}
	return dirs, nil
}
