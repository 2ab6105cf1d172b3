package qlock

import (
	"time"

	"github.com/qlock/qlock/internal/driver"
	"github.com/qlock/qlock/internal/natsio"
)

// LockerStats is what a Locker has and counted. Of the calls that asked for a lock
// each is Granted, Failed or still Waiting, and of those granted each is Held, Lost
// or Unlocked: what is returned is of one moment, so that the numbers add up. Calls
// that asked for nothing are in none of them: with an invalid name, a context that
// had ended, or after Close.
type LockerStats struct {
	Held    int `json:"held"`    // locks that are held now
	Waiting int `json:"waiting"` // calls that wait for one now
	Claims  int `json:"claims"`  // of this Locker at the nodes now: held, waiting, and kept by WithRetention

	// Since New. A lock that came in the moment when its caller gave up is granted
	// and unlocked, though its caller has the context's error.
	Granted  uint64         `json:"granted"`
	PassedOn uint64         `json:"passed_on"` // of those granted: without a claim of their own, from or beside another holder here, or kept
	Failed   LockerFailures `json:"failed"`
	Lost     uint64         `json:"lost"`     // with those that were evicted
	Unlocked uint64         `json:"unlocked"` // also by Close

	// Recalls is how often nodes said that others wait, and Yields how often that
	// made a waiting claim give a node's vote back to an older one: signs that
	// clients want the same locks at the same time.
	Recalls uint64 `json:"recalls"`
	Yields  uint64 `json:"yields"`

	// Copies is how often another process was found to send as this very Locker: a
	// snapshot of one that was started beside the other. What was held was lost then.
	Copies uint64 `json:"copies"`

	LogDropped uint64 `json:"log_dropped"` // log lines that the logger did not take in time

	Wait  WaitTimes       `json:"wait"`  // of the locks granted
	Nodes []NodeRoundTrip `json:"nodes"` // of the cluster, by name
}

// LockerFailures are calls that got no lock, by the reason in their LockError.
type LockerFailures struct {
	Held     uint64 `json:"held"`      // ErrHeld: also Lock, when its context ended while another held
	NoQuorum uint64 `json:"no_quorum"` // ErrNoQuorum: the context ended, and too few nodes had answered
	Refused  uint64 `json:"refused"`   // ErrRefused: by the nodes, or by NATS
	Evicted  uint64 `json:"evicted"`   // ErrEvicted
	Closed   uint64 `json:"closed"`    // ErrClosed: the Locker or the connection, while it waited
}

// WaitTimes is a histogram of the time from asking for a lock to holding it.
type WaitTimes struct {
	Count   uint64        `json:"count"`
	Sum     time.Duration `json:"sum_ns"`
	Buckets []WaitBucket  `json:"buckets"` // by their bounds, which are the same in every version
}

// WaitBucket counts the waits up to a bound, with those of the buckets before. The
// bounds are 100 µs, 250 µs, 500 µs, 1 ms and so on to 10 s, then 30 s and 60 s;
// longer waits are in Count only.
type WaitBucket struct {
	UpTo  time.Duration `json:"up_to_ns"`
	Count uint64        `json:"count"`
}

// NodeRoundTrip is how a node answers this Locker.
type NodeRoundTrip struct {
	Node string `json:"node"`

	// RoundTrip is the time from sending a request to the node's answer to it, and
	// not to a vote that had to be waited for: mean of about the last five seconds
	// in which the Locker asked anything. 0 if the node never answered.
	RoundTrip time.Duration `json:"round_trip_ns"`

	// LastHeard is when the node last answered; zero: never. A Locker without locks
	// asks nothing and hears nothing; one with locks hears every node at least every
	// third of its lease.
	LastHeard time.Time `json:"last_heard,omitzero"`
}

// NodeState is where a node is in its life.
type NodeState string

const (
	NodeProbing    NodeState = "probing"    // it listens for another node of its name
	NodeRecovering NodeState = "recovering" // it may have forgotten votes, and gives none yet
	NodeVoting     NodeState = "voting"
	NodeStopped    NodeState = "stopped"
)

// NodeStats is what a node has and counted.
type NodeStats struct {
	State      NodeState     `json:"state"`
	Started    time.Time     `json:"started"`       // when StartNode was called, by this node's clock
	Recovering time.Duration `json:"recovering_ns"` // how long it will still give no votes

	Claims    int `json:"claims"`    // held and waiting
	Waiting   int `json:"waiting"`   // of these, those without this node's vote
	Resources int `json:"resources"` // names with claims
	Clients   int `json:"clients"`   // client names with claims

	// TokensAhead is how far the highest token that the node gave lies ahead of its
	// clock: at most MaxLease, and mostly nothing, unless that clock was set back.
	TokensAhead time.Duration `json:"tokens_ahead_ns"`

	// Since the start.
	Requests      uint64       `json:"requests"`
	Malformed     uint64       `json:"malformed"`      // of these ignored, because nobody could make sense of them
	Granted       uint64       `json:"granted"`        // votes given
	Refused       NodeRefusals `json:"refused"`        // claims
	Recalls       uint64       `json:"recalls"`        // messages to clients that others wait for what they have
	LeasesExpired uint64       `json:"leases_expired"` // claims, held or waiting, whose client fell silent
	Evicted       uint64       `json:"evicted"`        // claims that somebody wanted to end: Locker.Evict
	LogDropped    uint64       `json:"log_dropped"`    // log lines that the logger did not take in time
}

// NodeRefusals are claims that a node refused, by the reason.
type NodeRefusals struct {
	Config uint64 `json:"config"` // the client knows another configuration
	Lease  uint64 `json:"lease"`  // longer than MaxLease
	Age    uint64 `json:"age"`    // the client's clock is ahead by more than MaxSkew
	Fence  uint64 `json:"fence"`  // a token was wanted further ahead than clocks within bounds explain
	Claims uint64 `json:"claims"` // the client has MaxClaims
	Queue  uint64 `json:"queue"`  // MaxQueue wait for the name
	Copy   uint64 `json:"copy"`   // two clients send as one instance: see LockerStats.Copies
}

// Stats tells what the Locker has and counted. It takes the Locker's lock for about
// a microsecond, and may be called as often as one likes, also after Close: then
// the counts stay as they are.
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

// Stats tells what the node has and counted.
func (n *Node) Stats() NodeStats { return nodeStats(n.node.Stats(), n.log) }

func nodeStats(s driver.NodeStats, log *natsio.Log) NodeStats {
	return NodeStats{
		State: NodeState(s.State), Started: s.Started.Round(0), Recovering: s.Recovering,
		Claims: s.Claims, Waiting: s.Waiting, Resources: s.Resources, Clients: s.Clients,
		TokensAhead: s.Ahead, Requests: s.Requests, Malformed: s.Malformed,
		Granted: s.Counts.Granted, Refused: NodeRefusals(s.Counts.Refused), Recalls: s.Counts.Recalls,
		LeasesExpired: s.Counts.Expired, Evicted: s.Counts.Evicted, LogDropped: log.Dropped(),
	}
}
