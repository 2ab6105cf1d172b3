// Package voter is the voting node of qlock as a pure state machine. Its inputs are a
// message and a reading of the clocks; its outputs are messages and the next deadline. It
// has no goroutine, socket, clock or random source. The rule numbers (N1 and so on) are
// those of docs/protocol.md.
//
// All values are for use by one goroutine at a time.
package voter

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/epoch"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// Config is the configuration with which a node starts.
type Config struct {
	Name string
	wire.Config
	Incarnation uuid.UUID // new at every start
	// ProbeWait is how long answers to a question for the node's own name may take (N9). The
	// node does not vote before it has listened for that long.
	ProbeWait time.Duration
	// MaxClaims bounds the claims of one client name. A claim beyond it is refused.
	MaxClaims int
	// MaxQueue bounds the claims that wait for one resource. A claim beyond it is refused.
	MaxQueue int
	// MaxRuns is how many runs of claim numbers fit into one answer. Values below 2 mean
	// wire.MaxRuns.
	MaxRuns int
	// MaxBody is the longest answer that the node's connection takes, in bytes; 0 means
	// wire.MaxBody.
	MaxBody int
	// FloorKey is random and differs from that of every other node. It decides which names
	// share a floor, and makes the node's nonces unpredictable.
	FloorKey [16]byte
	// Floors is the size of the table of floors. It is rounded up to a power of two, and is
	// at most 1<<20; 0 means the default, 1<<16.
	Floors  int
	Version string

	// Cluster is the name of the cluster. Without it, the node knows nothing about records (E1).
	Cluster string
	// State is what the node's directory has about records; without an id there is no directory.
	// The configuration above counts at epoch 0 only. It has no nodes if the node is to join.
	State epoch.State
	// Fresh is set if the directory was empty, or there is none.
	Fresh bool

	// Past lists earlier lives of this node that are known to be over. Late questions from
	// them are ignored (N9).
	Past []uuid.UUID
}

// Send is an answer and the inbox that it goes to.
type Send struct {
	To     string
	Answer wire.Answer
}

// Out collects the actions that the node requests. The caller owns it, may reuse it, and
// calls Reset between steps.
type Out struct {
	Answers []Send
	Probe   *wire.Request // to be published to all nodes, including this one
	Ask     *wire.Request // the same, for other nodes (N11)
	Notes   []string      // messages for the operator's log
	Ready   bool          // the node votes from now on

	Survey *wire.Request // to be published to all nodes: which of them has a newer record?
	// Write is to be written to the node's directory, and synced, before anything of this step is
	// sent and before any other step. Then Written is called. If it cannot be written, the node
	// must stop: nobody knows what its directory has.
	Write *epoch.State
}

// Reset empties o for reuse and keeps its memory.
func (o *Out) Reset() {
	clear(o.Answers)
	o.Answers, o.Probe, o.Ask, o.Notes, o.Ready = o.Answers[:0], nil, nil, o.Notes[:0], false
	o.Survey, o.Write = nil, nil
}

// Node is one voting node. It is not safe for concurrent use.
type Node struct {
	cfg     Config
	digest  string
	started int64 // wall clock at the start, µs

	resources map[string]*resource
	roll      byArrival // the same resources in order of arrival
	sessions  map[sessionKey]*session
	perClient map[string]int // claims by client name
	// peaks are the largest sizes of the maps, for shrink.Map.
	peaks  struct{ resources, sessions, clients int }
	leases leaseHeap
	votes  int // number of claims with this node's vote
	moved  int // leases in the heap found to have been extended, since the heap was last rebuilt
	old    old
	floors floors // highest fences of the resources without a record
	// farAhead is set while fences lie further ahead of the clock than other nodes may follow
	// (N3) and the operator was told.
	farAhead bool

	longest    time.Duration // longest lease that a node of this name may have granted (N8)
	since      time.Duration // monotonic time of the start
	quarantine time.Duration // no votes before this time (N8)
	inQuarant  bool
	waitAt     time.Duration // start of the current or last quarantine
	soughtAt   time.Duration // when the last question was sent that counted in asks
	// asks is how many of its questions the node must still hear before its wait begins (N9).
	asks int
	// voted is set if a vote was given, or may have been.
	voted bool

	secret      [2]uint64     // random for this life; keys the nonces
	probe       int           // number of the current probe (N9)
	probeAt     time.Duration // when it was sent
	probeWall   int64         // the same by the wall clock, µs
	probeEchoed bool          // the node heard its own answer to it
	echoAt      time.Duration // when the last probe was sent that the node heard itself
	echoWall    int64         // the same by the wall clock, µs
	// heardAt is like echoAt, for the last probe that proves that the node was not away.
	heardAt   time.Duration
	heardWall int64 // the same by the wall clock, µs
	// longerLimit is the maxTTL of before a change to a shorter one, or 0, and limitSince when
	// that was: see limit.
	longerLimit, limitSince time.Duration
	// back is set while the node has been away and has not listened long enough since (N9).
	back bool
	// hears is set while a node that is back hears itself without a gap, and so listens.
	hears bool
	// listenEnd is the time from which a probe ends the listening.
	listenEnd time.Duration
	asked     bool    // another node asked for this name since the last probe
	probed    bool    // the node has its name for itself: enough probes found no other
	rivals    []rival // other nodes of its name that may come to vote
	// gone lists the other nodes of its name that said that they stopped, the latest last.
	gone      []uuid.UUID
	stopped   bool
	farewells int // how often the node still says that it stopped (N9)

	lives []uuid.UUID // earlier lives whose memory this node has, the latest last

	serial  uint64      // counts the steps, for work that is done once per step
	recalls []*resource // resources whose head recalls votes at the end of this step
	crowded []*resource // resources with more votes to examine in later steps
	looked  []*resource // the previous array of crowded, for reuse
	lookAt  time.Duration
	looks   uint64      // votes examined, for tests
	changed []*resource // resources whose tries are told so at the end of this step

	ended  ended         // claims that are over for good (N11)
	doubts []doubt       // claims that other nodes are to be asked about
	overAt time.Duration // not before this time

	config config

	counts Counts
}

