package driver

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/hold"
	"github.com/qlock/qlock/internal/members"
	"github.com/qlock/qlock/internal/natsio"
	"github.com/qlock/qlock/internal/printable"
	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/wire"
)

// machine is the client machine with its mutex. Callers, answers and timers use it in steps. begin
// locks the mutex and reads the clocks, then the step calls the client machine, and finish carries
// out what that wants and unlocks the mutex. A step waits only for other steps: it queues messages
// with the publisher, and finish wakes waiting goroutines after it has unlocked the mutex.
//
// Steps run on the goroutines of callers, of the subscription, of the connection's callbacks, of
// the publisher and of the loop.
type machine struct {
	cfg   *Config
	log   *natsio.Log
	pub   *natsio.Publisher // locked under mu, so that messages are in the order of the steps
	start time.Time         // zero of the monotonic clock readings

	wake   chan struct{} // makes the loop call the machine now; has room for one
	ending group         // goroutines that end contexts of locks
	losses atomic.Uint64 // equals counts.Lost; readable without mu
	lease  atomic.Int64  // equals core.Lease; readable without mu

	mu         sync.Mutex // guards the fields below; no publishing and no caller's code under it
	core       *client.Client
	table      *hold.Table      // what is held and waited for; uses core
	members    *members.Machine // decides which nodes there are
	wakeAt     time.Time        // when the loop will call the machine next
	closed     bool
	counts     Counts
	leaps      natsio.Leaps
	unlockedAt time.Duration         // when a lock was last unlocked
	burst      int                   // number of locks granted by the last message that granted any
	refreshes  map[*Hold]*refreshing // that somebody waits for
}

func newMachine(cfg *Config, pub *natsio.Publisher, m *Membership) *machine {
	c := &machine{cfg: cfg, log: cfg.Log, pub: pub, start: m.start, wake: make(chan struct{}, 1), members: m.members}
	instance := newInstance()
	c.core = client.New(client.Config{
		Name: cfg.Name, Instance: instance, TTL: cfg.Lease,
		MaxRuns: wire.RunsIn(pub.MaxBody()), Seed: binary.BigEndian.Uint64(instance[8:]), Trips: m.trips, Cluster: m.config,
	}, c.at(time.Now()))
	c.lease.Store(int64(cfg.Lease))
	c.members.SetLease(cfg.Lease)
	c.table = hold.New(c.core, cfg.Retention)
	c.table.PassOn(cfg.PassMost, cfg.PassWithin)
	return c
}

// at converts a time to a reading of the clocks.
func (m *machine) at(t time.Time) wire.Now { return clocks(m.start, t) }

// step holds the inputs and results of one step of the machine.
type step struct {
	hold.Out
	t         time.Time
	now       wire.Now
	held      int     // number of locks granted
	ready     []*Hold // holds that are decided now
	lost      []*Hold
	unlocking []*Hold         // lost while their owners unlock them, or while they expire
	expired   []*Hold         // held for as long as Terms.AtMost allows, and not unlocked yet
	tell      []chan struct{} // channels to close
	moved     *wire.Config    // the record that it followed the cluster to
}

var steps = sync.Pool{New: func() any { return new(step) }}

// begin locks the machine and reads the clocks. The caller must call finish.
func (m *machine) begin() *step {
	s := steps.Get().(*step)
	m.mu.Lock()
	s.t = time.Now()
	s.now = m.at(s.t)
	return s
}

// finish carries out the results of the step and unlocks the machine.
func (m *machine) finish(s *step) {
	if s.Renew {
		m.table.Renew(s.now, freshInstance(s.t), &s.Out)
	}
	for _, e := range s.Holds {
		m.apply(s, e)
	}
	m.endContexts(s)
	if s.held > 0 {
		m.burst = s.held
	}
	if s.AskNow {
		m.learn(s, m.members.QueryNow)
	} else if s.AskInfo {
		m.learn(s, m.members.Query)
	}
	wake := m.rearm(s)
	if len(s.Requests) > 0 {
		m.pub.Requests(s.Requests, m.counts.Waiting > 1 || m.burst > 1)
	}
	m.mu.Unlock()

	if wake {
		select {
		case m.wake <- struct{}{}:
		default:
		}
	}
	for _, h := range s.ready {
		h.settle()
	}
	for _, c := range s.tell {
		close(c)
	}
	for _, note := range s.Notes {
		m.log.Line(slog.LevelError, note)
	}
	if c := s.moved; c != nil {
		m.log.Line(slog.LevelInfo, "the list of nodes has changed; held locks are kept", "epoch", c.Epoch(), "nodes", c.Nodes, "joint", c.Record.Joint())
	}
	s.reset()
	steps.Put(s)
}

