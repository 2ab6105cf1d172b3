package epoch

import (
	"errors"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// State is what a node keeps in its directory about the configuration. It is on disk before
// anything that follows from it is said (E10).
type State struct {
	ID     uuid.UUID   // the node's: that of its directory
	Record *Record     // nil at epoch 0, and of a node that has not joined
	Links  []wire.Link // the history up to Record, the latest last; at epoch 0 none

	// Of the decision about the next record.
	Promised wire.Ballot
	Accepted wire.Ballot
	Proposal *Record // accepted at that ballot, nil: none

	// Had is for how long, at least, the node has had Record, all runs together but for what
	// the last one did not come to write.
	Had time.Duration
}

// Epoch is that of the record that the node has.
func (s *State) Epoch() uint64 {
	if s.Record == nil {
		return 0
	}
	return s.Record.Epoch
}

// Self is what the acceptor has to know about the rest of its node at a step.
type Self struct {
	// The node votes: it remembers all that it said, and nobody else has its name. One that
	// does not may have forgotten fences, or be a copy, and decides nothing (E6).
	Votes bool
	// The highest fence that it may have given for any name, spans to their end.
	Floor uint64
}

// Acceptor is a node's part in the decisions about the configuration. It is not safe for
// concurrent use.
type Acceptor struct {
	cluster string
	name    string
	base    *wire.Config // of epoch 0; nil: the node waits to join
	state   State
	digest  string // of the record, or of base

	since   time.Duration // monotonic: state.Had counts up to this moment
	learned bool          // Record is new, and was not yet written
}

// NewAcceptor makes the acceptor of a node that starts, with what its directory has. base is
// the configuration that it was told; nil if it is to join a cluster that runs. Once there
// is a record, base is not looked at.
func NewAcceptor(cluster, name string, base *wire.Config, state State, now time.Duration) *Acceptor {
	a := &Acceptor{cluster: cluster, name: name, base: base, state: state, since: now}
	switch {
	case state.Record != nil:
		a.digest = state.Record.Digest()
	case base != nil:
		a.digest = base.Digest()
	}
	return a
}

// State is what the node's directory has, or is about to.
func (a *Acceptor) State() *State { return &a.state }

// Record is the node's record, nil at epoch 0.
func (a *Acceptor) Record() *Record { return a.state.Record }

// In gives the lists of the node's record that it is in; none at epoch 0.
func (a *Acceptor) In() quorum.In {
	if a.state.Record == nil {
		return 0
	}
	return In(a.state.Record, a.name, a.state.ID)
}

// Joining reports whether the node waits for a record that names it.
func (a *Acceptor) Joining() bool { return a.state.Record == nil && a.base == nil }

// Digest is that of the record, or of the configuration of epoch 0; empty of a node that
// waits to join.
func (a *Acceptor) Digest() string { return a.digest }

// Had is for how long, at least, the node has had its record, all its runs together.
func (a *Acceptor) Had(now time.Duration) time.Duration {
	return a.state.Had + max(now-a.since, 0)
}

// Left is for how long the node does not yet accept the change to the new list (E5).
func (a *Acceptor) Left(now time.Duration) time.Duration {
	if a.state.Record == nil || !a.state.Record.Joint() {
		return 0
	}
	return max(Wait(a.state.Record)-a.Had(now), 0)
}

// Out is what a step wants. If Write is set, it is to be written to the directory and
// synced; then Written is called; then the answer is sent. Nothing else happens in between.
// If it cannot be written, the node stops: nobody knows which state its directory has.
type Out struct {
	Write   *State
	Learned bool // Record is new: the rest of the node goes by it from Written on
	Answer  wire.StepAnswer
}

// Handle takes a step of the operator's command.
func (a *Acceptor) Handle(now time.Duration, self Self, s *wire.Step) Out {
	out := Out{Answer: wire.StepAnswer{Kind: s.Kind, ID: a.state.ID, Ballot: s.Ballot}}
	switch s.Kind {
	case wire.Prepare:
		a.prepare(now, self, s, &out)
	case wire.Accept:
		a.accept(now, self, s, &out)
	case wire.Learn:
		out.Answer.Why = a.learn(now, s, &out)
	}
	out.Answer.Epoch = a.state.Epoch()
	return out
}

// Written is told when the state that a step asked for is on disk for good.
func (a *Acceptor) Written(now time.Duration) {
	if a.learned {
		a.learned, a.since = false, now // the record holds from here on, whatever happens
	}
}

// SaveDue reports whether so much time was added under a joint record that it is worth a
// write: else a node that is restarted often would never be done waiting (E5).
func (a *Acceptor) SaveDue(now time.Duration) bool { return now >= a.SaveAt() }

// SaveAt is when that is so.
func (a *Acceptor) SaveAt() time.Duration {
	if r := a.state.Record; r != nil && r.Joint() && a.state.Had < Wait(r) {
		return a.since + Wait(r)/8
	}
	return math.MaxInt64
}

// Disown makes a node that has no record forget the list that it was told: it waits to join.
func (a *Acceptor) Disown() { a.base, a.digest = nil, "" }

// Save returns the state with the time up to now in it, to be written.
func (a *Acceptor) Save(now time.Duration) *State {
	a.state.Had, a.since = a.Had(now), now
	s := a.state
	return &s
}

// decides says why the node has no part in a step of a decision; WhyNone if it has.
func (a *Acceptor) decides(self Self, s *wire.Step, out *Out) wire.Why {
	switch {
	case s.Epoch != a.state.Epoch()+1:
		return wire.WhyEpoch
	case a.state.Record != nil && a.In()&quorum.InNodes == 0 /*plant:epoch-acceptors*/ :
		return wire.WhyMember
	case a.base != nil && a.state.Record == nil && !slices.Contains(a.base.Nodes, a.name):
		return wire.WhyMember
	// To get ids, whoever has the name now decides, and nothing depends on what it may have
	// forgotten: all names must accept (E2).
	case a.state.Record != nil && !self.Votes: //plant:epoch-sure
		return wire.WhyVotes
	case s.Ballot.Compare(a.state.Promised) < 0: //plant:epoch-promised
		out.Answer.Ballot = a.state.Promised
		return wire.WhyPromised
	}
	return wire.WhyNone
}

// prepare promises to accept no lower ballot (E3).
func (a *Acceptor) prepare(now time.Duration, self Self, s *wire.Step, out *Out) {
	why := a.decides(self, s, out)
	if why == wire.WhyNone && !a.Joining() && s.Prev != a.Digest() {
		why = wire.WhyHistory
	}
	if out.Answer.Why = why; why != wire.WhyNone {
		return
	}
	if s.Ballot != a.state.Promised {
		a.state.Promised = s.Ballot
		out.Write = a.Save(now) //plant:epoch-promise-written
	}
	out.Answer.Accepted, out.Answer.Record = a.state.Accepted, a.state.Proposal
	out.Answer.Floor = self.Floor
	out.Answer.Left = a.Left(now)
}

// accept takes a proposal (E4).
func (a *Acceptor) accept(now time.Duration, self Self, s *wire.Step, out *Out) {
	why := a.decides(self, s, out)
	switch {
	case why != wire.WhyNone:
	case s.Record == nil || s.Record.Epoch != s.Epoch || a.follows(s.Record) != nil /*plant:epoch-follows*/ :
		why = wire.WhyInvalid
	case s.Ballot == a.state.Accepted && s.Record.Digest() != a.state.Proposal.Digest():
		why = wire.WhyInvalid // no honest command proposes twice at one ballot
	case a.state.Record != nil && Finishes(a.state.Record, s.Record) && a.Left(now) > 0: //plant:epoch-early
		why, out.Answer.Left = wire.WhyEarly, a.Left(now)
	}
	if out.Answer.Why = why; why != wire.WhyNone {
		return
	}
	if s.Ballot != a.state.Accepted {
		a.state.Promised, a.state.Accepted, a.state.Proposal = s.Ballot, s.Ballot, s.Record
		out.Write = a.Save(now) //plant:epoch-accept-written
	}
}

// follows says why r may not be the next record here.
func (a *Acceptor) follows(r *Record) error {
	switch {
	case a.state.Record != nil:
		return Follows(a.state.Record, r)
	case a.base != nil:
		return Begins(a.cluster, *a.base, r)
	}
	if err := begins(a.cluster, r); err != nil {
		return err
	}
	if !slices.ContainsFunc(r.Nodes, func(m wire.Member) bool { return m.Name == a.name }) {
		return errNotNamed
	}
	return nil
}

var errNotNamed = errors.New("the record does not name this node")

// learn takes a decided record, if it continues the node's own (E9).
func (a *Acceptor) learn(now time.Duration, s *wire.Step, out *Out) wire.Why {
	r := s.Record
	switch {
	case r == nil || r.Check() != nil:
		return wire.WhyInvalid
	case r.Epoch == a.state.Epoch() && r.Digest() != a.Digest():
		return wire.WhyHistory // two records of one epoch: whoever asks raises the alarm
	case r.Epoch <= a.state.Epoch(): //plant:epoch-rises
		return wire.WhyNone
	case !a.continues(r, s.Links): //plant:epoch-history
		return wire.WhyHistory
	}
	a.digest = r.Digest()
	links := append(slices.Clone(s.Links), wire.Link{Epoch: r.Epoch, Digest: a.digest})
	a.state = State{ID: a.state.ID, Record: r, Links: links[max(0, len(links)-wire.MaxLinks):]}
	a.since, a.learned, out.Learned = now, true, true
	out.Write = a.Save(now) //plant:epoch-record-written
	return wire.WhyNone
}

// continues reports whether a record with this history is a later one of the node's own
// cluster. One stray node with a higher epoch of another cluster would else take over all.
func (a *Acceptor) continues(r *Record, links []wire.Link) bool {
	if r.Cluster != a.cluster || len(links) == 0 || links[len(links)-1] != (wire.Link{Epoch: r.Epoch - 1, Digest: r.Prev}) {
		return false
	}
	switch {
	case a.Joining():
		return In(r, a.name, a.state.ID) != 0
	case a.state.Record != nil && r.CID != a.state.Record.CID:
		return false
	}
	return slices.Contains(links, wire.Link{Epoch: a.state.Epoch(), Digest: a.Digest()})
}
