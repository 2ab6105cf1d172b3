package driver

import (
	"time"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/hold"
	"github.com/qlock/qlock/internal/quorum"
)

// Failure describes why a lock was not acquired, at the end of the wait.
type Failure struct {
	Reason error // ErrHeld, ErrNoQuorum, ErrRefused, ErrEvicted or ErrClosed
	Cause  error // what ended the wait, usually the context's error; may be nil
	Report client.Report
	IsOwn  bool // another hold of this client is in the way
	Own    hold.Own
}

// Waiting describes the status of a waiting request.
type Waiting struct {
	For    time.Duration // time since the request
	Ahead  int           // claims and requests ahead of it that wait, as far as known
	Known  bool          // whether Ahead is known
	Report client.Report
	IsOwn  bool // another hold of this client is in the way
	Own    hold.Own
}

// Answer is the kind of a node's last answer about a claim.
type Answer uint8

const (
	Silent     Answer = iota // no answer
	Voted                    // the node votes for the claim
	Queued                   // other claims are ahead
	Refused                  // the node refuses the claim
	Recovering               // the node does not vote yet
	Discounted               // the node's answers do not count
)

// AnswerOf returns the kind of a node's last answer.
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

// reasonOf returns the reason why a claim is not held. cause is what ended the wait, or nil if the
// claim failed by itself.
func reasonOf(r *client.Report, cause error) error {
	able := false
	var refused, heard quorum.Count
	for i := range r.Nodes {
		n := &r.Nodes[i]
		switch AnswerOf(n) {
		case Voted, Queued:
			able = true
			heard.Add(n.In)
		case Refused:
			refused.Add(n.In)
		case Silent:
		default:
			heard.Add(n.In)
		}
	}
	switch {
	case r.Needs.Lost(refused, r.Lists):
		return ErrRefused
	case cause == nil: // a try fails by itself only if another claim is in the way (C10)
		return ErrHeld
	case r.Blocker != nil && able && r.Needs.Met(heard):
		return ErrHeld
	}
	return ErrNoQuorum
}
