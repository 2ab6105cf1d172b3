//go:build unix

package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

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
	done  chan int            // its exit status, once
	stops chan syscall.Signal // by which it was stopped; SIGCONT: it goes on
	guard *guardian
	over  bool // its status is known: the number may be another's
	job
}

// startChild starts the command with all that keeps it from outliving the lock. What
// happens at the terminal comes by signals, too.
func startChild(cmd *exec.Cmd, g *guardian, signals chan<- os.Signal) (*child, error) {
	c := &child{done: make(chan int, 1), stops: make(chan syscall.Signal), guard: g, job: newJob(cmd, signals)}
	c.begin(g.group())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pgid: g.group()}
	dieWithParent(cmd.SysProcAttr)
	started := make(chan error)
	go func() {
		// The kernel's signal at the parent's death comes when the thread dies that
		// started the child, and Go ends threads as it likes.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := startOurs(cmd)
		if errors.Is(err, syscall.ENOEXEC) && isScript(cmd.Path) {
			// As the shell does, and env, nice and timeout.
			cmd = &exec.Cmd{Path: shell, Args: append([]string{shell, cmd.Path}, cmd.Args[1:]...), Env: cmd.Env,
				Stdin: cmd.Stdin, Stdout: cmd.Stdout, Stderr: cmd.Stderr, SysProcAttr: cmd.SysProcAttr}
			err = startOurs(cmd)
		}
		if err == nil {
			c.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			c.done <- c.wait()
		}
	}()
	err := <-started
	c.begun()
	if err != nil {
		c.take()
		return nil, err
	}
	return c, nil
}

// shell runs scripts that do not say what runs them.
const shell = "/bin/sh"

// isScript reports whether a file that the kernel does not execute is a text. A
// program for another machine has zeros at its beginning.
func isScript(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	begin := make([]byte, 80)
	n, err := io.ReadFull(f, begin)
	return (err == nil || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)) && !bytes.Contains(begin[:n], []byte{0})
}

// wait reaps the command. It does so by itself, since package os does not tell of
// a command that was stopped.
func (c *child) wait() int {
	for {
		var ws syscall.WaitStatus
		_, err := syscall.Wait4(c.pid, &ws, syscall.WUNTRACED|syscall.WCONTINUED, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return exitSelf
		case ws.Stopped():
			c.stops <- ws.StopSignal()
		case ws.Continued():
			c.stops <- syscall.SIGCONT
		case ws.Signaled():
			return exitSignal + int(ws.Signal())
		default:
			return ws.ExitStatus()
		}
	}
}

// ended is called when the status of the command has come.
func (c *child) ended(status int) {
	c.over = true
	forget(c.pid)
	c.take()
	if status > exitSignal {
		c.restore()
	}
}

// left reports whether anything of the group but the guard lives. Where nobody tells,
// it ends the guard, whose group cannot be seen to be empty with it inside.
func (c *child) left() bool {
	if list, ok := members(c.guard.group(), c.guard.group()); ok {
		return len(list) > 0
	}
	c.guard.dismiss()
	return !errors.Is(syscall.Kill(-c.guard.group(), 0), syscall.ESRCH)
}

// close leaves what there is of the group to itself. It returns an error if some of that
// cannot be signalled.
func (c *child) close() error {
	c.guard.dismiss()
	if errors.Is(syscall.Kill(-c.guard.group(), 0), syscall.ESRCH) {
		return nil
	}
	return c.deaf()
}

// beat tells the guard that the lock is held still.
func (c *child) beat() { c.guard.tell(guardBeat) }

// pass sends a signal to the whole group. The signal that it returns, if any, is one by
// which the command was to be stopped, which stands still already: it will not tell.
func (c *child) pass(s os.Signal) (stop syscall.Signal, err error) {
	sig := s.(syscall.Signal)
	switch sig {
	case syscall.SIGCONT:
		c.resume()
		return 0, nil
	case syscall.SIGTSTP, syscall.SIGTTIN:
		if c.halted {
			stop = syscall.SIGTSTP
		}
		return stop, c.send(sig)
	}
	if err := c.send(sig); err != nil || !fatal(s) {
		return 0, err
	}
	_ = c.send(syscall.SIGCONT) // a stopped command cannot end; an error would be the same
	return 0, c.deaf()
}

// send sends to the whole group. There is no error if any of it was reached.
func (c *child) send(s syscall.Signal) error {
	if err := syscall.Kill(-c.guard.group(), s); err != nil && !errors.Is(err, syscall.ESRCH) { // what has ended cannot hear it
		return fmt.Errorf("process group %d: %w", c.guard.group(), err)
	}
	return nil
}

// deaf is an error that names who of the group cannot be signalled.
func (c *child) deaf() error {
	pid := c.pid
	if c.over {
		pid = 0
	}
	return deaf(c.guard.group(), c.guard.group(), pid)
}

func (c *child) terminate() error {
	_, err := c.pass(syscall.SIGTERM)
	return err
}

func (c *child) kill() error {
	if err := c.send(syscall.SIGKILL); err != nil {
		return err
	}
	return c.deaf()
}

// resume lets the command go on, with the terminal if that is this job's now.
func (c *child) resume() {
	c.halted = false
	if c.foreground() && c.wants {
		c.give()
	}
	c.beat()
	_ = c.send(syscall.SIGCONT) // who is not reached was told of, or will be
}

