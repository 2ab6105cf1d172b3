//go:build unix && !linux

package cli

import "syscall"

// dieWithParent does nothing: there is only the guard.
func dieWithParent(*syscall.SysProcAttr) {}
