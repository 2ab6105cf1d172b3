package embedded

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/loopback"
	"github.com/qlock/qlock/internal/wire"
)

// Cluster is several servers in one process, for demonstrations. Package qlocktest offers
// more for tests.
type Cluster struct {
	servers []*Server
	dir     string
	ports   []*loopback.Port // of the servers, kept while one of them is down
}

// StartCluster starts n servers with a node in each, on loopback and free ports, as one
// NATS cluster and one lock cluster. n is 1 to 64. The cluster is bootstrapped. When
// StartCluster returns, all nodes hear each other and vote. The state is in a temporary
// directory until Close.
//
// Each change may alter the configuration of one server, the i-th of n, before it starts.
// Its Routes are then those of the servers before it. Unless they are changed, a later
// restart uses the routes of all servers.
func StartCluster(ctx context.Context, n int, change ...func(i int, c *Config)) (*Cluster, error) {
	if n < 1 || n > wire.MaxNodes {
		return nil, fmt.Errorf("qlock/embedded: StartCluster: %d nodes, allowed are 1 to %d", n, wire.MaxNodes)
	}
	dir, err := os.MkdirTemp("", "qlock-")
	if err != nil {
		return nil, fmt.Errorf("qlock/embedded: StartCluster: %w", err)
	}
	c := &Cluster{dir: dir}
	if err := c.start(ctx, n, change); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context, n int, change []func(int, *Config)) error {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("n%d", i+1))
	}
	// The servers start first, one after the other, each with routes to those before it. That
	// gives the whole mesh.
	var routes []string
	own := make([]bool, n) // the server has routes of its own
	for i, name := range names {
		port, err := c.reserve()
		if err != nil {
			return err
		}
		routePort, err := c.reserve()
		if err != nil {
			return err
		}
		cfg := Config{
			Node: qlock.NodeConfig{
				Name: name, Nodes: names, StateDir: filepath.Join(c.dir, name),
				ProbeWait: 100 * time.Millisecond, // enough on loopback
			},
			Port: port, RoutePort: routePort, Routes: append([]string(nil), routes...),
		}
		for _, f := range change {
			f(i, &cfg)
		}
		if err := qlock.Bootstrap(cfg.Node); err != nil {
			return err
		}
		own[i] = !slices.Equal(cfg.Routes, routes)
		s := &Server{cfg: withLogger(cfg)}
		c.servers = append(c.servers, s)
		if err := s.startServer(ctx); err != nil {
			return err
		}
		routes = append(routes, s.RouteURL())
	}
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i, s := range c.servers {
		if !own[i] {
			s.cfg.Routes = routes // for a later restart
		}
		wg.Go(func() { errs[i] = s.startNode(ctx) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return c.WaitReady(ctx)
}

// reserve reserves a port for a server that may stop and start again. It returns -1, which
// means any free port, where a port cannot be reserved.
func (c *Cluster) reserve() (int, error) {
	p, err := loopback.Reserve()
	if err != nil {
		return 0, fmt.Errorf("qlock/embedded: StartCluster: %w", err)
	}
	c.ports = append(c.ports, p)
	return cmp.Or(p.Number, -1), nil
}

// WaitReady waits until every running server hears the votes of all other running servers.
// Routes alone are not enough for that: the subscriptions must have crossed them.
func (c *Cluster) WaitReady(ctx context.Context) error {
	want := map[string]int{}
	for _, s := range c.servers {
		if s.Node() != nil {
			want[s.cfg.Node.Cluster]++
		}
	}
	for _, s := range c.servers {
		if s.Node() == nil {
			continue
		}
		if err := waitVotes(ctx, s, want[s.cfg.Node.Cluster]); err != nil {
			return err
		}
	}
	return nil
}

// waitVotes asks the nodes until want of them answer that they vote.
func waitVotes(ctx context.Context, s *Server, want int) error {
	nc := s.Conn()
	if nc == nil {
		return fmt.Errorf("qlock/embedded: %s was stopped while it was waited for", s.Name())
	}
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		voting, err := countVotes(ctx, nc, s.cfg.Node)
		switch {
		case voting >= want:
			return nil
		case errors.Is(err, qlock.ErrClosed), errors.Is(err, qlock.ErrRefused):
			return fmt.Errorf("qlock/embedded: %s: %w", s.Name(), err)
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("qlock/embedded: %s hears the votes of %d of %d nodes: %w", s.Name(), voting, want, context.Cause(ctx))
		}
	}
}

// countVotes counts the nodes that say they vote. It waits only briefly for the others: the
// nodes that answer also list one that is down.
func countVotes(ctx context.Context, nc *nats.Conn, cfg qlock.NodeConfig) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	m, err := qlock.QueryMembers(ctx, nc, qlock.WithCluster(or(cfg.Cluster, qlock.DefaultCluster)), qlock.WithName(cfg.Name))
	if err != nil {
		return 0, err
	}
	return m.Voting(), nil
}

// Servers returns the cluster's servers in the order of their names, n1 first. Stop one
// with Server.Close or Crash, and start it again with Server.Restart.
func (c *Cluster) Servers() []*Server { return c.servers }

// Crash stops the server called name, and its node, as if their process were killed: the
// node saves nothing. After Server.Restart, the node does not vote until all votes that it
// may have given have expired.
func (c *Cluster) Crash(name string) error {
	for _, s := range c.servers {
		if s.Name() == name {
			return s.crash()
		}
	}
	return fmt.Errorf("qlock/embedded: Crash: the cluster has no server called %q", name)
}

// Close stops all servers and removes their state.
func (c *Cluster) Close() error {
	var errs []error
	for _, s := range c.servers {
		errs = append(errs, s.Close())
	}
	for _, p := range c.ports {
		errs = append(errs, p.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(c.dir))...)
}
