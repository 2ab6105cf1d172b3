package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"go/importer"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/qlock/qlock/internal/plant"
)

var (
	faults = flag.Bool("sim.faults", false, "build each planted fault of testdata/faults and see that it is caught")
	only   = flag.String("sim.fault", "", "with -sim.faults: this one alone")
	share  = flag.String("sim.share", "1/1", "with -sim.faults: a share of them, such as 2/3 for the second third")
)

const root = "../.."

// readFaults reads all planted faults (for their form see package plant) and plants each.
func readFaults(t *testing.T) ([]plant.Fault, map[string]*plant.Broken) {
	t.Helper()
	tree, err := plant.Load(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob("testdata/faults/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) < 25 {
		t.Fatalf("only %d planted faults", len(paths))
	}
	var all []plant.Fault
	broken, used := map[string]*plant.Broken{}, map[string]bool{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f, err := plant.ParseFault(strings.TrimSuffix(filepath.Base(path), ".txt"), string(text))
		if err != nil {
			t.Error(err)
			continue
		}
		for _, e := range f.Edits {
			used[e.Point] = true
		}
		b, err := tree.Break(f)
		if err != nil {
			t.Error(err)
			continue
		}
		all = append(all, f)
		broken[f.Name] = b
	}
	for _, p := range tree.Points() {
		if !used[p] {
			t.Errorf("%s: no fault uses the point %s", tree.Where(p), p)
		}
	}
	return all, broken
}

// imports returns an importer of what the broken packages import, as compiled by the go
// command.
func imports(t *testing.T, broken map[string]*plant.Broken) types.Importer {
	t.Helper()
	args := []string{"list", "-export", "-deps", "-f", "{{.ImportPath}}\t{{.Export}}"}
	for _, b := range broken {
		for _, dir := range b.Packages() {
			if dir = "./" + dir; !slices.Contains(args, dir) {
				args = append(args, dir)
			}
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the code without faults does not compile: %v\n%s", err, stderr.Bytes())
	}
	compiled := map[string]string{}
	for line := range strings.Lines(string(out)) {
		pkg, file, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		compiled[pkg] = file
	}
	return importer.ForCompiler(token.NewFileSet(), "gc", func(pkg string) (io.ReadCloser, error) {
		return os.Open(compiled[pkg])
	})
}

// build compiles the tests of pkg with the fault, by means of go's overlay.
func build(t *testing.T, b *plant.Broken, pkg string) string {
	t.Helper()
	dir := t.TempDir()
	replace := map[string]string{}
	for file, src := range b.Files {
		abs, err := filepath.Abs(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		broken := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(broken, []byte(src), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[abs] = broken
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "broken.test")
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-overlay", list, "-o", bin, pkg)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("the broken variant does not build: %v\n%s", err, out)
	}
	return bin
}

var failedSeed = regexp.MustCompile(`seed (\d+): (.*)`)

// A checker is trusted only if it was seen to fail, so each planted fault must be caught.
// Without -sim.faults the test checks only that every fault finds its points and
// compiles, and that every point has a fault. .ci/run builds and runs a share of them.
func TestPlantedFaults(t *testing.T) {
	all, broken := readFaults(t)
	compiled := imports(t, broken)
	var part, parts int
	if _, err := fmt.Sscanf(*share, "%d/%d", &part, &parts); err != nil || part < 1 || part > parts {
		t.Fatalf("-sim.share %q: write it as 2/3, for the second third", *share)
	}
	for i, f := range all {
		name := f.Name
		t.Run(name, func(t *testing.T) {
			b := broken[name]
			if err := b.Check(compiled); err != nil {
				t.Fatal(err)
			}
			if !*faults || *only != "" && *only != name || i%parts != part-1 {
				return
			}
			// A limit for one that runs for ever. On a busy machine the slowest take minutes.
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
			defer cancel()
			var cmd *exec.Cmd
			if seeds, ok := strings.CutPrefix(f.CaughtBy, "seeds "); ok {
				cmd = exec.CommandContext(ctx, build(t, b, "./internal/sim"), "-test.run", "^TestSeeds$", "-sim.seeds", seeds)
				cmd.Dir = "."
			} else if by := strings.Fields(f.CaughtBy); len(by) == 2 && slices.Contains([]string{"names", "foreign", "onelink", "members", "owners"}, by[0]) {
				cmd = exec.CommandContext(ctx, build(t, b, "./internal/sim"), "-test.run", "^TestSeeds$", "-sim.kind", by[0], "-sim.seeds", by[1])
				cmd.Dir = "."
			} else if count, ok := strings.CutPrefix(f.CaughtBy, "epochs "); ok {
				cmd = exec.CommandContext(ctx, build(t, b, "./internal/sim"), "-test.run", "^TestEpochs$", "-sim.kind", "epochs", "-sim.seeds", count)
				cmd.Dir = "."
			} else if depth, ok := strings.CutPrefix(f.CaughtBy, "model "); ok {
				cmd = exec.CommandContext(ctx, build(t, b, "./internal/voter"), "-test.run", "^TestNames$", "-voter.names", depth)
				cmd.Dir = filepath.Join(root, "internal/voter")
			} else if pkg, ok := strings.CutPrefix(f.CaughtBy, "tests "); ok {
				cmd = exec.CommandContext(ctx, build(t, b, pkg), "-test.failfast")
				cmd.Dir = filepath.Join(root, pkg)
			} else {
				t.Fatalf("caught-by: %q is none of \"seeds N\", \"names N\", \"foreign N\", \"onelink N\", \"members N\", \"owners N\", \"epochs N\", \"model EVENTS\" and \"tests PACKAGE\"", f.CaughtBy)
			}
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("not caught by %s\n%s", f.CaughtBy, f.Why)
			}
			if m := failedSeed.FindSubmatch(out); m != nil {
				t.Logf("caught by seed %s: %s", m[1], m[2])
			} else if i := bytes.Index(out, []byte("--- FAIL")); i >= 0 && (strings.HasPrefix(f.CaughtBy, "tests") || strings.HasPrefix(f.CaughtBy, "model")) {
				t.Logf("caught by %s: %.300s", f.CaughtBy, out[i:])
			} else {
				t.Fatalf("the broken variant failed, but not by a broken promise:\n%.2000s", out)
			}
		})
	}
}
