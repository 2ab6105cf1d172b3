//go:build unix

package statedir

import (
	"io/fs"
	"syscall"
)

func inode(f fs.FileInfo) (device, inode uint64) {
	if s, ok := f.Sys().(*syscall.Stat_t); ok {
		return uint64(s.Dev), uint64(s.Ino) //nolint:unconvert // other types on other systems
	}
	return 0, 0
}
