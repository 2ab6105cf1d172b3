//go:build unix

package chaos

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

// process is a child that runs, or ran.
type process struct {
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	log   string        // the file of its standard error
	meant atomic.Bool   // that it ends
	done  chan struct{} // closed when it is dead and all that it said was heard
	err   error         // of its end; read it when done is closed
}

// launch starts a child. What it says goes to hear, in order.
func launch(dir, name string, r role, hear func(line)) (*process, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{name: name, cmd: exec.Command(self), log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), roleVariable+"="+string(text))
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
		defer close(p.done)
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			var l line
			if err := json.Unmarshal(lines.Bytes(), &l); err == nil {
				hear(l)
			} else if !p.meant.Load() { // else it was killed amid a line
				hear(line{Kind: broken, At: now(), Text: fmt.Sprintf("not a line of its record: %q: %v", lines.Text(), err)})
			}
		}
		p.err = p.cmd.Wait()
		if !p.meant.Load() {
			hear(line{Kind: broken, At: now(), Text: fmt.Sprintf("the process died by itself: %v: ... %s", p.err, p.lastWords())})
		}
	}()
	return p, nil
}

// lastWords is the end of what the process wrote to standard error.
func (p *process) lastWords() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-1000):])
}

// kill is kill -9. It returns when the process is dead and all that it said was
// heard.
func (p *process) kill() {
	p.meant.Store(true)
	_ = p.cmd.Process.Kill() // it fails for one that is dead already
	<-p.done
	_ = p.stdin.Close()
}

func (p *process) tell(word string) error {
	_, err := io.WriteString(p.stdin, word+"\n")
	return err
}

// end lets the process end cleanly.
func (p *process) end() error {
	p.meant.Store(true)
	if err := p.tell(wordEnd); err != nil {
		p.kill()
		return fmt.Errorf("%s: %w", p.name, err)
	}
	timer := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	<-p.done
	_ = p.stdin.Close()
	if p.err != nil {
		return fmt.Errorf("%s did not end cleanly: %w: ... %s", p.name, p.err, p.lastWords())
	}
	return nil
}

func (p *process) signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("%s: %v: %w", p.name, s, err)
	}
	return nil
}
