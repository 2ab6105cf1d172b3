package gateway

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qlock/qlock"
)

// Leases, rules G1 to G10 of docs/gateway.md. What a caller may believe is decided in one
// place, lease.held. What ends a lease is decided in one place, lease.end.

type state uint8

const (
	waiting state = iota
	held
	over
)

func (s state) String() string { return [...]string{"waiting", "held", "over"}[s] }

// leaseKey is what a lease is found by: for another principal the same id is another lease.
// It has the digest of the id, as other gateways name the lease: the id is a secret, and
// what gateways tell each other can be heard by more than them.
type leaseKey struct {
	principal string // its name
	digest    [sha256.Size]byte
}

func keyOf(p *principal, id string) leaseKey {
	return leaseKey{p.name, sha256.Sum256([]byte(normalID(id)))}
}

func (k leaseKey) hex() string { return hex.EncodeToString(k.digest[:]) }

type lease struct {
	g       *Gateway
	key     leaseKey
	who     *principal
	id      string
	name    string
	encoded string
	shared  bool
	note    string
	created time.Time
	age     int64 // microseconds since 1970
	try     bool
	isOurID bool // the gateway made the id
	locker  *qlock.Locker
	isHeld  atomic.Bool // as state, for those that do not lock mu

	mu       sync.Mutex // guards what follows
	state    state
	revision int           // rises with each change of state
	changed  chan struct{} // closed at the next one
	length   time.Duration // without a renewal
	waitEnd  time.Time
	pending  *qlock.Pending
	polls    int // requests that wait for a change
	pollEnd  time.Time
	watched  bool // a goroutine waits for the grant
	moved    bool
	told     bool // some answer had the id

	lock      *qlock.Lock
	heldFrom  time.Time
	keepUntil time.Time   // it is given back then, unless it is renewed
	promised  time.Time   // the latest moment until which a caller may believe that it holds (G8)
	forget    func() bool // stops the watch for the loss
	timer     *time.Timer
	why       *Problem // once it is over
}

// drift is by how much a caller's clock and this one may differ in what they measure, as
// for the votes (C1): 1/50.
const driftShare = 0.98

func shorter(d time.Duration) time.Duration { return time.Duration(driftShare * float64(d)) }
func longer(d time.Duration) time.Duration {
	return time.Duration(math.Ceil(float64(d) / driftShare))
}

// start asks for the lock. Call it once, before others know of l.
func (l *lease) start(locker *qlock.Locker) {
	opts := []qlock.LockOption{
		qlock.WithManualRelease(), // G8: an evicted caller may not know it yet
		qlock.WithAge(time.UnixMicro(l.age)),
		qlock.Note(l.who.prefix + l.note),
	}
	if l.shared {
		opts = append(opts, qlock.Shared())
	}
	if l.try {
		opts = append(opts, qlock.Try())
	}
	// The context of the request would be kept by the lock for as long as it lives.
	l.locker, l.pollEnd, l.changed = locker, l.created.Add(l.length), make(chan struct{})
	l.revision = 1
	l.pending = locker.Start(context.Background(), l.name, opts...)
	l.timer = time.AfterFunc(l.waitEnd.Sub(l.created), l.onTime)
}

// settle takes notice of a decision about the request. Call with l.mu held.
func (l *lease) settle() {
	if l.state != waiting {
		return
	}
	select {
	case <-l.pending.Done():
	default:
		return
	}
	lock, err := l.pending.Lock()
	if err != nil {
		l.end(l.failure(err))
		return
	}
	l.granted(lock)
}

// granted begins the time that the caller holds. Call with l.mu held.
func (l *lease) granted(lock *qlock.Lock) {
	now := time.Now()
	l.length = min(l.length, mostOf(l.locker)) // of which the Locker may have heard by this request
	l.lock, l.heldFrom, l.keepUntil = lock, now, now.Add(longer(l.length))
	l.forget = context.AfterFunc(lock.Context(), l.onLoss)
	l.g.counters.granted.Add(1)
	l.change(held)
	l.arm(now)
}

// change tells all who wait for a change. Call with l.mu held.
func (l *lease) change(s state) {
	l.state = s
	l.isHeld.Store(s == held)
	l.revision++
	close(l.changed)
	l.changed = make(chan struct{})
}

// failure is a Problem for a request that was not granted, with what this gateway knows of
// who is in the way.
func (l *lease) failure(err error) *Problem {
	p := problemOf(err)
	var e *qlock.LockError
	if errors.As(err, &e) && e.Holder != nil && e.Holder.Own && p.Blocker != nil {
		p.Blocker.Note = l.g.noteOfHolder(l)
	}
	return p
}

// end makes the lease over, for good (G9): what its callers are told comes before anything
// that could let somebody else have the lock. Call with l.mu held.
func (l *lease) end(why *Problem) {
	was, now := l.state, time.Now()
	if was == over {
		return
	}
	if l.lock != nil {
		why.Token = l.lock.Token()
	}
	l.why = why
	l.change(over)
	l.timer.Stop()
	keeps := was == held && why.Cause != causeReleased && now.Before(l.promised) // G8
	l.g.ended(l, keeps)
	switch {
	case was == waiting:
		l.pending.Cancel() // it gives back what was granted in this moment; nobody was told of that
	case keeps:
		l.timer = time.AfterFunc(l.promised.Sub(now), func() {
			defer l.g.givenBack(l)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.giveBack()
		})
	default:
		l.giveBack()
	}
}

