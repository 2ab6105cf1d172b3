package integration

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/internal/testproxy"
)

// hears reports whether n nodes answer a question asked at this server, each within d after the one
// before.
func hears(t *testing.T, s *embedded.Server, n int, d time.Duration) bool {
	t.Helper()
	nc := s.Conn()
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	must(t, err)
	defer func() { _ = sub.Unsubscribe() }()
	must(t, nc.PublishRequest("lock.default.node.info.test", inbox, []byte(`{"nonce":"who"}`)))
	names := map[string]bool{}
	for len(names) < n {
		m, err := sub.NextMsg(d)
		if errors.Is(err, nats.ErrTimeout) {
			return false
		}
		must(t, err)
		var answer struct{ Node string }
		must(t, json.Unmarshal(m.Data, &answer))
		names[answer.Node] = true
	}
	return true
}

// A holder's server is cut off from the others. The holder loses its lock within
// its lease, the next one has it no sooner, and after healing all is as before.
func TestHolderIsCutOff(t *testing.T) {
	t.Parallel()
	const lease = 10 * time.Second
	for _, c := range []struct {
		name  string
		fault func(*testproxy.Proxy, testproxy.Direction)
	}{
		{"black hole", blackhole},
		{"reset", cut},
		{"its words are lost", mute},
		{"it hears nothing", deafen},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := startMesh(t, 3, lease)
			// Each by way of one server only: a is on the side of the minority.
			a := newLocker(t, m.servers[0].Conn(), qlock.WithName("a"))
			b := newLocker(t, m.servers[1].Conn(), qlock.WithName("b"))
			d := newLocker(t, m.servers[2].Conn(), qlock.WithName("d"))
			held := lock(t, a, "name")
			readers := []*qlock.Lock{rlock(t, a, "read"), rlock(t, b, "read")}

			m.isolate(0, c.fault)
			began := time.Now()
			next := start(t, testContext(t), b.Lock, "name")
			writer := start(t, testContext(t), d.Lock, "read")
			lostBy(t, held, began.Add(lease))
			lostBy(t, readers[0], began.Add(lease))
			k := next.wait(t)
			isOver(t, held)
			if k.Token() <= held.Token() {
				t.Errorf("token %d after token %d", k.Token(), held.Token())
			}
			votes := began.Add(lease + lease/10)
			if c.name == "it hears nothing" { // its refreshes are heard for a time that it does not know of
				votes = votes.Add(lease)
			}
			if next.at.After(votes.Add(slack(began))) {
				t.Errorf("the next holder waited %v, the lease is %v", next.at.Sub(began), lease)
			}
			// The majority's reader is not disturbed.
			if writer.isDone() {
				t.Error("a writer was granted beside a reader")
			}
			unlock(t, readers[1])
			unlock(t, writer.wait(t))

			// On the minority's side there is nothing to be had, and it is said why.
			_, err := a.TryLock(within(t, lease/2), "free")
			if !errors.Is(err, qlock.ErrNoQuorum) {
				t.Errorf("TryLock in a minority: %v", err)
			}

			// a waits already when the routes heal, and b holds on over the healing.
			again := start(t, testContext(t), a.Lock, "name")
			m.heal()
			m.whole(t)
			if again.isDone() {
				t.Error("healing brought a second holder")
			}
			stays(t, k, 0)
			unlock(t, k)
			unlock(t, again.wait(t))
			unlock(t, lock(t, a, "free"))
			empty(t, m.servers...)
		})
	}
}

// What was sent into a black hole comes out when it is healed, in the middle of a
// later holder's time: acquires of callers that gave up, refreshes of a lock that
// was lost, releases. None of it does harm.
func TestLateMessages(t *testing.T) {
	t.Parallel()
	const lease = 10 * time.Second
	// The servers must not find out: they would give the routes up, and what was
	// held back with them.
	m := startMesh(t, 3, lease, func(o *server.Options) { o.Cluster.PingInterval = time.Hour })
	a := newLocker(t, m.servers[0].Conn(), qlock.WithName("a"))
	b := newLocker(t, m.servers[1].Conn(), qlock.WithName("b"))
	d := newLocker(t, m.servers[2].Conn(), qlock.WithName("d"))

	// Two servers that dialed each other have too many routes at first, and give some up. What stays
	// is one for all accounts and one for that of the system.
	for _, s := range m.servers {
		await(t, s.Name()+" has the routes that stay", func() bool { return len(routeIDs(t, s)) == 2*(len(m.servers)-1) })
	}
	routes := routeIDs(t, m.servers[0])
	held := lock(t, a, "name")
	began := time.Now()
	m.isolate(0, mute) // a's words are held back, and it hears the others
	// A caller that has given up before its words arrive.
	if k, err := a.Lock(within(t, 100*time.Millisecond), "given up"); err == nil {
		t.Errorf("a lock by one vote of three, token %d", k.Token())
	}
	// And one that goes on waiting.
	waits := start(t, testContext(t), a.Lock, "name")
	lostBy(t, held, began.Add(lease))
	next, err := b.Lock(testContext(t), "name")
	must(t, err)
	isOver(t, held)
	other := lock(t, d, "given up")

	m.heal()
	m.whole(t)
	if now := routeIDs(t, m.servers[0]); !slices.Equal(now, routes) {
		t.Errorf("what was held back is lost: the routes were %v and are %v", routes, now)
	}
	stays(t, next, 0)
	stays(t, other, 0)
	if waits.isDone() {
		t.Errorf("two hold: %v", waits.err)
	}
	_, err = d.TryLock(testContext(t), "name")
	if !errors.Is(err, qlock.ErrHeld) {
		t.Errorf("TryLock of a held lock: %v", err)
	}
	stays(t, next, lease)
	stays(t, other, 0)
	unlock(t, next)
	k := waits.wait(t)
	if k.Token() <= next.Token() {
		t.Errorf("token %d after token %d", k.Token(), next.Token())
	}
	unlock(t, k)
	unlock(t, other)
	empty(t, m.servers...)
}

