//go:build unix

package child

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"
)

// Process is a child that runs, or ran.
type Process struct {
	Name string

	// Done is closed when the process is dead and all that it said was heard.
	Done <-chan struct{}

	cmd   *exec.Cmd
	stdin io.WriteCloser
	log   string      // the file of its standard error
	meant atomic.Bool // that it ends
	err   error       // of its end, once Done is closed
}

// Launch starts a child. The role is JSON in the environment variable of that name, and the
// child's standard error goes to a file in dir. What it says goes to hear, in order. What nobody
// wanted goes to broken: a line that is no JSON of L, or its end.
func Launch[L any](dir, name, variable string, role any, hear func(L), broken func(why string)) (*Process, error) {
	text, err := json.Marshal(role)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	p := &Process{Name: name, Done: done, cmd: exec.Command(self), log: filepath.Join(dir, name+".log")}
	p.cmd.Env = append(os.Environ(), variable+"="+string(text))
	p.cmd.SysProcAttr = attributes()
	stderr, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = stderr.Close() }() // the child has its own
	p.cmd.Stderr = stderr
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(done)
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			var l L
			if err := json.Unmarshal(lines.Bytes(), &l); err == nil {
				hear(l)
			} else if !p.meant.Load() { // else it was killed amid a line
				broken(fmt.Sprintf("not a line of its record: %q: %v", lines.Text(), err))
			}
		}
		p.err = p.cmd.Wait()
		if !p.meant.Load() {
			broken(fmt.Sprintf("the process died by itself: %v: ... %s", p.err, p.LastWords()))
		}
	}()
	return p, nil
}

// MayEnd says that the process ends by itself, and that this is well.
func (p *Process) MayEnd() { p.meant.Store(true) }

// LastWords is the end of what the process wrote to standard error.
func (p *Process) LastWords() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-2000):])
}

// Kill is kill -9. It returns when the process is dead and all that it said was heard.
func (p *Process) Kill() {
	p.MayEnd()
	_ = p.cmd.Process.Kill() // it fails for one that is dead already
	<-p.Done
	_ = p.stdin.Close()
}

// Tell writes a line to the process's standard input.
func (p *Process) Tell(word string) error {
	_, err := io.WriteString(p.stdin, word+"\n")
	return err
}

// End lets the process end cleanly: it is told the word, or, without one, its standard input
// ends. One that has not ended within patience is killed.
func (p *Process) End(word string, patience time.Duration) error {
	p.MayEnd()
	if word == "" {
		_ = p.stdin.Close()
	} else if err := p.Tell(word); err != nil {
		p.Kill()
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	timer := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	<-p.Done
	_ = p.stdin.Close()
	if p.err != nil {
		return fmt.Errorf("%s did not end cleanly: %w: ... %s", p.Name, p.err, p.LastWords())
	}
	return nil
}

// Signal sends a signal, for example SIGSTOP or SIGCONT. It fails for a process that is dead.
func (p *Process) Signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("%s: %v: %w", p.Name, s, err)
	}
	return nil
}
