package election_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/qlock/qlock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The tests of this file's world run in virtual time, as those of the root package do: see
// harness_test.go there.

const lease = 10 * time.Second

// bubble runs f in virtual time, with a world of three nodes.
func bubble(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	emptyPools()
	defer emptyPools()
	synctest.Test(t, func(t *testing.T) {
		watchdog := time.AfterFunc(2*time.Hour, func() { panic("the test has not ended within two hours of virtual time") })
		defer watchdog.Stop()
		f(t, newWorld(t))
	})
}

// emptyPools empties every sync.Pool: nats.go keeps timers there, and those of one bubble
// may not be used in another.
func emptyPools() {
	runtime.GC()
	runtime.GC()
}

// world is a nats-server with the three nodes of a cluster.
type world struct {
	t     *testing.T
	srv   *server.Server
	nodes []*qlock.Node
}

func newWorld(t *testing.T) *world {
	t.Helper()
	s, err := server.NewServer(&server.Options{ServerName: "test", DontListen: true, NoLog: true, NoSigs: true, NoFastProducerStall: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	w := &world{t: t, srv: s}
	names := []string{"n1", "n2", "n3"}
	for _, name := range names {
		cfg := qlock.NodeConfig{Name: name, Nodes: names, StateDir: t.TempDir(), NoService: true}
		if err := qlock.Bootstrap(cfg); err != nil {
			t.Fatal(err)
		}
		n, err := qlock.StartNode(t.Context(), w.connect().Conn, cfg)
		if err == nil {
			err = n.WaitReady(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = n.Close() })
		w.nodes = append(w.nodes, n)
	}
	return w
}

// link is a connection that can be cut.
type link struct {
	*nats.Conn
	srv nats.InProcessConnProvider

	mu    sync.Mutex // guards what follows
	isCut bool
	conns []net.Conn
}

func (l *link) InProcessConn() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isCut {
		return nil, errors.New("cut by the test")
	}
	c, err := l.srv.InProcessConn()
	if err == nil {
		l.conns = append(l.conns, c)
	}
	return c, err
}

// cut breaks the connection until mend.
func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isCut = true
	for _, c := range l.conns {
		_ = c.Close()
	}
	l.conns = nil
}

func (l *link) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isCut = false
}

func (w *world) connect() *link {
	w.t.Helper()
	l := &link{srv: w.srv}
	nc, err := nats.Connect("", nats.InProcessServer(l), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond), nats.ReconnectJitter(0, 0),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		w.t.Fatal(err)
	}
	l.Conn = nc
	w.t.Cleanup(nc.Close)
	return l
}

// client makes a Locker on a connection of its own.
func (w *world) client(name string, opts ...qlock.Option) (*qlock.Locker, *link) {
	w.t.Helper()
	nc := w.connect()
	l, err := qlock.New(w.t.Context(), nc.Conn, append([]qlock.Option{qlock.WithName(name), qlock.WithLease(lease)}, opts...)...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = l.Close() })
	return l, nc
}

// noClaims checks that no node knows of any claim any more.
func (w *world) noClaims() {
	w.t.Helper()
	synctest.Wait()
	for _, n := range w.nodes {
		if c := n.Stats().Claims; c != 0 {
			w.t.Errorf("%s still has %d claims", n.Name(), c)
		}
	}
}

// within is the test's context with a deadline.
func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// wantError checks what errors.Is finds in an error, and what it tells a person.
func wantError(t testing.TB, err error, target error, words ...string) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("error is not %q: %v", target, err)
	}
	for _, w := range words {
		if !strings.Contains(fmt.Sprint(err), w) {
			t.Errorf("error does not say %q: %v", w, err)
		}
	}
}
