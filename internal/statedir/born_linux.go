package statedir

import (
	"encoding/binary"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"
)

// statx has the numbers of the system call, which package syscall lacks.
var statx = map[string]uintptr{
	"386": 383, "amd64": 332, "arm": 397, "arm64": 291, "loong64": 291,
	"ppc64": 383, "ppc64le": 383, "riscv64": 291, "s390x": 379,
}[runtime.GOARCH]

// born returns when the file was created, in ns since 1970, by statx(2). It returns 0 if
// the kernel or the file system does not know.
func born(f *os.File, _ *syscall.Stat_t) int64 {
	const (
		emptyPath = 0x1000 // AT_EMPTY_PATH: of the descriptor itself
		btime     = 0x800  // STATX_BTIME
		at        = 80     // offset of stx_btime in struct statx
	)
	if statx == 0 {
		return 0
	}
	var (
		path  [1]byte
		out   [256]byte
		errno syscall.Errno
	)
	c, err := f.SyscallConn()
	if err != nil {
		return 0
	}
	err = c.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall6(statx, fd, uintptr(unsafe.Pointer(&path[0])), emptyPath, btime, uintptr(unsafe.Pointer(&out[0])), 0)
	})
	if err != nil || errno != 0 || binary.NativeEndian.Uint32(out[:])&btime == 0 {
		return 0
	}
	sec, nsec := binary.NativeEndian.Uint64(out[at:]), binary.NativeEndian.Uint32(out[at+8:])
	return time.Unix(int64(sec), int64(nsec)).UnixNano()
}
