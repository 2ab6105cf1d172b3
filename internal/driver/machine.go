package driver

import (
	"encoding/binary"
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
	"github.com/qlock/qlock/internal/sat"
	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/wire"
)

// machine is the client machine and its lock. Whoever has something for it, be it a
// caller, an answer or the time, takes a step: begin locks it and reads the clocks, then
// the machine is told, and finish carries out what it wants and unlocks it. A step waits
// for nobody but other steps: what is to be sent is queued with the publisher, and whom it
// concerns is told after the lock is given up.
//
// Callers' goroutines, those of the subscription, of the connection's callbacks, of the
// publisher and of the loop take steps.
type machine struct {
	cfg   *Config
	log   *natsio.Log
	pub   *natsio.Publisher // its lock is taken under mu, so that messages are in the order of the steps
	start time.Time         // zero of the monotonic clock readings

	wake   chan struct{}  // tells the loop to look at the machine now; has room for one
	ending sync.WaitGroup // of contexts of locks that are lost
	losses atomic.Uint64  // as counts.Lost, to be read without mu

	mu         sync.Mutex // guards what follows; nothing is published and no caller's code is run under it
	core       *client.Client
	table      *hold.Table      // what is held and waited for, on core
	members    *members.Machine // which nodes there are
	wakeAt     time.Time        // when the loop will look next
	closed     bool
	counts     Counts
	leaps      natsio.Leaps
	unlockedAt time.Duration // when a lock was last unlocked
	burst      int           // how many got their locks by the last message that gave any
	timers     timers
	refreshes  map[*Hold]chan struct{} // who waits for the answers to the refresh that is under way
}

func newMachine(cfg *Config, pub *natsio.Publisher, m *Membership) *machine {
	c := &machine{cfg: cfg, log: cfg.Log, pub: pub, start: m.start, wake: make(chan struct{}, 1), members: m.members}
	instance := newInstance()
	c.core = client.New(client.Config{
		Name: cfg.Name, Instance: instance, TTL: cfg.Lease,
		MaxRuns: wire.RunsIn(pub.MaxBody()), Seed: binary.BigEndian.Uint64(instance[8:]), Trips: m.trips, Cluster: m.config,
	}, c.at(time.Now()))
	c.table = hold.New(c.core, cfg.Retention)
	c.table.PassOn(cfg.PassMost, cfg.PassWithin)
	return c
}

// at is a reading of the clocks.
func (m *machine) at(t time.Time) wire.Now { return clocks(m.start, t) }

// step is what a step of the machine works with.
type step struct {
	hold.Out
	t         time.Time
	now       wire.Now
	held      int     // how many got their locks
	ready     []*Hold // those that hold or have failed now
	lost      []*Hold
	unlocking []*Hold         // those that are lost while their owners give them back
	expired   []*Hold         // those whose time is over
	tell      []chan struct{} // to be closed
}

var steps = sync.Pool{New: func() any { return new(step) }}

// begin locks the machine and reads the clocks. finish must follow.
func (m *machine) begin() *step {
	s := steps.Get().(*step)
	m.mu.Lock()
	s.t = time.Now()
	s.now = m.at(s.t)
	return s
}

// finish carries out what the step brought, and unlocks the machine.
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
	if s.AskInfo {
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
	s.reset()
	steps.Put(s)
}

func (s *step) reset() {
	s.Out.Reset()
	clear(s.ready)
	clear(s.tell)
	s.held, s.ready, s.tell, s.lost, s.unlocking, s.expired = 0, s.ready[:0], s.tell[:0], nil, nil, nil
}

// settle tells who waits for h. Call it once, without the machine's lock.
func (h *Hold) settle() {
	if h.failure != nil {
		h.cancel(h.failure.Reason)
	}
	close(h.ready)
}

