// Package nodes changes the list of nodes of a cluster while it runs.
//
//	err := nodes.Change(ctx, nc, []string{"n1", "n2", "n4"}, nodes.Progress(func(s string) { log.Print(s) }))
//
// The package is experimental: see "Changing the list of nodes" in docs/operations.md.
//
// Locks that are held stay held, waiters keep their places, and tokens rise. Any list may
// follow any other: one node may replace another, and all may be replaced at once.
//
// # How a change works
//
// The nodes of the old list decide twice. First the cluster becomes joint: a lock then needs a
// quorum of the old list and one of the new list. When no lock can be left that is held by the
// old list alone, which takes MaxLease and two per cent, the cluster goes on with the new list.
// See "Changing the list of nodes" in docs/protocol.md.
//
// Nothing runs on its own. A function of this package does what it says and ends, may be
// interrupted at any moment, and may be called again by anybody: all that counts is at the
// nodes. A cluster that is left joint works, as long as a majority of each list does. Finish
// and RollBack end a change that is under way.
//
// # Before the first change
//
// Every node needs a state directory. Start new nodes with qlock.NodeConfig.Join. Update all
// clients first: those of versions before 0.2 acquire no locks after Enable or the first Change.
//
// # Permissions
//
// The functions publish to the subjects config and info of the cluster: the role administrator
// of `qlock permissions`. Whoever may do that can take the cluster away from its nodes.
package nodes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/driver"
	"github.com/qlock/qlock/internal/epoch"
	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/wire"
)

// Option is an option of the functions of this package. A nil Option is ignored.
type Option func(*options) error

type options struct {
	cluster, name string
	progress      func(string)
	wish          epoch.Wish
}

// Cluster names the cluster. Default: qlock.DefaultCluster.
func Cluster(name string) Option {
	return func(o *options) error {
		o.cluster = name
		return subject.CheckToken("cluster", name)
	}
}

// Name is the name under which the nodes are asked. Permissions are granted by it. Default: a
// name made from those of the host and the program.
func Name(name string) Option {
	return func(o *options) error {
		o.name = name
		return subject.CheckToken("client", name)
	}
}

// Progress calls f with each thing that an operator should know: what was decided, what is
// waited for and for how long. Calls come one at a time, before the function returns. f must
// not block for long, because meanwhile nothing else happens.
func Progress(f func(string)) Option {
	return func(o *options) error {
		o.progress = f
		return nil
	}
}

// MaxLease changes the longest lease of the cluster with the list (Change). Until the change is
// finished, leases are limited to the shorter of the old and the new one, and all waits go by
// the longer one. A shorter one also lowers a skew of more than half of it to half of it,
// unless MaxSkew gives another.
func MaxLease(d time.Duration) Option {
	return func(o *options) error {
		if d < wire.MinLease || d > wire.MaxLease || d%time.Millisecond != 0 {
			return fmt.Errorf("nodes: MaxLease %v: it must be within %v and %v, in whole milliseconds", d, wire.MinLease, wire.MaxLease)
		}
		o.wish.MaxTTL = d
		return nil
	}
}

// MaxSkew changes how far a client's clock may be ahead (Change). It is at most the longest
// lease of the new list.
func MaxSkew(d time.Duration) Option {
	return func(o *options) error {
		if d < time.Millisecond || d > wire.MaxLease || d%time.Millisecond != 0 {
			return fmt.Errorf("nodes: MaxSkew %v: it must be within 1ms and the longest lease, in whole milliseconds", d)
		}
		o.wish.Skew = d
		return nil
	}
}

// Gone names nodes of the list that will never come back, for the first Change of a cluster.
// That one otherwise waits until every node shows that it knows its id. A node that is named
// here by mistake, and comes back with an empty state directory, can break the exclusion of
// locks together with another one.
func Gone(names ...string) Option {
	return func(o *options) error {
		o.wish.Gone = append(o.wish.Gone, names...)
		return nil
	}
}

// StayJoint makes Change end when the cluster is joint. Call Finish or RollBack later.
func StayJoint() Option {
	return func(o *options) error {
		o.wish.StayJoint = true
		return nil
	}
}

// Hurry makes Change begin although the last change ended less than MaxLease ago. Locks that
// are held by clients that have not followed yet may be lost.
func Hurry() Option {
	return func(o *options) error {
		o.wish.Hurry = true
		return nil
	}
}

// Majority makes Change and Finish content with a majority of the new list. Otherwise they wait
// until all new nodes vote, because the way back ends with the second decision.
func Majority() Option {
	return func(o *options) error {
		o.wish.MostOfNext = true
		return nil
	}
}

// Enable gives the nodes of the cluster ids, which a change of the list needs. All nodes must
// be up. Change does it by itself; call Enable after the first start of a new cluster, so that
// a node that loses its state directory before the first change is noticed. Enable returns nil
// if it was done before.
//
// Clients of versions before 0.2 acquire no locks after that, and it cannot be undone.
func Enable(ctx context.Context, nc *nats.Conn, opts ...Option) error {
	return run(ctx, nc, "Enable", epoch.Enable, nil, opts)
}

// Change changes the list of nodes to these names, and returns when the cluster has the new
// list, and a majority of its nodes knows that: nodes that are in the old list only may be
// stopped then. It takes a little longer than the longest lease. With the present list it
// changes MaxLease or MaxSkew.
//
// It returns an error if another change is under way. If ctx ends first, the error matches that
// of ctx, and the change may be under way: call Change again, Finish or RollBack.
func Change(ctx context.Context, nc *nats.Conn, names []string, opts ...Option) error {
	names = slices.Sorted(slices.Values(names))
	switch {
	case len(names) == 0:
		return errors.New("nodes: Change: the list of nodes is empty")
	case len(names) > wire.MaxNodes:
		return fmt.Errorf("nodes: Change: the list has %d nodes, at most %d are allowed", len(names), wire.MaxNodes)
	}
	for i, n := range names[1:] {
		if n == names[i] {
			return fmt.Errorf("nodes: Change: the list has a name twice: %s", n)
		}
	}
	for _, n := range names {
		if err := subject.CheckToken("node", n); err != nil {
			return err
		}
	}
	return run(ctx, nc, "Change", epoch.Change, names, opts)
}

// Finish ends a change that is under way by the new list. It returns nil if none is.
func Finish(ctx context.Context, nc *nats.Conn, opts ...Option) error {
	return run(ctx, nc, "Finish", epoch.Finish, nil, opts)
}

// RollBack ends a change that is under way by the old list. It needs only a majority of the old
// nodes. It returns nil if no change is under way.
func RollBack(ctx context.Context, nc *nats.Conn, opts ...Option) error {
	return run(ctx, nc, "RollBack", epoch.RollBack, nil, opts)
}

func run(ctx context.Context, nc *nats.Conn, what string, goal epoch.Goal, names []string, opts []Option) error {
	if nc == nil {
		return fmt.Errorf("nodes: %s: the connection is nil", what)
	}
	o := options{cluster: qlock.DefaultCluster, progress: func(string) {}}
	for _, opt := range opts {
		if opt == nil {
			continue
		}
		if err := opt(&o); err != nil {
			return err
		}
	}
	if o.name == "" {
		host, _ := os.Hostname()
		o.name = subject.ClientName(host, os.Args[0])
	}
	if o.progress == nil {
		o.progress = func(string) {}
	}
	o.wish.Goal, o.wish.Nodes = goal, names
	return driver.Change(ctx, nc, o.cluster, o.name, o.wish, o.progress)
}
