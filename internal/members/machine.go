package members

import (
	"strconv"
	"time"

	"github.com/qlock/qlock/internal/wire"
)

const (
	// Patience is how long all nodes have to answer. After that, the answers that there are
	// suffice if a configuration is agreed on (M4). The question is repeated at this
	// interval.
	Patience = 250 * time.Millisecond

	// settle is the least time for which nodes that nobody has named are waited for, after
	// all named nodes have answered, if fewer than several agree. The first node heard may be
	// one that was told a list of its own. If several nodes agree, they are a cluster, and
	// waiting for more would only delay the start.
	settle  = 10 * time.Millisecond
	several = 3

	// Pause is the least time between the starts of two queries of a client that has a
	// configuration, and the longest duration of one.
	Pause = time.Second
)

// Out collects the actions that the machine requests in a step.
type Out struct {
	Ask   string                   // ask all nodes with this nonce; empty: do not
	Found *wire.Config             // count votes by this configuration from now on; nil: no change
	Trips map[string]time.Duration // set with Found: the round trips to nodes
}

// Machine knows the configuration by which a client counts votes, and queries the nodes
// for it. It is not safe for concurrent use.
type Machine struct {
	prefix string
	serial int

	own    *wire.Config // nil: none yet
	digest string       // digest of own

	query    *Query        // nil: none under way
	began    time.Duration // start of the query, by the monotonic clock
	askAt    time.Duration // when to repeat the question
	enoughAt time.Duration // from then on the answers that there are suffice
	enough   bool          // conclude has run since enoughAt
	settleAt time.Duration // when the answers suffice if no named node is missing
	settling bool          // no named node is missing, and conclude has not run since settleAt

	// gone is set if no node of the configuration has shown it since the query that began at
	// goneSince, neither in a query nor in an answer about a claim.
	gone      bool
	goneSince time.Duration

	lease time.Duration // of the client; 0: not known
	ahead bool          // in the query, a node showed a record that continues the client's own
}

// New returns a machine for a client that has no configuration yet. Its nonces begin with
// prefix, which must be unique.
func New(prefix string) *Machine { return &Machine{prefix: prefix} }

// SetLease tells the machine how long the client's leases are. A client whose nodes are about
// to take another record must know it within a part of that (E16).
func (m *Machine) SetLease(lease time.Duration) { m.lease = lease }

// again is after what time the question is repeated.
func (m *Machine) again() time.Duration {
	if m.ahead && m.lease > 0 {
		return min(Patience, max(m.lease/10, time.Millisecond)) //plant:members-soon
	}
	return Patience
}

// longest is how long a query of a client lasts that has a configuration. While some of the
// nodes have the next record, the others may get it at any moment.
func (m *Machine) longest() time.Duration {
	if m.ahead {
		return max(Pause, m.lease) //plant:members-goes-on
	}
	return Pause
}

// Query queries the nodes. A client calls it when it starts, and when a node shows it
// another configuration. Query does nothing while a query is under way, and for Pause
// after the start of the last one if the client has a configuration.
func (m *Machine) Query(now wire.Now, out *Out) {
	if m.query != nil || m.own != nil && now.Mono-m.began < Pause {
		return
	}
	m.start(now, out)
}

// QueryNow queries the nodes at once: a node has shown a configuration that the client has not
// seen before. It may be the next record, and locks that are held need the client to follow
// within their lease (E16). The caller bounds how often that happens.
func (m *Machine) QueryNow(now wire.Now, out *Out) {
	if m.query != nil {
		m.ask(now, out)
		return
	}
	m.start(now, out)
}

func (m *Machine) start(now wire.Now, out *Out) {
	m.serial++
	m.query = NewQuery(m.prefix + "/" + strconv.Itoa(m.serial))
	m.began, m.enoughAt, m.enough, m.settling = now.Mono, now.Mono+Patience, false, false
	m.ahead = false
	if m.own != nil && !m.gone {
		m.gone, m.goneSince = true, now.Mono
	}
	m.ask(now, out)
}

