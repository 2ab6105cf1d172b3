package qlock

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/driver"
	"github.com/qlock/qlock/internal/epoch"
	"github.com/qlock/qlock/internal/members"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// Members describes the nodes of a cluster: what each node that answered reports about itself, on
// which configuration they agree, which nodes are missing, and which contradict the others.
type Members struct {
	Cluster string

	// Nodes are sorted by name. They are the nodes that answered, and those that did not answer but
	// are in the list of one that did. If two processes answer under one name, both are listed.
	Nodes []Member

	// Config is the configuration that more nodes have than any other. It is empty, and so has no
	// Nodes, if no node has a valid configuration. While the list changes, it has the old list.
	Config ClusterConfig

	// Change is the change of the list that is under way, nil if there is none: see package nodes.
	Change *NodesChange

	// Agreed reports whether clients count votes by Config: a quorum of the nodes that Config lists
	// have it, and more than half of all nodes that answered.
	Agreed bool

	said *members.Membership
}

// NodesChange is a change of the list of nodes that is under way. An exclusive lock needs a quorum
// of both lists until then.
type NodesChange struct {
	Nodes             []string // the new list, sorted
	MaxLease, MaxSkew time.Duration
	For               time.Duration // for how long it has been under way, as far as the nodes know
	// Wait is how long the old nodes do not yet decide on the new list: locks from before the change
	// may still be held.
	Wait time.Duration
}

// ClusterConfig is the configuration that all nodes of a cluster must share: NodeConfig.Nodes,
// MaxLease and MaxSkew.
type ClusterConfig struct {
	Nodes    []string // sorted
	MaxLease time.Duration
	MaxSkew  time.Duration
	Digest   string // identifies the configuration; each answer of a node carries it

	// Epoch counts the decisions of the nodes about the list. It is odd, or even while the list
	// changes, and 0 if the nodes go by the list that they were started with.
	Epoch uint64
}

// WriteQuorum returns the number of votes that an exclusive lock needs, or 0 if there are no Nodes.
func (c ClusterConfig) WriteQuorum() int { return c.quorum(exclusive) }

// ReadQuorum returns the number of votes that a shared lock needs, or 0 if there are no Nodes.
func (c ClusterConfig) ReadQuorum() int { return c.quorum(shared) }

func (c ClusterConfig) quorum(m quorum.Mode) int {
	if len(c.Nodes) == 0 {
		return 0
	}
	return quorum.Size(len(c.Nodes), m)
}

// Conflict tells how a node contradicts the others. Clients do not count the votes of such a node.
type Conflict string

const (
	ConflictName     Conflict = Conflict(members.NameClash)   // another process has the same name
	ConflictConfig   Conflict = Conflict(members.OtherConfig) // it does not have Members.Config
	ConflictUnlisted Conflict = Conflict(members.Unlisted)    // its own list does not name it
	ConflictDigest   Conflict = Conflict(members.WrongDigest) // its digest does not fit its Config
	ConflictBehind   Conflict = Conflict(members.Behind)      // the cluster has left its Config
	ConflictAhead    Conflict = Conflict(members.Ahead)       // its Config comes after Members.Config
)

// Member describes a node of a cluster. If the node did not answer, only Name is set.
type Member struct {
	Name     string
	Answered bool

	Incarnation string // UUID of the process
	State       NodeState
	Recovering  time.Duration // how much longer it does not vote
	Version     string
	Config      ClusterConfig // the node's own configuration
	ID          string        // of its state directory; empty: it has none, or is of a version before 0.2
	Started     time.Time     // start of the process, by its own clock
	Claims      int           // claims that are held or waiting there

	RoundTrip   time.Duration // time from the question to the answer
	ClockOffset time.Duration // how far its clock is ahead of this one's, to half of RoundTrip
	TokensAhead time.Duration // how far the highest token that it gave is ahead of its clock

	Conflict Conflict // empty if there is none
}

// Votes reports whether clients count the node's votes now.
func (m *Member) Votes() bool { return m.Answered && m.Conflict == "" && m.State == NodeVoting }

// Voting returns the number of nodes whose votes clients count now.
func (m *Members) Voting() int {
	n := 0
	for i := range m.Nodes {
		if m.Nodes[i].Votes() {
			n++
		}
	}
	return n
}

// Missing returns the names of the nodes that did not answer.
func (m *Members) Missing() []string {
	var names []string
	for i := range m.Nodes {
		if n := &m.Nodes[i]; !n.Answered {
			names = append(names, n.Name)
		}
	}
	return names
}

