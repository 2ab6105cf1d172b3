//go:build linux

package cli

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// ignored reports whether a process ignores a signal.
func ignored(t *testing.T, pid int, s syscall.Signal) bool {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "SigIgn:")
	mask, err := strconv.ParseUint(strings.Fields(rest)[0], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return mask&(1<<(s-1)) != 0
}

// A job in the background of a shell is not stopped because it checks the terminal: it
// would lose its lock.
func TestLockInBackground(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	s, name := shellOn(t), lockName(t)
	s.key(fmt.Sprintf(`"$qlock" lock %s -s %s & echo pid''$!.`+"\n", name, c.url()))
	pid := s.pidAfter("pid")
	s.after(func() {}, "in the background: kill "+strconv.Itoa(pid)+" releases it")
	for _, sig := range []syscall.Signal{syscall.SIGTTIN, syscall.SIGTTOU} {
		if !ignored(t, pid, sig) {
			t.Errorf("%v stops it", sig)
		}
	}
	qlockCmd(t, "lock", name, "-s", c.url(), "--try").want(t, exitHeld)
	inState(t, pid, "SR")
	s.key("fg\n")
	s.after(func() {}, "in the background", "$qlock")
	s.key("\x04")
	s.after(func() { s.key("echo status $?.\n") }, "status 0.")
	qlockCmd(t, "lock", name, "-s", c.url(), "--wait", patience.String()).want(t, 0)
}
