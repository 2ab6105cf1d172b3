// Package hold lets the goroutines of one client share claims: a pure machine
// between the driver and internal/client. Whoever of them waits for a name that
// another of them has gets it from that one, with a token of the claim's, and no
// message. Readers share one shared claim. When somebody waits for it elsewhere, it is
// passed on no more, or within bounds that the driver sets: then all who wait, here or
// there, go by their age at the nodes.
package hold

import (
	"math"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/sat"
	"github.com/qlock/qlock/internal/shrink"
	"github.com/qlock/qlock/internal/wire"
)

// EventKind is what became of a hold.
type EventKind uint8

const (
	Held     EventKind = iota // it holds, and has its token
	Lost                      // it held, and its claim was lost
	Failed                    // it will not hold
	Returned                  // it was the last to hold, and its claim was given back
	Wanted                    // it holds, and somebody else waits: told once, if it asked (Table.Wanted)
	Changed                   // it waits and is watched, and what it waits for may have changed
	Evicted                   // it holds, and its claim is to end: it is given back by Unlock
)

// Event tells the driver what became of a use.
type Event struct {
	Kind  EventKind
	Hold  *Hold
	First bool // Held: of all that its claim serves
	Votes int  // Held: those that its claim stood by; what follows in the same step may end it

	Eviction *client.Eviction // Lost, Failed: who wanted it, nil if nobody did
}

// Out collects what is to be done: messages, and what became of holds. The caller
// owns it, may reuse it, and clears it between steps.
type Out struct {
	client.Out
	Holds []Event
}

// Reset empties o and keeps its memory.
func (o *Out) Reset() {
	o.Out.Reset()
	clear(o.Holds)
	o.Holds = o.Holds[:0]
}

// State is where a hold is in its life.
type State uint8

const (
	Waiting State = iota
	Holding
	Over
)

// Hold is one goroutine's wish for a name, and then its hold. Its fields are the
// table's; a driver reads what methods give, and User, which is its own.
type Hold struct {
	User any

	shared        *sharedClaim
	mode          quorum.Mode
	try           bool
	note          string
	shortDeadline bool
	at            int64         // its age, by the wall clock
	since         time.Duration // of its hold, by the monotonic clock
	token         uint64
	state         State
	ours          bool // it failed because of another hold of this client
	watched       bool // it is told when what it waits for may have changed
	manual        bool // it is given back by its owner when its claim is evicted
	asksWanted    bool // it is to be told when somebody else waits, and was not yet
}

func (u *Hold) State() State  { return u.state }
func (u *Hold) Token() uint64 { return u.token }

// Claim is that which the hold waits for or has a part in, nil if it has none now.
func (u *Hold) Claim() *client.Claim { return u.shared.claim }

// sharedClaim is a claim and those who use it: the only one for its name, unless it is
// for a try.
type sharedClaim struct {
	resource string
	try      bool
	claim    *client.Claim // nil for moments only
	unused   bool          // the claim is held and nobody has used it yet
	last     uint64        // token given out last
	watched  bool          // some who waited are watched
	asked    bool          // some who held are to be told that others wait
	latest   *Hold         // to hold
	evicted  bool          // its claim is to end: it serves nobody any more
	givenUp  bool          // who waits has another shared claim: this one is given back
	holders  []*Hold       // one writer or any number of readers
	queue    []*Hold       // who waits, first come first
	room     [2]*Hold      // for one of each: mostly there are no more

	idle      time.Duration // the claim is kept for nobody until then; zero: it is not
	passUntil time.Duration // others wait for it, and it may be passed on until then; zero: nobody waits, or it may not
	passed    int           // how often it was since others wait
	timed     bool          // it is in the list of those that are passed on

	prev, next *sharedClaim // in the list of the idle, or in that of those that are passed on
}

// list is shared claims in the order in which their time is over.
type list struct{ first, last *sharedClaim }

func (l *list) add(s *sharedClaim) {
	if s.prev = l.last; s.prev != nil {
		s.prev.next = s
	} else {
		l.first = s
	}
	l.last = s
}

func (l *list) remove(s *sharedClaim) {
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		l.first = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	} else {
		l.last = s.prev
	}
	s.prev, s.next = nil, nil
}

