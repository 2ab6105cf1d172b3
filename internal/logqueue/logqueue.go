// Package logqueue writes log lines from a goroutine of its own, so that a logger that
// blocks delays nobody who logs. A logger is the program's code and writes to a file, a
// pipe or a network: each of them may stand still for as long as it likes, and what must
// not wait for it has deadlines of its own.
//
// The queue is bounded. A line that finds it full is dropped and counted, and the next
// line that gets through is followed by one that tells how many were dropped.
package logqueue

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// most is how many lines wait for the logger. It is enough for a burst: those who log
// through it limit themselves, and a logger that is further behind does not move.
const most = 256

// Handler is a slog.Handler that puts records into a queue. None of its methods calls
// the handler that writes: its goroutine does, also for Enabled and WithAttrs, which
// are the program's code too.
type Handler struct {
	queue *queue
	inner func() slog.Handler
	quiet bool // nothing would be written
}

// New makes a queue in front of h. If h is a queue already, it is used as it is.
func New(h slog.Handler) *Handler {
	if q, ok := h.(*Handler); ok {
		return q
	}
	return &Handler{queue: &queue{}, inner: func() slog.Handler { return h }, quiet: h == slog.DiscardHandler}
}

// Enabled reports whether anything may be written at all. What the level is worth is
// asked later, by the goroutine that writes.
func (h *Handler) Enabled(context.Context, slog.Level) bool { return !h.quiet }

// Handle puts the record into the queue, or drops it if the queue is full. It never
// blocks, and never fails.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	h.queue.add(entry{h.inner, r.Clone()})
	return nil
}

// WithAttrs is slog.Handler's.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{h.queue, func() slog.Handler { return h.inner().WithAttrs(attrs) }, h.quiet}
}

// WithGroup is slog.Handler's.
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{h.queue, func() slog.Handler { return h.inner().WithGroup(name) }, h.quiet}
}

// Dropped is how many lines were dropped.
func (h *Handler) Dropped() uint64 {
	h.queue.mu.Lock()
	defer h.queue.mu.Unlock()
	return h.queue.dropped
}

// Flush waits until all lines are written, but no longer than until giveUp. The
// goroutine that writes ends when there is nothing to write. After Flush has given up,
// it is still in the logger, and ends when that lets it go: nothing else can end it.
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
	told    uint64        // of those dropped, those that a line told of
	idle    chan struct{} // closed when the goroutine that writes ends; nil while there is none
}

type entry struct {
	inner  func() slog.Handler
	record slog.Record
}

func (e *entry) write() {
	h := e.inner()
	if ctx := context.Background(); h.Enabled(ctx, e.record.Level) {
		_ = h.Handle(ctx, e.record) // as package slog does: there is nowhere to say it
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

// run writes what there is. A goroutine for each burst, and not one for ever, is no more
// to stop, and whoever logs nothing has none.
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
		q.entries = append(q.entries, entry{e.inner, r}) // one more than most, and behind those that were kept
	}
	return e, true
}
