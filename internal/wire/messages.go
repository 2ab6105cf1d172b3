// Package wire defines qlock's messages, their limits, and their JSON form.
//
// The message structs are what the machines of packages voter and client consume and
// produce. The codec converts between these structs and the bodies of NATS messages.
// docs/protocol.md specifies the meaning of each message, and docs/wire.md its form.
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

// Limits that hold for every decoded message.
const (
	// MaxInt is the largest integer on the wire. A float64 represents it exactly, so every JSON
	// library reads it.
	MaxInt   = 1<<53 - 1
	MaxNodes = 64      // nodes in a cluster
	MaxRuns  = 8192    // runs of claims in one refresh or its answer
	MaxBody  = 1 << 20 // bytes of a refresh or an answer
	MaxShort = 8 << 10 // bytes of any other request: rejecting a large one costs a node nothing
	// MaxConfig is the same for config: two lists of MaxNodes nodes with the longest names, and
	// their history, fit into it.
	MaxConfig = 32 << 10
	MaxText   = 512     // bytes of a refusal's text, a nonce or a version
	MaxNote   = 256     // bytes of a note
	MaxSpan   = 1 << 16 // fences that one claim may reserve at a time
	MaxOver   = 32      // claims in a question whether they are over, and in its answer
	MinLease  = 10 * time.Millisecond
	MaxLease  = 24 * time.Hour
	MaxToken  = subject.MaxToken // bytes of the name of a client or node
)

// Now is one reading of a machine's two clocks. The core never reads a clock itself: time
// is an argument.
type Now struct {
	Mono time.Duration // monotonic clock, from an arbitrary start
	Wall int64         // wall clock, µs since 1970

	// Boot is the time since the machine was started, including sleep; nobody can set this
	// clock. It is 0 where it is not known. It is also 0 where it is not needed: only two lives
	// of a node are compared by it (N8).
	Boot time.Duration
}

// ClaimID identifies one attempt of one client to lock one resource. It is never reused.
type ClaimID struct {
	Instance uuid.UUID
	Seq      uint64
}

// String returns a short form of the id for logs. It may be ambiguous; see Text.
func (id ClaimID) String() string { return fmt.Sprintf("%.8s/%d", id.Instance, id.Seq) }

// Text returns the complete id in the form that ParseClaimID reads.
func (id ClaimID) Text() string { return fmt.Sprintf("%s/%d", id.Instance, id.Seq) }

// ParseClaimID is the inverse of Text. It returns an error if s is not such an id.
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

// Compare orders the ids of claims that have the same age. It returns -1, 0 or 1.
func (id ClaimID) Compare(other ClaimID) int {
	if c := slices.Compare(id.Instance[:], other.Instance[:]); c != 0 {
		return c
	}
	return cmp.Compare(id.Seq, other.Seq)
}

// Run is a run of consecutive claims of one instance, with both ends included.
type Run struct{ Lo, Hi uint64 }

// RunsIn returns how many runs fit into a refresh, or the answer to one, of so many bytes.
// It returns 2 at least and MaxRuns at most.
func RunsIn(bytes int) int {
	const perRun, rest = 2*16 + 4, 1024 // two numbers below 2^53, and the other fields
	return max(2, min((min(bytes, MaxBody)-rest)/perRun, MaxRuns))
}

// Runs is a sorted list of runs that neither touch nor overlap.
type Runs []Run

// Add appends seq, which must be greater than every number in the list.
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

// Cut divides the list into the numbers up to hi and those after it.
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

// Len returns the number of claims in the list.
func (r Runs) Len() uint64 {
	var n uint64
	for _, run := range r {
		n += run.Hi - run.Lo + 1
	}
	return n
}

// Verb is the operation that a request asks for. It is part of the subject.
type Verb string

// The verbs. docs/protocol.md specifies the requests.
const (
	Acquire Verb = subject.Acquire
	Release Verb = subject.Release
	Yield   Verb = subject.Yield
	Refresh Verb = subject.Refresh
	Info    Verb = subject.Info
	List    Verb = subject.List
	Inspect Verb = subject.Inspect
	Evict   Verb = subject.Evict

	Configure Verb = subject.Config
)

