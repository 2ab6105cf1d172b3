package hold

import (
	"slices"
	"time"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/wire"
)

// enqueue puts a hold at the end of the queue, or among the others by age if its age was
// given by the caller. All others keep their order of arrival, whatever the wall clock
// did.
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

// tell sends the events that somebody waits, and that what a hold waits for may have
// changed, to the holds that asked for them.
func (s *sharedClaim) tell(t *Table, out *Out) {
	if s.asked {
		s.tellWanted(t, out)
	}
	if s.watched {
		s.tellWatchers(out)
	}
}

// tellWanted tells each holder that asked, once, that somebody else waits.
func (s *sharedClaim) tellWanted(t *Table, out *Out) {
	if !s.isHeld() || !s.claim.Wanted() && len(s.queue) == 0 && !(s.givenUp && t.claims[s.resource] != nil) {
		return
	}
	for _, u := range s.holders {
		if u.asksWanted && u.state == Holding {
			u.asksWanted = false //plant:tell-wanted
			out.Holds = append(out.Holds, Event{Kind: Wanted, Hold: u})
		}
	}
	s.asked = false
}

// tellWatchers tells the watched holds that wait.
func (s *sharedClaim) tellWatchers(out *Out) {
	for _, u := range s.queue {
		if u.watched {
			out.Holds = append(out.Holds, Event{Kind: Changed, Hold: u})
		}
	}
}

// Watch makes Changed events follow when what u waits for may have changed. The first one
// follows at once.
func (t *Table) Watch(now wire.Now, u *Hold, out *Out) {
	t.readClocks(now, out)
	if u.state == Waiting {
		u.watched, u.shared.watched = true, true
		t.watch(now, u, out)
	}
	t.drain(now, out)
}

// watch asks the nodes if they were not asked yet, and sends the first event.
func (t *Table) watch(now wire.Now, u *Hold, out *Out) {
	if u.shared.claim != nil {
		t.core.Watch(now, u.shared.claim, &out.Out)
	}
	out.Holds = append(out.Holds, Event{Kind: Changed, Hold: u})
}

// Wanted makes one Wanted event follow when somebody else waits: another hold of this
// client, or another client. The nodes are told that the claim is kept, so that they
// report the latter (N4).
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

// lost ends the holds of a claim that is lost or evicted. The claim serves nobody any more.
// It remains while a hold is left whose owner releases it (C12). A hold that is unlocked and
// kept does not keep it any longer.
func (t *Table) lost(now wire.Now, s *sharedClaim, out *Out) {
	s.ended, s.unused = true, false
	t.wake(s)
	t.unboundPassing(s)
	had, over := len(s.holders) > 0, s.claim.State() == client.Over
	s.holders = slices.DeleteFunc(s.holders, func(u *Hold) bool {
		if u.state == Left { // it was evicted before, and has been told
			if over {
				u.state = Over
			}
			return over
		}
		e := Event{Kind: Lost, Hold: u, Eviction: s.claim.Eviction()}
		e.Left = u.manual && u.state == Holding /*plant:left-in-use*/ && !over
		if u.state = Over; e.Left {
			u.state = Left
		}
		t.timers.remove(u.span)
		out.Holds = append(out.Holds, e)
		return !e.Left
	})
	if had && len(s.holders) == 0 {
		s.latest = nil // their events are Lost, not Returned
	}
	t.proceed(now, s, out)
}

// Ahead returns how many holds of this client wait before u.
func (t *Table) Ahead(u *Hold) int {
	return max(slices.Index(u.shared.queue, u), 0)
}

// Stands returns for how long from now u holds the lock without another message; 0 if it
// does not hold.
func (t *Table) Stands(now wire.Now, u *Hold) time.Duration {
	if u.state != Holding {
		return 0
	}
	d := t.core.Stands(now, u.shared.claim)
	if most, ok := u.expiresIn(now); ok {
		d = min(d, most) //plant:stands-at-most
	}
	return d
}

// Refreshed reports whether no refresh is under way whose answers would extend u's claim
// by much.
func (t *Table) Refreshed(u *Hold) bool {
	return u.state != Holding || t.core.Refreshed(u.shared.claim)
}

// Refresh sends the next refresh now.
func (t *Table) Refresh(now wire.Now, out *Out) {
	t.core.Refresh(now, &out.Out)
	t.drain(now, out)
}
