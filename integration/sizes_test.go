package integration

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/qlocktest"
)

// As many nodes as there may be: of sixteen a quorum is nine, and seven may go.
func TestManyNodes(t *testing.T) {
	// Not parallel: sixteen servers at once are a load for the other tests.
	const (
		lease = 10 * time.Second
		need  = many/2 + 1
	)
	c := startCluster(t, many, maxLease(lease))
	servers := c.Servers()
	up := servers[many-need:]
	a := client(t, "a", urls(up[0]))
	b := client(t, "b", urls(up[1]))
	if got := len(a.Nodes()); got != many {
		t.Fatalf("%d nodes, not %d", got, many)
	}
	held := lock(t, a, "held")
	for _, s := range servers[:many-need] {
		must(t, s.Close())
	}
	first := lock(t, b, "free")
	unlock(t, first)
	k := lock(t, a, "free")
	if k.Token() <= first.Token() {
		t.Errorf("token %d after token %d", k.Token(), first.Token())
	}
	unlock(t, k)
	_, err := b.TryLock(testContext(t), "held")
	if !errors.Is(err, qlock.ErrHeld) {
		t.Errorf("TryLock of a held lock: %v", err)
	}

	// One more, and the exclusive quorum is gone; readers need one less.
	must(t, up[need-1].Close())
	killed := time.Now()
	if detail, err := noQuorum(t, b.TryLock, "free", many-need+1); detail.Need != need {
		t.Errorf("TryLock with %d nodes of %d: %v", need-1, many, err)
	}
	unlock(t, rlock(t, b, "free"))
	lostBy(t, held, killed.Add(lease))
}

// Even numbers: two nodes must agree for a writer, and one is enough for a
// reader; of four, three and two.
func TestEvenNumbers(t *testing.T) {
	t.Parallel()
	for n, readers := range map[int]int{2: 1, 4: 2} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			const lease = 10 * time.Second
			c := startCluster(t, n, maxLease(lease))
			servers := c.Servers()
			a := client(t, "a", urls(servers[0]))
			b := client(t, "b", urls(servers[0]))
			before := lock(t, a, "name")
			unlock(t, before)

			// As many remain as make a reader's quorum.
			early, writer := rlock(t, a, "early"), lock(t, a, "writer")
			for _, s := range servers[readers:] {
				qlocktest.CrashServer(t, s)
			}
			killed := time.Now()
			r1, r2 := rlock(t, a, "name"), rlock(t, b, "name")
			for _, r := range []*qlock.Lock{r1, r2} {
				if r.Token() < before.Token() {
					t.Errorf("a reader's token %d after the writer's %d", r.Token(), before.Token())
				}
			}
			_, err := a.TryLock(within(t, lease/2), "free")
			if !errors.Is(err, qlock.ErrNoQuorum) {
				t.Errorf("TryLock by %d nodes of %d: %v", readers, n, err)
			}
			lostBy(t, writer, killed.Add(lease))
			stays(t, early, max(0, time.Until(killed.Add(lease+lease/2))))

			// A writer waits for all readers, also for those that the nodes that come
			// back have never heard of.
			next := start(t, testContext(t), b.Lock, "name")
			for _, s := range servers[readers:] {
				restart(t, s)
			}
			c.WaitVotes(t)
			if next.isDone() {
				t.Errorf("a writer was granted beside two readers: %v", next.err)
			}
			stays(t, r1, 0)
			stays(t, r2, 0)
			unlock(t, r1)
			unlock(t, r2)
			k := next.wait(t)
			if k.Token() <= max(r1.Token(), r2.Token()) {
				t.Errorf("the writer's token is %d, the readers' were %d and %d", k.Token(), r1.Token(), r2.Token())
			}
			unlock(t, k)
			unlock(t, early)
			empty(t, servers...)
		})
	}
}