// New starts a node. saved is what the node left at its last clean stop, or nil. New
// ignores saved if it is stale. Without saved the node may have forgotten votes. It then
// waits until the longest lease that it can have granted is over: forgot, or the
// configuration's MaxTTL if that is longer (N8). forgot counts up to wire.MaxLease.
func New(cfg Config, now wire.Now, saved *Saved, forgot time.Duration) *Node {
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
	// Set before a mark replaces the key of the floors.
	n.secret = n.floors.key
	// No message has a lease longer than wire.MaxLease.
	n.startConfig(now, &cfg, saved)
	n.longest, n.since = max(n.longest, n.cfg.MaxTTL, min(forgot, wire.MaxLease)), now.Mono
	if saved != nil && saved.Stale(now, n.cfg.MaxTTL) { //plant:stale-mark
		saved = nil
	}
	n.heardAt, n.heardWall = now.Mono, now.Wall
	switch {
	case saved != nil:
		n.restore(now, saved) //plant:restored
		n.lives = saved.Lives
	case n.config.outside != wire.Joining || !cfg.Fresh: // an id that is new never voted (E14)
		n.enterQuarantine(now)
		n.asks = firstAsks
	}
	n.restored()
	n.probeAt = now.Mono - cfg.ProbeWait // due at once //plant:started
	return n
}

// Fit sets how many bytes of an answer the connection takes from now on.
func (n *Node) Fit(bytes int) { n.cfg.MaxBody, n.cfg.MaxRuns = bytes, wire.RunsIn(bytes) }

// continued returns the lives whose memory this node has, for as long as votes that they
// gave can stand. It tells a client that this is the same node, and not another of its
// name (C13).
func (n *Node) continued(now wire.Now) []uuid.UUID {
	if len(n.lives) == 0 || now.Mono > n.since+n.runOut() {
		return nil
	}
	return n.lives
}

// enterQuarantine makes the node give no votes until all votes that it, or another node
// of its name, can have given until now have expired (N8).
func (n *Node) enterQuarantine(now wire.Now) {
	n.inQuarant, n.waitAt = true, now.Mono
	n.quarantine = max(n.quarantine, now.Mono+n.listen()+n.runOut())
}

// listen returns for how long after this node began to wait another node of its name may
// go on voting (N9). If the other does not hear this node, that is until this node hears
// it ask. If this node does not hear the other, and the other was away when the wait
// began, it is until the other hears this node's next question. The other may run with an
// earlier configuration, and ask as seldom as that one says; so the longest lease counts.
func (n *Node) listen() time.Duration { return n.present(n.longest) + 2*n.pause(n.longest) } //plant:listen

func (n *Node) runOut() time.Duration { return n.longest + wire.Margin(n.longest) } //plant:run-out

// mostBelieved is the longest lease that a node believes on the word of others. So a
// client that lies can delay the first vote of a node that forgot by at most that much.
const mostBelieved = time.Hour

// longerLease notes that the cluster may have allowed a longer lease when this node gave
// votes that it has forgotten since (N8).
func (n *Node) longerLease(ttl time.Duration, who string, out *Out) {
	if ttl = min(ttl, mostBelieved); !n.inQuarant || ttl <= n.longest {
		return
	}
	n.longest = ttl
	n.quarantine = max(n.quarantine, n.waitAt+n.listen()+n.runOut(), n.soughtAt+n.runOut())
	out.Notes = append(out.Notes, fmt.Sprintf(
		"there may be longer leases than this node's configuration allows (%s has, or allows, leases of %v): it gives no votes until those have expired", who, n.longest))
}

