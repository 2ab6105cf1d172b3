package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/members"
	"github.com/qlock/qlock/internal/natsio"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// Members asks all nodes who they are. See Locker.Members in package qlock.
func (c *Client) Members(ctx context.Context) (*members.Membership, error) {
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	own := c.Cluster()
	q := newMembersQuery(&own)
	c.queries.addMembers(q)
	defer c.queries.removeMembers(q)
	if c.isClosed() {
		return nil, ErrClosed
	}
	return q.run(ctx, c.cfg.Cluster, c.cfg.Name, c.stop, func(nonce string) error {
		c.machine.send(infoRequest(c.cfg.Name, nonce))
		return nil
	})
}

// QueryMembers asks all nodes who they are, without a Client. See QueryMembers in package qlock.
func QueryMembers(ctx context.Context, nc *nats.Conn, cluster, client string) (*members.Membership, error) {
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	got := make(chan *members.Membership, 1)
	err := natsio.Call(ctx, func() error {
		m, err := queryMembers(ctx, nc, cluster, client)
		if err == nil {
			got <- m
		}
		return err
	}, func() {})
	if errors.Is(err, natsio.ErrStandsStill) {
		return nil, fmt.Errorf("%w: the nodes of cluster %q could not be asked on %s: %w", ErrNoQuorum, cluster, infoSubject(cluster, client), err)
	}
	if err != nil {
		return nil, err
	}
	return <-got, nil
}

func queryMembers(ctx context.Context, nc *nats.Conn, cluster, client string) (*members.Membership, error) {
	if nc.IsClosed() {
		return nil, closedError(nc)
	}
	before := nc.LastError()
	q, inbox, on := newMembersQuery(nil), nc.NewInbox(), infoSubject(cluster, client)
	sub, err := nc.Subscribe(inbox, func(m *nats.Msg) {
		if natsio.NobodyHears(m) {
			q.fail(errNobody)
			return
		}
		if a, err := wire.DecodeAnswer(m.Data); err == nil {
			q.hear(a)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("qlock: subscribe to answers: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	q.status = nc.Status
	q.look = func() error {
		if nc.IsClosed() {
			return closedError(nc)
		}
		return deniedSince(nc, before, on, inbox)
	}
	return q.run(ctx, cluster, client, nil, func(nonce string) error {
		r := infoRequest(client, nonce)
		return nc.PublishRequest(on, inbox, wire.AppendRequest(nil, &r))
	})
}

// withDefaultTimeout limits queries whose context has no deadline to 5 s.
func withDefaultTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, 5*time.Second)
}

// errNobody means that the NATS server reports no subscriber for the nodes' subject.
var errNobody = errors.New("the NATS server knows of nobody who listens there")

const (
	membersPatience = time.Second           // wait for silent nodes after the first answer
	membersSettle   = 30 * time.Millisecond // least wait for a second node of a name
)

// membersQuery is a query in progress. The goroutine that waits for it calls run. The goroutines
// that receive the answers, or learn that there will be none, call hear and fail. These two do not
// block.
type membersQuery struct {
	own   *wire.Config
	start time.Time
	heard chan struct{} // signals that an answer was heard; has room for one
	ended chan error    // receives why there will be no more answers; has room for one

	// These check the connection. They are nil if other code does that and run must not touch the
	// connection, because the connection may block.
	look   func() error
	status func() nats.Status

	mu    sync.Mutex // guards query
	query *members.Query
}

func newMembersQuery(own *wire.Config) *membersQuery {
	return &membersQuery{
		own: own, start: time.Now(), heard: make(chan struct{}, 1), ended: make(chan error, 1),
		query: members.NewQuery(newInstance().String()),
	}
}

func (q *membersQuery) at(t time.Time) wire.Now { return clocks(q.start, t) }

func (q *membersQuery) hear(a *wire.Answer) {
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

func (q *membersQuery) membership() *members.Membership {
	q.mu.Lock()
	defer q.mu.Unlock()
	m := q.query.Membership(q.at(time.Now()), q.own, false)
	return &m
}

// run asks with send, and repeats the question while nodes are silent. It returns when ctx ends at
// the latest.
func (q *membersQuery) run(ctx context.Context, cluster, client string, stop <-chan struct{}, send func(nonce string) error) (*members.Membership, error) {
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
			cause = natsio.ContextError(ctx)
			break wait
		}
	}
	m := q.membership()
	if len(m.Nodes) > 0 {
		return m, nil
	}
	if q.look != nil {
		if err := q.look(); err != nil {
			return nil, err
		}
	}
	return nil, noMembers(cluster, m, infoSubject(cluster, client), q.status, last, cause)
}

func slowest(m *members.Membership) (d time.Duration) {
	for i := range m.Nodes {
		d = max(d, m.Nodes[i].RoundTrip)
	}
	return d
}

// Describe returns a description, in one line, of which nodes answered and what they reported.
func Describe(m *members.Membership) string {
	var parts []string
	for i := range m.Nodes {
		n := &m.Nodes[i]
		text := fmt.Sprintf("%s (%s, configuration %s with nodes %s", n.Name, n.Info.State, n.Digest, strings.Join(n.Info.Nodes, " "))
		if n.Conflict != "" {
			text += ", " + string(n.Conflict)
		}
		parts = append(parts, text+")")
	}
	text := "nobody answered"
	if len(parts) > 0 {
		text = "answers came from " + strings.Join(parts, ", ")
	}
	if len(m.Missing) > 0 {
		text += fmt.Sprintf("; no answer from %s", strings.Join(m.Missing, " "))
	}
	return text
}

// noMembers returns the error that too few nodes answered, or that they do not agree.
func noMembers(cluster string, m *members.Membership, on string, status func() nats.Status, last, cause error) error {
	text := fmt.Sprintf("asked the nodes of cluster %q on %s: %s", cluster, on, Describe(m))
	switch expected, missing := len(m.Nodes)+len(m.Missing), len(m.Missing); {
	case expected == missing && expected > 0:
		text += fmt.Sprintf(" (0 of %d nodes); are they running, and is this the NATS, and the account, that they are connected to?", expected)
	case expected == missing:
		text += "; is a node running with this cluster name, on this NATS, in this account?"
	default:
		text += fmt.Sprintf(" (%d of %d nodes); a quorum of one list is needed", expected-missing, expected)
	}
	if c := m.Config; c != nil && c.Lists()[1] > 0 {
		shown := 0
		for i := range m.Nodes {
			if n := &m.Nodes[i]; n.Digest == m.Digest && c.In(n.Name)&quorum.InNodes != 0 {
				shown++
			}
		}
		text += fmt.Sprintf("; the list of nodes is being changed: %d of %d nodes of the old list show it, %d must", shown, c.Lists()[0], c.Need(quorum.Exclusive)[0])
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
