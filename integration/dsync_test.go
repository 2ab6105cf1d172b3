package integration

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/qlocktest"
)

// The stories that the chaos program of minio's dsync tells, one test each, with
// the names it gives them. There some end as known errors.

// While there is no quorum a lock is waited for, and granted when another node
// comes.
func TestDsyncNotEnoughNodesForQuorum(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 4)
	servers := c.Servers()
	a := client(t, "a", urls(servers[3]))
	for _, s := range servers[:2] {
		must(t, s.Close())
	}
	// Two of four are one too few for a writer.
	var detail *qlock.LockError
	var err error
	for d := 300 * time.Millisecond; d < patience; d *= 2 { // long enough for both to answer
		if _, err = a.Lock(within(t, d), "name"); !errors.As(err, &detail) || detail.Votes() == 2 {
			break
		}
	}
	if !errors.Is(err, qlock.ErrNoQuorum) || !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &detail) || detail.Votes() != 2 || detail.Need != 3 {
		t.Errorf("Lock with two nodes of four: %v", err)
	}
	waits := start(t, testContext(t), a.Lock, "name")
	await(t, "a waits", func() bool { return servers[3].Node().Stats().Claims == 1 })
	if waits.isDone() {
		t.Fatalf("granted by two nodes of four: %v", waits.err)
	}
	restart(t, servers[0])
	unlock(t, waits.wait(t))
}

// With all nodes a lock is granted; too many die, and the next one waits; they
// come back, and it is granted.
func TestDsyncNodesGoingDown(t *testing.T) {
	t.Parallel()
	const lease = 4 * time.Second
	c := startCluster(t, 3, maxLease(lease))
	servers := c.Servers()
	a := client(t, "a", urls(servers[2]))
	first := lock(t, a, "name")
	unlock(t, first)
	empty(t, servers...)
	for _, s := range servers[:2] {
		qlocktest.CrashServer(t, s)
	}
	waits := start(t, testContext(t), a.Lock, "name")
	await(t, "a waits", func() bool { return servers[2].Node().Stats().Claims == 1 })
	if waits.isDone() {
		t.Fatalf("granted by one node of three: %v", waits.err)
	}
	for _, s := range servers[:2] {
		restart(t, s)
	}
	k := waits.wait(t)
	if k.Token() <= first.Token() {
		t.Errorf("token %d after token %d", k.Token(), first.Token())
	}
	unlock(t, k)
}

// No more nodes than the quorum are up when a lock is taken. One of them dies and
// is back, with nothing left of its vote; so is the one that was down before. The
// lock stays where it is.
func TestDsyncOneOverQuorumDownWhileLocked(t *testing.T) {
	t.Parallel()
	const lease = 10 * time.Second
	c := startCluster(t, 4, maxLease(lease))
	servers := c.Servers()
	a, b := client(t, "a", urls(servers[1])), client(t, "b", urls(servers[2]))
	must(t, servers[3].Close())
	held := lock(t, a, "name") // by n1, n2 and n3
	crashed := time.Now()
	qlocktest.CrashServer(t, servers[0])
	restart(t, servers[3]) // it never heard of the lock
	await(t, "n4 hears of the lock", func() bool { return servers[3].Node().Stats().Claims > 0 || held.Context().Err() != nil })
	took := time.Since(crashed)
	restart(t, servers[0]) // it has forgotten it
	next := start(t, testContext(t), b.Lock, "name")
	c.WaitVotes(t)
	// All nodes vote, and their votes from before run out meanwhile.
	select {
	case <-held.Context().Done():
		// Without n4 two of four confirm it, which are too few.
		if took < lease/2 {
			t.Errorf("the lock is lost, and n4 heard of it %v after n1 had crashed", took)
		}
		next.wait(t)
		isOver(t, held)
	case <-time.After(lease / 2):
		if next.isDone() {
			t.Errorf("two hold: %v", next.err)
		}
		unlock(t, held)
	}
	k := next.wait(t)
	if k.Token() <= held.Token() {
		t.Errorf("token %d after token %d", k.Token(), held.Token())
	}
	unlock(t, k)
}

// Several nodes are down when a lock is taken; of those that gave their votes
// several crash; and all come back. In dsync, which calls it a known error, the
// nodes that have forgotten and those that never knew are a quorum for a second
// holder.
func TestDsyncSeveralDownWhileLockedAndOthersForget(t *testing.T) {
	t.Parallel()
	const lease = 4 * time.Second
	c := startCluster(t, 5, maxLease(lease))
	servers := c.Servers()
	a, b := client(t, "a", urls(servers[2])), client(t, "b", urls(servers[2]))
	for _, s := range servers[3:] {
		must(t, s.Close())
	}
	held := lock(t, a, "name") // by n1, n2 and n3
	qlocktest.CrashServer(t, servers[0])
	qlocktest.CrashServer(t, servers[1])
	began := time.Now()
	next := start(t, testContext(t), b.Lock, "name")
	for _, s := range append(servers[3:5:5], servers[:2]...) {
		restart(t, s)
	}
	// n4 and n5 vote at once, n1 and n2 in a lease's time. b must not have the lock
	// before a's time is over; and a keeps it, if n4 and n5 hear that it is held
	// while the votes of n1 and n2 stand, which a slow machine may miss.
	if !servers[3].Node().Ready() {
		t.Error("n4 was stopped cleanly and does not vote")
	}
	select {
	case <-next.done:
		isOver(t, held)
	case <-held.Context().Done():
		t.Logf("a has lost the lock %v after n1 and n2 crashed", time.Since(began))
	case <-time.After(2 * lease):
		stays(t, held, 0)
		if next.isDone() {
			t.Errorf("two hold: %v", next.err)
		}
		unlock(t, held)
	}
	k := next.wait(t)
	if k.Token() <= held.Token() {
		t.Errorf("token %d after token %d", k.Token(), held.Token())
	}
	unlock(t, k)
}

