package statedir

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
)

var sample = Mark{
	Clean:   true,
	Cluster: "prod",
	Name:    "node-1",
	Digest:  "d41d8cd9",
	MaxTTL:  30000,
	Written: 1700000000000000,
	Runs:    []string{"a", "b"},
	ID:      "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
	Epoch:   json.RawMessage(`{"promised":{"n":1}}`),
	Saved:   json.RawMessage(`{"floor":17,"votes":[{"resource":"<a> & b","fence":17}]}`),
}

func open(t testing.TB, dir string) *Dir {
	t.Helper()
	d, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func write(t testing.TB, d *Dir, m Mark) {
	t.Helper()
	if err := d.Write(m); err != nil {
		t.Fatal(err)
	}
}

// wantMark checks that Read gives what was written here.
func wantMark(t testing.TB, d *Dir, want Mark) { t.Helper(); wantMarkAt(t, d, want, true) }

// wantMarkAt does what wantMark does, but the mark may have been written elsewhere.
func wantMarkAt(t testing.TB, d *Dir, want Mark, wantHere bool) {
	t.Helper()
	got, found, here, err := d.Read()
	got.Place, got.Copied = Place{}, false // Write and Read set them
	if err != nil || !found || here != wantHere || !reflect.DeepEqual(got, want) {
		t.Fatalf("Read() = %+v, %v, here %v, %v, want %+v, here %v", got, found, here, err, want, wantHere)
	}
}

// put writes the mark's file behind the back of the Dir.
func put(t testing.TB, dir string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, markFile), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	for _, m := range []Mark{
		sample,
		{},
		{Name: "node-1", MaxTTL: -1},
		{Saved: json.RawMessage(`null`)},
		{Saved: json.RawMessage(`"\u2028 \u003c < \ud800"`)},
		{Clean: true, Saved: json.RawMessage(`[1e400,9007199254740993]`)},
	} {
		write(t, d, m)
		wantMark(t, d, m)
	}
	write(t, d, sample)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	wantMark(t, open(t, dir), sample)
}

func TestSavedComesBackWithoutWhiteSpace(t *testing.T) {
	d := open(t, t.TempDir())
	m := sample
	m.Saved = json.RawMessage(" {\n\t\"floor\": [1, 2] }\n")
	write(t, d, m)
	m.Saved = json.RawMessage(`{"floor":[1,2]}`)
	wantMark(t, d, m)
}

// TestForm fixes the format of the file: a node must be able to read what the previous
// release wrote.
func TestForm(t *testing.T) {
	const form = `{
  "version": 3,
  "sha256": "a4156aefe9ee2172674419958a9cf7e7d99c849d05ff5944fde21b612832c34d",
  "mark": {
    "clean": true,
    "cluster": "prod",
    "name": "node-1",
    "digest": "d41d8cd9",
    "max_ttl_ms": 30000,
    "written_us": 1700000000000000,
    "runs": [
      "a",
      "b"
    ],
    "id": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
    "place": {
      "boot": "c0ffee",
      "device": 65024,
      "inode": 10005633,
      "born_ns": 1699999999123456789,
      "path": "/var/lib/qlock"
    },
    "epoch": {
      "promised": {
        "n": 1
      }
    },
    "saved": {
      "floor": 17,
      "votes": [
        {
          "resource": "<a> & b",
          "fence": 17
        }
      ]
    }
  }
}
`
	want := sample
	want.Place = Place{Boot: "c0ffee", Device: 65024, Inode: 10005633, Born: 1699999999123456789, Path: "/var/lib/qlock"}
	b, err := encode(want)
	if err != nil {
		t.Fatal(err)
	}
	if string(b) != form {
		t.Errorf("got\n%swant\n%s", b, form)
	}
	got, err := decode([]byte(form))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("decode = %+v, %v", got, err)
	}
}

