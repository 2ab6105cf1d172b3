package driver

import (
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/qlock/qlock/internal/subject"
)

// Wherever a lock is given up, its context ends first, and the nodes are told afterwards
// (C7): else the next holder would work beside what runs under contexts that have not ended yet.
// That takes its time. To end a context is to end, one by one, all that the program has
// derived from it, about a third of a microsecond each, before the call returns. So
//
//   - the one who gives a lock back ends its context on its own goroutine (Client.unlock,
//     machine.giveUpAll);
//   - who finds a loss hands the contexts to other goroutines, as the loop must go on
//     looking at its clock: the next lock may be lost while the first one's thousands of
//     contexts end;
//   - nothing is published until they have ended: neither releases nor the refreshes, which
//     would tell the nodes the same.
//
// It runs none of the program's code: functions of context.AfterFunc have goroutines of
// their own, and between the caller's context and that of a lock there is none that it made
// itself (Locker.Do).

// endContexts hands the contexts of locks that are lost in a step to other goroutines.
// Until these have ended, what the machine says of the locks is not published. Call with
// m.mu held.
func (m *machine) endContexts(s *step) {
	if lost := s.lost; len(lost) > 0 {
		m.pub.Pause()
		m.ending.Go(func() { m.endLost(lost) })
	}
	if expired := s.expired; len(expired) > 0 {
		m.ending.Go(func() {
			endAll(expired, func(h *Hold) error { return h.lost })
			m.inSteps(len(expired), func(i int, s *step) { m.giveBack(s, expired[i]) })
		})
	}
	if unlocking := s.unlocking; len(unlocking) > 0 {
		m.pub.Pause()
		m.ending.Go(func() {
			endAll(unlocking, func(*Hold) error { return ErrUnlocked })
			m.pub.Resume()
		})
	}
}

// endLost ends the contexts of locks that are lost, and then lets the publisher go on,
// which was paused when the loss was found.
func (m *machine) endLost(lost []*Hold) {
	endAll(lost, func(h *Hold) error { return h.lost })
	for _, h := range lost {
		m.event(subject.Lost, h)
	}
	m.pub.Resume()
	for _, h := range lost {
		if e, ok := h.lost.(*evictedError); ok {
			m.log.Line(slog.LevelError, "lock lost: it was evicted", "name", h.Name(), "token", h.token, "by", e.By, "why", e.Why)
			continue
		}
		args := []any{"name", h.Name(), "token", h.token}
		if leapt, ok := h.lost.(*leaptError); ok {
			args = append(args, "why", leapt.why)
		}
		m.log.Line(slog.LevelError, "lock lost: too few nodes confirmed it in time", args...)
	}
}

// endAll ends the contexts of locks, and returns when all have ended. Several goroutines
// do it, so that the locks whose contexts have the most descendants delay only each other.
func endAll(holds []*Hold, cause func(*Hold) error) {
	const fewest = 4 // also on fewer processors: Go divides the time among them
	var next atomic.Int64
	work := func() {
		for i := next.Add(1) - 1; i < int64(len(holds)); i = next.Add(1) - 1 {
			holds[i].cancel(cause(holds[i]))
		}
	}
	var others sync.WaitGroup
	for range min(len(holds), max(runtime.GOMAXPROCS(0), fewest)) - 1 {
		others.Go(work)
	}
	work()
	others.Wait()
}
