package embedded_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/qlocktest"
)

func startCluster(t *testing.T, n int, change ...func(int, *embedded.Config)) *embedded.Cluster {
	t.Helper()
	c, err := embedded.StartCluster(testContext(t), n, change...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestStartCluster(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			var dirs []string
			c := startCluster(t, n, func(i int, c *embedded.Config) {
				if want := fmt.Sprintf("n%d", i+1); c.Node.Name != want {
					t.Errorf("server %d is called %s", i, c.Node.Name)
				}
				dirs = append(dirs, c.Node.StateDir)
			})
			if len(c.Servers()) != n {
				t.Fatalf("%d servers, not %d", len(c.Servers()), n)
			}
			for i, s := range c.Servers() {
				if !s.Node().Ready() {
					t.Errorf("%s does not vote when StartCluster returns", s.Name())
				}
				// Of two routes between the same servers, one is given up, and the other may come later.
				await(t, s.Name()+" has its routes", func() bool { return s.NATS().NumRemotes() == n-1 })
				if _, err := os.Stat(dirs[i]); err != nil {
					t.Errorf("the state of %s: %v", s.Name(), err)
				}
				mustLock(t, s.Conn())
				mustLock(t, connect(t, s.ClientURL()))
			}
			for range 2 {
				if err := c.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			}
			for i, s := range c.Servers() {
				if s.Node() != nil {
					t.Errorf("%s outlived its cluster", s.Name())
				}
				if _, err := os.Stat(filepath.Dir(dirs[i])); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the state of %s outlived its cluster: %v", s.Name(), err)
				}
			}
		})
	}
}

func TestStartClusterOfImpossibleSize(t *testing.T) {
	t.Parallel()
	for _, n := range []int{-1, 0, 65} {
		if c, err := embedded.StartCluster(testContext(t), n); c != nil || err == nil {
			t.Errorf("StartCluster of %d nodes: %v, %v", n, c, err)
		}
	}
}

