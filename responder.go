package qlock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/crash"
	"github.com/qlock/qlock/internal/driver"
	"github.com/qlock/qlock/internal/natsio"
	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/wire"
)

// NodeConfig configures a node. Cluster, Nodes, MaxLease and MaxSkew must be the
// same at every node of a cluster: votes of nodes with another configuration do
// not count.
type NodeConfig struct {
	Cluster string   // name of the cluster; default "default"
	Name    string   // this node's name, one of Nodes
	Nodes   []string // names of all nodes, 1 to 64; fixed for the cluster's life

	// StateDir is where the node leaves, at a clean stop, what it must not forget.
	// Empty: nowhere, and the node gives no votes for MaxLease and 16 % more after each
	// start.
	StateDir string

	MaxLease time.Duration // longest lease that clients may have; default 30 s
	// PreviousMaxLease is the longest lease that the cluster allowed before MaxLease
	// was lowered. A node that may have forgotten votes waits for the longer of the
	// two. A node with a StateDir remembers it by itself. Default 0; at most 24 h.
	PreviousMaxLease time.Duration

	MaxSkew time.Duration // how far a client's clock may be ahead; default 5 s, at most MaxLease

	MaxClaims int // claims, held and waiting, of one client name; default 250,000
	MaxQueue  int // claims on one name beside one that holds it; default 65,536

	// ProbeWait is how long the node listens for another node of its name before
	// its first vote; default 300 ms or, if that is less, a quarter of MaxLease. At
	// most a third of that. If the node was down, or stood still, for so long that
	// another may have started in its place, it listens for longer first: for a
	// thirtieth of MaxLease, or two ProbeWaits if that is more. All nodes that may
	// bear one name need the same ProbeWait.
	ProbeWait time.Duration

	// NoService keeps the node out of `nats micro ls`; it needs no permission for
	// $SRV.> then.
	NoService bool

	// Logger is told what an operator should know; default: silent. The node never
	// waits for it: lines that it does not take in time are dropped and counted
	// (NodeStats.LogDropped). Only Close waits, for a second at most; a logger that
	// blocks for ever keeps one goroutine for ever.
	Logger *slog.Logger
}

func (c NodeConfig) withDefaults() (NodeConfig, error) {
	if c.Cluster == "" {
		c.Cluster = DefaultCluster
	}
	if c.MaxLease == 0 {
		c.MaxLease = DefaultMaxLease
	}
	if c.MaxSkew == 0 {
		c.MaxSkew = min(5*time.Second, c.MaxLease/2)
	}
	if c.MaxClaims == 0 {
		c.MaxClaims = 250_000
	}
	if c.MaxQueue == 0 {
		c.MaxQueue = 65_536
	}
	if c.ProbeWait == 0 {
		c.ProbeWait = min(300*time.Millisecond, c.MaxLease/4)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, c.check()
}

func (c NodeConfig) check() error {
	if err := subject.CheckToken("cluster", c.Cluster); err != nil {
		return err
	}
	if err := subject.CheckToken("node", c.Name); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if err := subject.CheckToken("node", n); err != nil {
			return err
		}
	}
	sorted := slices.Sorted(slices.Values(c.Nodes))
	switch {
	case len(c.Nodes) == 0:
		return errors.New("qlock: NodeConfig.Nodes is empty: it must list the names of all nodes of the cluster")
	case len(c.Nodes) > wire.MaxNodes:
		return fmt.Errorf("qlock: NodeConfig.Nodes has %d names, at most %d are allowed", len(c.Nodes), wire.MaxNodes)
	case len(slices.Compact(sorted)) != len(c.Nodes):
		return fmt.Errorf("qlock: NodeConfig.Nodes has a name twice: %v", c.Nodes)
	case !slices.Contains(c.Nodes, c.Name):
		return fmt.Errorf("qlock: NodeConfig.Name %q is not among Nodes %v", c.Name, c.Nodes)
	case c.MaxLease < wire.MinLease || c.MaxLease > wire.MaxLease || c.MaxLease%time.Millisecond != 0:
		return fmt.Errorf("qlock: NodeConfig.MaxLease %v: it must be within %v and %v, in whole milliseconds", c.MaxLease, wire.MinLease, wire.MaxLease)
	case c.PreviousMaxLease < 0 || c.PreviousMaxLease > wire.MaxLease:
		return fmt.Errorf("qlock: NodeConfig.PreviousMaxLease %v: it must be within 0 and %v", c.PreviousMaxLease, wire.MaxLease)
	case c.MaxSkew < time.Millisecond || c.MaxSkew > c.MaxLease || c.MaxSkew%time.Millisecond != 0:
		return fmt.Errorf("qlock: NodeConfig.MaxSkew %v: it must be within 1ms and MaxLease (%v), in whole milliseconds", c.MaxSkew, c.MaxLease)
	case c.MaxClaims < 1 || c.MaxQueue < 1:
		return fmt.Errorf("qlock: NodeConfig.MaxClaims (%d) and MaxQueue (%d) must be positive", c.MaxClaims, c.MaxQueue)
	case c.ProbeWait < 0 || c.ProbeWait > c.MaxLease/3:
		return fmt.Errorf("qlock: NodeConfig.ProbeWait %v: it must be within 0 and a third of MaxLease (%v)", c.ProbeWait, c.MaxLease/3)
	}
	return nil
}

