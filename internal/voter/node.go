// Package voter is the voting side of qlock as a pure machine: a message and a
// reading of the clocks go in, answers and the next deadline come out. It has no
// goroutine, socket, clock or random source. Rule numbers (N1 …) are those of
// docs/protocol.md.
package voter

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// Config is what a node is told at its start.
type Config struct {
	Name string
	wire.Config
	Incarnation uuid.UUID     // new at every start
	ProbeWait   time.Duration // how long to listen for another node of the same name before the first vote
	MaxClaims   int           // claims of one client name
	MaxQueue    int           // claims waiting for one resource
	MaxRuns     int           // runs of claims that fit into one answer, at least 2
	MaxBody     int           // bytes of an answer that its connection takes
	FloorKey    [16]byte      // random, and nobody else's: which names share a floor, and what its nonces are
	Floors      int           // how many there are, a power of two; 0: as many as a node should have
	Version     string

	// Past is the node's own earlier lives, as far as it can be sure that they are
	// over: their questions, should they come late, are nobody's (N9).
	Past []uuid.UUID
}

// Send is an answer and the inbox that it goes to.
type Send struct {
	To     string
	Answer wire.Answer
}

// Out collects what the node wants done. The caller owns it, may reuse it, and
// clears it between steps.
type Out struct {
	Answers []Send
	Probe   *wire.Request // to be published to all nodes, this one among them
	Ask     *wire.Request // the same, for other nodes (N11)
	Notes   []string      // what an operator should read
	Ready   bool          // it votes from now on
}

// Reset empties o and keeps its memory.
func (o *Out) Reset() {
	clear(o.Answers)
	o.Answers, o.Probe, o.Ask, o.Notes, o.Ready = o.Answers[:0], nil, nil, o.Notes[:0], false
}

// Node is one voting node. It is not safe for concurrent use.
type Node struct {
	cfg     Config
	digest  string
	started int64 // wall clock at the start, µs

	resources map[string]*resource
	roll      byArrival // the same in the order in which they came
	sessions  map[sessionKey]*session
	perClient map[string]int                             // claims by client name
	peaks     struct{ resources, sessions, clients int } // of the maps, for shrink.Map
	leases    leaseHeap
	votes     int // of the claims in leases, those with this node's vote
	moved     int // leases in it that turned out to have been extended, since all were looked at
	old       old
	floors    floors // of resources without a record
	farAhead  bool   // fences lie so far ahead of the clock that other nodes may not follow, and it said so

	longest    time.Duration // longest lease that its name may have granted (N8)
	since      time.Duration // it was started, monotonic
	quarantine time.Duration // no votes before this moment (N8)
	inQuarant  bool
	waitAt     time.Duration // its last wait began
	soughtAt   time.Duration // when the last question was sent that counted in asks
	asks       int           // questions that it must hear itself ask before its wait begins (N9)
	voted      bool          // a vote was given, or may have been

	secret      [2]uint64     // of this life, for its nonces
	probe       int           // number of the probe that is out (N9)
	probeAt     time.Duration // when it was sent
	probeWall   int64         // the same by the wall clock, µs
	probeEchoed bool          // its answer by this very node came back: it was heard
	echoAt      time.Duration // when the last probe was sent that was heard
	echoWall    int64         // the same by the wall clock, µs
	heardAt     time.Duration // the same of the last that shows that the node was not away
	heardWall   int64         // the same by the wall clock, µs
	back        bool          // it was away, and has not listened for long enough since (N9)
	hears       bool          // while back: it has heard itself, without a pause, and listens
	listenEnd   time.Duration // while it hears: a probe from then on ends it
	asked       bool          // another asked for this node's name since
	probed      bool          // full probes, as many as it takes, found no other node
	rivals      []rival       // others of its name that may come to vote
	gone        []uuid.UUID   // others of its name that said that they vote no more, the latest last
	stopped     bool
	farewells   int // how often it still says so (N9)

	lives []uuid.UUID // those before this one whose memory it has, the latest last

	serial  uint64      // counts steps, to do once a step what many claims ask for
	recalls []*resource // whose heads recall at the end of this step
	crowded []*resource // more of whose votes are looked at later
	looked  []*resource // the room of that list, in turn
	lookAt  time.Duration
	looks   uint64      // votes that were looked at, for tests
	changed []*resource // whose tries learn at its end what is before them now

	ended  ended         // claims that are over for good (N11)
	doubts []doubt       // that others are to be asked about
	overAt time.Duration // not before that

	counts Counts
}

