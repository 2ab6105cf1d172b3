// Package hold lets the goroutines of one client share claims. It is a pure state machine
// between the driver and internal/client. A goroutine that waits for a name that another
// goroutine of the client holds gets it from that one, with a token of the claim and
// without a message to the nodes. Readers share one shared claim.
//
// When another client waits for the claim, the claim is no longer passed on, or only
// within bounds that the driver sets. Then all waiters, here and elsewhere, are served by
// their age at the nodes.
//
// All values are for use by one goroutine at a time.
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

// EventKind says what happened to a hold.
type EventKind uint8

const (
	// Held: it holds the lock and has its token.
	Held EventKind = iota
	// Lost: it held the lock, or was kept, and its claim was lost or evicted.
	Lost
	// Failed: it will not hold the lock.
	Failed
	// Returned: it was the last to hold the lock, and its claim was released.
	Returned
	// Wanted: it holds the lock, and somebody else waits. Sent once, if asked for
	// (Table.Wanted).
	Wanted
	// Changed: it waits and is watched, and what it waits for may have changed.
	Changed
	// Expired: it has held the lock for Request.AtMost. Its owner ends what runs under the
	// lock, and then calls Unlock.
	Expired
)

// Event tells the driver what happened to a hold.
type Event struct {
	Kind  EventKind
	Hold  *Hold
	First bool // with Held: it is the first that its claim serves
	Left  bool // with Lost: its claim remains until its owner calls Unlock (Request.Manual)
	// Votes is set with Held: how many votes of the claim stood then. A later event of the
	// same step may end the hold.
	Votes int

	// Eviction is set with Lost and Failed if the claim was evicted.
	Eviction *client.Eviction
}

// Out collects the messages to send and what happened to holds. The caller owns it, may
// reuse it, and calls Reset between steps.
type Out struct {
	client.Out
	Holds []Event
}

// Reset empties o for reuse and keeps its memory.
func (o *Out) Reset() {
	o.Out.Reset()
	clear(o.Holds)
	o.Holds = o.Holds[:0]
}

// State is the state of a hold.
type State uint8

const (
	// Waiting: the hold does not have the lock yet.
	Waiting State = iota
	// Holding: the hold has the lock.
	Holding
	// Kept: the hold is unlocked, and its claim stays for Request.AtLeast.
	Kept
	// Left: the hold was lost, and its claim remains until Unlock (Request.Manual).
	Left
	// Over: the hold was lost, failed, or was unlocked.
	Over
)

// Hold is one goroutine's request for a lock, and then its part in it. All fields but
// User belong to the table; a driver reads them by methods. Like its Table, a Hold is not
// safe for concurrent use.
type Hold struct {
	// User belongs to the driver; the table does not touch it.
	User any

	shared        *sharedClaim
	mode          quorum.Mode
	try           bool
	note          string
	shortDeadline bool
	at            int64         // its age by the wall clock, µs
	since         time.Duration // when it got the lock, by the monotonic clock
	token         uint64
	state         State
	ours          bool // it failed because of another hold of this client
	watched       bool // it is told when what it waits for may have changed
	manual        bool // its owner releases it when it is lost
	asksWanted    bool // it must be told when somebody else waits, and was not yet
	span          *span
}

// State returns the state of the hold.
func (u *Hold) State() State { return u.state }

// Token returns the fencing token, or 0 if the hold never had the lock.
func (u *Hold) Token() uint64 { return u.token }

// Claim returns the claim that the hold waits for or takes part in, or nil if there is
// none now.
func (u *Hold) Claim() *client.Claim { return u.shared.claim }

