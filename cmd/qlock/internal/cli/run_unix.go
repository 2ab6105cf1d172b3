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

// fatal reports whether a signal ends a wait for the lock. SIGUSR1 and SIGUSR2 are for the
// command, which has not started yet.
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
	stops chan syscall.Signal // the signal that stopped it; SIGCONT: it continues
	guard *guardian
	over  bool // its status is known: the number may be reused
	job
}

// startChild starts the command in such a way that it does not outlive the lock. Events of
// the terminal also arrive as signals.
func startChild(cmd *exec.Cmd, g *guardian, signals chan<- os.Signal) (*child, error) {
	c := &child{done: make(chan int, 1), stops: make(chan syscall.Signal), guard: g, job: newJob(cmd, signals)}
	c.begin(g.group())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pgid: g.group()}
	dieWithParent(cmd.SysProcAttr)
	started := make(chan error)
	go func() {
		// The kernel sends the signal of the parent's death when the thread ends that started the
		// child, and Go may end threads at any time.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := startOurs(cmd)
		if errors.Is(err, syscall.ENOEXEC) && isScript(cmd.Path) {
			// As the shell, env, nice and timeout do.
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

// shell runs scripts that do not name their interpreter.
const shell = "/bin/sh"

// isScript reports whether a file that the kernel does not execute is a text. A program for
// another machine has zeros at its beginning.
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

// wait reaps the command. It does not use package os, which does not report that a command
// was stopped.
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

// ended must be called when the status of the command is known.
func (c *child) ended(status int) {
	c.over = true
	forget(c.pid)
	c.take()
	if status > exitSignal {
		c.restore()
	}
}

// left reports whether any process of the group except the guard lives. Where the system
// does not list processes, it first ends the guard, because otherwise the group would never
// appear to be empty.
func (c *child) left() bool {
	if list, ok := members(c.guard.group(), c.guard.group()); ok {
		return len(list) > 0
	}
	c.guard.dismiss()
	return !errors.Is(syscall.Kill(-c.guard.group(), 0), syscall.ESRCH)
}

// close stops supervising what is left of the group. It returns an error if some of these
// processes cannot be signalled.
func (c *child) close() error {
	c.guard.dismiss()
	if errors.Is(syscall.Kill(-c.guard.group(), 0), syscall.ESRCH) {
		return nil
	}
	return c.deaf()
}

// beat tells the guard that the lock is still held.
func (c *child) beat() { c.guard.tell(guardBeat) }

// pass sends a signal to the whole group. It returns a stop signal if the command was
// already stopped when it was to be stopped: the command will not report that again.
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
	// A stopped command cannot end. An error would be the same as before.
	_ = c.send(syscall.SIGCONT)
	return 0, c.deaf()
}

// send sends a signal to the whole group. It returns no error if any process of the group
// received it.
func (c *child) send(s syscall.Signal) error {
	// ESRCH: a process that has ended cannot receive it.
	if err := syscall.Kill(-c.guard.group(), s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("process group %d: %w", c.guard.group(), err)
	}
	return nil
}

// deaf returns an error that names the processes of the group that cannot be signalled.
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

// resume continues the command, with the terminal if this job has that now.
func (c *child) resume() {
	c.halted = false
	if c.foreground() && c.wants {
		c.give()
	}
	c.beat()
	_ = c.send(syscall.SIGCONT) // processes that it does not reach are reported elsewhere
}

// halt handles a command that was stopped or continued. It decides what happens to the
// whole job, as a shell does that started the command without a group of its own.
//
// A command that is stopped because it used the terminal gets the terminal, if this job has
// it. Otherwise this program stops as well, so that its shell sees a stopped job, and gets
// its terminal back. When the shell continues this program, halt returns. The lock is not
// refreshed meanwhile and may be lost, which is reported like every loss. resume reports
// whether the command must be continued now.
func (c *child) halt(sig syscall.Signal) (resume bool, trouble string) {
	c.halted = sig != syscall.SIGCONT
	if !c.halted || c.tty == nil {
		return false, "" // whoever stopped it also continues it
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
		return false, "" // the stop does not come from a key
	case !orphaned():
		c.take()
		c.guard.tell(guardPause) // a stopped command does no harm
		c.stop(sig)
		return true, ""
	case sig == syscall.SIGSTOP:
		return false, ""
	case !asks:
		return true, "" // no shell could continue it later
	case !c.told:
		c.told = true
		// With the SIGCONT that follows, this is what the kernel does to such groups.
		_ = c.send(syscall.SIGHUP)
		return true, "the command needs a terminal that this job does not have, and no shell can give it: the command gets SIGHUP"
	}
	return false, ""
}

// job connects this program, its shell and the command with a terminal.
//
// The command has a process group of its own, so that all of it can be killed. One of the
// groups of a session is in the foreground. It reads from the terminal, and gets the
// signals of Ctrl-C and Ctrl-Z. The shell puts the group of this program there, so this
// program must put the group of the command there instead. It does so at the start if no
// other process in its own group may need the terminal. Otherwise it does so when the
// command reads from the terminal, for which the kernel stops the command. sudo works in
// the same way.
type job struct {
	tty     *os.File // nil: there is no terminal
	signals chan<- os.Signal
	group   int            // of the command
	wants   bool           // the command has the terminal whenever this program has it
	given   bool           // the command has it now
	halted  bool           // the command is stopped
	told    bool           // it was reported that the command cannot have it
	modes   *terminalModes // before the command had it
}

func newJob(cmd *exec.Cmd, signals chan<- os.Signal) job {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return job{}
	}
	// In a pipeline, the terminal may be for another process, such as a pager. A script starts
	// background jobs with another input, and keeps using the terminal itself.
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

// begin must be called before the command starts, which then has the terminal from its
// start.
func (j *job) begin(group int) {
	j.group = group
	if j.tty == nil {
		return
	}
	// While the command does not have the terminal, only this program's group gets these
	// signals, and the command needs them.
	signal.Notify(j.signals, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGWINCH)
	if j.wants && j.foreground() {
		j.give()
	}
}

// begun must be called when the command has started. From then on, this program may use the
// terminal in ways that are reserved for the foreground. Before, the command would inherit
// that.
func (j *job) begun() {
	if j.tty != nil {
		signal.Ignore(syscall.SIGTTOU)
	}
}

// inFront returns the foreground group, or 0 if there is none.
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

// give gives the terminal to the command.
func (j *job) give() {
	if j.modes == nil {
		j.modes = modesOf(j.tty)
	}
	j.given = unix.IoctlSetPointerInt(int(j.tty.Fd()), unix.TIOCSPGRP, j.group) == nil
}

// take takes the terminal back from the command, if it has it.
func (j *job) take() {
	if j.given {
		j.given = false
		// The terminal may be gone, with its window.
		_ = unix.IoctlSetPointerInt(int(j.tty.Fd()), unix.TIOCSPGRP, syscall.Getpgrp())
	}
}

// restore sets the terminal to its modes from before the command had it. It is for a
// command that was killed and could not do so itself.
func (j *job) restore() {
	if j.modes != nil && j.foreground() {
		j.modes.set(j.tty)
	}
}

// stop stops this program's group, as the terminal would have done if the command were in
// it. It returns when this program continues.
//
// The shell may notice that the others have stopped, and continue the group, before this
// program has stopped itself. So the stop of this program must be of a kind that such a
// SIGCONT takes back: otherwise this program would stop after it, and a shell that takes the
// job for a running one would not continue it again. SIGSTOP to this program alone, after
// the signal to the others, is not of that kind.
func (j *job) stop(sig syscall.Signal) {
	others := sig
	if sig == syscall.SIGSTOP {
		others = syscall.SIGTSTP
	}
	if (sig == syscall.SIGTTIN || sig == syscall.SIGTTOU) && j.foreground() {
		return // meanwhile the shell brought the job to the foreground
	}
	back := []os.Signal{syscall.SIGTSTP, syscall.SIGTTIN}
	if !signal.Ignored(syscall.SIGCONT) {
		back = append(back, syscall.SIGCONT)
	}
	// The caller continues the command. If the SIGCONT that continues this program were passed
	// on as well, it could come when Ctrl-Z has stopped the command again, and undo that.
	signal.Ignore(syscall.SIGTTIN, syscall.SIGCONT)
	stopGroup(others)
	signal.Notify(j.signals, back...)
}

// orphaned reports whether no shell controls this program's group. A process that stops in
// such a group is never continued.
func orphaned() bool {
	group := syscall.Getpgrp()
	session, err := unix.Getsid(0)
	if err != nil {
		return true
	}
	// There may be a script between this program and its shell.
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
			return false // not known; the rest of the group is up to the script
		}
		p = parent.parent
	}
	return true
}
