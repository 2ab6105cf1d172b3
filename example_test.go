package qlock_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
)

// ship sends an order once, however many processes try to. It is the example of the
// README; a test compares the two.
func ship(ctx context.Context, nc *nats.Conn, orders *Orders) error {
	locker, err := qlock.New(ctx, nc, qlock.WithName("shipping"))
	if err != nil {
		return err
	}
	defer locker.Close()

	return locker.Do(ctx, "orders.42", func(ctx context.Context) error {
		// No other client holds orders.42 now. ctx is canceled if the lock is lost.
		if orders.Status(42) == "shipped" {
			return nil
		}
		// With the token the store can reject a write of a former holder.
		return orders.SetStatus(42, "shipped", qlock.Token(ctx))
	})
}

// Orders is a fenced store: it rejects tokens lower than the highest it has seen.
type Orders struct {
	mu     sync.Mutex
	status map[int]string
	token  uint64
}

func (o *Orders) Status(id int) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.status[id]
}

func (o *Orders) SetStatus(id int, status string, token uint64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if token < o.token {
		return fmt.Errorf("stale token %d, have seen %d", token, o.token)
	}
	fmt.Println("order", id, "is", status)
	o.status[id], o.token = status, token
	return nil
}

func Example() {
	ctx := context.Background()
	nc, stop := connect() // to NATS with nodes
	defer stop()

	orders := &Orders{status: map[int]string{}}
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if err := ship(ctx, nc, orders); err != nil {
				log.Fatal(err)
			}
		})
	}
	all.Wait()
	// Output: order 42 is shipped
}

// A program needs only one Locker, on the connection that it already has. The Locker
// learns the list of nodes from the nodes.
func ExampleNew() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	nc, stop := connect() // to NATS with nodes
	defer stop()

	locker, err := qlock.New(ctx, nc,
		qlock.WithName("billing"),       // what others see of this program
		qlock.WithLease(20*time.Second)) // how long its locks outlive its death
	if err != nil {
		log.Fatal(err)
	}
	defer locker.Close()

	fmt.Println(locker.Name(), "locks with", locker.Nodes())
	// Output: billing locks with [n1 n2 n3]
}

// A connection that survives temporary failures, and that leaves a silent server well
// within a lease of ten seconds.
func ExampleNew_connection() {
	ctx, url := context.Background(), "nats://a.example.com:4222,nats://b.example.com:4222"
	nc, err := nats.Connect(url,
		nats.MaxReconnects(-1),           // reconnect, however long it takes
		nats.IgnoreAuthErrorAbort(),      // also while credentials are being changed
		nats.PingInterval(2*time.Second), // a fifth of the lease
		nats.MaxPingsOutstanding(1),      // leave a silent server after two of these intervals
	)
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	locker, err := qlock.New(ctx, nc, qlock.WithLease(10*time.Second))
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = locker.Close() }() // before the connection
}

// A deadline bounds the wait, and only the wait: the lock lasts until it is
// unlocked or lost.
func ExampleLocker_Lock() {
	locker, stop := newLocker("billing")
	defer stop()

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	lock, err := locker.Lock(ctx, "orders.42")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("holds", lock.Name())
	if err := lock.Unlock(ctx); err != nil {
		log.Fatal(err) // ErrLost: another client may have held it since
	}
	fmt.Println("released it")
	// Output:
	// holds orders.42
	// released it
}

func ExampleLocker_TryLock() {
	locker, stop := newLocker("billing")
	defer stop()

	ctx := context.Background()
	lock, err := locker.TryLock(ctx, "orders.42")
	if err != nil {
		log.Fatal(err)
	}
	defer lock.Unlock(ctx)

	_, err = locker.TryLock(ctx, "orders.42") // a lock is not reentrant
	if errors.Is(err, qlock.ErrHeld) {
		fmt.Println("another client holds it")
	}
	if e, ok := errors.AsType[*qlock.LockError](err); ok && e.Holder != nil {
		fmt.Println("it is", e.Holder.Client)
	}
	// Output:
	// another client holds it
	// it is billing
}

