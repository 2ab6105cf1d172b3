// Package statedir stores what a node remembers between two runs. That is one file, in a
// directory that one node at a time may use.
//
// The file decides whether a node may vote at once after a start (rule N8), so the package
// always errs on the safe side. Read returns a mark that was written completely and not
// changed since. For everything else Read returns an error, and the node waits like one
// that forgot its votes. A node that waits costs time; a node that trusts a wrong mark
// costs exclusion.
//
// It also has what the node must not forget about the cluster's configuration (rule E10):
// Mark.ID and Mark.Epoch. These count wherever and whenever they were written. A node whose
// file is lost or damaged is another node, with another id.
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
	tempFile = "node.json.new"
	lockFile = "lock"

	// blockFile is the name of the temporary file of programs that know versions 1 and 2 only.
	// They take a file of a version that they do not know for one that is damaged, and replace
	// it. So once the file has a configuration, there is a directory of this name that they
	// cannot remove: they fail before they write, and do not start.
	blockFile = "node.json.tmp"

	// version is the version of the file's format, including Mark. A new field needs a new
	// version, since an older node would drop that field. Version 1 had no cluster, place, time
	// and runs: its marks are read, but do not count as clean. Version 2 had no id and epoch.
	version = 3
)

// ErrNewer is what Read returns for a file of a version that this program does not know. The
// node must not start, and must not write: it would forget what a newer program has promised.
var ErrNewer = errors.New("written by a newer version of qlock")

// errInUse is what flock returns when another node holds the lock.
var errInUse = errors.New("in use by another node")

// Mark is what a node leaves in its state directory.
type Mark struct {
	// Clean is true only after a clean stop or a bootstrap. It is false while the node runs.
	Clean   bool   `json:"clean"`
	Cluster string `json:"cluster"`
	Name    string `json:"name"`
	Digest  string `json:"digest"` // of the configuration
	MaxTTL  int64  `json:"max_ttl_ms"`
	Written int64  `json:"written_us"` // wall clock, µs since 1970
	// Runs has the incarnations of the node that used the directory, the latest last.
	Runs []string `json:"runs,omitempty"`
	// ID is that of the node: a node is its directory (E1). Empty: written before version 3.
	ID string `json:"id,omitempty"`
	// Copied is set by Read: the mark was written into another file than this one. So somebody
	// copied or restored it, and what it says of promises may be old, or used twice. Where files
	// cannot be told apart, it is false.
	Copied bool            `json:"-"`
	Place  Place           `json:"place"`           // set by Write
	Epoch  json.RawMessage `json:"epoch,omitempty"` // what the node promised and learned about the configuration, opaque here
	Saved  json.RawMessage `json:"saved,omitempty"` // the node's tables, opaque here
}

// file is the format of the mark on disk.
type file struct {
	Version int             `json:"version"`
	SHA256  string          `json:"sha256"` // of Version and compact Mark, in lower-case hex
	Mark    json.RawMessage `json:"mark"`
}

// Dir is a state directory in use. Its methods are safe for concurrent use.
type Dir struct {
	name string // as given to Open, for errors
	path string // absolute path of the opened directory

	mu      sync.Mutex // guards what follows, and the files
	files   files      // nil once closed
	blocked bool       // blockFile is there for good
}

// Open opens the directory for this node exclusively, and creates it if it is missing. It
// returns an error if another node uses the directory, as far as the system can tell.
func Open(dir string) (*Dir, error) {
	if dir == "" {
		return nil, errors.New("state directory: no name given")
	}
	// Nothing makes a new directory's entry in its parent durable. That is not needed: a node
	// whose directory is gone waits, as it does with an empty one.
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
	// All further access goes through the open directory: the files stay with the lock,
	// whatever happens to the path or the working directory.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("state directory %q: cannot be opened: %w", dir, err)
	}
	// The lock file is never removed. A node that had opened it just before would lock a file
	// without a name, while the next node locks a new file.
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

// Read returns the mark that was written last. found is false only if there is no file.
// With an error there is something that cannot be trusted: the mark is then empty, and the
// caller must act as a node that may have forgotten its votes.
//
// here reports whether the mark was written at this place, and is not a copy. Only then is
// it certain that no other node has used the mark before.
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
	if errors.Is(err, ErrNewer) {
		return Mark{}, true, false, fmt.Errorf("state directory %q: %s was %w; start that version with it, or give this node an empty directory, which makes it a new node",
			d.name, markFile, err)
	}
	if err != nil {
		return Mark{}, true, false, fmt.Errorf("state directory %q: %s is damaged, or not of this version, and counts as forgotten: %w",
			d.name, markFile, err)
	}
	m.Copied = m.Place.copied(id) //plant:epoch-copy
	// A second link to the file could be used as a copy with the same inode.
	return m, true, m.Place == d.placeOf(id) /*plant:mark-place*/ && id.links <= 1 /*plant:mark-links*/, nil
}

// Write replaces the mark. It returns nil only when the new mark is durable. After an error
// the directory has the old mark or the new one, and only another Write determines which.
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

// replace must be called with d.mu held.
func (d *Dir) replace(m Mark) (err error) {
	// All temporary files have the same name, so that crashes cannot fill the directory: the
	// lock excludes other nodes, and d.mu excludes other goroutines of this node. A leftover of
	// a crash is removed and not overwritten, since it may be of any kind.
	if err := d.files.remove(tempFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	defer func() {
		if err != nil {
			_ = d.files.remove(tempFile) // after the rename there is none, which is as intended
		}
	}()
	if len(m.Epoch) > 0 && !d.blocked { //plant:older-blocked
		if err := d.files.block(blockFile); err != nil {
			return err
		}
		// Before the rename, as with the bytes of the file.
		if err := d.files.sync(); err != nil {
			return err
		}
		d.blocked = true
	}
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
	// Only this makes the rename durable. Without it, a clean mark that was replaced before the
	// first vote could reappear after a power failure.
	return d.files.sync() //plant:dir-sync
}

// Close lets others use the directory. Further calls do nothing.
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

// marshal does what json.Marshal does, but leaves <, > and & unescaped. So Saved is read
// back byte for byte, except for white space.
func marshal(v any, indent string) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	err := enc.Encode(v)
	return b.Bytes(), err
}

func decode(b []byte) (Mark, error) {
	// The version first: a later one may have other fields.
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return Mark{}, err
	}
	if v.Version > version { //plant:newer-refused
		return Mark{}, fmt.Errorf("%w (version %d of the file; this program reads 1 to %d)", ErrNewer, v.Version, version)
	}
	var f file
	if err := unmarshal(b, &f); err != nil {
		return Mark{}, err
	}
	if f.Version < 1 {
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
	if f.Version < 3 && (m.ID != "" || m.Epoch != nil) {
		return Mark{}, fmt.Errorf("version %d has no id and no configuration", f.Version)
	}
	m.Clean = m.Clean && f.Version > 1
	return m, nil
}

// unmarshal does what json.Unmarshal does, but rejects unknown fields.
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

// checksum returns the checksum of a mark of a version. In version 1 it covered the mark
// only.
func checksum(version int, mark []byte) string {
	h := sha256.New()
	if version > 1 {
		fmt.Fprintf(h, "%d\n", version)
	}
	h.Write(mark)
	return hex.EncodeToString(h.Sum(nil))
}
