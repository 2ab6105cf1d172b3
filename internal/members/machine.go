package members

import (
	"strconv"
	"time"

	"github.com/qlock/qlock/internal/wire"
)

const (
	// Patience is how long all nodes may take to answer before it is enough that a
	// configuration is agreed on by those that did (M4). The question is repeated as often.
	Patience = 250 * time.Millisecond

	// settle is the least time for which nodes are waited for that nobody has named yet,
	// after all those that were named have answered, if they are fewer than several: who is
	// heard first may be the one node that was told a list of its own. Several of them that
	// agree are a cluster, and a client need not begin later because of them.
	settle  = 10 * time.Millisecond
	several = 3

	// Pause is the least time from the beginning of one query of a client that has a
	// configuration to that of the next, and how long one goes on.
	Pause = time.Second
)

// Out is what a step of the machine wants.
type Out struct {
	Ask   string                   // ask all nodes with this nonce; "": do not
	Found *wire.Config             // count by this from now on, nil: no change
	Trips map[string]time.Duration // with Found: how long the answers of nodes took
}

// Machine knows the configuration that a client counts by, and asks the nodes for it.
type Machine struct {
	prefix string
	serial int

	own    *wire.Config // nil: it has none yet
	digest string       // own's

	query    *Query        // nil: none is under way
	began    time.Duration // the query, on the monotonic clock
	askAt    time.Duration // when the question is repeated
	enoughAt time.Duration // when those suffice that have answered
	enough   bool          // it was looked at then
	settleAt time.Duration // when they do if nobody that they name is missing
	settling bool          // nobody is, and it was not looked at then

	// Since the query that began at goneSince no node of the configuration has shown it,
	// neither in a query nor in what it said about a claim.
	gone      bool
	goneSince time.Duration
}

// New makes a machine for a client that has no configuration yet. Its nonces begin with
// prefix, which nobody else's may.
func New(prefix string) *Machine { return &Machine{prefix: prefix} }

// Query asks the nodes: as the client begins, and when a node has shown it another
// configuration. While a query is under way, and soon after one, it does nothing.
func (m *Machine) Query(now wire.Now, out *Out) {
	if m.query != nil || m.own != nil && now.Mono-m.began < Pause {
		return
	}
	m.serial++
	m.query = NewQuery(m.prefix + "/" + strconv.Itoa(m.serial))
	m.began, m.enoughAt, m.enough, m.settling = now.Mono, now.Mono+Patience, false, false
	if m.own != nil && !m.gone {
		m.gone, m.goneSince = true, now.Mono
	}
	m.ask(now, out)
}

func (m *Machine) ask(now wire.Now, out *Out) {
	out.Ask = m.query.Ask(now)
	m.askAt = now.Mono + Patience
}

// Shown tells the machine that a node of the client's list has shown the client's
// configuration in an answer about a claim.
func (m *Machine) Shown() { m.gone = false }

// Hear takes a node's answer to info, whoever asked for it.
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
	if len(m.query.nodes) == 1 { // others are as far away, perhaps
		m.enoughAt, m.enough = max(m.enoughAt, now.Mono+longest), false
	}
	if m.settling = len(got.Missing) == 0; m.settling {
		m.settleAt = now.Mono
		if agree < several {
			m.settleAt += longest //plant:members-settle
		}
	}
	for i := range got.Nodes {
		if n := &got.Nodes[i]; m.own != nil && n.Digest == m.digest && n.Conflict != WrongDigest && n.Conflict != Unlisted {
			m.gone = false
		}
	}
	m.conclude(now, out)
}

// Tick does what time alone brings.
func (m *Machine) Tick(now wire.Now, out *Out) {
	if m.query == nil {
		return
	}
	if m.conclude(now, out); m.query == nil {
		return
	}
	if m.own != nil && now.Mono-m.began >= Pause {
		m.query = nil // the next node that shows another configuration makes it ask again
		return
	}
	if now.Mono >= m.askAt {
		m.ask(now, out)
	}
}

// Wait is how long nothing has to be done without an answer; ok is false if that is for
// ever.
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

// conclude ends the query if it has found what the client is to count by.
func (m *Machine) conclude(now wire.Now, out *Out) {
	if now.Mono < m.enoughAt && (!m.settling || now.Mono < m.settleAt) {
		return
	}
	got := m.Membership(now)
	if !got.Agreed {
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

// Membership is what the query under way has found so far.
func (m *Machine) Membership(now wire.Now) Membership {
	if m.query == nil {
		return Membership{}
	}
	gone := m.gone && now.Mono-m.goneSince >= m.own.MaxTTL+wire.Margin(m.own.MaxTTL) //plant:members-gone
	return m.query.Membership(now, m.own, gone)
}
