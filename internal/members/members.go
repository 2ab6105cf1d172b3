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
	"maps"
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
	// Behind means that the cluster has left the record that it has, or the configuration that
	// it was started with (E9).
	Behind Conflict = "earlier record"
	// Ahead means that its record continues the one that most nodes have.
	Ahead Conflict = "later record"
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
	if c := n.Info.Config; c != nil && c.Record != nil {
		return wire.RecordConfig(c.Record, c.Links)
	}
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

	// What is shown, by digest, and how many names count for it. The nodes of one name that
	// count show the same.
	shown := map[string]*shown{}
	heard := map[string]bool{}
	for i, next := 0, 0; i < len(m.Nodes); i = next {
		for next = i + 1; next < len(m.Nodes) && m.Nodes[next].Name == m.Nodes[i].Name; next++ {
		}
		heard[m.Nodes[i].Name] = true
		if n := evaluate(m.Nodes[i:next]); n != nil {
			s := shown[n.Digest]
			if s == nil {
				s = newShown(n, own)
				shown[n.Digest] = s
			}
			s.count(n)
		}
	}
	// If they are equal, the result must not depend on map order.
	for _, digest := range slices.Sorted(maps.Keys(shown)) {
		if best := shown[m.Digest]; best == nil || shown[digest].before(best) {
			m.Digest = digest
		}
	}
	expected := map[string]bool{}
	best := shown[m.Digest]
	for i := range m.Nodes {
		n := &m.Nodes[i]
		if best != nil && n.Conflict == "" && best.leaves(n) {
			n.Conflict = Behind
		}
		if n.Conflict == Behind {
			continue // nodes of the list that it knows may have been stopped for good
		}
		for _, name := range n.Info.Nodes {
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
	if best == nil {
		return m
	}
	m.Config = &best.cfg
	for i := range m.Nodes {
		switch n := &m.Nodes[i]; {
		case n.Conflict != "" || n.Digest == m.Digest || n.outside():
		case best.isLeftBy(n):
			n.Conflict = Ahead
		default:
			n.Conflict = OtherConfig
		}
	}
	if own != nil && own.Digest() == m.Digest {
		against = 0
	}
	others := 0
	for i, next := 0, 0; i < len(m.Nodes); i = next {
		for next = i + 1; next < len(m.Nodes) && m.Nodes[next].Name == m.Nodes[i].Name; next++ {
		}
		if n := &m.Nodes[i]; !best.supports(n, m.Nodes[i:next]) {
			others++
		}
	}
	m.Agreed = best.enough() && (best.continues || best.names > others+against) && best.mayFollow(own, gone)
	return m
}

// shown is a configuration that names count for.
type shown struct {
	cfg       wire.Config
	digest    string
	need      int  // of its own nodes, of the first list if there are two
	nodes     int  // of these that show it
	names     int  // all that show it
	continues bool // it comes after the client's own
}

func newShown(n *Node, own *wire.Config) *shown {
	s := &shown{cfg: n.Config(), digest: n.Digest}
	s.need = quorum.Size(s.cfg.Lists()[0], quorum.Exclusive) //plant:members-quorum
	s.continues = own != nil && s.cfg.Continues(own)
	return s
}

// count adds a name that shows it.
func (s *shown) count(n *Node) {
	s.names++
	if s.cfg.In(n.Name)&quorum.InNodes != 0 { //plant:members-own-nodes
		s.nodes++
	}
}

func (s *shown) enough() bool { return s.nodes >= s.need }

// before reports whether a client should rather count by this configuration than by the other
// one. Records that continue the client's own come first, and of two records of one cluster
// that have a majority the later one: it is decided, and the cluster has left the other (E16).
func (s *shown) before(o *shown) bool {
	if s.enough() && o.enough() && (s.cfg.Continues(&o.cfg) || o.cfg.Continues(&s.cfg)) {
		return s.cfg.Epoch() > o.cfg.Epoch() //plant:members-later
	}
	if a, b := s.continues && s.enough(), o.continues && o.enough(); a != b {
		return a
	}
	if a, b := s.enough(), o.enough(); a != b && s.cfg.Record != nil && o.cfg.Record != nil {
		return a
	}
	return s.names > o.names
}

// mayFollow reports whether a client whose configuration is own may count by this one at all.
// Once it knows the id of its cluster, it never goes back to an earlier record or to epoch 0,
// and it takes that of another cluster for a new one of the name only when votes of its own
// cannot be valid any more (E16).
func (s *shown) mayFollow(own *wire.Config, gone bool) bool {
	if own == nil || own.Record == nil || s.continues || s.digest == own.Digest() {
		return true
	}
	return gone && s.cfg.Record != nil && (s.cfg.Record.CID != own.Record.CID || s.cfg.Epoch() > own.Epoch()) //plant:members-never-back
}

// leaves reports whether the cluster of this record has left what the node shows.
func (s *shown) leaves(n *Node) bool {
	return n.Digest != s.digest && slices.ContainsFunc(s.cfg.Links, func(l wire.Link) bool { return l.Digest == n.Digest })
}

// isLeftBy reports whether the node's record continues this configuration.
func (s *shown) isLeftBy(n *Node) bool {
	cfg := n.Config()
	return cfg.Continues(&s.cfg)
}

// supports reports whether the nodes of one name do not contradict this configuration.
func (s *shown) supports(n *Node, all []Node) bool {
	if s.cfg.Record == nil {
		return len(all) > 0 && n.Digest == s.digest && !contradicts(all)
	}
	return !slices.ContainsFunc(all, func(o Node) bool {
		return o.Digest != s.digest && o.Conflict != Behind && o.Conflict != Ahead && !o.outside()
	})
}

func contradicts(all []Node) bool {
	return slices.ContainsFunc(all, func(o Node) bool {
		return o.Digest != all[0].Digest || o.Conflict == WrongDigest || o.Conflict == Unlisted
	})
}

// outside reports whether the node says of itself that it is in no list: it waits to join, or
// the cluster has left it out. It neither counts nor contradicts.
func (n *Node) outside() bool {
	return n.Info.State == wire.Joining || n.Info.State == wire.Retired
}

// listed reports whether the configuration that the node shows lists it: the node of this name
// and, in a record, with this id (E2).
func (n *Node) listed(cfg *wire.Config) bool {
	if cfg.Record == nil {
		return slices.Contains(cfg.Nodes, n.Name)
	}
	return slices.ContainsFunc(slices.Concat(cfg.Record.Nodes, cfg.Record.Next), func(m wire.Member) bool {
		return m.Name == n.Name && m.ID == n.Info.Config.ID /*plant:members-id*/
	})
}

// evaluate notes what the processes of one name contradict, and returns one of them if the
// name counts for the configuration that they show (M2). One that is in no list has no part
// in that: it never votes, and does not contest the name (E14).
func evaluate(nodes []Node) *Node {
	inside := 0
	for i := range nodes {
		if !nodes[i].outside() { //plant:members-outside
			inside++
		}
	}
	counts := true
	var first *Node
	for i := range nodes {
		n := &nodes[i]
		if n.outside() {
			continue
		}
		cfg := n.Config()
		switch {
		case cfg.Digest() != n.Digest:
			n.Conflict = WrongDigest
		case !n.listed(&cfg): //plant:members-unlisted
			n.Conflict = Unlisted
		case inside > 1:
			n.Conflict = NameClash
		}
		if first == nil {
			first = n
		}
		counts = counts && n.Digest == first.Digest && n.Conflict != WrongDigest && n.Conflict != Unlisted
	}
	if !counts {
		return nil
	}
	return first
}
