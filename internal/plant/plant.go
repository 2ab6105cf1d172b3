// Package plant makes deliberately broken variants of this module's source, for tests that
// must be seen to fail. The text of a planted fault says which points of the code it
// breaks, and how. So the code that people run has no broken code, and a reader sees each
// fault as a whole.
//
// # Points
//
// A comment names a point in the code. It has two forms:
//
//	n.extend(now, c) //plant:acquire-extends
//	if n.stopped || n.inQuarant /*plant:mark-in-wait*/ || len(n.rivals) > 0 {
//
// A point names the code that ends before it. The first form is at the end of a line, after
// another comment if there is one. It names the statement, case, function or struct type
// that ends on that line, or whose head ends there; if there are several, it names the
// outermost. A function that is written on one line represents its only statement. The
// second form names an expression: an operand of && or ||, an argument, or an element of a
// composite literal. It is the largest expression that ends there and has no && or ||
// outside of brackets. The name of a point is unique in the module.
//
// # Faults
//
// A fault is a text with these lines:
//
//	# Why: what is broken, and the rule that forbids it.
//	caught-by: what must notice it (see the test that reads the faults)
//	at POINT: OPERATION CODE
//		more code, indented by one tab
//
// Most operations have no code, and name no identifier of the module:
//
//	drop    the statement never runs; the operand, argument or element is left out
//	true    the condition, the case, or the only value that is assigned or returned,
//	        is true; false likewise
//	only    of a chain of && or ||, only this operand counts
//	later   the statement changes places with the next one
//	return  the function returns before the statement; code is what it returns
//
// The others need code, in which $ is replaced by the original code:
//
//	as      the condition, case or value is the code
//	before  the code runs before the statement; after: behind it
//	inside  the code is at the start of the body, or of the fields
//	instead the code replaces the statement
//
// # Why points, and not patches
//
// A patch of lines breaks whenever these lines change, or the lines around them that make
// the patch unique: by a rename, a new operand, or a comment. A point moves with its line.
// A fault without code still applies after its line was reformatted, its names were
// changed, or it was moved, even to another function or file. A path through the syntax
// tree (function f, second if) would need no comments, but its meaning would change
// silently when a statement is added before. The comment also shows to anyone who changes
// the line that a test depends on it.
//
// Code names identifiers, and a rename breaks it. Such a fault must fail at once and say
// where, not only when all faults are built: Broken.Check does that in milliseconds.
//
// The edits are made in the text, at places that the syntax tree determines. So the broken
// source keeps its lines, and a failing test cites the same lines as the original. Code
// that is left out stays there as dead code, so that it uses its variables and imports as
// before, and the variant compiles.
package plant

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Fault is one planted fault.
type Fault struct {
	Name     string
	Why      string
	CaughtBy string
	Edits    []Edit
}

// Edit is one operation at one point.
type Edit struct {
	Point, Op, Code string
}

// needsCode says for each operation whether it has code; the code of return is optional.
var needsCode = map[string]string{
	"drop": "never", "true": "never", "false": "never", "only": "never", "later": "never", "return": "maybe",
	"as": "always", "before": "always", "after": "always", "inside": "always", "instead": "always",
}

var atLine = regexp.MustCompile(`^at ([a-z0-9-]+): ([a-z]+)(?: (.*))?$`)

