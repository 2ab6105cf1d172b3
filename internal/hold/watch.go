package hold

import (
	"slices"
	"time"

	"github.com/qlock/qlock/internal/wire"
)

// enqueue puts a hold in the queue: at its end, or among the others by its age if it was
// given one. The others go by the order in which they came, whatever the wall clock did.
func (s *sharedClaim) enqueue(u *Hold, byAge bool) {
	s.watched = s.watched || u.watched
	i := len(s.queue)
	for byAge && i > 0 && s.queue[i-1].at > u.at {
		i--
	}
	if i == len(s.queue) {
		s.queue = append(s.queue, u)
	} else {
		s.queue = slices.Insert(s.queue, i, u)
	}
}

// tell tells those who asked that somebody waits, or that what they wait for may have
// changed.
func (s *sharedClaim) tell(t *Table, out *Out) {
	if s.asked {
		s.tellWanted(t, out)
	}
	if s.watched {
		s.tellWatchers(out)
	}
}

// tellWanted tells holders that asked that somebody else waits, once each.
func (s *sharedClaim) tellWanted(t *Table, out *Out) {
	if !s.isHeld() || !s.claim.Wanted() && len(s.queue) == 0 && !(s.givenUp && t.claims[s.resource] != nil) {
		return
	}
	for _, u := range s.holders {
		if u.asksWanted {
			u.asksWanted = false //plant:tell-wanted
			out.Holds = append(out.Holds, Event{Kind: Wanted, Hold: u})
		}
	}
	s.asked = false
}

// tellWatchers tells those who wait and are watched.
func (s *sharedClaim) tellWatchers(out *Out) {
	for _, u := range s.queue {
		if u.watched {
			out.Holds = append(out.Holds, Event{Kind: Changed, Hold: u})
		}
	}
}

// Watch has u told from now on when what it waits for may have changed.
func (t *Table) Watch(now wire.Now, u *Hold, out *Out) {
	t.readClocks(now, out)
	if u.state == Waiting {
		u.watched, u.shared.watched = true, true
		t.watch(now, u, out)
	}
	t.drain(now, out)
}

// watch asks the nodes, if they were not asked yet, and has u told how it stands now.
func (t *Table) watch(now wire.Now, u *Hold, out *Out) {
	if u.shared.claim != nil {
		t.core.Watch(now, u.shared.claim, &out.Out)
	}
	out.Holds = append(out.Holds, Event{Kind: Changed, Hold: u})
}

// Wanted has u told once when somebody else waits: another client, for which the nodes are
// told that the claim is kept (N4), or another hold of this one.
func (t *Table) Wanted(now wire.Now, u *Hold, out *Out) {
	t.readClocks(now, out)
	if u.state == Holding {
		s := u.shared
		u.asksWanted, s.asked = true, true
		t.core.Keep(now, s.claim, &out.Out)
		s.tellWanted(t, out)
	}
	t.drain(now, out)
}

// evicted ends a claim that somebody who may wants to end, but for those who give it back
// themselves. It serves nobody else.
func (t *Table) evicted(now wire.Now, s *sharedClaim, out *Out) {
	s.evicted = true
	t.wake(s)
	s.holders = slices.DeleteFunc(s.holders, func(u *Hold) bool {
		e := Event{Kind: Evicted, Hold: u, Eviction: s.claim.Eviction()}
		if !u.manual {
			e.Kind, u.state = Lost, Over
		}
		out.Holds = append(out.Holds, e)
		return !u.manual
	})
	if len(s.holders) == 0 {
		s.latest = nil // what becomes of them is told
	}
	t.proceed(now, s, out)
}

// Ahead is how many of this client's own wait before u.
func (t *Table) Ahead(u *Hold) int {
	return max(slices.Index(u.shared.queue, u), 0)
}

// Stands is how long from now u's claim stays held without another message, 0 if u does not
// hold.
func (t *Table) Stands(now wire.Now, u *Hold) time.Duration {
	if u.state != Holding {
		return 0
	}
	return t.core.Stands(now, u.shared.claim)
}

// Refreshed reports that no refresh is under way whose answers would let u's claim stand for
// longer.
func (t *Table) Refreshed(u *Hold) bool {
	return u.state != Holding || t.core.Refreshed(u.shared.claim)
}

// Refresh tells the nodes now which claims live.
func (t *Table) Refresh(now wire.Now, out *Out) {
	t.core.Refresh(now, &out.Out)
	t.drain(now, out)
}