func newSharedClaim(resource string) *sharedClaim {
	s := &sharedClaim{resource: resource}
	s.holders, s.queue = s.room[:0:1], s.room[1:1]
	return s
}

// Table is all holds of one client. It is not safe for concurrent use.
type Table struct {
	core      *client.Client
	retention time.Duration
	claims    map[string]*sharedClaim
	peak      int // of claims, for shrink.Map

	idle list

	passMost   int           // how often a claim is passed on that others wait for; 0: no bound
	passWithin time.Duration // and for how long; 0: no bound
	passing    list          // such claims
}

// New makes a table on core, which it has for itself from now on. A claim that
// nobody uses any more is kept for retention, or until somebody else waits for it.
func New(core *client.Client, retention time.Duration) *Table {
	return &Table{core: core, retention: retention, claims: map[string]*sharedClaim{}}
}

// PassOn lets a claim be passed on that others wait for: most times, and within so much
// time from when they are known to wait. Zero is no bound; two zeros, as at the start,
// are never.
func (t *Table) PassOn(most int, within time.Duration) { t.passMost, t.passWithin = most, within }

// Request is what a hold is for.
type Request struct {
	Resource      string
	Mode          quorum.Mode
	Try           bool   // it fails when it would have to wait for another
	ShortDeadline bool   // it gives up soon, and will want to know why
	Watch         bool   // it is told when what it waits for may have changed
	Manual        bool   // its owner gives it back when its claim is evicted
	At            int64  // its age, a wall clock in microseconds, if it is older than this call
	Note          string // for people
	User          any
}

// Lock wants a hold.
func (t *Table) Lock(now wire.Now, w Request, out *Out) *Hold {
	t.readClocks(now, out)
	resource, mode, try := w.Resource, w.Mode, w.Try
	u := &Hold{User: w.User, mode: mode, try: try, note: w.Note, shortDeadline: w.ShortDeadline, at: max(now.Wall, 0), watched: w.Watch, manual: w.Manual}
	if w.At > 0 {
		u.at = min(u.at, w.At)
	}
	s := t.claims[resource]
	if try && !t.mayTry(now, s, u) {
		if s != nil && s.idle > 0 { // a claim that nobody uses is in nobody's way //plant:idle-for-try
			t.end(now, s, out)
			s = nil
		}
		if s != nil && len(s.holders) > 0 && quorum.Conflicts(s.holders[0].mode, mode) {
			u.shared, u.state, u.ours = s, Over, true
			out.Holds = append(out.Holds, Event{Kind: Failed, Hold: u})
			return u
		}
		s = newSharedClaim(resource) // the nodes must say
		s.try = true
	} else if s == nil {
		s = newSharedClaim(resource)
		t.claims[resource] = s
	}
	u.shared = s
	s.enqueue(u, w.At > 0)
	t.wake(s)
	t.proceed(now, s, out)
	t.keep(now, s, out)
	t.drain(now, out)
	if u.watched && u.state == Waiting {
		t.watch(now, u, out)
	}
	return u
}

// keep has the nodes told that a claim has more than one user, and so that others
// who wait must be heard of.
func (t *Table) keep(now wire.Now, s *sharedClaim, out *Out) {
	if len(s.holders)+len(s.queue) > 1 && s.isHeld() && (len(s.queue) == 0 || t.suits(s, s.queue[0])) {
		t.core.Keep(now, s.claim, &out.Out)
	}
}

// mayTry reports whether a try can be decided here: it can have a part in what this
// client holds, and nobody stands before it.
func (t *Table) mayTry(now wire.Now, s *sharedClaim, u *Hold) bool {
	return s != nil && len(s.queue) == 0 && s.isHeld() && t.suits(s, u) && t.mayPass(now, s) &&
		(len(s.holders) == 0 || u.mode == quorum.Shared && s.holders[0].mode == quorum.Shared)
}

func (s *sharedClaim) isHeld() bool { return s.claim != nil && s.claim.State() == client.Holding } //plant:is-held

// suits reports whether u can be served under the shared claim: a writer's claim
// serves readers too.
func (t *Table) suits(s *sharedClaim, u *Hold) bool {
	return s.claim.Mode() == quorum.Exclusive || u.mode == quorum.Shared
}

