package statedir

// Place identifies where a mark was written: this very file, on this machine, since the
// machine was last started. A copy of a directory, a directory on another machine and one
// that was restored from a backup are other places. The same directory is another place too
// after the machine was started again, because nobody knows for how long the machine was
// off.
//
// A value that the system does not provide is zero, and equal to itself.
type Place struct {
	Boot   string `json:"boot,omitempty"`   // the machine's current run, from one start to the next
	Device uint64 `json:"device,omitempty"` // of the file
	Inode  uint64 `json:"inode,omitempty"`
	// Born is when the file was created, in ns since 1970. It is needed because a copy may get
	// the inode number of a removed file.
	Born int64  `json:"born_ns,omitempty"`
	Path string `json:"path,omitempty"` // of the directory, absolute and without symbolic links
}

// identity distinguishes a file from all others, and from its copies.
type identity struct {
	device, inode uint64
	born          int64  // when it was created, ns since 1970; nobody can set that
	links         uint64 // number of its names
}

// placeOf returns the place of a file of the directory.
func (d *Dir) placeOf(f identity) Place {
	return Place{Boot: bootID(), Device: f.device, Inode: f.inode, Born: f.born /*plant:born*/, Path: d.path}
}

// copied reports whether a mark that was written at this place is in another file now. Other
// than for a clean mark, which lives for minutes, the machine's run and the device do not
// count: they change when the machine is started again, or a volume is attached elsewhere.
func (p Place) copied(f identity) bool {
	return p.Inode != 0 && f.inode != 0 && p.Inode != f.inode || p.Born != 0 && f.born != 0 && p.Born != f.born
}
