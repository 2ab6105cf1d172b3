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

// guardian is this program in a second process, which leads the process group of the
// command. So the group exists before the command, and its number is not reused while
// anything might send signals to it. The guardian reads a pipe whose other end only its
// parent has. If the pipe ends without the message that all is well, the parent is dead,
// and the guardian kills the group. If the parent is silent for too long, it hangs or was
// stopped, and cannot notice that the lock is lost. The guardian then treats the command as
// --on-loss says.
//
// The guardian starts before the wait for the lock, so that an upgrade of this program
// during the wait cannot keep the command from running.
type guardian struct {
	cmd  *exec.Cmd
	pipe *os.File
	out  *os.File
	errs *os.File
	gone sync.Once
}

// guardArgument is the argument with which this program becomes a guardian. It is not a
// command for people.
const guardArgument = "--guard-of-a-command"

const (
	guardBeat    = "beat"
	guardPause   = "pause"
	guardAllWell = "well"
)

const guardReady = "ready\n"

// startGuard starts the guard of a command that has not started yet.
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

// armTime is how long a guard may take to be ready, on a busy machine.
const armTime = 10 * time.Second

// arm returns a guard that is ready. It must be called before the command can get a signal.
// The guard that was started before the wait may have been killed or stopped meanwhile. In
// that case arm starts another one.
//
// patience is how long this program may be silent before the guard acts, and grace is how
// long the command then has from SIGTERM to SIGKILL.
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

// tell writes a line, unless the pipe is full: a guard that was stopped must not block this
// program. If the guard is dead, only the kernel's signal at the death of this program
// remains.
func (g *guardian) tell(line string) {
	c, err := g.pipe.SyscallConn()
	if err != nil {
		return
	}
	_ = c.Write(func(fd uintptr) bool {
		_, _ = syscall.Write(int(fd), []byte(line+"\n"))
		return true // also if the write would block
	})
}

// dismiss ends the guard, even one that is stopped and does not read that all is well.
func (g *guardian) dismiss() {
	g.gone.Do(func() {
		g.tell(guardAllWell)
		_ = g.cmd.Process.Kill()
		_ = g.cmd.Wait()
		forget(g.cmd.Process.Pid)
		_, _ = g.pipe.Close(), g.out.Close()
	})
}

// guard is the main function of the guardian. The first line of its input says how long its
// parent may be silent, where 0 means without limit, and how long the group then has to
// end, where 0 means no time.
func guard(in, out, errs *os.File) int {
	signal.Ignore() // signals are for the command
	group := syscall.Getpgrp()
	if group != syscall.Getpid() {
		return exitUsage // not started by qlock run: the group is not its own
	}
	lines := make(chan string)
	go func() { // ends with the process
		defer close(lines)
		for s := bufio.NewScanner(in); s.Scan(); {
			lines <- s.Text()
		}
	}()
	var patience, grace time.Duration
	first, ok := <-lines
	if !ok || first == guardAllWell {
		return 0 // no command was started
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

// watchman is the state of a guardian that is ready.
type watchman struct {
	group           int
	patience, grace time.Duration
	lines           <-chan string
	errs            *diagnostics
}

// tick is how often a guard whose parent is stopped checks whether the command is stopped
// too.
const tick = 100 * time.Millisecond

func (w *watchman) watch() {
	var silent <-chan time.Time
	var fires time.Time // when silent fires
	var due time.Time   // the parent may be silent until then
	late := false       // the parent was given some more time
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
				// This process itself was suspended. Messages of the parent may be in the pipe. If
				// the parent was suspended as well, it needs a moment.
				late = true
				wait(w.patience / 8)
				continue
			case paused && (time.Now().Before(due) || !w.works()):
				// The parent is stopped, and so is the command, which therefore does no harm.
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
					if ok { // the parent is back, and acts itself
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

// works reports whether any process of the group runs although the parent stopped it. That
// happens if SIGCONT is sent to the command alone.
func (w *watchman) works() bool {
	list, _ := members(w.group, w.group)
	for _, p := range list {
		if !p.stopped() {
			return true
		}
	}
	return false
}

// kill kills the group, including this process. No process is left afterwards that could
// report what could not be killed. So if there is such a process, kill first kills the
// others one by one, and reports it.
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
