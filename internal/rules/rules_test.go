package rules

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	root = "../.."
	base = "github.com/qlock/qlock"
)

// core are the packages that the protocol is made of. They are pure: what they do
// depends on their arguments alone, so that the simulator can run in virtual time the
// very code that runs in production, and repeat each run. Time and random numbers are
// arguments; connections, files, logs and goroutines are the driver's.
var core = []string{
	"internal/client", "internal/epoch", "internal/hold", "internal/members", "internal/voter", "internal/printable",
	"internal/wire", "internal/quorum", "internal/sat", "internal/shrink",
	"internal/subject",
}

// coreImports has the packages from outside of this repository that the core may import,
// each with the reason why it is harmless. It lists what is allowed, because a list of all
// packages that read a clock would never be complete.
var coreImports = map[string]string{
	"cmp":                    "pure",
	"container/heap":         "pure",
	"crypto/sha256":          "pure: digests of configurations",
	"encoding/binary":        "pure",
	"encoding/hex":           "pure",
	"encoding/json":          "pure",
	"errors":                 "pure",
	"fmt":                    "texts of errors; Print and its kin are forbidden below",
	"github.com/google/uuid": "the type and its parsing; what makes random ones is forbidden below",
	"iter":                   "pure",
	"maps":                   "pure; its order is random, which the simulator would show as runs that differ",
	"math":                   "pure",
	"math/bits":              "pure",
	"path/filepath":          "Base, which is pure; what reads files is forbidden below",
	"slices":                 "pure",
	"strconv":                "pure",
	"strings":                "pure",
	"time":                   "the types and their arithmetic; clocks and timers are forbidden below",
	"unicode/utf8":           "pure",
	"unsafe":                 "strings that share a message's memory in the decoder",
}

// coreNames are the names of allowed packages that the core may not use.
var coreNames = map[string]*regexp.Regexp{
	"time":                   regexp.MustCompile(`^(Now|Since|Until|Sleep|After|AfterFunc|Tick|NewTimer|NewTicker|Timer|Ticker|Local|LoadLocation)$`),
	"fmt":                    regexp.MustCompile(`^(Print|Scan)(f|ln)?$`),
	"path/filepath":          regexp.MustCompile(`^(Abs|EvalSymlinks|Glob|Walk|WalkDir)$`),
	"github.com/google/uuid": regexp.MustCompile(`^(New|NewString|NewRandom\w*|NewUUID|NewV6|NewV7\w*|NewDCE\w*|SetRand|EnableRandPool|NodeID|GetTime)$`),
}

// api has the packages of this repository that the command may import: the public packages,
// and internal ones that know nothing of messages and of the protocol.
var api = []string{
	base, base + "/embedded", base + "/gateway", base + "/gateway/gatewaymetrics", base + "/metrics", base + "/cmd/qlock/internal/cli",
	base + "/election", base + "/semaphore", base + "/members", base + "/partition", base + "/queue", base + "/store", base + "/nodes",
	base + "/internal/loopback", base + "/internal/permissions", base + "/internal/printable",
	base + "/internal/redact", base + "/internal/sat", base + "/internal/subject",
	base + "/internal/version",
}

// apiExceptions are imports by the command beyond that: file and package, with the
// reason. It may only become shorter: the command is to stand on the public API, so
// that other programs can do what it does.
var apiExceptions = map[string]string{}

type source struct {
	name    string // from the root of the repository
	file    *ast.File
	imports map[string]string // path to the name in this file
}

func (s source) dir() string { return path.Dir(s.name) }

// sources parses all Go files but tests, under all build constraints.
func sources(t *testing.T) (*token.FileSet, []source) {
	t.Helper()
	fset := token.NewFileSet()
	var out []source
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || d.Name() == "vendor" || strings.HasPrefix(d.Name(), ".") && name != root):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		s := source{name: filepath.ToSlash(rel), file: file, imports: map[string]string{}}
		for _, spec := range file.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			s.imports[p] = path.Base(p)
			if spec.Name != nil {
				s.imports[p] = spec.Name.Name
			}
		}
		out = append(out, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 100 {
		t.Fatalf("only %d files of Go: this test looks in the wrong place", len(out))
	}
	return fset, out
}

func TestCoreIsPure(t *testing.T) {
	fset, files := sources(t)
	seen := map[string]bool{}
	used := map[string]bool{}
	for _, s := range files {
		if !slices.Contains(core, s.dir()) {
			continue
		}
		seen[s.dir()] = true
		for p := range s.imports {
			used[p] = true
		}
		for _, problem := range impure(fset, s) {
			t.Error(problem)
		}
	}
	for _, dir := range core {
		if !seen[dir] {
			t.Errorf("%s, a package of the core, is gone: correct the list, here and in .golangci.yml", dir)
		}
	}
	for p := range coreImports {
		if !used[p] {
			t.Errorf("the core no longer imports %s: remove it from coreImports", p)
		}
	}
}