// routeIDs lists the connections that are a server's routes.
func routeIDs(t *testing.T, s *embedded.Server) []uint64 {
	t.Helper()
	z, err := s.NATS().Routez(nil)
	must(t, err)
	var ids []uint64
	for _, r := range z.Routes {
		ids = append(ids, r.Rid)
	}
	slices.Sort(ids)
	return ids
}

// A client's connection becomes a black hole, the client goes to another server,
// and what it said before comes after what it said since: its release overtakes
// its acquire, and a refresh names claims that are long over.
func TestLateMessagesOfAClient(t *testing.T) {
	t.Parallel()
	const lease = 20 * time.Second
	c := startCluster(t, 3, maxLease(lease))
	servers := c.Servers()
	u, err := url.Parse(servers[0].ClientURL())
	must(t, err)
	p, err := testproxy.New(u.Host, 1)
	must(t, err)
	t.Cleanup(func() { _ = p.Close() })
	nc := connect(t, "nats://"+p.Addr()+","+urls(servers[1]))
	a := newLocker(t, nc, qlock.WithName("a"))
	b := client(t, "b", urls(servers[2]))

	held := lock(t, a, "name")
	heard := servers[0].Node().Stats().Requests
	p.Block(testproxy.Out)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	queued := start(t, ctx, a.Lock, "other") // its first words are held back
	await(t, "a goes to another server", func() bool { return nc.IsConnected() && nc.ConnectedUrl() == servers[1].ClientURL() })
	await(t, "a's claims are known", func() bool { return claims(servers) == 2*3 })
	if queued.wait(t) == nil {
		t.Fatal("not granted")
	}
	unlock(t, queued.lock)
	unlock(t, held)
	empty(t, servers...)

	name, other := lock(t, b, "name"), lock(t, b, "other")
	before := servers[0].Node().Stats().Requests
	p.Heal()
	await(t, "the late words are heard", func() bool {
		return servers[0].Node().Stats().Requests > before && p.Conns() == 0
	})
	t.Logf("%d requests were heard before the fault, %d before healing, %d now", heard, before, servers[0].Node().Stats().Requests)
	stays(t, name, 0)
	stays(t, other, 0)
	if _, err := a.TryLock(testContext(t), "name"); !errors.Is(err, qlock.ErrHeld) {
		t.Errorf("TryLock of a held lock: %v", err)
	}
	unlock(t, name)
	unlock(t, other)
	// The dead claims that the late words may have brought back stand in nobody's
	// way for as long as a lease.
	again := time.Now()
	unlock(t, lock(t, b, "other"))
	if d := time.Since(again); d > lease/2+slack(again) {
		t.Errorf("a dead claim stood in the way for %v", d)
	}
	empty(t, servers...)
}

// One route of three is cut: both of its ends still hear the third. A holder on
// one end keeps its lock; who asks on the other gets its turn.
func TestOneRouteIsCut(t *testing.T) {
	t.Parallel()
	const lease = 10 * time.Second
	m := startMesh(t, 3, lease)
	a := newLocker(t, m.servers[0].Conn(), qlock.WithName("a"))
	b := newLocker(t, m.servers[1].Conn(), qlock.WithName("b"))
	m.between(0, 1, cut)
	held := lock(t, a, "name")
	next := start(t, testContext(t), b.Lock, "name")
	stays(t, held, lease+lease/2)
	if next.isDone() {
		t.Errorf("two hold: %v", next.err)
	}
	unlock(t, held)
	unlock(t, next.wait(t))
	m.heal()
	m.whole(t)
	empty(t, m.servers...)
}

// Work goes on over slow routes, broken routes, and the loss of one server's after
// another's, and the count is exact.
func TestWorkOverBadRoutes(t *testing.T) {
	t.Parallel()
	m := startMesh(t, 3, time.Second)
	names := []string{"count.a", "count.b"}
	crew := startCrew(t, m.servers, 6, names...)
	crew.more(t, 5, names...)
	reset := func(p *testproxy.Proxy, _ testproxy.Direction) { p.Reset() }
	r := rand.New(rand.NewPCG(*seed, 2))
	for range *rounds {
		order := r.Perm(3)
		for i := range m.servers {
			m.isolate(i, slow)
		}
		crew.more(t, 5, names...)
		m.heal()
		m.isolate(order[0], reset)
		crew.more(t, 5, names...)
		m.isolate(order[1], reset) // which may be all, by now
		crew.more(t, 5, names...)
		m.whole(t)
		for k, fault := range []func(*testproxy.Proxy, testproxy.Direction){cut, mute, blackhole} {
			m.isolate(order[k], fault)
			crew.more(t, 5, names...)
			m.heal()
			m.whole(t)
		}
	}
	crew.more(t, 5, names...)
	crew.done(t)
	empty(t, m.servers...)
}
