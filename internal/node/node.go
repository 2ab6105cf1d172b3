// Package node is the voting side of qlock as a pure machine: a message and a
// reading of the clocks go in, answers and the next deadline come out. It has no
// goroutine, socket, clock or random source. Rule numbers (N1 …) are those of
// docs/protocol.md.
package node

import (
	"cmp"
	"container/heap"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/proto"
	"github.com/qlock/qlock/internal/quorum"
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
	Notes   []string       // what an operator should read
}

// Reset empties o and keeps its memory.
func (o *Out) Reset() {
	clear(o.Answers)
	o.Answers, o.Probe, o.Notes = o.Answers[:0], nil, o.Notes[:0]
}

// Node is one voting node. It is not safe for concurrent use.
type Node struct {
	cfg     Config
	digest  string
	started int64 // wall clock at the start, µs

	resources map[string]*resource
	sessions  map[sessionKey]*session
	perClient map[string]int // claims by client name
	leases    leaseHeap
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
}

type sessionKey struct {
	client   string
	instance uuid.UUID
}

// session is what one client instance has here.
type session struct {
	key    sessionKey
	reply  string // its inbox
	claims map[uint64]*claim
}

type claim struct {
	session *session
	seq     uint64
	res     *resource
	mode    quorum.Mode
	at      int64
	ttl     time.Duration
	beat    uint64 // highest seen for this claim (N1)
	want    uint64
	held    bool // says its client
	try     bool // it is told at once when the claim in its way will not yield

	voted bool
	fence uint64
	since time.Duration // of the vote, or of its place in the queue
	owed  bool          // it asked for the vote that it has while the node did not vote

	deadline time.Duration // end of its lease
	key      time.Duration // deadline when it was last placed in the heap; deadlines only grow, so the heap may lag behind them
	index    int           // in the heap
}

func (c *claim) id() proto.ClaimID {
	return proto.ClaimID{Instance: c.session.key.instance, Seq: c.seq}
}

// resource is the record of a name with votes or a queue. votes holds either one
// exclusive claim or any number of shared ones; both lists are in order of age.
type resource struct {
	name   string
	votes  []*claim
	queue  []*claim
	floor  uint64
	serial uint64 // last step at whose end its head recalls
}

// order is the order of queues: what is held elsewhere first, then by age, then
// by id. No two claims of one client share an id; what another client calls by the
// same one is told apart by the name.
func order(a, b *claim) int {
	if a.held != b.held {
		if a.held {
			return -1
		}
		return 1
	}
	if a.at != b.at {
		if a.at < b.at {
			return -1
		}
		return 1
	}
	if c := a.id().Compare(b.id()); c != 0 {
		return c
	}
	return cmp.Compare(a.session.key.client, b.session.key.client)
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

// A node that was away for so long that another may have taken its place and voted
// asks so often before it votes again, and one that gives way after it has voted
// says so as often: a message or two may be lost.
const manyProbes = 10

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
	return d
}

func (n *Node) probeDue() time.Duration {
	switch {
	case n.stopped || !n.probed || !n.probeEchoed:
		return n.probeAt + n.cfg.ProbeWait
	case n.inQuarant:
		return n.probeAt + max(n.cfg.ProbeWait, n.cfg.MaxTTL/30)
	}
	return n.probeAt + n.cfg.MaxTTL/3
}

// checkAlone notices that the node has not heard itself for so long that another
// may have been started in its place, have waited as it must, and vote. It was
// paused, asleep, or cut off; which of the clocks shows it is the same to us (N9).
func (n *Node) checkAlone(now proto.Now, out *Out) {
	away := max(now.Mono-n.heardAt, time.Duration(now.Wall-n.heardWall)*time.Microsecond)
	if !n.probed || away <= n.cfg.MaxTTL {
		return
	}
	n.probed, n.missing = false, manyProbes
	n.probeAt, n.probeEchoed = now.Mono-n.cfg.ProbeWait, false // due at once
	out.Notes = append(out.Notes, fmt.Sprintf(
		"this node did not hear itself for %v, and another may have its name by now: it asks before it votes again", away.Round(time.Millisecond)))
}