func (s *step) reset() {
	s.Out.Reset()
	clear(s.ready)
	clear(s.tell)
	s.held, s.ready, s.tell, s.lost, s.unlocking, s.expired = 0, s.ready[:0], s.tell[:0], nil, nil, nil
	s.moved = nil
}

// settle wakes the goroutines that wait for h. Call it once, without holding the machine's mutex.
func (h *Hold) settle() {
	if h.failure != nil {
		h.cancel(h.failure.Reason)
	}
	close(h.ready)
}

// decided notes that h was granted or has failed. The caller holds m.mu.
func (m *machine) decided(s *step, h *Hold) {
	s.ready = append(s.ready, h)
	if h.watch != nil {
		m.tellChanged(s, h)
	}
}

// apply records an event of a hold in its fields and in the counters, and queues the event for
// observers. The caller holds m.mu.
func (m *machine) apply(s *step, e hold.Event) {
	h := e.Hold.User.(*Hold)
	if (e.Kind == hold.Held || e.Kind == hold.Failed || e.Kind == hold.Changed) && h.state != waiting {
		return // it was given up in this step
	}
	switch e.Kind {
	case hold.Held:
		h.token, h.since = e.Hold.Token(), m.start.Add(s.now.Mono)
		m.counts.hold(h, e.First)
		h.votes, h.nodes = e.Votes, len(m.core.Cluster().Nodes)
		if e.First {
			m.event(subject.Acquired, h) // before its owner can cause the next event
		}
		s.held++
		m.decided(s, h)
	case hold.Failed:
		h.failure = m.report(s.now, h, nil)
		if e.Eviction != nil {
			h.failure.Reason, h.failure.Cause = ErrEvicted, &client.Eviction{By: e.Eviction.By, Why: printable.Text(e.Eviction.Why)}
		}
		m.counts.fail(h, h.failure)
		m.decided(s, h)
	case hold.Lost:
		// If it is not held, its owner is about to release it. The owner ends its context first,
		// which may take long.
		if h.state != held {
			if h.state == unlocked || h.state == expired { //plant:unlocking
				s.unlocking = append(s.unlocking, h)
			}
			if !e.Left { // otherwise the event follows when it is released
				m.event(subject.Released, h)
			}
			return
		}
		h.lost = m.lossOf(s.now, e.Eviction)
		if e.Left {
			m.counts.setState(h, left)
		} else {
			m.counts.setState(h, lost)
		}
		m.losses.Add(1)
		s.lost = append(s.lost, h)
	case hold.Returned: // before the release, and so before the next holder
		if h.state != left { // otherwise observers have been told that it is lost
			m.event(subject.Released, h)
		}
	case hold.Wanted:
		m.tellWanted(s, h)
	case hold.Changed:
		m.tellChanged(s, h)
	case hold.Expired:
		if h.state == held { // otherwise its owner is about to release it
			h.lost = ErrHoldExpired
			m.counts.setState(h, expired)
			s.expired = append(s.expired, h)
		}
	}
}

// lossOf returns the error of a lock that is lost. The caller holds m.mu.
func (m *machine) lossOf(now wire.Now, evicted *client.Eviction) error {
	if evicted != nil {
		return &evictedError{client.Eviction{By: evicted.By, Why: printable.Text(evicted.Why)}}
	}
	m.leaps.Read(now)
	if why := m.leaps.Explain(now, m.core.Lease()); why != "" {
		return &leaptError{why}
	}
	return ErrLost
}