// New starts a node. saved is what it left at its last clean stop; without it
// the node may have forgotten votes and is in quarantine until the longest lease
// that it can have granted is over: forgot, or the configuration's if that is
// longer (N8).
func New(cfg Config, now wire.Now, saved *Saved, forgot time.Duration) *Node {
	if saved != nil && saved.Stale(now, cfg.MaxTTL) { //plant:stale-mark
		saved = nil
	}
	if cfg.MaxRuns < 2 {
		cfg.MaxRuns = wire.MaxRuns
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = wire.MaxBody
	}
	n := &Node{
		cfg:       cfg,
		digest:    cfg.Digest(),
		started:   now.Wall,
		resources: map[string]*resource{},
		sessions:  map[sessionKey]*session{},
		perClient: map[string]int{},
		floors:    newFloors(cfg.FloorKey, cfg.Floors),
	}
	n.secret = n.floors.key                                                    // before a mark gives its floors another
	n.longest, n.since = max(cfg.MaxTTL, min(forgot, wire.MaxLease)), now.Mono // no message has a longer one
	n.heardAt, n.heardWall = now.Mono, now.Wall
	if saved == nil {
		n.enterQuarantine(now)
		n.asks = firstAsks
	} else {
		n.restore(now, saved) //plant:restored
		n.lives = saved.Lives
	}
	n.probeAt = now.Mono - cfg.ProbeWait // due at once //plant:started
	return n
}

// Fit tells the node how many bytes of an answer its connection takes from now on.
func (n *Node) Fit(bytes int) { n.cfg.MaxBody, n.cfg.MaxRuns = bytes, wire.RunsIn(bytes) }

// continued is the lives whose memory this one has, as long as votes can stand that
// they gave: so a client knows that what it hears is no other node of this name (C13).
func (n *Node) continued(now wire.Now) []uuid.UUID {
	if len(n.lives) == 0 || now.Mono > n.since+n.runOut() {
		return nil
	}
	return n.lives
}

// enterQuarantine has the node give no votes until all have run out that it, or
// another of its name, can have given until now (N8).
func (n *Node) enterQuarantine(now wire.Now) {
	n.inQuarant, n.waitAt = true, now.Mono
	n.quarantine = max(n.quarantine, now.Mono+n.listen()+n.runOut())
}

// listen is for how long after this node began to wait another of its name may vote:
// until it is heard to ask, if it does not hear this one; until it hears this one's next
// question, if it is the other way round, and it was away when the wait began (N9). It
// may also have the configuration of before, and ask as seldom as that says.
func (n *Node) listen() time.Duration { return n.present(n.longest) + 2*n.pause(n.longest) } //plant:listen

func (n *Node) runOut() time.Duration { return n.longest + wire.Margin(n.longest) } //plant:run-out

// mostBelieved is the longest lease that a node believes others about. A client that
// lies can delay the first vote of a node that forgot, and by no more than that.
const mostBelieved = time.Hour

