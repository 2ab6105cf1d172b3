//go:build unix

package recipes

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// line is what a process tells the judge, as JSON on its standard output. It is written
// at once: what was in the pipe when a process was killed is read. All times are
// readings of the machine's monotonic clock.
type line struct {
	Kind  string
	At    int64    `json:",omitempty"` // when the clock was read, before whatever it says was looked at
	ID    uint64   `json:",omitempty"` // of a claim, in its process
	Name  string   `json:",omitempty"` // of what is claimed
	Token uint64   `json:",omitempty"`
	IDs   []uint64 `json:",omitempty"` // still: of the claims that are trusted
	Text  string   `json:",omitempty"`
}

const (
	claimed = "claimed" // it has something
	still   = "still"   // and trusts that it has
	ended   = "ended"   // its context ended before it gave it back
	failed  = "failed"  // a call failed for a reason that faults explain
	broken  = "broken"  // something happened that no fault explains
	working = "working" // a handler has begun, and waits
	effect  = "effect"  // what the store said to it
)

// journal writes lines.
type journal struct {
	mu  sync.Mutex // one line at a time
	out io.Writer
}

func (j *journal) write(l line) {
	text, err := json.Marshal(l)
	if err != nil {
		panic(err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	// A judge that does not read any more is dead, and so is this process soon.
	_, _ = j.out.Write(append(text, '\n'))
}

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
func launch(dir string, r role, hear func(line)) (*process, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{name: r.Process, cmd: exec.Command(self), log: filepath.Join(dir, r.Process+".log"), done: make(chan struct{})}
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
		in := bufio.NewScanner(stdout)
		for in.Scan() {
			var l line
			if err := json.Unmarshal(in.Bytes(), &l); err == nil {
				hear(l)
			} else if !p.meant.Load() { // else it was killed amid a line
				hear(line{Kind: broken, Text: fmt.Sprintf("not a line: %q: %v", in.Text(), err)})
			}
		}
		p.err = p.cmd.Wait()
		if !p.meant.Load() {
			hear(line{Kind: broken, Text: fmt.Sprintf("the process died by itself: %v: %s", p.err, p.lastWords())})
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
	return string(text[max(0, len(text)-2000):])
}

// kill is kill -9. It returns when the process is dead and all that it said was heard.
func (p *process) kill() {
	p.meant.Store(true)
	_ = p.cmd.Process.Kill() // it fails for one that is dead already
	<-p.done
	_ = p.stdin.Close()
}

// stop is SIGSTOP, and resume is SIGCONT. They fail for a process that is dead, which is
// reported when its end is heard.
func (p *process) stop()   { _ = p.cmd.Process.Signal(syscall.SIGSTOP) }
func (p *process) resume() { _ = p.cmd.Process.Signal(syscall.SIGCONT) }

// end lets the process end cleanly.
func (p *process) end() error {
	p.meant.Store(true)
	_ = p.stdin.Close() // the word to end
	timer := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	<-p.done
	if p.err != nil {
		return fmt.Errorf("%s did not end cleanly: %w: %s", p.name, p.err, p.lastWords())
	}
	return nil
}