// The same, and nobody is left who could vouch for the holder: it must have lost
// its lock when the next one has it.
func TestDsyncAllVotersForget(t *testing.T) {
	t.Parallel()
	const lease = 4 * time.Second
	c := startCluster(t, 5, maxLease(lease))
	servers := c.Servers()
	a, b := client(t, "a", urls(servers[4])), client(t, "b", urls(servers[3]))
	for _, s := range servers[2:3] {
		must(t, s.Close())
	}
	held := lock(t, a, "name")
	for i, s := range servers {
		if i != 2 {
			qlocktest.CrashServer(t, s)
		}
	}
	began := time.Now()
	for _, s := range servers {
		restart(t, s)
	}
	next := start(t, testContext(t), b.Lock, "name")
	lostBy(t, held, began.Add(lease))
	k := next.wait(t)
	isOver(t, held)
	if d := next.at.Sub(began); d < lease {
		t.Errorf("granted %v after the crash, the votes from before it stood for %v", d, lease)
	}
	if k.Token() <= held.Token() {
		t.Errorf("token %d after token %d", k.Token(), held.Token())
	}
	unlock(t, k)
}

// Exactly a quorum is up, and is enough.
func TestDsyncSmallestQuorum(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 5)
	servers := c.Servers()
	for _, s := range servers[3:] {
		qlocktest.CrashServer(t, s)
	}
	a, b := client(t, "a", urls(servers[0])), client(t, "b", urls(servers[1]))
	token := uint64(0)
	for _, l := range []*qlock.Locker{a, b, a} {
		k := lock(t, l, "name")
		if k.Token() <= token {
			t.Errorf("token %d after token %d", k.Token(), token)
		}
		token = k.Token()
		unlock(t, k)
	}
}

// The process that holds a lock is killed. Its lock is free after its lease.
func TestDsyncHolderCrashes(t *testing.T) {
	t.Parallel()
	const lease = 10 * time.Second
	c := startCluster(t, 3, maxLease(lease))
	holder := launch(t, role{URLs: urls(c.Servers()...), Name: "holder", Resource: "name", Lease: lease})
	b := client(t, "b", urls(c.Servers()...))
	var detail *qlock.LockError
	_, err := b.TryLock(testContext(t), "name")
	if !errors.Is(err, qlock.ErrHeld) || !errors.As(err, &detail) || detail.Holder == nil || detail.Holder.Client != "holder" || !detail.Holder.Held {
		t.Errorf("TryLock of a held lock: %v", err)
	}
	next := start(t, testContext(t), b.Lock, "name")
	await(t, "b waits", func() bool { return claims(c.Servers()) == 2*3 })
	killed := time.Now()
	holder.kill(t)
	k := next.wait(t)
	if d := next.at.Sub(killed); d > lease+slack(killed) {
		t.Errorf("b waited %v after the holder's death, the lease is %v", d, lease)
	}
	if k.Token() <= holder.Token {
		t.Errorf("token %d after token %d", k.Token(), holder.Token)
	}
	unlock(t, k)
	empty(t, c.Servers()...)
}

// Two processes that hold one lock for reading are killed. A writer has it after
// their leases.
func TestDsyncTwoReadersCrash(t *testing.T) {
	t.Parallel()
	const lease = 10 * time.Second
	c := startCluster(t, 3, maxLease(lease))
	var readers []*process
	for _, name := range []string{"reader-1", "reader-2"} {
		readers = append(readers, launch(t, role{URLs: urls(c.Servers()...), Name: name, Resource: "name", Shared: true, Lease: lease}))
	}
	b := client(t, "b", urls(c.Servers()...))
	writer := start(t, testContext(t), b.Lock, "name")
	await(t, "b waits", func() bool { return claims(c.Servers()) == 3*3 })
	readers[0].kill(t)
	if writer.isDone() {
		t.Errorf("granted beside a reader: %v", writer.err)
	}
	killed := time.Now()
	readers[1].kill(t)
	k := writer.wait(t)
	if d := writer.at.Sub(killed); d > lease+slack(killed) {
		t.Errorf("the writer waited %v after the last reader's death, the lease is %v", d, lease)
	}
	if k.Token() <= max(readers[0].Token, readers[1].Token) {
		t.Errorf("token %d after tokens %d and %d", k.Token(), readers[0].Token, readers[1].Token)
	}
	unlock(t, k)
	empty(t, c.Servers()...)
}