// ask sends a probe.
func (n *Node) ask(now proto.Now, out *Out) {
	n.asked = false
	n.probe++
	n.probeAt, n.probeWall, n.probeEchoed = now.Mono, now.Wall, false
	out.Probe = n.probeRequest()
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
	n.sendRecalls(out)
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
	out.Notes = append(out.Notes, "ready: this node votes")
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

func (n *Node) nonce() string { return fmt.Sprintf("%s/%d", n.cfg.Incarnation, n.probe) }

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
	}
	n.sendRecalls(out)
}

// HandleAnswer takes an answer to the node's own probe (N9).
func (n *Node) HandleAnswer(now proto.Now, a *proto.Answer, out *Out) {
	if n.stopped || a.Kind != proto.Informed || a.Node != n.cfg.Name {
		return
	}
	if a.Info.Nonce != n.nonce() {
		return // of an earlier probe, or of an earlier life: who answered may be long gone
	}
	if a.Incarnation == n.cfg.Incarnation {
		n.probeEchoed = true
		n.heardAt, n.heardWall = n.probeAt, n.probeWall
		return
	}
	n.clash(now, a.Incarnation, a.Info.Started, a.Info.Voted, out)
}

// clash settles that another node has this node's name: the one that started
// later stops. The earlier one gives no votes until those that the other may
// have given under the common name have run out; if the other says that it gave
// none, it goes on undisturbed (N9).
func (n *Node) clash(now proto.Now, other uuid.UUID, started int64, voted bool, out *Out) {
	later := n.started > started
	if n.started == started {
		later = slices.Compare(n.cfg.Incarnation[:], other[:]) > 0
	}
	if later {
		n.stopped = true
		if n.voted {
			n.farewells = manyProbes
			n.probeAt = now.Mono - n.cfg.ProbeWait // due at once
		}
		out.Notes = append(out.Notes, fmt.Sprintf(
			"another node named %q is running (incarnation %s): this one started later and stops; give each node a name of its own", n.cfg.Name, other))
		return
	}
	if voted {
		n.giveWay(now, other, out)
		return
	}
	out.Notes = append(out.Notes, fmt.Sprintf(
		"another node named %q (incarnation %s) tried to start and was told to stop", n.cfg.Name, other))
}

// giveWay waits until the votes of another, which has stopped or will, have run out.
func (n *Node) giveWay(now proto.Now, other uuid.UUID, out *Out) {
	n.told = other
	n.enterQuarantine(now.Mono + n.cfg.MaxTTL + proto.Margin(n.cfg.MaxTTL))
	out.Notes = append(out.Notes, fmt.Sprintf(
		"another node named %q (incarnation %s) has given votes: this one, which is older, gives none until they have run out", n.cfg.Name, other))
}

func (n *Node) info(now proto.Now, r *proto.Request, reply string, out *Out) {
	if r.Node != "" && (r.Node != n.cfg.Name || r.Client != r.Node) {
		return // who asks in a node's name does so under its name: NATS lets no other
	}
	if reply != "" {
		a := n.answer(proto.Informed)
		a.Recovering = n.recovering(now)
		a.Info = &proto.NodeInfo{
			Nonce: r.Nonce, Nodes: n.cfg.Nodes, MaxTTL: n.cfg.MaxTTL, Skew: n.cfg.Skew,
			State: n.State(), Started: n.started, Voted: n.voted, Claims: n.Claims(), Version: n.cfg.Version,
		}
		out.Answers = append(out.Answers, Send{reply, a})
	}
	if n.stopped || r.Node == "" || r.Incarnation == n.cfg.Incarnation {
		return
	}
	// Another node asks after this one's name. It may also be this node's own
	// life before the last restart, in a message that was late; only an answer
	// to a question of one's own shows who is there now (N9).
	n.asked = true
	// But a life before this one did not start after it. And a later one that has
	// voted may be gone before it can be asked, while its votes stand.
	if r.Started > n.started && r.Voted && r.Incarnation != n.told {
		n.giveWay(now, r.Incarnation, out)
	}
	// One question at a time: two nodes that ask each other would never hear an
	// answer in time.
	if now.Mono >= n.probeAt+n.cfg.ProbeWait {
		n.ask(now, out)
		n.asked = true
	}
}

