package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// diagnostics is standard error. A write to it neither waits for its reader nor fails if
// there is none. A log that nobody reads must not keep a node from voting, or keep this
// program from ending a command whose lock is lost. What cannot be written in time is
// dropped and counted.
type diagnostics struct {
	// The original file, for commands that inherit it, and to check whether it is a terminal.
	file   *os.File
	linger time.Duration // how long the end of the program may wait for the last lines

	to    io.Writer // the same file with another number
	close func()

	mu      sync.Mutex // guards what follows
	json    bool       // lines are JSON
	pending []byte
	dropped int           // number of lines, because pending was full
	idle    chan struct{} // closed when all is written; nil if all is written
}

const (
	// maxPending is how many bytes a reader may be behind before lines are dropped.
	maxPending = 256 << 10

	// lingerLong is for commands for which nothing waits, as far as qlock knows. A pager that
	// shows the first page must not cause the loss of the last line.
	lingerLong = 5 * time.Second

	// lingerShort is for commands that a supervisor waits for.
	lingerShort = time.Second
)

func newDiagnostics(f *os.File) *diagnostics {
	d := &diagnostics{file: f, linger: lingerLong, to: f, close: func() {}}
	// Go ends a program that writes to a broken pipe with file number 1 or 2, and only these.
	// Standard output should keep this behaviour, as in other programs.
	if dup, err := duplicate(f); err == nil {
		d.to, d.close = dup, func() { _ = dup.Close() }
	}
	return d
}

// Write never blocks and never fails.
func (d *diagnostics) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dropped > 0 || len(d.pending)+len(p) > maxPending {
		d.dropped += bytes.Count(p, []byte("\n"))
		return len(p), nil
	}
	d.pending = append(d.pending, p...)
	if d.idle == nil {
		d.idle = make(chan struct{})
		go d.drain()
	}
	return len(p), nil
}

// drain writes what is pending, and returns when nothing is left.
func (d *diagnostics) drain() {
	for {
		d.mu.Lock()
		b := d.pending
		if d.dropped > 0 {
			b = append(b, d.notice(d.dropped)...)
		}
		if len(b) == 0 {
			close(d.idle)
			d.idle = nil
			d.mu.Unlock()
			return
		}
		d.pending, d.dropped = nil, 0
		d.mu.Unlock()
		_, _ = d.to.Write(b) // there is nowhere to report an error
	}
}

func (d *diagnostics) notice(n int) string {
	const text = "lines were dropped here, because standard error was not read"
	if d.json {
		return fmt.Sprintf(`{"time":%q,"level":"WARN","msg":%q,"lines":%d}`+"\n", time.Now().Format(time.RFC3339Nano), text, n)
	}
	return fmt.Sprintf("qlock: %d %s\n", n, text)
}

// busy reports whether the reader is behind.
func (d *diagnostics) busy() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.idle != nil
}

// flush waits until all is written, but at most for limit. It reports whether all is
// written.
func (d *diagnostics) flush(limit time.Duration) bool {
	d.mu.Lock()
	idle := d.idle
	d.mu.Unlock()
	if idle == nil {
		return true
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-idle:
		return true
	case <-timer.C:
		return false
	}
}

// end must be called at the end of the program.
func (d *diagnostics) end() {
	if d.flush(d.linger) {
		d.close()
	}
}

// supervise is for commands that others depend on. If this program writes to a pipe that
// nobody reads, it gets an error and does not end. It also does not wait long for a reader
// when it ends.
//
// The signal is caught and not ignored, because commands that this program starts would
// inherit an ignored signal.
func (a *app) supervise() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	a.err.linger = lingerShort
}