// Two clusters share one NATS, with other nodes, other leases and the same names
// of resources, and have nothing to do with each other.
func TestTwoClusters(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, maxLease(10*time.Second))
	servers := c.Servers()
	names := []string{"n1", "n2", "other"}
	var others []*qlock.Node
	for i, name := range names {
		cfg := qlock.NodeConfig{
			Cluster: "second", Name: name, Nodes: names, StateDir: filepath.Join(t.TempDir(), name),
			MaxLease: time.Second, ProbeWait: 100 * time.Millisecond,
		}
		must(t, qlock.Bootstrap(cfg))
		n, err := qlock.StartNode(testContext(t), connect(t, urls(servers[i])), cfg)
		must(t, err)
		t.Cleanup(func() { _ = n.Close() })
		must(t, n.WaitReady(testContext(t)))
		others = append(others, n)
	}
	nc := connect(t, urls(servers...))
	a := newLocker(t, nc, qlock.WithName("a"), qlock.WithLease(10*time.Second))
	b := newLocker(t, nc, qlock.WithName("b"), qlock.WithCluster("second"))
	if _, err := qlock.New(testContext(t), nc, qlock.WithCluster("second"), qlock.WithLease(10*time.Second)); err == nil {
		t.Error("the second cluster allows the first's leases")
	}

	one, two := lock(t, a, "name"), lock(t, b, "name")
	waits := start(t, testContext(t), newLocker(t, nc, qlock.WithName("c")).Lock, "name")
	// The second cluster goes; the first, with a node on each of the same
	// connections' servers, does not notice.
	for _, n := range others[:2] {
		qlocktest.CrashNode(t, n)
	}
	lostBy(t, two, time.Now().Add(time.Second))
	stays(t, one, 0)
	if _, err := b.TryLock(within(t, 500*time.Millisecond), "free"); !errors.Is(err, qlock.ErrNoQuorum) {
		t.Errorf("TryLock in a cluster with one node of three: %v", err)
	}
	unlock(t, lock(t, a, "free"))
	unlock(t, one)
	unlock(t, waits.wait(t))
	empty(t, servers...)
}

// External nodes are plain clients of a NATS that has no part in qlock.
func TestExternalNATS(t *testing.T) {
	t.Parallel()
	const lease = 10 * time.Second
	external := startNATS(t, qlocktest.FreePort(t))
	t.Cleanup(func() { stopNATS(external) }) // whichever it is by then, after its clients
	url := external.ClientURL()
	names := []string{"n1", "n2", "n3"}
	var nodes []*qlock.Node
	var conns []*nats.Conn
	for _, name := range names {
		cfg := qlock.NodeConfig{
			Name: name, Nodes: names, StateDir: filepath.Join(t.TempDir(), name),
			MaxLease: lease, ProbeWait: 100 * time.Millisecond, NoService: name == "n3",
		}
		must(t, qlock.Bootstrap(cfg))
		nc := connect(t, url, nats.Name(name))
		n, err := qlock.StartNode(testContext(t), nc, cfg)
		must(t, err)
		t.Cleanup(func() { _ = n.Close() })
		must(t, n.WaitReady(testContext(t)))
		nodes, conns = append(nodes, n), append(conns, nc)
	}
	a := client(t, "a", url)
	b := client(t, "b", url)
	held := lock(t, a, "held")
	waits := start(t, testContext(t), b.Lock, "held")
	await(t, "b waits", func() bool { return nodes[0].Stats().Claims == 2 })

	// NATS restarts within the lease: nodes and clients come back by themselves,
	// and all is as it was.
	stopNATS(external)
	external = startNATS(t, port(t, url))
	stays(t, held, lease+lease/2)
	if waits.isDone() {
		t.Errorf("two hold: %v", waits.err)
	}
	unlock(t, lock(t, a, "free"))
	unlock(t, held)
	unlock(t, waits.wait(t))

	// A node's end is the end of its votes, and not of the connection it was lent.
	must(t, nodes[0].Close())
	if !conns[0].IsConnected() {
		t.Error("the node closed a connection that it was lent")
	}
	unlock(t, lock(t, a, "free"))
	conns[1].Close()
	_, err := b.TryLock(within(t, lease/4), "free")
	if !errors.Is(err, qlock.ErrNoQuorum) {
		t.Errorf("TryLock with one node of three: %v", err)
	}
}

// startNATS starts a plain nats-server.
func startNATS(t *testing.T, port int) *server.Server {
	t.Helper()
	forking.RLock()
	defer forking.RUnlock()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, NoSigs: true, NoLog: true})
	must(t, err)
	s.Start()
	if !s.ReadyForConnections(patience) {
		t.Fatal("the nats-server does not start")
	}
	return s
}

func stopNATS(s *server.Server) {
	s.Shutdown()
	s.WaitForShutdown()
}

// A cluster of one server and node is the smallest; without it there is nothing.
func TestOneNode(t *testing.T) {
	t.Parallel()
	const lease = 4 * time.Second
	c := startCluster(t, 1, maxLease(lease))
	s := c.Servers()[0]
	a := client(t, "a", urls(s))
	k := lock(t, a, "name")
	qlocktest.CrashServer(t, s)
	lostBy(t, k, time.Now().Add(lease))
	restart(t, s)
	next := lock(t, a, "name")
	if next.Token() <= k.Token() {
		t.Errorf("token %d after token %d", next.Token(), k.Token())
	}
	unlock(t, next)
}
