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

// NodeConfig configures a node. Cluster, Nodes, MaxLease and MaxSkew must be the same at every
// node of a cluster. Clients do not count the votes of nodes with another configuration.
type NodeConfig struct {
	Cluster string   // name of the cluster; default "default"
	Name    string   // this node's name, one of Nodes
	Nodes   []string // names of all nodes, 1 to 64

	// Join makes the node wait until a change of the list adds it (package nodes). Nodes is empty
	// then, and StateDir is needed. A node whose StateDir shows that it was in a list goes by
	// that, whether or not Join is set, and whatever Nodes has.
	Join bool

	// StateDir is the directory in which the node saves its votes and queues when it is
	// stopped cleanly. If it is empty, the node saves nothing, and gives no votes for MaxLease
	// and 16 % more after each start.
	StateDir string

	MaxLease time.Duration // longest lease that clients may have; default 30 s
	// PreviousMaxLease is the longest lease that the cluster allowed before MaxLease was
	// lowered. A node that may have forgotten votes waits for the longer of the two. A node
	// with a StateDir remembers it. Default 0; at most 24 h.
	PreviousMaxLease time.Duration

	MaxSkew time.Duration // how far a client's clock may be ahead; default 5 s, at most MaxLease

	MaxClaims int // claims, held and waiting, of one client name; default 250,000
	MaxQueue  int // claims on one name beside one that holds it; default 65,536

	// ProbeWait is how long the node listens for another node of its name before its first
	// vote: at most a third of MaxLease. Default: 300 ms, or a quarter of MaxLease if that is
	// less. A node that was down or stood still for so long that another node may have
	// started in its place first listens for longer: for a thirtieth of MaxLease, or two
	// ProbeWaits if that is more. All nodes that may have the same name need the same
	// ProbeWait.
	ProbeWait time.Duration

	// NoService keeps the node out of `nats micro ls`. The node then needs no permission for
	// $SRV.>.
	NoService bool

	// Logger receives what an operator should know. Default: nothing is logged. The node
	// never waits for the logger: lines that it does not accept in time are dropped and
	// counted (NodeStats.LogDropped). Only Close waits, for 1 s at most. A logger that blocks
	// forever keeps one goroutine forever.
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
	case c.Join && len(c.Nodes) > 0:
		return errors.New("qlock: NodeConfig has both Join and Nodes: a node that joins learns the list from the cluster")
	case c.Join && c.StateDir == "":
		return errors.New("qlock: NodeConfig.StateDir is empty: a node that joins needs a directory that identifies it")
	case c.Join:
	case len(c.Nodes) == 0:
		return errors.New("qlock: NodeConfig.Nodes is empty: it must list the names of all nodes of the cluster")
	case len(c.Nodes) > wire.MaxNodes:
		return fmt.Errorf("qlock: NodeConfig.Nodes has %d names, at most %d are allowed", len(c.Nodes), wire.MaxNodes)
	case len(slices.Compact(sorted)) != len(c.Nodes):
		return fmt.Errorf("qlock: NodeConfig.Nodes has a name twice: %v", c.Nodes)
	case !slices.Contains(c.Nodes, c.Name):
		return fmt.Errorf("qlock: NodeConfig.Name %q is not among Nodes %v", c.Name, c.Nodes)
	}
	switch {
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

// driver returns the configuration as the driver has it.
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

// Node is one voting node on a NATS connection. Its methods are safe for concurrent use.
type Node struct {
	node *driver.Node
	name string
	log  *natsio.Log
}

// StartNode starts a node on a NATS connection. The connection remains the caller's: StartNode
// does not close it. The node is registered as a service named qlock, for `nats micro`. The
// registration wraps the connection's handlers for errors and closing; see
// NodeConfig.NoService.
//
// StartNode returns when the node serves requests and has listened for [NodeConfig.ProbeWait]
// for another node of its name. It fails if there is one, and when ctx ends before that, also
// on a connection that does not respond. A node that may have forgotten votes still waits
// before it votes: see WaitReady, and Bootstrap for a new cluster.
func StartNode(ctx context.Context, nc *nats.Conn, cfg NodeConfig) (*Node, error) {
	if nc == nil {
		return nil, errors.New("qlock: StartNode: the connection is nil")
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if nc.Opts.NoEcho { // set when the connection was made, and never changed
		return nil, errors.New("qlock: StartNode: the NATS connection was made with nats.NoEcho, so the node would not hear the requests that it sends to its own name: connect without it")
	}
	c := cfg.driver()
	n, err := driver.StartNode(ctx, nc, c)
	if err != nil {
		return nil, err
	}
	return &Node{node: n, name: cfg.Name, log: c.Log}, nil
}

// Name returns the node's name.
func (n *Node) Name() string { return n.name }

// Ready reports whether the node gives votes now.
func (n *Node) Ready() bool { return n.node.Ready() }

// Done is closed when the node stops serving: after Close, when it finds that an older node has
// its name, or when its NATS connection is closed permanently, by the program or by the client
// library (see nats.IgnoreAuthErrorAbort and nats.MaxReconnects). Err says which. A program that
// goes on should call Close and start the node again on another connection.
func (n *Node) Done() <-chan struct{} { return n.node.Done() }

// Err returns why the node stopped serving: ErrClosed after Close, ErrClosed wrapped with the
// connection's error if the connection was closed permanently, or another error if an older
// node has the name. It is nil until Done is closed.
func (n *Node) Err() error { return n.node.Err() }

// WaitReady waits until the node votes. It fails if ctx ends, or the node stops serving, before
// that.
func (n *Node) WaitReady(ctx context.Context) error { return n.node.WaitReady(ctx) }

// Close stops the node cleanly: it saves its votes and queues in the state directory, so that
// the node can vote at once when it starts again. The connection stays open. If it does not
// respond, Close waits for it for 1 s at most. Calling Close again does nothing.
func (n *Node) Close() error { return n.node.Close(driver.Clean) }

// Package qlocktest crashes nodes in tests. Production code has no way to do it.
func init() {
	crash.Node = func(n any) error { return n.(*Node).node.Close(driver.Crash) }
}
