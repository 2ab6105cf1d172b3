// Package local lets the goroutines of one client share claims: a pure machine
// between the driver and internal/client. Whoever of them waits for a name that
// another of them has gets it from that one, with a token of the claim's, and no
// message. Readers share one shared claim. When somebody waits for it elsewhere, it is
// passed on no more, or within bounds that the driver sets: then all who wait, here or
// there, go by their age at the nodes.
package local

import (
	"math"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/proto"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/sat"
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
	Votes int  // Held: those that its claim stood by; what follows in the same step may end it

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
	try   bool
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

	idle      time.Duration // the claim is kept for nobody until then; zero: it is not
	passUntil time.Duration // others wait for it, and it may be passed on until then; zero: nobody waits, or it may not
	passed    int           // how often it was since others wait
	timed     bool          // it is in the list of those that are passed on

	prev, next *share // in the list of the idle, or in that of those that are passed on
}

// list is shares in the order in which their time is over.
type list struct{ first, last *share }

func (l *list) add(s *share) {
	if s.prev = l.last; s.prev != nil {
		s.prev.next = s
	} else {
		l.first = s
	}
	l.last = s
}

func (l *list) remove(s *share) {
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

	idle list

	passMost   int           // how often a claim is passed on that others wait for; 0: no bound
	passWithin time.Duration // and for how long; 0: no bound
	passing    list          // such claims
}

// New makes a table on core, which it has for itself from now on. A claim that
// nobody uses any more is kept for retention, or until somebody else waits for it.
func New(core *client.Client, retention time.Duration) *Table {
	return &Table{core: core, retention: retention, shares: map[string]*share{}}
}

// PassOn lets a claim be passed on that others wait for: most times, and within so much
// time from when they are known to wait. Zero is no bound; two zeros, as at the start,
// are never.
func (t *Table) PassOn(most int, within time.Duration) { t.passMost, t.passWithin = most, within }

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
	u := &Use{User: w.User, mode: mode, try: try, note: w.Note, hasty: w.Hasty, at: max(now.Wall, 0)}
	s := t.shares[resource]
	if try && !t.mayTry(now, s, u) {
		if s != nil && s.idle > 0 { // a claim that nobody uses is in nobody's way //plant:idle-for-try
			t.end(now, s, out)
			s = nil
		}
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
func (t *Table) mayTry(now proto.Now, s *share, u *Use) bool {
	return s != nil && len(s.queue) == 0 && s.isHeld() && t.suits(s, u) && t.mayPass(now, s) &&
		(len(s.holders) == 0 || u.mode == quorum.Shared && s.holders[0].mode == quorum.Shared)
}

func (s *share) isHeld() bool { return s.claim != nil && s.claim.State() == client.Holding } //plant:is-held

// suits reports whether u can be served under the share's claim: a writer's claim
// serves readers too.
func (t *Table) suits(s *share, u *Use) bool {
	return s.claim.Mode() == quorum.Exclusive || u.mode == quorum.Shared
}

// mayPass reports whether the claim may serve one more: its first, or when nobody
// waits for it elsewhere as far as the nodes know, or within the bounds for that.
func (t *Table) mayPass(now proto.Now, s *share) bool {
	return s.fresh || s.claim.Kept() /*plant:known-kept*/ && (!s.claim.Wanted() || t.inBounds(now, s))
}

// inBounds reports whether a claim that others wait for may be passed on once more.
func (t *Table) inBounds(now proto.Now, s *share) bool {
	return now.Mono < s.passUntil && (t.passMost == 0 || s.passed < t.passMost) //plant:in-bounds
}

// isDue reports whether others who wait for the claim are to have it next. While it has
// a holder the nodes have time to learn that it is kept.
func (t *Table) isDue(now proto.Now, s *share) bool {
	return s.claim.Wanted() && (!t.inBounds(now, s) || len(s.holders) == 0 && !s.claim.Kept())
}

// heed notes since when others wait for a claim that may be passed on all the same.
func (t *Table) heed(now proto.Now, s *share) {
	if t.passMost == 0 && t.passWithin == 0 || s.passUntil > 0 || s.parted || !s.isHeld() || !s.claim.Wanted() {
		return
	}
	s.passUntil = math.MaxInt64
	if t.passWithin > 0 {
		s.passUntil, s.timed = sat.Add(now.Mono, t.passWithin), true
		t.passing.add(s)
	}
}

// unheed is for a claim that is passed on no more, and for the next one, which nobody
// waits for yet.
func (t *Table) unheed(s *share) {
	t.untime(s)
	s.passUntil, s.passed = 0, 0
}

func (t *Table) untime(s *share) {
	if s.timed {
		s.timed = false
		t.passing.remove(s)
	}
}

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
		if conflict || !t.mayPass(now, s) || !t.suits(s, u) {
			return
		}
		token := s.last
		switch {
		case s.fresh:
			token = s.claim.Token()
		case u.mode == quorum.Exclusive:
			var ok bool
			if token, ok = t.core.Next(now, s.claim, &out.Out); !ok { //plant:no-token
				t.core.Keep(now, s.claim, &out.Out)
				return // some are on their way, or the claim has just been lost
			}
		}
		if !s.fresh && s.claim.Wanted() {
			s.passed++
		}
		out.Uses = append(out.Uses, Event{Kind: Held, Use: u, First: s.fresh, Votes: t.core.Votes(s.claim)})
		s.fresh, s.last, s.latest = false, token, u //plant:served
		s.queue = remove(s.queue, u)
		s.holders = append(s.holders, u)
		u.state, u.token, u.since = Holding, token, now.Mono
	}
}

