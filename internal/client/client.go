// Package client is the client side of qlock as a pure state machine. Its inputs are
// calls, answers of nodes and readings of the clocks; its outputs are requests, events
// and the next deadline. It has no goroutine, socket, clock or random source. The rule
// numbers (C1 and so on) are those of docs/protocol.md.
//
// All values are for use by one goroutine at a time. Methods that take a wire.Now expect
// readings in the order in which they were taken.
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
	"github.com/qlock/qlock/internal/sat"
	"github.com/qlock/qlock/internal/shrink"
	"github.com/qlock/qlock/internal/wire"
)

// Config is the configuration with which a client starts.
type Config struct {
	Name     string
	Instance uuid.UUID
	TTL      time.Duration // duration of a lease
	MaxRuns  int           // runs of claim numbers that fit into one refresh
	// Seed is the seed of the jitter (C6), which should differ between clients; 0: no jitter.
	Seed uint64
	// Trips has the round trips to nodes as measured by other messages, as far as known.
	Trips   map[string]time.Duration
	Cluster wire.Config
}

// EventKind says what happened to a claim.
type EventKind uint8

const (
	// Held: a quorum of votes stands, and the token is known (C3).
	Held EventKind = iota
	// Lost: the claim was held and is no longer (C7).
	Lost
	// Failed: the claim will not be held. Client.Report says why.
	Failed
	// Wanted: the claim is held and kept, and others wait for it (N4).
	Wanted
	// TokensReserved: the claim is held and kept, and the nodes know it, or it has new
	// tokens.
	TokensReserved
	// Changed: the claim waits and is watched, and what the nodes say of it may have changed.
	Changed
	// Evicted: the claim is held and must end, and its owner releases it
	// (Claim.LeaveRelease).
	Evicted
)

// Event tells the driver what happened to a claim.
type Event struct {
	Kind  EventKind
	Claim *Claim
}

// Out collects the actions that the client requests. The caller owns it, may reuse it,
// and calls Reset between steps.
type Out struct {
	Requests []wire.Request
	Events   []Event
	Notes    []string // messages for the operator's log
	AskInfo  bool     // a node showed another configuration: query the membership
	AskNow   bool     // with AskInfo: one that was not seen before
	// Renew is set if another process may use the same instance. The driver must call
	// Client.Renew before it sends anything of this Out (C15).
	Renew bool
}

// Reset empties o for reuse and keeps its memory.
func (o *Out) Reset() {
	clear(o.Requests)
	clear(o.Events)
	o.Requests, o.Events, o.Notes, o.AskInfo, o.Renew = o.Requests[:0], o.Events[:0], o.Notes[:0], false, false
	o.AskNow = false
}

// Client manages all claims of one client instance. It is not safe for concurrent use.
type Client struct {
	cfg    Config
	digest string
	nodes  []node       // by index, sorted by name
	lists  quorum.Count // how many nodes each list has; the second one: while the list changes
	clock  leaseClock
	now    time.Duration // lease clock at this step
	wall   int64
	leapt  bool // the clock advanced by more than a lease in one reading: see step

	// parting is set if another process uses this instance, which Renew tells all of them.
	parting bool
	// shown is set if a node of the list showed the client's configuration: see Shown.
	shown bool

	seq         uint64
	sentAt      uint64 // highest ever sent
	claims      map[uint64]*Claim
	peak        int    // largest size of claims, for shrink.Map
	first, last *Claim // in order of seq
	due         dueHeap
	moved       int // deadlines in due found to have moved, since the heap was last rebuilt

	refreshAt   time.Duration // next refresh; zero: none
	refreshedAt time.Duration // the last one sent

	// Claims with numbers from sweepLo to sweepHi include some that are over and that a node
	// has since answered about. At sweepAt a refresh makes the nodes drop them (C9); zero:
	// none.
	sweepAt          time.Duration
	sweepLo, sweepHi uint64

	// At againAt the claims in again are acquired again at some nodes (C6); zero: none.
	againAt time.Duration
	again   []*Claim

	others []string // digests of other configurations that nodes have shown since the last move

	fences []uint64 // scratch space
	joint  []quorum.JointVote
	untils []time.Duration
	trips  []float64

	counts Counts
}

// node is what the client knows of a node.
type node struct {
	name        string
	in          quorum.In
	lives       []life // incarnations, the latest last
	clashUntil  time.Duration
	otherDigest string // the configuration that it showed last, if not the client's
	trip        trip
}

// life is what the client knows of one incarnation. It had started when its first answer
// was received. It was alive when the latest beat that it answered was sent.
type life struct {
	incarnation uuid.UUID
	started     time.Duration // at the latest
	alive       time.Duration // at the earliest
}

// State is the state of a claim.
type State uint8

const (
	// Waiting: the claim is not held yet.
	Waiting State = iota
	// Holding: the claim is held.
	Holding
	// Unreleased: the claim was held and is lost. Its owner has yet to release it
	// (Claim.LeaveRelease).
	Unreleased
	// Over: the claim was lost, failed, or was released.
	Over
)