// TestFormOfVersion2: such a mark has no id and knows of no epoch. All else counts.
func TestFormOfVersion2(t *testing.T) {
	const form = `{
  "version": 2,
  "sha256": "5f179118d3f32d1c2ee14223ff29abf450d83715e6ebe653aa62650060d2593a",
  "mark": {
    "clean": true,
    "cluster": "prod",
    "name": "node-1",
    "digest": "d41d8cd9",
    "max_ttl_ms": 30000,
    "written_us": 1700000000000000,
    "runs": [
      "a",
      "b"
    ],
    "place": {
      "boot": "c0ffee",
      "device": 65024,
      "inode": 10005633,
      "born_ns": 1699999999123456789,
      "path": "/var/lib/qlock"
    },
    "saved": {
      "floor": 17,
      "votes": [
        {
          "resource": "<a> & b",
          "fence": 17
        }
      ]
    }
  }
}
`
	want := sample
	want.ID, want.Epoch = "", nil
	want.Place = Place{Boot: "c0ffee", Device: 65024, Inode: 10005633, Born: 1699999999123456789, Path: "/var/lib/qlock"}
	if got, err := decode([]byte(form)); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("decode = %+v, %v", got, err)
	}
	mark := []byte(`{"clean":true,"id":"6ba7b810-9dad-11d1-80b4-00c04fd430c8"}`)
	if m, err := decode(fmt.Appendf(nil, `{"version":2,"sha256":%q,"mark":%s}`, checksum(2, mark), mark)); err == nil {
		t.Errorf("a field that version 2 does not have is taken: %+v", m)
	}
}

// TestNewer: what a later version wrote is neither read nor taken for damage, whatever its
// fields are. A node that took it for damage would forget its promises.
func TestNewer(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	for _, file := range []string{
		`{"version":4,"sha256":"","mark":{}}`,
		`{"version":4,"state":[]}`,
		`{"version":1000000}`,
	} {
		put(t, dir, []byte(file))
		wantDamaged(t, d, file)
		if _, _, _, err := d.Read(); !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), "reads 1 to 3") {
			t.Errorf("%s: %v", file, err)
		}
	}
	for _, file := range []string{`{"version":4`, `{"version":"4"}`, `{"version":0}`, `[4]`, `{}`} {
		put(t, dir, []byte(file))
		if _, _, _, err := d.Read(); err == nil || errors.Is(err, ErrNewer) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// TestOlderProgramsAreBlocked: programs of versions 1 and 2 replace what they cannot read,
// beginning with the removal of their temporary file. They must not come so far once the
// node has a part in decisions.
func TestOlderProgramsAreBlocked(t *testing.T) {
	for what, leave := range map[string]func(path string) error{
		"nothing":        func(string) error { return nil },
		"part of a file": func(path string) error { return os.WriteFile(path, []byte(`{"vers`), 0o600) },
		"an empty directory": func(path string) error {
			return os.Mkdir(path, 0o700)
		},
		"itself": func(path string) error {
			return errors.Join(os.Mkdir(path, 0o700), os.WriteFile(filepath.Join(path, "written-by-a-newer-version"), nil, 0o600))
		},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			d := open(t, dir)
			m := sample
			m.Epoch = nil
			write(t, d, m)
			if got := names(t, dir); !reflect.DeepEqual(got, []string{lockFile, markFile}) {
				t.Errorf("before the first promise, the directory has %q", got)
			}
			block := filepath.Join(dir, blockFile)
			must(t, leave(block))
			for range 2 {
				write(t, d, sample)
				wantMark(t, d, sample)
			}
			if err := os.Remove(block); err == nil {
				t.Error("an older program can go on")
			}
		})
	}
}

// TestFormOfVersion1: such a mark says neither where nor when it was written, nor
// for which cluster. What it says about leases counts; that it is clean does not.
func TestFormOfVersion1(t *testing.T) {
	const form = `{
  "version": 1,
  "sha256": "26dd238c4ca7d8297f5902f8c19568f59bc7a5df031142cf28197784770265f7",
  "mark": {
    "clean": true,
    "name": "node-1",
    "digest": "d41d8cd9",
    "max_ttl_ms": 30000,
    "saved": {
      "floor": 17,
      "votes": [
        {
          "resource": "<a> & b",
          "fence": 17
        }
      ]
    }
  }
}
`
	dir := t.TempDir()
	d := open(t, dir)
	put(t, dir, []byte(form))
	wantMarkAt(t, d, Mark{Name: "node-1", Digest: "d41d8cd9", MaxTTL: 30000, Saved: sample.Saved}, false)
	put(t, dir, []byte(strings.Replace(form, "30000", "30001", 1)))
	wantDamaged(t, d, "changed")
	put(t, dir, []byte(strings.Replace(form, `"version": 1`, `"version": 2`, 1)))
	wantDamaged(t, d, "of another version")
}

