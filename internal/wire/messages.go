// Package wire defines qlock's messages, their limits, and their JSON form.
//
// The message structs are what the machines of packages node and client consume
// and produce; the codec stands between them and NATS. docs/protocol.md says what
// each message means, docs/wire.md what it looks like.
package wire

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/printable"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/subject"
)

// Limits that every reader of a message may rely on after decoding.
const (
	MaxInt   = 1<<53 - 1 // largest integer on the wire: what a float64 holds exactly, so that every JSON library reads it
	MaxNodes = 64        // nodes in a cluster
	MaxRuns  = 8192      // runs of claims in one refresh or its answer
	MaxBody  = 1 << 20   // bytes of a refresh or an answer
	MaxShort = 8 << 10   // bytes of any other request, so that refusing a large one costs a node nothing
	MaxText  = 512       // bytes of a refusal's text, a nonce or a version
	MaxNote  = 256       // bytes of a note
	MaxSpan  = 1 << 16   // fences of one claim at a time
	MaxOver  = 32        // claims in a question whether they are over, and in its answer
	MinLease = 10 * time.Millisecond
	MaxLease = 24 * time.Hour
	MaxToken = subject.MaxToken // bytes of a name of a client or node
)

// Now is one reading of a machine's two clocks. The core never reads a clock
// itself: time is an argument.
type Now struct {
	Mono time.Duration // monotonic, from any start
	Wall int64         // wall clock, microseconds since 1970

	// Boot is how long ago the machine was started, sleep included: a clock that
	// nobody sets. 0 where that is not known, and where it is not needed: it is
	// compared between two lives of a node alone (N8).
	Boot time.Duration
}

// ClaimID names one attempt by one client on one resource, for ever.
type ClaimID struct {
	Instance uuid.UUID
	Seq      uint64
}

func (id ClaimID) String() string { return fmt.Sprintf("%.8s/%d", id.Instance, id.Seq) }

// Text is the whole id, and ParseClaimID reads it.
func (id ClaimID) Text() string { return fmt.Sprintf("%s/%d", id.Instance, id.Seq) }

// ParseClaimID is the inverse of Text.
func ParseClaimID(s string) (ClaimID, error) {
	instance, seq, _ := strings.Cut(s, "/")
	var id ClaimID
	var err1, err2 error
	id.Instance, err1 = uuid.Parse(instance)
	id.Seq, err2 = strconv.ParseUint(seq, 10, 64)
	if err1 != nil || err2 != nil || id.Seq == 0 || id.Seq > MaxInt || id.Text() != s {
		return ClaimID{}, fmt.Errorf("%s is not the id of a claim: use a UUID, a slash and a number", printable.Quote(s))
	}
	return id, nil
}

// Compare breaks ties of age.
func (id ClaimID) Compare(other ClaimID) int {
	if c := slices.Compare(id.Instance[:], other.Instance[:]); c != 0 {
		return c
	}
	return cmp.Compare(id.Seq, other.Seq)
}

// Run is a run of consecutive claims of one instance, both ends included.
type Run struct{ Lo, Hi uint64 }

// RunsIn is how many runs fit into a refresh, or its answer, of so many bytes.
func RunsIn(bytes int) int {
	const perRun, rest = 2*16 + 4, 1024 // two numbers below 2^53, and the other fields
	return max(2, min((min(bytes, MaxBody)-rest)/perRun, MaxRuns))
}

// Runs is a sorted list of runs that neither touch nor overlap.
type Runs []Run

// Add appends seq, which must be above all that the list holds.
func (r Runs) Add(seq uint64) Runs {
	if n := len(r); n > 0 && r[n-1].Hi+1 == seq {
		r[n-1].Hi = seq
		return r
	}
	return append(r, Run{seq, seq})
}

// Has reports whether seq is in the list.
func (r Runs) Has(seq uint64) bool {
	i, ok := slices.BinarySearchFunc(r, seq, func(run Run, seq uint64) int {
		switch {
		case run.Hi < seq:
			return -1
		case run.Lo > seq:
			return 1
		}
		return 0
	})
	return ok && i < len(r)
}

// Cut divides the list after hi.
func (r Runs) Cut(hi uint64) (upTo, after Runs) {
	i := 0
	for i < len(r) && r[i].Hi <= hi {
		i++
	}
	if i == len(r) || r[i].Lo > hi {
		return r[:i:i], r[i:]
	}
	upTo = append(r[:i:i], Run{r[i].Lo, hi})
	return upTo, append(Runs{{hi + 1, r[i].Hi}}, r[i+1:]...)
}

