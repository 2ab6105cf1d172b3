//go:build unix

package cli

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"github.com/qlock/qlock/internal/printable"
)

func (p proc) dead() bool    { return p.state == 'Z' || p.state == 'X' }
func (p proc) stopped() bool { return p.state == 'T' || p.state == 't' }

// members returns the living processes of a group except for the one with the number but,
// which is the guard. It returns false where the system does not list processes.
func members(group, but int) ([]proc, bool) {
	all, ok := procs()
	var out []proc
	for _, p := range all {
		if p.group == group && p.pid != but && !p.dead() {
			out = append(out, p)
		}
	}
	return out, ok
}

// deaf returns an error that names the processes of a group that this user may not signal.
// These are processes of another user, such as sudo starts. A signal to a group reports
// success if any of its processes received it. Where the system does not list processes,
// deaf checks only the command, unless that is 0.
func deaf(group, guard, command int) error {
	list, ok := members(group, guard)
	if !ok && command != 0 {
		list = []proc{{pid: command}}
	}
	var who []string
	var err error
	for _, p := range list {
		if e := syscall.Kill(p.pid, 0); errors.Is(e, syscall.EPERM) {
			err = e
			if p.name == "" {
				who = append(who, fmt.Sprint(p.pid))
			} else {
				who = append(who, fmt.Sprintf("%d (%s)", p.pid, printable.Text(p.name)))
			}
		}
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("process %s: %w", strings.Join(who, ", "), err)
}

// ours has the processes that this program started and waits for. Others that end are
// orphans.
var ours = struct {
	mu   sync.Mutex // guards pids
	pids map[int]struct{}
}{pids: map[int]struct{}{}}

// startOurs starts a process and adds it to ours.
func startOurs(cmd *exec.Cmd) error {
	ours.mu.Lock()
	defer ours.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	ours.pids[cmd.Process.Pid] = struct{}{}
	return nil
}

// forget must be called when a process of ours has been waited for.
func forget(pid int) {
	ours.mu.Lock()
	defer ours.mu.Unlock()
	delete(ours.pids, pid)
}
