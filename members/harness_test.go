package members_test

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

// bubble runs f in virtual time, with three nodes on one server inside the process. A
// goroutine that outlives a bubble makes its test panic.
func bubble(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	// nats.go keeps timers in a sync.Pool, and a timer of one bubble may not be used in
	// another. What is in a pool survives one collection.
	empty := func() { runtime.GC(); runtime.GC() }
	empty()
	defer empty()
	synctest.Test(t, func(t *testing.T) {
		watchdog := time.AfterFunc(2*time.Hour, func() { panic("the test has not ended within two hours of virtual time") })
		defer watchdog.Stop()
		f(t, newWorld(t))
	})
}

const lease = 10 * time.Second

type world struct {
	t   *testing.T
	srv *server.Server
}

func newWorld(t *testing.T) *world {
	t.Helper()
	srv, err := server.NewServer(&server.Options{ServerName: "test", DontListen: true, NoLog: true, NoSigs: true, NoFastProducerStall: true})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(5 * time.Second) {
		t.Fatal("the server is not ready")
	}
	w := &world{t, srv}
	names := []string{"n1", "n2", "n3"}
	for _, name := range names {
		cfg := qlock.NodeConfig{Name: name, Nodes: names, StateDir: t.TempDir(), NoService: true}
		if err := qlock.Bootstrap(cfg); err != nil {
			t.Fatal(err)
		}
		n, err := qlock.StartNode(within(t, 5*time.Second), w.connect().Conn, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		})
		if err := n.WaitReady(within(t, time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// link is a connection that can be cut.
type link struct {
	*nats.Conn
	srv nats.InProcessConnProvider

	mu    sync.Mutex // guards what follows
	isCut bool
	last  net.Conn
}

func (l *link) InProcessConn() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isCut {
		return nil, errors.New("cut by the test")
	}
	c, err := l.srv.InProcessConn()
	l.last = c
	return c, err
}

func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isCut = true
	_ = l.last.Close()
}

func (l *link) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isCut = false
}

func (w *world) connect() *link {
	w.t.Helper()
	l := &link{srv: w.srv}
	nc, err := nats.Connect("", nats.InProcessServer(l), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond),
		nats.ReconnectJitter(0, 0), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		w.t.Fatal(err)
	}
	l.Conn = nc
	w.t.Cleanup(nc.Close)
	return l
}

func (w *world) client(name string, opts ...qlock.Option) (*qlock.Locker, *link) {
	w.t.Helper()
	nc := w.connect()
	l, err := qlock.New(w.t.Context(), nc.Conn, append([]qlock.Option{qlock.WithName(name), qlock.WithLease(lease)}, opts...)...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := l.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return l, nc
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func settle() { synctest.Wait() }

func wantIs(t *testing.T, err error, targets ...error) {
	t.Helper()
	for _, target := range targets {
		if !errors.Is(err, target) {
			t.Errorf("error is not %q: %v", target, err)
		}
	}
}

func wantText(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(fmt.Sprint(err), w) {
			t.Errorf("error does not say %q: %v", w, err)
		}
	}
}
