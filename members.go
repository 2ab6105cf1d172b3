package qlock

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/driver"
	"github.com/qlock/qlock/internal/members"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// Members tells which nodes a cluster has: what each node that answered says of itself,
// which configuration they agree on, who is missing, and who contradicts the others.
type Members struct {
	Cluster string

	// Nodes are the nodes by name: those that answered, and those without an answer that a
	// node which answered lists. If two processes answer under one name, both are here.
	Nodes []Member

	// Config is the configuration that more nodes have than any other. It is empty, with
	// no Nodes, if no node has a valid one.
	Config ClusterConfig

	// Agreed is whether clients count votes by Config: a quorum of its own nodes has it,
	// and more than half of all nodes that answered.
	Agreed bool

	said *members.Membership
}

// ClusterConfig is what all nodes of a cluster must have in common: NodeConfig.Nodes,
// MaxLease and MaxSkew.
type ClusterConfig struct {
	Nodes    []string // sorted
	MaxLease time.Duration
	MaxSkew  time.Duration
	Digest   string // names the configuration; each answer of a node carries it
}

// WriteQuorum is how many votes an exclusive lock needs.
func (c ClusterConfig) WriteQuorum() int { return c.quorum(exclusive) }

// ReadQuorum is how many votes a shared lock needs.
func (c ClusterConfig) ReadQuorum() int { return c.quorum(shared) }

func (c ClusterConfig) quorum(m quorum.Mode) int {
	if len(c.Nodes) == 0 {
		return 0
	}
	return quorum.Size(len(c.Nodes), m)
}

// Conflict is how a node contradicts the others. Clients do not count its votes.
type Conflict string

const (
	ConflictName     Conflict = Conflict(members.NameClash)   // another process answers under the same name
	ConflictConfig   Conflict = Conflict(members.OtherConfig) // its configuration is not Members.Config
	ConflictUnlisted Conflict = Conflict(members.Unlisted)    // the list of nodes that it has does not name it
	ConflictDigest   Conflict = Conflict(members.WrongDigest) // the digest that it tells is not that of its configuration
)

// Member is a node of a cluster. Of one that did not answer only Name is known.
type Member struct {
	Name     string
	Answered bool

	Incarnation string // a UUID that names the process
	State       NodeState
	Recovering  time.Duration // how long it will still give no votes
	Version     string
	Config      ClusterConfig // what it was told
	Started     time.Time     // by its clock
	Claims      int           // held and waiting there

	RoundTrip   time.Duration // until its answer came
	ClockOffset time.Duration // by how much its clock is ahead of this machine's, to half of RoundTrip
	TokensAhead time.Duration // by how much the highest token that it gave is ahead of its clock

	Conflict Conflict // "": none
}

// Votes reports whether clients count the node's votes now.
func (m *Member) Votes() bool { return m.Answered && m.Conflict == "" && m.State == NodeVoting }

// Voting counts the nodes whose votes clients count now.
func (m *Members) Voting() int {
	n := 0
	for i := range m.Nodes {
		if m.Nodes[i].Votes() {
			n++
		}
	}
	return n
}

// Missing lists the names of nodes that did not answer.
func (m *Members) Missing() []string {
	var names []string
	for i := range m.Nodes {
		if n := &m.Nodes[i]; !n.Answered {
			names = append(names, n.Name)
		}
	}
	return names
}

// Members asks all nodes who they are. It needs no permission beyond those for taking
// locks, and is answered also by nodes that give no votes, or have another configuration
// than this Locker.
//
// It returns when all nodes have answered that the Locker or any node lists, and a moment
// more, as a second node of the same name is heard of by a second answer only. For silent
// nodes it waits until ctx ends, for a second at most after the first answer; they are
// among the Nodes, without Answered. Without a deadline in ctx it gives up after 5 s.
//
// Errors: ErrNoQuorum with the context's error if no node answered; ErrRefused if NATS
// does not let this client ask; ErrClosed if the Locker or its connection is closed.
func (l *Locker) Members(ctx context.Context) (*Members, error) {
	got, err := l.client.Members(ctx)
	if err != nil {
		return nil, err
	}
	return newMembers(l.opt.cluster, got), nil
}

// QueryMembers is like Locker.Members for a program that has no Locker: also where no
// quorum of nodes can be reached, so that New would fail. Of the options WithCluster and
// WithName count. It returns at once if the NATS server knows of no node that listens. The
// connection stays the caller's: it is neither closed nor reconfigured.
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
		m.Nodes = append(m.Nodes, Member{
			Name: n.Name, Answered: true, Incarnation: n.Incarnation.String(), State: NodeState(n.Info.State), Recovering: n.Recovering,
			Version: n.Info.Version, Config: newClusterConfig(n.Config(), n.Digest),
			Started: time.UnixMicro(n.Info.Started), Claims: n.Info.Claims, RoundTrip: n.RoundTrip, ClockOffset: n.Clock,
			TokensAhead: n.Info.Ahead, Conflict: Conflict(n.Conflict),
		})
	}
	silent("")
	return m
}

func newClusterConfig(c wire.Config, digest string) ClusterConfig {
	return ClusterConfig{Nodes: c.Nodes, MaxLease: c.MaxTTL, MaxSkew: c.Skew, Digest: digest}
}

// String tells who answered what, in one line.
func (m *Members) String() string {
	if m.said == nil {
		return "nobody answered"
	}
	return driver.Describe(m.said)
}
