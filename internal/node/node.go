// Package node is the voting side of qlock as a pure machine: a message and a
// reading of the clocks go in, answers and the next deadline come out. It has no
// goroutine, socket, clock or random source. Rule numbers (N1 …) are those of
// docs/protocol.md.
package node

import (
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/proto"
)

// Config is what a node is told at its start.
type Config struct {
	Name string
	proto.Config
	Incarnation uuid.UUID     // new at every start
	ProbeWait   time.Duration // how long to listen for another node of the same name before the first vote
	MaxClaims   int           // claims of one client name
	MaxQueue    int           // claims waiting for one resource
	MaxRuns     int           // runs of claims that fit into one answer, at least 2
	Version     string
}

// Send is an answer and the inbox that it goes to.
type Send struct {
	To     string
	Answer proto.Answer
}

// Out collects what the node wants done. The caller owns it, may reuse it, and
// clears it between steps.
type Out struct {
	Answers []Send
	Probe   *proto.Request // to be published to all nodes, this one among them
	Ask     *proto.Request // the same, for other nodes (N11)
	Notes   []string       // what an operator should read
	Ready   bool           // it votes from now on
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
	roll      roll // the same in the order in which they came
	sessions  map[sessionKey]*session
	perClient map[string]int                             // claims by client name
	peaks     struct{ resources, sessions, clients int } // of the maps, for shrink.Map
	leases    leaseHeap
	votes     int // of the claims in leases, those with this node's vote
	moved     int // leases in it that turned out to have been extended, since all were looked at
	old       old
	floor     uint64 // at least as high as every fence given for a resource without a record

	quarantine time.Duration // no votes before this moment (N8)
	inQuarant  bool
	voted      bool // a vote was given, or may have been

	probe       int           // number of the probe that is out (N9)
	probeAt     time.Duration // when it was sent
	probeWall   int64         // the same by the wall clock, µs
	probeEchoed bool          // its answer by this very node came back: it was heard
	heardAt     time.Duration // when the last probe was sent that was heard
	heardWall   int64         // the same by the wall clock, µs
	asked       bool          // another asked for this node's name since
	probed      bool          // full probes, as many as it takes, found no other node
	missing     int           // how many that still are
	told        uuid.UUID     // the last later node that said that it had voted
	stopped     bool
	farewells   int // how often it still says that it has voted (N9)

	serial  uint64      // counts steps, to do once a step what many claims ask for
	recalls []*resource // whose heads recall at the end of this step

	ended  ended           // claims that are over for good (N11)
	doubts []proto.ClaimOf // that others are to be asked about
	overAt time.Duration   // not before that

	counts Counts
}

// New starts a node. saved is what it left at its last clean stop; without it
// the node may have forgotten votes and is in quarantine until the longest lease
// that it can have granted is over: forgot, or the configuration's if that is
// longer (N8).
func New(cfg Config, now proto.Now, saved *Saved, forgot time.Duration) *Node {
	if cfg.MaxRuns < 2 {
		cfg.MaxRuns = proto.MaxRuns
	}
	n := &Node{
		cfg:       cfg,
		digest:    cfg.Digest(),
		started:   now.Wall,
		resources: map[string]*resource{},
		sessions:  map[sessionKey]*session{},
		perClient: map[string]int{},
		floor:     uint64(max(now.Wall, 0)),
	}
	if saved == nil {
		longest := max(cfg.MaxTTL, forgot)
		n.enterQuarantine(now.Mono + longest + proto.Margin(longest))
	} else {
		n.restore(now, saved)
	}
	n.probeAt = now.Mono - cfg.ProbeWait // due at once
	n.missing = 1
	return n
}

func (n *Node) enterQuarantine(until time.Duration) {
	n.inQuarant = true
	n.quarantine = max(n.quarantine, until)
}

// State is what the node can do now.
func (n *Node) State() proto.State {
	switch {
	case n.stopped:
		return proto.Stopped
	case n.inQuarant:
		return proto.Recovering
	case !n.probed:
		return proto.Probing
	}
	return proto.Voting
}

func (n *Node) voting() bool { return n.State() == proto.Voting }

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
	if n.inQuarant {
		d = min(d, n.quarantine)
	}
	if len(n.leases) > 0 {
		d = min(d, n.leases[0].key)
	}
	if len(n.doubts) > 0 {
		d = min(d, n.overAt)
	}
	return d
}

// Tick does what time alone brings: leases that ran out, the end of a
// quarantine, the next probe.
func (n *Node) Tick(now proto.Now, out *Out) {
	if n.stopped {
		if n.farewells > 0 && now.Mono >= n.probeDue() {
			n.farewells--
			n.ask(now, out)
		}
		return
	}
	n.serial++
	n.expire(now, out)
	n.checkAlone(now, out)
	if now.Mono >= n.probeDue() {
		// Only a probe that this node heard itself was heard by others (N9). The
		// answers had ProbeWait to come.
		// Who asked meanwhile may not have listened yet when this was sent.
		if n.probeEchoed && !n.probed && !n.asked {
			if n.missing--; n.missing <= 0 {
				n.probed = true
				n.noteState(now, out)
			}
		}
		n.ask(now, out)
	}
	if n.inQuarant && now.Mono >= n.quarantine {
		n.inQuarant = false
		n.raiseFloors(now)
		n.noteState(now, out)
	}
	n.sendRecalls(now, out)
	n.askOthers(now, out)
}

// raiseFloors lifts what the node forgot: every fence it ever gave was at most
// maxTTL ahead of its wall clock (fenceInReach; the skew is no larger), and a
// quarantine is longer than that. So the clock at the end of a quarantine is
// above them all, which the clock at its start is not (N8).
func (n *Node) raiseFloors(now proto.Now) {
	n.floor = max(n.floor, uint64(max(now.Wall, 0)))
	for _, res := range n.resources {
		res.floor = max(res.floor, n.floor)
	}
}

// noteState says that the node votes, if it does, and serves who waited for it.
func (n *Node) noteState(now proto.Now, out *Out) {
	if !n.voting() {
		return
	}
	out.Ready = true
	for _, name := range slices.Sorted(maps.Keys(n.resources)) {
		res := n.resources[name]
		for _, c := range res.votes {
			if c.owed {
				c.owed = false
				n.granted(c, out)
			}
		}
		n.promote(now, res, 0, out)
	}
}

// Handle takes a request; reply is the inbox that its sender listens on.
func (n *Node) Handle(now proto.Now, r *proto.Request, reply string, out *Out) {
	if n.stopped {
		if n.farewells > 0 && r.Verb == proto.Info {
			n.info(now, r, reply, out)
		}
		return
	}
	n.serial++
	n.expire(now, out)
	n.checkAlone(now, out)
	switch r.Verb {
	case proto.Acquire:
		n.acquire(now, r, reply, out)
	case proto.Release:
		n.release(now, r, out)
	case proto.Yield:
		n.yield(now, r, out)
	case proto.Refresh:
		n.refresh(now, r, reply, out)
	case proto.Info:
		n.info(now, r, reply, out)
	case proto.List:
		n.list(now, r, reply, out)
	case proto.Inspect:
		n.inspect(now, r, reply, out)
	case proto.Evict:
		n.evict(r, reply, out)
	}
	n.sendRecalls(now, out)
	n.askOthers(now, out)
}

func (n *Node) recovering(now proto.Now) time.Duration {
	if n.inQuarant {
		return max(n.quarantine-now.Mono, time.Millisecond)
	}
	if !n.probed {
		return n.cfg.ProbeWait
	}
	return 0
}
