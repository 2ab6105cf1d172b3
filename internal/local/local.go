// Package local lets the goroutines of one client share claims: a pure machine
// between the driver and internal/client. Whoever of them waits for a name that
// another of them has gets it from that one, with a token of the claim's, and no
// message. Readers share one shared claim. When somebody waits for it elsewhere, it is
// passed on no more: all who wait, here or there, go by their age at the nodes.
package local

import (
	"slices"
	"time"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/proto"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/shrink"
)

// EventKind is what became of a use.
type EventKind uint8

const (
	Held     EventKind = iota // it holds, and has its token
	Lost                      // it held, and its claim was lost
	Failed                    // it will not hold
	Returned                  // it was the last to hold, and its claim was given back
)

// Event tells the driver what became of a use.
type Event struct {
	Kind  EventKind
	Use   *Use
	First bool // Held: of all that its claim serves

	Eviction *client.Eviction // Lost, Failed: who wanted it, nil if nobody did
}

// Out collects what is to be done: messages, and what became of uses. The caller
// owns it, may reuse it, and clears it between steps.
type Out struct {
	client.Out
	Uses []Event
}

// Reset empties o and keeps its memory.
func (o *Out) Reset() {
	o.Out.Reset()
	clear(o.Uses)
	o.Uses = o.Uses[:0]
}

// State is where a use is in its life.
type State uint8

const (
	Waiting State = iota
	Holding
	Over
)

// Use is one goroutine's wish for a name, and then its hold. Its fields are the
// table's; a driver reads what methods give, and User, which is its own.
type Use struct {
	User any

	share *share
	mode  quorum.Mode
	note  string
	hasty bool
	at    int64         // its age, by the wall clock
	since time.Duration // of its hold, by the monotonic clock
	token uint64
	state State
	ours  bool // it failed because of another use of this client
}

func (u *Use) State() State  { return u.state }
func (u *Use) Token() uint64 { return u.token }

// Claim is that which the use waits for or has a part in, nil if it has none now.
func (u *Use) Claim() *client.Claim { return u.share.claim }

// share is a claim and those who use it: the only one for its name, unless it is
// for a try.
type share struct {
	resource string
	try      bool
	claim    *client.Claim // nil for moments only
	fresh    bool          // the claim is held and nobody has used it yet
	last     uint64        // token given out last
	latest   *Use          // to hold
	parted   bool          // who waits has another share: this one is given back
	holders  []*Use        // one writer or any number of readers
	queue    []*Use        // who waits, first come first
	room     [2]*Use       // for one of each: mostly there are no more

	idle       time.Duration // the claim is kept for nobody until then; zero: it is not
	prev, next *share        // in the list of the idle
}

func newShare(resource string) *share {
	s := &share{resource: resource}
	s.holders, s.queue = s.room[:0:1], s.room[1:1]
	return s
}

// Table is all uses of one client. It is not safe for concurrent use.
type Table struct {
	core      *client.Client
	retention time.Duration
	shares    map[string]*share
	peak      int // of shares, for shrink.Map

	first, last *share // idle, the longest first
}

// New makes a table on core, which it has for itself from now on. A claim that
// nobody uses any more is kept for retention, or until somebody else waits for it.
func New(core *client.Client, retention time.Duration) *Table {
	return &Table{core: core, retention: retention, shares: map[string]*share{}}
}

// Want is what a use is for.
type Want struct {
	Resource string
	Mode     quorum.Mode
	Try      bool   // it fails when it would have to wait for another
	Hasty    bool   // it gives up soon, and will want to know why
	Note     string // for people
	User     any
}