// sharedClaim is a claim and the holds that use it. For each name, new holds use one of
// them (Table.claims). Each try that the nodes must decide has another, and one that is
// given up remains until its holders are done.
type sharedClaim struct {
	resource string
	try      bool
	claim    *client.Claim // nil only within a step
	unused   bool          // the claim is held, and nobody has used it yet
	last     uint64        // token given out last
	watched  bool          // some waiting holds are watched
	asked    bool          // some holders must be told that others wait
	latest   *Hold         // the latest holder
	ended    bool          // its claim was lost or evicted, and serves nobody any more
	givenUp  bool          // waiting holds use another shared claim, and this one ends
	holders  []*Hold       // one writer or any number of readers
	queue    []*Hold       // waiting holds in order of service
	room     [2]*Hold      // initial memory for one of each, which is usually enough

	idle time.Duration // the unused claim is kept until then; zero: it is in use
	// Others wait for the claim, and it may be passed on until passUntil; zero: nobody waits,
	// or it may not be passed on.
	passUntil time.Duration
	passed    int  // how often it was passed on since others wait
	timed     bool // it is in Table.passing

	prev, next *sharedClaim // in Table.idle or Table.passing
}

// list is a list of shared claims, ordered by the time at which they are due.
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

// Table manages all holds of one client. It is not safe for concurrent use.
type Table struct {
	core      *client.Client
	retention time.Duration
	claims    map[string]*sharedClaim
	peak      int // largest size of claims, for shrink.Map

	idle list

	// A claim may be passed on passMost times and for passWithin while others wait for it; 0:
	// no bound.
	passMost   int
	passWithin time.Duration
	// passing lists the claims that are passed on while others wait.
	passing list

	timers timers
}

// New returns a table on top of core, which nothing else may use from then on. A claim
// that nobody uses is kept for retention, or until another client waits for it.
func New(core *client.Client, retention time.Duration) *Table {
	return &Table{core: core, retention: retention, claims: map[string]*sharedClaim{}}
}

// PassOn lets a claim be passed on while other clients wait for it: at most most times,
// and within that time after it became known that they wait. Zero means no bound. Both
// zero, which is the default, means never.
func (t *Table) PassOn(most int, within time.Duration) { t.passMost, t.passWithin = most, within }

// Request describes a hold to make.
type Request struct {
	Resource      string
	Mode          quorum.Mode
	Try           bool // it fails instead of waiting for another
	ShortDeadline bool // the caller will give up soon and want to know why
	Watch         bool // it is told when what it waits for may have changed
	// With Manual, when the lock is lost its claim is released by Unlock and not before,
	// unless a lease passes. See client.Claim.LeaveRelease.
	Manual  bool
	AtLeast time.Duration // how long after the grant the claim stays, even if it is unlocked earlier
	AtMost  time.Duration // how long after the grant it gets an Expired event; 0: never
	// At is the age of the hold, a wall clock in microseconds. It counts if it is above 0 and
	// earlier than this call.
	At   int64
	Note string // for people
	User any
}

// Lock requests a lock. It returns the hold at once; events tell what becomes of it. Some
// of them may be in out already.
func (t *Table) Lock(now wire.Now, w Request, out *Out) *Hold {
	t.readClocks(now, out)
	resource, mode, try := w.Resource, w.Mode, w.Try
	u := &Hold{User: w.User, mode: mode, try: try, note: w.Note, shortDeadline: w.ShortDeadline, at: max(now.Wall, 0), watched: w.Watch, manual: w.Manual}
	u.span = newSpan(u, &w)
	if w.At > 0 {
		u.at = min(u.at, w.At)
	}
	s := t.claims[resource]
	if try && !t.mayTry(now, s, u) {
		if s != nil && s.idle > 0 { // an unused claim must not block its own client //plant:idle-for-try
			t.end(now, s, out)
			s = nil
		}
		if s != nil && len(s.holders) > 0 && quorum.Conflicts(s.holders[0].mode, mode) {
			u.shared, u.state, u.ours = s, Over, true
			out.Holds = append(out.Holds, Event{Kind: Failed, Hold: u})
			return u
		}
		s = newSharedClaim(resource) // only the nodes can decide the try
		s.try = true
	} else if s == nil {
		s = newSharedClaim(resource)
		t.claims[resource] = s
	}
	u.shared = s
	s.enqueue(u, w.At > 0)
	if w.At > 0 && s.queue[0] == u && s.claim != nil && s.claim.State() == client.Waiting && u.at < s.claim.Made() {
		t.giveBack(now, s, out) // the next claim has its age //plant:claim-of-an-age
	}
	t.wake(s)
	t.proceed(now, s, out)
	t.keep(now, s, out)
	t.drain(now, out)
	if u.watched && u.state == Waiting {
		t.watch(now, u, out)
	}
	return u
}

