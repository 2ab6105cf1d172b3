package statedir

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// disk is a directory on a disk that keeps only what was synced. After a crash, a file may
// have any part of what was written since its last sync, and a name may refer to any file
// that it referred to since the last sync of the directory. An operation can be made to
// fail, before or after it had its effect. A sync that failed has lost what it should have
// saved, though the data can still be read, as on Linux.
type disk struct {
	names    map[string]*inode   // what is seen
	synced   map[string]*inode   // what is there after a crash
	since    map[string][]*inode // or any of these, nil for none: since the last sync
	numbers  uint64
	nameless bool  // inodes have no numbers
	born     int64 // of all of them

	ops  []string     // done so far, for messages
	fail map[int]bool // of the n-th operation: true after its effect, false before it
	each func()       // called after each operation, and in the midst of it
}

type inode struct {
	number uint64
	dir    bool   // a directory that has something in it
	data   []byte // what is seen
	synced []byte
	lost   bool // a sync failed: what is there after a crash is not known any more
}

var errDisk = errors.New("I/O error")

func newDisk() *disk {
	return &disk{names: map[string]*inode{}, synced: map[string]*inode{}, since: map[string][]*inode{}, fail: map[int]bool{}}
}

func (d *disk) dir() *Dir { return &Dir{name: "disk", path: "/disk", files: d} }

// step does one operation: effect, which is nil for none, unless it fails before
// that.
func (d *disk) step(what string, effect func() error) error {
	n := len(d.ops)
	d.ops = append(d.ops, what)
	after, fails := d.fail[n]
	if !fails || after {
		if err := effect(); err != nil {
			return err
		}
	}
	if d.each != nil {
		d.each()
	}
	if fails {
		return fmt.Errorf("%s: %w", what, errDisk)
	}
	return nil
}

// set is a change of a name that is not synced yet.
func (d *disk) set(name string, to *inode) {
	d.since[name] = append(d.since[name], to)
	if to == nil {
		delete(d.names, name)
	} else {
		d.names[name] = to
	}
}

func (d *disk) open(name string) (handle, error) {
	i := d.names[name]
	if i == nil {
		return nil, fs.ErrNotExist
	}
	return &diskFile{disk: d, inode: i, rest: bytes.NewReader(i.data)}, nil
}

