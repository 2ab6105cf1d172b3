// Package client is the asking side of qlock as a pure machine: calls, answers
// and readings of the clocks go in; requests, events and the next deadline come
// out. It has no goroutine, socket, clock or random source. Rule numbers (C1 …)
// are those of docs/protocol.md.
package client

import (
	"cmp"
	"container/heap"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/shrink"
	"github.com/qlock/qlock/internal/wire"
)

// Config is what a client is told at its start.
type Config struct {
	Name     string
	Instance uuid.UUID
	TTL      time.Duration            // lease
	MaxRuns  int                      // runs that fit into one refresh
	Seed     uint64                   // any number, of which the jitter comes; 0: none
	Trips    map[string]time.Duration // how long nodes took to answer something else, as far as known
	Cluster  wire.Config
}

// EventKind is what became of a claim.
type EventKind uint8

const (
	Held           EventKind = iota // its quorum stands, its token is known
	Lost                            // it was held and is no more (C7)
	Failed                          // it will not be held: see the claim's Report
	Wanted                          // it is held and kept, and others wait for it (N4)
	TokensReserved                  // it is held and kept, and the nodes know; or it has tokens again
	Changed                         // it waits and is watched, and what the nodes say of it may have changed
	Evicted                         // it is held, and is to end: its owner gives it back (Request.ManualEviction)
)

// Event tells the driver what became of a claim.
type Event struct {
	Kind  EventKind
	Claim *Claim
}

// Out collects what the client wants done. The caller owns it, may reuse it,
// and clears it between steps.
type Out struct {
	Requests []wire.Request
	Events   []Event
	Notes    []string // what an operator should read
	AskInfo  bool     // a node showed another configuration: ask who is there
	Renew    bool     // somebody else may be this instance: call Client.Renew before anything here is sent (C15)
}

// Reset empties o and keeps its memory.
func (o *Out) Reset() {
	clear(o.Requests)
	clear(o.Events)
	o.Requests, o.Events, o.Notes, o.AskInfo, o.Renew = o.Requests[:0], o.Events[:0], o.Notes[:0], false, false
}

// Client is all claims of one client instance. It is not safe for concurrent
// use.
type Client struct {
	cfg    Config
	digest string
	nodes  []node // by index, sorted by name
	clock  leaseClock
	now    time.Duration // lease clock at this step
	wall   int64
	leapt  bool // by more than a lease since the reading before: see step

	parting bool // another was found to be this instance: Renew tells all that are
	shown   bool // a node of the list showed the client's configuration: see Shown

	seq         uint64
	sentAt      uint64 // highest ever sent
	claims      map[uint64]*Claim
	peak        int    // of claims, for shrink.Map
	first, last *Claim // in order of seq
	due         dueHeap
	moved       int // deadlines in it that turned out to have moved, since all were looked at

	refreshAt   time.Duration // next refresh, never when zero
	refreshedAt time.Duration // the last one sent

	// Claims that are over and were answered about since, to be swept from the
	// nodes at sweepAt (C9); never when zero.
	sweepAt          time.Duration
	sweepLo, sweepHi uint64

	// Claims that nodes are to be asked for again, at againAt (C6); never when zero.
	againAt time.Duration
	again   []*Claim

	fences []uint64 // scratch
	untils []time.Duration
	trips  []float64

	counts Counts
}

// node is what the client knows of a node's life.
type node struct {
	name        string
	lives       []life // latest last
	clashUntil  time.Duration
	otherDigest string // the configuration it showed last, if not the client's
	trip        trip
}

// life is what is known of one incarnation: it had started when its first answer
// was received, and was alive when the last beat that it answered was sent.
type life struct {
	incarnation uuid.UUID
	started     time.Duration // at the latest
	alive       time.Duration // at the earliest: its end is later
}

// State is where a claim is in its life.
type State uint8

const (
	Waiting State = iota
	Holding
	Over
)

// Claim is one attempt on one resource. Its fields are the client's; a driver
// reads what methods give, and User, which is its own.
type Claim struct {
	User any

	seq              uint64
	resource         string
	mode             quorum.Mode
	at               int64
	try              bool
	suppressQueued   bool // its next acquire is
	suppressedQueued bool // its last one was
	note             string
	watched          bool // its owner is told when what the nodes say of it changes
	repeated         bool // it was asked for again, as it was not held in time
	manual           bool // its owner gives it back when it is evicted
	evicted          *Eviction
	state            State
	token            uint64
	made             time.Duration
	sentAt           uint64 // highest sent about this claim
	minFence         uint64 // fence last asked for
	lowered          uint8  // how often that was less than before
	wonAt            uint64 // highest sent about it when it came to be held

	// A claim that is kept between holders (internal/hold) has tokens for them.
	keep          bool
	keptAt        uint64 // beat with which the nodes were first told
	wanted        bool   // others wait
	known         bool   // enough nodes know that it is kept: whoever waits is heard of by one of them
	announced     bool   // all nodes were told that it is held
	tokenNext     uint64 // the token that is given out next
	tokenEnd      uint64 // behind the last that may be
	rangeSize     uint64 // how many are asked for at a time
	requestedFrom uint64 // the first of those that are asked for now, or 0

	votes []vote // by node

	askAt    time.Duration // next acquire (C4), never when zero
	askDelay time.Duration
	asked    uint64 // the fence that the last acquire wanted, 0 if none
	again    bool   // it is among those that nodes are to be asked for again

	key        time.Duration // in the due heap; the claim's deadline may have moved up since
	index      int           // in the due heap, -1 if not in it
	prev, next *Claim
}

// vote is what one node said about one claim.
type vote struct {
	until     time.Duration // the vote stands until then (C1); zero: none
	fence     uint64
	rangeSize uint64        // fences from that on that are set aside
	most      uint64        // a higher fence was wanted than the node gave, which was so much; 0: none was
	mostAt    time.Duration // then
	life      uuid.UUID     // of the node, when it gave it
	unproven  *newVote      // one that does not count yet (C13)
	keeps     bool          // it knows that the claim is kept
	wanted    bool          // it wants the vote back, and was not answered: the claim has its quorum, and is not held yet
	sentAt    uint64        // of its latest answer that counted (C2)
	asked     uint64        // beat of the latest acquire that it was sent
	again     bool          // it is to be sent another: it does not know the claim, or has a vote whose fence was not heard
	yielded   uint64        // beat of the latest yield to this node (C2)
	heard     heard
	detail    *detail // for errors and tries; nil after a grant
}