// report describes why h is not held. The caller holds m.mu.
func (m *machine) report(now wire.Now, h *Hold, cause error) *Failure {
	f := &Failure{Reason: ErrHeld, Cause: cause}
	if f.Own, f.IsOwn = m.table.Ours(now, h.use); f.IsOwn {
		return f
	}
	f.Report = m.table.Report(now, h.use)
	f.Reason = reasonOf(&f.Report, cause)
	return f
}

// event queues an event of h for observers. The caller holds m.mu, or h has ended.
func (m *machine) event(kind string, h *Hold) {
	if m.cfg.Events == WithoutEvents {
		return
	}
	e := wire.EventBody{Mode: h.request.Mode.String(), Token: h.token, WaitedMS: ms(h.since.Sub(h.asked))}
	if kind == subject.Acquired {
		e.Votes, e.Nodes, e.Note = h.votes, h.nodes, h.request.Note
	} else {
		e.HeldMS = ms(time.Since(h.since))
	}
	if by, ok := h.lost.(*evictedError); ok {
		e.EvictedBy = by.By
	}
	m.pub.Event(kind, h.request.Resource, &e)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// acquire starts the request h. It reports false if the client is closed.
func (m *machine) acquire(h *Hold, shortDeadline bool) (ok bool) {
	s := m.begin()
	if ok = !m.closed; ok {
		r, terms := &h.request, h.request.terms()
		h.asked = m.start.Add(s.now.Mono)
		m.counts.Waiting++
		h.use = m.table.Lock(s.now, hold.Request{
			Resource: r.Resource, Mode: r.Mode, Try: r.Patience == Try, ShortDeadline: shortDeadline, Note: r.Note, User: h,
			Watch: terms.Watch, Manual: terms.Manual, AtLeast: terms.AtLeast, AtMost: terms.AtMost, At: terms.at(),
		}, &s.Out)
	}
	m.finish(s)
	return ok
}

// giveUp ends a request whose caller no longer waits. The request may have been granted at the same
// moment. In that case giveUp also releases it, because nobody else would (like semaphore.Acquire
// of golang.org/x/sync).
func (m *machine) giveUp(h *Hold, cause error) *Failure {
	s := m.begin()
	f := h.failure
	switch {
	case f != nil: // it failed at the same moment
	case h.state == waiting:
		f = m.report(s.now, h, cause)
		m.failNow(s, h, f)
	default:
		f = m.report(s.now, h, cause)
		m.counts.fail(h, f)
		m.table.Drop(s.now, h.use, &s.Out) // nobody has used it
	}
	m.finish(s)
	h.cancel(cause)
	return f
}

// giveUpWaiting fails h if it still waits.
func (m *machine) giveUpWaiting(h *Hold, cause error) {
	s := m.begin()
	if h.state == waiting && h.use != nil {
		m.failNow(s, h, m.report(s.now, h, cause))
	}
	m.finish(s)
}

// cancel ends h, whether it waits or is held.
func (m *machine) cancel(h *Hold, cause error) {
	m.giveUpWaiting(h, cause)
	<-h.ready // the request is decided now, so this does not wait for the nodes
	if h.failure == nil {
		_ = h.client.unlock(h)
	}
}

// inARow is the longest time between two Unlocks of a program that is taken to continue. The
// releases of such a program wait for the next requests, which saves messages.
const inARow = 10 * time.Millisecond

// unlock checks h. If h is held, unlock counts it as unlocked, and the caller must then call
// release. last reports that no other lock is held or waited for, and that the Unlock before was
// longer ago than inARow.
func (m *machine) unlock(h *Hold) (was holdState, isHeld, last bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	was = h.state
	now := m.at(time.Now())
	isHeld = was == held && m.table.HeldAt(now, h.use)
	if isHeld {
		m.counts.setState(h, unlocked)
		last = m.counts.Held+m.counts.Waiting == 0 && (m.unlockedAt == 0 || now.Mono-m.unlockedAt > inARow)
		m.unlockedAt = now.Mono
	}
	return was, isHeld, last
}

// release releases a hold whose context has ended.
func (m *machine) release(h *Hold) {
	s := m.begin()
	m.table.Unlock(s.now, h.use, &s.Out)
	m.finish(s)
}

// tick does what is due now.
func (m *machine) tick() {
	s := m.begin()
	m.table.Tick(s.now, &s.Out)
	m.learn(s, m.members.Tick)
	m.finish(s)
}

// handle handles answers about claims.
func (m *machine) handle(list []wire.Answer) {
	s := m.begin()
	if !m.closed {
		for i := range list {
			if a := &list[i]; !isReply(a.Kind) {
				m.table.Handle(s.now, a, &s.Out)
				m.tellRefreshed(s, a)
			}
		}
	}
	m.finish(s)
}

// handleOne handles one answer about a claim. Of the answer, the machine retains only strings and
// the blocker.
func (m *machine) handleOne(a *wire.Answer) {
	s := m.begin()
	if !m.closed {
		m.table.Handle(s.now, a, &s.Out)
		m.tellRefreshed(s, a)
	}
	m.finish(s)
}

// informed handles a node's answer to info.
func (m *machine) informed(a *wire.Answer) {
	s := m.begin()
	m.learn(s, func(now wire.Now, out *members.Out) { m.members.Hear(now, a, out) })
	m.finish(s)
}

// learn calls f with the members machine and carries out the results. The caller holds m.mu.
func (m *machine) learn(s *step, f func(wire.Now, *members.Out)) {
	if m.closed {
		return
	}
	var out members.Out
	if m.core.Shown() {
		m.members.Shown()
	}
	f(s.now, &out)
	if out.Found != nil {
		before := m.core.Cluster()
		if out.Found.Continues(&before) {
			s.moved = out.Found
		} else {
			note := "the configuration of the nodes has changed: held locks are lost, waiting claims continue"
			if before.Record != nil { // then the new one has a record as well (E16)
				note += fmt.Sprintf(". This is another cluster of the same name: its id is %s, and was %s", out.Found.Record.CID, before.Record.CID)
			}
			s.Notes = append(s.Notes, note)
		}
		m.table.SetCluster(s.now, *out.Found, &s.Out)
		m.lease.Store(int64(m.core.Lease()))
		m.members.SetLease(m.core.Lease())
	}
	if out.Ask != "" {
		s.Requests = append(s.Requests, infoRequest(m.cfg.Name, out.Ask))
	}
}

// disconnected prepares for a reconnect, which may lead to another cluster of this name (C13).
func (m *machine) disconnected() {
	s := m.begin()
	m.table.Disconnected(s.now, &s.Out)
	m.finish(s)
}

// reconnected makes up for messages that may have been lost during the disconnect.
func (m *machine) reconnected() {
	s := m.begin()
	if !m.closed {
		m.table.Reconnected(s.now, &s.Out)
	}
	m.finish(s)
}

// fit limits the size of messages to what the connection accepts.
func (m *machine) fit(most int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.core.Fit(most)
}

// send queues a request that does not come from the machine.
func (m *machine) send(r wire.Request) {
	s := m.begin()
	if !m.closed {
		s.Requests = append(s.Requests, r)
	}
	m.finish(s)
}

// sleep returns how long the loop may sleep from now on.
func (m *machine) sleep() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := time.Now()
	now := m.at(t)
	m.leaps.Read(now)
	wait := m.wait(now)
	m.wakeAt = t.Add(wait)
	return wait
}

