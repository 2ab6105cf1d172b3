//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package statedir

import (
	"errors"
	"os"
	"syscall"
)

// locks reports whether flock keeps others out.
const locks = true

// flock locks f or returns errInUse. The lock belongs to the open file, not to
// the process, as one by fcntl would: two nodes in one process are kept apart
// as well, and the lock of a node that was killed is gone with it.
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
