// Package logqueue writes log lines from a goroutine of its own, so that a logger that
// blocks does not delay the code that logs. The logger is code of the program and writes to
// a file, a pipe or a network. Any of these may block without limit, and the code that logs
// has deadlines.
//
// The queue is bounded. If it is full, a new line is dropped and counted. The next line
// that is written is followed by one that says how many were dropped.
package logqueue

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// most is how many lines may wait for the logger. That is enough for a burst: the code that
// logs limits its own rate, and a logger that is further behind is blocked.
const most = 256

// Handler is a slog.Handler that puts records into a queue. None of its methods calls the
// handler that writes. The goroutine of the queue does that, and also calls Enabled and
// WithAttrs of that handler, which are code of the program too. Handler is safe for
// concurrent use.
type Handler struct {
	queue *queue
	inner func() slog.Handler
	quiet bool // nothing would be written
}

// New returns a queue in front of h. If h is a *Handler, New returns h.
func New(h slog.Handler) *Handler {
	if q, ok := h.(*Handler); ok {
		return q
	}
	return &Handler{queue: &queue{}, inner: func() slog.Handler { return h }, quiet: h == slog.DiscardHandler}
}

// Enabled reports whether anything may be written at all. The goroutine that writes checks
// the level later.
func (h *Handler) Enabled(context.Context, slog.Level) bool { return !h.quiet }

// Handle puts the record into the queue, or drops it if the queue is full. It never blocks,
// and always returns nil.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	h.queue.add(entry{h.inner, r.Clone()})
	return nil
}

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{h.queue, func() slog.Handler { return h.inner().WithAttrs(attrs) }, h.quiet}
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{h.queue, func() slog.Handler { return h.inner().WithGroup(name) }, h.quiet}
}

// Dropped returns how many lines were dropped.
func (h *Handler) Dropped() uint64 {
	h.queue.mu.Lock()
	defer h.queue.mu.Unlock()
	return h.queue.dropped
}

// Flush waits until all lines are written or giveUp can be received from, and reports
// whether all lines are written. The goroutine that writes ends when the queue is empty. If
// Flush gives up, that goroutine is still in the logger and ends when the logger returns;
// nothing else can end it.
func (h *Handler) Flush(giveUp <-chan time.Time) (written bool) {
	q := h.queue
	q.mu.Lock()
	idle := q.idle
	q.mu.Unlock()
	if idle == nil {
		return true
	}
	select {
	case <-idle:
		return true
	case <-giveUp:
		return false
	}
}

type queue struct {
	mu      sync.Mutex // guards what follows; nothing is written under it
	entries []entry
	dropped uint64
	told    uint64        // the number of dropped lines that a line has reported
	idle    chan struct{} // closed when the goroutine that writes ends; nil while there is none
}

type entry struct {
	inner  func() slog.Handler
	record slog.Record
}

func (e *entry) write() {
	h := e.inner()
	if ctx := context.Background(); h.Enabled(ctx, e.record.Level) {
		_ = h.Handle(ctx, e.record) // ignored as in package slog: there is nowhere to report it
	}
}

func (q *queue) add(e entry) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.entries) == most {
		q.dropped++
		return
	}
	q.entries = append(q.entries, e)
	if q.idle == nil {
		q.idle = make(chan struct{})
		go q.run()
	}
}

// run writes the queue until it is empty. There is one goroutine for each burst and not a
// permanent one, so that nothing has to be stopped, and a program that logs nothing has
// none.
func (q *queue) run() {
	for {
		e, ok := q.next()
		if !ok {
			return
		}
		e.write()
	}
}

func (q *queue) next() (e entry, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.entries) == 0 {
		q.entries = nil
		close(q.idle)
		q.idle = nil
		return entry{}, false
	}
	e = q.entries[0]
	q.entries = q.entries[1:]
	if n := q.dropped - q.told; n > 0 {
		q.told = q.dropped
		r := slog.NewRecord(time.Now(), slog.LevelWarn, "log lines were dropped, because the logger did not take them in time", 0)
		r.AddAttrs(slog.Uint64("dropped", n))
		// One more than most, and after the lines that were kept.
		q.entries = append(q.entries, entry{e.inner, r})
	}
	return e, true
}
