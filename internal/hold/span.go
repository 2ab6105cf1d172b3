package hold

import (
	"container/heap"
	"time"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/sat"
	"github.com/qlock/qlock/internal/wire"
)

// A hold may be bounded in time: its owner gets an Expired event when it has held the lock
// for Request.AtMost, and its claim stays for Request.AtLeast after the grant though its
// owner unlocks it earlier. Both count from the grant by the monotonic clock, which a clock
// that is set does not change.

// span has the bounds of a hold that has any.
type span struct {
	hold            *Hold
	atLeast, atMost time.Duration
	due             time.Duration // of its timer
	index           int           // in Table.timers, or -1
}

func newSpan(u *Hold, w *Request) *span {
	if w.AtLeast <= 0 && w.AtMost <= 0 {
		return nil
	}
	return &span{hold: u, atLeast: w.AtLeast, atMost: w.AtMost, index: -1}
}

// timers is a heap of the holds that have something due: to expire, or to be released when
// they were kept for long enough.
type timers []*span

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].due < t[j].due }

func (t timers) Swap(i, j int) {
	t[i], t[j] = t[j], t[i]
	t[i].index, t[j].index = i, j
}

// Push implements heap.Interface. Use set instead.
func (t *timers) Push(x any) {
	s := x.(*span)
	s.index = len(*t)
	*t = append(*t, s)
}

// Pop implements heap.Interface. Use remove instead.
func (t *timers) Pop() any {
	last := len(*t) - 1
	s := (*t)[last]
	(*t)[last] = nil
	*t = (*t)[:last]
	s.index = -1
	return s
}

func (t *timers) set(s *span, at time.Duration) {
	t.remove(s)
	s.due = at
	heap.Push(t, s)
}

// remove removes the timer of a hold, which may have none.
func (t *timers) remove(s *span) {
	if s != nil && s.index >= 0 {
		heap.Remove(t, s.index)
	}
}

// held starts the time of a hold that was granted.
func (t *Table) held(u *Hold) {
	if s := u.span; s != nil && s.atMost > 0 {
		t.timers.set(s, sat.Add(u.since, s.atMost)) //plant:expires-at
	}
}

// runTimers does what is due.
func (t *Table) runTimers(now wire.Now, out *Out) {
	for len(t.timers) > 0 && t.timers[0].due <= now.Mono {
		u := t.timers[0].hold
		t.timers.remove(u.span)
		if u.state == Kept {
			t.drop(now, u, out)
			continue
		}
		// The owner ends what runs under the lock, and then unlocks it (C7).
		out.Holds = append(out.Holds, Event{Kind: Expired, Hold: u}) //plant:hold-expired
	}
}

// Keeps returns for how much longer u's claim must stay though u is unlocked; 0 if it need
// not.
func (t *Table) Keeps(now wire.Now, u *Hold) time.Duration {
	s := u.span
	if s == nil || s.atLeast <= 0 || u.state != Holding && u.state != Kept || u.Claim() == nil ||
		u.Claim().State() != client.Holding || u.shared.ended {
		return 0
	}
	return max(sat.Add(u.since, s.atLeast)-now.Mono, 0) //plant:keeps-for
}

// expiresIn returns how long u may still hold the lock, and whether there is a bound.
func (u *Hold) expiresIn(now wire.Now) (time.Duration, bool) {
	if u.span == nil || u.span.atMost <= 0 {
		return 0, false
	}
	return max(sat.Add(u.since, u.span.atMost)-now.Mono, 0), true
}

// Abandon ends a hold of a client that ends. A claim that must stay is left to the nodes,
// which keep it for as long as its votes last. refresh reports whether they would last
// longer after another refresh, and not long enough without it.
func (t *Table) Abandon(now wire.Now, u *Hold, out *Out) (refresh bool) {
	t.readClocks(now, out)
	if left := t.Keeps(now, u); left > 0 {
		return t.core.Stands(now, u.Claim()) < left
	}
	t.drop(now, u, out)
	t.drain(now, out)
	return false
}