// halt is called when the command was stopped, or goes on. It decides what becomes of
// the whole job, as a shell does that has started the command and has not put it into a
// group of its own.
//
// A command that is stopped for the terminal's sake gets the terminal, if this job has
// it. Else this program stops as well, so that its shell sees a job that is stopped,
// and has its terminal again: when that lets it go on, halt returns. The lock is not
// refreshed meanwhile, and may be lost: that is told as any loss is. resume reports
// whether the command shall go on now.
func (c *child) halt(sig syscall.Signal) (resume bool, trouble string) {
	c.halted = sig != syscall.SIGCONT
	if !c.halted || c.tty == nil {
		return false, "" // whoever stopped it goes on with it
	}
	asks := sig == syscall.SIGTTIN || sig == syscall.SIGTTOU
	if asks {
		c.wants = true
		if c.foreground() || c.has() {
			return true, ""
		}
	}
	switch {
	case sig == syscall.SIGSTOP && !c.given:
		return false, "" // that was no key
	case !orphaned():
		c.take()
		c.guard.tell(guardPause) // a command that is stopped does no harm
		c.stop(sig)
		return true, ""
	case sig == syscall.SIGSTOP:
		return false, ""
	case !asks:
		return true, "" // there is no shell that could let it go on later
	case !c.told:
		c.told = true
		_ = c.send(syscall.SIGHUP) // with the SIGCONT that follows, what the kernel does with such groups
		return true, "the command needs a terminal that this job does not have, and no shell can give it: the command gets SIGHUP"
	}
	return false, ""
}

// job is what this program, its shell and the command have to do with a terminal.
//
// The command has a process group of its own, so that all of it can be ended. Of the
// groups of a session, one is in the foreground: that reads from the terminal, and gets
// what Ctrl-C and Ctrl-Z mean. The shell puts the group of this program there. So the
// group of the command must be put there in its place, by this program: at the start,
// if nothing else of this program's group might want the terminal, and else when the
// command asks for it, of which the kernel stops it. That is what sudo does.
type job struct {
	tty     *os.File // nil: there is no terminal
	signals chan<- os.Signal
	group   int            // of the command
	wants   bool           // the command has the terminal whenever this program has it
	given   bool           // it has it now
	halted  bool           // the command is stopped
	told    bool           // that it cannot have it
	modes   *terminalModes // before it had it
}

func newJob(cmd *exec.Cmd, signals chan<- os.Signal) job {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return job{}
	}
	// In a pipeline the terminal may be for others, as for a pager. A script starts what
	// it puts into the background with another input, and goes on with the terminal.
	wants := isTTY(cmd.Stdin) && !piped(cmd.Stdout) && !piped(cmd.Stderr)
	return job{tty: tty, signals: signals, wants: wants}
}

func isTTY(f any) bool {
	file, ok := f.(*os.File)
	return ok && terminal(file)
}

func piped(f any) bool {
	file, ok := f.(*os.File)
	if !ok {
		return true
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&(os.ModeNamedPipe|os.ModeSocket) != 0
}

// begin is called before the command starts: it must not come too late for the
// terminal.
func (j *job) begin(group int) {
	j.group = group
	if j.tty == nil {
		return
	}
	// While the command has not got the terminal, these come to this program's group
	// alone, and the command must know them.
	signal.Notify(j.signals, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGWINCH)
	if j.wants && j.foreground() {
		j.give()
	}
}

// begun is called when the command has started. From now on this program may do with
// the terminal what only the foreground may: before, the command would inherit that.
func (j *job) begun() {
	if j.tty != nil {
		signal.Ignore(syscall.SIGTTOU)
	}
}

// inFront is the group in the foreground; 0: there is none.
func (j *job) inFront() int {
	if j.tty == nil {
		return 0
	}
	group, err := unix.IoctlGetInt(int(j.tty.Fd()), unix.TIOCGPGRP)
	if err != nil {
		return 0
	}
	return group
}

func (j *job) foreground() bool { return j.inFront() == syscall.Getpgrp() }
func (j *job) has() bool        { return j.tty != nil && j.inFront() == j.group }

// give lets the command have the terminal.
func (j *job) give() {
	if j.modes == nil {
		j.modes = modesOf(j.tty)
	}
	j.given = unix.IoctlSetPointerInt(int(j.tty.Fd()), unix.TIOCSPGRP, j.group) == nil
}

// take takes the terminal back from the command that was given it.
func (j *job) take() {
	if j.given {
		j.given = false
		_ = unix.IoctlSetPointerInt(int(j.tty.Fd()), unix.TIOCSPGRP, syscall.Getpgrp()) // it may be gone, with its window
	}
}

// restore sets the terminal to what it was before the command had it: that was killed,
// and could not do so.
func (j *job) restore() {
	if j.modes != nil && j.foreground() {
		j.modes.set(j.tty)
	}
}

// stop stops all of this program's group, as the terminal would have done if the
// command were in it, and this program last. It returns when that goes on.
func (j *job) stop(sig syscall.Signal) {
	others := sig
	if sig == syscall.SIGSTOP {
		others = syscall.SIGTSTP
	}
	if (sig == syscall.SIGTTIN || sig == syscall.SIGTTOU) && j.foreground() {
		return // the shell has brought the job to the front meanwhile
	}
	signal.Ignore(syscall.SIGTSTP, syscall.SIGTTIN)
	_ = syscall.Kill(0, others)
	stopSelf()
	signal.Notify(j.signals, syscall.SIGTSTP, syscall.SIGTTIN)
}

// orphaned reports whether no shell looks after this program's group: who stops in such
// a group stops for ever.
func orphaned() bool {
	group := syscall.Getpgrp()
	session, err := unix.Getsid(0)
	if err != nil {
		return true
	}
	// Between this program and its shell there may be a script.
	for p := os.Getppid(); p > 0; {
		of, err := syscall.Getpgid(p)
		if err != nil {
			return true
		}
		if of != group {
			s, err := unix.Getsid(p)
			return err != nil || s != session
		}
		parent, ok := procOf(p)
		if !ok {
			return false // nobody tells; what there is of the group is the script's
		}
		p = parent.parent
	}
	return true
}
