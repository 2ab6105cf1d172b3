//go:build !unix

package statedir

import "io/fs"

func inode(fs.FileInfo) (device, inode uint64) { return 0, 0 }