func (d *disk) create(name string) (handle, error) {
	f := &diskFile{disk: d}
	err := d.step("create", func() error {
		if d.names[name] != nil {
			return fs.ErrExist
		}
		d.numbers++
		f.inode = &inode{number: d.numbers}
		d.set(name, f.inode)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (d *disk) identify(f handle) (identity, error) {
	if d.nameless {
		return identity{}, nil
	}
	return identity{device: 1, inode: f.(*diskFile).number, born: d.born, links: 1}, nil
}

func (d *disk) rename(from, to string) error {
	return d.step("rename", func() error {
		i := d.names[from]
		if i == nil {
			return fs.ErrNotExist
		}
		d.set(to, i)
		d.set(from, nil)
		return nil
	})
}

func (d *disk) remove(name string) error {
	return d.step("remove", func() error {
		switch i := d.names[name]; {
		case i == nil:
			return fs.ErrNotExist
		case i.dir:
			return errNotEmpty
		}
		d.set(name, nil)
		return nil
	})
}

var errNotEmpty = errors.New("directory not empty")

func (d *disk) block(name string) error {
	if i := d.names[name]; i != nil && i.dir {
		return nil
	}
	return d.step("block", func() error {
		d.numbers++
		d.set(name, &inode{number: d.numbers, dir: true})
		return nil
	})
}

func (d *disk) sync() error {
	return d.step("sync of the directory", func() error {
		d.synced = maps.Clone(d.names)
		clear(d.since)
		return nil
	})
}

func (d *disk) close() error { return nil }

type diskFile struct {
	*disk
	*inode
	rest *bytes.Reader
}

func (f *diskFile) Read(p []byte) (int, error) { return f.rest.Read(p) }

func (f *diskFile) Close() error {
	if f.rest != nil {
		return nil // it was read
	}
	return f.step("close", func() error { return nil })
}

func (f *diskFile) Write(p []byte) (n int, err error) {
	// The half of it first: what if the disk is full, or the crash comes now?
	err = f.step("first half of write", func() error {
		n = len(p) / 2
		f.data = append(f.data, p[:n]...)
		return nil
	})
	if err != nil {
		return n, err
	}
	err = f.step("write", func() error {
		f.data = append(f.data, p[n:]...)
		n = len(p)
		return nil
	})
	return n, err
}

func (f *diskFile) Sync() error {
	n := len(f.ops)
	err := f.step("sync", func() error {
		f.inode.synced = bytes.Clone(f.data)
		return nil
	})
	if _, failed := f.fail[n]; failed {
		f.lost = true
	}
	return err
}

// left is all that may be read of the file after a crash.
func (i *inode) left() [][]byte {
	if i.dir || bytes.Equal(i.data, i.synced) && !i.lost {
		return [][]byte{i.data}
	}
	n := len(i.data)
	zeros := make([]byte, n)
	return [][]byte{
		i.synced, i.data, nil, zeros, i.data[:n/2], i.data[:max(n-2, 0)],
		slices.Concat(i.data[:n/2], zeros[n/2:]), slices.Concat(zeros[:n/2], i.data[n/2:]),
	}
}

// crashed calls f for each disk that may be there after a crash now.
func (d *disk) crashed(f func(*disk)) {
	choices := map[string][]*inode{}
	for name, i := range d.synced {
		choices[name] = []*inode{i}
	}
	for name, list := range d.since {
		if len(choices[name]) == 0 {
			choices[name] = []*inode{nil}
		}
		choices[name] = append(choices[name], list...)
	}
	names := slices.Sorted(maps.Keys(choices))
	var pick func(at int, to *disk)
	pick = func(at int, to *disk) {
		if at == len(names) {
			f(to)
			return
		}
		for _, i := range choices[names[at]] {
			if i == nil {
				pick(at+1, to)
				continue
			}
			for _, data := range i.left() {
				next := newDisk()
				next.numbers = d.numbers
				next.names = maps.Clone(to.names)
				next.names[names[at]] = &inode{number: i.number, dir: i.dir, data: data, synced: data}
				next.synced = maps.Clone(next.names)
				pick(at+1, next)
			}
		}
	}
	empty := newDisk()
	empty.numbers = d.numbers
	pick(0, empty)
}

// life has the marks that a node writes that starts and stops, one after the other.
var life = []Mark{
	{Clean: true, Name: "n", MaxTTL: 1, Saved: []byte(`{"life":1}`)},
	{Name: "n", MaxTTL: 2},
	{Clean: true, Name: "n", MaxTTL: 3, Saved: []byte(`{"life":2}`)},
	{Name: "n", MaxTTL: 4},
}

// decides has those of a node that takes part in decisions about the configuration.
var decides = []Mark{
	{Clean: true, Name: "n", MaxTTL: 1, ID: "i", Saved: []byte(`{"life":1}`)},
	{Name: "n", MaxTTL: 2, ID: "i", Epoch: []byte(`{"promised":1}`)},
	{Clean: true, Name: "n", MaxTTL: 3, ID: "i", Epoch: []byte(`{"record":1}`), Saved: []byte(`{"life":2}`)},
}

// promises checks after each operation what a crash now would leave.
type promises struct {
	t       *testing.T
	disk    *disk
	may     []Mark          // that may be read now: the last that was written, and those tried since
	sure    bool            // one was written
	fine    map[string]bool // files that were read, and were one of these
	crashes int
}

func (p *promises) read(d *disk, when string) {
	key := "nothing"
	if i := d.names[markFile]; i != nil {
		key = fmt.Sprint(i.number, " ", string(i.data))
	}
	if p.fine[key] {
		return
	}
	m, found, here, err := d.dir().Read()
	m.Place = Place{}
	switch {
	case err != nil:
		// Never clean. A file that is not what was written must not be there at all,
		// since what was there before was whole.
		p.t.Fatalf("%s after %s: %v", when, strings.Join(p.disk.ops, ", "), err)
	case !found && p.sure:
		p.t.Fatalf("%s after %s: the mark is gone", when, strings.Join(p.disk.ops, ", "))
	case !found:
	case !here || m.Copied:
		p.t.Fatalf("%s after %s: %+v was not written here", when, strings.Join(p.disk.ops, ", "), m)
	case m.Epoch != nil && (d.names[blockFile] == nil || !d.names[blockFile].dir):
		p.t.Fatalf("%s after %s: %+v, and an older program may replace it", when, strings.Join(p.disk.ops, ", "), m)
	case !slices.ContainsFunc(p.may, func(want Mark) bool { return reflect.DeepEqual(m, want) }):
		p.t.Fatalf("%s after %s: %+v is back, only %+v may be there", when, strings.Join(p.disk.ops, ", "), m, p.may)
	}
	p.fine[key] = true
}

func (p *promises) check() {
	p.read(p.disk, "read on")
	p.disk.crashed(func(d *disk) {
		p.crashes++
		p.read(d, "crash")
	})
}

// write is Write, with the promises checked at each step.
func (p *promises) write(m Mark) error {
	p.expect(append(p.may, m)...)
	err := p.disk.dir().Write(m)
	if err == nil {
		p.sure = true
		p.expect(m)
	}
	p.check()
	return err
}

func (p *promises) expect(may ...Mark) { p.may, p.fine = may, map[string]bool{} }

func newPromises(t *testing.T, d *disk) *promises {
	p := &promises{t: t, disk: d, fine: map[string]bool{}}
	d.each = p.check
	return p
}

// TestCrashAtEveryStep checks that after a crash at any moment the directory has the
// previous mark or the new one, complete. It never again has a mark that was replaced by a
// Write that succeeded.
func TestCrashAtEveryStep(t *testing.T) {
	crashAtEveryStep(t, life)
	crashAtEveryStep(t, decides)
}

func crashAtEveryStep(t *testing.T, life []Mark) {
	d := newDisk()
	p := newPromises(t, d)
	for _, m := range life {
		if err := p.write(m); err != nil {
			t.Fatal(err)
		}
	}
	if p.crashes < 100 {
		t.Errorf("only %d crashes were tried", p.crashes)
	}
}

// TestDiskFails makes each operation and each pair of operations fail, before and after
// they had their effect. Write then returns an error, and the promises hold as if it was
// never called or had succeeded. The next Write determines which.
func TestDiskFails(t *testing.T) {
	diskFails(t, life)
	diskFails(t, decides)
}

func diskFails(t *testing.T, life []Mark) {
	d := newDisk()
	for _, m := range life {
		if err := d.dir().Write(m); err != nil {
			t.Fatal(err)
		}
	}
	steps := len(d.ops)
	var crashes int
	run := func(fail map[int]bool) {
		d := newDisk()
		d.fail = fail
		p := newPromises(t, d)
		for _, m := range life {
			// A node that cannot invalidate its mark does not start. A node that cannot write its
			// clean mark has stopped. Somebody tries again.
			for try := 0; p.write(m) != nil; try++ {
				if try > len(fail) {
					t.Fatalf("with failures %v, Write does not come to succeed: %v", fail, d.ops)
				}
			}
		}
		crashes += p.crashes
		if len(fail) > 0 && len(d.ops) <= steps {
			failed := slices.Sorted(maps.Keys(fail))
			if op := d.ops[failed[0]]; op != "remove" {
				t.Errorf("Write succeeded though %s failed", op)
			}
		}
	}
	for i := range steps {
		for _, after := range []bool{false, true} {
			run(map[int]bool{i: after})
			for j := i + 1; j < min(steps+8, i+9); j++ {
				run(map[int]bool{i: after, j: false})
				run(map[int]bool{i: after, j: true})
			}
		}
	}
	t.Logf("%d operations, %d crashes", steps, crashes)
}

// TestCrashAndGoOn starts again on each disk that a crash can leave, and goes on
// there, with another crash at every step.
func TestCrashAndGoOn(t *testing.T) {
	crashAndGoOn(t, life, Mark{Name: "n"})
	crashAndGoOn(t, decides, Mark{Name: "n", ID: "i", Epoch: []byte(`{"promised":2}`)})
}

func crashAndGoOn(t *testing.T, life []Mark, next Mark) {
	d := newDisk()
	var seen int
	for n, m := range life {
		d.each = func() {
			d.crashed(func(after *disk) {
				seen++
				p := newPromises(t, after)
				m, found, _, err := after.dir().Read()
				if err != nil {
					t.Fatal(err)
				}
				m.Place = Place{}
				if p.sure = found; found {
					p.expect(m)
				}
				next.MaxTTL = int64(10 + n)
				if err := p.write(next); err != nil {
					t.Fatal(err)
				}
			})
		}
		if err := d.dir().Write(m); err != nil {
			t.Fatal(err)
		}
	}
	if seen < 50 {
		t.Errorf("only %d crashes were tried", seen)
	}
}