// newVote is a vote for a held claim by a life of a node that has not the memory of
// the one whose vote made the lock, or of a node that had no part in it. It may be
// one that forgot, or one of the same name in another cluster, to which the
// connection was led.
type newVote struct {
	life             uuid.UUID
	until            time.Duration
	fence, rangeSize uint64
	sentAt           uint64 // of the first message that it answered
	keeps            bool
}

// continues reports whether an answer comes from the life of the node that gave the
// vote, or from one that has its memory.
func (v *vote) continues(a *wire.Answer) bool {
	return v.life == a.Incarnation || slices.Contains(a.Continues, v.life)
}

type heard uint8

const (
	silent heard = iota
	voted
	queued
	refused
)

type detail struct {
	sentAt     uint64 // of the answer that told it, and how often that had been told again
	again      int
	place      int
	blocker    *wire.Blocker
	at         time.Duration
	recovering time.Duration
	reason     wire.Reason
	text       string
	retryable  bool
}

// New starts a client that knows its cluster.
func New(cfg Config, now wire.Now) *Client {
	c := &Client{cfg: cfg, claims: map[uint64]*Claim{}, clock: newLeaseClock(now)}
	c.now, c.wall = c.clock.now, now.Wall
	c.setCluster(cfg.Cluster)
	return c
}

func (c *Client) setCluster(cluster wire.Config) {
	cluster.Nodes = slices.Sorted(slices.Values(cluster.Nodes))
	c.cfg.Cluster = cluster
	c.digest = cluster.Digest()
	c.nodes = make([]node, len(cluster.Nodes))
	for i, name := range cluster.Nodes {
		c.nodes[i].name = name
		c.nodes[i].trip.mean = float64(c.cfg.Trips[name])
	}
	c.cfg.Trips = nil // of the first cluster only
}

// Cluster is the configuration that the client counts votes by.
func (c *Client) Cluster() wire.Config { return c.cfg.Cluster }

// Shown reports whether a node of the list has shown that configuration, in an answer
// about a claim, since Shown was called last (M5).
func (c *Client) Shown() bool {
	shown := c.shown
	c.shown = false
	return shown
}

// Digest is that configuration's.
func (c *Client) Digest() string { return c.digest }

// Claims is the number of claims that are not over.
func (c *Client) Claims() int { return len(c.claims) }

// All lists the claims that are not over, in the order in which they were made.
func (c *Client) All() []*Claim {
	out := make([]*Claim, 0, len(c.claims))
	for cl := c.first; cl != nil; cl = cl.next {
		out = append(out, cl)
	}
	return out
}

func (cl *Claim) State() State       { return cl.state }
func (cl *Claim) Token() uint64      { return cl.token }
func (cl *Claim) Resource() string   { return cl.resource }
func (cl *Claim) Mode() quorum.Mode  { return cl.mode }
func (cl *Claim) Seq() uint64        { return cl.seq }
func (cl *Claim) Made() (at int64)   { return cl.at }
func (c *Client) need(cl *Claim) int { return quorum.Size(len(c.nodes), cl.mode) }

// standsFrom leaves a margin for drift between this clock and the nodes' (C1).
func (c *Client) standsFrom(sentAt uint64) time.Duration {
	return time.Duration(sentAt)*time.Microsecond + c.cfg.TTL - wire.Margin(c.cfg.TTL) //plant:stands-until
}

// step reads the clocks and does what has become due, before anything else can
// count a vote that has run out.
func (c *Client) step(now wire.Now, out *Out) {
	c.read(now)
	if c.leapt {
		// It was not there for a whole lease: asleep, stopped, or a snapshot that is
		// brought to life while what it was taken of goes on. Nothing it had stands any
		// more, and what it would give back in the name of this instance may be the other's.
		c.leapt = false
		out.Renew = true // also if it never asked for anything: its numbers may be given out by the other //plant:leapt
	}
	for len(c.due) > 0 && c.due[0].key <= c.now {
		cl := c.due[0]
		if d := c.deadline(cl); d > c.now {
			cl.key = d
			heap.Fix(&c.due, 0)
			if c.moved++; c.moved > few+len(c.due)/16 {
				c.moveAll()
			}
			continue
		}
		c.act(cl, out)
	}
}

// read takes a reading of the clocks, and remembers if it is far from the one before.
func (c *Client) read(now wire.Now) {
	before := c.now
	c.now, c.wall = c.clock.read(now), now.Wall
	c.leapt = c.leapt || c.now-before > c.cfg.TTL
}

// few is how many deadlines that moved are always looked at one by one.
const few = 64

// moveAll does for all claims what is else done for each that is reached: a refresh
// has moved their deadlines to one moment, and in this way they are set to it in a
// fraction of the time.
func (c *Client) moveAll() {
	c.moved = 0
	for _, cl := range c.due {
		cl.key = c.deadline(cl)
	}
	heap.Init(&c.due)
}

// Tick does what time alone brings: loss, asking again, the refresh.
func (c *Client) Tick(now wire.Now, out *Out) {
	c.step(now, out)
	if c.refreshAt > 0 && c.refreshAt <= c.now {
		c.refresh(out)
	}
	if c.sweepAt > 0 && c.sweepAt <= c.now {
		c.sweep(out)
	}
	if c.againAt > 0 && c.againAt <= c.now {
		c.askAgain(out)
	}
}

