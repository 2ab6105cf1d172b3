package qlocktest_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/qlocktest"
)

// within returns a context for an event that must happen, or must not.
func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

const long = 2 * time.Minute

func mustLock(t testing.TB, l *qlock.Locker, name string) *qlock.Lock {
	t.Helper()
	k, err := l.Lock(within(t, long), name)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Clusters do not hear each other, also when all of them have the same names.
func TestParallel(t *testing.T) {
	t.Parallel()
	for i := range 4 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			c := qlocktest.StartCluster(t, 1+2*(i%2), qlocktest.WithLease(10*time.Second))
			a, b := c.Locker(t), c.Locker(t)
			if a.Name() != "client1" || b.Name() != "client2" {
				t.Errorf("the Lockers are called %s and %s", a.Name(), b.Name())
			}
			mustLock(t, a, "the same")
			_, err := b.TryLock(within(t, long), "the same")
			if e, ok := errors.AsType[*qlock.LockError](err); !ok || !errors.Is(err, qlock.ErrHeld) || !strings.Contains(e.Error(), "client1") {
				t.Errorf("TryLock: %v", err)
			}
		})
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	c := qlocktest.StartCluster(t, 3, qlocktest.WithName("orders"), qlocktest.WithLease(2*time.Second), qlocktest.WithConfig(func(i int, c *embedded.Config) {
		if want := fmt.Sprintf("n%d", i+1); c.Node.Name != want {
			t.Errorf("server %d is called %s", i, c.Node.Name)
		}
		c.Node.MaxQueue = 10
	}))
	if want := []string{"n1", "n2", "n3"}; !slices.Equal(c.Names(), want) || c.Lease() != 2*time.Second || len(c.Servers()) != 3 {
		t.Errorf("nodes %v, lease %v, %d servers", c.Names(), c.Lease(), len(c.Servers()))
	}
	l := c.LockerOn(t, c.Connect(t, nats.Name("my service")), qlock.WithLease(time.Second))
	if l.Cluster() != "orders" || l.Name() != "my-service" {
		t.Errorf("Locker %s of cluster %s", l.Name(), l.Cluster())
	}
	if l := c.LockerOn(t, c.Server(t, "n2").Conn(), qlock.WithName("inside")); l.Name() != "inside" {
		t.Errorf("Locker %s", l.Name())
	}
	m, err := l.Members(within(t, long))
	if err != nil || m.Config.MaxLease != 2*time.Second || m.Voting() != 3 {
		t.Errorf("%v, %v", m, err)
	}
}

// A node that stopped cleanly votes at once when it starts again. A node that crashed
// waits.
func TestStopAndRestart(t *testing.T) {
	t.Parallel()
	// The lease is longer than any wait of this package: a node that waits for it does not vote.
	c := qlocktest.StartCluster(t, 3, qlocktest.WithLease(10*time.Minute))
	l := c.Locker(t)
	url := c.URL()
	c.Stop(t, "n1", "n2")
	c.Restart(t, "n1", "n2")
	c.WaitVotes(t)
	c.Crash(t, "n1")
	c.WaitQuorum(t)
	mustLock(t, l, "a")
	c.Restart(t, "n1")
	if s := c.Server(t, "n1").Node().Stats().State; s == qlock.NodeVoting {
		t.Error("after a crash n1 votes at once")
	}
	c.WaitQuorum(t) // n2 and n3
	if c.URL() != url {
		t.Errorf("the servers are at %s, were at %s", c.URL(), url)
	}
}