// Readers share a lock; a writer waits for them, and readers that come later
// wait for the writer.
func ExampleLocker_RLock() {
	locker, stop := newLocker("billing")
	defer stop()

	ctx := context.Background()
	one, err := locker.RLock(ctx, "prices")
	if err != nil {
		log.Fatal(err)
	}
	defer one.Unlock(ctx)
	two, err := locker.RLock(ctx, "prices")
	if err != nil {
		log.Fatal(err)
	}
	defer two.Unlock(ctx)
	fmt.Println("two readers hold it")

	_, err = locker.TryLock(ctx, "prices")
	fmt.Println("a writer must wait:", errors.Is(err, qlock.ErrHeld))
	// Output:
	// two readers hold it
	// a writer must wait: true
}

// Do suits most uses: it releases the lock in every case, and its context ends when the
// lock is lost.
func ExampleLocker_Do() {
	locker, stop := newLocker("billing")
	defer stop()

	err := locker.Do(context.Background(), "orders.42", func(ctx context.Context) error {
		fmt.Println("holding the lock; the token is set:", qlock.Token(ctx) > 0)
		return nil
	})
	switch {
	case errors.Is(err, qlock.ErrLost):
		log.Fatal("lost meanwhile: the store has to decide, by the token")
	case err != nil:
		log.Fatal(err)
	}
	// Output: holding the lock; the token is set: true
}

// Counters of the locks of this program. Package metrics exports the same to Prometheus.
func ExampleLocker_Stats() {
	locker, stop := newLocker("billing")
	defer stop()

	ctx := context.Background()
	lock, err := locker.Lock(ctx, "orders.42")
	if err != nil {
		log.Fatal(err)
	}
	_, _ = locker.TryLock(ctx, "orders.42") // fails: it is held
	_ = lock.Unlock(ctx)
	if _, err := locker.Lock(ctx, "orders.43"); err != nil {
		log.Fatal(err)
	}

	s := locker.Stats()
	fmt.Println("held:", s.Held, "waiting:", s.Waiting)
	fmt.Println("granted:", s.Granted, "failed:", s.Failed.Held, "lost:", s.Lost)
	for _, n := range s.Nodes {
		fmt.Println(n.Node, "answers:", n.RoundTrip > 0)
	}
	// Output:
	// held: 1 waiting: 0
	// granted: 2 failed: 1 lost: 0
	// n1 answers: true
}

