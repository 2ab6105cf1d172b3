package statedir

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// files has the operations of a Dir on its directory. Tests replace it by a disk that
// fails, and that keeps after a crash only what was synced.
type files interface {
	open(name string) (handle, error)   // for reading
	create(name string) (handle, error) // for writing; fails if the name exists
	identify(handle) (identity, error)
	rename(from, to string) error
	remove(name string) error
	block(name string) error // makes the name that of a directory that remove cannot remove
	sync() error             // makes changes of names durable
	close() error
}

// handle is an *os.File, except in tests.
type handle interface {
	io.ReadWriteCloser
	Sync() error
}

// osFiles is a directory of the operating system and the lock on it.
type osFiles struct {
	root   *os.Root
	locked *os.File
}

func (o osFiles) open(name string) (handle, error) { return o.root.Open(name) }

func (o osFiles) create(name string) (handle, error) {
	return o.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

func (osFiles) identify(f handle) (identity, error) { return identify(f.(*os.File)) }

func (o osFiles) rename(from, to string) error { return o.root.Rename(from, to) }

func (o osFiles) remove(name string) error { return o.root.Remove(name) }

func (o osFiles) block(name string) error {
	err := o.root.Mkdir(name, 0o700)
	if errors.Is(err, fs.ErrExist) {
		var info fs.FileInfo
		if info, err = o.root.Lstat(name); err == nil && !info.IsDir() { // a leftover
			if err = o.root.Remove(name); err == nil {
				err = o.root.Mkdir(name, 0o700)
			}
		}
	}
	if err != nil {
		return err
	}
	f, err := o.root.OpenFile(filepath.Join(name, "written-by-a-newer-version"), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func (o osFiles) sync() error {
	switch runtime.GOOS {
	case "windows", "plan9", "js", "wasip1":
		return nil // this system cannot sync a directory
	}
	f, err := o.root.Open(".")
	if err != nil {
		return err
	}
	err = f.Sync()
	if errClose := f.Close(); err == nil {
		err = errClose
	}
	return err
}

func (o osFiles) close() error {
	// Closing the file also releases the lock, but not while a child process that is being
	// started has a copy of the file, between fork and exec.
	return errors.Join(unflock(o.locked), o.locked.Close(), o.root.Close())
}