// apply notes what became of a hold, in its fields and in the counts, and queues the event
// for observers. Call with m.mu held.
func (m *machine) apply(s *step, e hold.Event) {
	h := e.Hold.User.(*Hold)
	if (e.Kind == hold.Held || e.Kind == hold.Failed || e.Kind == hold.Changed) && h.state != waiting {
		return // it was given up in this very step
	}
	switch e.Kind {
	case hold.Held:
		h.token, h.since = e.Hold.Token(), m.start.Add(s.now.Mono)
		m.counts.hold(h, e.First)
		h.votes, h.nodes = e.Votes, len(m.core.Cluster().Nodes)
		if e.First {
			m.event(subject.Acquired, h) // before its owner can cause the next
		}
		s.held++
		s.ready = append(s.ready, h)
		if d := h.request.terms().AtMost; d > 0 {
			m.timers.set(h, sat.Add(s.now.Mono, d))
		}
	case hold.Failed:
		h.failure = m.report(s.now, h, nil)
		if e.Eviction != nil {
			h.failure.Reason, h.failure.Cause = ErrEvicted, &client.Eviction{By: e.Eviction.By, Why: printable.Text(e.Eviction.Why)}
		}
		m.counts.fail(h, h.failure)
		s.ready = append(s.ready, h)
	case hold.Lost:
		if h.state != held { // its owner is about to give it back, and ends its context, which may take long yet
			if h.state == unlocked {
				s.unlocking = append(s.unlocking, h)
			}
			if h.state != evicted { // else it was told already
				m.event(subject.Released, h)
			}
			m.timers.remove(h)
			return
		}
		m.timers.remove(h)
		h.lost = m.lossOf(s.now, e.Eviction)
		m.counts.setState(h, lost)
		m.losses.Add(1)
		s.lost = append(s.lost, h)
	case hold.Returned: // before the release, and so before the next one has it
		if h.state != evicted {
			m.event(subject.Released, h)
		}
	case hold.Wanted:
		m.tellWanted(s, h)
	case hold.Changed:
		m.tellChanged(s, h)
	case hold.Evicted:
		if h.state != held {
			return // its owner is about to give it back
		}
		h.lost = m.lossOf(s.now, e.Eviction)
		m.counts.setState(h, evicted)
		m.losses.Add(1)
		s.lost = append(s.lost, h)
		m.timers.remove(h)
	}
}

// lossOf is why a lock is lost. Call with m.mu held.
func (m *machine) lossOf(now wire.Now, evicted *client.Eviction) error {
	if evicted != nil {
		return &evictedError{client.Eviction{By: evicted.By, Why: printable.Text(evicted.Why)}}
	}
	m.leaps.Read(now)
	if why := m.leaps.Explain(now, m.cfg.Lease); why != "" {
		return &leaptError{why}
	}
	return ErrLost
}

// report tells why h does not hold. Call with m.mu held.
func (m *machine) report(now wire.Now, h *Hold, cause error) *Failure {
	f := &Failure{Reason: ErrHeld, Cause: cause}
	if mode, since, ours := m.table.Ours(now, h.use); ours {
		f.IsOwn, f.Own = true, Own{mode, since}
		return f
	}
	f.Report = m.table.Report(now, h.use)
	f.Reason = reasonOf(&f.Report, cause)
	return f
}

// event queues an event of h for observers. Call with m.mu held, or when h is over.
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

// acquire begins h. It reports whether the client was not closed.
func (m *machine) acquire(h *Hold, shortDeadline bool) (ok bool) {
	s := m.begin()
	if ok = !m.closed; ok {
		r, terms := &h.request, h.request.terms()
		h.asked = m.start.Add(s.now.Mono)
		m.counts.Waiting++
		h.use = m.table.Lock(s.now, hold.Request{
			Resource: r.Resource, Mode: r.Mode, Try: r.Patience == Try, ShortDeadline: shortDeadline, Note: r.Note, User: h,
			Watch: terms.Watch, Manual: terms.Manual, At: terms.at(),
		}, &s.Out)
	}
	m.finish(s)
	return ok
}

// giveUp ends a wish whose caller has gone. It may have been granted in the same
// moment: then it is given back as well, since nobody else would do it (semaphore.Acquire
// of golang.org/x/sync does the same).
func (m *machine) giveUp(h *Hold, cause error) *Failure {
	s := m.begin()
	f := h.failure
	switch {
	case f != nil: // it failed in the same moment
	case h.state == waiting:
		f = m.report(s.now, h, cause)
		m.failNow(s, h, f)
	default:
		f = m.report(s.now, h, cause)
		m.counts.fail(h, f)
		m.timers.remove(h)
		m.table.Unlock(s.now, h.use, &s.Out)
	}
	m.finish(s)
	h.cancel(cause)
	return f
}