// Wait is how long from now, by the lease clock, until Tick must be called; the
// driver calls it at least once a second while there are claims, as C8 wants.
func (c *Client) Wait() (time.Duration, bool) {
	var d time.Duration
	if len(c.due) > 0 {
		d = c.due[0].key
	}
	if c.refreshAt > 0 && (d == 0 || c.refreshAt < d) {
		d = c.refreshAt
	}
	if c.sweepAt > 0 && (d == 0 || c.sweepAt < d) {
		d = c.sweepAt
	}
	if c.againAt > 0 && (d == 0 || c.againAt < d) {
		d = c.againAt
	}
	if d == 0 {
		return 0, false
	}
	return max(d-c.now, 0), true
}

// Request is what a claim is for.
type Request struct {
	Resource      string
	Mode          quorum.Mode
	Try           bool   // it fails as soon as another claim is known to be in the way (C10)
	Keep          bool   // its client keeps it between holders
	ShortDeadline bool   // who waits gives up soon, and will want to know why
	Watch         bool   // who waits wants to see what for: see Client.Watch
	At            int64  // its age, a wall clock in microseconds, if it is older than this call
	Note          string // for people
	User          any
}

// Claim makes a claim and asks all nodes for their votes.
func (c *Client) Claim(now wire.Now, w Request, out *Out) *Claim {
	c.step(now, out)
	c.seq++
	cl := &Claim{
		User: w.User, seq: c.seq, resource: w.Resource, mode: w.Mode, try: w.Try, note: w.Note,
		at: max(now.Wall, 0), made: c.now, votes: make([]vote, len(c.nodes)), index: -1,
	}
	if w.At > 0 {
		cl.at = min(cl.at, w.At)
	}
	if w.Keep {
		cl.keep, cl.rangeSize = true, firstRange
	}
	c.claims[cl.seq] = cl
	if cl.prev = c.last; cl.prev != nil {
		cl.prev.next = cl
	} else {
		c.first = cl
	}
	c.last = cl
	if c.refreshAt == 0 {
		c.refreshAt = c.nextRefresh()
	}
	cl.askDelay = c.firstDelay(cl)
	cl.watched = w.Watch
	cl.suppressQueued = !w.Try && !w.ShortDeadline && !w.Watch && c.near(c.need(cl))
	c.ask(cl, "", out)
	return cl
}

// ask sends the claim's acquire, to all nodes or to one, and sets the next (C4).
func (c *Client) ask(cl *Claim, only string, out *Out) {
	r := wire.Request{
		Verb: wire.Acquire, Client: c.cfg.Name, Resource: cl.resource,
		Claim: c.id(cl), SentAt: c.nextSentAt(cl), Mode: cl.mode, At: cl.at, TTL: c.cfg.TTL,
		MinFence: cl.minFence, Try: cl.try, SuppressQueued: cl.suppressQueued, Check: c.torn(cl) /*plant:torn-said*/, Digest: c.digest, Note: cl.note, Node: only,
	}
	if cl.keep {
		r.Keep = true
		if cl.mode == quorum.Exclusive {
			r.RangeSize = cl.rangeSize
		}
	}
	if cl.state == Holding {
		// Tokens up to the last that was given out were given out.
		r.Held, r.MinFence = true, max(cl.tokenNext-1, cl.requestedFrom)
		if cl.requestedFrom > 0 || cl.keep && !cl.known {
			cl.askAt = c.now + cl.askDelay
			cl.askDelay = min(2*cl.askDelay, c.cfg.TTL/3)
			c.schedule(cl)
		}
	}
	cl.asked = cl.minFence
	out.Requests = append(out.Requests, r)
	for i := range cl.votes {
		if only == "" || c.nodes[i].name == only {
			cl.votes[i].asked, cl.votes[i].again = cl.sentAt, false
		}
	}
	if only != "" {
		return
	}
	if cl.state != Waiting {
		cl.announced = true
		return
	}
	cl.suppressedQueued, cl.suppressQueued = cl.suppressQueued, false
	if cl.suppressedQueued {
		cl.askAt = c.now + c.quietTime(cl) //plant:ask-quiet
	} else {
		cl.askAt = c.now + cl.askDelay //plant:ask-again
		cl.askDelay = min(2*cl.askDelay, c.cfg.TTL/3)
	}
	c.schedule(cl)
}

func (c *Client) id(cl *Claim) wire.ClaimID {
	return wire.ClaimID{Instance: c.cfg.Instance, Seq: cl.seq}
}

// nextSentAt is the lease clock in microseconds, or one more than the claim's last
// beat. That a beat is the time of sending spares the client a memory of when it
// sent what (C1). It may run ahead of the clock by one microsecond for each
// further message about one claim within one microsecond; the margin covers it.
func (c *Client) nextSentAt(cl *Claim) uint64 {
	cl.sentAt = max(uint64(c.now/time.Microsecond), cl.sentAt+1)
	c.sentAt = max(c.sentAt, cl.sentAt)
	return cl.sentAt
}

// Release ends a claim, held or waiting.
func (c *Client) Release(now wire.Now, cl *Claim, out *Out) {
	c.step(now, out)
	if cl.state != Over {
		c.end(cl, out)
	}
}

// end forgets the claim and tells the nodes so. Should the message be lost, the
// next refresh does not list the claim; there is one even if no claim is left.
func (c *Client) end(cl *Claim, out *Out) {
	c.forget(cl)
	c.releaseMsg(cl.seq, cl.resource, out)
}

// forget is the end of a claim without a word to the nodes.
func (c *Client) forget(cl *Claim) {
	cl.state = Over
	delete(c.claims, cl.seq)
	c.claims = shrink.Map(c.claims, &c.peak)
	if cl.index >= 0 {
		heap.Remove(&c.due, cl.index)
	}
	if cl.prev != nil {
		cl.prev.next = cl.next
	} else {
		c.first = cl.next
	}
	if cl.next != nil {
		cl.next.prev = cl.prev
	} else {
		c.last = cl.prev
	}
	cl.prev, cl.next = nil, nil
}

func (c *Client) releaseMsg(seq uint64, resource string, out *Out) {
	out.Requests = append(out.Requests, wire.Request{
		Verb: wire.Release, Client: c.cfg.Name, Resource: resource,
		Claim: wire.ClaimID{Instance: c.cfg.Instance, Seq: seq}, Now: max(c.wall, 0),
	})
}

