//go:build !unix

package cli

import (
	"errors"
	"os"
	"os/exec"
	"time"
)

var passedOn = []os.Signal{os.Interrupt}

func fatal(os.Signal) bool { return true }

// child is the command. There are no process groups, and nothing but killing.
type child struct {
	process *os.Process
	done    chan int
}

func startChild(cmd *exec.Cmd, _ *os.File, _, _ time.Duration) (*child, error) {
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

// beat tells nobody: there is no guard.
func (c *child) beat() {}

// signal does nothing: Ctrl-C reaches the command by the console.
func (c *child) signal(os.Signal) {}
func (c *child) terminate()       { c.kill() }
func (c *child) kill()            { _ = c.process.Kill() } // it may have ended

// guardArgument is what the guard of a command is called with, where there is one.
const guardArgument = "--guard-of-a-command"

func guard(_, _ *os.File) int { return exitUsage }