// Len counts the claims in the list.
func (r Runs) Len() uint64 {
	var n uint64
	for _, run := range r {
		n += run.Hi - run.Lo + 1
	}
	return n
}

// Verb is what a request asks for; it stands in the subject.
type Verb string

const (
	Acquire Verb = subject.Acquire
	Release Verb = subject.Release
	Yield   Verb = subject.Yield
	Refresh Verb = subject.Refresh
	Info    Verb = subject.Info
	List    Verb = subject.List
	Inspect Verb = subject.Inspect
	Evict   Verb = subject.Evict
)

// Request is a message to the nodes. Client and Resource come from the subject,
// which is what NATS permissions guard, never from the body.
type Request struct {
	Verb     Verb
	Client   string
	Resource string
	Claim    ClaimID // refresh: only its Instance
	SentAt   uint64

	// Acquire
	Mode           quorum.Mode
	At             int64         // age: the client's wall clock when the claim was made, µs
	TTL            time.Duration // lease, whole milliseconds on the wire
	MinFence       uint64        // fence wanted, 0 for none
	Held           bool          // the claim is held by votes of other nodes
	Try            bool          // its client wants to know at once when another is in the way
	SuppressQueued bool          // a claim that is new and has to wait need not be told so
	Check          bool          // the nodes contradict each other: what is in its way may be over
	Keep           bool          // its client keeps the claim between holders: it wants to know when others wait
	RangeSize      uint64        // with Keep: how many fences it wants from the first on, for those holders
	Digest         string        // configuration that the client knows
	Note           string        // what its client says of the claim, for people

	Node string // acquire, yield, list, inspect: only this node is meant (empty: all); info: whose name is probed

	Now int64 // release: the client's wall clock, µs

	// Refresh: of all claims from Lo to Hi, those in Live live.
	Lo, Hi uint64
	Live   Runs

	Nonce string // info, list, inspect, evict: comes back in the answer

	After  uint64 // list, inspect: go on behind this number of an answer
	Query  string // list: the names that match; evict: why
	Holder string // evict: the claim's client

	// Info
	Incarnation uuid.UUID // of a node that asks after its own name
	Started     int64
	Voted       bool
	Stopped     bool      // it gave the name up, and votes no more
	Over        []ClaimOf // of a node that asks which of these are over; with Digest
	Recalled    []ClaimOf // and these too, which have its vote and do not answer its recall
}

// ClaimOf is a claim of a client. What two clients call by one id are two claims.
type ClaimOf struct {
	Client string
	Claim  ClaimID
}

// YieldOf is a yield to another node, passed on.
type YieldOf struct {
	ClaimOf
	SentAt uint64 // of the yield
}

// Kind is what an answer says.
type Kind string

const (
	Granted   Kind = "granted"
	Queued    Kind = "queued"
	Refused   Kind = "refused"
	Recall    Kind = "recall"
	Refreshed Kind = "refreshed"
	Informed  Kind = "info"
	Listed    Kind = "listed"
	Evicting  Kind = "evicting" // to who wants a claim evicted
	Evicted   Kind = "evicted"  // to whose claim it is
	Over      Kind = "over"     // to a node: these claims are over
)

// Answer is a message from a node to a client.
type Answer struct {
	Kind        Kind
	Node        string
	Incarnation uuid.UUID
	Digest      string
	Client      string // whose request it answers, as the subject said: votes for another name do not count

	Claim     ClaimID // refreshed: only its Instance
	SentAt    uint64
	Fence     uint64 // granted
	RangeSize uint64 // granted: how many fences from that on are the claim's; 0 is 1
	Most      uint64 // granted: a higher fence was wanted than the node gives, which is so much; 0: none was

	Behind bool // granted, recall: of a claim that is kept, that others wait for it
	Late   bool // granted: the claim had to wait, and was not told so

	Place      int           // queued: claims before this one
	Again      int           // queued, of a try: how often it was told since it asked, as what is in its way changed
	Blocker    *Blocker      // queued: who stands in the way, nil if nobody does (the node is recovering)
	Recovering time.Duration // queued, info, listed, evicting: how long the node will give no votes

	Reason    Reason // refused
	Text      string // refused, evicted: the reason in words
	Retryable bool   // refused: asking again later may succeed

	By string // evicted: the client that asked for it

	// Granted to a claim that is held, refreshed: the lives of the node whose memory it
	// has, within a lease of its start; its own is not among them.
	Continues []uuid.UUID

	// Refreshed: of the claims listed between Lo and Hi these have no vote of the node.
	Lo, Hi  uint64
	Waiting Runs // queued
	Unknown Runs // not known at all

	Info *NodeInfo // info

	For string // recall: the node that wants its vote back, if not the one that says so

	Over    []ClaimOf // over
	Yielded []YieldOf // over: these are not, but gave the asking node's vote back

	Nonce string // listed, evicting
	Known bool   // evicting: the node has the claim yet
	List  *Page  // listed
}