func TestMissing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "here")
	d := open(t, dir)
	m, found, here, err := d.Read()
	if err != nil || found || here || !reflect.DeepEqual(m, Mark{}) {
		t.Fatalf("Read() = %+v, %v, %v, %v, want nothing", m, found, here, err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if locks && info.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %v, want 0700", info.Mode().Perm())
	}
}

func TestOpenRefuses(t *testing.T) {
	notDir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(notDir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"", notDir} {
		d, err := Open(dir)
		if err == nil {
			_ = d.Close()
			t.Errorf("Open(%q) did not fail", dir)
		} else if !strings.Contains(err.Error(), dir) {
			t.Errorf("error does not name the directory: %v", err)
		}
	}
}

// wantDamaged checks that Read gives an error, and nothing that could be taken
// for a mark.
func wantDamaged(t testing.TB, d *Dir, what string) {
	t.Helper()
	m, found, here, err := d.Read()
	if err == nil || !found || here || !reflect.DeepEqual(m, Mark{}) {
		t.Fatalf("%s: Read() = %+v, %v, %v, %v, want an error", what, m, found, here, err)
	}
	if !strings.Contains(err.Error(), d.name) {
		t.Fatalf("%s: error does not name the directory: %v", what, err)
	}
}

func TestTruncated(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	whole, err := encode(sample)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) {
		put(t, dir, whole[:n])
		if n == len(whole)-1 {
			wantMarkAt(t, d, sample, false) // only the last line's end is missing
			continue
		}
		wantDamaged(t, d, fmt.Sprintf("the first %d bytes", n))
	}
	for n := range len(whole) {
		torn := append(bytes.Clone(whole[:n]), make([]byte, len(whole)-n)...)
		put(t, dir, torn)
		wantDamaged(t, d, fmt.Sprintf("zeros after %d bytes", n))
	}
}

// TestFlipped changes every byte to every other. Most changes must be detected. The few
// that need not be, in white space and in the case of the outer keys, must leave the mark
// unchanged.
func TestFlipped(t *testing.T) {
	whole, err := encode(sample)
	if err != nil {
		t.Fatal(err)
	}
	unnoticed := 0
	for i := range whole {
		for x := 1; x < 256; x++ {
			b := bytes.Clone(whole)
			b[i] ^= byte(x)
			m, err := decode(b)
			if err != nil {
				continue
			}
			unnoticed++
			if !reflect.DeepEqual(m, sample) {
				t.Fatalf("byte %d changed from %q to %q: %+v", i, whole[i], b[i], m)
			}
			if !strings.ContainsRune(" \n", rune(whole[i])) && x != 'a'^'A' {
				t.Errorf("byte %d changed from %q to %q unnoticed", i, whole[i], b[i])
			}
		}
	}
	if all := 255 * len(whole); unnoticed > all/100 {
		t.Errorf("%d of %d changes went unnoticed", unnoticed, all)
	}
}

