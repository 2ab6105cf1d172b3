package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/qlock/qlock"
)

// members queries all nodes. Nodes that do not answer in time are missing from the result.
// It is no error if none answers.
func (l *link) members(ctx context.Context, patience time.Duration) (*qlock.Members, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	m, err := qlock.QueryMembers(ctx, l.Conn, qlock.WithCluster(l.cluster), qlock.WithName(l.client))
	if errors.Is(err, qlock.ErrNoQuorum) {
		return &qlock.Members{Cluster: l.cluster}, nil
	}
	return m, err
}

// patience returns how long such a query may take.
func (l *link) patience() time.Duration { return min(l.timeout, time.Second) }

// maxLease returns the longest lease that the cluster allows, or otherwise if no node
// answers.
func (l *link) maxLease(ctx context.Context, otherwise time.Duration) time.Duration {
	m, err := l.members(ctx, l.patience())
	if err != nil || m.Config.MaxLease == 0 {
		return otherwise
	}
	return m.Config.MaxLease
}

// found reports whether any node reported the configuration of the cluster.
func found(m *qlock.Members) bool { return len(m.Config.Nodes) > 0 }

// stateOf returns a node's state in words.
func stateOf(n *qlock.Member) string {
	switch {
	case !n.Answered:
		return "unreachable"
	case n.Conflict != "":
		return string(n.Conflict)
	case n.State == qlock.NodeRecovering:
		return fmt.Sprintf("recovering, %v left", n.Recovering.Round(100*time.Millisecond))
	case n.State == qlock.NodeRetired:
		return "retired, can be stopped"
	}
	return string(n.State)
}

// farAhead reports whether a node gave tokens further ahead of its clock than other nodes
// accept. The cause is a clock that was ahead and is not any more.
func farAhead(m *qlock.Members, n *qlock.Member) bool {
	return n.Answered && n.Conflict != qlock.ConflictConfig && n.TokensAhead > m.Config.MaxLease
}