// Disconnected tells the client that its connection is away. It may come back to
// another cluster of the same names: votes from there and from here must not add up,
// so a claim that is not held yet counts from zero (C13).
func (c *Client) Disconnected(now wire.Now, out *Out) {
	c.step(now, out)
	for cl := c.first; cl != nil; cl = cl.next {
		c.fromZero(cl)
	}
}

// fromZero forgets the votes of a claim that is not held, and of one that is held those
// that do not count yet.
func (c *Client) fromZero(cl *Claim) {
	for i := range cl.votes {
		v := &cl.votes[i]
		v.unproven = nil //plant:new-vote-dropped
		if cl.state == Waiting {
			// Nothing counts that answers what was sent before: it may be read only now.
			v.yielded, v.until = cl.sentAt+1, 0 //plant:from-zero
		}
	}
}

// Reconnected makes good at once what was lost while the connection was away
// (C6). A driver calls Disconnected too, when the connection goes away: answers to
// what was buffered meanwhile may be read before it hears that it is back.
func (c *Client) Reconnected(now wire.Now, out *Out) {
	c.step(now, out)
	for cl := c.first; cl != nil; cl = cl.next {
		ask := cl.state == Waiting && (cl.anyVote(c.now) || !c.settled(cl))
		if c.fromZero(cl); ask {
			cl.suppressQueued = false
			c.ask(cl, "", out)
		}
	}
	if c.refreshAt > 0 {
		c.refresh(out)
	}
}

func (cl *Claim) anyVote(now time.Duration) bool {
	return slices.ContainsFunc(cl.votes, func(v vote) bool { return v.until > now })
}

// refresh names all claims that live, in as many messages as they need (C6).
func (c *Client) refresh(out *Out) {
	c.refreshedAt = c.now
	c.refreshAt, c.sweepAt = 0, 0
	if c.first != nil {
		c.refreshAt = c.nextRefresh()
	}
	c.list(c.first, 1, c.seq /*plant:last-number*/, out)
	for cl := c.first; cl != nil; cl = cl.next {
		// Held by votes that do not agree, as it may be when nodes went and came back: from
		// outside that looks like one that is not held yet, and with a token that nobody knows.
		if cl.state == Holding && !cl.announced && c.carried(cl, cl.token) < c.need(cl) { //plant:held-told
			c.ask(cl, "", out)
		}
	}
}

// nextRefresh is a third of a lease from now, less a tenth of that at most: many clients
// that one event brought into step, a node's restart or a deploy, are out of step again
// after a few leases. It is never later, so a claim is kept as well as without (C6).
func (c *Client) nextRefresh() time.Duration {
	at := c.now + c.cfg.TTL/3
	if c.cfg.Seed == 0 { //plant:jitter
		return at
	}
	// The mixing of splitmix64; the beat differs each time.
	x := c.cfg.Seed + (c.sentAt+1)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	x ^= x >> 31
	return at - time.Duration(x%uint64(max(c.cfg.TTL/30, 1)))
}

// sweepSoon remembers that a node answered about a claim that is over. Mostly
// that is the last node's answer, which came after the lock was already given
// back; but it may be that of a node that heard acquire after release and has a
// vote for nobody. Nothing tells the two apart, so the nodes are told once more
// that the claim is over: not one by one, which would be a message for each
// lock, but in one refresh of that range for all that came within moments (C9).
func (c *Client) sweepSoon(seq uint64) {
	if c.sweepAt == 0 {
		c.sweepAt = c.now + c.moment()
		c.sweepLo, c.sweepHi = seq, seq
	}
	c.sweepLo, c.sweepHi = min(c.sweepLo, seq), max(c.sweepHi, seq)
}

func (c *Client) sweep(out *Out) {
	c.sweepAt = 0
	from := c.last
	for from != nil && from.prev != nil && from.prev.seq >= c.sweepLo {
		from = from.prev
	}
	if from != nil && from.seq < c.sweepLo {
		from = nil
	}
	c.list(from, c.sweepLo, c.sweepHi, out)
}

// askSoon has a claim acquired again at a node, with all others that are to be within
// moments: when several nodes forgot, each says so of every claim, and one acquire of
// each is enough for all of them (C6).
func (c *Client) askSoon(cl *Claim, i int) {
	cl.votes[i].again = true
	if !cl.again {
		cl.again = true
		c.again = append(c.again, cl)
	}
	if c.againAt == 0 {
		c.againAt = c.now + c.moment()
	}
}

// askAgain acquires again what askSoon gathered: at the one node that wants it, or at
// all if several do.
func (c *Client) askAgain(out *Out) {
	all := c.again
	c.again, c.againAt = nil, 0
	for _, cl := range all {
		cl.again = false
		if cl.state == Over {
			continue
		}
		where, only := 0, ""
		for i := range cl.votes {
			if cl.votes[i].again {
				where++
				only = c.nodes[i].name
			}
		}
		switch where {
		case 0: // it was asked for meanwhile
		case 1:
			c.ask(cl, only, out)
		default:
			c.ask(cl, "", out)
		}
	}
}

// Fit tells the client how many bytes of a request its connection takes from now on.
func (c *Client) Fit(bytes int) { c.cfg.MaxRuns = wire.RunsIn(bytes) }

// list sends the refresh of the range lo to hi, whose first living claim is from.
// What it does not name within the range is dropped by the nodes: hi is never
// above the last number given out, and none is given out meanwhile (C6).
func (c *Client) list(from *Claim, lo, hi uint64, out *Out) {
	sentAt := max(uint64(c.now/time.Microsecond), c.sentAt+1)
	c.sentAt = sentAt
	r := wire.Request{
		Verb: wire.Refresh, Client: c.cfg.Name,
		Claim: wire.ClaimID{Instance: c.cfg.Instance}, SentAt: sentAt, Lo: lo,
	}
	for cl := from; cl != nil && cl.seq <= hi; cl = cl.next {
		cl.sentAt = sentAt
		if n := len(r.Live); n == c.cfg.MaxRuns && r.Live[n-1].Hi+1 != cl.seq {
			r.Hi = r.Live[n-1].Hi
			out.Requests = append(out.Requests, r)
			r.Lo, r.Live = r.Hi+1, nil
		}
		r.Live = r.Live.Add(cl.seq)
	}
	r.Hi = hi
	out.Requests = append(out.Requests, r)
}

