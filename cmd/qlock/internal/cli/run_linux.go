package cli

import "syscall"

// dieWithParent has the kernel kill the command when this program dies, however it
// dies and whatever became of the guard.
func dieWithParent(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGKILL }
