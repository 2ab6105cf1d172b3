package driver

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/qlock/qlock/internal/natsio"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/wire"
)

// queries holds the questions to all nodes that wait for answers. Callers' goroutines add and
// remove them. The goroutines of the subscription, of the connection's callbacks, of the publisher
// and of the loop answer and fail them. No method blocks.
type queries struct {
	mu      sync.Mutex        // guards the fields below
	all     map[string]*query // by nonce
	members map[*membersQuery]struct{}
}

// query is a question to all nodes that waits for answers.
type query struct {
	kind    wire.Kind // kind of its answers
	subject string
	answers chan *wire.Answer
	failed  chan error
}

func (q *queries) add(nonce string, one *query) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.all == nil {
		q.all = map[string]*query{}
	}
	q.all[nonce] = one
}

func (q *queries) remove(nonce string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.all, nonce)
}

func (q *queries) addMembers(one *membersQuery) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.members == nil {
		q.members = map[*membersQuery]struct{}{}
	}
	q.members[one] = struct{}{}
}

func (q *queries) removeMembers(one *membersQuery) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.members, one)
}

// informed passes a node's answer to info to all queries for the members.
func (q *queries) informed(a *wire.Answer) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for one := range q.members {
		one.hear(a)
	}
}

// failMembers fails all queries for the members.
func (q *queries) failMembers(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for one := range q.members {
		one.fail(err)
	}
}

// reply passes a node's answer to the query that asked for it.
func (q *queries) reply(a *wire.Answer) {
	q.mu.Lock()
	defer q.mu.Unlock()
	one := q.all[a.Nonce]
	if one == nil || a.Kind != one.kind {
		return
	}
	select {
	case one.answers <- a:
	default: // Query asks for it again
	}
}

// fail fails the queries on a subject that NATS denied.
func (q *queries) fail(subject string, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, one := range q.all {
		if one.subject == subject {
			one.fail(err)
		}
	}
}

// failAll fails all queries.
func (q *queries) failAll(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, one := range q.all {
		one.fail(err)
	}
	for one := range q.members {
		one.fail(err)
	}
}

func (q *query) fail(err error) {
	select {
	case q.failed <- err:
	default:
	}
}

// replyTo maps each question to the kind of its answers.
var replyTo = map[wire.Verb]wire.Kind{
	wire.Info: wire.Informed, wire.List: wire.Listed, wire.Inspect: wire.Listed, wire.Evict: wire.Evicting,
}

const (
	askAgain = 250 * time.Millisecond // how long to wait for an answer before asking again
	silence  = 500 * time.Millisecond // after which a quorum of answers is enough
)

// Query asks all nodes, and calls take once with each page of each node's answer. take returns the
// number of the next page, or 0 at the end, and whether it needs no more answers. Query returns the
// nodes that answered completely, and those that did not. If ctx has no deadline, it gives up after
// 5 s.
func (c *Client) Query(ctx context.Context, r wire.Request, take func(*wire.Answer) (next uint64, done bool)) (answered, silent []string, err error) {
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	cluster := c.Cluster()
	nodes, need := cluster.Nodes, cluster.Need(quorum.Exclusive)
	r.Client, r.Nonce = c.cfg.Name, cmp.Or(r.Nonce, newInstance().String())
	// The publisher removes the text of an evict that is too long.
	if n := len(wire.AppendRequest(nil, &r)); n > c.pub.MaxBody() && r.Verb != wire.Evict {
		return nil, nil, fmt.Errorf("qlock: %s: the request has %d bytes, and the NATS server accepts %d (max_payload)", r.Verb, n, c.pub.MaxBody())
	}
	q := &query{
		kind:    replyTo[r.Verb],
		subject: subject.Request(c.cfg.Cluster, string(r.Verb), r.Client, r.Resource),
		answers: make(chan *wire.Answer, 4*len(nodes)), failed: make(chan error, 1),
	}
	c.queries.add(r.Nonce, q)
	defer c.queries.remove(r.Nonce)
	c.machine.send(r)
	after := map[string]uint64{} // next page of each node that is not done
	for _, n := range nodes {
		after[n] = 0
	}
	again := time.NewTicker(askAgain)
	defer again.Stop()
	heard := time.Now()
	enough := func() bool { return need.Met(cluster.Counts(answered)) }
	for len(after) > 0 {
		select {
		case a := <-q.answers:
			at, asked := after[a.Node]
			if !asked || a.List != nil && a.List.After != at {
				continue // a repeated answer
			}
			heard = time.Now()
			next, done := take(a)
			if next <= at {
				delete(after, a.Node)
				answered = append(answered, a.Node)
				slices.Sort(answered)
				if done {
					return answered, missing(after), nil
				}
				continue
			}
			after[a.Node] = next
			more := r
			more.Node, more.After = a.Node, next
			c.machine.send(more)
		case <-again.C:
			if time.Since(heard) >= silence && enough() {
				return answered, missing(after), nil
			}
			for _, n := range missing(after) {
				more := r
				more.Node, more.After = n, after[n]
				if r.Verb != wire.List && r.Verb != wire.Inspect {
					more.Node = "" // evict has no such field, and in info only nodes set it
				}
				c.machine.send(more)
			}
		case err := <-q.failed:
			return nil, nil, err
		case <-c.stop:
			return nil, nil, ErrClosed
		case <-ctx.Done():
			if enough() {
				return answered, missing(after), nil
			}
			return nil, nil, fmt.Errorf("%w: asked the nodes on %s: %s%s: %w", ErrNoQuorum,
				q.subject, near(&cluster, answered), unanswered(after), natsio.ContextError(ctx))
		}
	}
	return answered, nil, nil
}

// near says how many nodes answered: of each list, with how many are needed, while the list of nodes
// changes.
func near(cluster *wire.Config, answered []string) string {
	lists := cluster.Lists()
	if lists[1] == 0 {
		return fmt.Sprintf("%d of %d answered", len(answered), len(cluster.Nodes))
	}
	n, need := cluster.Counts(answered), cluster.Need(quorum.Exclusive)
	return fmt.Sprintf("the list of nodes is being changed: %d of %d nodes of the old list answered, %d are needed; %d of %d of the new list, %d are needed",
		n[0], lists[0], need[0], n[1], lists[1], need[1])
}

// unanswered describes the nodes that are not done.
func unanswered(after map[string]uint64) string {
	var silent, slow []string
	for _, n := range missing(after) {
		if after[n] == 0 {
			silent = append(silent, n)
		} else {
			slow = append(slow, n)
		}
	}
	text := ""
	if len(slow) > 0 {
		text += ", part of an answer from " + strings.Join(slow, " ") + ", which have more than fits into the time"
	}
	if len(silent) > 0 {
		text += ", no answer from " + strings.Join(silent, " ")
	}
	return text
}

func missing(after map[string]uint64) []string {
	var names []string
	for n := range after {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
