// Package statedir keeps what a node remembers between two runs: one file, in a
// directory that one node at a time may use.
//
// The file decides whether a node may vote at once after a start (rule N8), so
// the package errs to one side. A mark that was written completely and changed
// by nobody is read back; for everything else Read gives an error, and the node
// waits as one that forgot. A waiting node costs time, a node that believes a
// wrong mark costs exclusion.
package statedir

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

const (
	markFile = "node.json"
	tempFile = "node.json.tmp"
	lockFile = "lock"

	// version is that of the file's form, Mark included: one that has a field
	// more is another version, since an older node would drop that field. Version 1
	// had no cluster, place, time and runs: its marks are read, but are not clean.
	version = 2
)

// errInUse is what flock returns when another holds the lock.
var errInUse = errors.New("in use by another node")

// Mark is what a node leaves in its state directory.
type Mark struct {
	Clean   bool            `json:"clean"` // true only after a clean stop or a bootstrap; false while the node runs
	Cluster string          `json:"cluster"`
	Name    string          `json:"name"`
	Digest  string          `json:"digest"` // of the configuration
	MaxTTL  int64           `json:"max_ttl_ms"`
	Written int64           `json:"written_us"`      // wall clock
	Runs    []string        `json:"runs,omitempty"`  // incarnations of the node that used the directory, the latest last
	Place   Place           `json:"place"`           // set by Write
	Saved   json.RawMessage `json:"saved,omitempty"` // the node's tables at its clean stop; opaque here
}

// file is the form of the mark on disk.
type file struct {
	Version int             `json:"version"`
	SHA256  string          `json:"sha256"` // of Version and Mark without white space, in lower-case hex
	Mark    json.RawMessage `json:"mark"`
}

// Dir is a state directory in use. Its methods may be called concurrently.
type Dir struct {
	name string // as given to Open, for errors
	path string // absolute, of what was opened

	mu    sync.Mutex // guards what follows, and the files
	files files      // nil once closed
}

// Open takes the directory for this node alone, and makes it if it is missing.
func Open(dir string) (*Dir, error) {
	if dir == "" {
		return nil, errors.New("state directory: no name given")
	}
	// Nothing makes a new directory's entry in its parent durable. It need not
	// be: a node whose directory is gone waits, as it does with an empty one.
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory %q: cannot be made: %w", dir, err)
	}
	path, err := filepath.Abs(dir)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return nil, fmt.Errorf("state directory %q: its path cannot be found: %w", dir, err)
	}
	// All further access goes through the open directory: the files stay with
	// the lock, whatever becomes of the path or of the working directory.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("state directory %q: cannot be opened: %w", dir, err)
	}
	// The lock file is never removed. A node that had opened it just before
	// would lock a file without a name, beside the next one's new file.
	locked, err := root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		_ = root.Close()
		return nil, fmt.Errorf("state directory %q: its lock file cannot be opened: %w", dir, err)
	}
	if err := flock(locked); err != nil {
		_ = locked.Close()
		_ = root.Close()
		if errors.Is(err, errInUse) {
			return nil, fmt.Errorf("state directory %q is %w: stop that node, or give this one a directory of its own", dir, err)
		}
		return nil, fmt.Errorf("state directory %q: cannot be locked: %w", dir, err)
	}
	return &Dir{name: dir, path: path, files: osFiles{root, locked}}, nil
}

// Read gives the mark that was written last. Found is false only if there is no
// file. With an error there is something, which is not to be relied on: the
// mark is then empty and the caller is a node that may have forgotten.
//
// Here reports whether the mark was written at this place, and is not a copy: only
// then can it be relied on that nobody used it before.
func (d *Dir) Read() (m Mark, found, here bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.files == nil {
		return Mark{}, true, false, d.errClosed()
	}
	f, err := d.files.open(markFile)
	if errors.Is(err, fs.ErrNotExist) {
		return Mark{}, false, false, nil
	}
	var b []byte
	var id identity
	if err == nil {
		b, err = io.ReadAll(f)
		if err == nil {
			id, err = d.files.identify(f)
		}
		if errClose := f.Close(); err == nil {
			err = errClose
		}
	}
	if err != nil {
		return Mark{}, true, false, fmt.Errorf("state directory %q: its mark cannot be read: %w", d.name, err)
	}
	m, err = decode(b)
	if err != nil {
		return Mark{}, true, false, fmt.Errorf("state directory %q: %s is damaged, or not of this version, and counts as forgotten: %w",
			d.name, markFile, err)
	}
	// A second link to the file is a copy that would come back with the same inode.
	return m, true, m.Place == d.placeOf(id) /*plant:mark-place*/ && id.links <= 1 /*plant:mark-links*/, nil
}