// deadline is when something must be done about the claim: it asks again, or
// while it is held refreshes early, or is lost.
func (c *Client) deadline(cl *Claim) time.Duration {
	const never = 1 << 62
	switch cl.state {
	case Waiting:
		if cl.askAt > 0 {
			return cl.askAt
		}
	case Holding:
		lost := c.lostAt(cl)
		early := lost - c.cfg.TTL/2
		if early < c.refreshedAt+mostEarlyPause(c.cfg.TTL) {
			early = max(early, c.refreshedAt+c.earlyPause(cl))
		}
		if cl.askAt > 0 {
			early = min(early, cl.askAt)
		}
		return min(lost, early) //plant:hold-deadline
	}
	return never
}

// lostAt is when the standing votes become fewer than a quorum (C7).
func (c *Client) lostAt(cl *Claim) time.Duration {
	c.untils = c.untils[:0]
	for i := range cl.votes {
		c.untils = append(c.untils, cl.votes[i].until)
	}
	slices.Sort(c.untils)
	return c.untils[len(c.untils)-c.need(cl)]
}

// schedule puts the claim in its place in the heap after its deadline moved. A
// deadline that moved up may wait until the old one is reached.
func (c *Client) schedule(cl *Claim) {
	d := c.deadline(cl)
	switch {
	case cl.index < 0:
		cl.key = d
		heap.Push(&c.due, cl)
	case d < cl.key:
		cl.key = d
		heap.Fix(&c.due, cl.index)
	}
}

// act does what the claim's deadline is for.
func (c *Client) act(cl *Claim, out *Out) {
	switch cl.state {
	case Waiting:
		if c.settled(cl) && !cl.watched {
			cl.askAt = 0 // the refresh asks for it from now on
			cl.askDelay = c.firstDelay(cl)
			cl.key = c.deadline(cl)
			heap.Fix(&c.due, cl.index)
			return
		}
		cl.repeated = true
		c.ask(cl, "", out)
		cl.changed(out) // also if nobody answers
	case Holding:
		if c.lostAt(cl) <= c.now { //plant:votes-over
			c.lose(cl, out)
			return
		}
		if cl.askAt > 0 && cl.askAt <= c.now {
			cl.askAt = 0
			if cl.requestedFrom > 0 || cl.keep && !cl.known {
				c.ask(cl, "", out)
			}
			return
		}
		c.refresh(out) // its votes stand for less than half the lease (C6)
	}
}

// lose ends a held claim: it can never be held again (C7).
func (c *Client) lose(cl *Claim, out *Out) {
	var foreign []string
	for i := range cl.votes {
		if cl.votes[i].unproven != nil {
			foreign = append(foreign, c.nodes[i].name)
		}
	}
	if len(foreign) > 0 {
		out.Notes = append(out.Notes, fmt.Sprintf(
			"%q is lost although nodes %v voted for it again: no node that knew it before has answered since. Perhaps the connection now leads to another cluster with the same name", cl.resource, foreign))
	}
	c.end(cl, out)
	out.Events = append(out.Events, Event{Lost, cl})
}

// Eviction is who wanted a claim to end, and why.
type Eviction struct{ By, Why string }

func (e *Eviction) Error() string {
	if e.Why == "" {
		return "by " + e.By
	}
	return fmt.Sprintf("by %s: %s", e.By, e.Why)
}

// Eviction tells why the claim is over, nil if it was not evicted.
func (cl *Claim) Eviction() *Eviction { return cl.evicted }

// evict ends a claim because somebody who may wants it to end. One node's word is
// enough: it was asked, and its lease there goes on no more (C12).
func (c *Client) evict(cl *Claim, a *wire.Answer, out *Out) {
	again := cl.evicted != nil
	cl.evicted = &Eviction{a.By, a.Text}
	if cl.state == Holding && cl.manual {
		if !again {
			out.Events = append(out.Events, Event{Evicted, cl})
			if !cl.announced { // a recall cannot ask it any more whether it is held: a try would wait for it (C10)
				c.ask(cl, "", out)
			}
		}
		return //plant:manual-evict
	}
	if cl.state == Holding {
		c.lose(cl, out)
		return
	}
	c.end(cl, out)
	out.Events = append(out.Events, Event{Failed, cl})
}

// settled reports that the claim has its place: asking its nodes again would
// tell it nothing, and a crowd of waiters that asked would be a herd. Enough
// nodes have it queued to keep it from a quorum, or every node has answered. Who
// then forgets it, or votes for it in a message that is lost, is found by the
// refresh.
//
// A try is not content with a place: it must learn who is in its way as that
// changes, and does not live long enough to be one of a crowd.
func (c *Client) settled(cl *Claim) bool {
	if cl.try {
		return false
	}
	waits, answered, standing := 0, 0, 0
	for i := range cl.votes {
		switch v := &cl.votes[i]; {
		case v.until > c.now:
			standing++
			answered++
		case v.heard == queued:
			waits++
			answered++
		}
	}
	if standing >= c.need(cl) || c.torn(cl) /*plant:torn-asks*/ {
		return false // different fences, or one node knows more than another (C14): it must ask
	}
	return waits > len(cl.votes)-c.need(cl) || answered == len(cl.votes)
}

// torn reports that the nodes contradict each other about a claim: one gave it its
// vote, and another has somebody before it, who may be over and was not heard to be
// (C14). So it is also where a quorum gave votes with different fences, and one of these
// nodes did not give more when it was asked: it may be cut off, and the vote of the other
// node is needed.
func (c *Client) torn(cl *Claim) bool {
	blocked, standing := false, 0
	for i := range cl.votes {
		if v := &cl.votes[i]; v.until > c.now {
			standing++
		} else {
			blocked = blocked || v.heard == queued && !v.idle() //plant:waits-for-whom
		}
	}
	again := cl.minFence > 0 && cl.asked == cl.minFence //plant:torn-fences
	return cl.state == Waiting && blocked && standing > 0 && (standing < c.need(cl) || again)
}

