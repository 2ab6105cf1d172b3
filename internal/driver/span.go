package driver

import (
	"container/heap"
	"time"

	"github.com/qlock/qlock/internal/sat"
	"github.com/qlock/qlock/internal/wire"
)

// timers are holds for which something is to be done at a moment, by the machine's clock: one
// that is held ends (Terms.AtMost), or one that is unlocked is given back (Terms.AtLeast). A
// hold has one at most. The machine's lock guards them.
type timers []*timer

type timer struct {
	hold  *Hold
	due   time.Duration
	index int
}

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].due < t[j].due }

func (t timers) Swap(i, j int) {
	t[i], t[j] = t[j], t[i]
	t[i].index, t[j].index = i, j
}

// Push is for package heap; use set.
func (t *timers) Push(x any) {
	one := x.(*timer)
	one.index = len(*t)
	*t = append(*t, one)
}

// Pop is for package heap; use remove.
func (t *timers) Pop() any {
	last := len(*t) - 1
	one := (*t)[last]
	(*t)[last] = nil
	*t = (*t)[:last]
	return one
}

func (t *timers) set(h *Hold, at time.Duration) {
	t.remove(h)
	h.timer = &timer{hold: h, due: at}
	heap.Push(t, h.timer)
}

func (t *timers) remove(h *Hold) {
	if h.timer != nil {
		heap.Remove(t, h.timer.index)
		h.timer = nil
	}
}

func (t timers) next() (at time.Duration, ok bool) {
	if len(t) == 0 {
		return 0, false
	}
	return t[0].due, true
}

// runTimers does what the holds whose time has come want. Call with m.mu held.
func (m *machine) runTimers(s *step) {
	for len(m.timers) > 0 && m.timers[0].due <= s.now.Mono {
		h := m.timers[0].hold
		m.timers.remove(h)
		if h.state != held {
			m.giveBack(s, h)
			continue
		}
		h.lost = ErrHoldExpired
		m.counts.setState(h, expired)
		s.expired = append(s.expired, h)
	}
}

// lingers is for how long from now h's claim stays at least. Call with m.mu held.
func (m *machine) lingers(now wire.Now, h *Hold) time.Duration {
	if h.request.terms().AtLeast == 0 {
		return 0
	}
	return max(sat.Add(h.since.Sub(m.start), h.request.Terms.AtLeast)-now.Mono, 0)
}

// giveBack gives back a hold whose context has ended, now or when its claim has been held
// for as long as it was to be at least. Call with m.mu held.
func (m *machine) giveBack(s *step, h *Hold) {
	if left := m.lingers(s.now, h); left > 0 && h.state != evicted {
		m.timers.set(h, sat.Add(s.now.Mono, left))
		return
	}
	m.table.Unlock(s.now, h.use, &s.Out)
}
