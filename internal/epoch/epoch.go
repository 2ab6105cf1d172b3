// Package epoch decides which configuration a cluster has next: how its list of nodes
// changes while it runs (rules E1 to E18 of docs/protocol.md). Like the other packages of
// the core it has no clock, goroutine, channel or random source: time is an argument.
//
// Each decision is one round of Paxos among the nodes of the list that the cluster has. An
// Acceptor is a node's part. A Round is one attempt of the operator's command, an Operator
// the whole command: it repeats attempts, and makes of a wish the two decisions that it
// needs, first the joint record with both lists, then the simple one with the new list.
//
// The records themselves and the messages are in package wire.
package epoch

import (
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// Record is a configuration with an epoch.
type Record = wire.EpochRecord

// In gives the lists of r that a node is in. A node is its name and its id: one that lost
// its directory is another node, also under the name of before (E2).
func In(r *Record, name string, id uuid.UUID) (in quorum.In) {
	if has(r.Nodes, name, id) {
		in |= quorum.InNodes
	}
	if has(r.Next, name, id) {
		in |= quorum.InNext
	}
	return in
}

func has(list []wire.Member, name string, id uuid.UUID) bool {
	return slices.ContainsFunc(list, func(m wire.Member) bool { return m.Name == name && m.ID == id /*plant:epoch-id*/ })
}

// Wait is for how long a node must have had a joint record before it accepts the change to
// the new list: nothing that it confirmed under the record before is valid then (E5).
func Wait(r *Record) time.Duration {
	longest := r.Longest()
	return longest + wire.Margin(longest) //plant:epoch-wait
}

// Finishes reports whether r, which may follow the joint record before, is the change to its
// new list, and not the way back.
func Finishes(before, r *Record) bool {
	return before.Joint() && !r.Joint() && same(r.Nodes, r.MaxTTL, r.Skew, before.Next, before.NextMaxTTL, before.NextSkew)
}

func same(a []wire.Member, aTTL, aSkew time.Duration, b []wire.Member, bTTL, bSkew time.Duration) bool {
	return aTTL == bTTL && aSkew == bSkew && slices.Equal(a, b)
}

// Follows says why r may not be the record after before, nil if it may (E1).
func Follows(before, r *Record) error {
	switch {
	case r.Cluster != before.Cluster || r.CID != before.CID:
		return fmt.Errorf("the record is of cluster %s (%s), not of %s (%s)", r.Cluster, r.CID, before.Cluster, before.CID)
	case r.Epoch != before.Epoch+1 || r.Prev != before.Digest():
		return fmt.Errorf("the record of epoch %d follows %s, not that of epoch %d (%s)", r.Epoch, r.Prev, before.Epoch, before.Digest())
	case r.Floor < before.Floor: //plant:epoch-floor-inherited
		return fmt.Errorf("the floor falls from %d to %d", before.Floor, r.Floor)
	}
	if err := r.Check(); err != nil {
		return err
	}
	back := same(r.Nodes, r.MaxTTL, r.Skew, before.Nodes, before.MaxTTL, before.Skew)
	switch {
	case !before.Joint() && !back:
		return fmt.Errorf("the first list of a joint record must be that of the record before, with its longest lease and skew")
	case !before.Joint() && same(r.Next, r.NextMaxTTL, r.NextSkew, r.Nodes, r.MaxTTL, r.Skew):
		return fmt.Errorf("the joint record changes nothing")
	case before.Joint() && !back && !Finishes(before, r):
		return fmt.Errorf("after a joint record comes one of its two lists, with the longest lease and skew of that list")
	case r.Floor != before.Floor && !Finishes(before, r):
		return fmt.Errorf("the floor rises from %d to %d without a change to a new list", before.Floor, r.Floor)
	}
	return nil
}

// Begins says why r may not be the first record of a cluster with this name and
// configuration, nil if it may: the list stays as it is, and gets ids (E1).
func Begins(cluster string, cfg wire.Config, r *Record) error {
	if err := begins(cluster, r); err != nil {
		return err
	}
	names := slices.Sorted(slices.Values(cfg.Nodes))
	if r.Prev != cfg.Digest() || r.MaxTTL != cfg.MaxTTL || r.Skew != cfg.Skew ||
		!slices.EqualFunc(r.Nodes, names, func(m wire.Member, name string) bool { return m.Name == name }) {
		return fmt.Errorf("the first record must have the names, the longest lease and the skew that the cluster has")
	}
	return nil
}

func begins(cluster string, r *Record) error {
	switch {
	case r.Cluster != cluster:
		return fmt.Errorf("the record is of cluster %s, this is %s", r.Cluster, cluster)
	case r.Epoch != 1 || r.Floor != 0:
		return fmt.Errorf("epoch %d with floor %d is not the first record", r.Epoch, r.Floor)
	}
	return r.Check()
}