// longerLease notes that the cluster may have allowed a longer lease when this
// node's votes of before were given, of which it knows nothing any more (N8).
func (n *Node) longerLease(ttl time.Duration, who string, out *Out) {
	if ttl = min(ttl, mostBelieved); !n.inQuarant || ttl <= n.longest {
		return
	}
	n.longest = ttl
	n.quarantine = max(n.quarantine, n.waitAt+n.listen()+n.runOut(), n.soughtAt+n.runOut())
	out.Notes = append(out.Notes, fmt.Sprintf(
		"there may be longer leases than this node's configuration allows (%s has, or allows, leases of %v): it gives no votes until those have expired", who, n.longest))
}

// State is what the node can do now.
func (n *Node) State() wire.State {
	switch {
	case n.stopped:
		return wire.Stopped
	case n.inQuarant || slices.ContainsFunc(n.rivals, func(r rival) bool { return r.voted }):
		return wire.Recovering
	case !n.probed || len(n.rivals) > 0:
		return wire.Probing
	}
	return wire.Voting
}

func (n *Node) voting() bool { return n.State() == wire.Voting }

// Probed reports whether the node made sure that it has its name for itself.
func (n *Node) Probed() bool { return n.probed }

// Stopped reports whether the node gave up its name to an earlier node.
func (n *Node) Stopped() bool { return n.stopped }

// Leaving reports whether a stopped node still has something to say.
func (n *Node) Leaving() bool { return n.stopped && n.farewells > 0 }

// Claims is the number of claims that it knows.
func (n *Node) Claims() int { return len(n.leases) }

// Resources is the number of names with votes or waiting claims.
func (n *Node) Resources() int { return len(n.resources) }

// Deadline is when Tick must be called next.
func (n *Node) Deadline() time.Duration {
	if n.stopped && n.farewells == 0 {
		return 1 << 62
	}
	d := n.probeDue()
	if n.stopped {
		return d
	}
	if n.inQuarant && n.asks == 0 {
		d = min(d, n.quarantine)
	}
	for _, r := range n.rivals {
		d = min(d, r.until)
	}
	if len(n.leases) > 0 {
		d = min(d, n.leases[0].key)
	}
	if len(n.doubts) > 0 {
		d = min(d, n.overAt)
	}
	if len(n.crowded) > 0 {
		d = min(d, n.lookAt)
	}
	return d
}

// Tick does what time alone brings: leases that ran out, the end of a
// quarantine, the next probe.
func (n *Node) Tick(now wire.Now, out *Out) {
	if n.stopped {
		if n.farewells > 0 && now.Mono >= n.probeDue() {
			n.farewells--
			n.ask(now, out)
		}
		return
	}
	n.serial++
	n.checkAlone(now, out) //plant:absence-first
	n.expire(now, out)
	n.checkAhead(now, out)
	if now.Mono >= n.probeDue() {
		// Only a probe that this node heard itself was heard by others (N9). The
		// answers had ProbeWait to come.
		// Who asked meanwhile may not have listened yet when this was sent.
		if n.probeEchoed && !n.probed && !n.asked && (!n.back || n.hears && n.probeAt >= n.listenEnd) {
			n.probed, n.back, n.hears = true, false, false
			n.heardAt, n.heardWall = n.echoAt, n.echoWall
			n.noteState(now, out)
		}
		n.ask(now, out)
	}
	n.checkRivals(now, out)
	// Who has not yet been heard to ask so often as it must goes on asking.
	if n.inQuarant && now.Mono >= n.quarantine && n.asks == 0 {
		n.inQuarant = false
		n.raiseFloors(now) //plant:wait-over
		n.noteState(now, out)
	}
	n.tellTries(now, out)
	n.sendRecalls(now, out)
	n.askOthers(now, out)
}

