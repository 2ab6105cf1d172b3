package qlocktest

import (
	"net/url"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/internal/testproxy"
)

// newLinks makes a proxy for each server and each other server that it dials.
func newLinks(n int) (map[[2]int]*testproxy.Proxy, error) {
	links := map[[2]int]*testproxy.Proxy{}
	for i := range n {
		for j := range n {
			if i == j {
				continue
			}
			p, err := testproxy.New("", 0)
			if err != nil {
				return links, err
			}
			links[[2]int{i, j}] = p
		}
	}
	return links, nil
}

// link replaces the routes of a server to all others by proxies, for its first start and
// for later ones.
func (c *Cluster) link(i int, s *embedded.Config) {
	for j, route := range s.Routes { // routes to the servers before it, which run
		if u, err := url.Parse(route); err == nil {
			c.target(j, u.Host)
		}
	}
	s.Routes = nil
	for j := range s.Node.Nodes {
		if j != i {
			s.Routes = append(s.Routes, "nats-route://"+c.links[[2]int{i, j}].Addr())
		}
	}
}

// noWayAround makes servers advertise to each other an address that leads nowhere.
// Otherwise they would connect to each other without the proxies.
func noWayAround(s *embedded.Config) {
	change := s.Options
	s.Options = func(o *server.Options) {
		o.Cluster.Advertise = "127.0.0.1:1"
		if change != nil {
			change(o)
		}
	}
}

// target tells the proxies the address of the server j.
func (c *Cluster) target(j int, addr string) {
	for link, p := range c.links {
		if link[1] == j {
			p.SetTarget(addr)
		}
	}
}

func pair(i, j int) [2]int { return [2]int{min(i, j), max(i, j)} }

// Cut breaks the link between two servers until Mend. Messages between them are lost,
// including those on the way, and no other server forwards them. The cluster must have
// been started with WithLinks.
//
// Clients of both servers stay connected. They reach those nodes that their own server
// reaches.
func (c *Cluster) Cut(t testing.TB, one, other string) {
	t.Helper()
	c.needLinks(t, "Cut")
	i, j := c.index(t, one), c.index(t, other)
	if i == j {
		t.Fatalf("qlocktest: Cut: %s has no link to itself", one)
	}
	c.breakLink(pair(i, j))
}

// Isolate cuts all links of a server: see Cut.
func (c *Cluster) Isolate(t testing.TB, name string) {
	t.Helper()
	c.needLinks(t, "Isolate")
	i := c.index(t, name)
	for j := range c.names {
		if j != i {
			c.breakLink(pair(i, j))
		}
	}
}

// Mend repairs all links that are cut, and waits until all running servers are connected to
// each other.
func (c *Cluster) Mend(t testing.TB) {
	t.Helper()
	c.needLinks(t, "Mend")
	for _, p := range c.links {
		p.Heal()
	}
	c.mu.Lock()
	clear(c.cut)
	c.mu.Unlock()
	ctx, cancel := withPatience(t)
	defer cancel()
	c.wait(ctx, t, "Mend", "answer", answered, everybody)
}

func (c *Cluster) breakLink(link [2]int) {
	c.mu.Lock()
	c.cut[link] = true
	c.mu.Unlock()
	c.links[link].Cut()
	c.links[[2]int{link[1], link[0]}].Cut()
}

func (c *Cluster) needLinks(t testing.TB, what string) {
	t.Helper()
	if c.links == nil {
		t.Fatalf("qlocktest: %s: the links of this cluster cannot be cut: start it with WithLinks()", what)
	}
}
