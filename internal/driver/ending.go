package driver

import (
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/qlock/qlock/internal/subject"
)

// When a lock is given up, its context ends first, and the nodes hear of it afterwards (C7).
// Otherwise the next holder would work beside code that runs under contexts that have not ended
// yet.
//
// Ending a context takes time. The call returns after it has ended, one by one, all contexts that
// the program derived from it, at about a third of a microsecond each. Therefore:
//
//   - The goroutine that unlocks a lock ends its context itself (Client.unlock, machine.giveUpAll).
//   - The goroutine that finds a loss leaves the contexts to other goroutines. The loop must go on
//     reading its clock, since the next lock may be lost while thousands of contexts of the first
//     one end.
//   - Nothing is published until these contexts have ended: no releases, and no refreshes, which
//     would tell the nodes the same.
//
// Ending a context runs no code of the program. Functions of context.AfterFunc run on goroutines of
// their own. No context that the program implements itself is between the caller's context and that
// of a lock (Locker.Do).

// endContexts ends the contexts of the locks that a step lost, on other goroutines. Until these
// contexts have ended, nothing that the machine says about the locks is published. The caller holds
// m.mu.
func (m *machine) endContexts(s *step) {
	if lost := s.lost; len(lost) > 0 {
		m.pub.Pause()
		m.ending.Go(func() { m.endLost(lost) })
	}
	if expired := s.expired; len(expired) > 0 {
		m.ending.Go(func() {
			endAll(expired, func(h *Hold) error { return h.lost })
			m.inSteps(len(expired), func(i int, s *step) { m.table.Unlock(s.now, expired[i].use, &s.Out) })
		})
	}
	if unlocking := s.unlocking; len(unlocking) > 0 {
		m.pub.Pause()
		m.ending.Go(func() {
			endAll(unlocking, endCause)
			m.pub.Resume()
		})
	}
}

// endLost ends the contexts of lost locks, and then resumes the publisher, which endContexts
// paused.
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

// endCause returns why a lock that is not held any more has ended.
func endCause(h *Hold) error {
	if h.lost != nil {
		return h.lost
	}
	return ErrUnlocked
}

// endAll ends the contexts of locks and returns when all have ended. It uses several goroutines, so
// that contexts with very many descendants delay only each other.
func endAll(holds []*Hold, cause func(*Hold) error) {
	const fewest = 4 // also on fewer processors, because Go divides their time
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

// group counts goroutines. Unlike with a sync.WaitGroup, Go may be called while others are in Wait,
// whether or not goroutines of the group run: the loop finds further losses while Close waits for
// the contexts of those before, and a sync.WaitGroup panics then.
type group struct {
	mu      sync.Mutex // guards the fields below
	running int
	idle    chan struct{} // closed when running is 0 again; nil if nobody waits
}

// Go calls f on another goroutine.
func (g *group) Go(f func()) {
	g.mu.Lock()
	g.running++
	g.mu.Unlock()
	go func() {
		defer g.done()
		f()
	}()
}

func (g *group) done() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running--; g.running == 0 && g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
}

// Wait waits until no goroutine of the group runs.
func (g *group) Wait() {
	g.mu.Lock()
	if g.running == 0 {
		g.mu.Unlock()
		return
	}
	if g.idle == nil {
		g.idle = make(chan struct{})
	}
	idle := g.idle
	g.mu.Unlock()
	<-idle
}
