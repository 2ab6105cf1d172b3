//go:build unix

package statedir

import (
	"os"
	"syscall"
)

func identify(f *os.File) (identity, error) {
	info, err := f.Stat()
	if err != nil {
		return identity{}, err
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}, nil
	}
	return identity{
		device: uint64(s.Dev), inode: uint64(s.Ino), born: born(f, s), links: uint64(s.Nlink), //nolint:unconvert // other types on other systems
	}, nil
}