// Members asks all nodes who they are. It needs no permission beyond those for acquiring locks.
// Nodes that do not vote, or that have another configuration than this Locker, answer as well.
//
// Members returns soon after all nodes that the Locker or any node lists have answered. It waits a
// moment longer because a second node of the same name shows only in a second answer. It waits for
// silent nodes until ctx ends, and at most one second after the first answer; Nodes lists them
// without Answered. If ctx has no deadline, Members gives up after 5 s.
//
// Errors: ErrNoQuorum with the context's error if no node answered; ErrRefused if NATS does not let
// this client ask; ErrClosed if the Locker or its connection is closed.
func (l *Locker) Members(ctx context.Context) (*Members, error) {
	got, err := l.client.Members(ctx)
	if err != nil {
		return nil, err
	}
	return newMembers(l.opt.cluster, got), nil
}

// QueryMembers is like Locker.Members for a program that has no Locker. It works also where no
// quorum of nodes can be reached, so that New would fail. It uses only the options WithCluster and
// WithName. It returns at once if the NATS server reports that no node listens. The connection
// remains the caller's: QueryMembers does not close it or change its settings.
func QueryMembers(ctx context.Context, nc *nats.Conn, opts ...Option) (*Members, error) {
	if nc == nil {
		return nil, errors.New("qlock: QueryMembers: the connection is nil")
	}
	opt, err := buildOptions(opts)
	if err != nil {
		return nil, err
	}
	got, err := driver.QueryMembers(ctx, nc, opt.cluster, opt.name)
	if err != nil {
		return nil, err
	}
	return newMembers(opt.cluster, got), nil
}

func newMembers(cluster string, got *members.Membership) *Members {
	m := &Members{Cluster: cluster, Agreed: got.Agreed, said: got}
	if got.Config != nil {
		m.Config = newClusterConfig(*got.Config, got.Digest)
		m.Change = newNodesChange(got)
	}
	missing := got.Missing
	silent := func(before string) {
		for len(missing) > 0 && (before == "" || missing[0] < before) {
			m.Nodes, missing = append(m.Nodes, Member{Name: missing[0]}), missing[1:]
		}
	}
	for i := range got.Nodes {
		n := &got.Nodes[i]
		silent(n.Name)
		id := ""
		if c := n.Info.Config; c != nil && c.ID != uuid.Nil {
			id = c.ID.String()
		}
		m.Nodes = append(m.Nodes, Member{
			Name: n.Name, Answered: true, ID: id, Incarnation: n.Incarnation.String(), State: NodeState(n.Info.State), Recovering: n.Recovering,
			Version: n.Info.Version, Config: newClusterConfig(n.Config(), n.Digest),
			Started: time.UnixMicro(n.Info.Started), Claims: n.Info.Claims, RoundTrip: n.RoundTrip, ClockOffset: n.Clock,
			TokensAhead: n.Info.Ahead, Conflict: Conflict(n.Conflict),
		})
	}
	silent("")
	return m
}

func newClusterConfig(c wire.Config, digest string) ClusterConfig {
	out := ClusterConfig{Nodes: c.Nodes, MaxLease: c.MaxTTL, MaxSkew: c.Skew, Digest: digest, Epoch: c.Epoch()}
	if r := c.Record; r != nil {
		out.Nodes = nil
		for _, n := range r.Nodes {
			out.Nodes = append(out.Nodes, n.Name)
		}
	}
	return out
}

func newNodesChange(got *members.Membership) *NodesChange {
	r := got.Config.Record
	if r == nil || !r.Joint() {
		return nil
	}
	c := &NodesChange{MaxLease: r.NextMaxTTL, MaxSkew: r.NextSkew, Wait: epoch.Wait(r)}
	for _, n := range r.Next {
		c.Nodes = append(c.Nodes, n.Name)
	}
	var had []time.Duration
	for i := range got.Nodes {
		n := &got.Nodes[i]
		if n.Digest != got.Digest || n.Info.Config == nil {
			continue
		}
		c.For = max(c.For, n.Info.Config.Had)
		if epoch.In(r, n.Name, n.Info.Config.ID)&quorum.InNodes != 0 {
			had = append(had, n.Info.Config.Had)
		}
	}
	if need := quorum.Size(len(r.Nodes), quorum.Exclusive); len(had) >= need {
		slices.Sort(had)
		c.Wait = max(c.Wait-had[len(had)-need], 0)
	}
	return c
}

// String returns a description, in one line, of which nodes answered and what they reported.
func (m *Members) String() string {
	if m.said == nil {
		return "nobody answered"
	}
	return driver.Describe(m.said)
}