// Request is a message to the nodes. Client and Resource come from the subject, which NATS
// permissions guard, and never from the body.
type Request struct {
	Verb     Verb
	Client   string
	Resource string
	Claim    ClaimID // refresh: only its Instance
	SentAt   uint64

	// Acquire
	Mode           quorum.Mode
	At             int64         // age: the client's wall clock at its making, µs since 1970
	TTL            time.Duration // lease, in whole milliseconds on the wire
	MinFence       uint64        // lowest fence wanted; 0: none
	Token          uint64        // with Held: token of the present holder; 0: MinFence
	Held           bool          // the claim is held by the votes of other nodes
	Try            bool          // the client wants to know at once if another claim is in the way
	SuppressQueued bool          // the node need not tell a new claim that it has to wait
	Check          bool          // nodes contradict each other: what is in the way may be over
	// Keep means that the client keeps the claim between holders, and wants to know when others
	// wait.
	Keep      bool
	RangeSize uint64 // with Keep: number of consecutive fences wanted, for those holders
	Digest    string // digest of the configuration that the client knows
	Note      string // the client's description of the claim, for people

	// Node is, in acquire, yield, list and inspect, the only node that is meant (empty: all). In
	// info, it is the node whose name is probed.
	Node string

	Now int64 // release: the client's wall clock, µs since 1970

	// Refresh: of all claims from Lo to Hi, exactly those in Live are live.
	Lo, Hi uint64
	Live   Runs

	Nonce string // info, list, inspect, evict, config: the answer repeats it

	After  uint64 // list, inspect: continue after this number, which an answer gave
	Query  string // list: pattern of the names; evict: the reason
	Holder string // evict: the claim's client

	// Info
	Incarnation uuid.UUID // of a node that probes its own name
	Started     int64
	Voted       bool
	Stopped     bool // the node gave up its name, and votes no more
	// Over, with Digest, is a node's question which of these claims are over.
	Over []ClaimOf
	// Recalled is the same question about claims that have the node's vote and do not answer its
	// recall.
	Recalled []ClaimOf
	// ShowConfig asks nodes to say which record they have. Those whose record has an epoch
	// above Epoch add it.
	ShowConfig bool
	Epoch      uint64

	Step *Step // config
}

// ClaimOf identifies a claim together with its client. If two clients use the same id,
// these are two claims.
type ClaimOf struct {
	Client string
	Claim  ClaimID
}

// YieldOf is a yield to another node that is passed on.
type YieldOf struct {
	ClaimOf
	SentAt uint64 // when the yield was sent
}

// Kind is the kind of an answer.
type Kind string

// The kinds of answers. docs/protocol.md specifies them.
const (
	Granted   Kind = "granted"
	Queued    Kind = "queued"
	Refused   Kind = "refused"
	Recall    Kind = "recall"
	Refreshed Kind = "refreshed"
	Informed  Kind = "info"
	Listed    Kind = "listed"
	Evicting  Kind = "evicting" // to the client that asked for an eviction
	Evicted   Kind = "evicted"  // to the client whose claim was evicted
	Over      Kind = "over"     // to a node: these claims are over

	Configured Kind = "config"
)

// Answer is a message from a node to a client.
type Answer struct {
	Kind        Kind
	Node        string
	Incarnation uuid.UUID
	Digest      string
	// Client is the client of the request, from the subject. Votes for another name do not
	// count.
	Client string

	Claim     ClaimID // refreshed: only its Instance
	SentAt    uint64
	Fence     uint64 // granted
	RangeSize uint64 // granted: number of the claim's fences, from Fence on; 0 means 1
	// Most is, in granted, the highest fence that the node gives, if the client wanted a higher
	// one, and else 0.
	Most uint64

	Behind bool // granted, recall of a claim that is kept: others wait for it
	Late   bool // granted: the claim had to wait, and the node did not tell it so

	Place int // queued: the number of claims before this one
	// Again is, in queued for a try, how often the node told the try, since it asked, that what
	// is in its way changed.
	Again      int
	Blocker    *Blocker      // queued: the claim in the way; nil if none is (node recovering)
	Recovering time.Duration // queued, info, listed, evicting: how long the node will give no votes

	Reason    Reason // refused
	Text      string // refused, evicted: the reason in words
	Retryable bool   // refused: a later attempt may succeed

	By string // evicted: the client that asked for it

	// Granted to a claim that is held, refreshed: the earlier lives of the node whose memory it
	// has, within a lease of its start. The current life is not among them.
	Continues []uuid.UUID

	// Refreshed: of the claims listed between Lo and Hi, these do not have the node's vote.
	Lo, Hi  uint64
	Waiting Runs // queued
	Unknown Runs // not known at all

	Info *NodeInfo // info

	For string // recall: the node that wants its vote back, if not the sender

	Over    []ClaimOf // over
	Yielded []YieldOf // over: these claims are not over, but gave the asking node's vote back

	Nonce string // listed, evicting, config
	Known bool   // evicting: the node still has the claim
	List  *Page  // listed

	Step *StepAnswer // config
}

