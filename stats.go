package qlock

import (
	"time"

	"github.com/qlock/qlock/internal/driver"
	"github.com/qlock/qlock/internal/natsio"
)

// LockerStats holds the current state and the counters of a Locker, all of one moment, so that the
// numbers add up. Each call that requested a lock is Granted, Failed or still Waiting. Each granted
// lock is Held, Lost or Unlocked. Calls that requested nothing are not counted: calls with an
// invalid name, with a context that had ended, or after Close.
type LockerStats struct {
	Held    int `json:"held"`    // locks that are held now
	Waiting int `json:"waiting"` // calls that wait for a lock now
	// Claims is the number of this Locker's claims at the nodes now: held, waiting, or kept by
	// WithRetention.
	Claims int `json:"claims"`

	// The numbers below count from New on. A lock that arrives at the moment when its caller gives
	// up counts as granted and unlocked, although the caller gets the context's error.
	Granted uint64 `json:"granted"`
	// PassedOn counts those granted locks that needed no claim of their own: they came from another
	// holder in this Locker, joined one, or came from a retained claim.
	PassedOn uint64         `json:"passed_on"`
	Failed   LockerFailures `json:"failed"`
	Lost     uint64         `json:"lost"`     // including those that were evicted
	Unlocked uint64         `json:"unlocked"` // including those that Close released

	// Recalls counts how often nodes reported that others wait. Yields counts how often a waiting
	// claim therefore returned a node's vote in favor of an older claim. Both show that clients
	// want the same locks at the same time.
	Recalls uint64 `json:"recalls"`
	Yields  uint64 `json:"yields"`

	// Copies counts how often another process was found to send as this same Locker, for example a
	// snapshot that was started beside the original. The locks that were held were lost then.
	Copies uint64 `json:"copies"`

	LogDropped uint64 `json:"log_dropped"` // log lines that the logger did not accept in time

	Wait  WaitTimes       `json:"wait"`  // of the granted locks
	Nodes []NodeRoundTrip `json:"nodes"` // of the cluster, sorted by name
}

// LockerFailures counts calls that got no lock, by the reason in their LockError.
type LockerFailures struct {
	Held     uint64 `json:"held"`      // ErrHeld; also Lock, if it ended while another held it
	NoQuorum uint64 `json:"no_quorum"` // ErrNoQuorum: the context ended, too few nodes had answered
	Refused  uint64 `json:"refused"`   // ErrRefused, by the nodes or by NATS
	Evicted  uint64 `json:"evicted"`   // ErrEvicted
	Closed   uint64 `json:"closed"`    // ErrClosed: the Locker or the connection, while it waited
}

// WaitTimes is a histogram of the time from the request for a lock to the grant.
type WaitTimes struct {
	Count   uint64        `json:"count"`
	Sum     time.Duration `json:"sum_ns"`
	Buckets []WaitBucket  `json:"buckets"` // sorted by bound; the same bounds in every version
}

// WaitBucket counts the waits up to a bound, including those of the lower buckets. The bounds are
// 100 µs, 250 µs, 500 µs, 1 ms and so on to 10 s, then 30 s and 60 s. Longer waits are in Count
// only.
type WaitBucket struct {
	UpTo  time.Duration `json:"up_to_ns"`
	Count uint64        `json:"count"`
}

// NodeRoundTrip describes how fast a node answers this Locker.
type NodeRoundTrip struct {
	Node string `json:"node"`

	// RoundTrip is the time from sending a request to the node's answer. It does not include
	// waiting for a vote. It is a mean over about the last five seconds in which the Locker sent
	// requests, or 0 if the node never answered.
	RoundTrip time.Duration `json:"round_trip_ns"`

	// LastHeard is the time of the node's last answer, or zero if it never answered. A Locker
	// without locks sends nothing and hears nothing. A Locker with locks hears every node at least
	// every third of its lease.
	LastHeard time.Time `json:"last_heard,omitzero"`
}

// NodeState is the state of a node.
type NodeState string

const (
	NodeProbing    NodeState = "probing"    // it listens for another node of its name
	NodeRecovering NodeState = "recovering" // it may have forgotten votes, and does not vote yet
	NodeVoting     NodeState = "voting"     // it votes
	NodeStopped    NodeState = "stopped"    // it no longer serves
	NodeJoining    NodeState = "joining"    // it waits for a change of the list that adds it
	NodeRetired    NodeState = "retired"    // the list does not have it any more: it can be stopped
)

