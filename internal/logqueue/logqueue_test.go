package logqueue

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// stuck is a handler that lets nothing pass until it is let go.
type stuck struct {
	slog.Handler
	gate chan struct{}
}

func (s stuck) Enabled(context.Context, slog.Level) bool { <-s.gate; return true }

func (s stuck) WithAttrs(attrs []slog.Attr) slog.Handler {
	<-s.gate
	return stuck{s.Handler.WithAttrs(attrs), s.gate}
}

// book collects lines.
type book struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *book) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *book) lines() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Split(strings.TrimSpace(b.b.String()), "\n")
}

func newBook() (*book, slog.Handler) {
	b := &book{}
	return b, slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelInfo})
}

// A logger that blocks in any method delays no code that logs. Lines that do not fit are
// dropped, counted and reported.
func TestStuckLogger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, h := newBook()
		s := stuck{h, make(chan struct{})}
		q := New(s)
		log := slog.New(q).With("node", "n1")
		start := time.Now()
		for i := range most + 11 {
			if i == 1 {
				synctest.Wait() // the first is in the logger now, and no more in the queue
			}
			log.Warn(fmt.Sprint("line ", i))
			time.Sleep(time.Millisecond)
		}
		if d := time.Since(start); d != (most+11)*time.Millisecond {
			t.Errorf("logging took %v", d)
		}
		if n := q.Dropped(); n != 10 {
			t.Errorf("%d lines dropped, want 10", n)
		}
		start = time.Now()
		if q.Flush(time.After(time.Second)) || time.Since(start) != time.Second {
			t.Errorf("Flush waited %v for a logger that blocks", time.Since(start))
		}
		close(s.gate)
		if !q.Flush(nil) {
			t.Error("not written")
		}
		lines := b.lines()
		if len(lines) != most+2 || !strings.Contains(lines[most], fmt.Sprintf(`msg="line %d" node=n1`, most)) ||
			!strings.Contains(lines[most+1], "dropped=10") {
			t.Errorf("%d lines, the last %q", len(lines), lines[len(lines)-2:])
		}
		// The time is that of the event, not that of writing.
		if want := start.Add(-(most + 11) * time.Millisecond).Format("time=2006-01-02T15:04:05.000"); !strings.HasPrefix(lines[0], want) {
			t.Errorf("%s, want %s", lines[0], want)
		}
		if !q.Flush(nil) {
			t.Error("an empty queue waits")
		}
	})
}

// A line that the logger does not want is not written. A logger that wants nothing costs no
// goroutine.
func TestLevels(t *testing.T) {
	b, h := newBook()
	q := New(h)
	log := slog.New(q)
	log.Debug("no")
	log.WithGroup("g").Info("yes", "a", 1)
	q.Flush(nil)
	if lines := b.lines(); len(lines) != 1 || !strings.Contains(lines[0], "msg=yes g.a=1") {
		t.Errorf("%q", lines)
	}
	if New(q) != q {
		t.Error("a queue before a queue")
	}
	silent := New(slog.DiscardHandler)
	slog.New(silent).Error("nobody hears")
	if silent.queue.idle != nil {
		t.Error("a goroutine for what nobody hears")
	}
}