func TestCut(t *testing.T) {
	t.Parallel()
	c := qlocktest.StartCluster(t, 3, qlocktest.WithLinks(), qlocktest.WithLease(5*time.Second))
	c.Cut(t, "n2", "n1")
	for name, want := range map[string][]string{"n1": {"n1", "n3"}, "n2": {"n2", "n3"}, "n3": {"n1", "n2", "n3"}} {
		// On a slow machine a node that can be heard may answer too late, and is asked again.
		var got []string
		for asking := within(t, 2*time.Minute); !slices.Equal(got, want) && asking.Err() == nil; {
			ctx, cancel := context.WithTimeout(asking, 500*time.Millisecond)
			m, err := qlock.QueryMembers(ctx, c.Server(t, name).Conn())
			cancel()
			if err != nil {
				continue // the question could not be asked in time
			}
			got = nil
			for _, n := range m.Nodes {
				if n.Answered {
					got = append(got, n.Name)
				}
			}
			if len(got) > len(want) {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s hears %v, want %v", name, got, want)
		}
	}
	c.WaitQuorum(t)
	c.WaitVotes(t)
	mustLock(t, c.LockerOn(t, c.ConnectTo(t, "n2")), "a")

	// A link that is cut stays cut when a server starts again.
	for _, name := range c.Names() {
		c.Isolate(t, name)
	}
	for _, name := range c.Names() {
		c.Stop(t, name)
		c.Restart(t, name)
	}
	for _, s := range c.Servers() {
		if n := s.NATS().NumRoutes(); n > 0 {
			t.Errorf("%s, which is isolated, has %d routes", s.Name(), n)
		}
	}
	c.Mend(t)
	c.WaitVotes(t)
}

func TestDisconnect(t *testing.T) {
	t.Parallel()
	c := qlocktest.StartCluster(t, 1)
	nc := c.Connect(t)
	l := c.LockerOn(t, nc)
	k := mustLock(t, l, "a")
	for range 2 {
		c.Disconnect(t, nc)
	}
	select {
	case <-k.Context().Done():
	case <-time.After(long):
		t.Fatal("the lock of a client that is cut off is never lost")
	}
	for range 2 {
		c.Reconnect(t, nc)
	}
	mustLock(t, l, "a")
	c.Disconnect(t, nc) // and the test ends
}

func TestTLS(t *testing.T) {
	t.Parallel()
	ca := qlocktest.NewAuthority(t, "ours")
	c := qlocktest.StartCluster(t, 2, qlocktest.WithTLS(ca), qlocktest.WithConfig(func(_ int, c *embedded.Config) {
		c.Username, c.Password = "svc", "secret"
		c.Options = func(o *server.Options) { o.TLSVerify = true }
	}))
	f := ca.WriteFiles(t, t.TempDir(), "svc")
	nc := c.Connect(t, nats.UserInfo("svc", "secret"), nats.ClientCert(f.Cert, f.Key), nats.RootCAs(f.CA))
	mustLock(t, c.LockerOn(t, nc), "a")
	if _, err := nc.TLSConnectionState(); err != nil {
		t.Error(err)
	}
	mustLock(t, c.LockerOn(t, c.Connect(t, nats.UserInfo("svc", "secret"), nats.Secure(ca.Config(t, "svc")))), "b")
	other := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: qlocktest.NewAuthority(t, "theirs").Pool(), Certificates: []tls.Certificate{ca.Certificate(t, "svc")}}
	if nc, err := nats.Connect(c.URL(), nats.Secure(other), nats.UserInfo("svc", "secret")); err == nil {
		nc.Close()
		t.Error("a client that trusts another authority connected")
	}
}

func TestFreePort(t *testing.T) {
	t.Parallel()
	seen := map[int]bool{}
	for range 20 {
		port := qlocktest.FreePort(t)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		if seen[port] {
			t.Errorf("port %d twice", port)
		}
		seen[port] = true
	}
}