// Whenever the context ends, StartCluster leaves nothing behind, neither files
// nor servers; that it leaves no goroutine is found by goleak at the end.
func TestStartClusterEndsWithContext(t *testing.T) {
	// Not parallel: the directory for temporary files is the whole process's.
	for stage := range 4 {
		t.Run(fmt.Sprint("before server ", stage), func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("TMPDIR", dir)
			cause := errors.New("enough")
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			if stage == 3 {
				// All servers run, and the nodes listen for others of their names.
				timer := time.AfterFunc(200*time.Millisecond, func() { cancel(cause) })
				defer timer.Stop()
			}
			c, err := embedded.StartCluster(ctx, 3, func(i int, c *embedded.Config) {
				c.Node.ProbeWait, c.Node.MaxLease = time.Minute, time.Hour
				if i == stage {
					cancel(cause)
				}
			})
			if c != nil || !errors.Is(err, cause) {
				t.Errorf("StartCluster: %v, %v", c, err)
			}
			left, err := os.ReadDir(dir)
			if err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// A change that makes a server impossible fails the whole, with its reason.
func TestStartClusterFails(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	c, err := embedded.StartCluster(testContext(t), 3, func(i int, c *embedded.Config) {
		if i == 2 {
			c.Routes = append(c.Routes, "nonsense")
		}
	})
	if c != nil || err == nil {
		t.Errorf("StartCluster: %v, %v", c, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Any server of a cluster may stop and start again, at the place where it was.
func TestClusterRestart(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startCluster(t, 3, func(_ int, c *embedded.Config) { c.Node.MaxLease = 3 * time.Second })
	for _, s := range c.Servers() {
		client, route := s.ClientURL(), s.RouteURL()
		for _, stop := range []func() error{s.Close, func() error { return c.Crash(s.Name()) }} {
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			if err := s.Restart(ctx); err != nil {
				t.Fatal(err)
			}
			if s.ClientURL() != client || s.RouteURL() != route {
				t.Errorf("%s is at %s and %s, was at %s and %s", s.Name(), s.ClientURL(), s.RouteURL(), client, route)
			}
		}
		if err := c.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		mustLock(t, s.Conn())
	}
}

// A server starts again with the routes to all others, also to those that started
// after it, unless it was given others.
func TestClusterRoutes(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	var routes [3][]int // by server: how many, at each start
	c := startCluster(t, 3, func(i int, c *embedded.Config) {
		if i == 2 {
			c.Routes = c.Routes[:1]
		}
		c.Options = func(o *server.Options) { routes[i] = append(routes[i], len(o.Routes)) }
	})
	for _, s := range c.Servers() {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.Restart(ctx); err != nil {
			t.Fatal(err)
		}
		if err := c.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if want := [3][]int{{0, 3}, {1, 3}, {1, 1}}; !reflect.DeepEqual(routes, want) {
		t.Errorf("routes of the servers at each start: %v, want %v", routes, want)
	}
}

// WaitReady counts the running servers, and ends with its context if a node cannot vote.
func TestClusterWaitReady(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	servers := c.Servers()
	if err := servers[0].Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(testContext(t)); err != nil {
		t.Errorf("two of three run and vote: %v", err)
	}
	if err := c.Crash("n2"); err != nil {
		t.Fatal(err)
	}
	if err := servers[1].Restart(testContext(t)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := c.WaitReady(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one node is in quarantine: %v", err)
	}
}

func TestRoutePassword(t *testing.T) {
	t.Parallel()
	var log logged
	c := startCluster(t, 2, func(_ int, c *embedded.Config) {
		c.RouteUser, c.RoutePassword = "route", "secret"
		c.Logger = log.logger()
	})
	mustLock(t, c.Servers()[1].Conn())
	for name, change := range map[string]func(*embedded.Config){
		"wrong": func(c *embedded.Config) { c.RouteUser, c.RoutePassword = "route", "guess" },
		"none":  func(*embedded.Config) {},
	} {
		t.Run(name, func(t *testing.T) { notJoining(t, c, &log, "authentication error", change) })
	}
}

func TestRouteTLS(t *testing.T) {
	t.Parallel()
	ca, other := qlocktest.NewAuthority(t, "ours"), qlocktest.NewAuthority(t, "theirs")
	var log logged
	c := startCluster(t, 3, func(i int, c *embedded.Config) {
		c.RouteTLS = ca.Config(t, c.Node.Name)
		c.RouteTLS.ClientCAs = nil // RootCAs serve for both
		c.RouteUser, c.RoutePassword = "route", "secret"
		c.Logger = log.logger()
	})
	for _, s := range c.Servers() {
		await(t, s.Name()+" has its routes", func() bool { return s.NATS().NumRemotes() == 2 })
		mustLock(t, s.Conn())
	}
	password := func(c *embedded.Config) { c.RouteUser, c.RoutePassword = "route", "secret" }
	for name, change := range map[string]func(*embedded.Config){
		"no certificate": func(c *embedded.Config) {
			password(c)
			c.RouteTLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: ca.Pool()}
		},
		"foreign certificate": func(c *embedded.Config) {
			password(c)
			c.RouteTLS = other.Config(t, "intruder")
			c.RouteTLS.RootCAs = ca.Pool()
		},
	} {
		t.Run(name, func(t *testing.T) { notJoining(t, c, &log, "TLS route handshake error", change) })
	}
	t.Run("wrong password", func(t *testing.T) {
		notJoining(t, c, &log, "authentication error", func(cfg *embedded.Config) {
			cfg.RouteTLS = ca.Config(t, "intruder")
			cfg.RouteUser, cfg.RoutePassword = "route", "guess"
		})
	})
}

// notJoining starts a server that has the addresses of the cluster but not what
// it takes to join, waits until it was turned away as many times as there are
// servers, and until it stands alone.
func notJoining(t *testing.T, c *embedded.Cluster, log *logged, refusal string, change func(*embedded.Config)) {
	t.Helper()
	before := make(map[string]int)
	cfg := embedded.Config{
		Node:      qlock.NodeConfig{Name: "intruder", Nodes: []string{"intruder"}, NoService: true, ProbeWait: 20 * time.Millisecond},
		RoutePort: -1,
	}
	for _, s := range c.Servers() {
		cfg.Routes = append(cfg.Routes, s.RouteURL())
		before[s.Name()] = log.count("server="+s.Name(), refusal)
	}
	change(&cfg)
	s := start(t, cfg)
	for _, member := range c.Servers() {
		await(t, member.Name()+" turns the intruder away", func() bool {
			return log.count("server="+member.Name(), refusal) > before[member.Name()]
		})
	}
	// It counts a route until it has read that it was turned away.
	await(t, "the intruder has no route", func() bool { return s.NATS().NumRoutes() == 0 })
	for _, member := range c.Servers() {
		mustLock(t, member.Conn())
	}
}
