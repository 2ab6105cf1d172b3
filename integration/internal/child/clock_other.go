//go:build unix && !linux

package child

import (
	"syscall"
	"time"
)

// Now is the wall clock, which all processes of a machine share. Package syscall has the
// monotonic one on Linux only. Whoever sets the clock during a run makes its record useless.
func Now() int64 { return time.Now().UnixNano() }

// attributes of a child: it ends itself when its standard input does. One that is stopped in
// that moment is in a group of its own, which is orphaned by its parent's death; the system lets
// it go on then.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