// ParseFault parses the text of the fault called name.
func ParseFault(name, text string) (Fault, error) {
	f := Fault{Name: name}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		m := atLine.FindStringSubmatch(line)
		switch {
		case strings.HasPrefix(line, "# "):
			f.Why += line[2:] + "\n"
		case strings.HasPrefix(line, "caught-by: "):
			f.CaughtBy = line[len("caught-by: "):]
		case m != nil:
			f.Edits = append(f.Edits, Edit{m[1], m[2], m[3]})
		case strings.HasPrefix(line, "\t") && len(f.Edits) > 0:
			e := &f.Edits[len(f.Edits)-1]
			if e.Code != "" {
				e.Code += "\n"
			}
			e.Code += line[1:]
		case line != "":
			return Fault{}, fmt.Errorf("fault %s: not understood: %q; want \"# why\", \"caught-by: \" or \"at POINT: OPERATION\"", name, line)
		}
	}
	if f.Why == "" || f.CaughtBy == "" || len(f.Edits) == 0 {
		return Fault{}, fmt.Errorf("fault %s: it must say why, caught-by, and at least one point", name)
	}
	for _, e := range f.Edits {
		switch need := needsCode[e.Op]; {
		case need == "":
			return Fault{}, fmt.Errorf("fault %s, point %s: there is no operation %q; there are %q", name, e.Point, e.Op, slices.Sorted(maps.Keys(needsCode)))
		case need == "always" && e.Code == "":
			return Fault{}, fmt.Errorf("fault %s, point %s: %s needs code", name, e.Point, e.Op)
		case need == "never" && e.Code != "":
			return Fault{}, fmt.Errorf("fault %s, point %s: %s takes no code, and there is %q", name, e.Point, e.Op, e.Code)
		}
	}
	return f, nil
}

// Tree holds the source files of a module that have points.
type Tree struct {
	fsys   fs.FS
	files  map[string]*file
	points map[string]*point
}

type file struct {
	src    []byte
	fset   *token.FileSet
	syntax *ast.File
	parent map[ast.Node]ast.Node
}

type point struct {
	name, path string
	line       int
	file       *file
	node       ast.Node
}

var (
	lineMark  = regexp.MustCompile(`//plant:([a-z0-9-]+)$`)
	blockMark = regexp.MustCompile(`^/\*plant:([a-z0-9-]+)\*/$`)
)

// Load finds the points of the module whose root is fsys. It skips test files.
func Load(fsys fs.FS) (*Tree, error) {
	t := &Tree{fsys: fsys, files: map[string]*file{}, points: map[string]*point{}}
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if base := d.Name(); base == "testdata" || len(base) > 1 && strings.HasPrefix(base, ".") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		src, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		if !strings.Contains(string(src), "plant:") {
			return nil
		}
		return t.add(name, src)
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}

func (t *Tree) add(name string, src []byte) error {
	f := &file{src: src, fset: token.NewFileSet(), parent: map[ast.Node]ast.Node{}}
	var err error
	if f.syntax, err = parser.ParseFile(f.fset, name, src, parser.ParseComments|parser.SkipObjectResolution); err != nil {
		return err
	}
	var nodes, stack []ast.Node
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		if n == nil {
			stack = stack[:len(stack)-1]
			return true
		}
		if len(stack) > 0 {
			f.parent[n] = stack[len(stack)-1]
		}
		stack, nodes = append(stack, n), append(nodes, n)
		return true
	})
	for _, group := range f.syntax.Comments {
		for _, c := range group.List {
			p := &point{path: name, file: f, line: f.fset.Position(c.Pos()).Line}
			if m := lineMark.FindStringSubmatch(c.Text); m != nil && (f.hasCode(c) || m[0] == c.Text) {
				p.name, p.node = m[1], f.atLine(nodes, p.line)
			} else if m := blockMark.FindStringSubmatch(c.Text); m != nil {
				p.name, p.node = m[1], f.before(nodes, c)
			} else {
				continue
			}
			if p.node == nil {
				return fmt.Errorf("%s:%d: point %s names nothing: no statement or head ends on its line, or no expression ends before it", name, p.line, p.name)
			}
			if q := t.points[p.name]; q != nil {
				return fmt.Errorf("%s:%d: there is another point %s, at %s:%d", name, p.line, p.name, q.path, q.line)
			}
			t.points[p.name] = p
			t.files[name] = f
		}
	}
	return nil
}

// hasCode reports whether the comment's line has code before it. If not, what looks like a
// point is part of a text, such as the doc comment of this package.
func (f *file) hasCode(c *ast.Comment) bool {
	at := f.offset(c.Pos())
	start := strings.LastIndexByte(string(f.src[:at]), '\n') + 1
	return strings.TrimSpace(string(f.src[start:at])) != ""
}

