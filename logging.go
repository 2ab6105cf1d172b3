package qlock

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/qlock/qlock/internal/logqueue"
)

// limited logs at most one line a second for each message, and says how many it
// left out: what it reports may come from anybody, at any rate. It never waits for
// the logger: who logs here ends the contexts of lost locks, or votes.
type limited struct {
	log   *slog.Logger // into queue
	queue *logqueue.Handler

	mu   sync.Mutex        // guards last, kept short
	last map[string]*limit // by kind of message
}

type limit struct {
	at      time.Time
	skipped int
}

func newLimited(l *slog.Logger, attrs ...any) *limited {
	queue := logqueue.New(l.Handler())
	return &limited{log: slog.New(queue).With(attrs...), queue: queue, last: map[string]*limit{}}
}

// logPatience is how long Close waits for the logger to take the last lines.
const logPatience = 100 * time.Millisecond

// flush waits until the logger has taken all lines, for patience at most.
func (l *limited) flush(patience time.Duration) {
	giveUp := time.NewTimer(patience)
	defer giveUp.Stop()
	l.queue.Flush(giveUp.C)
}

// line logs msg; args may be anything. What is variable in msg stands in
// parentheses: it may differ every time, and must not count as a message of its
// own.
func (l *limited) line(level slog.Level, msg string, args ...any) {
	if !l.log.Enabled(context.Background(), level) {
		return
	}
	now := time.Now()
	kind, _, _ := strings.Cut(msg, "(")
	l.mu.Lock()
	s := l.last[kind]
	if s == nil {
		s = &limit{}
		l.last[kind] = s
	}
	if now.Sub(s.at) < time.Second {
		s.skipped++
		l.mu.Unlock()
		return
	}
	if s.skipped > 0 {
		args = append(args, "skipped", s.skipped)
	}
	s.at, s.skipped = now, 0
	l.mu.Unlock()
	l.log.Log(context.Background(), level, msg, args...)
}
