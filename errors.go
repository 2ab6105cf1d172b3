package qlock

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/driver"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/subject"
)

// These are the errors of this package, for errors.Is. If the end of a context cut a wait short,
// errors.Is finds the context's error as well.
var (
	// ErrHeld means that another claim is in the way. TryLock and TryRLock fail with it. Lock and
	// RLock fail with it when their context ends while another claim holds the lock.
	ErrHeld = driver.ErrHeld
	// ErrNoQuorum means that too few nodes could vote.
	ErrNoQuorum = driver.ErrNoQuorum
	// ErrLost means that the lock was held and is no longer held, although it was not unlocked: too
	// few nodes confirmed it in time. The text says if the reason was that the wall clock was set
	// or that the machine slept.
	ErrLost = driver.ErrLost
	// ErrEvicted means that somebody ended the claim (Locker.Evict). If the lock was held,
	// errors.Is finds ErrLost as well.
	ErrEvicted = driver.ErrEvicted
	// ErrUnlocked is the cause of the end of a lock's context after Unlock.
	ErrUnlocked = driver.ErrUnlocked
	// ErrNotHeld means that Held was called under no lock, or under one that is no longer held.
	ErrNotHeld = errors.New("qlock: the lock is not held")
	// ErrHoldExpired means that the lock has been held for as long as HoldAtMost allows. It is the
	// cause of the end of the lock's context, and Unlock returns it.
	ErrHoldExpired = driver.ErrHoldExpired
	// ErrPending means that Pending.Lock was called before the request was decided.
	ErrPending = errors.New("qlock: the lock is still waited for")
	// ErrClosed means that the Locker, the Node or the NATS connection was closed.
	ErrClosed = driver.ErrClosed
	// ErrInvalidName means that the name of a resource, client, cluster or node is invalid.
	ErrInvalidName = subject.ErrInvalidName
	// ErrInvalidLease means that the lease (WithLease) is one that no client may have, or is longer
	// than the nodes allow.
	ErrInvalidLease = driver.ErrInvalidLease
	// ErrRefused means that so many nodes refused the claim that no quorum is left, or that NATS
	// did not allow the client to publish the request.
	ErrRefused = driver.ErrRefused
)

// EvictedBy returns who evicted a claim and why, if err is ErrEvicted: the error of a call, or the
// cause of the end of a lock's context. by is the name of the client that called Evict, and reason
// is the text that it gave, without control characters.
func EvictedBy(err error) (by, reason string, ok bool) {
	var e *client.Eviction
	if !errors.As(err, &e) {
		return "", "", false
	}
	return e.By, e.Why, true
}

// LockError describes why acquiring a lock failed. Use errors.As for the details, and errors.Is for
// the reason.
type LockError struct {
	Op   string // "lock", "rlock", "try-lock", "try-rlock"
	Name string // name of the resource

	// Reason is ErrHeld, ErrNoQuorum, ErrRefused, ErrEvicted or ErrClosed.
	Reason error
	// Cause is what ended the wait, usually the context's error. It may be nil.
	Cause error

	Need   int          // number of votes needed
	Nodes  []NodeAnswer // the last answer of each node of the cluster, sorted by name
	Holder *Holder      // who is in the way, if known

	// Lists is set while the list of nodes changes: the old list, and then the new one. The lock
	// needs enough votes of each. Need is then the least number of nodes that can be enough, and
	// Nodes has those of both lists.
	Lists []ListVotes
}

// ListVotes says how near a lock came to the votes that it needs of one list of nodes.
type ListVotes struct {
	Nodes []string // names of the list, sorted
	Votes int      // nodes that voted for the claim
	Need  int      // number of votes needed
}

// Answer is the kind of a node's answer about a claim.
type Answer string

