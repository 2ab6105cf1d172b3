// Package members decides which nodes a cluster has, and which configuration a client
// counts votes by (rules M1 to M5 of docs/protocol.md). Like packages node and client it
// has no clock, goroutine, channel or random source: time is an argument. The simulator
// runs it as it is.
//
// A Query is one question to all nodes and what they answered; it compares the answers and
// decides nothing. A Machine asks for a client: when it begins, and again whenever a node
// shows another configuration. It says when the client has to count by which.
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

// Conflict is how a node contradicts the others.
type Conflict string

const (
	// NameClash: another process answers under the same name.
	NameClash Conflict = "name clash"
	// OtherConfig: it has a valid configuration, and more nodes show another.
	OtherConfig Conflict = "other configuration"
	// Unlisted: the list that it shows does not have its own name.
	Unlisted Conflict = "not in its own list"
	// WrongDigest: the digest in its answers is not that of the configuration it shows.
	WrongDigest Conflict = "wrong digest"
)

// Node is a process that answered.
type Node struct {
	Name        string
	Incarnation uuid.UUID
	Digest      string
	Info        wire.NodeInfo // of its newest answer
	Recovering  time.Duration
	RoundTrip   time.Duration // of the first answer
	Clock       time.Duration // by how much its clock is ahead of the client's, to half a round trip
	Conflict    Conflict      // "": none

	first int // how often the nodes had been asked when it was first heard
	last  int // the last of these questions that it answered
}

// Config is the configuration that the node shows.
func (n *Node) Config() wire.Config {
	return wire.Config{Nodes: n.Info.Nodes, MaxTTL: n.Info.MaxTTL, Skew: n.Info.Skew}
}

// overBy reports that n is no more, as far as o of the same name shows: o answered a
// question from after n was first heard, and n has answered none since.
func (n *Node) overBy(o *Node) bool {
	return o.Name == n.Name && o.Incarnation != n.Incarnation && o.last > n.last && o.last > n.first && n.last <= o.first
}

// fresh is for how long an answer counts, from its question on.
const recentAnswer = 10 * time.Second

// mostNodes bounds what is remembered of who answers.
const mostNodes = 4 * wire.MaxNodes

// Query is a question to all nodes, which may be repeated, and the answers.
type Query struct {
	nonce string
	asked []wire.Now // when, each time
	nodes []Node     // in the order of their first answers
}

// NewQuery makes a query whose questions carry nonces that begin with nonce. No other
// query may have the same.
func NewQuery(nonce string) *Query { return &Query{nonce: nonce} }

// Ask returns the nonce of one more question.
func (q *Query) Ask(now wire.Now) string {
	q.asked = append(q.asked, now)
	return q.nonce + "/" + strconv.Itoa(len(q.asked))
}

// Hear takes an answer, and reports whether it is one to this query (M1).
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
	if n := &q.nodes[i]; round >= n.last { // an earlier one is late, and says less
		n.last, n.Info, n.Digest, n.Recovering = round, *a.Info, a.Digest, a.Recovering
	}
	return true
}

// Membership is what the nodes said, compared with each other.
type Membership struct {
	Nodes []Node // those that answered, by name; processes of one name follow each other

	// Config is the configuration that more names count for than for any other, nil if
	// none counts for any; Agreed is whether they are enough (M3).
	Config *wire.Config
	Digest string
	Agreed bool

	Missing []string // names that a node which answered lists, or that were expected, without an answer
}

// Membership compares the answers that count now. own is the configuration that the
// client has, nil if it has none; its nodes are expected to answer. Unless gone is set,
// those of them that are silent count against every other configuration (M5).
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

	names, of := map[string]int{}, map[string]*Node{} // names that count for a digest, and one of their nodes
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
	for digest, count := range names { // of equals the same one at every look
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

// evaluate looks at the processes of one name, notes what each contradicts, and reports
// whether the name counts for the configuration that they show (M2).
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