// Lock wants a hold.
func (t *Table) Lock(now proto.Now, w Want, out *Out) *Use {
	t.look(now, out)
	resource, mode, try := w.Resource, w.Mode, w.Try
	u := &Use{User: w.User, mode: mode, note: w.Note, hasty: w.Hasty, at: max(now.Wall, 0)}
	s := t.shares[resource]
	if try && !t.mayTry(s, u) {
		if s != nil && len(s.holders) > 0 && quorum.Conflicts(s.holders[0].mode, mode) {
			u.share, u.state, u.ours = s, Over, true
			out.Uses = append(out.Uses, Event{Kind: Failed, Use: u})
			return u
		}
		s = newShare(resource) // the nodes must say
		s.try = true
	} else if s == nil {
		s = newShare(resource)
		t.shares[resource] = s
	}
	u.share = s
	s.queue = append(s.queue, u)
	t.wake(s)
	t.proceed(now, s, out)
	t.keep(now, s, out)
	t.drain(now, out)
	return u
}

// keep has the nodes told that a claim has more than one user, and so that others
// who wait must be heard of.
func (t *Table) keep(now proto.Now, s *share, out *Out) {
	if len(s.holders)+len(s.queue) > 1 && s.isHeld() && (len(s.queue) == 0 || t.suits(s, s.queue[0])) {
		t.core.Keep(now, s.claim, &out.Out)
	}
}

// mayTry reports whether a try can be decided here: it can have a part in what this
// client holds, and nobody stands before it.
func (t *Table) mayTry(s *share, u *Use) bool {
	return s != nil && len(s.queue) == 0 && s.isHeld() && t.suits(s, u) && s.mayPass() &&
		(len(s.holders) == 0 || u.mode == quorum.Shared && s.holders[0].mode == quorum.Shared)
}

func (s *share) isHeld() bool { return s.claim != nil && s.claim.State() == client.Holding }

// suits reports whether u can be served under the share's claim: a writer's claim
// serves readers too.
func (t *Table) suits(s *share, u *Use) bool {
	return s.claim.Mode() == quorum.Exclusive || u.mode == quorum.Shared
}

// mayPass reports whether the claim may serve one more: its first, or when nobody
// waits for it elsewhere as far as the nodes know.
func (s *share) mayPass() bool { return s.fresh || s.claim.Kept() && !s.claim.Wanted() }

// Unlock ends a use, whether it holds or waits.
func (t *Table) Unlock(now proto.Now, u *Use, out *Out) {
	t.look(now, out)
	s := u.share
	switch u.state {
	case Waiting:
		s.queue = remove(s.queue, u)
	case Holding:
		s.holders = remove(s.holders, u)
	default:
		return
	}
	u.state = Over
	t.proceed(now, s, out)
	t.drain(now, out)
}

func remove(list []*Use, u *Use) []*Use {
	i := len(list) - 1
	if list[i] != u { // else who waits last goes: all may, one by one
		i = slices.Index(list, u)
	}
	if i == 0 { // the common case: no move of all that wait behind
		list[0] = nil
		if len(list) == 1 {
			return list[:0] // its memory serves the next
		}
		return list[1:]
	}
	return slices.Delete(list, i, i+1)
}

// serve gives holds from the head of the queue for as long as nothing conflicts.
func (t *Table) serve(now proto.Now, s *share, out *Out) {
	for len(s.queue) > 0 && s.isHeld() {
		u := s.queue[0]
		conflict := len(s.holders) > 0 && quorum.Conflicts(s.holders[0].mode, u.mode)
		if conflict || !s.mayPass() || !t.suits(s, u) {
			return
		}
		token := s.last
		switch {
		case s.fresh:
			token = s.claim.Token()
		case u.mode == quorum.Exclusive:
			var ok bool
			if token, ok = t.core.Next(now, s.claim, &out.Out); !ok {
				t.core.Keep(now, s.claim, &out.Out)
				return // some are on their way, or the claim has just been lost
			}
		}
		out.Uses = append(out.Uses, Event{Kind: Held, Use: u, First: s.fresh})
		s.fresh, s.last, s.latest = false, token, u
		s.queue = remove(s.queue, u)
		s.holders = append(s.holders, u)
		u.state, u.token, u.since = Holding, token, now.Mono
	}
}