// NodeStats holds the current state and the counters of a node.
type NodeStats struct {
	State      NodeState     `json:"state"`
	Started    time.Time     `json:"started"`       // when StartNode was called, by its own clock
	Recovering time.Duration `json:"recovering_ns"` // how much longer it does not vote

	Claims    int `json:"claims"`    // claims that are held or waiting
	Waiting   int `json:"waiting"`   // those of Claims that do not have this node's vote
	Resources int `json:"resources"` // names with claims
	Clients   int `json:"clients"`   // client names with claims

	// TokensAhead is how far the highest token that the node gave is ahead of the node's clock. It
	// is at most MaxLease, and mostly 0, unless that clock was set back.
	TokensAhead time.Duration `json:"tokens_ahead_ns"`

	// Epoch counts the decisions of the nodes about their list, as far as this node knows them: see
	// ClusterConfig.Epoch.
	Epoch uint64 `json:"epoch"`
	// Changing is for how long the list of nodes has been changing, as far as this node has seen it;
	// 0 if it is not. See package nodes.
	Changing time.Duration `json:"changing_ns"`
	// LongestLease is the longest lease that a claim at the node may have: the longest one that the
	// cluster allows, of the old or the new list while the list changes. It is 0 while the node is
	// joining.
	LongestLease time.Duration `json:"longest_lease_ns"`

	// The numbers below count from the start of the node on.
	Requests      uint64       `json:"requests"`
	Malformed     uint64       `json:"malformed"`      // those of Requests that were unreadable
	Granted       uint64       `json:"granted"`        // votes given
	Refused       NodeRefusals `json:"refused"`        // refused claims
	Recalls       uint64       `json:"recalls"`        // messages to clients that others wait
	LeasesExpired uint64       `json:"leases_expired"` // claims, held or waiting, of silent clients
	Evicted       uint64       `json:"evicted"`        // claims asked to end: Locker.Evict
	LogDropped    uint64       `json:"log_dropped"`    // lines that the logger was too slow for
}

// NodeRefusals counts the claims that a node refused, by reason.
type NodeRefusals struct {
	Config uint64 `json:"config"` // the client has another configuration
	Lease  uint64 `json:"lease"`  // the lease is longer than MaxLease
	Age    uint64 `json:"age"`    // the client's clock is ahead by more than MaxSkew
	Fence  uint64 `json:"fence"`  // the wanted token is further ahead than clocks in bounds explain
	Claims uint64 `json:"claims"` // the client has MaxClaims claims
	Queue  uint64 `json:"queue"`  // MaxQueue claims wait for the name
	Copy   uint64 `json:"copy"`   // two clients send as one instance: see LockerStats.Copies
}

// Stats returns the Locker's current state and counters. It holds the Locker's mutex for about a
// microsecond, so it may be called often. After Close the counters no longer change.
func (l *Locker) Stats() LockerStats {
	c := l.client.Stats()
	s := LockerStats{
		Held: c.Held, Waiting: c.Waiting, Claims: c.Claims,
		Granted: c.Granted, PassedOn: c.PassedOn, Failed: LockerFailures(c.Failed), Lost: c.Lost, Unlocked: c.Unlocked,
		Recalls: c.Machine.Recalls, Yields: c.Machine.Yields, Copies: c.Machine.Copies, LogDropped: l.log.Dropped(),
		Wait: WaitTimes{Count: c.Granted, Sum: c.Waited, Buckets: make([]WaitBucket, len(driver.WaitBounds))},
	}
	n := uint64(0)
	for i, bound := range driver.WaitBounds {
		n += c.Waits[i]
		s.Wait.Buckets[i] = WaitBucket{bound, n}
	}
	for _, t := range c.Trips {
		r := NodeRoundTrip{Node: t.Name, RoundTrip: t.RoundTrip}
		if t.Heard {
			r.LastHeard = c.At.Add(-t.Since).Round(0)
		}
		s.Nodes = append(s.Nodes, r)
	}
	return s
}

// Stats returns the node's current state and counters.
func (n *Node) Stats() NodeStats { return nodeStats(n.node.Stats(), n.log) }

func nodeStats(s driver.NodeStats, log *natsio.Log) NodeStats {
	return NodeStats{
		State: NodeState(s.State), Started: s.Started.Round(0), Recovering: s.Recovering,
		Claims: s.Claims, Waiting: s.Waiting, Resources: s.Resources, Clients: s.Clients,
		TokensAhead: s.Ahead, Epoch: s.Epoch, Changing: s.Changing, LongestLease: s.Longest, Requests: s.Requests, Malformed: s.Malformed,
		Granted: s.Counts.Granted, Refused: NodeRefusals(s.Counts.Refused), Recalls: s.Counts.Recalls,
		LeasesExpired: s.Counts.Expired, Evicted: s.Counts.Evicted, LogDropped: log.Dropped(),
	}
}
