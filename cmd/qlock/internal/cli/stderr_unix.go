//go:build unix

package cli

import (
	"os"

	"golang.org/x/sys/unix"
)

// duplicate returns f with another file number.
func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