// raiseFloors notes what the node forgot, or what another of its name gave: every
// fence ever given was at most maxTTL ahead of the wall clock (reach; the skew is no
// larger), and a quarantine is longer than that. So the clock at the end of a
// quarantine is above them all, which the clock at its start is not (N8).
//
// Votes from before the quarantine get fences above the floor too, and what was
// set aside for them ends: with the fences of before they could make a token
// below one that another node of this name has helped to give since.
func (n *Node) raiseFloors(now wire.Now) {
	n.floors.forgot, n.floors.forgotAt = max(n.forgotten(now), uint64(max(now.Wall, 0))), now.Mono
	for _, res := range n.resources {
		for _, c := range res.votes {
			floor := max(n.floorOf(now, res), 1) // a fence of 0 is none
			if c.mode == quorum.Exclusive {
				floor++
			}
			n.raise(res, floor)
			c.fence, c.reserved = floor, 1 //plant:fences-anew
		}
	}
}

// forgotten is above all fences that the node forgot. A wall clock that has been set
// back since, by more than a cluster's clocks may be apart, was ahead then: what
// counts is what it would have shown if it had been as it is now. That is as much
// above what was forgotten, and else the clock's error would be the floor of all
// names (N8).
func (n *Node) forgotten(now wire.Now) uint64 {
	forgot, then := int64(n.floors.forgot), now.Wall-(now.Mono-n.floors.forgotAt).Microseconds()
	if forgot-then > n.cfg.MaxTTL.Microseconds() { //plant:clock-set-back
		forgot = max(then, 0) //plant:forgot
	}
	return uint64(forgot)
}

// floorOf is what every fence for res must be above (shared: not below): what the
// node remembers, and what it forgot.
func (n *Node) floorOf(now wire.Now, res *resource) uint64 {
	return max(res.floor, n.forgotten(now))
}

// raise notes that fences up to floor are given, or were.
func (n *Node) raise(res *resource, floor uint64) {
	res.floor = max(res.floor, floor)
	n.floors.highest = max(n.floors.highest, floor)
}

// noteState says that the node votes, if it does, and serves who waited for it.
func (n *Node) noteState(now wire.Now, out *Out) {
	if !n.voting() {
		return
	}
	out.Ready = true
	for _, name := range slices.Sorted(maps.Keys(n.resources)) {
		res := n.resources[name]
		for _, c := range res.votes {
			if c.grantPending {
				c.grantPending = false
				n.granted(now, c, out)
			}
		}
		n.promote(now, res, 0, out)
	}
}

// Handle takes a request; reply is the inbox that its sender listens on.
func (n *Node) Handle(now wire.Now, r *wire.Request, reply string, out *Out) {
	if n.stopped {
		if n.farewells > 0 && r.Verb == wire.Info {
			n.info(now, r, reply, out)
		}
		return
	}
	n.serial++
	n.checkAlone(now, out)
	n.expire(now, out)
	switch r.Verb {
	case wire.Acquire:
		n.acquire(now, r, reply, out)
	case wire.Release:
		n.release(now, r, out)
	case wire.Yield:
		n.yield(now, r, out)
	case wire.Refresh:
		n.refresh(now, r, reply, out)
	case wire.Info:
		n.info(now, r, reply, out)
	case wire.List:
		n.list(now, r, reply, out)
	case wire.Inspect:
		n.inspect(now, r, reply, out)
	case wire.Evict:
		n.evict(now, r, reply, out)
	}
	n.tellTries(now, out)
	n.sendRecalls(now, out)
	n.askOthers(now, out)
}

func (n *Node) recovering(now wire.Now) time.Duration {
	var wait time.Duration
	if n.inQuarant {
		wait = max(n.quarantine-now.Mono, time.Duration(n.asks)*n.cfg.ProbeWait, time.Millisecond)
	}
	for _, r := range n.rivals {
		wait = max(wait, r.until-now.Mono)
	}
	if !n.probed {
		wait = max(wait, n.cfg.ProbeWait)
	}
	switch {
	case n.hears:
		wait = max(wait, n.listenEnd-now.Mono+n.cfg.ProbeWait)
	case n.back:
		wait = max(wait, 2*n.pause(n.longest)+n.cfg.ProbeWait)
	}
	return wait
}
