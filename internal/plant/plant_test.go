package plant

import (
	"go/importer"
	"go/token"
	"go/types"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
)

// sample has a point of each form. Its second file is for what must not be read.
const sample = `package sample

type state struct { //plant:fields
	n int
}

func (s *state) size() int { return s.n + 1 } //plant:size

func (s *state) step(a, b int, on bool) (int, bool) { //plant:step
	if on /*plant:on*/ || a > b || s.n > 3 { //plant:early
		return 0, false
	}
	switch {
	case a == b: // equal //plant:equal
		s.n++ //plant:count
	default:
		s.n += max(a, b /*plant:second*/)
	}
	s.n *= 2 // twice //plant:twice
	other := state{n: s.n /*plant:field*/}
	for i := 0; i < a; i++ {
		if i == 7 {
			break
		} else if i == 8 { //plant:eight
			s.n = 0
		}
		other.add(
			i,
		) //plant:add
	}
	return other.n, a < b && on && s.n != 0 /*plant:last*/
}

func (s *state) add(i int) { s.n += i }
`

func load(t *testing.T, src string) *Tree {
	t.Helper()
	tree, err := Load(fstest.MapFS{
		"go/sample.go":      {Data: []byte(src)},
		"go/sample_test.go": {Data: []byte("package sample\n\nfunc f() {} //plant:size\n")},
		"testdata/x.go":     {Data: []byte("no Go //plant:size\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func fault(t *testing.T, edits string) Fault {
	t.Helper()
	f, err := ParseFault("f", "# Why.\ncaught-by: x\n"+edits+"\n")
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// noImports is for a package that imports nothing.
func noImports() types.Importer { return importer.ForCompiler(token.NewFileSet(), "gc", nil) }

var marker = regexp.MustCompile(`\s*(//plant:|/\*plant:)[a-z]+(\*/)?`)

func broken(t *testing.T, src, edits string) string {
	t.Helper()
	b, err := load(t, src).Break(fault(t, edits))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Check(noImports()); err != nil {
		t.Fatal(err)
	}
	return marker.ReplaceAllString(b.Files["go/sample.go"], "")
}

// Each operation, and what it makes of its line.
var operations = []struct{ edits, want string }{
	{"at fields: inside more int", "type state struct { more int;\n"},
	{"at size: as $ / 2", "int { return ((s.n + 1) / 2) }\n"},
	{"at size: as 0", "int { return (0) }\n"},
	{"at step: inside a = b", "(int, bool) { a = b;\n"},
	{"at early: false", "\tif (false && (on || a > b || s.n > 3)) {\n"},
	{"at early: true", "\tif (true || (on || a > b || s.n > 3)) {\n"},
	{"at early: as $ && b > 0", "\tif ((on || a > b || s.n > 3) && b > 0) {\n"},
	{"at early: inside a++", "\tif on || a > b || s.n > 3 { a++;\n\t\treturn 0, false\n"},
	{"at early: return 1, true", "\treturn 1, true; if on ||"},
	{"at on: drop", "\tif (false && (on)) || a > b || s.n > 3 {\n"},
	{"at on: only", "\tif on || (false && (a > b)) || (false && (s.n > 3)) {\n"},
	{"at equal: false", "\tcase (false && (a == b)): // equal\n"},
	{"at equal: drop", "\tcase (false && (a == b)): // equal\n"},
	{"at count: drop", "\t\tif false { s.n++ }\n\tdefault:\n"},
	{"at count: after\n\ts.n--\n\ts.n--", "\t\ts.n++; s.n--\ns.n--\n"},
	{"at second: drop", "\t\ts.n += max(a)\n"},
	{"at second: as $ + 1", "\t\ts.n += max(a, ((b) + 1))\n"},
	{"at twice: before s.n--", "\ts.n--; s.n *= 2 // twice\n"},
	{"at twice: instead if on { $ }", "\tif on { s.n *= 2 } // twice\n"},
	{"at field: drop", "\tother := state{}\n"},
	{"at field: as 0", "\tother := state{n: (0)}\n"},
	{"at eight: true", "\t\t} else if (true || (i == 8)) {\n"},
	{"at add: drop", "\t\tif false { other.add(\n\t\t\ti,\n\t\t) }\n\t}\n"},
	{"at last: drop", "\treturn other.n, a < b && on && (true || (s.n != 0))\n"},
	{"at last: as on", "\treturn other.n, a < b && on && (on)\n"},
	{"at last: only", "\treturn other.n, (true || (a < b)) && (true || (on)) && s.n != 0\n"},
	{"at early: as $ && b > 0\nat early: inside a++\nat last: true", "\tif ((on || a > b || s.n > 3) && b > 0) { a++;\n"},
}

func TestOperations(t *testing.T) {
	for _, c := range operations {
		t.Run(strings.ReplaceAll(c.edits, "\n", "; "), func(t *testing.T) {
			got := broken(t, sample, c.edits)
			if !strings.Contains(got, c.want) {
				t.Errorf("want %q in\n%s", c.want, got)
			}
			// Only the requested edit was made: without it the source is as before.
			if same := strings.Count(got, "\n") - strings.Count(c.edits, "\n\t"); !strings.Contains(c.edits, "\n\t") && same != strings.Count(sample, "\n") {
				t.Errorf("the lines moved:\n%s", got)
			}
		})
	}
	got := broken(t, strings.Replace(sample, "\ts.n *= 2 // twice", "\ts.n-- //plant:less\n\ts.n *= 2 // twice", 1), "at less: later")
	if want := "\ts.n *= 2\n\ts.n-- // twice\n"; !strings.Contains(got, want) {
		t.Errorf("want %q in\n%s", want, got)
	}
}

// Changes that a patch of lines did not survive: renamed identifiers, lines that move
// within their function or are reformatted, and a new neighbour of the operand.
func TestFaultFollowsCode(t *testing.T) {
	edit := func(src string, pairs ...string) string {
		t.Helper()
		for i := 0; i < len(pairs); i += 2 {
			if !strings.Contains(src, pairs[i]) {
				t.Fatalf("the sample has no %q", pairs[i])
			}
			src = strings.ReplaceAll(src, pairs[i], pairs[i+1])
		}
		return src
	}
	changed := edit(sample,
		"s.n", "s.sum", "n:", "sum:", "other.n", "other.sum", "\tn int", "\tsum int", // a rename
		"\ts.sum *= 2 // twice //plant:twice\n", "", "\tswitch {\n", "\ts.sum *= 2 // twice //plant:twice\n\tswitch {\n", // a move
		"if on /*plant:on*/ || a > b || s.sum > 3 { //plant:early", "if a > b || b > 9 ||\n\t\ts.sum > 3 ||\n\t\ton /*plant:on*/ { //plant:early", // another order, and form
		"int { return s.sum + 1 } //plant:size", "int {\n\treturn s.sum + 1 //plant:size\n}",
	)
	for _, c := range operations {
		if strings.Contains(c.edits, "s.n") {
			continue // has code that names what was renamed
		}
		t.Run(strings.ReplaceAll(c.edits, "\n", "; "), func(t *testing.T) { broken(t, changed, c.edits) })
	}
	for edits, want := range map[string]string{
		"at twice: drop": "\tif false { s.sum *= 2 } // twice\n\tswitch {\n",
		"at on: drop":    "\tif a > b || b > 9 ||\n\t\ts.sum > 3 ||\n\t\t(false && (on)) {\n",
		"at on: only":    "\tif (false && (a > b)) || (false && (b > 9)) ||\n\t\t(false && (s.sum > 3)) ||\n\t\ton {\n",
		"at early: true": "\tif (true || (a > b || b > 9 ||\n\t\ts.sum > 3 ||\n\t\ton)) {\n",
		"at size: as 0":  "\treturn (0)\n",
		"at field: drop": "\tother := state{}\n",
	} {
		if got := broken(t, changed, edits); !strings.Contains(got, want) {
			t.Errorf("%s: want %q in\n%s", edits, want, got)
		}
	}
}

// Code that names an identifier which does not exist any more must be reported, with its
// fault.
func TestCheckNamesIdentifiers(t *testing.T) {
	b, err := load(t, sample).Break(fault(t, "at twice: instead s.sum = gone"))
	if err != nil {
		t.Fatal(err)
	}
	err = b.Check(noImports())
	if err == nil {
		t.Fatal("code that does not compile is not found")
	}
	for _, want := range []string{"fault f, point twice (go/sample.go:19)", "s.sum undefined", "undefined: gone"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("want %q in %q", want, err)
		}
	}
	b, err = load(t, sample).Break(fault(t, "at twice: before if {"))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Check(noImports()); err == nil || !strings.Contains(err.Error(), "fault f, point twice (go/sample.go:19): the code that it plants does not compile: ") {
		t.Errorf("code that is none: %v", err)
	}
	// An error elsewhere in the package also belongs to the fault.
	b, err = load(t, sample).Break(fault(t, "at step: inside unused := 1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Check(noImports()); err == nil || !strings.Contains(err.Error(), "declared and not used: unused") {
		t.Errorf("a variable without use: %v", err)
	}
}

func TestCannotBreak(t *testing.T) {
	for edits, want := range map[string]string{
		"at gone: drop":                      "no code has the point gone",
		"at fields: drop":                    "not a statement",
		"at step: drop":                      "not a statement",
		"at step: true":                      "no single condition",
		"at twice: later":                    "",
		"at twice: inside a++":               "no body",
		"at twice: only":                     "no operand",
		"at second: only":                    "no operand",
		"at eight: before a++":               "not a statement in a list",
		"at equal: before a++":               "not a statement in a list",
		"at count: later":                    "no statement follows",
		"at early: true\nat early: false":    "",
		"at early: instead a++\nat on: drop": "overlaps",
	} {
		_, err := load(t, sample).Break(fault(t, edits))
		if want == "" {
			if err != nil {
				t.Errorf("%s: %v", edits, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", edits, err, want)
		}
	}
	src := strings.Replace(sample, "other := state{", "other := /*plant:none*/ state{", 1)
	if _, err := Load(fstest.MapFS{"a.go": {Data: []byte(src)}}); err == nil || !strings.Contains(err.Error(), "a.go:20: point none names nothing") {
		t.Errorf("a point of nothing: %v", err)
	}
	src = strings.Replace(sample, "plant:count", "plant:twice", 1)
	if _, err := Load(fstest.MapFS{"a.go": {Data: []byte(src)}}); err == nil || !strings.Contains(err.Error(), "a.go:19: there is another point twice, at a.go:15") {
		t.Errorf("two points of one name: %v", err)
	}
	src = strings.Replace(sample, "\t\ts.n++", "\t\t//plant:alone\n\t\ts.n++", 1)
	if _, err := Load(fstest.MapFS{"a.go": {Data: []byte(src)}}); err == nil || !strings.Contains(err.Error(), "a.go:15: point alone names nothing") {
		t.Errorf("a point on a line of its own: %v", err)
	}
}

func TestParseFault(t *testing.T) {
	for text, want := range map[string]string{
		"":                                      "must say why",
		"# Why.\ncaught-by: x\n":                "at least one point",
		"caught-by: x\nat a: drop\n":            "must say why",
		"# Why.\nat a: drop\n":                  "must say why, caught-by",
		"# Why.\ncaught-by: x\nat a: split\n":   `no operation "split"`,
		"# Why.\ncaught-by: x\nat a: drop it\n": "drop takes no code",
		"# Why.\ncaught-by: x\nat a: as\n":      "as needs code",
		"# Why.\ncaught-by: x\nat A: drop\n":    "not understood",
		"# Why.\ncaught-by: x\n\tdrop\n":        "not understood",
	} {
		if _, err := ParseFault("f", text); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "fault f") {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	f, err := ParseFault("f", "# Why\n# so.\ncaught-by: seeds 3\n\nat a: as $ + 1\nat b: before\n\tif x {\n\t\ty++\n\t}\n")
	if err != nil {
		t.Fatal(err)
	}
	if f.Why != "Why\nso.\n" || f.CaughtBy != "seeds 3" || len(f.Edits) != 2 || f.Edits[0] != (Edit{"a", "as", "$ + 1"}) || f.Edits[1] != (Edit{"b", "before", "if x {\n\ty++\n}"}) {
		t.Errorf("got %+v", f)
	}
}
