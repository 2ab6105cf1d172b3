package plant

import (
	"errors"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/scanner"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"path"
	"strings"
)

// Check returns an error if the broken packages do not compile. The error says which
// point's code is at fault, and which identifiers it names that do not exist. imports
// provides the packages that they import, and must know them.
func (b *Broken) Check(imports types.Importer) error {
	var errs []error
	for _, dir := range b.Packages() {
		errs = append(errs, b.checkPackage(dir, imports)...)
	}
	return errors.Join(errs...)
}

func (b *Broken) checkPackage(dir string, imports types.Importer) (errs []error) {
	names, err := fs.ReadDir(b.tree.fsys, dir)
	if err != nil {
		return []error{err}
	}
	ctx := build.Default
	ctx.OpenFile = func(name string) (io.ReadCloser, error) { return b.tree.fsys.Open(name) }
	ctx.JoinPath = path.Join
	fset := token.NewFileSet()
	var files []*ast.File
	for _, d := range names {
		name := path.Join(dir, d.Name())
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			continue
		}
		if ok, err := ctx.MatchFile(dir, d.Name()); err != nil {
			return []error{err}
		} else if !ok {
			continue
		}
		var src any = b.Files[name]
		if src == "" {
			if src, err = fs.ReadFile(b.tree.fsys, name); err != nil {
				return []error{err}
			}
		}
		f, err := parser.ParseFile(fset, name, src, parser.SkipObjectResolution)
		var list scanner.ErrorList
		if errors.As(err, &list) {
			return []error{b.fails(list[0].Pos, list[0].Msg)}
		} else if err != nil {
			return []error{err}
		}
		files = append(files, f)
	}
	conf := types.Config{Importer: imports, Error: func(err error) {
		var e types.Error
		if errors.As(err, &e) {
			errs = append(errs, b.fails(fset.Position(e.Pos), e.Msg))
			return
		}
		errs = append(errs, err)
	}}
	_, _ = conf.Check(dir, fset, files, nil) // its error is the first of errs
	return errs
}

func (b *Broken) fails(at token.Position, why string) error {
	if p := b.pointAt(at.Filename, at.Offset); p != "" {
		return fmt.Errorf("fault %s, point %s (%s): the code that it plants does not compile: %s", b.fault, p, b.tree.Where(p), why)
	}
	return fmt.Errorf("fault %s: with it, %s:%d does not compile: %s", b.fault, at.Filename, at.Line, why)
}