// State returns what the node can do now.
func (n *Node) State() wire.State {
	switch {
	case n.stopped:
		return wire.Stopped
	case n.config.outside != "": //plant:voter-outside
		return n.config.outside
	case n.inQuarant || slices.ContainsFunc(n.rivals, func(r rival) bool { return r.voted }):
		return wire.Recovering
	case !n.probed || len(n.rivals) > 0:
		return wire.Probing
	}
	return wire.Voting
}

func (n *Node) voting() bool { return n.State() == wire.Voting }

// Probed reports whether the node has made sure that no other node uses its name.
func (n *Node) Probed() bool { return n.probed }

// Stopped reports whether the node has given up its name to an earlier node.
func (n *Node) Stopped() bool { return n.stopped }

// Leaving reports whether a stopped node still has messages to send.
func (n *Node) Leaving() bool { return n.stopped && n.farewells > 0 }

// Claims returns the number of claims that the node knows.
func (n *Node) Claims() int { return len(n.leases) }

// Resources returns the number of resources with votes or waiting claims.
func (n *Node) Resources() int { return len(n.resources) }

// Deadline returns the monotonic time at which Tick must be called next.
func (n *Node) Deadline() time.Duration {
	if n.stopped && n.farewells == 0 {
		return 1 << 62
	}
	d := n.probeDue()
	if n.stopped {
		return d
	}
	d = min(d, n.config.due)
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

// Tick does what is due at a time: it ends leases, quarantines and waits, and sends the
// next probe. A call before Deadline is harmless.
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
		// A node that heard its own probe knows that others could hear it (N9), and that their
		// answers had ProbeWait to arrive. A node that asked meanwhile may not have listened yet
		// when the probe was sent.
		if n.probeEchoed && !n.probed && !n.asked && (!n.back || n.hears && n.probeAt >= n.listenEnd) {
			n.probed, n.back, n.hears = true, false, false
			n.heardAt, n.heardWall = n.echoAt, n.echoWall
			n.limitHeard(n.echoAt)
			n.noteState(now, out)
		}
		n.ask(now, out)
	}
	n.checkRivals(now, out)
	// A node that has not yet heard enough of its own questions goes on asking.
	if n.inQuarant && now.Mono >= n.quarantine && n.asks == 0 && !n.waitForFloor(now) {
		n.inQuarant = false
		n.raiseFloors(now) //plant:wait-over
		n.noteState(now, out)
	}
	n.tellTries(now, out)
	n.sendRecalls(now, out)
	n.askOthers(now, out)
	n.tickConfig(now, out)
}

// raiseFloors raises the floor of what the node forgot, or what another node of its name
// gave, to the wall clock (N8). Every fence is given at most maxTTL ahead of the wall
// clock (see reach; the skew is no larger), and a quarantine takes longer than that. So
// the clock at the end of a quarantine is above all of them. The clock at its start is
// not.
//
// Votes from before the quarantine also get fences above the floor, and their ranges end.
// With the earlier fences they could make a token below one that another node of this
// name has helped to give since.
func (n *Node) raiseFloors(now wire.Now) {
	n.floors.forgot, n.floors.forgotAt = max(n.forgotten(now), uint64(max(now.Wall, 0))), now.Mono
	for _, res := range n.resources {
		for _, c := range res.votes {
			floor := max(n.floorOf(now, res), 1) // a fence of 0 means none
			if c.mode == quorum.Exclusive {
				floor++
			}
			n.raise(res, floor)
			c.fence, c.reserved = floor, 1 //plant:fences-anew
		}
	}
}

// forgotten returns a number above all fences that the node forgot (N8). If the wall
// clock has since been set back by more than the clocks of a cluster may differ, it was
// ahead when the floor was noted. Then the result is what the clock would have shown at
// that time if it had been as it is now. That is also above what was forgotten. Otherwise
// the error of the clock would become the floor of all names.
func (n *Node) forgotten(now wire.Now) uint64 {
	forgot, then := int64(n.floors.forgot), now.Wall-(now.Mono-n.floors.forgotAt).Microseconds()
	if forgot-then > n.cfg.MaxTTL.Microseconds() { //plant:clock-set-back
		forgot = max(then, 0) //plant:forgot
	}
	return uint64(forgot)
}

// floorOf returns the number that every fence for res must be above (shared: not below).
// It covers the fences that the node remembers and those that it forgot.
func (n *Node) floorOf(now wire.Now, res *resource) uint64 {
	return max(res.floor, n.forgotten(now))
}

// raise notes that fences up to floor are given, or were.
func (n *Node) raise(res *resource, floor uint64) {
	res.floor = max(res.floor, floor)
	n.floors.highest = max(n.floors.highest, floor)
}

// noteState announces that the node votes, if it does, and serves the waiting claims.
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

// Handle processes a request. reply is the inbox of its sender, or empty if the sender
// wants no answer.
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
	if n.config.outside != "" {
		n.handleOutside(now, r, reply, out)
		return
	}
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
	case wire.Configure:
		n.step(now, r, reply, out)
	}
	n.tellTries(now, out)
	n.sendRecalls(now, out)
	n.askOthers(now, out)
	n.tickConfig(now, out)
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