// A release does not reach one node, and the client dies before it can say it
// again. The next lock does not need that node.
func TestDsyncOneStaleLock(t *testing.T) {
	t.Parallel()
	const lease = time.Minute // longer than it takes to cut routes and to heal them
	m := startMesh(t, 3, lease)
	a := dying(t, m, "name")
	m.isolate(2, cut)
	a.unlockAndDie(t, m, 1)
	m.heal()
	m.whole(t)
	b := newLocker(t, m.servers[1].Conn(), qlock.WithName("b"))
	began := time.Now()
	unlock(t, lock(t, b, "name"))
	k, err := b.TryLock(testContext(t), "name")
	must(t, err)
	unlock(t, k)
	if d := time.Since(began); d > lease/4+slack(began) {
		t.Errorf("two locks took %v: one stale vote of three is in nobody's way", d)
	}
	if got := m.servers[2].Node().Stats().Claims; got == 0 {
		t.Error("the vote was not stale")
	}
}

// The same with as many nodes as keep others from a quorum. The stale votes end
// with their leases.
func TestDsyncSeveralStaleLocks(t *testing.T) {
	t.Parallel()
	const lease = 10 * time.Second
	m := startMesh(t, 3, lease)
	a := dying(t, m, "name")
	m.isolate(0, cut)
	a.unlockAndDie(t, m, 2)
	died := time.Now()
	b := newLocker(t, m.servers[1].Conn(), qlock.WithName("b"))
	k := lock(t, b, "name")
	if d := time.Since(died); d > lease+slack(died) {
		t.Errorf("the stale votes were in the way for %v, the lease is %v", d, lease)
	}
	if k.Token() <= a.lock.Token() {
		t.Errorf("token %d after token %d", k.Token(), a.lock.Token())
	}
	unlock(t, k)
	m.heal()
	m.whole(t)
	empty(t, m.servers...)
}

// mortal is a client that holds a lock and is to die.
type mortal struct {
	nc   *nats.Conn
	lock *qlock.Lock
}

// dying makes one at the first server, with the votes of all.
func dying(t *testing.T, m *mesh, name string) mortal {
	t.Helper()
	nc := connect(t, urls(m.servers[0]))
	k := lock(t, newLocker(t, nc, qlock.WithName("a")), name)
	await(t, "all nodes know the lock", func() bool { return claims(m.servers) == len(m.servers) })
	return mortal{nc, k}
}

// unlockAndDie gives the lock back to those who hear it, which are all of m but n.
func (a mortal) unlockAndDie(t *testing.T, m *mesh, n int) {
	t.Helper()
	// One of three stands alone, and the others have each other. Silence would prove nothing.
	await(t, "the routes are cut", func() bool {
		remotes := 0
		for _, s := range m.servers {
			remotes += s.NATS().NumRemotes()
		}
		return remotes == 2
	})
	unlock(t, a.lock)
	must(t, a.nc.Flush())
	await(t, "those who hear it forget the lock", func() bool { return claims(m.servers) == n })
	a.nc.Close()
}

// Readers come and go, and each stays until the next has come, so that without a
// queue there would be no moment for a writer. It has its turn all the same, and
// keeps the readers from theirs no longer than it holds.
func TestDsyncWriterStarvation(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, maxLease(20*time.Second))
	servers := c.Servers()
	const stay = 200 * time.Millisecond // for a reader who waits in vain for the next
	var inside, reads atomic.Int64
	stop := make(chan struct{})
	var work sync.WaitGroup
	for i := range 4 {
		l := client(t, "reader", urls(servers[i%3]))
		work.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				k, err := l.RLock(t.Context(), "name")
				if err != nil {
					t.Error(err)
					return
				}
				inside.Add(1)
				reads.Add(1)
				left := false
				for leave := time.Now().Add(stay); !left && time.Now().Before(leave); time.Sleep(time.Millisecond) {
					n := inside.Load()
					left = n > 1 && inside.CompareAndSwap(n, n-1) // somebody else is there, and stays
				}
				if !left {
					inside.Add(-1)
				}
				if err := k.Unlock(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	defer func() {
		close(stop)
		work.Wait()
	}()
	w := client(t, "writer", urls(servers...))
	for range 5 {
		before := reads.Load()
		await(t, "the readers read", func() bool { return reads.Load() >= before+20 })
		began := time.Now()
		k := lock(t, w, "name")
		if d := time.Since(began); d > stay+slack(began) {
			t.Errorf("the writer waited %v behind readers that stay %v at most", d, stay)
		}
		at := reads.Load()
		stays(t, k, 20*time.Millisecond)
		if n := reads.Load() - at; n != 0 { // who came before the writer was counted, and left
			t.Errorf("%d readers came in beside a writer", n)
		}
		unlock(t, k)
	}
}
