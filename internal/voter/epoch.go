package voter

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/epoch"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// What a node does about records: the configurations of a cluster whose list of nodes changes
// while it runs (rules E1 to E14). Package epoch has the decisions. At epoch 0 there is no
// record, and nothing here has a part in the votes.

// surveyPause is the least time between two questions for a newer record.
const surveyPause = time.Second

// changeReminder is the time between two warnings that the list of nodes is still being changed.
const changeReminder = time.Hour

// never is a time that does not come.
const never = time.Duration(math.MaxInt64)

// config is what the node knows about records.
type config struct {
	acceptor *epoch.Acceptor // nil: it knows nothing about records

	// outside is Joining or Retired if no list of the record has the node: it gives no votes, and
	// has no claims. Else it is empty.
	outside wire.State
	// fresh is set if the node has no memory of an earlier life, nor of the list that it was
	// started with.
	fresh bool

	due      time.Duration // when tickConfig has something to do, at the earliest
	surveyAt time.Duration // when the next question for a newer record is due
	surveyed time.Duration // when the last one was sent
	serial   int           // of the last one
	remindAt time.Duration // when the operator is told that a change was not ended

	probeWait time.Duration // that the node was started with

	alarmed bool // the operator was told of a record that continues none of the node's

	// What is to be done when the state is written.
	learned bool
	answer  *Send
}

// startConfig makes the node's part in decisions, and gives the node the configuration of the
// record that its directory has.
func (n *Node) startConfig(now wire.Now, cfg *Config, saved *Saved) {
	n.config.due, n.config.surveyAt, n.config.remindAt = never, never, never
	n.config.probeWait = cfg.ProbeWait
	if cfg.Cluster == "" {
		return
	}
	var base *wire.Config
	if len(cfg.Nodes) > 0 {
		base = &cfg.Config
	}
	n.config.fresh = cfg.Fresh || saved != nil && saved.Wall == 0 // a mark of a new cluster is no memory
	n.config.acceptor = epoch.NewAcceptor(cfg.Cluster, cfg.Name, base, cfg.State, now.Mono)
	n.configure()
	if n.config.outside != wire.Joining { // it asks all nodes anyway, with its probes
		n.config.surveyAt = now.Mono
	}
	n.config.surveyed = now.Mono - surveyPause
	n.scheduleReminder(now)
	n.scheduleConfig()
}

// configure goes by the record that the node has (E14).
func (n *Node) configure() {
	a := n.config.acceptor
	n.config.outside = ""
	r := a.Record()
	switch {
	case a.Joining():
		n.config.outside, n.digest = wire.Joining, ""
		n.cfg.Nodes = nil
	case r != nil:
		if a.In() == 0 { //plant:voter-retired
			n.config.outside = wire.Retired
		}
		n.digest = a.Digest()
		n.cfg.Config = wire.Config{Nodes: allNames(r), MaxTTL: r.Lease() /*plant:voter-lease*/, Skew: r.AllowedSkew()}
		n.longest = max(n.longest, r.Longest()) //plant:voter-longest
		// The node must find out that it was away before that is longer than a lease.
		if n.cfg.ProbeWait = n.config.probeWait; n.cfg.ProbeWait > n.cfg.MaxTTL/3 {
			n.cfg.ProbeWait = n.cfg.MaxTTL / 4 //plant:voter-probes-sooner
		}
	}
}