// proceed does all that can be done for a share.
func (t *Table) proceed(now proto.Now, s *share, out *Out) {
	t.serve(now, s, out)
	if len(s.queue) > 0 && s.isHeld() && (s.claim.Wanted() || !t.suits(s, s.queue[0])) {
		t.part(now, s, out)
	}
	t.settle(now, s, out)
}

// part lets those who wait have a claim of their own, which stands in the nodes'
// queues by the age of the first of them, while the one that there is has holders
// yet: somebody waits elsewhere, or the first of them cannot be served by it.
func (t *Table) part(now proto.Now, s *share, out *Out) {
	other := &share{resource: s.resource, queue: s.queue}
	for _, u := range other.queue {
		u.share = other
	}
	s.queue, s.parted = nil, true
	t.shares[s.resource] = other
	t.settle(now, other, out)
}

// settle gives back a claim that nobody has a use for, or that does not suit the
// next, and asks for another.
func (t *Table) settle(now proto.Now, s *share, out *Out) {
	if len(s.holders) > 0 {
		return
	}
	switch {
	case len(s.queue) == 0 && s.isHeld() && t.retention > 0 && !s.claim.Wanted() && !s.try && !s.parted:
		t.rest(now, s)
		return
	case len(s.queue) == 0:
		t.end(now, s, out)
		return
	case s.claim != nil && !s.isHeld() && s.claim.Mode() != s.queue[0].mode:
		t.giveBack(now, s, out) // the first in the queue gave up, and the next wants another
	}
	if s.claim == nil {
		s.claim = t.core.Claim(now, client.Want{
			Resource: s.resource, Mode: s.queue[0].mode, Try: s.try, At: s.queue[0].at,
			Keep: !s.try && (t.retention > 0 || len(s.queue) > 1), Note: s.queue[0].note, Hasty: s.queue[0].hasty, User: s,
		}, &out.Out)
	}
}

func (t *Table) giveBack(now proto.Now, s *share, out *Out) {
	if s.claim != nil {
		t.core.Release(now, s.claim, &out.Out)
		s.claim = nil
	}
	if s.latest != nil {
		out.Uses = append(out.Uses, Event{Kind: Returned, Use: s.latest})
	}
	s.fresh, s.latest = false, nil
}

// end gives back a claim that nobody uses, and is over with its share.
func (t *Table) end(now proto.Now, s *share, out *Out) {
	t.giveBack(now, s, out)
	t.forget(s)
}

func (t *Table) forget(s *share) {
	t.wake(s)
	if t.shares[s.resource] == s {
		delete(t.shares, s.resource)
		t.shares = shrink.Map(t.shares, &t.peak)
	}
}

// drain takes what the client's step brought about, until it brings no more.
func (t *Table) drain(now proto.Now, out *Out) {
	for i := 0; i < len(out.Events); i++ {
		e := out.Events[i]
		s := e.Claim.User.(*share)
		if s.claim != e.Claim {
			continue // given back meanwhile
		}
		switch e.Kind {
		case client.Held:
			s.fresh = true
			t.proceed(now, s, out)
			t.keep(now, s, out)
		case client.Lost:
			s.claim, s.fresh = nil, false
			if len(s.holders) > 0 {
				s.latest = nil // what becomes of them is told
			}
			t.wake(s)
			for _, u := range s.holders {
				u.state = Over
				out.Uses = append(out.Uses, Event{Kind: Lost, Use: u, Eviction: e.Claim.Eviction()})
			}
			s.holders = nil
			t.settle(now, s, out)
		case client.Failed:
			for _, u := range s.queue {
				u.state = Over
				out.Uses = append(out.Uses, Event{Kind: Failed, Use: u, Eviction: e.Claim.Eviction()})
			}
			s.queue = nil
			t.forget(s) // its claim stays, to be reported on
		case client.Wanted:
			if s.idle > 0 {
				t.end(now, s, out)
			} else {
				t.proceed(now, s, out)
			}
		case client.Stocked:
			t.proceed(now, s, out)
		}
	}
	out.Events = out.Events[:0]
}

