package wire

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/printable"
	"github.com/qlock/qlock/internal/subject"
)

// MaxLinks is how many links of the history a node keeps and shows. A node that missed more
// decisions than that cannot tell whether a record continues its own.
const MaxLinks = 64

// digestLen is the length of a digest.
const digestLen = 16

// Member is a node in a record: its name, and the id in its state directory.
type Member struct {
	Name string
	ID   uuid.UUID
}

// EpochRecord is a decided or proposed configuration of a cluster whose list of nodes can change
// (rules E1 to E18 of docs/protocol.md). A cluster that never changed its list has no record
// but a Config, which counts as epoch 0.
//
// It is simple, with one list, or joint, with two: then a claim needs a quorum of each.
// Epochs alternate: those of joint records are even.
type EpochRecord struct {
	Cluster string    // the name
	CID     uuid.UUID // made with epoch 1: two clusters of one name differ in it
	Epoch   uint64    // from 1
	Prev    string    // digest of the record before, of epoch 1 that of the Config
	Floor   uint64    // no node gives a fence below this, nor an exclusive one at it
	Nodes   []Member  // sorted by name
	MaxTTL  time.Duration
	Skew    time.Duration

	// Of a joint record: the list that the cluster changes to, sorted by name, and what
	// belongs to it. Nil in a simple record.
	Next       []Member
	NextMaxTTL time.Duration
	NextSkew   time.Duration
}

// Joint reports whether the record has two lists.
func (r *EpochRecord) Joint() bool { return len(r.Next) > 0 }

// Lease is the longest lease that nodes grant under the record: one that both lists allow.
func (r *EpochRecord) Lease() time.Duration {
	if r.Joint() {
		return min(r.MaxTTL, r.NextMaxTTL) //plant:record-lease
	}
	return r.MaxTTL
}

// Longest is the longest lease that may stand under the record: waits go by it.
func (r *EpochRecord) Longest() time.Duration { return max(r.MaxTTL, r.NextMaxTTL) } //plant:record-longest

// AllowedSkew is how far in the future a claim's age may lie under the record.
func (r *EpochRecord) AllowedSkew() time.Duration {
	return min(max(r.Skew, r.NextSkew), r.Lease())
}

// Digest names the record, with its history: the record before is in it.
func (r *EpochRecord) Digest() string {
	b := fmt.Appendf(nil, "qlock 2\n%s\n%s\n%d\n%s\n%d\n", r.Cluster, r.CID, r.Epoch, r.Prev, r.Floor)
	b = appendList(b, r.Nodes, r.MaxTTL, r.Skew)
	if r.Joint() {
		b = appendList(b, r.Next, r.NextMaxTTL, r.NextSkew)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:digestLen/2])
}

// appendList says how many nodes follow, so that the two lists of a record cannot be taken
// for one.
func appendList(b []byte, list []Member, maxTTL, skew time.Duration) []byte {
	b = fmt.Appendf(b, "%d\n%d\n%d\n", maxTTL.Milliseconds(), skew.Milliseconds(), len(list))
	for _, m := range list {
		b = fmt.Appendf(b, "%s %s\n", m.Name, m.ID)
	}
	return b
}

// Check says what is wrong with a record by itself, whatever came before it.
func (r *EpochRecord) Check() error {
	if err := subject.CheckToken("cluster", r.Cluster); err != nil {
		return err
	}
	switch {
	case r.CID == uuid.Nil:
		return fmt.Errorf("the record has no cluster id")
	case r.Epoch < 1 || r.Epoch > MaxInt:
		return fmt.Errorf("epoch %d is not within 1 and %d", r.Epoch, uint64(MaxInt))
	case r.Floor > MaxInt:
		return fmt.Errorf("floor %d is above %d", r.Floor, uint64(MaxInt))
	case !isDigest(r.Prev):
		return fmt.Errorf("the digest of the record before, %s, is not %d lower-case hexadecimal digits", printable.Quote(r.Prev), digestLen)
	case r.Joint() != (r.Epoch%2 == 0):
		return fmt.Errorf("epoch %d: odd epochs have one list of nodes, even ones have two", r.Epoch)
	}
	if err := checkList(r.Nodes, r.MaxTTL, r.Skew); err != nil {
		return err
	}
	if !r.Joint() {
		if r.NextMaxTTL != 0 || r.NextSkew != 0 {
			return fmt.Errorf("the record has no second list, and a longest lease or a skew for one")
		}
		return nil
	}
	if err := checkList(r.Next, r.NextMaxTTL, r.NextSkew); err != nil {
		return fmt.Errorf("second list: %w", err)
	}
	// An id under two names would have two votes, and a name with two ids would be two nodes.
	for _, m := range r.Nodes {
		for _, o := range r.Next {
			if (m.Name == o.Name) != (m.ID == o.ID) {
				return fmt.Errorf("node %s of the first list and %s of the second one: a name that is in both must have one id, and an id one name", m.Name, o.Name)
			}
		}
	}
	return nil
}

