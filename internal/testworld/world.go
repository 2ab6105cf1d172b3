// Package testworld has what the tests of the library and of its recipes run in: a
// cluster on one server in virtual time (Run, World), connections that can be cut (Link),
// faults for a real cluster (Faults), and checks of errors. Only tests may import it;
// internal/rules checks that.
//
// In virtual time (testing/synctest), messages take no time, and time advances only when
// all goroutines wait for it. After synctest.Wait every message has been delivered and
// handled. So tests can measure waits to the microsecond and need no tolerances, and no
// test really sleeps. A goroutine that outlives its bubble makes the test panic.
package testworld

import (
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats-server/v2/server/ats"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

// Bubble runs f in virtual time.
func Bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	// nats.go keeps timers in a sync.Pool. A timer of one bubble may not be used in another, or
	// outside. A reconnect uses such a timer, whatever the test calls.
	emptyPools()
	defer emptyPools()
	// JetStream has one clock for all servers of the process. Its goroutine must not be one of the
	// bubble: it waits for a channel from outside, and virtual time would stand still.
	ats.Register()
	defer ats.Unregister()
	synctest.Test(t, func(t *testing.T) {
		// The server's own timers keep virtual time advancing, so synctest would not report a
		// goroutine that waits forever as a deadlock.
		watchdog := time.AfterFunc(2*time.Hour, func() { panic("the test has not ended within two hours of virtual time") })
		defer watchdog.Stop()
		f(t)
	})
}

// emptyPools empties every sync.Pool. It takes two collections, because the content of a pool
// survives one.
func emptyPools() {
	runtime.GC()
	runtime.GC()
}

// Run runs f in virtual time, in a world with three nodes.
func Run(t *testing.T, f func(t *testing.T, w *World)) {
	t.Helper()
	Bubble(t, func(t *testing.T) { f(t, newWorld(t)) })
}

// Lease is the lease of a World's clients.
const Lease = 10 * time.Second

// ReconnectWait is the pause of a Link between two attempts to reconnect.
const ReconnectWait = 100 * time.Millisecond

// World is a nats-server with the three nodes of a cluster. Each node has a connection of
// its own.
type World struct {
	Server *server.Server
	Nodes  []*qlock.Node

	t *testing.T
}

func newWorld(t *testing.T) *World {
	t.Helper()
	w := &World{t: t, Server: StartServer(t, nil)}
	names := []string{"n1", "n2", "n3"}
	for _, name := range names {
		// Closing a service calls Drain, which calls Flush, which uses a pooled timer.
		cfg := qlock.NodeConfig{Name: name, Nodes: names, StateDir: t.TempDir(), NoService: true}
		if err := qlock.Bootstrap(cfg); err != nil {
			t.Fatal(err)
		}
		n, err := qlock.StartNode(Within(t, 5*time.Second), w.Connect().Conn, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		})
		if err := n.WaitReady(Within(t, time.Second)); err != nil {
			t.Fatal(err)
		}
		w.Nodes = append(w.Nodes, n)
	}
	return w
}

// StartServer starts a nats-server that can be reached inside this process only, and stops
// it when the test ends. change, if it is not nil, changes its options.
func StartServer(t testing.TB, change func(o *server.Options)) *server.Server {
	t.Helper()
	s, err := server.NewServer(ServerOptions(change))
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(2 * time.Minute) {
		t.Fatal("the server is not ready")
	}
	return s
}

// JetStream starts a server with JetStream, apart from the nodes, so that each can fail by
// itself. Keep streams in memory: the wait for a disk is not virtual.
func (w *World) JetStream() *server.Server {
	w.t.Helper()
	return StartServer(w.t, func(o *server.Options) { o.JetStream, o.StoreDir = true, w.t.TempDir() })
}

// ServerOptions returns the options of StartServer.
func ServerOptions(change func(o *server.Options)) *server.Options {
	o := &server.Options{ServerName: "test", DontListen: true, NoLog: true, NoSigs: true, NoFastProducerStall: true}
	if change != nil {
		change(o)
	}
	return o
}

// Connect makes a connection to the world's server: see Connect.
func (w *World) Connect(opts ...nats.Option) *Link {
	w.t.Helper()
	return Connect(w.t, w.Server, opts...)
}

// Client makes a Locker on a connection of its own, with the options that qlock.New
// recommends, and closes it when the test ends.
func (w *World) Client(name string, opts ...qlock.Option) (*qlock.Locker, *Link) {
	w.t.Helper()
	nc := w.Connect(nats.PingInterval(Lease/5), nats.MaxPingsOutstanding(1))
	l, err := qlock.New(w.t.Context(), nc.Conn, append([]qlock.Option{qlock.WithName(name), qlock.WithLease(Lease)}, opts...)...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := l.Close(); err != nil {
			w.t.Errorf("close %s: %v", name, err)
		}
	})
	return l, nc
}

// NoClaims checks that no node has a claim.
func (w *World) NoClaims() {
	w.t.Helper()
	synctest.Wait()
	for _, n := range w.Nodes {
		if c := n.Stats().Claims; c != 0 {
			w.t.Errorf("%s still has %d claims", n.Name(), c)
		}
	}
}