func TestEdited(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	m := sample
	m.Clean, m.Place = false, Place{Inode: 17}
	whole, err := encode(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, edit := range []struct{ old, new string }{
		{`"clean": false`, `"clean": true`},
		{`"node-1"`, `"node-2"`},
		{`30000`, `1000`},
		{`"fence": 17`, `"fence": 1`},
		{`"version": 3`, `"version": 4`},
		{`"version": 3`, `"version": 2`},
		{`"version": 3`, `"version": 1`},
		{`"version": 3`, `"version": 0`},
		{`"version": 3`, `"version": -1`},
		{`"version": 3`, `"version": 3, "extra": 1`},
		{`"n": 1`, `"n": 2`},
		{`"6ba7b810`, `"6ba7b811`},
		{`"prod"`, `"test"`},
		{`"inode": 17`, `"inode": 18`},
		{`1700000000000000`, `1700000000000001`},
		{`"clean": false`, `"clean": false, "extra": 1`},
		{"}\n}\n", "}\n}\n{}"},
	} {
		b := strings.Replace(string(whole), edit.old, edit.new, 1)
		if b == string(whole) {
			t.Fatalf("%q is not in the file", edit.old)
		}
		put(t, dir, []byte(b))
		wantDamaged(t, d, edit.new)
	}
	// A field of the mark that only a later version knows, checksum and all.
	put(t, dir, sealed([]byte(`{"clean":true,"later":1}`)))
	wantDamaged(t, d, "unknown field")

	write(t, d, sample)
	wantMark(t, d, sample)
}

func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	if err := os.Mkdir(filepath.Join(dir, markFile), 0o700); err != nil {
		t.Fatal(err)
	}
	wantDamaged(t, d, "a directory in the file's place")
	if err := d.Write(sample); err == nil {
		t.Fatal("Write did not fail")
	}
	if got := names(t, dir); !reflect.DeepEqual(got, []string{lockFile, markFile, blockFile}) {
		t.Errorf("the directory has %q", got)
	}
}

func TestFailedWriteKeepsTheMark(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	write(t, d, sample)
	m := sample
	m.Saved = json.RawMessage(`{"torn":`)
	if err := d.Write(m); err == nil {
		t.Fatal("Write took what is not JSON")
	}
	wantMark(t, d, sample)
	if got := names(t, dir); !reflect.DeepEqual(got, []string{lockFile, markFile, blockFile}) {
		t.Errorf("the directory has %q", got)
	}
}

func TestLeftovers(t *testing.T) {
	for what, leave := range map[string]func(path string) error{
		"part of a file":   func(path string) error { return os.WriteFile(path, []byte(`{"vers`), 0o600) },
		"a read-only file": func(path string) error { return os.WriteFile(path, nil, 0o400) },
		"an empty directory": func(path string) error {
			return os.Mkdir(path, 0o700)
		},
		"a link to nowhere": func(path string) error { return os.Symlink("nowhere", path) },
		"a link to the mark": func(path string) error {
			return os.Symlink(markFile, path)
		},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			d := open(t, dir)
			write(t, d, sample)
			if err := leave(filepath.Join(dir, tempFile)); err != nil {
				t.Skipf("cannot be made here: %v", err)
			}
			wantMark(t, d, sample)
			running := Mark{Name: "node-1", MaxTTL: 30000}
			write(t, d, running)
			wantMark(t, d, running)
			if got := names(t, dir); !reflect.DeepEqual(got, []string{lockFile, markFile, blockFile}) {
				t.Errorf("the directory has %q", got)
			}
		})
	}
}

func TestOpenIsExclusive(t *testing.T) {
	if !locks {
		t.Skip("there is no flock on this system")
	}
	dir := t.TempDir()
	d := open(t, dir)
	second, err := Open(dir)
	if !errors.Is(err, errInUse) {
		_ = second.Close()
		t.Fatalf("second Open: %v, want %v", err, errInUse)
	}
	if !strings.Contains(err.Error(), dir) {
		t.Errorf("error does not name the directory: %v", err)
	}
	write(t, d, sample)

	for range 2 {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	wantMark(t, open(t, dir), sample)

	// A repeated Close must not release the lock of the next node.
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errors.Is(err, errInUse) {
		t.Fatalf("third Open: %v, want %v", err, errInUse)
	}
}

// TestLockDiesWithProcess runs itself as another process, which keeps the
// directory until it is killed.
func TestLockDiesWithProcess(t *testing.T) {
	if !locks {
		t.Skip("there is no flock on this system")
	}
	const variable = "STATEDIR_TEST_KEEP"
	if dir := os.Getenv(variable); dir != "" {
		open(t, dir)
		fmt.Println("locked")
		_, _ = os.Stdin.Read(make([]byte, 1)) // until the parent is gone, at the latest
		return
	}

	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestLockDiesWithProcess$")
	cmd.Env = append(os.Environ(), variable+"="+dir)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdin.Close() }()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, len("locked\n"))
	_, errRead := stdout.Read(line)
	_, errOpen := Open(dir)
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // says that it was killed
	if errRead != nil || string(line) != "locked\n" {
		t.Fatalf("the other process said %q, %v", line, errRead)
	}
	if !errors.Is(errOpen, errInUse) {
		t.Errorf("Open beside another process: %v, want %v", errOpen, errInUse)
	}
	open(t, dir)
}

