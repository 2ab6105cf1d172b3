package qlock

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/members"
	"github.com/qlock/qlock/internal/proto"
	"github.com/qlock/qlock/internal/quorum"
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

// NodeState is what a node can do.
type NodeState string

const (
	NodeProbing    NodeState = NodeState(proto.Probing)    // it looks for another node of its name, and gives no votes yet
	NodeRecovering NodeState = NodeState(proto.Recovering) // it may have forgotten votes, and gives none until these have run out
	NodeVoting     NodeState = NodeState(proto.Voting)
	NodeStopped    NodeState = NodeState(proto.Stopped) // another node has its name
)

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
	own := l.cluster()
	q := newMembersQuery(&own)
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, ErrClosed
	}
	if l.queries == nil {
		l.queries = map[*membersQuery]struct{}{}
	}
	l.queries[q] = struct{}{}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.queries, q)
		l.mu.Unlock()
	}()
	return q.run(ctx, l.opt, l.stop, func(nonce string) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.out.requests(l.opt.cluster, []proto.Request{l.infoRequest(nonce)}, false)
		return nil
	})
}

// answerQueries gives a node's answer to whoever asked for it.
func (l *Locker) answerQueries(a *proto.Answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for q := range l.queries {
		q.hear(a)
	}
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
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	var m *Members
	err = onConnection(ctx, func() error {
		got, err := queryMembers(ctx, nc, opt)
		if err == nil {
			m = got
		}
		return err
	}, func() {})
	if errors.Is(err, errStandsStill) {
		return nil, fmt.Errorf("%w: the nodes of cluster %q could not be asked on %s: %w", ErrNoQuorum, opt.cluster, infoSubject(opt), err)
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}

func queryMembers(ctx context.Context, nc *nats.Conn, opt options) (*Members, error) {
	if nc.IsClosed() {
		return nil, closedError(nc)
	}
	before := nc.LastError()
	q, inbox, subject := newMembersQuery(nil), nc.NewInbox(), infoSubject(opt)
	sub, err := nc.Subscribe(inbox, func(m *nats.Msg) {
		if len(m.Data) == 0 && m.Header.Get("Status") == "503" {
			q.fail(errNobody)
			return
		}
		if a, err := proto.DecodeAnswer(m.Data); err == nil {
			q.hear(a)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("qlock: subscribe to answers: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	q.status = nc.Status
	q.look = func() error {
		err := nc.LastError()
		if nc.IsClosed() {
			return closedError(nc)
		}
		if s, ok := "", false; errors.Is(err, nats.ErrPermissionViolation) && err != before {
			if s, ok = deniedSubject(err); ok && (s == subject || s == inbox) {
				return fmt.Errorf("%w: %w", ErrRefused, permissionError(s, err))
			}
		}
		return nil
	}
	return q.run(ctx, opt, nil, func(nonce string) error {
		r := proto.Request{Verb: proto.Info, Client: opt.name, Nonce: nonce}
		return nc.PublishRequest(subject, inbox, proto.AppendRequest(nil, &r))
	})
}

// withDefaultTimeout bounds what asks the nodes and was given no deadline.
func withDefaultTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, 5*time.Second)
}

// errNobody: the NATS server says that nobody listens to what the nodes are asked on.
var errNobody = errors.New("the NATS server knows of nobody who listens there")

const (
	membersPatience = time.Second           // how long silent nodes are waited for when others have answered
	membersSettle   = 30 * time.Millisecond // how long, at least, for a second node of a name
)

// membersQuery is a query under way, and whoever waits for it.
type membersQuery struct {
	own   *proto.Config
	start time.Time
	heard chan struct{} // has room for one: something was heard
	ended chan error    // has room for one: no more will be

	// How to look at the connection, nil where others do, and this must not: it may stand still.
	look   func() error
	status func() nats.Status

	mu    sync.Mutex
	query *members.Query
}

func newMembersQuery(own *proto.Config) *membersQuery {
	return &membersQuery{
		own: own, start: time.Now(), heard: make(chan struct{}, 1), ended: make(chan error, 1),
		query: members.NewQuery(newInstance().String()),
	}
}

func (q *membersQuery) at(t time.Time) proto.Now {
	return proto.Now{Mono: t.Sub(q.start), Wall: t.UnixMicro()}
}

func (q *membersQuery) hear(a *proto.Answer) {
	q.mu.Lock()
	ours := q.query.Hear(q.at(time.Now()), a)
	q.mu.Unlock()
	if ours {
		select {
		case q.heard <- struct{}{}:
		default:
		}
	}
}

func (q *membersQuery) fail(err error) {
	select {
	case q.ended <- err:
	default:
	}
}

func (q *membersQuery) membership() members.Membership {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.query.Membership(q.at(time.Now()), q.own, false)
}

// run asks with send, and again while nodes are silent.
func (q *membersQuery) run(ctx context.Context, opt options, stop <-chan struct{}, send func(nonce string) error) (*Members, error) {
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	again := time.NewTicker(askAgain)
	defer again.Stop()
	done := time.NewTimer(time.Hour)
	defer done.Stop()
	var last, cause error
	ask := func() {
		q.mu.Lock()
		nonce := q.query.Ask(q.at(time.Now()))
		q.mu.Unlock()
		if err := send(nonce); err != nil {
			last = err
		}
	}
	first := time.Duration(0)
	ask()
wait:
	for {
		select {
		case <-q.heard:
			if first == 0 {
				first = max(time.Since(q.start), 1)
			}
			left := membersPatience - (time.Since(q.start) - first)
			m := q.membership()
			if len(m.Missing) == 0 {
				left = min(left, max(2*slowest(m), membersSettle))
			}
			done.Reset(left)
		case <-done.C:
			break wait
		case <-again.C:
			if q.look != nil {
				if err := q.look(); err != nil {
					return nil, err
				}
			}
			if first == 0 || len(q.membership().Missing) > 0 {
				ask()
			}
		case err := <-q.ended:
			if !errors.Is(err, errNobody) {
				return nil, err
			}
			if first == 0 {
				cause = err
				break wait
			}
		case <-stop:
			return nil, ErrClosed
		case <-ctx.Done():
			cause = contextError(ctx)
			break wait
		}
	}
	m := newMembers(opt.cluster, q.membership())
	if len(m.Nodes) > len(m.Missing()) {
		return m, nil
	}
	if q.look != nil {
		if err := q.look(); err != nil {
			return nil, err
		}
	}
	return nil, noMembers(m, infoSubject(opt), q.status, last, cause)
}

func slowest(m members.Membership) (d time.Duration) {
	for i := range m.Nodes {
		d = max(d, m.Nodes[i].RoundTrip)
	}
	return d
}

func newMembers(cluster string, got members.Membership) *Members {
	m := &Members{Cluster: cluster, Agreed: got.Agreed}
	if got.Config != nil {
		m.Config = newClusterConfig(got.Config, got.Digest)
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
			Version: n.Info.Version, Config: newClusterConfig(&proto.Config{Nodes: n.Info.Nodes, MaxTTL: n.Info.MaxTTL, Skew: n.Info.Skew}, n.Digest),
			Started: time.UnixMicro(n.Info.Started), Claims: n.Info.Claims, RoundTrip: n.RoundTrip, ClockOffset: n.Clock,
			TokensAhead: n.Info.Ahead, Conflict: Conflict(n.Conflict),
		})
	}
	silent("")
	return m
}

func newClusterConfig(c *proto.Config, digest string) ClusterConfig {
	return ClusterConfig{Nodes: c.Nodes, MaxLease: c.MaxTTL, MaxSkew: c.Skew, Digest: digest}
}

// String tells who answered what, in one line.
func (m *Members) String() string {
	var parts []string
	for i := range m.Nodes {
		n := &m.Nodes[i]
		if !n.Answered {
			continue
		}
		text := fmt.Sprintf("%s (%s, configuration %s with nodes %s", n.Name, n.State, n.Config.Digest, strings.Join(n.Config.Nodes, " "))
		if n.Conflict != "" {
			text += ", " + string(n.Conflict)
		}
		parts = append(parts, text+")")
	}
	text := "nobody answered"
	if len(parts) > 0 {
		text = "answers came from " + strings.Join(parts, ", ")
	}
	if missing := m.Missing(); len(missing) > 0 {
		text += fmt.Sprintf("; no answer from %s", strings.Join(missing, " "))
	}
	return text
}

// noMembers is the error that too few nodes answered, or that they agree on nothing.
func noMembers(m *Members, subject string, status func() nats.Status, last, cause error) error {
	text := fmt.Sprintf("asked the nodes of cluster %q on %s: %s", m.Cluster, subject, m)
	switch expected, missing := len(m.Nodes), len(m.Missing()); {
	case expected == missing && expected > 0:
		text += fmt.Sprintf(" (0 of %d nodes); are they running, and is this the NATS, and the account, that they are connected to?", expected)
	case expected == missing:
		text += "; is a node running with this cluster name, on this NATS, in this account?"
	default:
		text += fmt.Sprintf(" (%d of %d nodes); a quorum of one list is needed", expected-missing, expected)
	}
	if last != nil {
		text += fmt.Sprintf(" (last error of publishing: %v)", last)
	}
	if status != nil {
		if s := status(); s != nats.CONNECTED {
			text += fmt.Sprintf(" (the NATS connection is %v)", s)
		}
	}
	if cause == nil {
		return fmt.Errorf("%w: %s", ErrNoQuorum, text)
	}
	return fmt.Errorf("%w: %s: %w", ErrNoQuorum, text, cause)
}