// giveUpWaiting ends h if it waits.
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
	<-h.ready // it is decided now
	if h.failure == nil {
		_ = h.client.unlock(h)
	}
}

// inARow is how soon one Unlock follows another in a program that does not end yet: its
// releases go with the next requests, which costs less.
const inARow = 10 * time.Millisecond

// unlock takes a look at h, and counts it as unlocked if it is held: then release must
// follow. last says that nothing else is held or waited for, and that the unlock before
// is a while ago.
func (m *machine) unlock(h *Hold) (was holdState, isHeld, last bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	was = h.state
	now := m.at(time.Now())
	isHeld = was == held && m.table.HeldAt(now, h.use)
	if isHeld {
		m.counts.setState(h, unlocked)
		m.timers.remove(h)
		last = m.counts.Held+m.counts.Waiting == 0 && (m.unlockedAt == 0 || now.Mono-m.unlockedAt > inARow)
		m.unlockedAt = now.Mono
	}
	return was, isHeld, last
}

// release gives back what unlock found to be held, now or when it has been held for as long
// as it was to be at least.
func (m *machine) release(h *Hold) {
	s := m.begin()
	m.giveBack(s, h)
	m.finish(s)
}

// tick does what time alone brings.
func (m *machine) tick() {
	s := m.begin()
	m.table.Tick(s.now, &s.Out)
	m.runTimers(s)
	m.learn(s, m.members.Tick)
	m.finish(s)
}

// handle takes answers about claims.
func (m *machine) handle(list []wire.Answer) {
	s := m.begin()
	if !m.closed {
		for i := range list {
			if a := &list[i]; !isReply(a.Kind) {
				m.table.Handle(s.now, a, &s.Out)
			}
		}
	}
	m.tellRefreshed(s)
	m.finish(s)
}

// handleOne takes one answer about a claim. The machine keeps nothing of it but its
// strings and the blocker.
func (m *machine) handleOne(a *wire.Answer) {
	s := m.begin()
	if !m.closed {
		m.table.Handle(s.now, a, &s.Out)
	}
	m.tellRefreshed(s)
	m.finish(s)
}

// informed takes a node's answer to info.
func (m *machine) informed(a *wire.Answer) {
	s := m.begin()
	m.learn(s, func(now wire.Now, out *members.Out) { m.members.Hear(now, a, out) })
	m.finish(s)
}

// learn lets f work on the machine that knows the nodes, and does what comes of it. Call
// with m.mu held.
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
		s.Notes = append(s.Notes, "the configuration of the nodes has changed: held locks are lost, waiting claims continue")
		m.table.SetCluster(s.now, *out.Found, &s.Out)
	}
	if out.Ask != "" {
		s.Requests = append(s.Requests, infoRequest(m.cfg.Name, out.Ask))
	}
}

// disconnected is for a connection that may come back at another cluster of this name (C13).
func (m *machine) disconnected() {
	s := m.begin()
	m.table.Disconnected(s.now, &s.Out)
	m.finish(s)
}

// reconnected makes good what was lost meanwhile.
func (m *machine) reconnected() {
	s := m.begin()
	if !m.closed {
		m.table.Reconnected(s.now, &s.Out)
	}
	m.finish(s)
}

// fit keeps what is sent to what the connection takes.
func (m *machine) fit(most int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.core.Fit(most)
}

// send queues requests that are none of the machine's own.
func (m *machine) send(r wire.Request) {
	s := m.begin()
	if !m.closed {
		s.Requests = append(s.Requests, r)
	}
	m.finish(s)
}

// sleep is how long the loop may sleep from now on.
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