func (f *file) offset(p token.Pos) int { return f.fset.Position(p).Offset }

func (f *file) text(n ast.Node) string { return string(f.src[f.offset(n.Pos()):f.offset(n.End())]) }

// atLine returns the outermost node that ends on a line, or whose head ends there. Outer
// nodes must come first in nodes.
func (f *file) atLine(nodes []ast.Node, line int) ast.Node {
	for _, n := range nodes {
		var end token.Pos
		switch n := n.(type) {
		case *ast.BlockStmt, *ast.LabeledStmt, *ast.EmptyStmt:
			continue
		case *ast.FuncDecl:
			if n.Body == nil || len(n.Body.List) > 0 && f.fset.Position(n.Body.Lbrace).Line == f.fset.Position(n.Body.Rbrace).Line {
				continue
			}
			end = n.Body.Lbrace
		case *ast.TypeSpec, *ast.IfStmt, *ast.ForStmt, *ast.RangeStmt, *ast.SwitchStmt, *ast.TypeSwitchStmt, *ast.SelectStmt, *ast.CaseClause, *ast.CommClause:
			if end = opening(n); end == token.NoPos {
				continue
			}
		case ast.Stmt:
			end = n.End() - 1
		default:
			continue
		}
		if f.fset.Position(end).Line == line {
			return n
		}
	}
	return nil
}

// opening returns the position of the brace or colon after which the node's body begins.
func opening(n ast.Node) token.Pos {
	switch n := n.(type) {
	case *ast.FuncDecl:
		return n.Body.Lbrace
	case *ast.IfStmt:
		return n.Body.Lbrace
	case *ast.ForStmt:
		return n.Body.Lbrace
	case *ast.RangeStmt:
		return n.Body.Lbrace
	case *ast.SwitchStmt:
		return n.Body.Lbrace
	case *ast.TypeSwitchStmt:
		return n.Body.Lbrace
	case *ast.SelectStmt:
		return n.Body.Lbrace
	case *ast.CaseClause:
		return n.Colon
	case *ast.CommClause:
		return n.Colon
	case *ast.TypeSpec:
		if s, ok := n.Type.(*ast.StructType); ok {
			return s.Fields.Opening
		}
	}
	return token.NoPos
}

// before returns the largest expression that ends right before a comment, up to && and ||.
func (f *file) before(nodes []ast.Node, c *ast.Comment) ast.Node {
	at := f.offset(c.Pos())
	for _, n := range nodes {
		e, ok := n.(ast.Expr)
		if !ok || e.End() > c.Pos() || isChain(e) {
			continue
		}
		if strings.TrimSpace(string(f.src[f.offset(e.End()):at])) == "" {
			return e
		}
	}
	return nil
}

func isChain(n ast.Node) bool {
	b, ok := n.(*ast.BinaryExpr)
	return ok && (b.Op == token.LAND || b.Op == token.LOR)
}

// Points returns the names of all points, sorted.
func (t *Tree) Points() []string { return slices.Sorted(maps.Keys(t.points)) }

// Where returns the file and line of a point, for messages. The point must exist.
func (t *Tree) Where(name string) string {
	p := t.points[name]
	return fmt.Sprintf("%s:%d", p.path, p.line)
}

// Broken is the source of a module with a fault in it.
type Broken struct {
	// Files has the files that the fault changes, by their paths from the root, with slashes.
	Files map[string]string

	tree  *Tree
	fault string
	spans map[string][]span
}

// span is the text that an edit wrote into the broken source.
type span struct {
	from, to int
	point    string
}

// change replaces a part of a source.
type change struct {
	from, to int
	with     string
	point    string
}

