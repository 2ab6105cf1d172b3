//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package statedir

import (
	"errors"
	"os"
	"syscall"
)

// locks reports whether flock excludes others.
const locks = true

// flock locks f or returns errInUse. Unlike a lock by fcntl, this lock belongs to the open
// file and not to the process. So it also excludes two nodes in one process from each
// other, and the lock of a node that was killed is released.
func flock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EWOULDBLOCK):
			return errInUse
		}
		return os.NewSyscallError("flock", err)
	}
}

func unflock(f *os.File) error {
	return os.NewSyscallError("flock", syscall.Flock(int(f.Fd()), syscall.LOCK_UN))
}