// Claim is one attempt to lock one resource. All fields but User belong to the client; a
// driver reads them by methods. Like its Client, a Claim is not safe for concurrent use.
type Claim struct {
	// User belongs to the driver; the client does not touch it.
	User any

	seq              uint64
	resource         string
	mode             quorum.Mode
	at               int64
	try              bool
	suppressQueued   bool // set for the next acquire
	suppressedQueued bool // set for the last acquire
	note             string
	watched          bool // its owner is told when what the nodes say of it changes
	repeated         bool // it was acquired again, because it was not held in time
	manual           bool // its owner releases it when it is evicted or lost
	evicted          *Eviction
	leftUntil        time.Duration // while Unreleased: the client releases it then, by the monotonic clock
	state            State
	token            uint64
	made             time.Duration
	sentAt           uint64 // highest sent about this claim
	minFence         uint64 // fence last asked for
	lowered          uint8  // how often minFence was lowered
	wonAt            uint64 // highest sent about it when it became held

	// grace is until when votes stand that were given under earlier records (E17). moved is set
	// while the claim is held by nothing else.
	grace time.Duration
	moved bool
	// nameless is set if the claim was held at epoch 0, which has no cluster id, and no node that
	// voted for it then has voted for it under a record (E17).
	nameless bool

	// A claim that is kept between holders (internal/hold) has tokens for them.
	keep   bool
	keptAt uint64 // sentAt of the message that first told the nodes
	wanted bool   // others wait
	// known is set when a quorum knows that the claim is kept. One of these nodes hears of
	// each claim that waits.
	known         bool
	announced     bool   // all nodes were told that it is held
	given         uint64 // token that was given out last
	tokenNext     uint64 // next token to give out
	tokenEnd      uint64 // one above the last token that may be given out
	rangeSize     uint64 // how many tokens are asked for at a time
	requestedFrom uint64 // first of the tokens that are asked for now, or 0

	votes []vote // by node

	askAt    time.Duration // next acquire (C4); zero: none
	askDelay time.Duration
	asked    uint64 // fence that the last acquire asked for; 0: none
	again    bool   // it is in Client.again

	key        time.Duration // its place in the due heap; the deadline may have become later since
	index      int           // in the due heap, or -1
	prev, next *Claim
}

// vote is what one node said about one claim.
type vote struct {
	until     time.Duration // the vote stands until then (C1); zero: no vote
	fence     uint64
	rangeSize uint64 // number of fences set aside, from fence on
	// most is the highest fence that the node could give at mostAt, when a higher one was
	// wanted; 0: none was.
	most     uint64
	mostAt   time.Duration
	life     uuid.UUID // incarnation of the node that gave it
	unproven *newVote  // a vote that does not count yet (C13)
	keeps    bool      // the node knows that the claim is kept
	// wanted is set if the node wants the vote back, and the claim did not answer because it
	// has a quorum and is not held yet.
	wanted bool
	sentAt uint64 // of the latest answer that counted (C2)
	asked  uint64 // beat of the latest acquire sent to it
	// again is set if the node must be sent another acquire: it does not know the claim, or
	// has a vote whose fence the client did not hear.
	again   bool
	yielded uint64 // beat of the latest yield to it (C2)
	heard   heard
	detail  *detail // for errors and tries; nil after a grant
}

// newVote is a vote for a held claim that does not count yet (C13). It comes from an
// incarnation that does not have the memory of the one that voted when the claim became
// held, or from a node that had not voted then. The node may honestly have forgotten the
// claim. It may also be a node of the same name in another cluster, to which the
// connection now leads.
type newVote struct {
	life             uuid.UUID
	until            time.Duration
	fence, rangeSize uint64
	sentAt           uint64 // of the first message that it answered
	keeps            bool
}

// identified reports whether a vote of this node counts at once because of the record: its
// digest, which the answer has, contains the id of the cluster. So the node is one of this
// cluster, and if it has not voted since the record was taken, it is not one that forgot.
func (c *Client) identified(cl *Claim, v *vote) bool {
	return c.cfg.Cluster.Record != nil && v.life == uuid.Nil && !cl.nameless
}

// continues reports whether an answer comes from the incarnation that gave the vote, or
// from one that has its memory.
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
	// sentAt is the beat of the answer that said so, and again counts its repetitions.
	sentAt     uint64
	again      int
	place      int
	blocker    *wire.Blocker
	at         time.Duration
	recovering time.Duration
	reason     wire.Reason
	text       string
	retryable  bool
}

// New starts a client. cfg.Cluster is the configuration by which it counts votes.
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
	c.lists = cluster.Lists()
	c.nodes = make([]node, len(cluster.Nodes))
	for i, name := range cluster.Nodes {
		c.nodes[i].name, c.nodes[i].in = name, cluster.In(name)
		c.nodes[i].trip.mean = float64(c.cfg.Trips[name])
	}
	c.cfg.Trips = nil // measured for the first cluster only
}

// Cluster returns the configuration by which the client counts votes.
func (c *Client) Cluster() wire.Config { return c.cfg.Cluster }

// Shown reports whether a node of the list has shown that configuration, in an answer
// about a claim, since the last call of Shown (M5).
func (c *Client) Shown() bool {
	shown := c.shown
	c.shown = false
	return shown
}

// Digest returns the digest of that configuration.
func (c *Client) Digest() string { return c.digest }

// Lease returns the lease of claims. A record may have lowered it (E18).
func (c *Client) Lease() time.Duration { return c.cfg.TTL }

// Claims returns the number of claims that are not over.
func (c *Client) Claims() int { return len(c.claims) }

// All returns the claims that are not over, in the order in which they were made.
func (c *Client) All() []*Claim {
	out := make([]*Claim, 0, len(c.claims))
	for cl := c.first; cl != nil; cl = cl.next {
		out = append(out, cl)
	}
	return out
}

