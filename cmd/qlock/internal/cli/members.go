package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/qlock/qlock"
)

// members asks all nodes who they are. Nodes that do not answer in time are missing; that
// none does is no error.
func (l *link) members(ctx context.Context, patience time.Duration) (*qlock.Members, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	m, err := qlock.QueryMembers(ctx, l.Conn, qlock.WithCluster(l.cluster), qlock.WithName(l.client))
	if errors.Is(err, qlock.ErrNoQuorum) {
		return &qlock.Members{Cluster: l.cluster}, nil
	}
	return m, err
}

// patience of such a question.
func (l *link) patience() time.Duration { return min(l.timeout, time.Second) }

// maxLease is the longest lease that the cluster allows; otherwise is for when the nodes
// do not tell.
func (l *link) maxLease(ctx context.Context, otherwise time.Duration) time.Duration {
	m, err := l.members(ctx, l.patience())
	if err != nil || m.Config.MaxLease == 0 {
		return otherwise
	}
	return m.Config.MaxLease
}

// found reports whether any node said what the cluster is.
func found(m *qlock.Members) bool { return len(m.Config.Nodes) > 0 }

// stateOf is a node's state in words.
func stateOf(n *qlock.Member) string {
	switch {
	case !n.Answered:
		return "unreachable"
	case n.Conflict != "":
		return string(n.Conflict)
	case n.State == qlock.NodeRecovering:
		return fmt.Sprintf("recovering, %v left", n.Recovering.Round(100*time.Millisecond))
	}
	return string(n.State)
}

// farAhead reports whether a node gave tokens further ahead of its clock than other nodes
// follow: that clock was ahead, and is not any more.
func farAhead(m *qlock.Members, n *qlock.Member) bool {
	return n.Answered && n.Conflict != qlock.ConflictConfig && n.TokensAhead > m.Config.MaxLease
}
