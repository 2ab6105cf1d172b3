package release

import (
	"bufio"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/zip"
)

var rehearse = flag.Bool("release.rehearse", false, "pack the modules as for a release, and use them as strangers do")

// pack writes what a module proxy serves of a module at a version, from the files of
// dir. Nested modules, vendor and version control are left out, as zip does it.
func pack(t *testing.T, proxy, dir string, m module.Version) {
	t.Helper()
	escaped, err := module.EscapePath(m.Path)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(proxy, filepath.FromSlash(escaped), "@v")
	if err := os.MkdirAll(to, 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(name string, content []byte) {
		if err := os.WriteFile(filepath.Join(to, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("list", []byte(m.Version+"\n"))
	info, err := json.Marshal(map[string]any{"Version": m.Version, "Time": time.Now().UTC().Format(time.RFC3339)})
	if err != nil {
		t.Fatal(err)
	}
	write(m.Version+".info", info)
	write(m.Version+".mod", read(t, filepath.Join(dir, "go.mod")))
	f, err := os.Create(filepath.Join(to, m.Version+".zip"))
	if err != nil {
		t.Fatal(err)
	}
	if err := zip.CreateFromDir(f, m, filepath.Join(root, dir)); err != nil {
		t.Fatalf("%s cannot be packed: %v", m, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// stranger runs commands as on a machine that has never seen this repository: with a
// GOPATH and a module cache of its own, and a proxy that has the packed modules.
type stranger struct {
	t   *testing.T
	env []string
	bin string
}

func newStranger(t *testing.T, proxy string) *stranger {
	t.Helper()
	settings := map[string]string{}
	out, err := exec.CommandContext(t.Context(), "go", "env", "-json", "GOMODCACHE", "GOPROXY").Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &settings); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := &stranger{t: t, bin: filepath.Join(dir, "bin")}
	downloaded := filepath.Join(settings["GOMODCACHE"], "cache", "download")
	s.env = append(os.Environ(),
		"GOPATH="+filepath.Join(dir, "gopath"),
		// Not the ordinary cache, where modules that were never published would stay.
		// What that has of other modules is read as from a proxy.
		"GOMODCACHE="+filepath.Join(dir, "mod"),
		"GOPROXY="+fileURL(proxy)+","+fileURL(downloaded)+","+settings["GOPROXY"],
		"GOBIN="+s.bin,
		"GOWORK=off", "GOENV=off", "GOPRIVATE=", "GONOPROXY=none", "GOTOOLCHAIN=local",
		// The checksum database cannot know the packed modules. Others were compared
		// with it when they came into the ordinary cache.
		"GOSUMDB=off",
		// Without paths in it, what was compiled of other modules is there the next time.
		"GOFLAGS=-modcacherw -trimpath", "CGO_ENABLED=0",
	)
	return s
}

func fileURL(dir string) string {
	dir = filepath.ToSlash(dir)
	if !strings.HasPrefix(dir, "/") { // C:/...
		dir = "/" + dir
	}
	return "file://" + dir
}

func (s *stranger) run(dir, name string, args ...string) string {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), name, args...)
	cmd.Dir, cmd.Env = dir, s.env
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, errs.String())
	}
	return string(out)
}

// consumer makes a module outside of this repository with this program, which requires
// these modules.
func (s *stranger) consumer(program string, modules ...string) string {
	s.t.Helper()
	dir := s.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(program), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.run(dir, "go", "mod", "init", "example.com/consumer")
	s.run(dir, "go", append([]string{"get"}, modules...)...)
	s.run(dir, "go", "mod", "tidy")
	return dir
}

// TestRehearsal releases the modules to a directory, and looks at what people get.
func TestRehearsal(t *testing.T) {
	if !*rehearse {
		t.Skip("some twenty seconds, and modules that may have to be downloaded: run it with -release.rehearse")
	}
	version := readRepository(t).version
	number := strings.TrimPrefix(version, "v")
	proxy := t.TempDir()
	for _, dir := range published {
		pack(t, proxy, dir, module.Version{Path: modulePath(dir), Version: version})
	}
	s := newStranger(t, proxy)

	t.Run("command", func(t *testing.T) {
		s := &stranger{t, s.env, s.bin}
		s.run(t.TempDir(), "go", "install", base+"/cmd/qlock@"+version)
		var told struct{ Version, Revision string }
		if err := json.Unmarshal([]byte(s.run("", filepath.Join(s.bin, "qlock"), "version", "--json")), &told); err != nil {
			t.Fatal(err)
		}
		if told.Version != number || told.Revision != "" {
			t.Errorf("qlock version says %+v, not %s", told, number)
		}
		if line := s.run("", filepath.Join(s.bin, "qlock"), "version"); !strings.HasPrefix(line, "qlock "+number+", ") {
			t.Errorf("qlock version says %q", line)
		}
	})

	t.Run("library", func(t *testing.T) {
		s := &stranger{t, s.env, s.bin}
		dir := s.consumer(`package main

import (
	"fmt"

	"github.com/qlock/qlock"
)

func main() { fmt.Print(qlock.Version()) }
`, base+"@"+version)
		if told := s.run(dir, "go", "run", "."); told != number {
			t.Errorf("qlock.Version is %q in another program, not %s", told, number)
		}
		compare(t, "the build list of a program that imports the library", strings.Fields(s.run(dir, "go", "list", "-m", "-f", "{{if not .Main}}{{.Path}}{{end}}", "all")), "library-requires.txt")
		compare(t, "what a program that imports the library links", s.linked(dir), "library-links.txt")
		s.run(dir, "go", "build", base+"/...") // all that was packed is complete
	})

	t.Run("metrics", func(t *testing.T) {
		s := &stranger{t, s.env, s.bin}
		dir := s.consumer(`package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/metrics"
)

func main() {
	var locker *qlock.Locker
	prometheus.MustRegister(metrics.NewLocker(locker))
}
`, base+"@"+version, base+"/metrics@"+version)
		s.run(dir, "go", "build", "-o", os.DevNull, ".")
		compare(t, "what a program that imports metrics links", s.linked(dir), "metrics-links.txt")
	})

	t.Run("gateway", func(t *testing.T) {
		s := &stranger{t, s.env, s.bin}
		dir := s.consumer(`package main

import "github.com/qlock/qlock/gateway"

func main() {
	var g *gateway.Gateway
	_ = gateway.NewServer(g)
}
`, base+"@"+version, base+"/gateway@"+version)
		s.run(dir, "go", "build", "-o", os.DevNull, ".")
		compare(t, "what a program that imports gateway links", s.linked(dir), "gateway-links.txt")
	})
}

// linked lists the modules whose packages are in the program.
func (s *stranger) linked(dir string) []string {
	s.t.Helper()
	linux := &stranger{s.t, append(slices.Clone(s.env), "GOOS=linux"), s.bin} // elsewhere, some are others
	modules := map[string]bool{}
	for m := range strings.FieldsSeq(linux.run(dir, "go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}", ".")) {
		modules[m] = true
	}
	return slices.Collect(maps.Keys(modules))
}

// compare holds modules against a file of testdata that has a reason for each.
func compare(t *testing.T, what string, got []string, file string) {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var want []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "#") || lines.Text() == "" {
			continue
		}
		m, reason, _ := strings.Cut(lines.Text(), " ")
		if strings.TrimSpace(reason) == "" {
			t.Errorf("testdata/%s gives no reason for %s", file, m)
		}
		want = append(want, m)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	for _, m := range got {
		if !slices.Contains(want, m) {
			t.Errorf("%s has %s, which testdata/%s does not list: can it be avoided? If not, add it with its reason", what, m, file)
		}
	}
	for _, m := range want {
		if !slices.Contains(got, m) {
			t.Errorf("%s no longer has %s: remove it from testdata/%s", what, m, file)
		}
	}
}