// Page is a part of a node's list of all locks, or of the claims on one lock.
type Page struct {
	After uint64 // from the request
	Next  uint64 // the number to continue after; 0 if this is the last page
	Locks []Record
}

// Record is what a node knows about one name.
type Record struct {
	Name    string
	Votes   int           // number of claims that have the node's vote
	Waiting int           // number of claims that wait for it
	Claims  []ClaimRecord // some of them: votes first, then the order of the queue
}

// ClaimRecord is a claim as a node knows it.
type ClaimRecord struct {
	Claim   ClaimID
	Client  string
	Mode    quorum.Mode
	At      int64 // age, µs since 1970
	Note    string
	Voted   bool
	Fence   uint64 // of the vote
	Token   uint64 // with which its client said that it holds the claim; 0: it has not said so
	Kept    bool
	Evicted bool
	For     time.Duration // how long it has had its vote, or its place in the queue
	Lease   time.Duration // remaining lease
}

// Reason is why a node refused a request.
type Reason string

// The reasons.
const (
	ReasonLease  Reason = "lease"  // the lease is longer than the cluster allows
	ReasonConfig Reason = "config" // the client knows another configuration
	ReasonAge    Reason = "age"    // the claim was made too far in the future
	ReasonFence  Reason = "fence"  // wanted fence is beyond what any clock within bounds explains
	ReasonClaims Reason = "claims" // this client has too many claims
	ReasonQueue  Reason = "queue"  // too many claims wait for this resource
	ReasonCopy   Reason = "copy"   // another client sends as the same instance
)

// Blocker is the claim that keeps another one from getting a node's vote.
type Blocker struct {
	Claim  ClaimID
	Client string
	Mode   quorum.Mode
	Voted  bool          // it has the vote; otherwise it waits
	Ahead  bool          // it goes first, being older or held, and will not be asked to yield
	For    time.Duration // how long it has had the vote or waited, by the node's clock
}

// State is the state of a node, which determines whether it votes.
type State string

// The states.
const (
	Probing    State = "probing"    // asking whether another node has its name; gives no votes
	Recovering State = "recovering" // may have forgotten votes; gives none until those have expired
	Voting     State = "voting"
	Stopped    State = "stopped" // another node has its name
	Joining    State = "joining" // no record names it yet; it knows no list
	Retired    State = "retired" // the record does not name it, or names another node of its name
)

// NodeInfo is what a node reports about itself.
type NodeInfo struct {
	Nonce   string
	Nodes   []string
	MaxTTL  time.Duration
	Skew    time.Duration
	State   State
	Started int64         // wall clock at its start, µs since 1970
	Now     int64         // wall clock at its answer, µs since 1970
	Voted   bool          // it has given a vote, or may have
	Longest time.Duration // the longest lease that it knows was allowed, if longer than MaxTTL
	Claims  int
	Version string
	Ahead   time.Duration // how far the highest fence that it gave is ahead of its clock
	Config  *NodeConfig   // if it was asked for, and the node knows about records
}

// Config is the configuration that all nodes of a cluster must agree on.
type Config struct {
	Nodes  []string      // names, sorted
	MaxTTL time.Duration // longest lease
	Skew   time.Duration // how far in the future a claim's age may be

	// Record is what the cluster has decided, nil at epoch 0. Nodes, MaxTTL and Skew then follow
	// from it, and Links is its history: see RecordConfig.
	Record *EpochRecord
	Links  []Link
}

// Digest identifies the configuration. Only votes of nodes with the same configuration
// count together: two nodes with different lists may each be right about what a majority
// is.
func (c Config) Digest() string {
	if c.Record != nil {
		return c.Record.Digest()
	}
	h := sha256.New()
	fmt.Fprintf(h, "qlock 1\n%d\n%d\n", c.MaxTTL.Milliseconds(), c.Skew.Milliseconds())
	nodes := slices.Sorted(slices.Values(c.Nodes))
	for _, n := range nodes {
		fmt.Fprintf(h, "%s\n", n)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Margin returns the allowance for clocks that do not run at the same rate (C1, N8). A
// client subtracts it from a lease, and a recovering node adds it to the longest one. It is
// two per cent, so that each of two rates may be off by one per cent.
func Margin(lease time.Duration) time.Duration { return lease / 50 } //plant:margin