func checkList(list []Member, maxTTL, skew time.Duration) error {
	switch {
	case len(list) < 1 || len(list) > MaxNodes:
		return fmt.Errorf("a list of %d nodes: 1 to %d are allowed", len(list), MaxNodes)
	case maxTTL < MinLease || maxTTL > MaxLease || maxTTL%time.Millisecond != 0:
		return fmt.Errorf("longest lease %v: it must be within %v and %v, in whole milliseconds", maxTTL, MinLease, MaxLease)
	case skew < time.Millisecond || skew > maxTTL || skew%time.Millisecond != 0:
		return fmt.Errorf("skew %v: it must be within 1ms and the longest lease (%v), in whole milliseconds", skew, maxTTL)
	}
	ids := map[uuid.UUID]bool{}
	for i, m := range list {
		if err := subject.CheckToken("node", m.Name); err != nil {
			return err
		}
		switch {
		case i > 0 && list[i-1].Name >= m.Name:
			return fmt.Errorf("node %s: the list is not sorted by name, or has a name twice", m.Name)
		case m.ID == uuid.Nil:
			return fmt.Errorf("node %s has no id", m.Name)
		case ids[m.ID]:
			return fmt.Errorf("node %s has the id of another node of the list: its state directory may be a copy", m.Name)
		}
		ids[m.ID] = true
	}
	return nil
}

func isDigest(s string) bool {
	if len(s) != digestLen {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Link is a decided record as the history shows it: number and digest.
type Link struct {
	Epoch  uint64
	Digest string
}

// Ballot numbers an attempt to decide the next record. Run is the random id of one run of
// the operator's command, so no two attempts have one ballot.
type Ballot struct {
	N   uint64
	Run uuid.UUID
}

// Compare orders ballots by number, then by run.
func (b Ballot) Compare(o Ballot) int {
	return cmp.Or(cmp.Compare(b.N, o.N), slices.Compare(b.Run[:], o.Run[:]))
}

// StepKind is what the operator's command asks nodes for.
type StepKind string

const (
	Prepare StepKind = "prepare" // promise to accept no lower ballot, and say what was accepted before
	Accept  StepKind = "accept"  // accept this record at this ballot
	Learn   StepKind = "learn"   // this record is decided
)

// Step is one message of the operator's command.
type Step struct {
	Kind   StepKind
	Node   string // only this node is meant; empty: all
	Epoch  uint64 // of the record that is to be decided, or was
	Prev   string // prepare: the digest of the record before it
	Ballot Ballot
	Record *EpochRecord // accept, learn
	Links  []Link       // learn: those before the record, the latest last
}

// Why is the reason for which a node refuses a step.
type Why string

const (
	WhyNone     Why = ""
	WhyPromised Why = "promised" // to a higher ballot, which is in the answer
	WhyEpoch    Why = "epoch"    // the node has another record than the one that this would follow
	WhyMember   Why = "member"   // it is not among those that decide
	WhyVotes    Why = "votes"    // it does not vote now: it may have forgotten something
	WhyEarly    Why = "early"    // old votes may still be valid; the answer has the time left
	WhyInvalid  Why = "invalid"  // the record may not follow the node's own
	WhyNoID     Why = "id"       // the node has no state directory, and so no id
	WhyHistory  Why = "history"  // the record does not continue the node's own, or it is another cluster's
)

// StepAnswer is a node's answer to a step.
type StepAnswer struct {
	Kind     StepKind
	ID       uuid.UUID     // the node's
	Epoch    uint64        // of the record that the node has now
	Ballot   Ballot        // prepare, accept: as asked; refused as promised: the higher one
	Why      Why           // WhyNone: it did what was asked
	Left     time.Duration // prepare: for how long it does not accept an end of the joint record; refused as early: the same
	Accepted Ballot        // prepare: the ballot and record that it accepted before, if any
	Record   *EpochRecord
	Floor    uint64 // prepare: the highest fence that it may have given for any name
}