// State returns the state of the claim.
func (cl *Claim) State() State { return cl.state }

// Token returns the fencing token, or 0 if the claim was never held.
func (cl *Claim) Token() uint64 { return cl.token }

// Resource returns the name of what the claim locks.
func (cl *Claim) Resource() string { return cl.resource }

// Mode returns the mode of the claim.
func (cl *Claim) Mode() quorum.Mode { return cl.mode }

// Seq returns the number of the claim, which is unique within its instance.
func (cl *Claim) Seq() uint64 { return cl.seq }

// Made returns the age of the claim: a wall clock in microseconds.
func (cl *Claim) Made() (at int64) { return cl.at }

// need is how many votes of each list the claim needs (E15).
func (c *Client) need(cl *Claim) quorum.Joint {
	return quorum.JointSize(c.lists[0], c.lists[1], cl.mode)
}

// standsFrom returns until when a vote stands that answers a message sent at sentAt. It
// leaves a margin for drift between this clock and the nodes' (C1).
func (c *Client) standsFrom(sentAt uint64) time.Duration {
	return time.Duration(sentAt)*time.Microsecond + c.cfg.TTL - wire.Margin(c.cfg.TTL) //plant:stands-until
}

// step reads the clocks and does what is due. Every call starts with it, so that no
// expired vote is counted.
func (c *Client) step(now wire.Now, out *Out) {
	c.read(now)
	if c.leapt {
		// The process was asleep or stopped for a whole lease, or it is a snapshot brought to
		// life while the original may go on. None of its votes stand any more, and a release
		// under this instance might give back what the original holds.
		c.leapt = false
		// That includes a client without claims, since the original may use the same numbers.
		out.Renew = true //plant:leapt
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

// read reads the clocks, and notes if the lease clock leapt by more than a lease.
func (c *Client) read(now wire.Now) {
	before := c.now
	c.now, c.wall = c.clock.read(now), now.Wall
	c.leapt = c.leapt || c.now-before > c.cfg.TTL
}

// few is how many deadlines that moved are always handled one by one.
const few = 64

// moveAll updates all keys in the heap at once. A refresh moves the deadlines of all
// claims to one moment. Rebuilding the heap then takes a fraction of the time of moving
// each.
func (c *Client) moveAll() {
	c.moved = 0
	for _, cl := range c.due {
		cl.key = c.deadline(cl)
	}
	heap.Init(&c.due)
}

// Tick does what is due: it ends claims that are lost, asks again, and refreshes.
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

// Wait returns how long from now, by the lease clock, until Tick must be called, and
// false if it need not be. While there are claims, the driver must call Tick at least
// once a second (C8). The client need not have processed this reading of the clocks: a
// driver may also ask after a step that did not concern the client.
func (c *Client) Wait(now wire.Now) (time.Duration, bool) {
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
	clock := c.clock
	return max(d-clock.read(now) /*plant:wait-from-now*/, 0), true
}

// Request describes a claim to make.
type Request struct {
	Resource      string
	Mode          quorum.Mode
	Try           bool // it fails as soon as another claim is known to be in the way (C10)
	Keep          bool // the client keeps it between holders
	ShortDeadline bool // the caller will give up soon and want to know why
	Watch         bool // the caller wants to see what it waits for: see Client.Watch
	// At is the age of the claim, a wall clock in microseconds. It counts if it is above 0
	// and earlier than this call.
	At   int64
	Note string // for people
	User any
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

// ask sends the claim's acquire, to all nodes or to one, and schedules the next one (C4).
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
	if cl.state == Holding || cl.state == Unreleased {
		// Tokens up to the last one given out are in use.
		r.Held, r.MinFence = true, max(cl.tokenNext-1, cl.requestedFrom)
		if cl.given < r.MinFence {
			r.Token = cl.given //plant:told-token
		}
		if cl.pending() {
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

// pending reports whether the held claim needs more than the nodes have answered yet: tokens,
// that they know that it is kept, or votes of the present record.
func (cl *Claim) pending() bool {
	return cl.requestedFrom > 0 || cl.keep && !cl.known || cl.moved /*plant:moved-asks*/
}

func (c *Client) id(cl *Claim) wire.ClaimID {
	return wire.ClaimID{Instance: c.cfg.Instance, Seq: cl.seq}
}

// nextSentAt returns the beat of the next message about a claim: the lease clock in
// microseconds, or one more than the claim's last beat if that is higher. As a beat is
// the time of sending, the client need not remember when it sent a message (C1). Several
// messages about a claim within one microsecond make the beat run ahead of the clock by
// as many microseconds; the margin of the lease covers that.
func (c *Client) nextSentAt(cl *Claim) uint64 {
	cl.sentAt = max(uint64(c.now/time.Microsecond), cl.sentAt+1)
	c.sentAt = max(c.sentAt, cl.sentAt)
	return cl.sentAt
}

// Release ends a claim, held or waiting. It does nothing if the claim is over.
func (c *Client) Release(now wire.Now, cl *Claim, out *Out) {
	c.step(now, out)
	if cl.state != Over {
		c.end(cl, out)
	}
}

// end ends the claim and tells the nodes. If that message is lost, the next refresh does
// not list the claim. That refresh is sent even if no claim is left.
func (c *Client) end(cl *Claim, out *Out) {
	c.forget(cl)
	c.releaseMsg(cl.seq, cl.resource, out)
}

// forget ends a claim without telling the nodes.
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

// Disconnected notes that the connection is down. It may be restored to another cluster
// of the same names. Votes of two clusters must not add up, so a claim that is not held
// yet counts from zero (C13).
func (c *Client) Disconnected(now wire.Now, out *Out) {
	c.step(now, out)
	for cl := c.first; cl != nil; cl = cl.next {
		c.fromZero(cl)
	}
}

// fromZero drops the votes of a claim that waits. Of a held claim it drops the votes that
// do not count yet.
func (c *Client) fromZero(cl *Claim) {
	for i := range cl.votes {
		v := &cl.votes[i]
		v.unproven = nil //plant:new-vote-dropped
		if cl.state == Waiting {
			// Answers to what was sent before do not count either: they may arrive only now.
			v.yielded, v.until = cl.sentAt+1, 0 //plant:from-zero
		}
	}
}

// Reconnected repeats at once what may have been lost while the connection was down (C6).
// A driver must also call Disconnected when the connection goes down, because answers to
// messages that were buffered meanwhile may arrive before the driver learns that it is up
// again.
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

// refresh lists all claims that are not over, in as many messages as needed (C6).
func (c *Client) refresh(out *Out) {
	c.refreshedAt = c.now
	c.refreshAt, c.sweepAt = 0, 0
	if c.first != nil {
		c.refreshAt = c.nextRefresh()
	}
	c.list(c.first, 1, c.seq /*plant:last-number*/, out)
	for cl := c.first; cl != nil; cl = cl.next {
		// If nodes went and came back, the claim may be held by votes with different fences.
		// Others would take it for one that waits, and would not know its token.
		if cl.state == Holding && !cl.announced && !c.need(cl).Met(c.carried(cl, cl.token)) { //plant:held-told
			c.ask(cl, "", out)
		}
	}
}

// nextRefresh returns the time of the next refresh: after a third of a lease, less up to
// a tenth of that (C6). The jitter spreads clients that one event, such as a restart or a
// deployment, brought into step. It never makes a refresh later, so claims are kept as
// safely as without.
func (c *Client) nextRefresh() time.Duration {
	at := c.now + c.cfg.TTL/3
	if c.cfg.Seed == 0 { //plant:jitter
		return at
	}
	// The mixing function of splitmix64. The beat differs each time.
	x := c.cfg.Seed + (c.sentAt+1)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	x ^= x >> 31
	return at - time.Duration(x%uint64(max(c.cfg.TTL/30, 1)))
}

// sweepSoon notes that a node answered about a claim that is over. Usually that is the
// vote of the last node, which arrived after the lock was released. But the node may also
// have received the acquire after the release, and have a vote for a claim that is over.
// The client cannot tell the two apart, so it tells the nodes again that the claim is
// over (C9). One refresh covers all such claims of a short time, since a message for each
// would be one for each lock.
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

// askSoon schedules an acquire of the claim at node i. If several nodes forgot, each
// reports every claim. So the client waits a moment, and one acquire of each claim serves
// all of them (C6).
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

// askAgain sends the acquires that askSoon scheduled: to the one node that needs it, or
// to all if several do.
func (c *Client) askAgain(out *Out) {
	all := c.again
	c.again, c.againAt = nil, 0
	for _, cl := range all {
		cl.again = false
		if cl.state > Holding || cl.evicted != nil {
			continue // a node that does not know of the eviction must not extend the claim (N10)
		}
		where, only := 0, ""
		for i := range cl.votes {
			if cl.votes[i].again {
				where++
				only = c.nodes[i].name
			}
		}
		switch where {
		case 0: // acquired again meanwhile
		case 1:
			c.ask(cl, only, out)
		default:
			c.ask(cl, "", out)
		}
	}
}

// Fit sets how many bytes of a request the connection takes from now on.
func (c *Client) Fit(bytes int) { c.cfg.MaxRuns = wire.RunsIn(bytes) }

// list sends the refresh of the range lo to hi. from is the first live claim in it. The
// nodes drop what it does not list within the range. That is safe because hi is never
// above the last number given out, and no number is given out meanwhile (C6).
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
		r.Live = r.Live.Add(cl.seq) //plant:listed
	}
	r.Hi = hi
	out.Requests = append(out.Requests, r)
}

// deadline returns when the claim next needs action: an acquire if it waits; a refresh
// ahead of time, an acquire, or its loss if it is held; its release if its owner has not
// released it.
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
	case Unreleased:
		return c.now + max(cl.leftUntil-c.clock.last.Mono, 0)
	}
	return never
}

// lostAt returns when fewer than a quorum of votes will stand (C7): of either list, and not
// before the votes of earlier records are over (E17).
func (c *Client) lostAt(cl *Claim) time.Duration {
	need := c.need(cl)
	lost := c.nthUntil(cl, quorum.InNodes, need[0])
	if need[1] > 0 {
		lost = min(lost, c.nthUntil(cl, quorum.InNext, need[1])) //plant:lost-by-either
	}
	return max(lost, cl.grace) //plant:grace
}

// nthUntil returns until when that many votes of nodes of a list stand.
func (c *Client) nthUntil(cl *Claim, in quorum.In, need int) time.Duration {
	c.untils = c.untils[:0]
	for i := range cl.votes {
		if c.nodes[i].in&in != 0 {
			c.untils = append(c.untils, cl.votes[i].until)
		}
	}
	slices.Sort(c.untils)
	return c.untils[len(c.untils)-need]
}

// schedule updates the claim's place in the heap after its deadline moved. A deadline
// that became later is found when the earlier one is reached.
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

// act does what is due for the claim.
func (c *Client) act(cl *Claim, out *Out) {
	switch cl.state {
	case Waiting:
		if c.settled(cl) && !cl.watched {
			cl.askAt = 0 // the refresh covers it from now on
			cl.askDelay = c.firstDelay(cl)
			cl.key = c.deadline(cl)
			heap.Fix(&c.due, cl.index)
			return
		}
		cl.repeated = true
		c.ask(cl, "", out)
		// The owner learns that the nodes were asked again even if nobody answers.
		cl.changed(out)
	case Holding:
		if c.lostAt(cl) <= c.now { //plant:votes-over
			c.lose(cl, out)
			return
		}
		if cl.askAt > 0 && cl.askAt <= c.now {
			cl.askAt = 0
			if cl.pending() {
				c.ask(cl, "", out)
			}
			return
		}
		c.refresh(out) // its votes stand for less than half the lease (C6)
	case Unreleased:
		c.end(cl, out)
	}
}

// lose ends a held claim for good (C7). It releases the claim, or leaves that to the owner
// (Claim.LeaveRelease).
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
	if cl.manual { //plant:left-to-the-owner
		cl.state, cl.leftUntil = Unreleased, sat.Add(c.clock.last.Mono, c.cfg.TTL)
		c.schedule(cl)
	} else {
		c.end(cl, out)
	}
	out.Events = append(out.Events, Event{Lost, cl})
}