// mayPass reports whether the claim may serve one more: its first, or when nobody
// waits for it elsewhere as far as the nodes know, or within the bounds for that.
func (t *Table) mayPass(now wire.Now, s *sharedClaim) bool {
	return !s.evicted && (s.unused || s.claim.Kept() /*plant:known-kept*/ && (!s.claim.Wanted() || t.inBounds(now, s)))
}

// inBounds reports whether a claim that others wait for may be passed on once more.
func (t *Table) inBounds(now wire.Now, s *sharedClaim) bool {
	return now.Mono < s.passUntil && (t.passMost == 0 || s.passed < t.passMost) //plant:in-bounds
}

// isDue reports whether others who wait for the claim are to have it next. While it has
// a holder the nodes have time to learn that it is kept.
func (t *Table) isDue(now wire.Now, s *sharedClaim) bool {
	return s.evicted || s.claim.Wanted() && (!t.inBounds(now, s) || len(s.holders) == 0 && !s.claim.Kept())
}

// boundPassing notes since when others wait for a claim that may be passed on all the same.
func (t *Table) boundPassing(now wire.Now, s *sharedClaim) {
	if t.passMost == 0 && t.passWithin == 0 || s.passUntil > 0 || s.givenUp || !s.isHeld() || !s.claim.Wanted() {
		return
	}
	s.passUntil = math.MaxInt64
	if t.passWithin > 0 {
		s.passUntil, s.timed = sat.Add(now.Mono, t.passWithin), true
		t.passing.add(s)
	}
}

// unboundPassing is for a claim that is passed on no more, and for the next one, which nobody
// waits for yet.
func (t *Table) unboundPassing(s *sharedClaim) {
	t.stopPassing(s)
	s.passUntil, s.passed = 0, 0
}

func (t *Table) stopPassing(s *sharedClaim) {
	if s.timed {
		s.timed = false
		t.passing.remove(s)
	}
}