// keep tells the nodes that several holds use the claim, so that they report when others
// wait.
func (t *Table) keep(now wire.Now, s *sharedClaim, out *Out) {
	if len(s.holders)+len(s.queue) > 1 && s.isHeld() && (len(s.queue) == 0 || t.suits(s, s.queue[0])) {
		t.core.Keep(now, s.claim, &out.Out)
	}
}

// mayTry reports whether a try can be served by the claim that this client holds, with
// nobody before it.
func (t *Table) mayTry(now wire.Now, s *sharedClaim, u *Hold) bool {
	return s != nil && len(s.queue) == 0 && s.isHeld() && t.suits(s, u) && t.mayPass(now, s) &&
		(len(s.holders) == 0 || u.mode == quorum.Shared && s.holders[0].mode == quorum.Shared)
}

func (s *sharedClaim) isHeld() bool { return s.claim != nil && s.claim.State() == client.Holding } //plant:is-held

// suits reports whether the shared claim can serve u. An exclusive claim also serves
// readers.
func (t *Table) suits(s *sharedClaim, u *Hold) bool {
	return s.claim.Mode() == quorum.Exclusive || u.mode == quorum.Shared
}

// mayPass reports whether the claim may serve one more hold: if nobody has used it yet,
// if the nodes know of no other client that waits for it, or within the bounds for
// passing on.
func (t *Table) mayPass(now wire.Now, s *sharedClaim) bool {
	return !s.ended && (s.unused || s.claim.Kept() /*plant:known-kept*/ && (!s.claim.Wanted() || t.inBounds(now, s)))
}

// inBounds reports whether a claim that others wait for may be passed on once more.
func (t *Table) inBounds(now wire.Now, s *sharedClaim) bool {
	return now.Mono < s.passUntil && (t.passMost == 0 || s.passed < t.passMost) //plant:in-bounds
}

// isDue reports whether the claim must go to other clients that wait for it. While it has
// a holder, the nodes still have time to learn that it is kept.
func (t *Table) isDue(now wire.Now, s *sharedClaim) bool {
	return s.ended || s.claim.Wanted() && (!t.inBounds(now, s) || len(s.holders) == 0 && !s.claim.Kept())
}

// boundPassing starts the bounds of a claim that may be passed on, once others wait for
// it.
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

// unboundPassing clears the bounds of a claim that is no longer passed on. They do not
// apply to the next claim, which nobody waits for yet.
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

// Unlock ends a hold, whether it has the lock, waits, or has lost a lock that it releases
// itself. Its claim may have to stay (Request.AtLeast). Unlock does nothing if the hold is
// kept already or over.
func (t *Table) Unlock(now wire.Now, u *Hold, out *Out) {
	t.readClocks(now, out)
	if left := t.Keeps(now, u); left > 0 {
		u.state = Kept
		t.timers.set(u.span, sat.Add(now.Mono, left))
		return
	}
	if u.state != Kept {
		t.drop(now, u, out)
	}
	t.drain(now, out)
}

// Drop ends a hold as Unlock does, also if its claim was to stay.
func (t *Table) Drop(now wire.Now, u *Hold, out *Out) {
	t.readClocks(now, out)
	t.drop(now, u, out)
	t.drain(now, out)
}

func (t *Table) drop(now wire.Now, u *Hold, out *Out) {
	s := u.shared
	switch u.state {
	case Waiting:
		s.queue = remove(s.queue, u)
	case Holding, Kept, Left:
		s.holders = remove(s.holders, u)
	default:
		return
	}
	u.state = Over
	t.timers.remove(u.span)
	t.proceed(now, s, out)
}

func remove(list []*Hold, u *Hold) []*Hold {
	i := len(list) - 1
	if list[i] != u { // the last one in the list goes first when many give up in reverse order
		i = slices.Index(list, u)
	}
	if i == 0 { // the common case: nothing behind it has to move
		list[0] = nil
		if len(list) == 1 {
			return list[:0] // keep the memory for the next one
		}
		return list[1:]
	}
	return slices.Delete(list, i, i+1)
}

