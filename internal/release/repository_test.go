package release

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"
)

const (
	root = "../.."
	base = "github.com/qlock/qlock"
)

// published has the directories of the modules that are released, which other people
// require or install. The other modules are for the development of qlock.
var published = []string{".", "cmd/qlock", "gateway", "metrics"}

func modulePath(dir string) string { return path.Join(base, dir) }

type repository struct {
	version string // which the modules require of each other: the release that comes next
	modules map[string]*modfile.File
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readRepository(t *testing.T) repository {
	t.Helper()
	r := repository{modules: map[string]*modfile.File{}}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "testdata" || d.Name() == "vendor"):
			return filepath.SkipDir
		case d.Name() != "go.mod":
			return nil
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		f, err := modfile.Parse(rel, read(t, rel), nil)
		if err != nil {
			return err
		}
		r.modules[path.Dir(rel)] = f
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range published {
		if r.modules[dir] == nil {
			t.Fatalf("%s has no go.mod", dir)
		}
	}
	for _, req := range r.modules["cmd/qlock"].Require {
		if req.Mod.Path == base {
			r.version = req.Mod.Version
		}
	}
	if r.version == "" {
		t.Fatal("cmd/qlock does not require the library")
	}
	return r
}

func isOurs(module string) bool { return module == base || strings.HasPrefix(module, base+"/") }

// All modules are released under one version, which is spelled in several places.
func TestOneVersion(t *testing.T) {
	r := readRepository(t)
	goVersion := r.modules["."].Go.Version
	for dir, f := range r.modules {
		if f.Module.Mod.Path != modulePath(dir) {
			t.Errorf("%s/go.mod is of module %s", dir, f.Module.Mod.Path)
		}
		if f.Go == nil || f.Go.Version != goVersion {
			t.Errorf("%s/go.mod has another Go version than the library, %s", dir, goVersion)
		}
		for _, req := range f.Require {
			if isOurs(req.Mod.Path) && req.Mod.Version != r.version {
				t.Errorf("%s/go.mod requires %s; others require version %s", dir, req.Mod, r.version)
			}
		}
	}
	number := strings.TrimPrefix(r.version, "v")
	if !strings.Contains(string(read(t, "CHANGELOG.md")), "\n## ["+number+"]") {
		t.Errorf("CHANGELOG.md has no section %s", number)
	}
	if !strings.Contains(string(read(t, "deploy/kubernetes/qlock.yaml")), "image: qlock:"+number+"\n") {
		t.Errorf("deploy/kubernetes/qlock.yaml has another image than qlock:%s", number)
	}
}

// go install PACKAGE@VERSION refuses a module that replaces or excludes others.
func TestPublishedModulesReplaceNothing(t *testing.T) {
	r := readRepository(t)
	for _, dir := range published {
		if f := r.modules[dir]; len(f.Replace)+len(f.Exclude) > 0 {
			t.Errorf("%s/go.mod has replace or exclude directives", dir)
		}
	}
}

// Each module is in a workspace: in that of the root, or in one of its own. There
// the modules of the root's workspace are tested with the highest version that any
// of them requires, so all must require the same: else a module would be released
// with versions that it was not tested with.
func TestWorkspace(t *testing.T) {
	r := readRepository(t)
	work, err := modfile.ParseWork("go.work", read(t, "go.work"), nil)
	if err != nil {
		t.Fatal(err)
	}
	var used []string
	for _, u := range work.Use {
		used = append(used, path.Clean(u.Path))
	}
	for dir := range r.modules {
		if _, err := os.Stat(filepath.Join(root, dir, "go.work")); !slices.Contains(used, dir) && err != nil {
			t.Errorf("module %s is neither in go.work nor has a go.work of its own", dir)
		}
	}

	replaced := map[string]string{}
	for _, rep := range work.Replace {
		replaced[rep.Old.String()] = path.Clean(rep.New.Path)
	}
	versions := map[string]string{}
	for _, dir := range used {
		f := r.modules[dir]
		if f == nil {
			t.Fatalf("go.work uses %s, which has no go.mod", dir)
		}
		for _, req := range f.Require {
			module, version := req.Mod.Path, req.Mod.Version
			if isOurs(module) {
				if want := path.Join(".", strings.TrimPrefix(strings.TrimPrefix(module, base), "/")); replaced[req.Mod.String()] != want {
					t.Errorf("%s requires %s, for which go.work has no replace by ./%s: the go command would look for it on the network", dir, req.Mod, want)
				}
				continue
			}
			if other, ok := versions[module]; ok && !strings.HasPrefix(other, version+" ") {
				t.Errorf("%s requires %s %s, %s: set one version in all", dir, module, version, other)
			}
			versions[module] = fmt.Sprintf("%s is required by %s", version, dir)
		}
	}
	for old := range replaced {
		if _, version, _ := strings.Cut(old, "@"); version != r.version {
			t.Errorf("go.work replaces %s; the next version is %s", old, r.version)
		}
	}
}