// giveBack releases the claim. Call with l.mu held.
func (l *lease) giveBack() {
	l.forget()
	_ = l.lock.Unlock(context.Background()) // its error says that it was lost, and the callers know
}

// arm sets the timer to the next moment at which time alone ends the lease. Call with l.mu
// held.
func (l *lease) arm(now time.Time) {
	switch l.state {
	case waiting:
		at := l.waitEnd
		if l.polls == 0 && l.pollEnd.Before(at) {
			at = l.pollEnd
		}
		l.timer.Reset(at.Sub(now))
	case held:
		l.timer.Reset(l.keepUntil.Sub(now))
	}
}

// onTime does what time alone brings.
func (l *lease) onTime() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tick()
}

// tick ends the lease if its time is over. Call with l.mu held.
func (l *lease) tick() {
	l.settle()
	now := time.Now()
	switch l.state {
	case waiting:
		switch {
		case !now.Before(l.waitEnd):
			l.waitOver()
		case l.polls == 0 && !now.Before(l.pollEnd):
			l.end(gone(causeAbandoned, 0, "no request asked for the lease within %v, so its place in the queue was given up", l.length))
		default:
			l.arm(now)
		}
	case held:
		if !now.Before(l.keepUntil) {
			l.end(gone(causeExpired, 0, "the lease was not renewed within %v", l.length))
			return
		}
		l.arm(now)
	}
}

// waitOver ends a lease that has waited for as long as it was to. Call with l.mu held.
func (l *lease) waitOver() {
	l.pending.Cancel()
	_, err := l.pending.Lock()
	if err == nil { // granted in this very moment, and given back again: nobody was told
		l.end(problem("held", "the time to wait was over in the moment when the lock became free; repeat the request"))
		return
	}
	l.end(l.failure(err))
}

// onLoss is called when the lock's context has ended and nobody unlocked it.
func (l *lease) onLoss() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost()
}

// lost ends a lease whose lock the library has given up. Call with l.mu held.
func (l *lease) lost() {
	if l.state != held {
		return
	}
	err := context.Cause(l.lock.Context())
	text := ""
	if err != nil {
		text = strings.TrimPrefix(err.Error(), "qlock: ")
	}
	switch {
	case errors.Is(err, qlock.ErrEvicted):
		l.end(evicted(err, text))
	case errors.Is(err, qlock.ErrUnlocked): // the Locker was closed
		l.end(gone(causeDraining, 0, "the gateway stopped"))
	case err == qlock.ErrLost || err == nil: // its text does not say why
		l.end(unconfirmed())
	default:
		l.end(gone(causeLost, 0, "%s", text))
	}
}

// unconfirmed is why a lease is over whose votes have run out.
func unconfirmed() *Problem {
	return gone(causeLost, 0, "too few nodes confirmed the lock before their votes ran out: GET /v1/nodes shows which of them vote")
}

// held is the answer that says for how long the caller holds: rule G7. The order matters.
// handled_ms is read first and the votes last: a pause between the two makes the answer
// promise less. In the other order it would promise more, by that pause. Call with l.mu
// held and state held.
func (l *lease) held(c *call) (*Lease, *Problem) {
	handled := shorter(l.g.now().Sub(c.received))
	stands := min(l.lock.Stands(), l.keepUntil.Sub(l.g.now()))
	expires := shorter(stands).Truncate(time.Millisecond)
	now := time.Now()
	if expires < time.Millisecond {
		switch {
		case l.lock.Context().Err() != nil:
			l.lost()
		case !now.Before(l.keepUntil.Add(-2 * time.Millisecond)):
			l.end(gone(causeExpired, 0, "the lease was not renewed within %v", l.length))
		default:
			l.end(unconfirmed())
		}
		return nil, l.why
	}
	if until := now.Add(longer(expires)); until.After(l.promised) {
		l.promised = until
	}
	a := l.answer(c, handled)
	a.Token, a.ExpiresInMS, a.LeaseMS = l.lock.Token(), expires.Milliseconds(), min(l.length, mostOf(l.locker)).Milliseconds()
	a.WaitedMS = l.heldFrom.Sub(l.created).Milliseconds()
	a.DrainingInMS = l.g.drainingIn(now)
	return a, nil
}

func (l *lease) answer(c *call, handled time.Duration) *Lease {
	l.told = true
	return &Lease{
		ID: l.id, State: l.state.String(), Name: shown(l.name), Encoded: l.encoded, Mode: modeName(l.shared), Age: l.age,
		HandledMS: handled.Milliseconds(), Gateway: l.g.name, Request: c.request, revision: l.revision,
	}
}