// wait returns how long nothing is due: until the machine's next deadline, and at most one second
// while there are claims. The lease clock must be read that often to notice that the computer slept
// (C8). The caller holds m.mu.
func (m *machine) wait(now wire.Now) time.Duration {
	d, ok := m.table.Wait(now)
	if !ok {
		d = natsio.Idle
	}
	if due, ok := m.members.Wait(now); ok {
		d = min(d, due)
	}
	if m.core.Claims() > 0 {
		d = min(d, time.Second)
	}
	return d
}

// rearm reports whether the loop must be woken because a deadline is now earlier than the moment
// that the loop sleeps until. This is rare: a lock that is acquired and released at once does not
// change the timer. The caller holds m.mu.
func (m *machine) rearm(s *step) bool {
	if m.closed {
		return false
	}
	at := s.t.Add(m.wait(s.now))
	if !at.Before(m.wakeAt) {
		return false
	}
	m.wakeAt = at
	return true
}

// close prevents the machine from starting anything more, and returns the holds that have not
// ended. first reports whether it was not closed before.
func (m *machine) close() (all []*hold.Hold, first bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, false
	}
	m.closed = true
	return m.table.All(), true
}

// cluster returns the configuration by which votes are counted.
func (m *machine) cluster() wire.Config {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.core.Cluster()
}