// What the test starts by itself crashes as well.
func TestCrashOfOthers(t *testing.T) {
	t.Parallel()
	cfg := embedded.Config{Node: qlock.NodeConfig{
		Name: "n1", Nodes: []string{"n1"}, StateDir: t.TempDir(), MaxLease: time.Second, ProbeWait: 20 * time.Millisecond,
	}}
	if err := qlock.Bootstrap(cfg.Node); err != nil {
		t.Fatal(err)
	}
	s, err := embedded.Start(within(t, long), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	qlocktest.CrashNode(t, s.Node())
	if err := s.Node().Err(); !errors.Is(err, qlock.ErrClosed) {
		t.Errorf("the node of a crash: %v", err)
	}
	for range 2 {
		qlocktest.CrashServer(t, s)
	}
	if s.Node() != nil {
		t.Error("the server outlived its crash")
	}
}

// Errors of calls that are impossible say what to do.
func TestFailures(t *testing.T) {
	start := func(n int, opts ...qlocktest.Option) func(testing.TB) {
		return func(t testing.TB) { qlocktest.StartCluster(t, n, opts...) }
	}
	with := func(f func(t testing.TB, c *qlocktest.Cluster)) func(testing.TB) {
		return func(t testing.TB) { f(t, qlocktest.StartCluster(t, 2)) }
	}
	for want, f := range map[string]func(testing.TB){
		"StartCluster: qlock/embedded: StartCluster: 0 nodes": start(0),
		"MaxLease 1ms: it must be within 10ms":                start(1, qlocktest.WithLease(time.Millisecond)),
		`the cluster name "a b"`:                              start(1, qlocktest.WithName("a b")),
		`no node "n3": its nodes are n1, n2`:                  with(func(t testing.TB, c *qlocktest.Cluster) { c.Crash(t, "n3") }),
		"Stop: name the nodes, of n1, n2":                     with(func(t testing.TB, c *qlocktest.Cluster) { c.Stop(t) }),
		"start it with WithLinks()":                           with(func(t testing.TB, c *qlocktest.Cluster) { c.Cut(t, "n1", "n2") }),
		"WaitQuorum: 1 of 2 nodes run, and no server reaches 2": with(func(t testing.TB, c *qlocktest.Cluster) {
			c.Crash(t, "n1")
			c.WaitQuorum(t)
		}),
		"Disconnect: the connection was not made by Connect": with(func(t testing.TB, c *qlocktest.Cluster) {
			c.Disconnect(t, c.Server(t, "n1").Conn())
		}),
		"client1 cannot connect to [nats://127.0.0.1:": with(func(t testing.TB, c *qlocktest.Cluster) {
			c.Crash(t, "n1")
			c.ConnectTo(t, "n1")
		}),
		"the Locker of client1": with(func(t testing.TB, c *qlocktest.Cluster) { c.Locker(t, qlock.WithLease(time.Hour)) }),
		"Cut: n1 has no link to itself": func(t testing.TB) {
			qlocktest.StartCluster(t, 2, qlocktest.WithLinks()).Cut(t, "n1", "n1")
		},
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			if got := runTest(f); !got.failed || !strings.Contains(got.text(), want) {
				t.Errorf("failed: %v, said %s", got.failed, got.text())
			}
		})
	}
}

// The log is for tests that fail.
func TestLog(t *testing.T) {
	t.Parallel()
	for _, fails := range []bool{false, true} {
		got := runTest(func(t testing.TB) {
			c := qlocktest.StartCluster(t, 1)
			c.Locker(t)
			if fails {
				t.Errorf("it fails")
			}
		})
		logged := strings.Contains(got.text(), "the log of the cluster") && strings.Contains(got.text(), "server=n1")
		if got.failed != fails || logged != fails {
			t.Errorf("failed: %v, want %v; said %s", got.failed, fails, got.text())
		}
	}
}

// Nothing is left of a test, neither goroutines nor files, however it ends.
func TestNothingIsLeft(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	for what, f := range map[string]func(t testing.TB){
		"success": func(t testing.TB) {
			c := qlocktest.StartCluster(t, 3, qlocktest.WithLinks())
			nc := c.Connect(t)
			mustLock(t, c.LockerOn(t, nc), "a")
			c.Disconnect(t, nc)
			c.Isolate(t, "n1")
			c.Crash(t, "n2")
		},
		"failure": func(t testing.TB) {
			c := qlocktest.StartCluster(t, 3)
			mustLock(t, c.Locker(t), "a")
			t.Fatalf("it fails")
		},
		"a cluster that does not start": func(t testing.TB) {
			qlocktest.StartCluster(t, 3, qlocktest.WithLinks(), qlocktest.WithConfig(func(i int, c *embedded.Config) {
				if i == 2 {
					c.Routes = append(c.Routes, "nonsense")
				}
			}))
		},
	} {
		got := runTest(f)
		if got.failed != (what != "success") {
			t.Errorf("%s: failed: %v, said %s", what, got.failed, got.text())
		}
		if err := goleak.Find(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: left behind: %v, %v", what, left, err)
		}
	}
}
