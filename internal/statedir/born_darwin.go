package statedir

import (
	"os"
	"syscall"
)

// born returns when the file was created, in ns since 1970.
func born(_ *os.File, s *syscall.Stat_t) int64 { return s.Birthtimespec.Nano() }