// index is where a node stands among the nodes, and in the votes of each claim.
func (c *Client) index(name string) (i int, ok bool) {
	return slices.BinarySearchFunc(c.nodes, name, func(n node, name string) int { return cmp.Compare(n.name, name) })
}

// Handle takes an answer of a node.
func (c *Client) Handle(now wire.Now, a *wire.Answer, out *Out) {
	c.step(now, out)
	if a.Client != c.cfg.Name { //plant:answer-client
		return // a node answers where a request says: another's may say it is here
	}
	if a.Claim.Instance != c.cfg.Instance {
		return // not ours
	}
	i, ok := c.index(a.Node)
	if a.SentAt > c.sentAt { // of a message that was never sent, or not from here
		if ok && a.Digest == c.digest {
			c.noteCopy(out) //plant:copy-noticed
		}
		return
	}
	if !ok {
		out.AskInfo = out.AskInfo || a.Digest != c.digest
		return
	}
	n := &c.nodes[i]
	if a.Digest != c.digest { //plant:answer-digest
		n.otherDigest = a.Digest
		out.AskInfo = true
		return
	}
	n.otherDigest = ""
	c.shown = true //plant:members-shown
	if !c.checkIncarnation(i, a, out) {
		return
	}
	if a.Kind == wire.Refused && a.Reason == wire.ReasonCopy {
		c.noteCopy(out)
		return
	}
	n.trip.hear(c.now, a)
	if a.Kind == wire.Refreshed {
		c.refreshed(i, a, out)
		return
	}
	if a.Claim.Seq > c.seq {
		return
	}
	cl := c.claims[a.Claim.Seq]
	if cl == nil {
		if a.Kind != wire.Refused {
			c.sweepSoon(a.Claim.Seq) // over is over: undo what came too late (C9) //plant:sweep
		}
		return
	}
	v := &cl.votes[i]
	switch a.Kind {
	case wire.Queued:
		// A refreshed that overtook it says that the claim waits, and not for whom.
		if v.heard == queued && v.yielded <= a.SentAt && a.SentAt < v.sentAt && !v.knows(a) {
			v.detail = c.queuedDetail(a)
			c.evaluate(cl, out)
			cl.changed(out)
			return
		}
	case wire.Recall:
		c.counts.Recalls++
		if a.For != "" { //plant:recall-for-another
			c.recallFor(cl, a.For, out)
			return
		}
		c.recall(cl, i, a.Behind, out)
		return
	case wire.Evicted:
		c.evict(cl, a, out)
		return
	}
	if a.SentAt > cl.sentAt /*plant:beat-unsent*/ || a.SentAt < v.yielded || a.SentAt < v.sentAt ||
		a.SentAt == v.sentAt && v.heard == voted && a.Kind != wire.Granted {
		return // from before the yield, or older than what this node said since (C2)
	}
	if a.Kind == wire.Queued && v.heard == queued && v.knows(a) {
		return
	}
	v.sentAt = a.SentAt
	switch a.Kind {
	case wire.Granted:
		if cl.state == Holding && a.SentAt > cl.wonAt && !v.continues(a) { //plant:new-life
			first := a.SentAt
			if f := v.unproven; f != nil && f.life == a.Incarnation {
				first = f.sentAt
			}
			v.unproven = &newVote{a.Incarnation, c.standsFrom(a.SentAt), a.Fence, max(a.RangeSize, 1), first, cl.keep && a.SentAt >= cl.keptAt}
			return
		}
		v.unproven = nil
		v.life = a.Incarnation
		v.heard, v.detail, v.fence, v.rangeSize = voted, nil, a.Fence, max(a.RangeSize, 1)
		if v.until = c.standsFrom(a.SentAt); a.Most > 0 {
			v.most, v.mostAt = a.Most, c.now
		}
		v.keeps = cl.keep && a.SentAt >= cl.keptAt
		if a.Behind {
			c.behind(cl, out)
		}
		if cl.state == Holding {
			c.confirmed(cl, a.SentAt)
		}
	case wire.Queued:
		if b := a.Blocker; cl.try && b != nil && c.over(b) {
			c.sweepSoon(b.Claim.Seq) // should its release be lost (C9)
		}
		v.heard = queued
		c.unvoted(cl, v)
		v.detail = c.queuedDetail(a)
	case wire.Refused:
		v.heard = refused
		c.unvoted(cl, v)
		v.detail = &detail{sentAt: a.SentAt, reason: a.Reason, text: a.Text, retryable: a.Retryable, at: c.now}
	}
	c.evaluate(cl, out)
	cl.changed(out)
}

func (c *Client) queuedDetail(a *wire.Answer) *detail {
	return &detail{sentAt: a.SentAt, again: a.Again, place: a.Place, blocker: a.Blocker, at: c.now, recovering: a.Recovering}
}

// knows reports whether the node said something since about the claim's place: of what
// it told again, unasked, the beat is the same.
func (v *vote) knows(a *wire.Answer) bool {
	d := v.detail
	return d != nil && (a.SentAt < d.sentAt || a.SentAt == d.sentAt /*plant:told-before*/ && a.Again < d.again)
}

// refreshSoon has the next refresh within moments, once for all that ask.
func (c *Client) refreshSoon() {
	soon := max(c.now, c.refreshedAt+c.cfg.TTL/100)
	if c.refreshAt == 0 || c.refreshAt > soon {
		c.refreshAt = soon
	}
}

