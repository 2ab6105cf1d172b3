// Package members decides which nodes a cluster has, and by which configuration a client
// counts votes (rules M1 to M5 of docs/protocol.md). Like packages voter and client it
// has no clock, goroutine, channel or random source: time is an argument. The simulator
// runs the same code.
//
// A Query is one question to all nodes and their answers. It compares the answers and
// decides nothing. A Machine asks for a client when it starts, and again when a node
// shows another configuration. It decides when the client changes its configuration.
//
// All values are for use by one goroutine at a time.
package members

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// Conflict says how a node contradicts others.
type Conflict string

const (
	// NameClash means that another process answers under the same name.
	NameClash Conflict = "name clash"
	// OtherConfig means that its configuration is valid, but more nodes show another one.
	OtherConfig Conflict = "other configuration"
	// Unlisted means that the list that it shows does not contain its own name.
	Unlisted Conflict = "not in its own list"
	// WrongDigest means that the digest in its answers is not that of the configuration that
	// it shows.
	WrongDigest Conflict = "wrong digest"
)

// Node is a process that answered.
type Node struct {
	Name        string
	Incarnation uuid.UUID
	Digest      string
	Info        wire.NodeInfo // of its newest answer
	// Recovering is for how long it will give no votes.
	Recovering time.Duration
	RoundTrip  time.Duration // of the first answer
	// Clock is by how much its clock is ahead of the client's, with an error of up to half a
	// round trip.
	Clock    time.Duration
	Conflict Conflict // empty: none

	first int // number of questions asked when it was first heard
	last  int // number of the latest question that it answered
}

// Config returns the configuration that the node shows.
func (n *Node) Config() wire.Config {
	return wire.Config{Nodes: n.Info.Nodes, MaxTTL: n.Info.MaxTTL, Skew: n.Info.Skew}
}

// overBy reports whether o, of the same name, shows that n is no more: o answered a
// question from after n was first heard, and n has answered none since o was first heard.
func (n *Node) overBy(o *Node) bool {
	return o.Name == n.Name && o.Incarnation != n.Incarnation && o.last > n.last && o.last > n.first && n.last <= o.first
}

// recentAnswer is for how long an answer counts, from its question on.
const recentAnswer = 10 * time.Second

// mostNodes bounds how many processes are remembered.
const mostNodes = 4 * wire.MaxNodes

// Query is a question to all nodes, which may be repeated, and the answers. It is not
// safe for concurrent use.
type Query struct {
	nonce string
	asked []wire.Now // when each question was asked
	nodes []Node     // in the order of their first answers
}

// NewQuery returns a query. The nonces of its questions begin with nonce, which no other
// query may use.
func NewQuery(nonce string) *Query { return &Query{nonce: nonce} }

// Ask returns the nonce of one more question.
func (q *Query) Ask(now wire.Now) string {
	q.asked = append(q.asked, now)
	return q.nonce + "/" + strconv.Itoa(len(q.asked))
}

// Hear takes an answer, and reports whether it belongs to this query (M1).
func (q *Query) Hear(now wire.Now, a *wire.Answer) bool {
	if a.Info == nil {
		return false
	}
	number, ours := strings.CutPrefix(a.Info.Nonce, q.nonce+"/") //plant:members-nonce
	round, err := strconv.Atoi(number)
	if !ours || err != nil || round < 1 || round > len(q.asked) || strconv.Itoa(round) != number {
		return false
	}
	asked := q.asked[round-1]
	i := slices.IndexFunc(q.nodes, func(n Node) bool { return n.Name == a.Node && n.Incarnation == a.Incarnation })
	if i < 0 {
		if len(q.nodes) == mostNodes {
			return false
		}
		trip := now.Mono - asked.Mono
		i, q.nodes = len(q.nodes), append(q.nodes, Node{
			Name: a.Node, Incarnation: a.Incarnation, RoundTrip: trip, first: len(q.asked),
			Clock: time.Duration(a.Info.Now-asked.Wall)*time.Microsecond - trip/2,
		})
	}
	// An answer to an earlier question is late, and says less.
	if n := &q.nodes[i]; round >= n.last {
		n.last, n.Info, n.Digest, n.Recovering = round, *a.Info, a.Digest, a.Recovering
	}
	return true
}

