package cli

import (
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dieWithParent makes the kernel kill the command when this program dies, for whatever
// reason and whatever happened to the guard.
func dieWithParent(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGKILL }

// stopGroup stops this program's group, this program with SIGTSTP and the others with the
// signal given. It returns when this program continues.
//
// The SIGTSTP of this program is pending, and blocked, before the others get their signal. A
// SIGCONT from then on removes it. A signal that is pending for a thread has arrived when the
// call returns with which that thread unblocks it. A signal to the process may arrive a
// little later.
func stopGroup(others syscall.Signal) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer defaultAction(syscall.SIGTSTP)()
	var stop, before unix.Sigset_t
	stop.Val[0] = 1 << (syscall.SIGTSTP - 1)
	_ = unix.PthreadSigmask(unix.SIG_BLOCK, &stop, &before) // no error with valid arguments
	_ = unix.Tgkill(os.Getpid(), unix.Gettid(), syscall.SIGTSTP)
	_ = syscall.Kill(0, others)
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
}

// defaultAction lets a signal have its default action until the result is called. Package
// signal cannot do that: after Notify and Reset, the handler of the runtime is still there,
// and drops the signal.
func defaultAction(s syscall.Signal) (restore func()) {
	// The fields of the kernel's struct sigaction differ from machine to machine. All of them
	// zero is the default action everywhere, and what was there before goes back as it is.
	var zero, before [32]uint64
	sizeOfMask := uintptr(8)
	if strings.HasPrefix(runtime.GOARCH, "mips") {
		sizeOfMask = 16
	}
	set := func(action, old *[32]uint64) {
		_, _, _ = syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(action)), uintptr(unsafe.Pointer(old)), sizeOfMask, 0, 0)
	}
	set(&zero, &before)
	return func() { set(&before, nil) }
}