// Page is a part of what a node has: of all locks, or of the claims on one.
type Page struct {
	After uint64 // as asked
	Next  uint64 // to go on after, 0 if this was the last page
	Locks []Record
}

// Record is what a node has on one name.
type Record struct {
	Name    string
	Votes   int           // claims that have the node's vote
	Waiting int           // claims that have not
	Claims  []ClaimRecord // some of them, votes first, and then in the order of the queue
}

// ClaimRecord is a claim as a node has it.
type ClaimRecord struct {
	Claim   ClaimID
	Client  string
	Mode    quorum.Mode
	At      int64 // age, µs
	Note    string
	Voted   bool
	Fence   uint64 // of the vote
	Token   uint64 // with which its client holds it, as it said; 0: it has not said that it does
	Kept    bool
	Evicted bool
	For     time.Duration // since it has its vote, or its place
	Lease   time.Duration // what is left
}

// Reason is why a node refused.
type Reason string

const (
	ReasonLease  Reason = "lease"  // lease longer than the cluster allows
	ReasonConfig Reason = "config" // the client knows another configuration
	ReasonAge    Reason = "age"    // claim made too far in the future
	ReasonFence  Reason = "fence"  // fence wanted is beyond what any clock within bounds explains
	ReasonClaims Reason = "claims" // too many claims of this client
	ReasonQueue  Reason = "queue"  // too many claims wait for this resource
	ReasonCopy   Reason = "copy"   // another client sends as the same instance
)

// Blocker is the claim that keeps another from a node's vote.
type Blocker struct {
	Claim  ClaimID
	Client string
	Mode   quorum.Mode
	Voted  bool          // it has the vote; otherwise it waits
	Ahead  bool          // it goes first, being older or held, and will not be asked to yield
	For    time.Duration // since when, by the node's clock
}

// State is what a node can do.
type State string

const (
	Probing    State = "probing"    // asking whether another node has its name; no votes
	Recovering State = "recovering" // may have forgotten votes; no votes until they have run out
	Voting     State = "voting"
	Stopped    State = "stopped" // another node has its name
)

// NodeInfo is what a node says of itself.
type NodeInfo struct {
	Nonce   string
	Nodes   []string
	MaxTTL  time.Duration
	Skew    time.Duration
	State   State
	Started int64         // wall clock at its start, µs
	Now     int64         // and as it answered
	Voted   bool          // it gave a vote, or may have
	Longest time.Duration // lease that it knows to have been allowed, if that is longer than MaxTTL
	Claims  int
	Version string
	Ahead   time.Duration // of its clock lies the highest fence that it gave
}

// Config is what all nodes of a cluster must agree on.
type Config struct {
	Nodes  []string      // names, sorted
	MaxTTL time.Duration // longest lease
	Skew   time.Duration // how far in the future a claim's age may lie
}

// Digest names the configuration. Votes count only among equals: two nodes with
// different lists may each be right about what a majority is.
func (c Config) Digest() string {
	h := sha256.New()
	fmt.Fprintf(h, "qlock 1\n%d\n%d\n", c.MaxTTL.Milliseconds(), c.Skew.Milliseconds())
	nodes := slices.Sorted(slices.Values(c.Nodes))
	for _, n := range nodes {
		fmt.Fprintf(h, "%s\n", n)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Margin is what a client subtracts from a lease, and a recovering node adds to
// the longest one, for clocks that do not run at the same rate (C1, N8): two
// per cent, so that two rates may each be off by one.
func Margin(lease time.Duration) time.Duration { return lease / 50 } //plant:margin
