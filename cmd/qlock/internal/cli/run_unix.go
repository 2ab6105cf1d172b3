//go:build unix

package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var passedOn = []os.Signal{
	syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGCONT,
}

// fatal reports whether a signal ends a wait for the lock. SIGUSR1 and SIGUSR2 are
// for the command, which is not there yet.
func fatal(s os.Signal) bool {
	switch s {
	case syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT:
		return true
	}
	return false
}

// child is the command, in the process group of its guard.
type child struct {
	pid   int
	done  chan int // its exit status, once
	guard *guardian
	tty   int // the terminal that the group has in hand, or -1
}

// startChild starts the command with all that keeps it from outliving the lock.
//
// patience is how long this program may be silent until the guard deals with the
// command, and grace what the command has then from SIGTERM to SIGKILL.
func startChild(cmd *exec.Cmd, in *os.File, patience, grace time.Duration) (*child, error) {
	g, err := startGuard(patience, grace)
	if err != nil {
		return nil, err
	}
	c := &child{done: make(chan int, 1), guard: g, tty: -1}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pgid: g.group()}
	dieWithParent(cmd.SysProcAttr)
	if terminal(in) && foreground(int(in.Fd())) {
		// Else the command, in a group of its own, could not read from the terminal,
		// and Ctrl-C would not reach it.
		c.tty = int(in.Fd())
		cmd.SysProcAttr.Foreground, cmd.SysProcAttr.Ctty = true, c.tty
	}
	started := make(chan error)
	go func() {
		// The kernel's signal at the parent's death comes when the thread dies that
		// started the child, and Go ends threads as it likes.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		c.pid = cmd.Process.Pid
		if c.tty >= 0 {
			signal.Ignore(syscall.SIGTTOU) // for taking the terminal back; before the start the command would inherit it
		}
		started <- nil
		c.done <- c.wait()
	}()
	if err := <-started; err != nil {
		g.dismiss()
		return nil, err
	}
	return c, nil
}

// wait reaps the command. It does so by itself, since package os does not tell of
// a command that was stopped, as Ctrl-Z does: then this program stops as well, so
// that the shell has its terminal again. The lock is not refreshed meanwhile, and
// when both go on, it may be lost: that is told as any loss is.
func (c *child) wait() int {
	var ws syscall.WaitStatus
	for {
		_, err := syscall.Wait4(c.pid, &ws, syscall.WUNTRACED, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return exitSelf
		case ws.Stopped():
			c.suspend()
			continue
		}
		break
	}
	c.guard.dismiss()
	c.takeTerminal()
	if ws.Signaled() {
		return exitSignal + int(ws.Signal())
	}
	return ws.ExitStatus()
}

func (c *child) suspend() {
	if c.tty < 0 {
		return // whoever stopped it goes on with it
	}
	c.takeTerminal()
	c.guard.tell(guardPause) // a command that is stopped does no harm
	_ = syscall.Kill(syscall.Getpid(), syscall.SIGSTOP)
	// Here the shell has called this program back.
	_ = unix.IoctlSetPointerInt(c.tty, unix.TIOCSPGRP, c.guard.group())
	c.guard.tell(guardBeat)
	c.signal(syscall.SIGCONT)
}

// beat tells the guard that the lock is held still.
func (c *child) beat() { c.guard.tell(guardBeat) }

func (c *child) takeTerminal() {
	if c.tty >= 0 {
		_ = unix.IoctlSetPointerInt(c.tty, unix.TIOCSPGRP, syscall.Getpgrp()) // it may be gone, with its window
	}
}

func foreground(tty int) bool {
	group, err := unix.IoctlGetInt(tty, unix.TIOCGPGRP)
	return err == nil && group == syscall.Getpgrp()
}

// signal sends to the whole group. One that has ended cannot hear it.
func (c *child) signal(s os.Signal) { _ = syscall.Kill(-c.guard.group(), s.(syscall.Signal)) }
func (c *child) terminate() {
	c.signal(syscall.SIGTERM)
	c.signal(syscall.SIGCONT) // a stopped command cannot end
}
func (c *child) kill() { c.signal(syscall.SIGKILL) }