func (m *machine) digest() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.core.Digest()
}

func (m *machine) stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := time.Now()
	return Stats{Counts: m.counts, Claims: m.core.Claims(), Machine: m.core.Counts(), Trips: m.core.Trips(m.at(t)), At: t}
}

// failWaiting fails the waiting requests for which concerned returns true.
func (m *machine) failWaiting(reason, cause error, concerned func(*Hold) bool) {
	m.mu.Lock()
	all := m.table.All()
	m.mu.Unlock()
	m.inSteps(len(all), func(i int, s *step) {
		h := all[i].User.(*Hold)
		// A request that failed may have made room for this one.
		if all[i].State() != hold.Waiting || !concerned(h) {
			return
		}
		m.failNow(s, h, &Failure{Reason: reason, Cause: cause})
	})
}

// failNow fails a request that waits. The caller holds m.mu.
func (m *machine) failNow(s *step, h *Hold, f *Failure) {
	h.failure = f
	m.counts.fail(h, f)
	m.decided(s, h)
	m.table.Unlock(s.now, h.use, &s.Out)
}

// mostInStep limits how many locks one step handles when many need the same at once. During the
// step the loop cannot read its clock.
const mostInStep = 256

// inSteps calls f for 0 to n-1, in as many steps as necessary.
func (m *machine) inSteps(n int, f func(i int, s *step)) {
	for from := 0; from < n; from += mostInStep {
		s := m.begin()
		for i := from; i < min(from+mostInStep, n); i++ {
			f(i, s)
		}
		m.finish(s)
	}
}

// giveUpAll ends all holds of a closed client. It uses several steps, because there may be many
// holds and the leases of the last ones go on.
func (m *machine) giveUpAll(all []*hold.Hold) {
	slices.Reverse(all) // the last waiters first, so that none of them is granted a lock
	var holding []*Hold
	refresh := false
	m.inSteps(len(all), func(i int, s *step) {
		h := all[i].User.(*Hold)
		switch all[i].State() {
		case hold.Waiting:
			m.failNow(s, h, &Failure{Reason: ErrClosed})
		case hold.Holding, hold.Kept, hold.Left:
			if h.state == held { // otherwise its context may not have ended yet
				m.counts.setState(h, unlocked)
			}
			holding = append(holding, h)
		}
	})
	endAll(holding, endCause)
	m.ending.Wait() // contexts of lost locks; the publisher is paused until they have ended
	m.inSteps(len(holding), func(i int, s *step) {
		if m.table.Abandon(s.now, holding[i].use, &s.Out) {
			refresh = true
		}
	})
	if refresh { // it makes the nodes keep the claims that stay for a lease from now
		s := m.begin()
		m.table.Refresh(s.now, &s.Out)
		m.finish(s)
	}
	for more := true; more; {
		s := m.begin()
		more = m.table.ReleaseIdle(s.now, mostInStep, &s.Out)
		m.finish(s)
	}
	// A lock may have been lost since, and a paused publisher would not publish at the end.
	m.ending.Wait()
}

func newInstance() uuid.UUID { return uuid.New() }

// freshInstance returns an instance id for a client that may have copies. Random numbers may be
// copied with a machine, but the time at which each copy reads its clock differs.
func freshInstance(t time.Time) uuid.UUID {
	return uuid.NewSHA1(newInstance(), strconv.AppendInt(nil, t.UnixNano(), 10))
}
