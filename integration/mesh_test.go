package integration

import (
	"fmt"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/internal/testproxy"
)

// mesh is a cluster with a proxy on every route.
type mesh struct {
	servers []*embedded.Server
	links   [][]*testproxy.Proxy // links[i][j]: what i dials to reach j
}

func startMesh(t *testing.T, n int, lease time.Duration, change ...func(*server.Options)) *mesh {
	t.Helper()
	m := &mesh{links: make([][]*testproxy.Proxy, n)}
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("n%d", i+1))
		m.links[i] = make([]*testproxy.Proxy, n)
		for j := range n {
			p, err := testproxy.New("", uint64(i*n+j))
			must(t, err)
			t.Cleanup(func() { _ = p.Close() })
			m.links[i][j] = p
		}
	}
	ctx := testContext(t)
	for i := range n {
		cfg := embedded.Config{
			Node: qlock.NodeConfig{
				Name: names[i], Nodes: names, StateDir: filepath.Join(t.TempDir(), names[i]),
				MaxLease: lease, ProbeWait: 100 * time.Millisecond,
			},
			RoutePort: -1,
			// Gossip must not lead around the proxies: what it tells is a dead end.
			Options: func(o *server.Options) {
				o.Cluster.Advertise = "127.0.0.1:1"
				for _, f := range change {
					f(o)
				}
			},
		}
		for j := range n {
			if j != i {
				cfg.Routes = append(cfg.Routes, "nats-route://"+m.links[i][j].Addr())
			}
		}
		must(t, qlock.Bootstrap(cfg.Node))
		s, err := embedded.Start(ctx, cfg)
		must(t, err)
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		m.servers = append(m.servers, s)
		u, err := url.Parse(s.RouteURL())
		must(t, err)
		for j := range n {
			m.links[j][i].SetTarget(u.Host)
		}
	}
	m.whole(t)
	return m
}

// whole waits until every server hears every node again.
func (m *mesh) whole(t *testing.T) {
	t.Helper()
	for _, s := range m.servers {
		if s.Node() == nil {
			continue
		}
		d := 50 * time.Millisecond // soon again where a route comes up, and long where all is slow
		await(t, s.Name()+" hears all nodes", func() bool {
			d = min(2*d, 10*time.Second)
			return hears(t, s, len(m.servers), d)
		})
	}
}

// between does f with the two proxies between i and j; out is the direction from
// i to j in each.
func (m *mesh) between(i, j int, f func(p *testproxy.Proxy, out testproxy.Direction)) {
	f(m.links[i][j], testproxy.Out)
	f(m.links[j][i], testproxy.Back)
}

// isolate does f with the proxies between i and all others.
func (m *mesh) isolate(i int, f func(p *testproxy.Proxy, out testproxy.Direction)) {
	for j := range m.servers {
		if j != i {
			m.between(i, j, f)
		}
	}
}

// blackhole lets nothing pass in either direction, and delivers it late.
func blackhole(p *testproxy.Proxy, _ testproxy.Direction) { p.Block(testproxy.Both) }

// mute lets nothing pass from the first to the second, deafen nothing back.
func mute(p *testproxy.Proxy, out testproxy.Direction)   { p.Block(out) }
func deafen(p *testproxy.Proxy, out testproxy.Direction) { p.Block(testproxy.Both &^ out) }

// cut breaks connections, and what was under way is lost.
func cut(p *testproxy.Proxy, _ testproxy.Direction) { p.Cut() }

func slow(p *testproxy.Proxy, _ testproxy.Direction) {
	p.Delay(testproxy.Both, 20*time.Millisecond, 60*time.Millisecond)
}

func (m *mesh) heal() {
	for i := range m.links {
		for _, p := range m.links[i] {
			p.Heal()
		}
	}
}
