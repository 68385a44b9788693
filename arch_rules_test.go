package runscd_test

import (
	"go/ast"
	"go/token"
	"path"
	"slices"
	"strconv"
	"strings"
)

func upwardImports(d *dir) []finding {
	mine := floor(d.path)
	product := strings.HasPrefix(d.path, "internal/") || strings.HasPrefix(d.path, "cmd/")
	if mine < 0 && product {
		f := d.files[0]
		return []finding{f.found(f, "package %s stands on no floor: give it one in arch_test.go", d.path)}
	}
	var found []finding
	for _, f := range d.files {
		for _, imp := range f.Imports {
			name, ours := strings.CutPrefix(importPath(imp), module)
			if ours && product && (floor(name) < 0 || floor(name) >= mine) {
				found = append(found, f.found(imp, "%s imports %s", d.path, name))
			}
		}
	}
	return found
}

// floor returns the floor of a package, -1 if it has none.
func floor(name string) int {
	return slices.IndexFunc(floors, func(packages []string) bool { return slices.Contains(packages, name) })
}

func importPath(imp *ast.ImportSpec) string {
	name, _ := strconv.Unquote(imp.Path.Value) // the parser has checked it
	return name
}

func reservedImports(d *dir) []finding {
	var found []finding
	for _, f := range d.files {
		for _, imp := range f.Imports {
			for _, r := range reserved {
				if slices.Contains(r.imports, importPath(imp)) && !slices.Contains(r.to, d.path) {
					found = append(found, f.found(imp, "%s imports %s", d.path, importPath(imp)))
				}
			}
		}
	}
	return found
}

func missingDoc(d *dir) []finding {
	start := "Package " + d.files[0].Name.Name + " "
	if d.files[0].Name.Name == "main" {
		start = "Command " + path.Base(d.path) + " "
	}
	for _, f := range d.files {
		if strings.HasPrefix(f.Doc.Text(), start) {
			return nil
		}
	}
	return []finding{{d.path, "no package documentation that begins with \"" + start + "\""}}
}

func vagueNames(d *dir) []finding {
	var found []finding
	if slices.Contains(vague, path.Base(d.path)) {
		found = append(found, finding{d.path, "a package of this name"})
	}
	for _, f := range d.files {
		name := strings.TrimSuffix(strings.TrimSuffix(path.Base(f.path), ".go"), "_test")
		if slices.Contains(vague, name) {
			found = append(found, f.found(f, "a file of this name"))
		}
	}
	return found
}

func initFuncs(d *dir) []finding {
	return d.funcs(func(f *file, fn *ast.FuncDecl) []finding {
		if fn.Recv != nil || fn.Name.Name != "init" {
			return nil
		}
		return []finding{f.found(fn, "func init")}
	})
}

func sleeps(d *dir) []finding {
	return d.inspect(func(f *file, n ast.Node) []finding {
		if s, ok := n.(*ast.SelectorExpr); ok && selected(s) == "time.Sleep" {
			return []finding{f.found(s, "time.Sleep")}
		}
		return nil
	})
}

func failedTo(d *dir) []finding {
	return d.inspect(func(f *file, n ast.Node) []finding {
		call, ok := n.(*ast.CallExpr)
		if !ok || !slices.Contains([]string{"fmt.Errorf", "errors.New"}, selected(call.Fun)) {
			return nil
		}
		text, ok := call.Args[0].(*ast.BasicLit)
		if !ok || !strings.Contains(text.Value, "failed to ") {
			return nil
		}
		return []finding{f.found(text, "%s", text.Value)}
	})
}

// selected returns the text of an expression of the form x.y, or "".
func selected(e ast.Expr) string {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	x, ok := s.X.(*ast.Ident)
	if !ok {
		return ""
	}
	return x.Name + "." + s.Sel.Name
}

// globals finds variables whose first value is none that lasts.
func globals(d *dir) []finding {
	var found []finding
	for _, f := range d.files {
		for _, decl := range f.Decls {
			g, ok := decl.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR || embedded(g.Doc) {
				continue
			}
			for _, s := range g.Specs {
				v := s.(*ast.ValueSpec)
				for i, name := range v.Names {
					stamped := name.Name == "version" && strings.HasPrefix(d.path, "cmd/") // by the linker
					lasting := i < len(v.Values) && lasts(v.Values[i])
					if name.Name != "_" && !stamped && !lasting && !embedded(v.Doc) {
						found = append(found, f.found(name, "var %s", name.Name))
					}
				}
			}
		}
	}
	return found
}

func embedded(doc *ast.CommentGroup) bool {
	return doc != nil && slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed ") })
}

// lasts tells whether a value is a table, an error or a pattern.
func lasts(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.CompositeLit, *ast.FuncLit:
		return true
	case *ast.CallExpr:
		_, literal := e.Fun.(*ast.FuncLit)
		return literal || slices.Contains([]string{
			"errors.New", "fmt.Errorf", "regexp.MustCompile", "strings.NewReplacer",
		}, selected(e.Fun))
	}
	return false
}