// rest keeps a claim that nobody uses.
func (t *Table) rest(now proto.Now, s *share) {
	if s.idle > 0 {
		return
	}
	s.idle = now.Mono + t.retention
	if s.prev = t.last; s.prev != nil {
		s.prev.next = s
	} else {
		t.first = s
	}
	t.last = s
}

// wake takes a share from among the idle.
func (t *Table) wake(s *share) {
	if s.idle == 0 {
		return
	}
	s.idle = 0
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		t.first = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	} else {
		t.last = s.prev
	}
	s.prev, s.next = nil, nil
}

// look reads the clocks before anything is decided: what is lost is known to be
// (C7).
func (t *Table) look(now proto.Now, out *Out) {
	t.core.Tick(now, &out.Out)
	t.drain(now, out)
}

// Tick does what time alone brings.
func (t *Table) Tick(now proto.Now, out *Out) {
	t.look(now, out)
	for t.first != nil && t.first.idle <= now.Mono {
		t.end(now, t.first, out)
	}
	t.drain(now, out)
}

// Wait is how long until Tick must be called.
func (t *Table) Wait(now proto.Now) (time.Duration, bool) {
	d, ok := t.core.Wait()
	if t.first != nil {
		if rest := max(t.first.idle-now.Mono, 0); !ok || rest < d {
			d, ok = rest, true
		}
	}
	return d, ok
}

// Handle takes an answer of a node.
func (t *Table) Handle(now proto.Now, a *proto.Answer, out *Out) {
	t.core.Handle(now, a, &out.Out)
	t.drain(now, out)
}

// Reconnected makes good at once what was lost while the connection was away.
func (t *Table) Reconnected(now proto.Now, out *Out) {
	t.core.Reconnected(now, &out.Out)
	t.drain(now, out)
}

// SetCluster takes another configuration.
func (t *Table) SetCluster(now proto.Now, cluster proto.Config, out *Out) {
	t.core.SetCluster(now, cluster, &out.Out)
	t.drain(now, out)
}

// Claims is the number of claims, used or kept.
func (t *Table) Claims() int { return t.core.Claims() }

// All lists the uses that are not over.
func (t *Table) All() []*Use {
	var all []*Use
	for _, cl := range t.core.All() {
		s := cl.User.(*share)
		all = append(append(all, s.holders...), s.queue...)
	}
	return all
}

// Rest gives back what nobody uses, at most so many. It reports whether there is more.
func (t *Table) Rest(now proto.Now, most int, out *Out) (more bool) {
	for ; most > 0 && t.first != nil; most-- {
		t.end(now, t.first, out)
	}
	t.drain(now, out)
	return t.first != nil
}

// Votes is the number of votes of the use's claim that stand now.
func (t *Table) Votes(u *Use) int { return t.core.Votes(u.share.claim) }

// Ours tells who of this client's own keeps u from its hold: its mode and since
// when it holds; or false if that is not the reason.
func (t *Table) Ours(now proto.Now, u *Use) (quorum.Mode, time.Duration, bool) {
	s := u.share
	if len(s.holders) == 0 || !u.ours && !s.isHeld() {
		return 0, 0, false
	}
	h := s.holders[0]
	return h.mode, now.Mono - h.since, true
}

// Report tells how the claim stands that u waits for.
func (t *Table) Report(now proto.Now, u *Use) client.Report {
	if u.share.claim == nil {
		return client.Report{Mode: u.mode}
	}
	return t.core.Report(now, u.share.claim)
}

// HeldAt reports whether the use holds at a reading of the clocks that was not
// taken yet: what a holder that looked at its clock would find.
func (t *Table) HeldAt(now proto.Now, u *Use) bool {
	return u.state == Holding && t.core.HeldAt(now, u.share.claim)
}
