package qlock

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/driver"
	"github.com/qlock/qlock/internal/subject"
)

// What errors.Is finds in the errors of this package. Where a context's end cut
// a wait short, its error is found as well.
var (
	// ErrHeld: another claim is in the way. TryLock and TryRLock fail with it, and
	// so do Lock and RLock when their context ends while another holds the lock.
	ErrHeld = driver.ErrHeld
	// ErrNoQuorum: too few nodes could give their vote.
	ErrNoQuorum = driver.ErrNoQuorum
	// ErrLost: the lock was held and is no more, though it was not unlocked: too
	// few nodes confirmed it in time. The text says if the reason was that the wall
	// clock was set, or that the machine slept.
	ErrLost = driver.ErrLost
	// ErrEvicted: somebody ended the claim (Locker.Evict). Of a lock that was held
	// errors.Is finds ErrLost as well.
	ErrEvicted = driver.ErrEvicted
	// ErrUnlocked is the cause with which a lock's context ends after Unlock.
	ErrUnlocked = driver.ErrUnlocked
	// ErrNotHeld: Held was called under no lock, or under one that is held no more.
	ErrNotHeld = errors.New("qlock: the lock is not held")
	// ErrHoldExpired: the lock has been held for as long as HoldAtMost allows. It is the cause
	// of the end of its context, and what Unlock returns.
	ErrHoldExpired = driver.ErrHoldExpired
	// ErrPending: Pending.Lock was called before the request was decided.
	ErrPending = errors.New("qlock: the lock is still waited for")
	// ErrClosed: the Locker, the Node or the NATS connection was closed.
	ErrClosed = driver.ErrClosed
	// ErrInvalidName: a name of a resource, client, cluster or node that cannot be
	// one.
	ErrInvalidName = subject.ErrInvalidName
	// ErrInvalidLease: a lease (WithLease) that no client may have, or one that is longer
	// than the nodes allow.
	ErrInvalidLease = driver.ErrInvalidLease
	// ErrRefused: so many nodes refused the claim that no quorum is left, or NATS
	// did not let it be published.
	ErrRefused = driver.ErrRefused
)

// LockError says why a lock was not had. Use errors.As for its details, and
// errors.Is for the reason.
type LockError struct {
	Op   string // "lock", "rlock", "try-lock", "try-rlock"
	Name string // of the resource

	// Reason is ErrHeld, ErrNoQuorum, ErrRefused, ErrEvicted or ErrClosed.
	Reason error
	// Cause is what ended the wait, usually the context's error; it may be nil.
	Cause error

	Need   int          // votes needed
	Nodes  []NodeAnswer // what each node of the cluster had to say, by name
	Holder *Holder      // who is in the way, if known
}

// Answer is what a node said of a claim, in a word.
type Answer string

const (
	AnswerVoted      Answer = "voted"      // the node gave its vote
	AnswerQueued     Answer = "queued"     // other claims come first
	AnswerRefused    Answer = "refused"    // the node does not accept the claim, or its answers do not count
	AnswerRecovering Answer = "recovering" // the node gives no votes yet
	AnswerSilent     Answer = "silent"     // the node never answered
)

// NodeAnswer is what a node said of a claim.
type NodeAnswer struct {
	Node    string
	Answer  Answer
	Detail  string        // for a person
	Waiting time.Duration // recovering: how long it will still give no votes
}

// Holder is who was in the way, as the nodes last told.
type Holder struct {
	Client string        // its name
	Shared bool          // a reader
	Held   bool          // it has the nodes' votes; otherwise it waits ahead
	For    time.Duration // since when
	Own    bool          // it is the very Locker that was asked: locks are not reentrant
}

func (h *Holder) String() string {
	mode, verb := "exclusively", "held"
	if h.Shared {
		mode = "shared"
	}
	if !h.Held {
		verb = "awaited, ahead of this claim,"
	}
	text := fmt.Sprintf("%s by %s (%s) for %v", verb, h.Client, mode, h.For.Round(time.Millisecond))
	if h.Own {
		text += ", by this same Locker: locks are not reentrant"
	}
	return text
}

// Votes is the number of nodes that had given their vote.
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

// Silent lists the nodes that never answered.
func (e *LockError) Silent() []string {
	var out []string
	for _, a := range e.Nodes {
		if a.Answer == AnswerSilent {
			out = append(out, a.Node)
		}
	}
	return out
}

// Unwrap gives errors.Is the reason and the cause.
func (e *LockError) Unwrap() []error {
	if e.Cause != nil {
		return []error{e.Reason, e.Cause}
	}
	return []error{e.Reason}
}

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
			fmt.Fprintf(&b, ": %d of %d nodes voted, %d are needed: ", e.Votes(), len(e.Nodes), e.Need)
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

// lockError writes the error from how the wish stood when its wait ended.
func (l *Locker) lockError(r *driver.Request, f *driver.Failure) *LockError {
	e := newLockError(operation(r), r.Name, f)
	if e.Holder != nil && f.IsOwn {
		e.Holder.Client = l.opt.name
	}
	return e
}

func newLockError(op, name string, f *driver.Failure) *LockError {
	r := &f.Report
	made := &struct { // tries fail often: one allocation for both
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
	switch b := r.Blocker; {
	case f.IsOwn:
		made.holder = Holder{Shared: f.Own.Mode == shared, Held: true, For: f.Own.For, Own: true}
		e.Holder = &made.holder
	case b != nil:
		made.holder = Holder{Client: b.Client, Shared: b.Mode == shared, Held: b.Voted, For: r.BlockerFor}
		e.Holder = &made.holder
	}
	return e
}

// nodeAnswer is what a node said of a claim; suppressed says that the nodes were asked to tell
// only of votes.
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