// checkIncarnation follows a node's incarnations and reports whether its name can count. A
// node that restarts has one life after the other, and answers of an earlier one
// may come late; they do no harm, since a node that forgot votes waits until they
// have run out. But two lives of which each was alive after the other had started
// are two nodes with one name, and count for neither (N9).
func (c *Client) checkIncarnation(i int, a *wire.Answer, out *Out) bool {
	n := &c.nodes[i]
	sent := time.Duration(a.SentAt) * time.Microsecond
	k := slices.IndexFunc(n.lives, func(l life) bool { return l.incarnation == a.Incarnation })
	if k < 0 {
		if len(n.lives) > 0 {
			c.refreshSoon() // it may know nothing of the claims
		}
		if len(n.lives) == 8 {
			n.lives = slices.Delete(n.lives, 0, 1)
		}
		n.lives = append(n.lives, life{a.Incarnation, c.now, sent})
		return c.now >= n.clashUntil
	}
	n.lives[k].alive = max(n.lives[k].alive, sent)
	for j, other := range n.lives {
		if j == k || n.lives[k].alive <= other.started || other.alive <= n.lives[k].started {
			continue
		}
		out.Notes = append(out.Notes, fmt.Sprintf("two nodes named %q answer in turn (incarnations %s and %s): neither counts", n.name, other.incarnation, a.Incarnation))
		n.clashUntil = c.now + c.clashTime()
		n.lives = nil
		for cl := c.first; cl != nil; {
			next := cl.next
			v := &cl.votes[i]
			*v = vote{sentAt: v.sentAt, yielded: v.yielded}
			c.evaluate(cl, out)
			cl = next
		}
		break
	}
	return c.now >= n.clashUntil
}

func (c *Client) clashTime() time.Duration {
	return c.cfg.Cluster.MaxTTL + wire.Margin(c.cfg.Cluster.MaxTTL)
}

// evaluate draws the conclusion from the votes as they are now.
func (c *Client) evaluate(cl *Claim, out *Out) {
	switch cl.state {
	case Holding:
		if outcome, _ := c.tally(cl); outcome != quorum.Won { //plant:votes-missing
			c.lose(cl, out)
			return
		}
		c.stocked(cl, out)
		c.schedule(cl)
	case Waiting:
		switch outcome, fence := c.tally(cl); outcome {
		case quorum.Won:
			cl.state, cl.token, cl.wonAt = Holding, fence, cl.sentAt // C3
			cl.tokenNext, cl.tokenEnd = fence+1, fence+c.reserved(cl, fence)
			cl.askAt, cl.askDelay = 0, c.firstDelay(cl)
			cl.known = cl.keep && c.keepers(cl) >= c.need(cl)
			c.schedule(cl)
			out.Events = append(out.Events, Event{Held, cl})
			if cl.wanted {
				out.Events = append(out.Events, Event{Wanted, cl})
			}
			for i := range cl.votes {
				if cl.votes[i].wanted { //plant:recall-owed
					c.ask(cl, c.nodes[i].name, out) // as an answer to the recall (C5)
				}
			}
		case quorum.Split:
			fence, wait := c.attainable(cl, fence)
			if cl.wants(&cl.minFence, fence) { // ask at once, but once for each fence (C3)
				c.ask(cl, "", out)
				return
			}
			if cl.askAt == 0 { //plant:split-asks
				cl.askAt = c.now + cl.askDelay
			}
			if wait > 0 { // as it said; but it may go on to say so
				cl.askAt = min(cl.askAt, c.now+max(wait, cl.askDelay/64)) //plant:split-waits
			}
			c.schedule(cl)
		case quorum.Pending:
			if c.cannotWin(cl) {
				c.end(cl, out)
				out.Events = append(out.Events, Event{Failed, cl})
			} else if cl.askAt == 0 && (cl.watched || !c.settled(cl)) { //plant:pending-asks
				cl.askAt = c.now + cl.askDelay
				c.schedule(cl)
			}
		}
	}
}

// tally is the one place where a claim's votes are counted; lostAt is when they will count
// no more.
func (c *Client) tally(cl *Claim) (quorum.Outcome, uint64) {
	c.fences = c.fences[:0]
	for i := range cl.votes {
		if v := &cl.votes[i]; v.until > c.now {
			c.fences = append(c.fences, v.fence)
		}
	}
	return quorum.Held(c.fences, c.need(cl), cl.token)
}

// cannotWin reports that the claim fails: no quorum is possible without the nodes
// that refused (C11), or at which it is a try and what is in its way goes first
// (C10). A younger claim that has votes does not, however many: it is being
// recalled, and either yields or shows that it is held. So nothing but a holder goes
// before the oldest of several tries, and on a free lock that one does not fail.
func (c *Client) cannotWin(cl *Claim) bool {
	against := 0
	for i := range cl.votes {
		v := &cl.votes[i]
		if v.heard == refused {
			against++
		} else if b := v.blocker(); cl.try && b != nil && b.Ahead /*plant:blocker-ahead*/ && !c.over(b) /*plant:blocker-over*/ {
			against++
		}
	}
	return len(cl.votes)-against < c.need(cl) //plant:hopeless
}

// over reports whether a claim was this client's, and is no more: its release is on
// its way to the node that still has it. What another client calls by such an id is
// another's claim.
func (c *Client) over(b *wire.Blocker) bool {
	id := b.Claim
	return b.Client == c.cfg.Name && id.Instance == c.cfg.Instance && id.Seq <= c.seq && c.claims[id.Seq] == nil
}

// idle reports whether the node has the claim queued only because it does not vote. That
// refreshed said that the claim waits tells neither for whom nor why: then there may be
// somebody in its way.
func (v *vote) idle() bool {
	return v.detail != nil && v.detail.blocker == nil && v.detail.recovering > 0
}

func (v *vote) blocker() *wire.Blocker {
	if v.heard != queued || v.detail == nil {
		return nil
	}
	return v.detail.blocker
}

