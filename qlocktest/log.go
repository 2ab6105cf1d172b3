package qlocktest

import (
	"bytes"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// record keeps what servers, nodes and clients log until it is known whether the log is
// needed. It is an io.Writer of whole lines.
type record struct {
	start time.Time

	mu      sync.Mutex // guards what follows
	lines   [][]byte
	dropped int
}

// most is how many lines are kept, which are the last ones.
const most = 2000

func (r *record) Write(line []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.lines) == most {
		n := copy(r.lines, r.lines[most/2:])
		r.lines = r.lines[:n]
		r.dropped += most - n
	}
	r.lines = append(r.lines, bytes.Clone(line))
	return len(line), nil
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := string(bytes.Join(r.lines, nil))
	if r.dropped > 0 {
		text = fmt.Sprintf("(%d lines before these were not kept)\n%s", r.dropped, text)
	}
	return text
}

// logger returns a logger that adds attrs to each line, and the time since the cluster's
// start.
func (r *record) logger(attrs ...any) *slog.Logger {
	return slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.String("after", a.Value.Time().Sub(r.start).Round(time.Millisecond).String())
			}
			return a
		},
	})).With(attrs...)
}
