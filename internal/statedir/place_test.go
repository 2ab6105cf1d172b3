package statedir

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// onDisk is a clean mark in a directory of its own, and the directory closed.
func onDisk(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "state")
	d := open(t, dir)
	write(t, d, sample)
	closeDir(t, d)
	return dir
}

func closeDir(t *testing.T, d *Dir) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// used does what a node does with the directory at a start: the mark is not clean any more.
func used(t *testing.T, dir string) {
	t.Helper()
	d := open(t, dir)
	write(t, d, Mark{Name: sample.Name, MaxTTL: sample.MaxTTL})
	closeDir(t, d)
}

// TestCopyIsNotHere copies, moves and restores state directories as people and their tools
// do. A mark that may exist twice, or may have been used, does not belong to this place.
func TestCopyIsNotHere(t *testing.T) {
	if !locks {
		t.Skip("files are not told apart on this system")
	}
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, dir string) (now string)
		here bool
		copy bool // the file is another one
	}{
		{"nothing", func(_ *testing.T, dir string) string { return dir }, true, false},
		{"opened and closed", func(t *testing.T, dir string) string {
			closeDir(t, open(t, dir))
			return dir
		}, true, false},
		{"read by a backup, owner and mode set again", func(t *testing.T, dir string) string {
			file := filepath.Join(dir, markFile)
			_, err := os.ReadFile(file)
			must(t, err)
			must(t, os.Chmod(file, 0o600))
			must(t, os.Chown(file, os.Getuid(), os.Getgid()))
			must(t, os.Chtimes(file, time.Time{}, time.Unix(1, 0)))
			return dir
		}, true, false},
		{"by a symbolic link", func(t *testing.T, dir string) string {
			link := filepath.Join(t.TempDir(), "link")
			must(t, os.Symlink(dir, link))
			return link
		}, true, false},
		{"copied", func(t *testing.T, dir string) string {
			to := filepath.Join(t.TempDir(), "copy")
			must(t, os.CopyFS(to, os.DirFS(dir)))
			return to
		}, false, true},
		{"moved", func(t *testing.T, dir string) string {
			to := dir + "-moved"
			must(t, os.Rename(dir, to))
			return to
		}, false, false},
		{"moved, and a copy put in its place", func(t *testing.T, dir string) string {
			must(t, os.Rename(dir, dir+"-moved"))
			must(t, os.CopyFS(dir, os.DirFS(dir+"-moved")))
			return dir
		}, false, true},
		{"restored over what came after", func(t *testing.T, dir string) string {
			backup, err := os.ReadFile(filepath.Join(dir, markFile))
			must(t, err)
			used(t, dir)
			put(t, dir, backup)
			return dir
		}, false, true},
		// The file system gives the number of the removed file away again.
		{"restored over what came after two starts", func(t *testing.T, dir string) string {
			backup, err := os.ReadFile(filepath.Join(dir, markFile))
			must(t, err)
			used(t, dir)
			used(t, dir)
			put(t, dir, backup)
			return dir
		}, false, true},
		{"restored after the directory was removed", func(t *testing.T, dir string) string {
			backup := filepath.Join(t.TempDir(), "backup")
			must(t, os.CopyFS(backup, os.DirFS(dir)))
			used(t, dir)
			must(t, os.RemoveAll(dir))
			must(t, os.CopyFS(dir, os.DirFS(backup)))
			return dir
		}, false, true},
		{"restored with its times", func(t *testing.T, dir string) string {
			file := filepath.Join(dir, markFile)
			backup, err := os.ReadFile(file)
			must(t, err)
			info, err := os.Stat(file)
			must(t, err)
			must(t, os.Remove(file))
			put(t, dir, backup)
			must(t, os.Chtimes(file, info.ModTime(), info.ModTime()))
			return dir
		}, false, true},
		// It was used while the other name existed, and could not be trusted then.
		{"with another name aside", func(t *testing.T, dir string) string {
			must(t, os.Link(filepath.Join(dir, markFile), filepath.Join(dir, "aside")))
			return dir
		}, false, false},
		{"with another name elsewhere", func(t *testing.T, dir string) string {
			must(t, os.Link(filepath.Join(dir, markFile), filepath.Join(filepath.Dir(dir), "elsewhere")))
			return dir
		}, false, false},
		{"a link in its place", func(t *testing.T, dir string) string {
			must(t, os.Rename(filepath.Join(dir, markFile), filepath.Join(dir, "aside")))
			copied, err := os.ReadFile(filepath.Join(dir, "aside"))
			must(t, err)
			must(t, os.WriteFile(filepath.Join(dir, "other"), copied, 0o600))
			must(t, os.Symlink("other", filepath.Join(dir, markFile)))
			return dir
		}, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := tt.do(t, onDisk(t))
			d := open(t, dir)
			wantMarkAt(t, d, sample, tt.here)
			if m, _, _, _ := d.Read(); m.Copied != tt.copy {
				t.Errorf("copied: %v, want %v", m.Copied, tt.copy)
			}
		})
	}
}