// Write replaces the mark, and returns without error only when the new one is
// on disk for good. After an error the directory has the old mark or the new
// one, and only another Write tells which will stay.
func (d *Dir) Write(m Mark) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.files == nil {
		return d.errClosed()
	}
	if err := d.replace(m); err != nil {
		return fmt.Errorf("state directory %q: the mark cannot be written: %w", d.name, err)
	}
	return nil
}

// replace is called with d.mu held.
func (d *Dir) replace(m Mark) (err error) {
	// One name for all temporary files, so that crashes cannot fill the
	// directory: the lock keeps others away, d.mu this node. What a crash left
	// is removed instead of overwritten, since it may be of any kind.
	if err := d.files.remove(tempFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	defer func() {
		if err != nil {
			_ = d.files.remove(tempFile) // after the rename there is none, which is as well
		}
	}()
	f, err := d.files.create(tempFile)
	if err != nil {
		return err
	}
	id, err := d.files.identify(f)
	if err == nil {
		var b []byte
		m.Place = d.placeOf(id)
		if b, err = encode(m); err == nil {
			_, err = f.Write(b)
		}
	}
	if err == nil { //plant:file-sync
		// Before the rename: a name may reach the disk before the bytes do.
		err = f.Sync()
	}
	if errClose := f.Close(); err == nil {
		err = errClose
	}
	if err != nil {
		return err
	}
	if err := d.files.rename(tempFile, markFile); err != nil {
		return err
	}
	// The rename itself is durable only now. Without this a clean mark that was
	// replaced before the first vote could be back after a power cut.
	return d.files.sync() //plant:dir-sync
}

// Close lets others have the directory. Further calls do nothing.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.files == nil {
		return nil
	}
	err := d.files.close()
	d.files = nil
	if err != nil {
		return fmt.Errorf("state directory %q: cannot be closed: %w", d.name, err)
	}
	return nil
}

func (d *Dir) errClosed() error {
	return fmt.Errorf("state directory %q: %w", d.name, fs.ErrClosed)
}

func encode(m Mark) ([]byte, error) {
	mark, err := marshal(m, "")
	if err != nil {
		return nil, err
	}
	mark = bytes.TrimSuffix(mark, []byte("\n"))
	return marshal(file{Version: version, SHA256: checksum(version, mark), Mark: mark}, "  ")
}

// marshal is json.Marshal that leaves <, > and & as they are: Saved comes back
// byte for byte, but for white space.
func marshal(v any, indent string) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	err := enc.Encode(v)
	return b.Bytes(), err
}

func decode(b []byte) (Mark, error) {
	var f file
	if err := unmarshal(b, &f); err != nil {
		return Mark{}, err
	}
	if f.Version < 1 || f.Version > version {
		return Mark{}, fmt.Errorf("version %d; this node reads versions 1 to %d", f.Version, version)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, f.Mark); err != nil {
		return Mark{}, err
	}
	if f.SHA256 != checksum(f.Version, compact.Bytes()) {
		return Mark{}, errors.New("the checksum does not match the mark")
	}
	var m Mark
	if err := unmarshal(compact.Bytes(), &m); err != nil {
		return Mark{}, err
	}
	m.Clean = m.Clean && f.Version == version
	return m, nil
}

// unmarshal is json.Unmarshal that refuses fields it does not know.
func unmarshal(b []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("something follows the end")
	}
	return nil
}

// checksum is that of a mark of a version. Version 1 had the mark alone in it.
func checksum(version int, mark []byte) string {
	h := sha256.New()
	if version > 1 {
		fmt.Fprintf(h, "%d\n", version)
	}
	h.Write(mark)
	return hex.EncodeToString(h.Sum(nil))
}