// A guardian is this program once more, at the head of the process group that the
// command runs in: the group is there before the command, and its number is nobody
// else's as long as anybody might send to it. It reads a pipe that only its parent
// has the other end of. When the pipe ends and nobody has said that all is well, the
// parent is dead, and the guardian kills the group. When the parent falls silent, it
// hangs or was stopped, and cannot see that the lock is lost: the command is dealt
// with as --on-loss says.
type guardian struct {
	cmd *exec.Cmd

	mu   sync.Mutex // guards what follows
	pipe io.WriteCloser
}

// guardArgument is what the guardian is called with. It is no command for people.
const guardArgument = "--guard-of-a-command"

const (
	guardBeat    = "beat"
	guardPause   = "pause"
	guardAllWell = "well"
)

const guardReady = "ready\n"

// startGuard returns when the guard is on watch.
func startGuard(patience, grace time.Duration) (*guardian, error) {
	g := &guardian{}
	if err := g.start(patience, grace); err != nil {
		return nil, fmt.Errorf("start the guard of the command: %w", err)
	}
	return g, nil
}

func (g *guardian) start(patience, grace time.Duration) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	g.cmd = exec.Command(self, guardArgument)
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if g.pipe, err = g.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := g.cmd.Start(); err != nil {
		return err
	}
	// A signal that is meant for the command must not find it unprepared.
	if _, err := io.ReadFull(out, make([]byte, len(guardReady))); err != nil {
		g.dismiss()
		return err
	}
	g.tell(fmt.Sprint(patience.Nanoseconds(), grace.Nanoseconds()))
	return nil
}

func (g *guardian) group() int { return g.cmd.Process.Pid }

// tell writes a line. Should the guard be dead, the kernel's signal is left.
func (g *guardian) tell(line string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, _ = fmt.Fprintln(g.pipe, line)
}

func (g *guardian) dismiss() {
	g.tell(guardAllWell)
	_ = g.pipe.Close()
	_ = g.cmd.Wait()
}

// guard is the guardian's whole life. The first line has how long its parent may be
// silent, and how long the group has to end then; 0: for ever, and none.
func guard(in, out *os.File) int {
	signal.Ignore() // they are the command's
	if _, err := io.WriteString(out, guardReady); err != nil {
		return 0 // the parent is dead already
	}
	pid := syscall.Getpgrp()
	if pid != syscall.Getpid() {
		return exitUsage // somebody else called it, and the group is not its own
	}
	lines := make(chan string)
	go func() { // it ends with the process
		defer close(lines)
		for s := bufio.NewScanner(in); s.Scan(); {
			lines <- s.Text()
		}
	}()
	var patience, grace time.Duration
	first, ok := <-lines
	if !ok || first == guardAllWell {
		return 0 // nothing was started
	}
	if n, err := fmt.Sscan(first, &patience, &grace); err != nil || n != 2 {
		return exitUsage
	}
	silent := time.NewTimer(patience)
	if patience == 0 {
		silent.Stop()
	}
	for {
		select {
		case line, ok := <-lines:
			switch {
			case !ok:
				_ = syscall.Kill(-pid, syscall.SIGKILL)
				return 0
			case line == guardAllWell:
				return 0
			case patience > 0 && line == guardPause:
				silent.Stop()
			case patience > 0:
				silent.Reset(patience)
			}
		case <-silent.C:
			if grace > 0 {
				_ = syscall.Kill(-pid, syscall.SIGTERM)
				_ = syscall.Kill(-pid, syscall.SIGCONT)
				select {
				case line, ok := <-lines:
					if ok && line == guardAllWell {
						return 0
					}
					if ok { // the parent is back, and does what is to be done
						silent.Reset(patience)
						continue
					}
				case <-time.After(grace):
				}
			}
			_ = syscall.Kill(-pid, syscall.SIGKILL)
			return 0
		}
	}
}