// TestAnotherPlace changes each part of the place in a mark that lies where it was
// written, in the very file.
func TestAnotherPlace(t *testing.T) {
	dir := onDisk(t)
	d := open(t, dir)
	m, _, _, err := d.Read()
	must(t, err)
	for what, change := range map[string]func(*Place){
		"started again":                   func(p *Place) { p.Boot += "x" },
		"boot unknown":                    func(p *Place) { p.Boot = "" },
		"another file system":             func(p *Place) { p.Device++ },
		"another file":                    func(p *Place) { p.Inode++ },
		"a file made later of its number": func(p *Place) { p.Born-- },
		"another directory":               func(p *Place) { p.Path += "x" },
		"nowhere":                         func(p *Place) { *p = Place{} },
	} {
		m := m
		change(&m.Place)
		b, err := encode(m)
		must(t, err)
		put(t, dir, b)
		read, _, here, err := d.Read()
		if want := what == "another file" || what == "a file made later of its number" && m.Place.Born != -1; read.Copied != want {
			t.Errorf("%s: copied %v", what, read.Copied)
		}
		if known := m.Place == d.placeOf(identityOf(t, d)); err != nil || here != known || here && what != "boot unknown" {
			t.Errorf("%s: here %v, %v", what, here, err)
		}
	}
	b, err := encode(m)
	must(t, err)
	put(t, dir, b)
	wantMark(t, d, sample)
}

func identityOf(t *testing.T, d *Dir) identity {
	t.Helper()
	f, err := d.files.open(markFile)
	must(t, err)
	defer func() { must(t, f.Close()) }()
	id, err := d.files.identify(f)
	must(t, err)
	return id
}

// TestPlaceOfLinux checks that all parts of a place are known on Linux. Otherwise the tests
// above would show less than they say.
func TestPlaceOfLinux(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("not every system tells")
	}
	if first, then := bootID(), bootID(); first == "" || first != then {
		t.Errorf("boot id %q, and then %q", first, then)
	}
	if up := Uptime(); up <= 0 || Uptime() < up {
		t.Errorf("the machine is up for %v", up)
	}
	dir := onDisk(t)
	d := open(t, dir)
	id := identityOf(t, d)
	if id.inode == 0 || id.device == 0 || id.links != 1 {
		t.Errorf("the file is %+v", id)
	}
	if age := time.Since(time.Unix(0, id.born)); id.born != 0 && (age < -time.Minute || age > time.Hour) {
		t.Errorf("the file was made %v ago", age)
	}
}

// TestPlaceWithoutNumbers is for a system that provides nothing about a file. The path then
// distinguishes copies in other directories. Only the time shows that copies in the same
// directory cannot be trusted.
func TestPlaceWithoutNumbers(t *testing.T) {
	disk := newDisk()
	disk.nameless = true
	d := disk.dir()
	write(t, d, sample)
	wantMark(t, d, sample)
	if m, _, _, _ := d.Read(); m.Place.Inode != 0 || m.Place.Born != 0 || m.Place.Path == "" {
		t.Fatalf("the place is %+v", m.Place)
	}
	moved := disk.dir()
	moved.path += "-moved"
	wantMarkAt(t, moved, sample, false)
}

// TestNumberGivenAway checks that a copy with the inode number of the removed file is
// recognized, because it was created later. Whether that happens on a real disk depends on
// the file system.
func TestNumberGivenAway(t *testing.T) {
	disk := newDisk()
	disk.born = 1
	d := disk.dir()
	write(t, d, sample)
	wantMark(t, d, sample)
	disk.born = 2
	wantMarkAt(t, d, sample, false)
}