// recall gives the node's vote back to an older claim, unless the claim is held,
// which it then says, or has its quorum (C5). The vote is given back also if the
// claim never heard of it; and again at every recall, since the yield may have
// been lost.
func (c *Client) recall(cl *Claim, i int, behind bool, out *Out) {
	if cl.state == Holding { //plant:holder-recalled
		if cl.keep {
			c.behind(cl, out)
		}
		if !behind {
			c.ask(cl, c.nodes[i].name, out) // it says that it is held, and is not recalled again
		}
		return
	}
	if behind { // younger ones wait, as they should
		c.behind(cl, out)
		return
	}
	v := &cl.votes[i]
	if outcome, _ := c.tally(cl); outcome != quorum.Pending { //plant:quorum-recalled
		v.wanted = true
		return
	}
	c.counts.Yields++
	sentAt := c.nextSentAt(cl)
	// What the node said before does not count any more (C2).
	v.yielded = sentAt
	v.until, v.heard, v.detail = 0, queued, &detail{sentAt: sentAt, at: c.now} //plant:yielded
	v.wanted = false
	out.Requests = append(out.Requests, wire.Request{
		Verb: wire.Yield, Client: c.cfg.Name, Resource: cl.resource,
		Claim: c.id(cl), SentAt: sentAt, Node: c.nodes[i].name,
	})
	c.evaluate(cl, out)
}

// recallFor is a recall by a node that is not heard, which another passes on (N12). All
// that were asked to may do so: one answer is enough.
func (c *Client) recallFor(cl *Claim, name string, out *Out) {
	i, ok := c.index(name)
	if !ok {
		return
	}
	said := cl.votes[i].yielded
	if cl.state == Holding {
		said = cl.votes[i].asked
	}
	if said > 0 && c.now < time.Duration(said)*time.Microsecond+leastDelay {
		return
	}
	c.recall(cl, i, false, out)
}

// confirmed counts the new votes for a held claim that were asked for before a node that
// knew the claim all the time confirmed it: so it is one cluster that answers (C13).
func (c *Client) confirmed(cl *Claim, sentAt uint64) {
	counted := false
	for i := range cl.votes {
		v := &cl.votes[i]
		if f := v.unproven; f != nil && f.sentAt < sentAt {
			v.life, v.until, v.fence, v.rangeSize, v.heard, v.keeps = f.life, max(v.until, f.until), f.fence, f.rangeSize, voted, f.keeps
			v.unproven, counted = nil, true
		}
	}
	if counted && cl.state == Holding {
		c.schedule(cl)
	}
}

// refreshed extends the votes that still stand, and only those (C6); a claim
// that the node does not know, or whose vote the client did not hear of, is
// acquired again there.
func (c *Client) refreshed(i int, a *wire.Answer, out *Out) {
	until := c.standsFrom(a.SentAt)
	for cl := c.first; cl != nil; {
		next := cl.next
		if cl.seq > a.Hi {
			break
		}
		v := &cl.votes[i]
		if cl.seq < a.Lo || a.SentAt > cl.sentAt || a.SentAt < v.yielded || a.SentAt < v.sentAt {
			cl = next
			continue
		}
		fresh := a.SentAt > v.sentAt
		switch {
		case a.Unknown.Has(cl.seq):
			if fresh {
				v.sentAt = a.SentAt
				v.heard, v.detail = silent, nil
				c.unvoted(cl, v)
				c.evaluate(cl, out)
				if cl.state != Over && a.SentAt > v.asked { // else an acquire that it had not seen is on its way
					c.askSoon(cl, i) //plant:forgotten
				}
			}
		case a.Waiting.Has(cl.seq):
			if fresh || v.heard != voted {
				if v.heard == voted { // what it was told before that vote is over
					v.detail = &detail{sentAt: v.sentAt, again: math.MaxInt, at: c.now}
				}
				v.sentAt = a.SentAt
				v.heard = queued
				c.unvoted(cl, v)
				c.evaluate(cl, out)
			}
		case v.until > c.now /*plant:vote-stands*/ && (cl.state != Holding || v.continues(a)):
			v.sentAt, v.life = a.SentAt, a.Incarnation
			v.until = max(v.until, until)
			c.confirmed(cl, a.SentAt)
		case v.unproven != nil && v.unproven.life == a.Incarnation:
			v.sentAt = a.SentAt
			v.unproven.until = until
		case fresh:
			v.sentAt = a.SentAt
			c.askSoon(cl, i) // its fence must be heard from itself
		}
		cl = next
	}
}

// unvoted notes that a node says it has no vote of the claim. A vote that makes
// up a held claim stands all the same, until its time is over (C1): the client
// gave it back neither by release nor by yield, so the node has forgotten it, and
// gives none until the votes that it forgot have run out (N8). Else a node that
// crashed would do the holder more harm by coming back than by staying away.
func (c *Client) unvoted(cl *Claim, v *vote) {
	if cl.state != Holding {
		v.until = 0
	}
}

// SetCluster takes another configuration, on which a quorum of its nodes agreed.
// Another list of nodes is another cluster: votes of the old one are worth
// nothing in it, so what is held is lost, and what waits asks anew.
func (c *Client) SetCluster(now wire.Now, cluster wire.Config, out *Out) {
	c.step(now, out)
	if cluster.Digest() == c.digest {
		return
	}
	for cl := c.first; cl != nil; {
		next := cl.next
		if cl.state == Holding {
			c.lose(cl, out)
		}
		cl = next
	}
	c.setCluster(cluster)
	c.shown = false
	for cl := c.first; cl != nil; cl = cl.next {
		cl.votes = make([]vote, len(c.nodes))
		cl.minFence, cl.askDelay = 0, c.firstDelay(cl)
		c.ask(cl, "", out)
		for i := range cl.votes {
			// Nothing that answers what was asked before counts: not a refusal because
			// of the old configuration, nor, should that one come back, a vote that was
			// yielded in it (C2).
			cl.votes[i].yielded = cl.sentAt
		}
	}
}

// dueHeap orders claims by when something must be done about them.
type dueHeap []*Claim

func (h dueHeap) Len() int { return len(h) }
func (h dueHeap) Less(i, j int) bool {
	if h[i].key != h[j].key {
		return h[i].key < h[j].key
	}
	return h[i].seq < h[j].seq
}
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *dueHeap) Push(x any) {
	cl := x.(*Claim)
	cl.index = len(*h)
	*h = append(*h, cl)
}
func (h *dueHeap) Pop() any {
	old := *h
	cl := old[len(old)-1]
	old[len(old)-1] = nil
	*h = shrink.Slice(old[:len(old)-1])
	cl.index = -1
	return cl
}