const (
	AnswerVoted      Answer = "voted"      // the node voted for the claim
	AnswerQueued     Answer = "queued"     // other claims are ahead
	AnswerRefused    Answer = "refused"    // it rejects the claim, or its answers do not count
	AnswerRecovering Answer = "recovering" // the node does not vote yet
	AnswerSilent     Answer = "silent"     // the node never answered
)

// NodeAnswer is a node's answer about a claim.
type NodeAnswer struct {
	Node    string
	Answer  Answer
	Detail  string        // explanation for people; may be empty
	Waiting time.Duration // AnswerRecovering: how much longer the node does not vote
}

// Holder is the client that is in the way, according to the nodes' last answers.
type Holder struct {
	Client string        // name of the client
	Shared bool          // whether it is a reader
	Held   bool          // whether it has the nodes' votes; otherwise it waits ahead of this claim
	For    time.Duration // how long it has held the lock, or waited
	Own    bool          // whether it is the same Locker: locks are not reentrant

	// Kept is how much longer the name stays locked because of HoldAtLeast, although the holder has
	// unlocked it; 0 if it has not. It is known of holders of the same Locker only.
	Kept time.Duration

	left bool // it is the same Locker, which has lost the lock: see WithManualRelease
}

// String returns a description in one line.
func (h *Holder) String() string {
	mode, verb := "exclusively", "held"
	if h.Shared {
		mode = "shared"
	}
	if !h.Held {
		verb = "awaited, ahead of this claim,"
	}
	text := fmt.Sprintf("%s by %s (%s) for %v", verb, h.Client, mode, h.For.Round(time.Millisecond))
	switch {
	case h.Kept > 0:
		text += fmt.Sprintf(", by this same Locker, and unlocked since: HoldAtLeast keeps it for another %v", h.Kept.Round(time.Millisecond))
	case h.left:
		text += ", by this same Locker, and lost since: WithManualRelease keeps it until Unlock, or for a lease"
	case h.Own:
		text += ", by this same Locker: locks are not reentrant"
	}
	return text
}

// Votes returns the number of nodes that had voted for the claim.
func (e *LockError) Votes() int { return votesOf(e.Nodes) }

func votesOf(nodes []NodeAnswer) int {
	n := 0
	for _, a := range nodes {
		if a.Answer == AnswerVoted {
			n++
		}
	}
	return n
}

// votesText says how many nodes voted, and how many have to: of each list while the list changes.
func votesText(nodes []NodeAnswer, need int, lists []ListVotes) string {
	if len(lists) < 2 {
		return fmt.Sprintf("%d of %d nodes voted, %d are needed", votesOf(nodes), len(nodes), need)
	}
	one := func(which string, l *ListVotes) string {
		return fmt.Sprintf("%d of %d nodes of the %s list (%s) voted, %d are needed", l.Votes, len(l.Nodes), which, strings.Join(l.Nodes, " "), l.Need)
	}
	return "the list of nodes is being changed: " + one("old", &lists[0]) + "; " + one("new", &lists[1])
}

// listVotes counts the votes of each list while the list of nodes changes, and returns nil otherwise.
func listVotes(r *client.Report, answers []NodeAnswer) []ListVotes {
	if r.Lists[1] == 0 {
		return nil
	}
	out := make([]ListVotes, 2)
	for list, in := range []quorum.In{quorum.InNodes, quorum.InNext} {
		l := &out[list]
		l.Need = r.Needs[list]
		for i := range r.Nodes {
			if r.Nodes[i].In&in == 0 {
				continue
			}
			if l.Nodes = append(l.Nodes, r.Nodes[i].Name); answers[i].Answer == AnswerVoted {
				l.Votes++
			}
		}
	}
	return out
}

// Silent returns the names of the nodes that never answered.
func (e *LockError) Silent() []string {
	var out []string
	for _, a := range e.Nodes {
		if a.Answer == AnswerSilent {
			out = append(out, a.Node)
		}
	}
	return out
}

// Unwrap returns the reason and the cause, for errors.Is.
func (e *LockError) Unwrap() []error {
	if e.Cause != nil {
		return []error{e.Reason, e.Cause}
	}
	return []error{e.Reason}
}

