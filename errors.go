package qlock

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/subject"
)

// What errors.Is finds in the errors of this package. Where a context's end cut
// a wait short, its error is found as well.
var (
	// ErrHeld: another claim is in the way. TryLock and TryRLock fail with it, and
	// so do Lock and RLock when their context ends while another holds the lock.
	ErrHeld = errors.New("qlock: held by another")
	// ErrNoQuorum: too few nodes could give their vote.
	ErrNoQuorum = errors.New("qlock: no quorum")
	// ErrLost: the lock was held and is no more, though it was not unlocked: too
	// few nodes confirmed it in time. The text says if the reason was that the wall
	// clock was set, or that the machine slept.
	ErrLost = errors.New("qlock: lock lost")
	// ErrEvicted: somebody ended the claim (Locker.Evict). Of a lock that was held
	// errors.Is finds ErrLost as well.
	ErrEvicted = errors.New("qlock: evicted")
	// ErrUnlocked is the cause with which a lock's context ends after Unlock.
	ErrUnlocked = errors.New("qlock: unlocked")
	// ErrClosed: the Locker, the Node or the NATS connection was closed.
	ErrClosed = errors.New("qlock: closed")
	// ErrInvalidName: a name of a resource, client, cluster or node that cannot be
	// one.
	ErrInvalidName = subject.ErrInvalidName
	// ErrInvalidLease: a lease (WithLease) that no client may have, or one that is longer
	// than the nodes allow.
	ErrInvalidLease = errors.New("qlock: invalid lease")
	// ErrRefused: so many nodes refused the claim that no quorum is left, or NATS
	// did not let it be published.
	ErrRefused = errors.New("qlock: refused")
)

// contextError is why ctx ended, nil if it has not: its error, and its cause where
// that says something else.
func contextError(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if err == nil || errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// evictedError is why a lock is lost that was evicted.
type evictedError struct{ client.Eviction }

func (e *evictedError) Error() string { return "qlock: lock lost: evicted " + e.Eviction.Error() }

func (e *evictedError) Is(target error) bool { return target == ErrLost || target == ErrEvicted }

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

// NodeAnswer is what a node said of a claim.
type NodeAnswer struct {
	Node    string
	Answer  string        // "voted", "queued", "refused", "recovering", "silent"
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
func (e *LockError) Votes() int {
	n := 0
	for _, a := range e.Nodes {
		if a.Answer == "voted" {
			n++
		}
	}
	return n
}

// Silent lists the nodes that never answered.
func (e *LockError) Silent() []string {
	var out []string
	for _, a := range e.Nodes {
		if a.Answer == "silent" {
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

// lockError writes the error from how the claim stood when its wait ended. reason
// nil: to be found out.
func lockError(op, name string, r client.Report, reason, cause error) *LockError {
	e := &LockError{Op: op, Name: name, Reason: reason, Cause: cause, Need: r.Need}
	refused, silent := 0, 0
	for _, n := range r.Nodes {
		a := NodeAnswer{Node: n.Name}
		switch {
		case n.Clash:
			a.Answer, a.Detail = "refused", "two nodes answer under this name"
		case n.OtherConfig:
			a.Answer, a.Detail = "refused", "it has another configuration"
		case n.Voted:
			a.Answer = "voted"
			if n.Short > 0 {
				a.Detail = fmt.Sprintf("its tokens cannot follow those of %s for %v: the clock of one of them is wrong, or was; see qlock check", n.Highest, max(n.Short.Round(time.Second), time.Second))
			}
		case n.Refused:
			a.Answer, a.Detail = "refused", n.Text
			refused++
		case n.Recovering > 0:
			a.Answer, a.Waiting = "recovering", n.Recovering
			a.Detail = fmt.Sprintf("votes again in %v", n.Recovering.Round(100*time.Millisecond))
		case n.Queued:
			a.Answer = "queued"
		default:
			a.Answer = "silent"
			if r.Hushed {
				a.Detail = "at first it answers only if it votes"
			}
			silent++
		}
		e.Nodes = append(e.Nodes, a)
	}
	if b := r.Blocker; b != nil {
		e.Holder = &Holder{Client: b.Client, Shared: b.Mode == shared, Held: b.Voted, For: r.BlockerFor}
	}
	if e.Reason == nil {
		able := slices.ContainsFunc(e.Nodes, func(a NodeAnswer) bool { return a.Answer == "voted" || a.Answer == "queued" })
		heard := len(r.Nodes) - silent - refused
		switch {
		case len(r.Nodes)-refused < r.Need:
			e.Reason = ErrRefused
		case cause == nil: // a try that failed by itself: another is in the way (C10)
			e.Reason = ErrHeld
		case e.Holder != nil && able && heard >= r.Need:
			e.Reason = ErrHeld
		default:
			e.Reason = ErrNoQuorum
		}
	}
	return e
}
