package driver

import (
	"time"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/quorum"
)

// Failure is why a lock was not acquired, as it stood when the wait ended.
type Failure struct {
	Reason error // ErrHeld, ErrNoQuorum, ErrRefused, ErrEvicted or ErrClosed
	Cause  error // what ended the wait, usually the context's error; may be nil
	Report client.Report
	IsOwn  bool // another use of this very client is in the way
	Own    Own  // that use
}

// Own is the use of this client that is in the way.
type Own struct {
	Mode quorum.Mode
	For  time.Duration
}

// Waiting is how a request stands that waits.
type Waiting struct {
	For    time.Duration // since the request was made
	Ahead  int           // of those that wait as well, as far as known
	Known  bool          // how many those are is known
	Report client.Report
	IsOwn  bool // another use of this very client is in the way
	Own    Own
}

// Answer is what a node last said of a claim.
type Answer uint8

const (
	Silent     Answer = iota // nothing
	Voted                    // it gave its vote
	Queued                   // others come first
	Refused                  // it does not want the claim
	Recovering               // it gives no votes yet
	Discounted               // its answers do not count
)

// AnswerOf tells what a node last said.
func AnswerOf(n *client.NodeReport) Answer {
	switch {
	case n.Clash, n.OtherConfig:
		return Discounted
	case n.Voted:
		return Voted
	case n.Refused:
		return Refused
	case n.Recovering > 0:
		return Recovering
	case n.Queued:
		return Queued
	}
	return Silent
}

// reasonOf finds out why a claim does not hold. cause is what ended the wait; nil: the
// claim failed by itself.
func reasonOf(r *client.Report, cause error) error {
	able, refused, silent := false, 0, 0
	for i := range r.Nodes {
		switch AnswerOf(&r.Nodes[i]) {
		case Voted, Queued:
			able = true
		case Refused:
			refused++
		case Silent:
			silent++
		}
	}
	heard := len(r.Nodes) - silent - refused
	switch {
	case len(r.Nodes)-refused < r.Need:
		return ErrRefused
	case cause == nil: // a try that failed by itself: another is in the way (C10)
		return ErrHeld
	case r.Blocker != nil && able && heard >= r.Need:
		return ErrHeld
	}
	return ErrNoQuorum
}