// impure says what is wrong with a file of the core.
func impure(fset *token.FileSet, s source) []string {
	var problems []string
	wrong := func(n ast.Node, format string, args ...any) {
		problems = append(problems, fmt.Sprintf("%s: %s; the core must be pure", fset.Position(n.Pos()), fmt.Sprintf(format, args...)))
	}
	forbidden := map[string]*regexp.Regexp{} // by the name of the package in this file
	for p, name := range s.imports {
		ours, isOurs := strings.CutPrefix(p, base+"/")
		switch {
		case isOurs && !slices.Contains(core, ours):
			wrong(s.file, "imports %s, which is not of the core", p)
		case !isOurs && coreImports[p] == "":
			wrong(s.file, "imports %s, which is not in coreImports", p)
		case name == ".":
			wrong(s.file, "imports the names of %s into its own", p)
		}
		if names := coreNames[p]; names != nil {
			forbidden[name] = names
		}
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			wrong(n, "starts a goroutine")
		case *ast.ChanType:
			wrong(n, "has a channel")
		case *ast.SelectStmt:
			wrong(n, "selects")
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && forbidden[x.Name] != nil && forbidden[x.Name].MatchString(n.Sel.Name) {
				wrong(n, "uses %s.%s", x.Name, n.Sel.Name)
			}
		}
		return true
	})
	return problems
}

// What is forbidden is found.
func TestImpurityIsFound(t *testing.T) {
	for _, c := range []struct{ imports, body, want string }{
		{`"time"`, `_ = time.Now()`, "uses time.Now"},
		{`clock "time"`, `_ = clock.Since(clock.Time{})`, "uses clock.Since"},
		{`"time"`, `var t *time.Timer; _ = t`, "uses time.Timer"},
		{`. "time"`, `_ = Now()`, "imports the names of time"},
		{`"sync"`, `var mu sync.Mutex; mu.Lock()`, "imports sync"},
		{`"math/rand/v2"`, `_ = rand.Int()`, "imports math/rand/v2"},
		{`"net"`, `_ = net.IPv4zero`, "imports net"},
		{`"os"`, `_ = os.Args`, "imports os"},
		{`"log/slog"`, `slog.Info("")`, "imports log/slog"},
		{`"github.com/google/uuid"`, `_ = uuid.New()`, "uses uuid.New"},
		{`"github.com/qlock/qlock/internal/logqueue"`, `_ = logqueue.Queue{}`, "not of the core"},
		{`"fmt"`, `fmt.Println()`, "uses fmt.Println"},
		{`"fmt"`, `go fmt.Sprint()`, "starts a goroutine"},
		{`"fmt"`, `_ = make(chan int); _ = fmt.Sprint()`, "has a channel"},
		{`"fmt"`, `_ = fmt.Sprint(); select {}`, "selects"},
		{`"time"`, `_ = time.Duration(0).String()`, ""},
		{`"github.com/google/uuid"`, `_ = uuid.NewSHA1(uuid.Nil, nil)`, ""},
	} {
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, "x.go", "package x\nimport "+c.imports+"\nfunc f() { "+c.body+" }\n", parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		spec := file.Imports[0]
		p, _ := strconv.Unquote(spec.Path.Value)
		name := path.Base(p)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		found := strings.Join(impure(fset, source{"x.go", file, map[string]string{p: name}}), "\n")
		if c.want == "" && found != "" || !strings.Contains(found, c.want) {
			t.Errorf("import %s; %s: %q", c.imports, c.body, found)
		}
	}
}

// The command stands on the API.
func TestCommandUsesAPI(t *testing.T) {
	_, files := sources(t)
	needed := map[string]bool{}
	seen := 0
	for _, s := range files {
		if !strings.HasPrefix(s.name, "cmd/") {
			continue
		}
		seen++
		for p := range s.imports {
			ours, isOurs := strings.CutPrefix(p, base)
			if !isOurs || slices.Contains(api, p) {
				continue
			}
			exception := s.name + " " + strings.TrimPrefix(ours, "/")
			needed[exception] = true
			if apiExceptions[exception] == "" {
				t.Errorf("%s imports %s: the command uses the public API, as other programs do", s.name, p)
			}
		}
	}
	if seen == 0 {
		t.Error("there is no command")
	}
	for _, exception := range slices.Sorted(maps.Keys(apiExceptions)) {
		if !needed[exception] {
			t.Errorf("the exception for %q is no longer needed: remove it", exception)
		}
	}
}

// Metrics is released as a module of its own. A program may have it at another
// version than the library, and there the internals may be others.
func TestMetricsUsesAPI(t *testing.T) {
	_, files := sources(t)
	seen := 0
	for _, s := range files {
		if s.dir() != "metrics" {
			continue
		}
		seen++
		for p := range s.imports {
			if strings.HasPrefix(p, base) && p != base {
				t.Errorf("%s imports %s: of this repository, package metrics may use the library alone", s.name, p)
			}
		}
	}
	if seen == 0 {
		t.Error("package metrics is gone")
	}
}