func (m *Machine) ask(now wire.Now, out *Out) {
	out.Ask = m.query.Ask(now)
	m.askAt = now.Mono + m.again()
}

// Shown tells the machine that a node of the client's list has shown the client's
// configuration in an answer about a claim.
func (m *Machine) Shown() { m.gone = false }

// Hear processes a node's answer to info. It ignores answers to others' questions.
func (m *Machine) Hear(now wire.Now, a *wire.Answer, out *Out) {
	if m.query == nil || !m.query.Hear(now, a) {
		return
	}
	got := m.Membership(now)
	longest, agree := settle, 0
	for i := range got.Nodes {
		if got.Nodes[i].Conflict == "" {
			agree++
		}
		longest = max(longest, min(got.Nodes[i].RoundTrip, Patience))
	}
	if len(m.query.nodes) == 1 { // perhaps the other nodes are as far away
		m.enoughAt, m.enough = max(m.enoughAt, now.Mono+longest), false
	}
	if m.settling = len(got.Missing) == 0; m.settling {
		m.settleAt = now.Mono
		if agree < several {
			m.settleAt += longest //plant:members-settle
		}
	}
	for i := range got.Nodes {
		n := &got.Nodes[i]
		if m.own == nil || n.Conflict == WrongDigest || n.Conflict == Unlisted {
			continue
		}
		ahead := n.follows(m.own)
		if n.Digest == m.digest || ahead {
			m.gone = false
		}
		if ahead && !m.ahead {
			m.ahead = true
			m.askAt = min(m.askAt, now.Mono+m.again())
		}
	}
	if m.own != nil && got.Agreed && got.Config.Continues(m.own) {
		m.enoughAt = now.Mono // no other answer can matter //plant:members-at-once
	}
	m.conclude(now, out)
}

// follows reports whether the node's record continues this configuration.
func (n *Node) follows(own *wire.Config) bool {
	cfg := n.Config()
	return cfg.Continues(own)
}

// Tick does what is due: it concludes, ends or repeats a query.
func (m *Machine) Tick(now wire.Now, out *Out) {
	if m.query == nil {
		return
	}
	if m.conclude(now, out); m.query == nil {
		return
	}
	if m.own != nil && now.Mono-m.began >= m.longest() {
		m.query = nil // the next node that shows another configuration starts a new one
		return
	}
	if now.Mono >= m.askAt {
		m.ask(now, out)
	}
}

// Wait returns how long until Tick must be called, if no answer comes; ok is false if it
// need not be.
func (m *Machine) Wait(now wire.Now) (d time.Duration, ok bool) {
	if m.query == nil {
		return 0, false
	}
	at := m.askAt
	if !m.enough {
		at = min(at, m.enoughAt)
	}
	if m.settling {
		at = min(at, m.settleAt)
	}
	return max(at-now.Mono, 0), true
}

// conclude ends the query if it has found the configuration for the client.
func (m *Machine) conclude(now wire.Now, out *Out) {
	if now.Mono < m.enoughAt && (!m.settling || now.Mono < m.settleAt) {
		return
	}
	got := m.Membership(now)
	if !got.Agreed || m.ahead && got.Digest == m.digest {
		m.settling, m.enough = false, now.Mono >= m.enoughAt
		return
	}
	m.query = nil
	if m.own == nil || got.Digest != m.digest {
		m.own, m.digest, m.gone = got.Config, got.Digest, false
		out.Found, out.Trips = got.Config, map[string]time.Duration{}
		for i := range got.Nodes {
			out.Trips[got.Nodes[i].Name] = got.Nodes[i].RoundTrip
		}
	}
}

// Membership returns what the query under way has found so far. It is empty if there is
// none.
func (m *Machine) Membership(now wire.Now) Membership {
	if m.query == nil {
		return Membership{}
	}
	gone := m.gone && now.Mono-m.goneSince >= m.own.MaxTTL+wire.Margin(m.own.MaxTTL) //plant:members-gone
	return m.query.Membership(now, m.own, gone)
}
