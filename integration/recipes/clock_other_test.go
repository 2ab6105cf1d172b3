//go:build unix && !linux

package recipes

import (
	"syscall"
	"time"
)

// now is the wall clock, which all processes of a machine share. Package syscall has the
// monotonic one on Linux only.
func now() int64 { return time.Now().UnixNano() }

// attributes of a child: it ends itself when its standard input does.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
