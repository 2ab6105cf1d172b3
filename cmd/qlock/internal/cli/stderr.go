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

// diagnostics is standard error. Nobody who writes to it waits for who reads it, or
// fails because nobody does: a log that is not read must not keep a node from voting,
// or a command from being ended whose lock is lost. What cannot be written in time is
// dropped, and counted.
type diagnostics struct {
	file   *os.File      // as it was given: for commands that inherit it, and to ask whether it is a terminal
	linger time.Duration // how long the end of the program may wait for the last lines

	to    io.Writer // the same, by another number
	close func()

	mu      sync.Mutex // guards what follows
	json    bool       // lines are JSON
	pending []byte
	dropped int           // lines, since pending was full
	idle    chan struct{} // closed when all is written; nil: it is
}

const (
	// maxPending is what a reader may be behind before lines are dropped.
	maxPending = 256 << 10

	// lingerLong is for commands for which nothing waits, as far as qlock knows.
	// A pager that shows the first page is no reason to lose the last line.
	lingerLong = 5 * time.Second

	// lingerShort is for those that a supervisor waits for.
	lingerShort = time.Second
)

func newDiagnostics(f *os.File) *diagnostics {
	d := &diagnostics{file: f, linger: lingerLong, to: f, close: func() {}}
	// Go ends a program that writes to a broken pipe by the number 1 or 2, and only
	// by these. Standard output shall behave so, as in other programs.
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

// drain writes what is pending, and ends.
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
		_, _ = d.to.Write(b) // to whom should one complain?
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

// flush waits until all is written, but not for longer than limit.
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

// end is for the end of the program.
func (d *diagnostics) end() {
	if d.flush(d.linger) {
		d.close()
	}
}

// supervise is for commands that others rely on. Whatever of this program writes to a
// pipe that nobody reads, by whatever way, gets an error and does not end it; and the
// end does not wait long for a reader.
//
// A signal that is ignored would be so in the commands that this program starts; one
// that is caught is not.
func (a *app) supervise() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	a.err.linger = lingerShort
}