func (n *Node) probeRequest() *proto.Request {
	return &proto.Request{
		Verb: proto.Info, Client: n.cfg.Name, Nonce: n.nonce(),
		Node: n.cfg.Name, Incarnation: n.cfg.Incarnation, Started: n.started, Voted: n.voted,
	}
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

func (n *Node) answer(k proto.Kind) proto.Answer {
	return proto.Answer{Kind: k, Node: n.cfg.Name, Incarnation: n.cfg.Incarnation, Digest: n.digest}
}

func (n *Node) about(c *claim, k proto.Kind) proto.Answer {
	a := n.answer(k)
	a.Client, a.Claim, a.Beat = c.session.key.client, c.id(), c.beat
	return a
}

func (n *Node) send(c *claim, a proto.Answer, out *Out) {
	if c.session.reply != "" {
		out.Answers = append(out.Answers, Send{c.session.reply, a})
	}
}

func (n *Node) find(client string, id proto.ClaimID) *claim {
	if s := n.sessions[sessionKey{client, id.Instance}]; s != nil {
		return s.claims[id.Seq]
	}
	return nil
}

func (n *Node) acquire(now proto.Now, r *proto.Request, reply string, out *Out) {
	if r.Node != "" && r.Node != n.cfg.Name {
		return
	}
	c := n.find(r.Client, r.Claim)
	if c == nil {
		n.acquireUnknown(now, r, reply, out)
		return
	}
	// A claim is for one resource in one mode; a client that says otherwise is
	// broken. A beat not above the claim's is a message from the past (N1).
	if r.Beat <= c.beat || c.res.name != r.Resource || c.mode != r.Mode {
		return
	}
	c.session.hear(reply)
	c.beat = r.Beat
	n.extend(now, c) // N2
	if n.fenceInReach(now, c.res, r.Want) {
		c.want = max(c.want, r.Want)
	}
	if c.voted {
		if c.want > c.fence { // N3
			c.fence = c.want
			c.res.floor = max(c.res.floor, c.fence)
		}
		n.grantedOrNot(now, c, out)
		if r.Held && !c.held {
			n.nowHeld(now, c, out)
		}
		return
	}
	if r.Held && !c.held {
		n.dequeue(c)
		c.held = true
		n.enqueue(now, c)
	}
	n.queued(now, c, out)
	n.recall(c.res)
}

// nowHeld notes that a claim with this node's vote is held: that is what a holder
// answers to a recall. It is not recalled again, and the tries that it was to
// yield to learn that it will not (C10).
func (n *Node) nowHeld(now proto.Now, c *claim, out *Out) {
	v := c.res.votes
	var tries []*claim
	for _, w := range c.res.queue {
		if order(w, c) > 0 {
			break
		}
		if w.try && quorum.Conflicts(w.mode, c.mode) {
			tries = append(tries, w)
		}
	}
	c.held = true
	slices.SortFunc(v, order)
	for _, w := range tries {
		n.queued(now, w, out)
	}
}

func (n *Node) acquireUnknown(now proto.Now, r *proto.Request, reply string, out *Out) {
	res := n.resources[r.Resource]
	fresh := res == nil
	if fresh {
		res = &resource{name: r.Resource, floor: n.floor}
	}
	refuse := func(why proto.Reason, passes bool, text string, args ...any) {
		if reply == "" {
			return
		}
		a := n.answer(proto.Refused)
		a.Client = r.Client
		a.Claim, a.Beat, a.Reason, a.Passes = r.Claim, r.Beat, why, passes
		a.Text = clip(fmt.Sprintf(text, args...))
		out.Answers = append(out.Answers, Send{reply, a})
	}
	ahead := time.Duration(r.At-now.Wall) * time.Microsecond
	switch {
	case r.Digest != n.digest:
		refuse(proto.ReasonConfig, true, "this node has configuration %s (nodes %v, longest lease %v), the client knows another", n.digest, n.cfg.Nodes, n.cfg.MaxTTL)
		return
	case r.TTL > n.cfg.MaxTTL:
		refuse(proto.ReasonLease, false, "lease %v is longer than the %v that this cluster allows", r.TTL, n.cfg.MaxTTL)
		return
	case ahead > n.cfg.Skew: // N7
		refuse(proto.ReasonAge, true, "the claim was made %v in the future by this node's clock, %v is allowed: set the clocks", ahead.Round(time.Millisecond), n.cfg.Skew)
		return
	case !n.fenceInReach(now, res, r.Want):
		refuse(proto.ReasonFence, true, "fence %d lies further ahead than clocks within bounds explain: set the clocks", r.Want)
		return
	case n.perClient[r.Client] >= n.cfg.MaxClaims:
		refuse(proto.ReasonClaims, true, "client %s has %d claims here, as many as this node allows", r.Client, n.perClient[r.Client])
		return
	}
	s := n.sessions[sessionKey{r.Client, r.Claim.Instance}]
	if s == nil {
		s = &session{key: sessionKey{r.Client, r.Claim.Instance}, claims: map[uint64]*claim{}}
	}
	c := &claim{
		session: s, seq: r.Claim.Seq, res: res, mode: r.Mode, at: r.At, ttl: r.TTL,
		beat: r.Beat, want: r.Want, held: r.Held, try: r.Try,
	}
	free := n.voting() && n.free(c)
	// Votes count as well, all but one: what many claims of one name cost, all
	// others wait for.
	// What is held elsewhere has twice the room, to find its place in a full queue.
	most := n.cfg.MaxQueue
	if c.held {
		most *= 2
	}
	if have := len(res.votes) + len(res.queue); have > most {
		refuse(proto.ReasonQueue, true, "%d claims hold or wait for %q, as many as this node allows", have, r.Resource)
		return
	}
	s.hear(reply)
	if fresh {
		n.resources[res.name] = res
	}
	if c.held {
		res.floor = max(res.floor, c.want) // its token was given out: N6
	}
	n.add(now, c)
	if free {
		n.vote(now, c, 0)
		n.granted(c, out)
		return
	}
	n.enqueue(now, c)
	n.queued(now, c, out)
	n.recall(res)
}

// clip keeps a text to what its reader takes: a long name in it, or many, must not
// cost the whole answer.
func clip(text string) string {
	if len(text) > proto.MaxText {
		text = strings.ToValidUTF8(text[:proto.MaxText], "")
	}
	return text
}

// fenceInReach bounds the fences that clients name: nobody may push a resource,
// or the whole node by way of its floor, to the end of the number range. Fences
// come from wall clocks: a client's, which may be ahead of a node's by the skew,
// and by way of other nodes, whose clocks agree with this one's within what the
// skew leaves of the longest lease (N3).
func (n *Node) fenceInReach(now proto.Now, res *resource, want uint64) bool {
	reach := now.Wall + n.cfg.MaxTTL.Microseconds()
	return want <= max(res.floor, uint64(max(reach, 0)))
}

// free reports whether nothing stands between c and the node's vote: no vote
// conflicts and no conflicting claim waits before it (N2).
func (n *Node) free(c *claim) bool { return n.blocker(c) == nil }

// blocker is the oldest conflicting vote, else the first conflicting claim ahead
// in the queue. Votes never conflict among themselves, so the first of them
// stands for all.
func (n *Node) blocker(c *claim) *claim {
	if v := c.res.votes; len(v) > 0 && quorum.Conflicts(v[0].mode, c.mode) {
		return v[0]
	}
	for _, w := range c.res.queue {
		if order(w, c) >= 0 {
			break
		}
		if quorum.Conflicts(w.mode, c.mode) {
			return w
		}
	}
	return nil
}

// vote gives c the node's vote with a fence above (shared: not below) all that
// went before on this resource (N3). hint is the clock of the release that made
// room: it is the same at every node, so that the fences come out equal there.
//
// A shared fence starts from the claim's age as an exclusive one does, and
// becomes the floor: otherwise nodes that started at different times would hand
// every reader different fences, and each shared lock would take two rounds.
func (n *Node) vote(now proto.Now, c *claim, hint int64) {
	least := c.res.floor
	if c.mode == quorum.Exclusive {
		least++
	}
	c.fence = max(least, uint64(c.at), uint64(hint), c.want)
	c.res.floor = c.fence
	c.voted, c.since = true, now.Mono
	n.voted = true
	v := &c.res.votes
	i, _ := slices.BinarySearchFunc(*v, c, order)
	*v = slices.Insert(*v, i, c)
}

// grantedOrNot answers a claim that has the vote. A node that does not vote confirms
// none either: another of its name may have given it to somebody else since. It is
// granted again when the node votes.
func (n *Node) grantedOrNot(now proto.Now, c *claim, out *Out) {
	if n.voting() {
		n.granted(c, out)
		return
	}
	c.owed = true
	a := n.about(c, proto.Queued)
	a.Recovering = n.recovering(now)
	n.send(c, a, out)
}

func (n *Node) granted(c *claim, out *Out) {
	a := n.about(c, proto.Granted)
	a.Fence = c.fence
	n.send(c, a, out)
}

func (n *Node) queued(now proto.Now, c *claim, out *Out) {
	a := n.about(c, proto.Queued)
	a.Place, _ = slices.BinarySearchFunc(c.res.queue, c, order)
	a.Recovering = n.recovering(now)
	if b := n.blocker(c); b != nil {
		a.Blocker = &proto.Blocker{
			Claim: b.id(), Client: b.session.key.client, Mode: b.mode, Voted: b.voted, For: now.Mono - b.since,
			Ahead: order(b, c) < 0,
		}
	}
	n.send(c, a, out)
}

// recall asks the votes that stand in the way of the head of the queue, and are
// younger, to yield (N4): once, at the end of the step. A step may give a queue
// many heads, or take many votes away, and were each time all the others asked,
// one message would make answers by the square of them.
func (n *Node) recall(res *resource) {
	if res.serial != n.serial {
		res.serial = n.serial
		n.recalls = append(n.recalls, res)
	}
}

func (n *Node) sendRecalls(out *Out) {
	for _, res := range n.recalls {
		if len(res.queue) == 0 {
			continue
		}
		head := res.queue[0]
		for _, v := range slices.Backward(res.votes) {
			if !quorum.Conflicts(v.mode, head.mode) || order(head, v) > 0 {
				break
			}
			if v.held {
				continue // it has said that it will not
			}
			n.send(v, n.about(v, proto.Recall), out)
		}
	}
	clear(n.recalls)
	n.recalls = n.recalls[:0]
}

func (n *Node) enqueue(now proto.Now, c *claim) {
	i, _ := slices.BinarySearchFunc(c.res.queue, c, order)
	c.res.queue = slices.Insert(c.res.queue, i, c)
	c.since = now.Mono
}

func (n *Node) dequeue(c *claim) {
	if i, ok := slices.BinarySearchFunc(c.res.queue, c, order); ok {
		if i == 0 { // the common case: no move of all that wait behind
			c.res.queue[0] = nil
			c.res.queue = c.res.queue[1:]
			return
		}
		c.res.queue = slices.Delete(c.res.queue, i, i+1)
	}
}

func (n *Node) unvote(c *claim) {
	if i, ok := slices.BinarySearchFunc(c.res.votes, c, order); ok {
		c.res.votes = slices.Delete(c.res.votes, i, i+1)
	}
	c.voted, c.fence, c.owed = false, 0, false
}

// promote gives votes from the head of the queue as long as nothing conflicts
// (N5), and forgets a resource that nobody wants; its floor lives on in the
// node's.
func (n *Node) promote(now proto.Now, res *resource, hint int64, out *Out) {
	if n.voting() {
		for len(res.queue) > 0 {
			head := res.queue[0]
			if len(res.votes) > 0 && quorum.Conflicts(res.votes[0].mode, head.mode) {
				break
			}
			n.dequeue(head)
			n.vote(now, head, hint)
			n.granted(head, out)
		}
		n.recall(res)
	}
	if len(res.votes) == 0 && len(res.queue) == 0 {
		n.floor = max(n.floor, res.floor)
		delete(n.resources, res.name)
	}
}

// drop removes a claim for good and serves who waited for it (N5).
func (n *Node) drop(now proto.Now, c *claim, hint int64, out *Out) {
	if c.voted {
		n.unvote(c)
	} else {
		n.dequeue(c)
	}
	n.remove(c)
	n.promote(now, c.res, hint, out)
}

func (n *Node) add(now proto.Now, c *claim) {
	s := c.session
	s.claims[c.seq] = c
	n.sessions[s.key] = s
	n.perClient[s.key.client]++
	c.deadline = now.Mono + c.ttl
	heap.Push(&n.leases, c)
}

func (n *Node) remove(c *claim) {
	s := c.session
	heap.Remove(&n.leases, c.index)
	delete(s.claims, c.seq)
	if len(s.claims) == 0 {
		delete(n.sessions, s.key)
	}
	if n.perClient[s.key.client]--; n.perClient[s.key.client] == 0 {
		delete(n.perClient, s.key.client)
	}
}

// extend begins the claim's lease anew, by this node's clock, from now (N7).
func (n *Node) extend(now proto.Now, c *claim) { c.deadline = now.Mono + c.ttl }

func (n *Node) expire(now proto.Now, out *Out) {
	for len(n.leases) > 0 && n.leases[0].key <= now.Mono {
		c := n.leases[0]
		if c.deadline > now.Mono {
			c.key = c.deadline
			heap.Fix(&n.leases, 0)
			continue
		}
		n.drop(now, c, 0, out)
	}
}

func (n *Node) release(now proto.Now, r *proto.Request, out *Out) {
	c := n.find(r.Client, r.Claim)
	if c == nil || c.res.name != r.Resource {
		return
	}
	hint := r.Now
	if time.Duration(hint-now.Wall)*time.Microsecond > n.cfg.Skew {
		hint = 0 // as an age would be refused; equal fences are a convenience
	}
	n.drop(now, c, hint, out)
}

func (n *Node) yield(now proto.Now, r *proto.Request, out *Out) {
	c := n.find(r.Client, r.Claim)
	if c == nil || r.Node != n.cfg.Name || r.Beat <= c.beat || c.res.name != r.Resource {
		return
	}
	c.beat = r.Beat
	n.extend(now, c)
	if c.voted {
		n.unvote(c)
		n.enqueue(now, c)
		n.promote(now, c.res, 0, out)
	}
	if !c.voted {
		n.queued(now, c, out) // behind whom: a try must know (C10)
	}
}

// refresh extends what its sender lists, drops what it does not, and answers
// which of the listed claims have no vote of this node (N6). It creates no
// claims: a refresh's subject names no resource, so that NATS permissions could
// not say on which; the client acquires again what it is told is unknown.
func (n *Node) refresh(now proto.Now, r *proto.Request, reply string, out *Out) {
	a := n.answer(proto.Refreshed)
	a.Client = r.Client
	a.Claim.Instance, a.Beat, a.Lo, a.Hi = r.Claim.Instance, r.Beat, r.Lo, r.Hi
	known := uint64(0)
	voting := n.voting() // else what has the vote must wait for it to be confirmed
	s := n.sessions[sessionKey{r.Client, r.Claim.Instance}]
	if s != nil {
		s.hear(reply)
		var waiting, gone []uint64
		for seq, c := range s.within(r.Lo, r.Hi) {
			switch {
			case !r.Live.Has(seq):
				gone = append(gone, seq)
			default:
				known++
				if r.Beat > c.beat { // N1
					c.beat = r.Beat
					n.extend(now, c)
				}
				if !c.voted || !voting {
					c.owed = c.voted
					waiting = append(waiting, seq)
				}
			}
		}
		slices.Sort(waiting) // maps have no order, the machine must have one
		slices.Sort(gone)
		for _, seq := range waiting {
			a.Waiting = a.Waiting.Add(seq)
			n.recall(s.claims[seq].res)
		}
		for _, seq := range gone {
			if c := s.claims[seq]; c != nil {
				n.drop(now, c, 0, out)
			}
		}
		if len(gone) > 0 && len(waiting) > 0 {
			// A claim just dropped may have made room for another of the same
			// client: it is granted by a message of its own, with this beat.
			a.Waiting = nil
			for _, seq := range waiting {
				if c := s.claims[seq]; c != nil && (!c.voted || !voting) {
					a.Waiting = a.Waiting.Add(seq)
				}
			}
		}
	}
	if known < r.Live.Len() {
		a.Unknown = s.unknown(r.Live)
	}
	if reply == "" {
		return
	}
	// An answer says all about its range. A list that is too long for one message
	// goes in several, each with a range of its own.
	for {
		part := a
		for _, list := range []proto.Runs{a.Waiting, a.Unknown} {
			if most := n.cfg.MaxRuns / 2; len(list) > most {
				part.Hi = min(part.Hi, list[most-1].Hi)
			}
		}
		part.Waiting, a.Waiting = a.Waiting.Cut(part.Hi)
		part.Unknown, a.Unknown = a.Unknown.Cut(part.Hi)
		out.Answers = append(out.Answers, Send{reply, part})
		if part.Hi >= r.Hi {
			return
		}
		a.Lo = part.Hi + 1
	}
}

// within yields the claims from lo to hi, by whichever way is shorter.
func (s *session) within(lo, hi uint64) iter.Seq2[uint64, *claim] {
	return func(yield func(uint64, *claim) bool) {
		if hi < lo {
			return
		}
		if hi-lo < uint64(len(s.claims)) {
			for seq := lo; seq <= hi; seq++ {
				if c := s.claims[seq]; c != nil && !yield(seq, c) {
					return
				}
			}
			return
		}
		for seq, c := range s.claims {
			if seq >= lo && seq <= hi && !yield(seq, c) {
				return
			}
		}
	}
}

// unknown returns what of the listed claims s does not have. A list may name far
// more claims than there are, so the work goes by what is known, not by what is
// named.
func (s *session) unknown(live proto.Runs) proto.Runs {
	if s == nil {
		return live
	}
	known := slices.Sorted(maps.Keys(s.claims))
	var out proto.Runs
	for _, run := range live {
		lo := run.Lo
		i, _ := slices.BinarySearch(known, lo)
		for ; i < len(known) && known[i] <= run.Hi; i++ {
			if known[i] > lo {
				out = append(out, proto.Run{Lo: lo, Hi: known[i] - 1})
			}
			lo = known[i] + 1
		}
		if lo <= run.Hi {
			out = append(out, proto.Run{Lo: lo, Hi: run.Hi})
		}
	}
	return out
}

func (s *session) hear(reply string) {
	if reply != "" {
		s.reply = reply
	}
}

// leaseHeap orders claims by the end of their leases.
type leaseHeap []*claim

func (h leaseHeap) Len() int { return len(h) }
func (h leaseHeap) Less(i, j int) bool {
	if h[i].key != h[j].key {
		return h[i].key < h[j].key
	}
	return h[i].id().Compare(h[j].id()) < 0 // the machine must not depend on map order
}
func (h leaseHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *leaseHeap) Push(x any) {
	c := x.(*claim)
	c.index, c.key = len(*h), c.deadline
	*h = append(*h, c)
}
func (h *leaseHeap) Pop() any {
	old := *h
	c := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return c
}