// Break returns the source with the fault f in it. It returns an error if an edit does not
// apply.
func (t *Tree) Break(f Fault) (*Broken, error) {
	changes := map[string][]change{}
	for _, e := range f.Edits {
		p := t.points[e.Point]
		if p == nil {
			return nil, fmt.Errorf("fault %s: no code has the point %s: the fault must follow the code", f.Name, e.Point)
		}
		made, err := p.edit(e)
		if err != nil {
			return nil, fmt.Errorf("fault %s, point %s (%s): %s: %w", f.Name, e.Point, t.Where(e.Point), e.Op, err)
		}
		for i := range made {
			made[i].point = e.Point
		}
		changes[p.path] = append(changes[p.path], made...)
	}
	b := &Broken{Files: map[string]string{}, tree: t, fault: f.Name, spans: map[string][]span{}}
	for name, list := range changes {
		slices.SortStableFunc(list, func(a, b change) int { return a.from - b.from })
		var out strings.Builder
		at, src := 0, t.files[name].src
		for _, c := range list {
			if c.from < at {
				return nil, fmt.Errorf("fault %s, point %s (%s): its change overlaps with that of another point of this fault", f.Name, c.point, t.Where(c.point))
			}
			out.Write(src[at:c.from])
			from := out.Len()
			out.WriteString(c.with)
			b.spans[name] = append(b.spans[name], span{from, out.Len(), c.point})
			at = c.to
		}
		out.Write(src[at:])
		b.Files[name] = out.String()
	}
	return b, nil
}

var (
	errNoStatement = errors.New("the point is not a statement in a list of statements")
	errNoValue     = errors.New("the point has no single condition or value: mark the expression itself")
)

func (p *point) edit(e Edit) ([]change, error) {
	f := p.file
	switch e.Op {
	case "drop":
		return p.drop()
	case "true", "false", "as":
		v := value(p.node)
		if v == nil {
			return nil, errNoValue
		}
		switch e.Op {
		case "true":
			return f.around("(true || (", v, "))"), nil
		case "false":
			return f.around("(false && (", v, "))"), nil
		}
		return f.replace(v, "("+strings.ReplaceAll(e.Code, "$", "("+f.text(v)+")")+")"), nil
	case "only":
		return p.only()
	case "inside":
		at := opening(p.node)
		if at == token.NoPos {
			return nil, errors.New("the point has no body")
		}
		return []change{{from: f.offset(at) + 1, to: f.offset(at) + 1, with: " " + e.Code + ";"}}, nil
	}
	s, ok := p.node.(ast.Stmt)
	list, i := f.list(s)
	if !ok || list == nil {
		return nil, errNoStatement
	}
	from, to := f.offset(s.Pos()), f.offset(s.End())
	switch e.Op {
	case "return":
		return []change{{from: from, to: from, with: strings.TrimSpace("return "+e.Code) + "; "}}, nil
	case "before":
		return []change{{from: from, to: from, with: e.Code + "; "}}, nil
	case "after":
		return []change{{from: to, to: to, with: "; " + e.Code}}, nil
	case "instead":
		return f.replace(s, strings.ReplaceAll(e.Code, "$", f.text(s))), nil
	case "later":
		if i+1 == len(list) {
			return nil, errors.New("no statement follows")
		}
		return append(f.replace(s, f.text(list[i+1])), f.replace(list[i+1], f.text(s))...), nil
	}
	return nil, fmt.Errorf("there is no operation %q", e.Op)
}

func (f *file) replace(n ast.Node, with string) []change {
	return []change{{from: f.offset(n.Pos()), to: f.offset(n.End()), with: with}}
}

func (f *file) around(before string, n ast.Node, after string) []change {
	from, to := f.offset(n.Pos()), f.offset(n.End())
	return []change{{from: from, to: from, with: before}, {from: to, to: to, with: after}}
}

// list returns the list of statements that contains s, and the index of s in it.
func (f *file) list(s ast.Stmt) ([]ast.Stmt, int) {
	var list []ast.Stmt
	switch in := f.parent[s].(type) {
	case *ast.BlockStmt:
		list = in.List
	case *ast.CaseClause:
		list = in.Body
	case *ast.CommClause:
		list = in.Body
	}
	i := slices.Index(list, s)
	if _, ok := s.(*ast.CaseClause); ok || i < 0 {
		return nil, 0
	}
	return list, i
}