// wait is how long there is nothing to do: until the machine's next deadline, and a
// second at most while there are claims, because the lease clock must be read that often
// to notice that the machine slept (C8). Call with m.mu held.
func (m *machine) wait(now wire.Now) time.Duration {
	d, ok := m.table.Wait(now)
	if !ok {
		d = natsio.Idle
	}
	if due, ok := m.members.Wait(now); ok {
		d = min(d, due)
	}
	if at, ok := m.timers.next(); ok {
		d = min(d, max(at-now.Mono, 0))
	}
	if m.core.Claims() > 0 {
		d = min(d, time.Second)
	}
	return d
}

// rearm reports whether the loop must be woken because a deadline now comes before the
// moment that it sleeps to. Mostly it need not: a lock taken and given back at once
// leaves the timer as it was. Call with m.mu held.
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

// close keeps the machine from beginning anything more, and lists what is not over. It
// reports whether it was not closed before.
func (m *machine) close() (all []*hold.Hold, first bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, false
	}
	m.closed = true
	return m.table.All(), true
}

// cluster is the configuration that votes are counted by.
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

// failWaiting ends what waits and is concerned.
func (m *machine) failWaiting(reason, cause error, concerned func(*Hold) bool) {
	m.mu.Lock()
	all := m.table.All()
	m.mu.Unlock()
	m.inSteps(len(all), func(i int, s *step) {
		h := all[i].User.(*Hold)
		if all[i].State() != hold.Waiting || !concerned(h) { // one that failed may have made room for another
			return
		}
		m.failNow(s, h, &Failure{Reason: reason, Cause: cause})
	})
}

// failNow ends a hold that waits. Call with m.mu held.
func (m *machine) failNow(s *step, h *Hold, f *Failure) {
	h.failure = f
	m.counts.fail(h, f)
	s.ready = append(s.ready, h)
	m.table.Unlock(s.now, h.use, &s.Out)
}

// mostInStep is for how many locks one step does something that many may need at once: as
// long as it takes, the loop cannot look at its clock.
const mostInStep = 256

// inSteps calls f for 0 to n-1, in as many steps as that takes.
func (m *machine) inSteps(n int, f func(i int, s *step)) {
	for from := 0; from < n; from += mostInStep {
		s := m.begin()
		for i := from; i < min(from+mostInStep, n); i++ {
			f(i, s)
		}
		m.finish(s)
	}
}

// giveUpAll ends all uses of a client that is closed, in steps, as there may be many and
// the clock goes on for those whose turn comes last.
func (m *machine) giveUpAll(all []*hold.Hold) {
	slices.Reverse(all) // who waits last goes first, and is given nothing
	var holding []*Hold
	stands := true
	m.inSteps(len(all), func(i int, s *step) {
		h := all[i].User.(*Hold)
		switch all[i].State() {
		case hold.Waiting:
			m.failNow(s, h, &Failure{Reason: ErrClosed})
		case hold.Holding:
			if h.state == held { // else it is being unlocked, and its context may not have ended yet
				m.counts.setState(h, unlocked)
			}
			holding = append(holding, h)
		}
	})
	endAll(holding, func(*Hold) error { return ErrUnlocked })
	m.ending.Wait() // for those that are lost: nothing is published before
	m.inSteps(len(holding), func(i int, s *step) {
		if left := m.lingers(s.now, holding[i]); left > 0 {
			stands = stands && m.table.Stands(s.now, holding[i].use) >= left
			return
		}
		m.table.Unlock(s.now, holding[i].use, &s.Out)
	})
	if !stands { // what is to be held on is held by the nodes for a lease from now
		s := m.begin()
		m.table.Refresh(s.now, &s.Out)
		m.finish(s)
	}
	for more := true; more; {
		s := m.begin()
		more = m.table.ReleaseIdle(s.now, mostInStep, &s.Out)
		m.finish(s)
	}
	m.ending.Wait() // should one have been lost since: what is held back is not published at the end
}

func newInstance() uuid.UUID { return uuid.New() }

// freshInstance is one for a client that may have copies. A machine's random numbers may
// have been copied with it, but not the moment at which each reads its clock.
func freshInstance(t time.Time) uuid.UUID {
	return uuid.NewSHA1(newInstance(), strconv.AppendInt(nil, t.UnixNano(), 10))
}
