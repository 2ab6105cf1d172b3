package natsio

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/qlock/qlock/internal/logqueue"
)

// Log writes at most one line a second for each message, and says how many it left
// out: what it reports may come from anybody, at any rate. Any goroutine may use it. It
// never waits for the logger, because its users have deadlines: they end the contexts
// of lost locks, or vote.
type Log struct {
	log   *slog.Logger // into queue
	queue *logqueue.Handler

	mu   sync.Mutex        // guards last, kept short
	last map[string]*limit // by kind of message
}

type limit struct {
	at      time.Time
	skipped int
}

// NewLog makes a Log in front of l. Its lines have the attributes attrs.
func NewLog(l *slog.Logger, attrs ...any) *Log {
	queue := logqueue.New(l.Handler())
	return &Log{log: slog.New(queue).With(attrs...), queue: queue, last: map[string]*limit{}}
}

// LogPatience is how long a Close waits for the logger to take the last lines.
const LogPatience = 100 * time.Millisecond

// Logger is the logger behind the limit, for lines that are written once.
func (l *Log) Logger() *slog.Logger { return l.log }

// Dropped is how many lines the logger did not take in time.
func (l *Log) Dropped() uint64 { return l.queue.Dropped() }

// Flush waits until the logger has taken all lines, for patience at most.
func (l *Log) Flush(patience time.Duration) {
	giveUp := time.NewTimer(patience)
	defer giveUp.Stop()
	l.queue.Flush(giveUp.C)
}

// Line logs msg; args may be anything. The variable part of msg stands in parentheses,
// because it must not count as a message of its own.
func (l *Log) Line(level slog.Level, msg string, args ...any) {
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