// serve gives the lock to the head of the queue as long as nothing conflicts.
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
				return // more tokens are on their way, or the claim was just lost
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
		t.held(u)
		if u.manual {
			s.claim.LeaveRelease()
		}
	}
}

// proceed does everything that is possible now for a shared claim.
func (t *Table) proceed(now wire.Now, s *sharedClaim, out *Out) {
	t.boundPassing(now, s)
	t.serve(now, s, out)
	s.tell(t, out)
	if len(s.queue) > 0 && (s.isHeld() && (t.isDue(now, s) || !t.suits(s, s.queue[0])) || s.ended && len(s.holders) > 0) {
		t.part(now, s, out)
	}
	t.settle(now, s, out)
}

// part gives the waiting holds a claim of their own while the present one still has
// holders. At the nodes it is queued by the age of the first of them. The reason is that
// other clients wait, or that the present claim cannot serve the first one.
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

// settle releases a claim that nobody wants, or that does not suit the next hold, and
// requests another one if holds wait.
func (t *Table) settle(now wire.Now, s *sharedClaim, out *Out) {
	if len(s.holders) > 0 {
		return
	}
	if s.ended {
		t.giveBack(now, s, out)
	}
	if s.claim == nil && !s.try {
		t.separateTries(now, s, out)
	}
	switch {
	case len(s.queue) == 0 && s.isHeld() && t.retention > 0 && !s.claim.Wanted() && !s.try && !s.givenUp && !s.ended:
		t.retain(now, s)
		return
	case len(s.queue) == 0:
		t.end(now, s, out)
		return
	case s.claim != nil && !s.isHeld() && s.claim.Mode() != s.queue[0].mode:
		// The first in the queue gave up, and the next one needs another mode.
		t.giveBack(now, s, out)
	}
	if s.claim == nil {
		s.claim = t.core.Claim(now, client.Request{
			Resource: s.resource, Mode: s.queue[0].mode, Try: s.try, At: s.queue[0].at,
			Keep: !s.try && (t.retention > 0 || len(s.queue) > 1), Note: s.queue[0].note, ShortDeadline: s.queue[0].shortDeadline, Watch: s.watched, User: s,
		}, &out.Out)
	}
}

// separateTries gives tries claims of their own. They were to be served by a claim that
// is gone, and must not wait as other holds do.
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
	s.unused, s.latest, s.ended = false, nil, false
}

// end releases a claim that nobody uses, and removes its record.
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

