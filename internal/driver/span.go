package driver

import (
	"container/heap"
	"time"

	"github.com/qlock/qlock/internal/hold"
	"github.com/qlock/qlock/internal/sat"
	"github.com/qlock/qlock/internal/wire"
)

// timers is a heap of holds that have something due at a time on the machine's clock: a hold that
// is held expires (Terms.AtMost), or one that is unlocked is released (Terms.AtLeast). A hold has
// at most one timer. The machine's mutex guards them.
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

// Push implements heap.Interface. Use set instead.
func (t *timers) Push(x any) {
	one := x.(*timer)
	one.index = len(*t)
	*t = append(*t, one)
}

// Pop implements heap.Interface. Use remove instead.
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

// runTimers handles the timers that are due. The caller holds m.mu.
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

// lingers returns how much longer h's claim must stay at least. The caller holds m.mu.
func (m *machine) lingers(now wire.Now, h *Hold) time.Duration {
	if h.request.terms().AtLeast == 0 || h.use.State() != hold.Holding || h.use.Claim().Eviction() != nil {
		return 0
	}
	return max(sat.Add(h.since.Sub(m.start), h.request.Terms.AtLeast)-now.Mono, 0)
}

// giveBack releases a hold whose context has ended: now, or when Terms.AtLeast allows it. The
// caller holds m.mu.
func (m *machine) giveBack(s *step, h *Hold) {
	if left := m.lingers(s.now, h); left > 0 {
		m.timers.set(h, sat.Add(s.now.Mono, left))
		return
	}
	m.table.Unlock(s.now, h.use, &s.Out)
}