// value returns the one expression that decides what a node does, or that it yields.
func value(n ast.Node) ast.Expr {
	var all []ast.Expr
	switch n := n.(type) {
	case *ast.IfStmt:
		return n.Cond
	case *ast.ForStmt:
		return n.Cond
	case *ast.CaseClause:
		all = n.List
	case *ast.ReturnStmt:
		all = n.Results
	case *ast.AssignStmt:
		all = n.Rhs
	case *ast.KeyValueExpr:
		return n.Value
	case ast.Expr:
		return n
	}
	if len(all) != 1 {
		return nil
	}
	return all[0]
}

func (p *point) drop() ([]change, error) {
	f := p.file
	if c, ok := p.node.(*ast.CaseClause); ok {
		if v := value(c); v != nil {
			return f.around("(false && (", v, "))"), nil
		}
		return nil, errNoValue
	}
	if s, ok := p.node.(ast.Stmt); ok {
		if list, _ := f.list(s); list == nil {
			return nil, errNoStatement
		}
		if a, ok := s.(*ast.AssignStmt); ok && a.Tok == token.DEFINE {
			return nil, errors.New("the statement declares variables")
		}
		return f.around("if false { ", s, " }"), nil
	}
	e, ok := p.node.(ast.Expr)
	if !ok {
		return nil, errNoStatement
	}
	var list []ast.Expr
	switch in := f.parent[e].(type) {
	case *ast.BinaryExpr:
		if isChain(in) {
			return f.neutral(in.Op, e), nil
		}
	case *ast.CompositeLit:
		list = in.Elts
	case *ast.CallExpr:
		list = in.Args
	}
	i := slices.Index(list, e)
	switch {
	case i < 0:
		return nil, errors.New("the expression is no operand of && or ||, argument or element")
	case i+1 < len(list):
		return []change{{from: f.offset(e.Pos()), to: f.offset(list[i+1].Pos())}}, nil
	case i > 0:
		return []change{{from: f.offset(list[i-1].End()), to: f.offset(e.End())}}, nil
	}
	return []change{{from: f.offset(e.Pos()), to: f.offset(e.End())}}, nil
}

// neutral makes an operand of && or || have no effect on the result.
func (f *file) neutral(op token.Token, e ast.Expr) []change {
	if op == token.LAND {
		return f.around("(true || (", e, "))")
	}
	return f.around("(false && (", e, "))")
}

func (p *point) only() ([]change, error) {
	e, _ := p.node.(ast.Expr)
	top, _ := p.file.parent[p.node].(*ast.BinaryExpr)
	if e == nil || top == nil || !isChain(top) {
		return nil, errors.New("the point is no operand of && or ||")
	}
	op := top.Op
	for {
		b, ok := p.file.parent[top].(*ast.BinaryExpr)
		if !ok || b.Op != op {
			break
		}
		top = b
	}
	var out []change
	var walk func(ast.Expr)
	walk = func(x ast.Expr) {
		if b, ok := x.(*ast.BinaryExpr); ok && b.Op == op {
			walk(b.X)
			walk(b.Y)
		} else if x != e {
			out = append(out, p.file.neutral(op, x)...)
		}
	}
	walk(top)
	return out, nil
}

// pointAt returns the point whose code is at an offset of a broken file, or "" if none is.
func (b *Broken) pointAt(name string, offset int) string {
	for _, s := range b.spans[name] {
		if s.from <= offset && offset < s.to {
			return s.point
		}
	}
	return ""
}

// Packages returns the directories of the packages that the fault changes, sorted.
func (b *Broken) Packages() []string {
	dirs := map[string]bool{}
	for name := range b.Files {
		dirs[path.Dir(name)] = true
	}
	return slices.Sorted(maps.Keys(dirs))
}