// drain processes the events of the client until there are no more.
func (t *Table) drain(now wire.Now, out *Out) {
	for i := 0; i < len(out.Events); i++ {
		e := out.Events[i]
		s := e.Claim.User.(*sharedClaim)
		if s.claim != e.Claim {
			continue // released meanwhile
		}
		switch e.Kind {
		case client.Held:
			s.unused = true
			t.proceed(now, s, out)
			t.keep(now, s, out)
		case client.Lost, client.Evicted:
			t.lost(now, s, out) //plant:lost
		case client.Failed:
			for _, u := range s.queue {
				u.state = Over
				out.Holds = append(out.Holds, Event{Kind: Failed, Hold: u, Eviction: e.Claim.Eviction()})
			}
			s.queue = nil
			t.forget(s) // its claim stays, for reports
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

// wake removes a shared claim from the idle list.
func (t *Table) wake(s *sharedClaim) {
	if s.idle == 0 {
		return
	}
	s.idle = 0
	t.idle.remove(s)
}

// readClocks makes the client read the clocks before anything is decided, so that a lost
// claim is known to be lost (C7).
func (t *Table) readClocks(now wire.Now, out *Out) {
	t.core.Tick(now, &out.Out)
	t.drain(now, out)
}

// Tick does what is due: it ends claims that were lost or kept long enough, and makes the
// client ask and refresh.
func (t *Table) Tick(now wire.Now, out *Out) {
	t.readClocks(now, out)
	for s := t.idle.first; s != nil && s.idle <= now.Mono; s = t.idle.first {
		t.end(now, s, out)
	}
	for s := t.passing.first; s != nil && s.passUntil <= now.Mono; s = t.passing.first {
		t.stopPassing(s)
		t.proceed(now, s, out) // waiting holds now request a claim of their own age
	}
	t.runTimers(now, out)
	t.drain(now, out)
}

// Wait returns how long until Tick must be called, and false if it need not be. The same
// condition as for client.Client.Wait applies.
func (t *Table) Wait(now wire.Now) (time.Duration, bool) {
	d, ok := t.core.Wait(now)
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
	if len(t.timers) > 0 {
		if rest := max(t.timers[0].due-now.Mono, 0); !ok || rest < d {
			d, ok = rest, true
		}
	}
	return d, ok
}

// Handle processes an answer of a node.
func (t *Table) Handle(now wire.Now, a *wire.Answer, out *Out) {
	t.core.Handle(now, a, &out.Out)
	t.drain(now, out)
}

// Disconnected notes that the connection is down: see client.Client.Disconnected.
func (t *Table) Disconnected(now wire.Now, out *Out) {
	t.core.Disconnected(now, &out.Out)
	t.drain(now, out)
}

// Reconnected notes that the connection is up again: see client.Client.Reconnected.
func (t *Table) Reconnected(now wire.Now, out *Out) {
	t.core.Reconnected(now, &out.Out)
	t.drain(now, out)
}

// SetCluster switches to another configuration: see client.Client.SetCluster.
func (t *Table) SetCluster(now wire.Now, cluster wire.Config, out *Out) {
	t.core.SetCluster(now, cluster, &out.Out)
	t.drain(now, out)
}

// Renew gives the client another instance: see client.Client.Renew.
func (t *Table) Renew(now wire.Now, instance uuid.UUID, out *Out) {
	t.core.Renew(now, instance, &out.Out)
	t.drain(now, out)
}

// Claims returns the number of claims, used or kept.
func (t *Table) Claims() int { return t.core.Claims() }

// All returns the holds that are not over.
func (t *Table) All() []*Hold {
	var all []*Hold
	for _, cl := range t.core.All() {
		s := cl.User.(*sharedClaim)
		all = append(append(all, s.holders...), s.queue...)
	}
	return all
}

// ReleaseIdle releases at most most claims that nobody uses, and reports whether there
// are more.
func (t *Table) ReleaseIdle(now wire.Now, most int, out *Out) (more bool) {
	for ; most > 0 && t.idle.first != nil; most-- {
		t.end(now, t.idle.first, out)
	}
	t.drain(now, out)
	return t.idle.first != nil
}

// Own describes the hold of this client that keeps another one from the lock.
type Own struct {
	Mode quorum.Mode
	For  time.Duration // since it got the lock
	// Kept is how much longer it keeps others out although it is unlocked (Request.AtLeast).
	Kept time.Duration
	Left bool // it was lost, and its owner has not released it (Request.Manual)
}

// Ours returns this client's hold that keeps u from the lock, or false if none does.
func (t *Table) Ours(now wire.Now, u *Hold) (Own, bool) {
	s := u.shared
	if len(s.holders) == 0 || !u.ours && !s.isHeld() {
		return Own{}, false
	}
	h := s.holders[0]
	for _, o := range s.holders { // one that is in use is the better reason
		if o.state == Holding {
			h = o
			break
		}
	}
	own := Own{Mode: h.mode, For: now.Mono - h.since, Left: h.state == Left}
	if h.state == Kept {
		own.Kept = t.Keeps(now, h)
	}
	return own, true
}

// Report returns the state of the claim that u waits for.
func (t *Table) Report(now wire.Now, u *Hold) client.Report {
	if u.shared.claim == nil {
		return client.Report{Mode: u.mode}
	}
	return t.core.Report(now, u.shared.claim)
}

// HeldAt reports whether u holds the lock at a reading of the clocks that the table has
// not processed: what a holder finds that looks at its clock now.
func (t *Table) HeldAt(now wire.Now, u *Hold) bool {
	if left, ok := u.expiresIn(now); ok && left == 0 {
		return false
	}
	return u.state == Holding && t.core.HeldAt(now, u.shared.claim)
}
