package statedir

import (
	"os"
	"syscall"
)

// born is when the file was made.
func born(_ *os.File, s *syscall.Stat_t) int64 { return s.Birthtimespec.Nano() }
