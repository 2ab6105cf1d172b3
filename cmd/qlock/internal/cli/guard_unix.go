//go:build unix

package cli

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// A guardian is this program once more, at the head of the process group that the
// command runs in: the group is there before the command, and its number is nobody
// else's as long as anybody might send to it. It reads a pipe that only its parent
// has the other end of. When the pipe ends and nobody has said that all is well, the
// parent is dead, and the guardian kills the group. When the parent falls silent, it
// hangs or was stopped, and cannot see that the lock is lost: the command is dealt
// with as --on-loss says.
//
// It is started before the lock is awaited: an upgrade of this program during the wait
// must not keep the command from running.
type guardian struct {
	cmd  *exec.Cmd
	pipe *os.File
	out  *os.File
	errs *os.File
	gone sync.Once
}

// guardArgument is what the guardian is called with. It is no command for people.
const guardArgument = "--guard-of-a-command"

const (
	guardBeat    = "beat"
	guardPause   = "pause"
	guardAllWell = "well"
)

const guardReady = "ready\n"

// startGuard starts the guard of a command that is not there yet.
func startGuard(errs *os.File) (*guardian, error) {
	g := &guardian{errs: errs}
	if err := g.start(); err != nil {
		return nil, fmt.Errorf("start the guard of the command: %w", err)
	}
	return g, nil
}

func (g *guardian) start() error {
	self, err := thisProgram()
	if err != nil {
		return err
	}
	in, pipe, err := os.Pipe()
	if err != nil {
		return err
	}
	out, outOfGuard, err := os.Pipe()
	if err != nil {
		_, _ = in.Close(), pipe.Close()
		return err
	}
	g.cmd = exec.Command(self, guardArgument)
	g.cmd.Stdin, g.cmd.Stdout, g.cmd.Stderr = in, outOfGuard, g.errs
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	g.pipe, g.out = pipe, out
	err = startOurs(g.cmd)
	_, _ = in.Close(), outOfGuard.Close()
	if err != nil {
		_, _ = pipe.Close(), out.Close()
	}
	return err
}

// armTime bounds what a guard may need to go on watch, on a machine with much else to do.
const armTime = 10 * time.Second

// arm returns the guard that is on watch: a signal that is meant for the command must
// not find it unprepared. The one that was started before the wait may have been killed
// in it, or stopped: then it is another.
//
// patience is how long this program may be silent until the guard deals with the
// command, and grace what the command has then from SIGTERM to SIGKILL.
func (g *guardian) arm(patience, grace time.Duration) (*guardian, error) {
	err := g.ready(patience, grace)
	if err == nil {
		return g, nil
	}
	g.dismiss()
	if g, err = startGuard(g.errs); err != nil {
		return nil, err
	}
	if err = g.ready(patience, grace); err != nil {
		g.dismiss()
		return nil, fmt.Errorf("the guard of the command is not ready: %w", err)
	}
	return g, nil
}

func (g *guardian) ready(patience, grace time.Duration) error {
	if err := g.out.SetReadDeadline(time.Now().Add(armTime)); err != nil {
		return err
	}
	g.tell(fmt.Sprint(patience.Nanoseconds(), grace.Nanoseconds()))
	_, err := io.ReadFull(g.out, make([]byte, len(guardReady)))
	return err
}

func (g *guardian) group() int { return g.cmd.Process.Pid }

// tell writes a line, unless the pipe is full: who has stopped the guard must not stop
// this program with it. Should the guard be dead, the kernel's signal is left.
func (g *guardian) tell(line string) {
	c, err := g.pipe.SyscallConn()
	if err != nil {
		return
	}
	_ = c.Write(func(fd uintptr) bool {
		_, _ = syscall.Write(int(fd), []byte(line+"\n"))
		return true // also when it would have to wait
	})
}

// dismiss ends the guard, also one that is stopped and does not hear that all is well.
func (g *guardian) dismiss() {
	g.gone.Do(func() {
		g.tell(guardAllWell)
		_ = g.cmd.Process.Kill()
		_ = g.cmd.Wait()
		forget(g.cmd.Process.Pid)
		_, _ = g.pipe.Close(), g.out.Close()
	})
}

// guard is the guardian's whole life. The first line has how long its parent may be
// silent, and how long the group has to end then; 0: for ever, and none.
func guard(in, out, errs *os.File) int {
	signal.Ignore() // they are the command's
	group := syscall.Getpgrp()
	if group != syscall.Getpid() {
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
	if _, err := io.WriteString(out, guardReady); err != nil {
		return 0 // the parent is dead already
	}
	w := &watchman{group: group, patience: patience, grace: grace, lines: lines, errs: newDiagnostics(errs)}
	w.watch()
	return 0
}

// watchman is the guardian on watch.
type watchman struct {
	group           int
	patience, grace time.Duration
	lines           <-chan string
	errs            *diagnostics
}

// tick is how often a guard whose parent is stopped looks whether the command is.
const tick = 100 * time.Millisecond

func (w *watchman) watch() {
	var silent <-chan time.Time
	var fires time.Time // when silent does
	var due time.Time   // until then the parent may be silent
	late := false       // it was given some time more
	paused := false
	wait := func(d time.Duration) { fires, silent = time.Now().Add(d), time.After(d) }
	set := func(d time.Duration) {
		if w.patience > 0 {
			due = time.Now().Add(d)
			wait(d)
		}
	}
	set(w.patience)
	for {
		select {
		case line, ok := <-w.lines:
			switch {
			case !ok:
				w.kill("qlock has ended before the command")
				return
			case line == guardAllWell:
				return
			}
			late, paused = false, line == guardPause
			set(w.patience)
			if paused && w.patience > 0 {
				wait(tick)
			}
		case <-silent:
			switch {
			case !late && time.Since(fires) > w.patience/8:
				// This process stood still itself. What the parent says may be in the
				// pipe, and if it stood still as well, it needs a moment.
				late = true
				wait(w.patience / 8)
				continue
			case paused && (time.Now().Before(due) || !w.works()):
				// The parent is stopped, and so is the command, which does no harm then.
				late = false
				wait(tick)
				continue
			}
			if w.grace > 0 {
				_ = syscall.Kill(-w.group, syscall.SIGTERM)
				_ = syscall.Kill(-w.group, syscall.SIGCONT)
				select {
				case line, ok := <-w.lines:
					if ok && line == guardAllWell {
						return
					}
					if ok { // the parent is back, and does what is to be done
						late, paused = false, false
						set(w.patience)
						continue
					}
				case <-time.After(w.grace):
				}
			}
			w.kill("qlock does not answer")
			return
		}
	}
}

// works reports whether anything of the group runs, though the parent has stopped it:
// somebody has sent SIGCONT to the command alone.
func (w *watchman) works() bool {
	list, _ := members(w.group, w.group)
	for _, p := range list {
		if !p.stopped() {
			return true
		}
	}
	return false
}

// kill ends the group, this process with it. Nobody else is left to say what it could
// not do, so that comes first, where there is such a thing: for what it can kill it
// does so before.
func (w *watchman) kill(why string) {
	if err := deaf(w.group, w.group, 0); err != nil {
		list, _ := members(w.group, w.group)
		for _, p := range list {
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
		fmt.Fprintf(w.errs, "qlock: %s, and this cannot be killed: %v; it continues without the lock\n", why, err)
		w.errs.flush(time.Second)
	}
	_ = syscall.Kill(-w.group, syscall.SIGKILL)
}