// Gateway is a module of its own as well. Beside the library it may use the recipes and the
// store, which are public packages of the library's module.
func TestGatewayUsesAPI(t *testing.T) {
	_, files := sources(t)
	allowed := []string{base, base + "/store"}
	for _, r := range recipes {
		allowed = append(allowed, base+"/"+r)
	}
	seen := 0
	for _, s := range files {
		if s.dir() != "gateway" && !strings.HasPrefix(s.dir(), "gateway/") {
			continue
		}
		seen++
		for p := range s.imports {
			inModule := p == base+"/gateway" || strings.HasPrefix(p, base+"/gateway/")
			if strings.HasPrefix(p, base) && !inModule && !slices.Contains(allowed, p) {
				t.Errorf("%s imports %s: of this repository, package gateway may use the library, its recipes and the store", s.name, p)
			}
			if strings.HasPrefix(p, "github.com/nats-io/nats-server") {
				t.Errorf("%s imports %s: a program that serves a gateway need not link a NATS server", s.name, p)
			}
		}
	}
	if seen == 0 {
		t.Error("package gateway is gone")
	}
}

// recipes are packages that stand on the public API alone, as those of other programs do.
var recipes = []string{"election", "semaphore", "members", "partition", "queue"}

// builtOn has the recipes that use another one.
var builtOn = map[string]string{"partition": base + "/members"}

func TestRecipesUseAPI(t *testing.T) {
	_, files := sources(t)
	seen := map[string]bool{}
	for _, s := range files {
		if !slices.Contains(recipes, s.dir()) {
			continue
		}
		seen[s.dir()] = true
		for p := range s.imports {
			if strings.HasPrefix(p, base+"/") && p != builtOn[s.dir()] {
				t.Errorf("%s imports %s: of this repository, a recipe may use the library alone", s.name, p)
			}
		}
	}
	if len(seen) != len(recipes) {
		t.Errorf("of the recipes %v only %v are there", recipes, slices.Collect(maps.Keys(seen)))
	}
}

// The library must not import what is built upon it, nor a NATS server.
func TestLibraryStaysLean(t *testing.T) {
	_, files := sources(t)
	for _, s := range files {
		if s.dir() != "." {
			continue
		}
		for p := range s.imports {
			host, _, _ := strings.Cut(p, "/")
			ours, isOurs := strings.CutPrefix(p, base+"/")
			switch {
			case isOurs && strings.HasPrefix(ours, "internal/"):
			case p == "github.com/google/uuid" || p == "github.com/nats-io/nats.go" || p == "github.com/nats-io/nats.go/micro":
			case !isOurs && !strings.Contains(host, "."):
			default:
				t.Errorf("%s imports %s: the library is made of the standard library, nats.go and uuid", s.name, p)
			}
		}
	}
}

// forTests are the packages that only tests may import. They may import package testing,
// which no program links, and each other.
var forTests = []string{"qlocktest", "internal/testworld"}

// Only tests crash nodes, and demonstrations by embedded.Cluster: what runs in production
// must not be able to.
func TestOnlyTestsCrash(t *testing.T) {
	_, files := sources(t)
	var crash []string
	seen := map[string]bool{}
	for _, s := range files {
		if s.imports[base+"/internal/crash"] != "" {
			crash = append(crash, s.name)
		}
		if slices.Contains(forTests, s.dir()) {
			seen[s.dir()] = true
			continue
		}
		if s.imports["testing"] != "" {
			t.Errorf("%s imports testing, and is no test", s.name)
		}
		for _, dir := range forTests {
			if s.imports[base+"/"+dir] != "" {
				t.Errorf("%s imports %s, which is for tests", s.name, dir)
			}
		}
	}
	if want := []string{"embedded/embedded.go", "qlocktest/cluster.go", "responder.go"}; !slices.Equal(crash, want) {
		t.Errorf("%v import internal/crash, allowed are %v", crash, want)
	}
	for _, dir := range forTests {
		if !seen[dir] {
			t.Errorf("%s, a package for tests, is gone: correct the list", dir)
		}
	}
}

// .golangci.yml says the same, for editors.
func TestLinterKnowsTheRules(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root, ".golangci.yml"))
	if err != nil {
		t.Fatal(err)
	}
	config := string(b)
	for _, dir := range core {
		if !strings.Contains(config, `"**/`+dir+`/*.go"`) {
			t.Errorf(".golangci.yml does not have %s among the files of the core", dir)
		}
		if !strings.Contains(config, "- "+base+"/"+dir+"\n") {
			t.Errorf(".golangci.yml does not let the core import %s", dir)
		}
	}
	for p := range coreImports {
		if !strings.Contains(config, "- "+p+"$\n") {
			t.Errorf(".golangci.yml does not let the core import %s", p)
		}
	}
	for exception := range apiExceptions {
		file, _, _ := strings.Cut(exception, " ")
		if !strings.Contains(config, `"!**/`+file+`"`) {
			t.Errorf(".golangci.yml does not have the exception for %s", file)
		}
	}
	for _, m := range regexp.MustCompile(`"!\*\*/(cmd/[^"]+)"`).FindAllStringSubmatch(config, -1) {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(apiExceptions)), func(e string) bool { return strings.HasPrefix(e, m[1]+" ") }) {
			t.Errorf(".golangci.yml has an exception for %s, which is not needed", m[1])
		}
	}
}
