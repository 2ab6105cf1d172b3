package statedir

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
	Born   int64  `json:"born_ns,omitempty"` // when the file was made: a number of a removed file may be given to its copy
	Path   string `json:"path,omitempty"`    // the directory's, absolute and without symbolic links
}

// identity is what tells one file from all others, and from its copies.
type identity struct {
	device, inode uint64
	born          int64  // when it was made, ns since 1970; nobody can set that
	links         uint64 // names that it has
}

// placeOf is the place of a file of the directory.
func (d *Dir) placeOf(f identity) Place {
	return Place{Boot: bootID(), Device: f.device, Inode: f.inode, Born: f.born /*plant:born*/, Path: d.path}
}
