package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var (
	faults = flag.Bool("sim.faults", false, "build each planted fault of testdata/faults and see that it is caught")
	only   = flag.String("sim.fault", "", "with -sim.faults: this one alone")
)

// plant is one deliberately broken variant of the core, as text: the file says
// what it breaks, what must catch it, and what to replace by what. Broken code
// stays out of the code that people run, and a reader sees each fault whole.
type plant struct {
	why, by string
	files   map[string]string // path from the module's root to broken source
}

const root = "../.."

func readPlant(t *testing.T, path string) plant {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p := plant{files: map[string]string{}}
	file, rest := "", string(text)
	for rest != "" {
		line, after, _ := strings.Cut(rest, "\n")
		rest = after
		switch {
		case strings.HasPrefix(line, "# "):
			p.why += line[2:] + "\n"
		case strings.HasPrefix(line, "caught-by: "):
			p.by = line[len("caught-by: "):]
		case strings.HasPrefix(line, "file: "):
			file = line[len("file: "):]
		case line == "<<<<":
			hunk, after, ok := strings.Cut(rest, "\n>>>>\n")
			old, broken, ok2 := strings.Cut(hunk, "\n====\n")
			if !ok || !ok2 {
				t.Fatalf("%s: a hunk is not closed", path)
			}
			rest = after
			src, found := p.files[file]
			if !found {
				b, err := os.ReadFile(filepath.Join(root, file))
				if err != nil {
					t.Fatal(err)
				}
				src = string(b)
			}
			if n := strings.Count(src, old); n != 1 {
				t.Fatalf("%s: this stands in %s %d times, not once; the fault must follow the code:\n%s", path, file, n, old)
			}
			p.files[file] = strings.Replace(src, old, broken, 1)
		case line != "":
			t.Fatalf("%s: not understood: %s", path, line)
		}
	}
	if p.why == "" || p.by == "" || len(p.files) == 0 {
		t.Fatalf("%s: it must say why, caught-by, and at least one file", path)
	}
	return p
}

// build compiles the tests of pkg with the fault in, by go's overlay.
func (p plant) build(t *testing.T, pkg string) string {
	t.Helper()
	dir := t.TempDir()
	replace := map[string]string{}
	for file, src := range p.files {
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

// A checker that was never seen to fail is not a checker: each planted fault must
// be caught. Without -sim.faults it is only checked that every fault still fits
// the code; .ci/run builds and runs them all.
func TestPlantedFaults(t *testing.T) {
	paths, err := filepath.Glob("testdata/faults/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) < 25 {
		t.Fatalf("only %d planted faults", len(paths))
	}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".txt")
		t.Run(name, func(t *testing.T) {
			p := readPlant(t, path)
			if !*faults || *only != "" && *only != name {
				return
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			var cmd *exec.Cmd
			if seeds, ok := strings.CutPrefix(p.by, "seeds "); ok {
				cmd = exec.CommandContext(ctx, p.build(t, "./internal/sim"), "-test.run", "^TestSeeds$", "-sim.seeds", seeds)
				cmd.Dir = "."
			} else if by := strings.Fields(p.by); len(by) == 2 && (by[0] == "names" || by[0] == "foreign") {
				cmd = exec.CommandContext(ctx, p.build(t, "./internal/sim"), "-test.run", "^TestSeeds$", "-sim.kind", by[0], "-sim.seeds", by[1])
				cmd.Dir = "."
			} else if depth, ok := strings.CutPrefix(p.by, "model "); ok {
				cmd = exec.CommandContext(ctx, p.build(t, "./internal/node"), "-test.run", "^TestNames$", "-node.names", depth)
				cmd.Dir = filepath.Join(root, "internal/node")
			} else if pkg, ok := strings.CutPrefix(p.by, "tests "); ok {
				cmd = exec.CommandContext(ctx, p.build(t, pkg))
				cmd.Dir = filepath.Join(root, pkg)
			} else {
				t.Fatalf("caught-by: %q is none of \"seeds N\", \"names N\", \"foreign N\", \"model EVENTS\" and \"tests PACKAGE\"", p.by)
			}
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("not caught by %s\n%s", p.by, p.why)
			}
			if m := failedSeed.FindSubmatch(out); m != nil {
				t.Logf("caught by seed %s: %s", m[1], m[2])
			} else if i := bytes.Index(out, []byte("--- FAIL")); i >= 0 && (strings.HasPrefix(p.by, "tests") || strings.HasPrefix(p.by, "model")) {
				t.Logf("caught by %s: %.300s", p.by, out[i:])
			} else {
				t.Fatalf("the broken variant failed, but not by a broken promise:\n%.2000s", out)
			}
		})
	}
}