// Unlock ends a hold, whether it holds or waits.
func (t *Table) Unlock(now wire.Now, u *Hold, out *Out) {
	t.readClocks(now, out)
	s := u.shared
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

func remove(list []*Hold, u *Hold) []*Hold {
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
func (t *Table) serve(now wire.Now, s *sharedClaim, out *Out) {
	for len(s.queue) > 0 && s.isHeld() {
		u := s.queue[0]
		conflict := len(s.holders) > 0 && quorum.Conflicts(s.holders[0].mode, u.mode)
		if conflict || !t.mayPass(now, s) || !t.suits(s, u) {
			return
		}
		token := s.last
		switch {
		case s.unused:
			token = s.claim.Token()
		case u.mode == quorum.Exclusive:
			var ok bool
			if token, ok = t.core.Next(now, s.claim, &out.Out); !ok { //plant:no-token
				t.core.Keep(now, s.claim, &out.Out)
				return // some are on their way, or the claim has just been lost
			}
		}
		if !s.unused && s.claim.Wanted() {
			s.passed++
		}
		out.Holds = append(out.Holds, Event{Kind: Held, Hold: u, First: s.unused, Votes: t.core.Votes(s.claim)})
		s.unused, s.last, s.latest = false, token, u //plant:served
		s.queue = remove(s.queue, u)
		s.holders = append(s.holders, u)
		u.state, u.token, u.since = Holding, token, now.Mono
		if u.manual {
			s.claim.LeaveEviction()
		}
	}
}

// proceed does all that can be done for a shared claim.
func (t *Table) proceed(now wire.Now, s *sharedClaim, out *Out) {
	t.boundPassing(now, s)
	t.serve(now, s, out)
	s.tell(t, out)
	if len(s.queue) > 0 && s.isHeld() && (t.isDue(now, s) || !t.suits(s, s.queue[0])) {
		t.part(now, s, out)
	}
	t.settle(now, s, out)
}

// part lets those who wait have a claim of their own, which stands in the nodes'
// queues by the age of the first of them, while the one that there is has holders
// yet: somebody waits elsewhere, or the first of them cannot be served by it.
func (t *Table) part(now wire.Now, s *sharedClaim, out *Out) {
	other := &sharedClaim{resource: s.resource, queue: s.queue, watched: s.watched}
	for _, u := range other.queue {
		u.shared = other
	}
	s.queue, s.givenUp = nil, true
	t.unboundPassing(s)
	t.claims[s.resource] = other
	t.settle(now, other, out)
}

// settle gives back a claim that nobody wants, or that does not suit the
// next, and asks for another.
func (t *Table) settle(now wire.Now, s *sharedClaim, out *Out) {
	if len(s.holders) > 0 {
		return
	}
	if s.claim == nil && !s.try {
		t.separateTries(now, s, out)
	}
	switch {
	case len(s.queue) == 0 && s.isHeld() && t.retention > 0 && !s.claim.Wanted() && !s.try && !s.givenUp && !s.evicted:
		t.retain(now, s)
		return
	case len(s.queue) == 0:
		t.end(now, s, out)
		return
	case s.claim != nil && !s.isHeld() && s.claim.Mode() != s.queue[0].mode:
		t.giveBack(now, s, out) // the first in the queue gave up, and the next wants another
	}
	if s.claim == nil {
		s.claim = t.core.Claim(now, client.Request{
			Resource: s.resource, Mode: s.queue[0].mode, Try: s.try, At: s.queue[0].at,
			Keep: !s.try && (t.retention > 0 || len(s.queue) > 1), Note: s.queue[0].note, ShortDeadline: s.queue[0].shortDeadline, Watch: s.watched, User: s,
		}, &out.Out)
	}
}

// separateTries gives tries claims of their own: they were to be served by a claim that there
// is no more, and are not to wait like others.
func (t *Table) separateTries(now wire.Now, s *sharedClaim, out *Out) {
	for i := 0; i < len(s.queue); {
		u := s.queue[i]
		if !u.try {
			i++
			continue
		}
		s.queue = remove(s.queue, u)
		u.shared = newSharedClaim(s.resource)
		u.shared.try, u.shared.queue = true, append(u.shared.queue, u)
		t.settle(now, u.shared, out)
	}
}

func (t *Table) giveBack(now wire.Now, s *sharedClaim, out *Out) {
	if s.claim != nil {
		t.core.Release(now, s.claim, &out.Out)
		s.claim = nil
	}
	t.unboundPassing(s)
	if s.latest != nil {
		out.Holds = append(out.Holds, Event{Kind: Returned, Hold: s.latest})
	}
	s.unused, s.latest, s.evicted = false, nil, false
}

// end gives back a claim that nobody uses, and is over with its record.
func (t *Table) end(now wire.Now, s *sharedClaim, out *Out) {
	t.giveBack(now, s, out)
	t.forget(s)
}

func (t *Table) forget(s *sharedClaim) {
	t.wake(s)
	if t.claims[s.resource] == s {
		delete(t.claims, s.resource)
		t.claims = shrink.Map(t.claims, &t.peak)
	}
}

// drain takes what the client's step brought about, until it brings no more.
func (t *Table) drain(now wire.Now, out *Out) {
	for i := 0; i < len(out.Events); i++ {
		e := out.Events[i]
		s := e.Claim.User.(*sharedClaim)
		if s.claim != e.Claim {
			continue // given back meanwhile
		}
		switch e.Kind {
		case client.Held:
			s.unused = true
			t.proceed(now, s, out)
			t.keep(now, s, out)
		case client.Lost:
			s.claim, s.unused, s.evicted = nil, false, false //plant:lost
			t.unboundPassing(s)
			if len(s.holders) > 0 {
				s.latest = nil // what becomes of them is told
			}
			t.wake(s)
			for _, u := range s.holders {
				u.state = Over
				out.Holds = append(out.Holds, Event{Kind: Lost, Hold: u, Eviction: e.Claim.Eviction()})
			}
			s.holders = nil
			t.settle(now, s, out)
		case client.Failed:
			for _, u := range s.queue {
				u.state = Over
				out.Holds = append(out.Holds, Event{Kind: Failed, Hold: u, Eviction: e.Claim.Eviction()})
			}
			s.queue = nil
			t.forget(s) // its claim stays, to be reported on
		case client.Wanted:
			if s.idle > 0 {
				t.end(now, s, out)
			} else {
				t.proceed(now, s, out)
			}
		case client.TokensReserved:
			t.proceed(now, s, out)
		case client.Changed:
			s.tellWatchers(out)
		case client.Evicted:
			t.evicted(now, s, out)
		}
	}
	out.Events = out.Events[:0]
}

// retain keeps a claim that nobody uses.
func (t *Table) retain(now wire.Now, s *sharedClaim) {
	if s.idle > 0 {
		return
	}
	s.idle = sat.Add(now.Mono, t.retention)
	t.idle.add(s)
}

// wake takes a shared claim from among the idle.
func (t *Table) wake(s *sharedClaim) {
	if s.idle == 0 {
		return
	}
	s.idle = 0
	t.idle.remove(s)
}

// readClocks reads the clocks before anything is decided: what is lost is known to be
// (C7).
func (t *Table) readClocks(now wire.Now, out *Out) {
	t.core.Tick(now, &out.Out)
	t.drain(now, out)
}

// Tick does what time alone brings.
func (t *Table) Tick(now wire.Now, out *Out) {
	t.readClocks(now, out)
	for s := t.idle.first; s != nil && s.idle <= now.Mono; s = t.idle.first {
		t.end(now, s, out)
	}
	for s := t.passing.first; s != nil && s.passUntil <= now.Mono; s = t.passing.first {
		t.stopPassing(s)
		t.proceed(now, s, out) // who waits here goes by age now, with a claim at the nodes
	}
	t.drain(now, out)
}

// Wait is how long until Tick must be called.
func (t *Table) Wait(now wire.Now) (time.Duration, bool) {
	d, ok := t.core.Wait()
	if s := t.idle.first; s != nil {
		if rest := max(s.idle-now.Mono, 0); !ok || rest < d {
			d, ok = rest, true
		}
	}
	if s := t.passing.first; s != nil {
		if rest := max(s.passUntil-now.Mono, 0); !ok || rest < d {
			d, ok = rest, true
		}
	}
	return d, ok
}

// Handle takes an answer of a node.
func (t *Table) Handle(now wire.Now, a *wire.Answer, out *Out) {
	t.core.Handle(now, a, &out.Out)
	t.drain(now, out)
}

// Disconnected tells the client that its connection is away.
func (t *Table) Disconnected(now wire.Now, out *Out) {
	t.core.Disconnected(now, &out.Out)
	t.drain(now, out)
}

// Reconnected makes good at once what was lost while the connection was away.
func (t *Table) Reconnected(now wire.Now, out *Out) {
	t.core.Reconnected(now, &out.Out)
	t.drain(now, out)
}

// SetCluster takes another configuration.
func (t *Table) SetCluster(now wire.Now, cluster wire.Config, out *Out) {
	t.core.SetCluster(now, cluster, &out.Out)
	t.drain(now, out)
}

// Renew gives the client another instance: see client.Client.Renew.
func (t *Table) Renew(now wire.Now, instance uuid.UUID, out *Out) {
	t.core.Renew(now, instance, &out.Out)
	t.drain(now, out)
}

// Claims is the number of claims, used or kept.
func (t *Table) Claims() int { return t.core.Claims() }

// All lists the holds that are not over.
func (t *Table) All() []*Hold {
	var all []*Hold
	for _, cl := range t.core.All() {
		s := cl.User.(*sharedClaim)
		all = append(append(all, s.holders...), s.queue...)
	}
	return all
}

// ReleaseIdle gives back what nobody uses, at most so many. It reports whether there is more.
func (t *Table) ReleaseIdle(now wire.Now, most int, out *Out) (more bool) {
	for ; most > 0 && t.idle.first != nil; most-- {
		t.end(now, t.idle.first, out)
	}
	t.drain(now, out)
	return t.idle.first != nil
}

// Ours tells who of this client's own keeps u from its hold: its mode and since
// when it holds; or false if that is not the reason.
func (t *Table) Ours(now wire.Now, u *Hold) (quorum.Mode, time.Duration, bool) {
	s := u.shared
	if len(s.holders) == 0 || !u.ours && !s.isHeld() {
		return 0, 0, false
	}
	h := s.holders[0]
	return h.mode, now.Mono - h.since, true
}

// Report tells how the claim stands that u waits for.
func (t *Table) Report(now wire.Now, u *Hold) client.Report {
	if u.shared.claim == nil {
		return client.Report{Mode: u.mode}
	}
	return t.core.Report(now, u.shared.claim)
}

// HeldAt reports whether the hold holds at a reading of the clocks that was not
// taken yet: what a holder that looked at its clock would find.
func (t *Table) HeldAt(now wire.Now, u *Hold) bool {
	return u.state == Holding && t.core.HeldAt(now, u.shared.claim)
}