// Eviction is who evicted a claim, and why. It is an error, so that it can be the cause
// of one.
type Eviction struct{ By, Why string }

// Error returns a phrase such as "by NAME: REASON".
func (e *Eviction) Error() string {
	if e.Why == "" {
		return "by " + e.By
	}
	return fmt.Sprintf("by %s: %s", e.By, e.Why)
}

// Eviction returns who evicted the claim, or nil if it was not evicted.
func (cl *Claim) Eviction() *Eviction { return cl.evicted }

// evict ends a claim that was evicted. The word of one node is enough, since that node no
// longer extends the claim's lease (C12).
func (c *Client) evict(cl *Claim, a *wire.Answer, out *Out) {
	again := cl.evicted != nil
	cl.evicted = &Eviction{a.By, a.Text}
	if cl.state == Unreleased {
		return // it is lost already, and its owner releases it
	}
	if cl.state == Holding && cl.manual {
		if !again {
			out.Events = append(out.Events, Event{Evicted, cl})
			// Nodes no longer recall an evicted claim, so no answer to a recall can tell them that
			// it is held. Without this message a try would wait for it (C10).
			if !cl.announced {
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

// settled reports whether the claim has its place (C4): enough nodes have it queued to
// exclude a quorum, or every node has answered, and have said for what it waits. Asking
// again would tell it nothing, and a crowd of waiters that asks would overload the nodes.
// The refresh finds nodes that forget it later, and votes whose message is lost.
//
// A try is never settled. It must learn of each change of what is in its way, and is too
// short-lived to be one of a crowd.
func (c *Client) settled(cl *Claim) bool {
	if cl.try {
		return false
	}
	var waits, standing quorum.Count
	answered := 0
	for i := range cl.votes {
		switch v := &cl.votes[i]; {
		case v.until > c.now:
			standing.Add(c.nodes[i].in)
			answered++
		case v.heard == queued && v.told(c.now): //plant:settled-told
			waits.Add(c.nodes[i].in)
			answered++
		}
	}
	need := c.need(cl)
	if need.Met(standing) || c.torn(cl) /*plant:torn-asks*/ {
		return false // different fences, or the nodes contradict each other (C14)
	}
	return need.Lost(waits, c.lists) || answered == len(cl.votes)
}

// torn reports whether the nodes contradict each other about a waiting claim (C14). One
// node gave it its vote, and another has it queued behind a claim, or for an unknown
// reason. The claim in its way may be over, if the node missed the release. That matters
// also when a quorum voted with different fences, and one of these nodes did not raise its
// fence when asked to: it may be cut off, and then the vote of the other node is needed.
func (c *Client) torn(cl *Claim) bool {
	blocked, standing := false, quorum.Count{}
	for i := range cl.votes {
		if v := &cl.votes[i]; v.until > c.now {
			standing.Add(c.nodes[i].in)
		} else {
			blocked = blocked || v.heard == queued && !v.idle() //plant:waits-for-whom
		}
	}
	again := cl.minFence > 0 && cl.asked == cl.minFence //plant:torn-fences
	return cl.state == Waiting && blocked && standing != quorum.Count{} && (!c.need(cl).Met(standing) || again)
}

// index returns the index of a node in nodes and in the votes of each claim.
func (c *Client) index(name string) (i int, ok bool) {
	return slices.BinarySearchFunc(c.nodes, name, func(n node, name string) int { return cmp.Compare(n.name, name) })
}

// Handle processes an answer of a node. Answers that are not for this client, or too old
// to count, are ignored.
func (c *Client) Handle(now wire.Now, a *wire.Answer, out *Out) {
	c.step(now, out)
	if a.Client != c.cfg.Name { //plant:answer-client
		// Requests name the inbox for their answers, so answers to another client may come here.
		return
	}
	if a.Claim.Instance != c.cfg.Instance {
		return // for another instance
	}
	i, ok := c.index(a.Node)
	if a.SentAt > c.sentAt { // it repeats a beat that this client did not send
		if ok && a.Digest == c.digest {
			c.noteCopy(out) //plant:copy-noticed
		}
		return
	}
	if !ok {
		if a.Digest != c.digest {
			c.otherConfig(a.Digest, out)
		}
		return
	}
	n := &c.nodes[i]
	if a.Digest != c.digest { //plant:answer-digest
		n.otherDigest = a.Digest
		c.otherConfig(a.Digest, out)
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
			c.sweepSoon(a.Claim.Seq) // over is over: undo a late vote (C9) //plant:sweep
		}
		return
	}
	v := &cl.votes[i]
	switch a.Kind {
	case wire.Queued:
		// An answer to a refresh overtook this one. It says that the claim waits, but not for
		// which claim.
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
	if cl.state == Unreleased {
		return
	}
	if a.SentAt > cl.sentAt /*plant:beat-unsent*/ || a.SentAt < v.yielded || a.SentAt < v.sentAt ||
		a.SentAt == v.sentAt && v.heard == voted && a.Kind != wire.Granted {
		return // from before the yield, or older than a later answer of this node (C2)
	}
	if a.Kind == wire.Queued && v.heard == queued && v.knows(a) {
		return
	}
	v.sentAt = a.SentAt
	switch a.Kind {
	case wire.Granted:
		if cl.state == Holding && a.SentAt > cl.wonAt && !v.continues(a) && !c.identified(cl, v) /*plant:new-vote-of-member*/ { //plant:new-life
			first := a.SentAt
			if f := v.unproven; f != nil && f.life == a.Incarnation {
				first = f.sentAt
			}
			v.unproven = &newVote{a.Incarnation, c.standsFrom(a.SentAt), a.Fence, max(a.RangeSize, 1), first, cl.keep && a.SentAt >= cl.keptAt}
			return
		}
		if v.unproven = nil; v.continues(a) {
			cl.nameless = false
		}
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
			c.sweepSoon(b.Claim.Seq) // in case its release was lost (C9)
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

// mostOthers bounds how many digests cause a query of their own.
const mostOthers = 8

// otherConfig notes that a node shows another configuration. The nodes are asked which one
// that is, unless it is one that the cluster has left. A digest that was not seen before may
// be the next record, which the client should have soon (E16).
func (c *Client) otherConfig(digest string, out *Out) {
	if slices.ContainsFunc(c.cfg.Cluster.Links, func(l wire.Link) bool { return l.Digest == digest }) {
		return // the node is behind
	}
	out.AskInfo = true
	if len(c.others) < mostOthers && !slices.Contains(c.others, digest) {
		c.others = append(c.others, digest)
		out.AskNow = true
	}
}

func (c *Client) queuedDetail(a *wire.Answer) *detail {
	return &detail{sentAt: a.SentAt, again: a.Again, place: a.Place, blocker: a.Blocker, at: c.now, recovering: a.Recovering}
}

// knows reports whether the node has said something later about the claim's place.
// Messages that it sends unasked repeat the beat, and are told apart by their count.
func (v *vote) knows(a *wire.Answer) bool {
	d := v.detail
	return d != nil && (a.SentAt < d.sentAt || a.SentAt == d.sentAt /*plant:told-before*/ && a.Again < d.again)
}

// refreshSoon schedules a refresh in a moment, one for all callers.
func (c *Client) refreshSoon() {
	soon := max(c.now, c.refreshedAt+c.cfg.TTL/100)
	if c.refreshAt == 0 || c.refreshAt > soon {
		c.refreshAt = soon
	}
}

// checkIncarnation tracks a node's incarnations and reports whether its name counts. A
// node that restarts has one incarnation after the other. Late answers of an earlier one
// do no harm, since a node that forgot votes waits until they have expired. But if each
// of two incarnations was alive after the other had started, they are two nodes with one
// name, and count for neither (N9).
func (c *Client) checkIncarnation(i int, a *wire.Answer, out *Out) bool {
	n := &c.nodes[i]
	sent := time.Duration(a.SentAt) * time.Microsecond
	k := slices.IndexFunc(n.lives, func(l life) bool { return l.incarnation == a.Incarnation })
	if k < 0 {
		if len(n.lives) > 0 {
			c.refreshSoon() // it may not know the claims
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
	longest := c.cfg.Cluster.Longest()
	return longest + wire.Margin(longest)
}

// evaluate acts on the claim's votes as they are now.
func (c *Client) evaluate(cl *Claim, out *Out) {
	switch cl.state {
	case Holding:
		if outcome, _ := c.tally(cl); outcome == quorum.Won { //plant:votes-missing
			cl.moved = false // votes of the present record hold it
		} else if cl.grace <= c.now {
			c.lose(cl, out)
			return
		}
		c.stocked(cl, out)
		c.schedule(cl)
	case Waiting:
		switch outcome, fence := c.tally(cl); outcome {
		case quorum.Won:
			cl.state, cl.token, cl.wonAt = Holding, fence, cl.sentAt // C3
			cl.given, cl.tokenNext, cl.tokenEnd = fence, fence+1, fence+c.reserved(cl, fence)
			cl.askAt, cl.askDelay = 0, c.firstDelay(cl)
			cl.known = cl.keep && c.need(cl).Met(c.keepers(cl))
			c.schedule(cl)
			out.Events = append(out.Events, Event{Held, cl})
			if cl.wanted {
				out.Events = append(out.Events, Event{Wanted, cl})
			}
			for i := range cl.votes {
				if cl.votes[i].wanted { //plant:recall-owed
					c.ask(cl, c.nodes[i].name, out) // the answer to the recall (C5)
				}
			}
			// The votes that agreed are about to rise to the fence that was asked for. Others would
			// take that for the token, until the next refresh.
			if fence < cl.minFence && !cl.announced { //plant:lower-told
				c.ask(cl, "", out)
			}
		case quorum.Split:
			fence, wait := c.attainable(cl, fence)
			if cl.wants(&cl.minFence, fence) { // ask at once, but only once for each fence (C3)
				c.ask(cl, "", out)
				return
			}
			if cl.askAt == 0 { //plant:split-asks
				cl.askAt = c.now + cl.askDelay
			}
			if wait > 0 { // the time that the node gave; if it is wrong, the node says so again
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

// tally is the only place where a claim's votes are counted. lostAt computes when the
// result will change.
func (c *Client) tally(cl *Claim) (quorum.Outcome, uint64) {
	need := c.need(cl)
	if need[1] > 0 { //plant:joint-tally
		c.joint = c.joint[:0]
		for i := range cl.votes {
			if v := &cl.votes[i]; v.until > c.now {
				c.joint = append(c.joint, quorum.JointVote{Fence: v.fence, In: c.nodes[i].in})
			}
		}
		return quorum.HeldJoint(c.joint, need, cl.token)
	}
	c.fences = c.fences[:0]
	for i := range cl.votes {
		if v := &cl.votes[i]; v.until > c.now {
			c.fences = append(c.fences, v.fence)
		}
	}
	return quorum.Held(c.fences, need[0], cl.token)
}

// cannotWin reports whether the claim must fail, because no quorum is possible without
// the nodes that refused it (C11) or, for a try, that report that what is in its way goes
// first (C10). A younger claim with votes does not go first: it is being recalled, and
// yields or shows that it is held. So only a holder is ahead of the oldest of several
// tries, and on a free lock the oldest does not fail.
func (c *Client) cannotWin(cl *Claim) bool {
	var against quorum.Count
	for i := range cl.votes {
		v := &cl.votes[i]
		if v.heard == refused {
			against.Add(c.nodes[i].in)
		} else if b := v.blocker(); cl.try && b != nil && b.Ahead /*plant:blocker-ahead*/ && !c.over(b) /*plant:blocker-over*/ {
			against.Add(c.nodes[i].in)
		}
	}
	return c.need(cl).Lost(against, c.lists) //plant:hopeless
}

// over reports whether a blocker is a claim of this client that is over: its release is
// on its way to the node. A claim of another client that uses the same id is not.
func (c *Client) over(b *wire.Blocker) bool {
	id := b.Claim
	return b.Client == c.cfg.Name && id.Instance == c.cfg.Instance && id.Seq <= c.seq && c.claims[id.Seq] == nil
}

// idle reports whether the node has the claim queued only because it does not vote. If the
// node has said only in answer to a refresh that the claim waits, the reason is unknown.
// Then idle returns false, since another claim may be in its way (C14).
func (v *vote) idle() bool {
	return v.detail != nil && v.detail.blocker == nil && v.detail.recovering > 0
}

// told reports whether a node that has the claim queued has said why: which claim is in
// its way, or that it does not vote yet. It has not if only an answer to a refresh says
// that the claim waits. It may have been asked to say nothing else (N2), or what it said
// is lost.
func (v *vote) told(now time.Duration) bool {
	d := v.detail
	return d != nil && (d.blocker != nil || now < d.at+d.recovering) //plant:told-why
}

func (v *vote) blocker() *wire.Blocker {
	if v.heard != queued || v.detail == nil {
		return nil
	}
	return v.detail.blocker
}

// recall answers a node that wants its vote back for an older claim (C5). The client
// yields, unless the claim has a quorum. A held claim says that it is held, and so does a
// lost one that its owner has not released. The client also yields a vote that it has not
// heard of. It yields again at each recall, since a yield may be lost.
func (c *Client) recall(cl *Claim, i int, behind bool, out *Out) {
	if cl.state != Waiting { //plant:holder-recalled
		if cl.keep {
			c.behind(cl, out)
		}
		if !behind {
			// The node learns that it is held, and does not recall it again.
			c.ask(cl, c.nodes[i].name, out)
		}
		return
	}
	if behind { // only younger claims wait
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
	// Earlier answers of the node no longer count (C2).
	v.yielded = sentAt
	v.until, v.heard, v.detail = 0, queued, &detail{sentAt: sentAt, at: c.now} //plant:yielded
	v.wanted = false
	out.Requests = append(out.Requests, wire.Request{
		Verb: wire.Yield, Client: c.cfg.Name, Resource: cl.resource,
		Claim: c.id(cl), SentAt: sentAt, Node: c.nodes[i].name,
	})
	c.evaluate(cl, out)
}

// recallFor answers a recall of a node that is not heard, which another node passes on
// (N12). Several nodes may pass on the same recall; one answer is enough.
func (c *Client) recallFor(cl *Claim, name string, out *Out) {
	i, ok := c.index(name)
	if !ok {
		return
	}
	said := cl.votes[i].yielded
	if cl.state != Waiting {
		said = cl.votes[i].asked
	}
	if said > 0 && c.now < time.Duration(said)*time.Microsecond+leastDelay {
		return
	}
	c.recall(cl, i, false, out)
}

// confirmed counts the new votes for a held claim, if a node that has known the claim all
// along confirmed it in answer to a later message. That shows that all of them belong to
// one cluster (C13).
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

// refreshed processes the answer to a refresh. It extends votes that still stand, and no
// others (C6). A claim that the node does not know, or whose vote the client did not hear
// of, is acquired again there.
func (c *Client) refreshed(i int, a *wire.Answer, out *Out) {
	until := c.standsFrom(a.SentAt)
	for cl := c.first; cl != nil; {
		next := cl.next
		if cl.seq > a.Hi {
			break
		}
		v := &cl.votes[i]
		if cl.state == Unreleased || cl.seq < a.Lo || a.SentAt > cl.sentAt || a.SentAt < v.yielded || a.SentAt < v.sentAt {
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
				// Otherwise an acquire that it had not received is on its way.
				if cl.state != Over && a.SentAt > v.asked {
					c.askSoon(cl, i) //plant:forgotten
				}
			}
		case a.Waiting.Has(cl.seq):
			if fresh || v.heard != voted {
				if v.heard == voted { // earlier reports of its place are void
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
			c.askSoon(cl, i) // only a grant tells its fence
		}
		cl = next
	}
}

// unvoted notes that a node says that it has no vote for the claim. A vote that makes up
// a held claim goes on to stand until its time is over (C1). The client neither released
// nor yielded it, so the node has forgotten it, and gives no votes until the forgotten
// ones have expired (N8). If the vote ended here, a node that crashed would do more harm
// to the holder by coming back than by staying away.
func (c *Client) unvoted(cl *Claim, v *vote) {
	if cl.state != Holding {
		v.until = 0
	}
}

// SetCluster switches to another configuration, on which enough of its nodes agreed. Votes
// of the old one do not count in it. So waiting claims are requested anew, with their age.
// If the configuration continues the client's own, held claims are carried over (E17).
// Otherwise they are lost. It does nothing if the configuration is the same.
func (c *Client) SetCluster(now wire.Now, cluster wire.Config, out *Out) {
	c.step(now, out)
	if cluster.Digest() == c.digest {
		return
	}
	carries := cluster.Continues(&c.cfg.Cluster)
	for cl := c.first; cl != nil; {
		next := cl.next
		if cl.state == Holding {
			if carries {
				// One number, and no votes: a vote may be given to another claim before a quorum of
				// it is over, and an answer that repeats a fence from before the record's floor
				// must not make a token (E17).
				cl.grace = c.lostAt(cl) //plant:grace-from-votes
			} else {
				c.lose(cl, out)
			}
		}
		cl = next
	}
	before, nameless := c.nodes, c.cfg.Cluster.Record == nil
	c.setCluster(cluster)
	c.shown, c.others = false, nil
	if carries {
		for i := range c.nodes {
			if k := slices.IndexFunc(before, func(n node) bool { return n.name == c.nodes[i].name }); k >= 0 {
				n := before[k]
				n.in, n.otherDigest = c.nodes[i].in, ""
				c.nodes[i] = n
			}
		}
		// Nodes extend a claim by the lease that it was made with. So a lease that a record
		// allowed for a while must not come back (E18).
		c.cfg.TTL = min(c.cfg.TTL, cluster.MaxTTL) //plant:lease-lowered
		if c.refreshAt > 0 {
			c.refreshAt = min(c.refreshAt, c.nextRefresh())
		}
	}
	// Held ones first: others must not be granted the lock in the meantime.
	for cl := c.first; cl != nil; cl = cl.next {
		if cl.state == Holding {
			cl.nameless = cl.nameless || nameless //plant:held-without-name
			c.carry(cl, before, out)
		}
	}
	for cl := c.first; cl != nil; cl = cl.next {
		switch cl.state {
		case Waiting:
			c.anew(cl, out)
		case Unreleased:
			cl.votes = make([]vote, len(c.nodes))
		}
	}
}

// anew requests a claim under a new configuration.
func (c *Client) anew(cl *Claim, out *Out) {
	cl.votes = make([]vote, len(c.nodes))
	cl.minFence, cl.lowered, cl.askDelay = 0, 0, c.firstDelay(cl)
	c.ask(cl, "", out)
	for i := range cl.votes {
		// Answers to what was asked before do not count: neither a refusal because of the old
		// configuration, nor, if that one comes back, a vote that was yielded in it (C2).
		cl.votes[i].yielded = cl.sentAt //plant:answers-of-before
	}
}

// carry requests a held claim under a new record. Until a quorum of that has voted for it,
// it is held by its grace (E17).
func (c *Client) carry(cl *Claim, before []node, out *Out) {
	votes := cl.votes
	cl.known = false //plant:known-of-before
	if cl.moved = cl.evicted == nil; cl.moved {
		c.anew(cl, out)
	} else { // its nodes do not extend it any more, and new ones must not (N10)
		cl.votes = make([]vote, len(c.nodes))
	}
	if cl.nameless { // who voted for it must vote again before any other vote counts
		for k := range before {
			if i, ok := c.index(before[k].name); ok {
				cl.votes[i].life = votes[k].life
			}
		}
	}
	c.schedule(cl)
}

// dueHeap is a min-heap of claims by the time at which they need action.
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