// Membership is what the nodes said, compared with each other.
type Membership struct {
	Nodes []Node // the nodes that answered, sorted by name and then by incarnation

	// Config is the configuration for which most names count, nil if none counts for any.
	// Agreed says whether they are enough (M3).
	Config *wire.Config
	Digest string
	Agreed bool

	// Missing lists the names that are expected, or that a node that answered lists, and that
	// have not answered. It is sorted.
	Missing []string
}

// Membership compares the answers that count at this time. own is the configuration of
// the client, or nil if it has none; its nodes are expected to answer. Unless gone is
// set, its silent nodes count against every other configuration (M5).
func (q *Query) Membership(now wire.Now, own *wire.Config, gone bool) Membership {
	var m Membership
	for i := range q.nodes {
		n := q.nodes[i]
		if q.asked[n.last-1].Mono+recentAnswer < now.Mono || slices.ContainsFunc(q.nodes, func(o Node) bool { return n.overBy(&o) }) /*plant:members-over*/ {
			continue
		}
		m.Nodes = append(m.Nodes, n)
	}
	slices.SortFunc(m.Nodes, func(a, b Node) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), slices.Compare(a.Incarnation[:], b.Incarnation[:]))
	})

	// The number of names that count for each digest, and one of their nodes.
	names, of := map[string]int{}, map[string]*Node{}
	heard := map[string]bool{}
	for i, next := 0, 0; i < len(m.Nodes); i = next {
		for next = i + 1; next < len(m.Nodes) && m.Nodes[next].Name == m.Nodes[i].Name; next++ {
		}
		heard[m.Nodes[i].Name] = true
		if evaluate(m.Nodes[i:next]) {
			n := &m.Nodes[i]
			names[n.Digest]++
			of[n.Digest] = n
		}
	}
	// If counts are equal, the result must not depend on map order.
	for digest, count := range names {
		if best := names[m.Digest]; count > best || count == best && digest < m.Digest {
			m.Digest = digest
		}
	}
	expected := map[string]bool{}
	for i := range m.Nodes {
		for _, name := range m.Nodes[i].Info.Nodes {
			expected[name] = true
		}
	}
	against := 0
	if own != nil {
		for _, name := range own.Nodes {
			expected[name] = true
			if !heard[name] && !gone {
				against++ //plant:members-silent
			}
		}
	}
	for name := range expected {
		if !heard[name] {
			m.Missing = append(m.Missing, name)
		}
	}
	slices.Sort(m.Missing)
	if n := of[m.Digest]; n != nil {
		cfg, count := n.Config(), names[m.Digest]
		m.Config = &cfg
		if own != nil && own.Digest() == m.Digest {
			against = 0
		}
		m.Agreed = count >= quorum.Size(len(cfg.Nodes), quorum.Exclusive) /*plant:members-quorum*/ && count > len(heard)-count+against
	}
	for i := range m.Nodes {
		if n := &m.Nodes[i]; n.Conflict == "" && n.Digest != m.Digest {
			n.Conflict = OtherConfig
		}
	}
	return m
}

// evaluate notes what the processes of one name contradict, and reports whether the name
// counts for the configuration that they show (M2).
func evaluate(nodes []Node) bool {
	counts := true
	for i := range nodes {
		n := &nodes[i]
		switch {
		case n.Config().Digest() != n.Digest:
			n.Conflict = WrongDigest
		case !slices.Contains(n.Info.Nodes, n.Name): //plant:members-unlisted
			n.Conflict = Unlisted
		case len(nodes) > 1:
			n.Conflict = NameClash
		}
		counts = counts && n.Digest == nodes[0].Digest && n.Conflict != WrongDigest && n.Conflict != Unlisted
	}
	return counts
}