// driver is what the configuration says to the driver.
func (c NodeConfig) driver() driver.NodeConfig {
	registration := driver.AsService
	if c.NoService {
		registration = driver.WithoutService
	}
	log := natsio.NewLog(c.Logger, "node", c.Name)
	return driver.NodeConfig{
		Cluster: c.Cluster, Name: c.Name, Version: Version(), Nodes: c.Nodes, StateDir: c.StateDir,
		MaxLease: c.MaxLease, PreviousMaxLease: c.PreviousMaxLease, MaxSkew: c.MaxSkew, ProbeWait: c.ProbeWait,
		MaxClaims: c.MaxClaims, MaxQueue: c.MaxQueue, Registration: registration,
		ServiceStats: func(s driver.NodeStats) any { return nodeStats(s, log) }, Log: log,
	}
}

// Node is one voting node on a NATS connection. Its methods may be called from
// several goroutines.
type Node struct {
	node *driver.Node
	name string
	log  *natsio.Log
}

// StartNode starts a node on a connection that stays the caller's: it is not
// closed. It is entered as a service named qlock, for `nats micro`, which wraps
// the connection's handlers for errors and closing; see NodeConfig.NoService.
//
// It returns when the node serves and has made sure, for [NodeConfig.ProbeWait],
// that no other node has its name; if one has, StartNode fails. It fails when ctx ends before that,
// also on a connection that stands still. A node that may have forgotten
// votes then still waits before it gives any: see WaitReady, and Bootstrap for a
// new cluster.
func StartNode(ctx context.Context, nc *nats.Conn, cfg NodeConfig) (*Node, error) {
	if nc == nil {
		return nil, errors.New("qlock: StartNode: the connection is nil")
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if nc.Opts.NoEcho { // of how the connection was made: it never changes
		return nil, errors.New("qlock: StartNode: the NATS connection was made with nats.NoEcho, so the node would not hear the requests that it sends to its own name: connect without it")
	}
	c := cfg.driver()
	n, err := driver.StartNode(ctx, nc, c)
	if err != nil {
		return nil, err
	}
	return &Node{node: n, name: cfg.Name, log: c.Log}, nil
}

// Name is the node's name.
func (n *Node) Name() string { return n.name }

// Ready reports whether the node gives votes now.
func (n *Node) Ready() bool { return n.node.Ready() }

// Done is closed when the node serves no more: after Close, when it found that an
// older node has its name, or when its NATS connection was closed for ever, be it by
// the program or by the client library (see nats.IgnoreAuthErrorAbort and
// nats.MaxReconnects). Err says which. A program that does not end then should start
// the node anew, on another connection, after Close.
func (n *Node) Done() <-chan struct{} { return n.node.Done() }

// Err is why the node serves no more: ErrClosed after Close, ErrClosed with the
// connection's error if that is closed for ever, another error if an older node has
// the name. It is nil until Done is closed.
func (n *Node) Err() error { return n.node.Err() }

// WaitReady waits until the node gives votes. It fails when ctx ends, or when the
// node is closed or stopped before that.
func (n *Node) WaitReady(ctx context.Context) error { return n.node.WaitReady(ctx) }

// Close stops the node cleanly: it leaves its votes and queues in the state
// directory, so that it may vote at once when it starts again. The connection
// stays open; should it stand still, Close waits for it for a second at most. Calling
// it again does nothing.
func (n *Node) Close() error { return n.node.Close(driver.Clean) }

// Tests crash nodes, by package qlocktest; what runs in production does not.
func init() {
	crash.Node = func(n any) error { return n.(*Node).node.Close(driver.Crash) }
}