func TestClosed(t *testing.T) {
	d := open(t, t.TempDir())
	write(t, d, sample)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	wantDamaged(t, d, "closed")
	if err := d.Write(sample); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Write after Close: %v", err)
	}
}

// TestMovedDirectory checks that the path is looked up only once.
func TestMovedDirectory(t *testing.T) {
	if !locks {
		t.Skip("an open directory cannot be moved on every system")
	}
	parent := t.TempDir()
	was, is := filepath.Join(parent, "was"), filepath.Join(parent, "is")
	d := open(t, was)
	if err := os.Rename(was, is); err != nil {
		t.Fatal(err)
	}
	write(t, d, sample)
	wantMark(t, d, sample)
	if got := names(t, parent); !reflect.DeepEqual(got, []string{"is"}) {
		t.Errorf("the parent has %q", got)
	}
	if _, err := Open(is); !errors.Is(err, errInUse) {
		t.Errorf("Open by the new name: %v, want %v", err, errInUse)
	}
}

func TestConcurrentUse(t *testing.T) {
	d := open(t, t.TempDir())
	write(t, d, sample)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for range 5 {
				if err := d.Write(Mark{MaxTTL: int64(i)}); err != nil {
					t.Error(err)
				}
				if _, found, _, err := d.Read(); err != nil || !found {
					t.Errorf("Read: %v, %v", found, err)
				}
			}
		})
	}
	wg.Wait()
}

// sealed puts any mark into a file whose checksum is right.
func sealed(mark []byte) []byte {
	var compact bytes.Buffer
	if json.Compact(&compact, mark) != nil {
		return mark
	}
	return fmt.Appendf(nil, `{"version":3,"sha256":%q,"mark":%s}`, checksum(version, compact.Bytes()), mark)
}

// FuzzRead gives Read any file, and any mark with a right checksum, which
// chance would not find.
func FuzzRead(f *testing.F) {
	whole, err := encode(sample)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole, false)
	f.Add([]byte(`{"version":1,"sha256":"","mark":{}}`), false)
	f.Add([]byte(`{"version":1}`), false)
	f.Add([]byte(`null`), true)
	f.Add([]byte(`{"clean":true,"name":"n","digest":"d","max_ttl_ms":1,"saved":{"a":[1, 2]}}`), true)
	f.Add([]byte(`{"cluster":"c","written_us":1,"runs":["a"],"place":{"boot":"b","device":1,"inode":2,"born_ns":3,"path":"/"}}`), true)
	f.Add([]byte(`{"clean":1}`), true)
	f.Add([]byte(`{"id":"i","epoch":{"had_ms":1}}`), true)
	f.Add([]byte(`{"version":4,"mark":{}}`), false)
	dir := f.TempDir()
	d := open(f, dir)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal {
			b = sealed(b)
		}
		put(t, dir, b)
		m, found, _, err := d.Read()
		if !found {
			t.Fatal("the file was not found")
		}
		if err != nil {
			if !reflect.DeepEqual(m, Mark{}) {
				t.Fatalf("%+v beside the error %v", m, err)
			}
			return
		}
		// What was read is a mark like any other.
		m.Copied = false // that is not in the file
		again, err := encode(m)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decode(again); err != nil || !reflect.DeepEqual(got, m) {
			t.Fatalf("%+v comes back as %+v, %v", m, got, err)
		}
	})
}