// An RWMutex is a drop-in replacement for a sync.RWMutex.
func ExampleLocker_RWMutex() {
	locker, stop := newLocker("billing")
	defer stop()

	mu := locker.RWMutex("prices")
	price := 100

	mu.Lock() // was: var mu sync.RWMutex
	price++
	mu.Unlock()

	mu.RLock()
	fmt.Println("the price is", price)
	mu.RUnlock()

	// With a limit on the time to wait:
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := mu.LockContext(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println("TryRLock succeeds:", mu.TryRLock())
	mu.Unlock()
	// Output:
	// the price is 101
	// TryRLock succeeds: false
}

// The lock's context ends when the lock is lost. Here the only node dies, so no node
// confirms the lock within its lease.
func ExampleLock_Context() {
	ctx := context.Background()
	cluster, err := embedded.StartCluster(ctx, 1)
	if err != nil {
		log.Fatal(err)
	}
	defer cluster.Close()
	locker, err := qlock.New(ctx, cluster.Servers()[0].Conn(), qlock.WithLease(200*time.Millisecond))
	if err != nil {
		log.Fatal(err)
	}
	defer locker.Close()
	lock, err := locker.Lock(ctx, "orders.42")
	if err != nil {
		log.Fatal(err)
	}

	_ = cluster.Crash("n1")
	<-lock.Context().Done()
	fmt.Println(context.Cause(lock.Context()))
	fmt.Println(lock.Unlock(ctx))
	// Output:
	// qlock: lock lost
	// qlock: lock lost
}

// Each exclusive holder of a name has a greater token than all holders before it.
func ExampleLock_Token() {
	locker, stop := newLocker("billing")
	defer stop()

	ctx := context.Background()
	var tokens []uint64
	for range 3 {
		lock, err := locker.Lock(ctx, "orders.42")
		if err != nil {
			log.Fatal(err)
		}
		tokens = append(tokens, lock.Token())
		_ = lock.Unlock(ctx)
	}
	fmt.Println("rising:", tokens[0] < tokens[1] && tokens[1] < tokens[2])
	// Output: rising: true
}

// Code that receives only a context finds the token in it.
func ExampleToken() {
	locker, stop := newLocker("billing")
	defer stop()

	save := func(ctx context.Context, what string) {
		if token := qlock.Token(ctx); token > 0 {
			fmt.Println(what, "saved with a token")
		} else {
			fmt.Println(what, "saved without one")
		}
	}
	ctx := context.Background()
	_ = locker.Do(ctx, "orders.42", func(ctx context.Context) error {
		save(ctx, "order")
		return nil
	})
	save(ctx, "draft")
	// Output:
	// order saved with a token
	// draft saved without one
}

// Held lets a function insist on being called under a lock.
func ExampleHeld() {
	locker, stop := newLocker("billing")
	defer stop()

	ship := func(ctx context.Context) error {
		if err := qlock.Held(ctx); err != nil {
			return err
		}
		fmt.Println("shipped")
		return nil
	}
	ctx := context.Background()
	if err := locker.Do(ctx, "orders.42", ship); err != nil {
		log.Fatal(err)
	}
	fmt.Println(errors.Is(ship(ctx), qlock.ErrNotHeld))
	// Output:
	// shipped
	// true
}

// Options change a single lock. This job is started by several schedulers at nearly the
// same time: the first one runs it, and the others find the lock held for another minute.
func ExampleHoldAtLeast() {
	locker, stop := newLocker("cron")
	defer stop()

	ctx := context.Background()
	run := func() error {
		lock, err := locker.TryLock(ctx, "nightly", qlock.HoldAtLeast(time.Minute), qlock.Note("the report"))
		if err != nil {
			return err
		}
		fmt.Println("report")
		return lock.Unlock(ctx)
	}
	fmt.Println(run())
	fmt.Println(errors.Is(run(), qlock.ErrHeld))
	// Output:
	// report
	// <nil>
	// true
}

// Who waits can show a person what for.
func ExampleWithWaitFunc() {
	locker, stop := newLocker("billing")
	defer stop()

	ctx := context.Background()
	held, err := locker.Lock(ctx, "orders.42")
	if err != nil {
		log.Fatal(err)
	}
	lock, err := locker.Lock(ctx, "orders.42", qlock.WithWaitFunc(func(w qlock.Waiting) {
		fmt.Printf("%s is held by %s, %d wait before us\n", w.Name, w.Holder.Client, w.Ahead)
		_ = held.Unlock(ctx) // or the example would not end
	}))
	if err != nil {
		log.Fatal(err)
	}
	_ = lock.Unlock(ctx)
	// Output:
	// orders.42 is held by billing, 0 wait before us
}

// Wanted lets a holder that could go on finish early, when somebody else waits.
func ExampleLock_Wanted() {
	locker, stop := newLocker("indexer")
	defer stop()

	ctx := context.Background()
	lock, err := locker.Lock(ctx, "index")
	if err != nil {
		log.Fatal(err)
	}
	next := locker.Start(ctx, "index")

	for batch := 1; ; batch++ {
		select {
		case <-lock.Wanted():
			fmt.Println("somebody else wants to index")
		case <-lock.Context().Done():
			fmt.Println("lost")
		case <-time.After(time.Minute):
			continue // with the next batch
		}
		break
	}
	_ = lock.Unlock(ctx)
	lock, err = next.Wait(ctx)
	fmt.Println(lock.Name(), err)
	_ = lock.Unlock(ctx)
	// Output:
	// somebody else wants to index
	// index <nil>
}

// Start asks for locks without a goroutine for each.
func ExampleLocker_Start() {
	locker, stop := newLocker("gateway")
	defer stop()

	ctx := context.Background()
	request := locker.Start(ctx, "orders.42", qlock.Shared())
	select {
	case <-request.Done():
		lock, err := request.Lock()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(lock.Name(), lock.Stands() > time.Second)
		_ = lock.Unlock(ctx)
	case <-time.After(time.Minute):
		fmt.Println(request.Status())
		request.Cancel()
	}
	// Output:
	// orders.42 true
}

// A LockError carries the answers of the nodes.
func ExampleLockError() {
	ctx := context.Background()
	cluster, err := embedded.StartCluster(ctx, 3)
	if err != nil {
		log.Fatal(err)
	}
	defer cluster.Close()
	locker, err := qlock.New(ctx, cluster.Servers()[0].Conn(), qlock.WithName("billing"))
	if err != nil {
		log.Fatal(err)
	}
	defer locker.Close()
	_ = cluster.Servers()[1].Close()
	_ = cluster.Servers()[2].Close()

	short, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err = locker.Lock(short, "orders.42")
	if e, ok := errors.AsType[*qlock.LockError](err); ok && errors.Is(err, qlock.ErrNoQuorum) {
		fmt.Printf("%d of %d votes, %d needed, silent: %v\n", e.Votes(), len(e.Nodes), e.Need, e.Silent())
	}
	fmt.Println("in time:", errors.Is(err, context.DeadlineExceeded))
	fmt.Println(err)
	// Output:
	// 1 of 3 votes, 2 needed, silent: [n2 n3]
	// in time: true
	// qlock: lock "orders.42": no quorum: 1 of 3 nodes voted, 2 are needed: n1 voted, n2 silent, n3 silent: context deadline exceeded
}

// Members lists the nodes of the cluster, their states, and what they disagree on.
func ExampleLocker_Members() {
	locker, stop := newLocker("ops")
	defer stop()

	m, err := locker.Members(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	for _, n := range m.Nodes {
		switch {
		case !n.Answered:
			fmt.Println(n.Name, "does not answer")
		case n.Conflict != "":
			fmt.Println(n.Name, "contradicts the others:", n.Conflict)
		default:
			fmt.Println(n.Name, n.State)
		}
	}
	fmt.Printf("%d vote, %d are needed\n", m.Voting(), m.Config.WriteQuorum())
	// Output:
	// n1 voting
	// 1 vote, 1 are needed
}

func ExampleLocker_Inspect() {
	ctx := context.Background()
	backup, stop := newLocker("backup")
	defer stop()
	lock, err := backup.Lock(qlock.ContextWithNote(ctx, "host7: nightly"), "disk.1")
	if err != nil {
		log.Fatal(err)
	}
	defer lock.Unlock(ctx)

	// Any client may do this if its NATS permissions allow it.
	info, err := backup.Inspect(ctx, "disk.1")
	if err != nil {
		log.Fatal(err)
	}
	for _, c := range info.Holders {
		fmt.Printf("%s holds %s (%s), with the token of the lock: %v\n", c.Client, info.Name, c.Note, c.Token == lock.Token())
	}
	fmt.Println("waiting:", info.Waiting)
	// Output:
	// backup holds disk.1 (host7: nightly), with the token of the lock: true
	// waiting: 0
}

func ExampleLocker_Locks() {
	ctx := context.Background()
	locker, stop := newLocker("shipping")
	defer stop()
	for _, name := range []string{"orders.1", "orders.2", "stock.1"} {
		if _, err := locker.Lock(ctx, name); err != nil {
			log.Fatal(err)
		}
	}
	locks, err := locker.Locks(ctx, "orders.*")
	if err != nil {
		log.Fatal(err)
	}
	for _, l := range locks {
		fmt.Println(l.Name, "is held by", l.Holders[0].Client)
	}
	// Output:
	// orders.1 is held by shipping
	// orders.2 is held by shipping
}

func ExampleLocker_Evict() {
	ctx := context.Background()
	locker, stop := newLocker("backup")
	defer stop()
	stuck, err := locker.Lock(ctx, "disk.1")
	if err != nil {
		log.Fatal(err)
	}
	info, err := locker.Inspect(ctx, "disk.1")
	if err != nil {
		log.Fatal(err)
	}
	for _, holder := range info.Holders {
		if err := locker.Evict(ctx, "disk.1", holder, "it hangs"); err != nil {
			log.Fatal(err)
		}
	}
	<-stuck.Context().Done() // the holder is told
	fmt.Println(context.Cause(stuck.Context()))
	// Output: qlock: lock lost: evicted by backup: it hangs
}

func ExampleEvictedBy() {
	ctx := context.Background()
	locker, stop := newLocker("backup")
	defer stop()
	lock, err := locker.Lock(ctx, "disk.1")
	if err != nil {
		log.Fatal(err)
	}
	info, err := locker.Inspect(ctx, "disk.1")
	if err != nil {
		log.Fatal(err)
	}
	if err := locker.Evict(ctx, "disk.1", info.Holders[0], "it hangs"); err != nil {
		log.Fatal(err)
	}
	by, reason, ok := qlock.EvictedBy(lock.Unlock(ctx))
	fmt.Printf("%q %q %v\n", by, reason, ok)
	// Output: "backup" "it hangs" true
}

func ExampleParseEvent() {
	subject, err := qlock.EventSubject("default", "orders.>")
	if err != nil {
		log.Fatal(err)
	}
	nc, stop := connectNATS()
	defer stop()
	_, err = nc.Subscribe(subject, func(m *nats.Msg) {
		e, err := qlock.ParseEvent(m.Subject, m.Data)
		if err != nil {
			log.Print(err)
			return
		}
		fmt.Println(e.Client, e.Kind, e.Name)
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output:
}

// A node on a NATS system that already runs. Each node of a cluster has a name and a
// state directory of its own. The list of names is fixed and the same for all nodes.
func ExampleStartNode() {
	ctx := context.Background()
	nc, stop := connectNATS() // to NATS without nodes
	defer stop()
	dir, err := os.MkdirTemp("", "n1-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	cfg := qlock.NodeConfig{
		Name:     "n1",
		Nodes:    []string{"n1"}, // of three: "n1", "n2", "n3"
		StateDir: dir,
		MaxLease: 30 * time.Second,
	}
	// Once in the life of a cluster, by hand. Without it the node would first wait
	// until the votes that it may have forgotten have expired.
	if err := qlock.Bootstrap(cfg); err != nil {
		log.Fatal(err)
	}

	node, err := qlock.StartNode(ctx, nc, cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer node.Close() // a clean stop: the node votes at once when it starts again
	if err := node.WaitReady(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println(node.Name(), "is", node.Stats().State)
	// Output: n1 is voting
}

// One of three nodes, each in a process of its own, on a NATS system that already runs.
func ExampleStartNode_cluster() {
	bootstrap := flag.Bool("bootstrap", false, "once in the life of a cluster, by hand")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	cfg := qlock.NodeConfig{
		Cluster:  "prod",
		Name:     "n1", // n2 and n3 in the other two
		Nodes:    []string{"n1", "n2", "n3"},
		StateDir: "/var/lib/qlock",
	}
	if *bootstrap {
		if err := qlock.Bootstrap(cfg); err != nil {
			log.Fatal(err)
		}
		return
	}
	nc, err := nats.Connect("nats://localhost:4222", nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort())
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	node, err := qlock.StartNode(ctx, nc, cfg)
	if err != nil {
		log.Fatal(err)
	}
	select {
	case <-ctx.Done():
	case <-node.Done(): // another n1 was running before, or the connection is closed permanently
		log.Print(node.Err())
	}
	if err := node.Close(); err != nil { // a clean stop keeps the votes
		log.Fatal(err)
	}
}

// Bootstrap is for a node that has never run. It refuses a state directory that was used
// before.
func ExampleBootstrap() {
	dir, err := os.MkdirTemp("", "n1-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	cfg := qlock.NodeConfig{Name: "n1", Nodes: []string{"n1", "n2", "n3"}, StateDir: dir}
	fmt.Println("first: ", qlock.Bootstrap(cfg))
	fmt.Println("second refused:", qlock.Bootstrap(cfg) != nil)
	// Output:
	// first:  <nil>
	// second refused: true
}

// The functions below provide NATS and nodes for the examples.

// connect starts NATS with three nodes in this process and connects to it.
func connect() (*nats.Conn, func()) {
	cluster, err := embedded.StartCluster(context.Background(), 3)
	if err != nil {
		log.Fatal(err)
	}
	return cluster.Servers()[0].Conn(), func() { _ = cluster.Close() }
}

// newLocker makes a Locker on NATS with one node.
func newLocker(name string) (*qlock.Locker, func()) {
	cluster, err := embedded.StartCluster(context.Background(), 1)
	if err != nil {
		log.Fatal(err)
	}
	locker, err := qlock.New(context.Background(), cluster.Servers()[0].Conn(), qlock.WithName(name))
	if err != nil {
		log.Fatal(err)
	}
	return locker, func() {
		_ = locker.Close()
		_ = cluster.Close()
	}
}

// connectNATS starts a nats-server without nodes in this process and connects to it.
func connectNATS() (*nats.Conn, func()) {
	s, err := server.NewServer(&server.Options{DontListen: true, NoLog: true, NoSigs: true})
	if err != nil {
		log.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(2 * time.Minute) {
		log.Fatal("nats-server does not start")
	}
	nc, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		log.Fatal(err)
	}
	return nc, func() {
		nc.Close()
		s.Shutdown()
		s.WaitForShutdown()
	}
}