// Error returns a text with the reason, the holder or the nodes' answers if known, and the cause.
func (e *LockError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "qlock: %s %s: ", e.Op, quote(e.Name))
	switch {
	case e.Reason == ErrHeld && e.Holder != nil:
		b.WriteString(e.Holder.String())
	default:
		b.WriteString(strings.TrimPrefix(e.Reason.Error(), "qlock: "))
	}
	if e.Reason == ErrNoQuorum || e.Reason == ErrRefused {
		if len(e.Nodes) > 0 {
			fmt.Fprintf(&b, ": %s: ", votesText(e.Nodes, e.Need, e.Lists))
			for i, a := range e.Nodes {
				if i > 0 {
					b.WriteString(", ")
				}
				fmt.Fprintf(&b, "%s %s", a.Node, a.Answer)
				if a.Detail != "" {
					fmt.Fprintf(&b, " (%s)", a.Detail)
				}
			}
		}
	}
	if e.Cause != nil {
		fmt.Fprintf(&b, ": %v", e.Cause)
	}
	return b.String()
}

// lockError makes the error of a request from its state at the end of the wait.
func (l *Locker) lockError(r *driver.Request, f *driver.Failure) *LockError {
	e := newLockError(operation(r), r.Name, f)
	if e.Holder != nil && f.IsOwn {
		e.Holder.Client = l.opt.name
	}
	return e
}

func newLockError(op, name string, f *driver.Failure) *LockError {
	r := &f.Report
	made := &struct { // one allocation for both, because tries fail often
		LockError
		holder Holder
	}{LockError: LockError{Op: op, Name: name, Reason: f.Reason, Cause: f.Cause, Need: r.Need}}
	e := &made.LockError
	if len(r.Nodes) > 0 {
		e.Nodes = make([]NodeAnswer, len(r.Nodes))
	}
	for i := range r.Nodes {
		e.Nodes[i] = nodeAnswer(&r.Nodes[i], r.Suppressed)
	}
	e.Lists = listVotes(r, e.Nodes)
	switch b := r.Blocker; {
	case f.IsOwn:
		made.holder = Holder{Shared: f.Own.Mode == shared, Held: true, For: f.Own.For, Own: true, Kept: f.Own.Kept, left: f.Own.Left}
		e.Holder = &made.holder
	case b != nil:
		made.holder = Holder{Client: b.Client, Shared: b.Mode == shared, Held: b.Voted, For: r.BlockerFor}
		e.Holder = &made.holder
	}
	return e
}

// nodeAnswer converts a node's report about a claim. suppressed means that the nodes were asked to
// answer only if they vote.
func nodeAnswer(n *client.NodeReport, suppressed bool) NodeAnswer {
	a := NodeAnswer{Node: n.Name}
	switch driver.AnswerOf(n) {
	case driver.Discounted:
		a.Answer, a.Detail = AnswerRefused, "it has another configuration"
		if n.Clash {
			a.Detail = "two nodes answer under this name"
		}
	case driver.Voted:
		a.Answer = AnswerVoted
		if n.Short > 0 {
			a.Detail = fmt.Sprintf("its tokens cannot follow those of %s for %v: the clock of one of them is wrong, or was; see qlock check", n.Highest, max(n.Short.Round(time.Second), time.Second))
		}
	case driver.Refused:
		a.Answer, a.Detail = AnswerRefused, n.Text
	case driver.Recovering:
		a.Answer, a.Waiting = AnswerRecovering, n.Recovering
		a.Detail = fmt.Sprintf("votes again in %v", n.Recovering.Round(100*time.Millisecond))
	case driver.Queued:
		a.Answer = AnswerQueued
	default:
		a.Answer = AnswerSilent
		if suppressed {
			a.Detail = "at first it answers only if it votes"
		}
	}
	return a
}
