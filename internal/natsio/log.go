package natsio

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/qlock/qlock/internal/logqueue"
)

// Log writes at most one line a second for each message, and says how many it left out:
// anyone may cause what it reports, at any rate. Any goroutine may use it. It never waits
// for the logger, because its users have deadlines: they end the contexts of lost locks, or
// vote.
type Log struct {
	log   *slog.Logger // writes into queue
	queue *logqueue.Handler

	mu   sync.Mutex        // guards last; held briefly
	last map[string]*limit // by kind of message
}

type limit struct {
	at      time.Time
	skipped int
}

// NewLog returns a Log that writes to l. Its lines have the attributes attrs.
func NewLog(l *slog.Logger, attrs ...any) *Log {
	queue := logqueue.New(l.Handler())
	return &Log{log: slog.New(queue).With(attrs...), queue: queue, last: map[string]*limit{}}
}

// LogPatience is how long a Close waits for the logger to write the last lines.
const LogPatience = 100 * time.Millisecond

// Logger returns the logger without the rate limit, for lines that are written once.
func (l *Log) Logger() *slog.Logger { return l.log }

// Dropped returns how many lines were dropped because the logger was too slow.
func (l *Log) Dropped() uint64 { return l.queue.Dropped() }

// Flush waits until the logger has written all lines, but at most for patience.
func (l *Log) Flush(patience time.Duration) {
	giveUp := time.NewTimer(patience)
	defer giveUp.Stop()
	l.queue.Flush(giveUp.C)
}

// Line logs msg with args, as slog.Logger.Log does, unless the rate limit of msg is
// reached. args may be anything. The variable part of msg must be in parentheses, so that
// it does not count as a message of its own.
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