// unguarded finds the fields between a field mu and the next empty line that
// are not marked, and a mu that guards nothing.
func unguarded(d *dir) []finding {
	return d.inspect(func(f *file, n ast.Node) []finding {
		s, ok := n.(*ast.StructType)
		if !ok {
			return nil
		}
		fields := s.Fields.List
		mu := slices.IndexFunc(fields, isMu)
		if mu < 0 {
			return nil
		}
		var found []finding
		guarded := 0
		for last, next := fields[mu], mu+1; next < len(fields) && f.adjoin(last, fields[next]); next++ {
			last = fields[next]
			guarded++
			if !marked(last.Doc) && !marked(last.Comment) {
				found = append(found, f.found(last, "a field below mu that is not marked"))
			}
		}
		if guarded == 0 {
			found = append(found, f.found(fields[mu], "a mu that guards no field"))
		}
		return found
	})
}

func isMu(field *ast.Field) bool {
	typ := selected(field.Type)
	return len(field.Names) == 1 && field.Names[0].Name == "mu" && (typ == "sync.Mutex" || typ == "sync.RWMutex")
}

func marked(c *ast.CommentGroup) bool {
	return c != nil && slices.ContainsFunc(c.List, func(c *ast.Comment) bool {
		return strings.TrimSpace(strings.TrimPrefix(c.Text, "//")) == "+checklocks:mu"
	})
}

// adjoin tells whether a field follows another without an empty line.
func (f *file) adjoin(field, next *ast.Field) bool {
	begin := next.Pos()
	if next.Doc != nil {
		begin = next.Doc.Pos()
	}
	return f.line(begin) <= f.line(field.End())+1
}

func longFiles(d *dir) []finding {
	var found []finding
	for _, f := range d.files {
		if n := f.set.File(f.FileStart).LineCount(); n > maxFileLines {
			found = append(found, finding{f.path, strconv.Itoa(n) + " lines"})
		}
	}
	return found
}

func longFuncs(d *dir) []finding {
	return d.funcs(func(f *file, fn *ast.FuncDecl) []finding {
		if n := f.line(fn.End()) - f.line(fn.Pos()) + 1; n > maxFuncLines {
			return []finding{f.found(fn, "func %s of %d lines", fn.Name.Name, n)}
		}
		return nil
	})
}

func manyParams(d *dir) []finding {
	return d.funcs(func(f *file, fn *ast.FuncDecl) []finding {
		n := 0
		for _, p := range fn.Type.Params.List {
			if selected(p.Type) == "context.Context" {
				continue
			}
			for _, name := range p.Names {
				if name.Name != "_" { // it is there for an interface's sake
					n++
				}
			}
		}
		if n > maxParams {
			return []finding{f.found(fn, "func %s of %d parameters", fn.Name.Name, n)}
		}
		return nil
	})
}

func manyMethods(d *dir) []finding {
	methods := map[string]int{}
	d.funcs(func(_ *file, fn *ast.FuncDecl) []finding {
		if fn.Recv != nil {
			methods[typeName(fn.Recv.List[0].Type)]++
		}
		return nil
	})
	return d.inspect(func(f *file, n ast.Node) []finding {
		t, ok := n.(*ast.TypeSpec)
		if !ok || methods[t.Name.Name] <= maxMethods || isServer(t) {
			return nil
		}
		return []finding{f.found(t, "type %s of %d methods", t.Name.Name, methods[t.Name.Name])}
	})
}

// typeName returns the name in the type of a receiver.
func typeName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.StarExpr:
		return typeName(e.X)
	case *ast.IndexExpr:
		return typeName(e.X)
	case *ast.IndexListExpr:
		return typeName(e.X)
	}
	return ""
}

// isServer tells whether a type embeds what protoc-gen-go-grpc makes for
// servers.
func isServer(t *ast.TypeSpec) bool {
	s, ok := t.Type.(*ast.StructType)
	return ok && slices.ContainsFunc(s.Fields.List, func(field *ast.Field) bool {
		_, name, _ := strings.Cut(selected(field.Type), ".")
		return len(field.Names) == 0 && strings.HasPrefix(name, "Unimplemented") && strings.HasSuffix(name, "Server")
	})
}

// funcs collects what find finds in the functions of a directory.
func (d *dir) funcs(find func(*file, *ast.FuncDecl) []finding) []finding {
	var found []finding
	for _, f := range d.files {
		for _, decl := range f.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok {
				found = append(found, find(f, fn)...)
			}
		}
	}
	return found
}

// inspect collects what find finds in the syntax of a directory.
func (d *dir) inspect(find func(*file, ast.Node) []finding) []finding {
	var found []finding
	for _, f := range d.files {
		ast.Inspect(f.File, func(n ast.Node) bool {
			found = append(found, find(f, n)...)
			return true
		})
	}
	return found
}
