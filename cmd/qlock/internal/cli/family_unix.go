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

// members are the living processes of a group but for the one of this number, which is
// the guard; false where nobody tells.
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

// deaf is an error that names those of a group that may not be signalled by this
// user: programs of another user's, such as sudo starts. A signal to a group reports
// success if any of its processes got it. Where nobody tells of a group, only the
// command is asked, unless it is 0.
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

// ours are the processes that this program has started and waits for. Others that end
// are orphans.
var ours = struct {
	mu   sync.Mutex // guards pids
	pids map[int]struct{}
}{pids: map[int]struct{}{}}

// startOurs starts a process of our own.
func startOurs(cmd *exec.Cmd) error {
	ours.mu.Lock()
	defer ours.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	ours.pids[cmd.Process.Pid] = struct{}{}
	return nil
}

// forget is called when a process of our own has been waited for.
func forget(pid int) {
	ours.mu.Lock()
	defer ours.mu.Unlock()
	delete(ours.pids, pid)
}