func allNames(r *wire.EpochRecord) (names []string) {
	for _, m := range slices.Concat(r.Nodes, r.Next) {
		names = append(names, m.Name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// restored raises the floors to the record's after a start (E13).
func (n *Node) restored() {
	if a := n.config.acceptor; a != nil && a.Record() != nil {
		n.raiseTo(a.Record().Floor) //plant:voter-floor-at-start
		if n.config.outside != "" {
			n.dropAll()
		}
	}
}

// Configuration returns what the node's directory must have at a clean stop, or nil if the
// node knows nothing about records.
func (n *Node) Configuration(now wire.Now) *epoch.State {
	if n.config.acceptor == nil {
		return nil
	}
	return n.config.acceptor.Save(now.Mono)
}

// Epoch returns the epoch of the node's record, 0 if it has none.
func (n *Node) Epoch() uint64 {
	if n.config.acceptor == nil {
		return 0
	}
	return n.config.acceptor.State().Epoch()
}

// Changing returns for how long the list of nodes has been changing, as far as the node has seen it,
// and whether it is.
func (n *Node) Changing(now wire.Now) (time.Duration, bool) {
	a := n.config.acceptor
	if a == nil || a.Record() == nil || !a.Record().Joint() || a.In() == 0 {
		return 0, false
	}
	return a.Had(now.Mono), true
}

// LongestLease returns the longest lease that a claim at the node may have: while the list changes,
// claims of before may have that of the old or of the new list. It is 0 while the node waits to be
// added, because it knows no list.
func (n *Node) LongestLease() time.Duration {
	if a := n.config.acceptor; a != nil && a.Joining() {
		return 0
	} else if a != nil && a.Record() != nil {
		return a.Record().Longest()
	}
	return n.cfg.MaxTTL
}

// self is what the node says of itself when it takes part in a decision (E6, E7).
func (n *Node) self(now wire.Now) (s epoch.Self) {
	s.Votes = n.voting()                              //plant:voter-sure
	s.Floor = max(n.floors.highest, n.forgotten(now)) //plant:voter-floor
	return s
}

// step takes a step of the operator's command. Its answer is sent when what follows from the
// step is on disk (E10).
func (n *Node) step(now wire.Now, r *wire.Request, reply string, out *Out) {
	s := r.Step
	if n.config.acceptor == nil || s.Node != "" && s.Node != n.cfg.Name {
		return
	}
	a := n.answer(wire.Configured)
	a.Client, a.Nonce = r.Client, r.Nonce
	if n.config.acceptor.State().ID == uuid.Nil && s.Kind != wire.Learn {
		a.Step = &wire.StepAnswer{Kind: s.Kind, Epoch: n.Epoch(), Ballot: s.Ballot, Why: wire.WhyNoID}
	} else {
		got := n.config.acceptor.Handle(now.Mono, n.self(now), s)
		a.Step = &got.Answer
		n.write(got, out)
	}
	if reply == "" {
		return
	}
	if n.config.answer = &(Send{reply, a}); out.Write == nil /*plant:voter-answers-late*/ {
		n.answered(out)
	}
}

// write asks for the state to be written.
func (n *Node) write(got epoch.Out, out *Out) {
	out.Write = got.Write
	n.config.learned = got.Learned
	n.scheduleConfig()
}

func (n *Node) answered(out *Out) {
	if a := n.config.answer; a != nil {
		a.Answer.Digest = n.digest
		out.Answers = append(out.Answers, *a)
	}
	n.config.answer = nil
}

// Written must be called when a step has set Write, after the state is on disk for good and
// before any other step. What it appends to out is sent with the rest of that step.
func (n *Node) Written(now wire.Now, out *Out) {
	out.Write = nil
	n.config.acceptor.Written(now.Mono)
	if n.config.learned {
		n.config.learned = false
		n.adopt(now, out)
	}
	n.answered(out)
	n.scheduleConfig()
}

// adopt goes by a new record. Votes, queues and evictions stay (E14).
func (n *Node) adopt(now wire.Now, out *Out) {
	n.serial++
	r, before, voted, limit := n.config.acceptor.Record(), n.config.outside, n.voting(), n.limit()
	if n.configure(); n.cfg.MaxTTL < limit {
		n.longerLimit, n.limitSince = limit, now.Mono
	}
	if n.inQuarant { // an earlier list may have allowed longer leases
		n.quarantine = max(n.quarantine, n.waitAt+n.listen()+n.runOut(), n.soughtAt+n.runOut())
	}
	if n.raiseTo(r.Floor); n.config.outside != "" {
		n.dropAll() //plant:voter-drops
	} else {
		ready := out.Ready
		n.noteState(now, out)
		out.Ready = ready || out.Ready && !voted
	}
	what := fmt.Sprintf("epoch %d: nodes %v", r.Epoch, names(r.Nodes))
	if r.Joint() {
		what += fmt.Sprintf(", changing to %v", names(r.Next))
		if r.NextMaxTTL != r.MaxTTL {
			what += fmt.Sprintf(" and leases of up to %v", r.NextMaxTTL)
		}
	}
	switch {
	case n.config.outside == "":
	case has(r.Nodes, n.cfg.Name) || has(r.Next, n.cfg.Name):
		what += ": another node of this name is meant; this one gives no votes"
	case before == "":
		what += ": this node is no longer among them, and can be stopped"
	}
	out.Notes = append(out.Notes, what)
	n.scheduleReminder(now)
	n.tellTries(now, out)
	n.sendRecalls(now, out)
}

// scheduleReminder notes when a change that nobody has ended is worth a warning: after the time
// that a command needs, and as much again.
func (n *Node) scheduleReminder(now wire.Now) {
	n.config.remindAt = never
	if had, joint := n.Changing(now); joint {
		n.config.remindAt = now.Mono + max(2*n.LongestLease()-had, 0)
	}
}

// remind warns of a change that was not ended. Locks work meanwhile, but need more nodes, and the
// command that began the change may be long dead.
func (n *Node) remind(now wire.Now, out *Out) {
	had, _ := n.Changing(now)
	n.config.remindAt = now.Mono + changeReminder
	out.Notes = append(out.Notes, fmt.Sprintf(
		"the change of the list of nodes to %v has not been ended for %v: until it is, locks need a majority of the old and of the new nodes; end it with qlock nodes finish, or with qlock nodes rollback if the new nodes do not come up",
		names(n.config.acceptor.Record().Next), had.Truncate(time.Second)))
}

func names(list []wire.Member) (out []string) {
	for _, m := range list {
		out = append(out, m.Name)
	}
	return out
}

func has(list []wire.Member, name string) bool {
	return slices.ContainsFunc(list, func(m wire.Member) bool { return m.Name == name })
}

// raiseTo raises all floors, and the fences of votes with them (E13). A vote of before could
// else become part of a token that is below one of the list before. A span ends, because its
// fences lie below the new one.
func (n *Node) raiseTo(floor uint64) {
	n.floors.least = max(n.floors.least, floor) //plant:voter-floor-raised
	n.floors.highest = max(n.floors.highest, floor)
	for _, res := range n.resources {
		n.raise(res, floor)
		for _, c := range res.votes {
			least := max(floor, 1)
			if c.mode == quorum.Exclusive {
				least++
			}
			if floor == 0 || c.fence >= least {
				continue
			}
			n.raise(res, least)
			c.fence = least //plant:voter-vote-raised
			c.reserved = 1  //plant:voter-span-ends
		}
	}
}

// dropAll forgets all claims of a node that is in no list. Its floors stay.
func (n *Node) dropAll() {
	for _, res := range n.resources {
		res.votes, res.queue, res.keepers = nil, nil, 0
		n.forget(res)
	}
	clear(n.sessions)
	clear(n.perClient)
	n.leases, n.votes, n.moved = nil, 0, 0
	n.doubts = n.doubts[:0]
}

// handleOutside processes a request to a node that is in no list (E14). An acquire under
// another digest tells it that there is a record which it does not know.
func (n *Node) handleOutside(now wire.Now, r *wire.Request, reply string, out *Out) {
	switch r.Verb {
	case wire.Info:
		if len(r.Over)+len(r.Recalled) == 0 {
			n.info(now, r, reply, out)
		}
	case wire.Configure:
		n.step(now, r, reply, out)
	case wire.Acquire:
		if r.Digest != n.digest {
			n.wantRecord(now)
		}
	}
	n.tickConfig(now, out)
}

// wantRecord notes that there may be a newer record, of which a client knows. The question for
// it is sent once a second at most, since anybody can send a digest.
func (n *Node) wantRecord(now wire.Now) {
	if n.config.acceptor != nil {
		n.config.surveyAt = min(n.config.surveyAt, max(now.Mono, n.config.surveyed+surveyPause)) //plant:voter-asks
		n.scheduleConfig()
	}
}

func (n *Node) scheduleConfig() {
	n.config.due = min(n.config.surveyAt, n.config.acceptor.SaveAt(), n.config.remindAt)
}

// tickConfig does what is due: it asks for a newer record, and has the time written for which
// the node has had a joint one (E5).
func (n *Node) tickConfig(now wire.Now, out *Out) {
	if now.Mono < n.config.due {
		return
	}
	if now.Mono >= n.config.surveyAt {
		n.config.surveyAt, n.config.surveyed = never, now.Mono
		n.config.serial++
		out.Survey = &wire.Request{Verb: wire.Info, Client: n.cfg.Name, Nonce: n.surveyNonce(), ShowConfig: true, Epoch: n.Epoch()}
	}
	if out.Write == nil && n.config.acceptor.SaveDue(now.Mono) {
		out.Write = n.config.acceptor.Save(now.Mono)
	}
	if now.Mono >= n.config.remindAt {
		n.remind(now, out)
	}
	n.scheduleConfig()
}

// surveyNonce cannot be guessed, for the same reason as nonce.
func (n *Node) surveyNonce() string {
	text := fmt.Sprintf("%s/config/%d", n.cfg.Incarnation, n.config.serial)
	return fmt.Sprintf("%s/%016x", text, sipHash(n.secret, text))
}

// shown takes the record of another node, if it is a later one of this cluster (E9).
func (n *Node) shown(now wire.Now, a *wire.Answer, out *Out) {
	c := a.Info.Config
	if n.config.acceptor == nil || c == nil || c.Record == nil || out.Write != nil {
		return
	}
	links := c.Links
	for len(links) > 0 && links[len(links)-1].Epoch >= c.Record.Epoch {
		links = links[:len(links)-1]
	}
	got := n.config.acceptor.Handle(now.Mono, epoch.Self{}, &wire.Step{Kind: wire.Learn, Epoch: c.Record.Epoch, Record: c.Record, Links: links})
	n.write(got, out)
	if got.Answer.Why != wire.WhyHistory || c.Record.Cluster != n.cfg.Cluster {
		return
	}
	if n.config.acceptor.Joining() { //plant:voter-joins-in-silence
		// It has no history that the record could contradict. It waits for one that names it, which
		// none will do that names another directory.
		if lists := slices.Concat(c.Record.Nodes, c.Record.Next); !n.config.alarmed && has(lists, n.cfg.Name) && epoch.In(c.Record, n.cfg.Name, n.config.acceptor.State().ID) == 0 {
			n.config.alarmed = true
			out.Notes = append(out.Notes, fmt.Sprintf(
				"the list of nodes has a node named %s with another state directory: this node gives no votes; start it under another name, or change %s out of the list first", n.cfg.Name, n.cfg.Name))
		}
		return
	}
	if n.config.fresh && n.Epoch() == 0 && n.config.outside == "" {
		// The cluster has had other lists since the one that this node was started with, and
		// nothing shows that the node was ever in that one.
		n.config.acceptor.Disown() //plant:voter-stale-list
		if !n.voted {              // nor did this id ever vote (E14)
			n.inQuarant, n.asks = false, 0 //plant:voter-disowned-waits
		}
		n.configure()
		n.dropAll()
		out.Notes = append(out.Notes, fmt.Sprintf(
			"cluster %s is at epoch %d, and the list that this node was started with is not in its history: the node gives no votes and waits to be added to the list", n.cfg.Cluster, c.Record.Epoch))
		return
	}
	if !n.config.alarmed {
		n.config.alarmed = true
		out.Notes = append(out.Notes, fmt.Sprintf(
			"node %s has a record of epoch %d that does not continue this node's configuration: two clusters of the name %s reach each other, or a state directory was restored from a backup", a.Node, c.Record.Epoch, n.cfg.Cluster))
	}
}

// showConfig adds what the node knows about records to its answer to info.
func (n *Node) showConfig(now wire.Now, r *wire.Request, info *wire.NodeInfo) {
	if !r.ShowConfig || n.config.acceptor == nil {
		return
	}
	s := n.config.acceptor.State()
	c := &wire.NodeConfig{ID: s.ID, Epoch: s.Epoch(), Joining: n.config.acceptor.Joining(), Had: n.config.acceptor.Had(now.Mono)}
	if c.Epoch > r.Epoch {
		c.Record, c.Links = s.Record, s.Links
	}
	info.Config = c
}

// waitForFloor reports whether the wait of a node that forgot must go on because fences of
// before may lie above its clock: those under a record whose floor lies ahead of the clock may
// reach to a longest lease above that floor (E13).
func (n *Node) waitForFloor(now wire.Now) bool {
	if n.config.acceptor == nil || n.config.acceptor.Record() == nil {
		return false
	}
	left := time.Duration(int64(n.config.acceptor.Record().Floor)-now.Wall)*time.Microsecond + n.longest
	if left <= 0 { //plant:voter-floor-ahead
		return false
	}
	n.quarantine = now.Mono + min(left, n.longest) // the clock may be corrected meanwhile
	return true
}
