//go:build unix

package store

import "syscall"

// stop is SIGSTOP, and resume is SIGCONT. They fail for a process that is dead.
func (p *process) stop()   { _ = p.cmd.Process.Signal(syscall.SIGSTOP) }
func (p *process) resume() { _ = p.cmd.Process.Signal(syscall.SIGCONT) }
