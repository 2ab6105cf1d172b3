package epoch

import (
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// Current is the configuration that a decision starts from: a record, or at epoch 0 what all
// nodes were told.
type Current struct {
	Cluster string
	Record  *Record     // nil at epoch 0
	Base    wire.Config // at epoch 0
	Links   []wire.Link // the history, Record's link included
}

// Epoch is that of the current record.
func (c *Current) Epoch() uint64 {
	if c.Record == nil {
		return 0
	}
	return c.Record.Epoch
}

// Digest is that of the current configuration.
func (c *Current) Digest() string {
	if c.Record == nil {
		return c.Base.Digest()
	}
	return c.Record.Digest()
}

// maxTTL is the longest lease of the current configuration.
func (c *Current) maxTTL() time.Duration {
	if c.Record == nil {
		return c.Base.MaxTTL
	}
	return c.Record.MaxTTL
}

// history is the links that go with the record that comes next.
func (c *Current) history() []wire.Link {
	if c.Record == nil {
		return []wire.Link{{Epoch: 0, Digest: c.Base.Digest()}}
	}
	return c.Links
}

// acceptor reports whether a node is one of those that decide what comes next (E2).
func (c *Current) acceptor(name string, id uuid.UUID) bool {
	if c.Record == nil {
		return slices.Contains(c.Base.Nodes, name)
	}
	return In(c.Record, name, id)&quorum.InNodes != 0 //plant:epoch-ends-by-old
}

// acceptors lists their names.
func (c *Current) acceptors() []string {
	if c.Record == nil {
		return c.Base.Nodes
	}
	return names(c.Record.Nodes)
}

func names(list []wire.Member) []string {
	out := make([]string, len(list))
	for i, m := range list {
		out[i] = m.Name
	}
	return out
}

// need is how many of them decide. At epoch 0 a node is its name, and may have lost what it
// said: so it takes all of them.
func (c *Current) need() int {
	if c.Record == nil {
		return len(c.Base.Nodes) //plant:epoch-all
	}
	return quorum.Size(len(c.Record.Nodes), quorum.Exclusive)
}

// Round is one attempt to decide the next record, at one ballot: the proposer's part of
// Paxos. It only counts; when to send what is its Operator's.
type Round struct {
	current  *Current
	ballot   wire.Ballot
	promises map[string]promise
	highest  wire.Ballot // at which somebody had accepted what is in value
	value    *Record     // nil: nobody accepted anything before
	floor    uint64
	proposal *Record
	accepted map[string]bool
}

type promise struct {
	left time.Duration
	at   time.Duration // when it was heard
}

// NewRound begins an attempt. No other may have the ballot.
func NewRound(current *Current, ballot wire.Ballot) *Round {
	return &Round{current: current, ballot: ballot, promises: map[string]promise{}, accepted: map[string]bool{}}
}

// Prepare is what all nodes are to be asked first.
func (r *Round) Prepare() wire.Step {
	return wire.Step{Kind: wire.Prepare, Epoch: r.current.Epoch() + 1, Prev: r.current.Digest(), Ballot: r.ballot}
}

// Hear takes a node's answer.
func (r *Round) Hear(now time.Duration, node string, a *wire.StepAnswer) {
	if a.Why != wire.WhyNone || a.Ballot != r.ballot || a.Epoch != r.current.Epoch() || !r.current.acceptor(node, a.ID) {
		return
	}
	switch a.Kind {
	case wire.Prepare:
		if r.proposal != nil {
			return // what it knows now may be of this very round
		}
		r.promises[node] = promise{a.Left, now}
		r.floor = max(r.floor, a.Floor)
		if a.Record != nil && (r.value == nil || a.Accepted.Compare(r.highest) > 0) /*plant:epoch-highest*/ {
			r.highest, r.value = a.Accepted, a.Record //plant:epoch-take-over
		}
	case wire.Accept:
		if r.proposal != nil {
			r.accepted[node] = true
		}
	}
}

// Promised reports whether enough nodes have promised to know what may have been decided.
func (r *Round) Promised() bool { return len(r.promises) >= r.current.need() } //plant:epoch-promises

// Found is what nodes had accepted before: it must be proposed again, unchanged, as it may
// have been decided (E8). Nil: nothing, so that it cannot have been.
func (r *Round) Found() *Record { return r.value }

// Floor is the highest fence that those that promised may have given (E7).
func (r *Round) Floor() uint64 { return r.floor }

// Left is for how long too few of those that promised accept the change to a new list.
func (r *Round) Left(now time.Duration) time.Duration {
	var all []time.Duration
	for _, p := range r.promises {
		all = append(all, max(p.left-(now-p.at), 0))
	}
	if len(all) < r.current.need() {
		return Wait(r.current.Record)
	}
	slices.Sort(all)
	return all[r.current.need()-1]
}

// Propose fixes what this round is for, and returns what the nodes are to be asked: one step
// for each that promised and would accept. Of a change to a new list, a few nodes must not
// accept before a majority can: what they have could not be taken back, and the new list may
// be dead (E12).
func (r *Round) Propose(now time.Duration, record *Record) []wire.Step {
	r.proposal = record
	finish := r.current.Record != nil && Finishes(r.current.Record, record)
	if finish && r.Left(now) > 0 { //plant:epoch-majority-ready
		return nil
	}
	var steps []wire.Step
	for node, p := range r.promises {
		if finish && p.left > now-p.at {
			continue
		}
		steps = append(steps, wire.Step{Kind: wire.Accept, Node: node, Epoch: record.Epoch, Ballot: r.ballot, Record: record})
	}
	slices.SortFunc(steps, func(a, b wire.Step) int { return strings.Compare(a.Node, b.Node) })
	return steps
}

// Decided reports whether the proposal is decided, once and for all.
func (r *Round) Decided() bool { return r.proposal != nil && len(r.accepted) >= r.current.need() } //plant:epoch-decided

// Learn is what all nodes are to be told when it is (E9).
func (r *Round) Learn() wire.Step {
	return wire.Step{Kind: wire.Learn, Epoch: r.proposal.Epoch, Record: r.proposal, Links: r.current.history()}
}
