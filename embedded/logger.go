package embedded

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"time"

	"github.com/qlock/qlock/internal/redact"
)

// logger forwards the server's lines, without the passwords of addresses. A fatal error
// must not end the process, in which the server is only a part.
//
// The server retries a peer that is down once a second, on several routes, and logs each
// attempt. logger writes such a repeated fault only a few times a minute, and the next line
// says how often it was left out.
type logger struct {
	log    *slog.Logger
	failed chan error

	mu   sync.Mutex // guards what follows
	said map[string]*saying
}

// saying records how often a line was logged since a moment.
type saying struct {
	since time.Time
	times int
}

const (
	sayEvery = time.Minute
	sayTimes = 3    // in that time, so that as many faults of a kind are told apart
	maxSaid  = 1000 // strangers choose from where they connect
)

func newLogger(log *slog.Logger, failed chan error) *logger {
	return &logger{log: log, failed: failed, said: map[string]*saying{}}
}

// changing matches the parts of a line that differ each time: the count of attempts, the
// connection's number, and the port that a connection was made from.
var changing = regexp.MustCompile(`attempt \d+|\b[a-z]+id:\d+|:\d+ - |:\d+->`)

// news reports whether a line must be logged, and how often it was left out before.
func (l *logger) news(text string) (say bool, unsaid int) {
	key := changing.ReplaceAllString(text, "#")
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.said[key]
	switch {
	case s == nil:
		if len(l.said) >= maxSaid {
			clear(l.said)
		}
		l.said[key] = &saying{now, 1}
		return true, 0
	case now.Sub(s.since) >= sayEvery:
		unsaid = max(s.times-sayTimes, 0)
		*s = saying{now, 1}
		return true, unsaid
	}
	s.times++
	return s.times <= sayTimes, 0
}

func (l *logger) trouble(level slog.Level, f string, v []any) {
	text := redact.Text(fmt.Sprintf(f, v...))
	say, unsaid := l.news(text)
	switch {
	case !say:
		return
	case unsaid > 0:
		l.log.Log(context.Background(), level, text, "repeated", unsaid)
	default:
		l.log.Log(context.Background(), level, text)
	}
}

func (l *logger) Noticef(f string, v ...any) { l.log.Debug(redact.Text(fmt.Sprintf(f, v...))) }
func (l *logger) Warnf(f string, v ...any)   { l.trouble(slog.LevelWarn, f, v) }
func (l *logger) Errorf(f string, v ...any)  { l.trouble(slog.LevelError, f, v) }
func (l *logger) Debugf(string, ...any)      {}
func (l *logger) Tracef(string, ...any)      {}
func (l *logger) Fatalf(f string, v ...any) {
	text := redact.Text(fmt.Sprintf(f, v...))
	l.log.Error(text)
	err := redact.Error(fmt.Errorf(f, v...))
	select {
	case l.failed <- err:
	default:
	}
}