// proceed does all that can be done for a share.
func (t *Table) proceed(now proto.Now, s *share, out *Out) {
	t.heed(now, s)
	t.serve(now, s, out)
	if len(s.queue) > 0 && s.isHeld() && (t.isDue(now, s) || !t.suits(s, s.queue[0])) {
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
	t.unheed(s)
	t.shares[s.resource] = other
	t.settle(now, other, out)
}

// settle gives back a claim that nobody has a use for, or that does not suit the
// next, and asks for another.
func (t *Table) settle(now proto.Now, s *share, out *Out) {
	if len(s.holders) > 0 {
		return
	}
	if s.claim == nil && !s.try {
		t.apart(now, s, out)
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

// apart gives tries claims of their own: they were to be served by a claim that there
// is no more, and are not to wait like others.
func (t *Table) apart(now proto.Now, s *share, out *Out) {
	for i := 0; i < len(s.queue); {
		u := s.queue[i]
		if !u.try {
			i++
			continue
		}
		s.queue = remove(s.queue, u)
		u.share = newShare(s.resource)
		u.share.try, u.share.queue = true, append(u.share.queue, u)
		t.settle(now, u.share, out)
	}
}

func (t *Table) giveBack(now proto.Now, s *share, out *Out) {
	if s.claim != nil {
		t.core.Release(now, s.claim, &out.Out)
		s.claim = nil
	}
	t.unheed(s)
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
			s.claim, s.fresh = nil, false //plant:lost
			t.unheed(s)
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
	s.idle = sat.Add(now.Mono, t.retention)
	t.idle.add(s)
}

// wake takes a share from among the idle.
func (t *Table) wake(s *share) {
	if s.idle == 0 {
		return
	}
	s.idle = 0
	t.idle.remove(s)
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
	for s := t.idle.first; s != nil && s.idle <= now.Mono; s = t.idle.first {
		t.end(now, s, out)
	}
	for s := t.passing.first; s != nil && s.passUntil <= now.Mono; s = t.passing.first {
		t.untime(s)
		t.proceed(now, s, out) // who waits here goes by age now, with a claim at the nodes
	}
	t.drain(now, out)
}

// Wait is how long until Tick must be called.
func (t *Table) Wait(now proto.Now) (time.Duration, bool) {
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
func (t *Table) Handle(now proto.Now, a *proto.Answer, out *Out) {
	t.core.Handle(now, a, &out.Out)
	t.drain(now, out)
}

// Disconnected tells the client that its connection is away.
func (t *Table) Disconnected(now proto.Now, out *Out) {
	t.core.Disconnected(now, &out.Out)
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

// Renew gives the client another instance: see client.Client.Renew.
func (t *Table) Renew(now proto.Now, instance uuid.UUID, out *Out) {
	t.core.Renew(now, instance, &out.Out)
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
	for ; most > 0 && t.idle.first != nil; most-- {
		t.end(now, t.idle.first, out)
	}
	t.drain(now, out)
	return t.idle.first != nil
}

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