// current is the answer about the lease as it is now. Call with l.mu held.
func (l *lease) current(c *call) (*Lease, *Problem) {
	switch l.state {
	case held:
		return l.held(c)
	case over:
		why := *l.why
		return nil, &why
	}
	a := l.answer(c, shorter(time.Since(c.received)))
	status := l.pending.Status()
	if status.Queued {
		a.Place = status.Ahead + 1
	}
	if a.Blocker = blockerOf(status.Holder); a.Blocker != nil && status.Holder.Own {
		a.Blocker.Note = l.g.noteOfHolder(l)
	}
	if a.Blocker == nil && !status.Queued {
		a.Nodes = votesOf(status.Nodes)
	}
	a.WaitedMS = time.Since(l.created).Milliseconds()
	a.PollWithinMS = shorter(l.length).Milliseconds()
	return a, nil
}

// await waits until the lease no longer waits, or its revision is not the one given (0:
// none), for d at most. All who wait are told of the same change, and one that leaves
// changes nothing for the others.
func (l *lease) await(c *call, d time.Duration, revision int) (*Lease, *Problem) {
	l.mu.Lock()
	defer l.mu.Unlock()
	deadline := c.received.Add(d)
	joined := false // it has waited with the others
	for {
		l.settle()
		now := time.Now()
		if l.state == waiting && !now.Before(l.waitEnd) {
			l.waitOver()
		}
		isNews := l.state != waiting
		if revision > 0 {
			isNews = l.revision != revision || l.state == over
		}
		stopping := l.state == waiting && l.g.isDraining()
		if isNews || stopping || !now.Before(deadline) || c.ctx.Err() != nil {
			if stopping {
				l.moved = true
				l.end(gone(causeDraining, 0, "the gateway is stopping: repeat the request at another one, with the age of the answer"))
				joined = true
			}
			if joined && l.moved {
				a := l.answer(c, shorter(now.Sub(c.received)))
				a.State, a.Moved, a.WaitedMS = waiting.String(), true, now.Sub(l.created).Milliseconds()
				return a, nil
			}
			if l.state == waiting {
				l.leaveWaiting(now)
			}
			return l.current(c)
		}
		if l.polls >= l.g.limits.PollsPerLease {
			return nil, problem("too-many", "%d requests wait for this lease already", l.polls)
		}
		l.polls++
		l.g.counters.polls.Add(1)
		joined = true
		l.arm(now)
		changed := l.changed
		var granted, draining <-chan struct{}
		if l.state == waiting {
			granted, draining = l.pending.Done(), l.g.draining
		}
		l.mu.Unlock()
		timeout := time.NewTimer(deadline.Sub(now))
		select {
		case <-changed:
		case <-granted:
		case <-draining:
		case <-timeout.C:
		case <-c.ctx.Done():
		}
		timeout.Stop()
		l.mu.Lock()
		l.polls--
		l.g.counters.polls.Add(-1)
	}
}

// leaveWaiting is for a request that ends while the lease waits: from the last one on the
// place is kept for the length of the lease, and a goroutine notices the grant. Call with
// l.mu held.
func (l *lease) leaveWaiting(now time.Time) {
	if l.polls > 0 {
		return
	}
	l.pollEnd = now.Add(l.length)
	l.arm(now)
	if l.watched {
		return
	}
	l.watched = true
	l.g.begin()
	go func() {
		defer l.g.finish()
		<-l.pending.Done()
		l.mu.Lock()
		defer l.mu.Unlock()
		l.settle()
	}()
}

// renew lets the lease live for its length from now.
func (l *lease) renew(c *call, length time.Duration, token uint64) (*Lease, *Problem) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settle()
	if l.state == waiting {
		return nil, problem("held", "the lease waits for the lock: there is nothing to renew yet")
	}
	if l.state == held && token > 0 && token != l.lock.Token() {
		// The lease is another hold than the one that the caller knows (G2). That one is over.
		return nil, gone(causeLost, token, "the lease has the token %d now, so the hold with the token %d is over", l.lock.Token(), token)
	}
	most := mostOf(l.locker)
	if l.state == held && length > most { // it would never be confirmed for so long
		return nil, invalid(fmt.Sprintf("this lease cannot be longer than %v: it was acquired for %v or less, or the cluster has lowered its longest lease since", most, most))
	}
	if l.state == held && l.lock.Stands() < l.locker.Lease()/2 {
		lock := l.lock
		l.mu.Unlock()
		wait, cancel := context.WithTimeout(c.ctx, time.Second)
		_ = lock.AwaitRefresh(wait) // what it brought is seen below
		cancel()
		l.mu.Lock()
	}
	if l.state == held {
		now := time.Now()
		if !now.Before(l.keepUntil) {
			l.tick()
		} else {
			l.length = min(cmp.Or(length, l.length), most)
			if until := now.Add(longer(l.length)); until.After(l.keepUntil) {
				l.keepUntil = until
			}
			l.arm(now)
		}
	}
	return l.current(c)
}

// release ends the lease because its caller wants it. It returns why the lease is over.
func (l *lease) release() *Problem {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end(gone(causeReleased, 0, "the lease was released"))
	why := *l.why
	return &why
}

// digest stands for a lease's id, which is a secret, in logs.
func digest(id string) string {
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:4])
}
