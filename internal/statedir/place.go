package statedir

import "io/fs"

// Place is where a mark was written: this very file, on this machine, since it was
// last started. A copy of a directory, a directory on another machine and one that
// was restored from a backup are other places, and so is the same one after the
// machine was started again: between two starts nobody knows for how long it was
// off.
//
// What a system does not tell is zero, and equal to itself.
type Place struct {
	Boot   string `json:"boot,omitempty"`   // the machine's, since its last start
	Device uint64 `json:"device,omitempty"` // the file's
	Inode  uint64 `json:"inode,omitempty"`
	Path   string `json:"path,omitempty"` // the directory's, absolute and without symbolic links
}

// placeOf is the place of an open file of the directory.
func (d *Dir) placeOf(f fs.FileInfo) Place {
	p := Place{Boot: bootID(), Path: d.path}
	p.Device, p.Inode = inode(f)
	return p
}
