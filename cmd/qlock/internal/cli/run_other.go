//go:build !unix

package cli

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"
)

var passedOn = []os.Signal{os.Interrupt}

func fatal(os.Signal) bool { return true }

// child is the command. This system has no process groups, and can only kill a process.
type child struct {
	process *os.Process
	done    chan int
	stops   chan syscall.Signal // nothing is stopped on this system
}

func startChild(cmd *exec.Cmd, _ *guardian, _ chan<- os.Signal) (*child, error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{process: cmd.Process, done: make(chan int, 1)}
	go func() {
		err := cmd.Wait()
		var exit *exec.ExitError
		switch {
		case err == nil:
			c.done <- 0
		case errors.As(err, &exit):
			c.done <- exit.ExitCode()
		default:
			c.done <- exitSelf
		}
	}()
	return c, nil
}

// beat does nothing: there is no guard.
func (c *child) beat() {}

// pass does nothing: the console sends Ctrl-C to the command.
func (c *child) pass(os.Signal) (syscall.Signal, error) { return 0, nil }
func (c *child) terminate() error                       { return c.kill() }
func (c *child) kill() error {
	if err := c.process.Kill(); !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

func (c *child) halt(syscall.Signal) (bool, string) { return false, "" }
func (c *child) resume()                            {}
func (c *child) ended(int)                          {}
func (c *child) left() bool                         { return false }
func (c *child) close() error                       { return nil }

// guardArgument is the argument of the guard of a command, on systems that have one.
const guardArgument = "--guard-of-a-command"

// guardian is empty: this system has no guard.
type guardian struct{}

func startGuard(*os.File) (*guardian, error) { return nil, nil }
func (*guardian) dismiss()                   {}

func (*guardian) arm(_, _ time.Duration) (*guardian, error) { return nil, nil }

func guard(_, _, _ *os.File) int { return exitUsage }
