package partition_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/testworld"
	"github.com/qlock/qlock/members"
	"github.com/qlock/qlock/partition"
	"github.com/qlock/qlock/qlocktest"
)

// ownership is a time in which a partition was owned for certain, during a call of its handler.
type ownership struct {
	partition int
	by        string
	token     uint64
	from, to  time.Time
}

// history is what the handlers of a test did.
type history struct {
	// look tells how long a partition was owned. nil in virtual time, where a handler knows it to the
	// microsecond.
	look *testworld.Sampler

	mu    sync.Mutex // guards what follows
	all   []ownership
	count map[string]int // now, by worker
	owned map[int]string // now, by partition; the last to come
}

func newHistory(look *testworld.Sampler) *history {
	return &history{look: look, count: map[string]int{}, owned: map[int]string{}}
}

// begin is at the begin of a handler, and end at its end.
func (h *history) begin(ctx context.Context) (end func() (from, to time.Time, ok bool)) {
	if h.look != nil {
		return h.look.Begin(ctx)
	}
	from := time.Now()
	return func() (time.Time, time.Time, bool) { return from, time.Now(), true }
}

// handler owns a partition until it is lost or moves, and then a little longer.
func (h *history) handler(id string, linger time.Duration) partition.Handler {
	return func(ctx context.Context, a partition.Assignment) {
		o := ownership{partition: a.Partition, by: id, token: a.Token}
		end := h.begin(ctx)
		h.mu.Lock()
		h.count[id]++
		h.owned[a.Partition] = id
		h.mu.Unlock()
		select {
		case <-a.Moving:
			if linger > 0 {
				select {
				case <-time.After(linger):
				case <-ctx.Done():
				}
			}
		case <-ctx.Done():
		}
		var ok bool
		o.from, o.to, ok = end()
		h.mu.Lock()
		defer h.mu.Unlock()
		h.count[id]--
		if h.owned[a.Partition] == id {
			delete(h.owned, a.Partition)
		}
		if ok {
			h.all = append(h.all, o)
		}
	}
}

// check looks for two owners at once, and for tokens that do not rise.
func (h *history) check(t *testing.T) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	by := map[int][]ownership{}
	for _, o := range h.all {
		by[o.partition] = append(by[o.partition], o)
	}
	for _, list := range by {
		slices.SortFunc(list, func(a, b ownership) int { return cmp.Or(cmp.Compare(a.token, b.token), a.from.Compare(b.from)) })
		for i := 1; i < len(list); i++ {
			a, b := list[i-1], list[i]
			if b.from.Before(a.from) {
				t.Errorf("tokens do not rise: %+v, then %+v", a, b)
			}
			if over := a.to.Sub(b.from); over > 0 {
				t.Errorf("two owners for %v: %+v and %+v", over, a, b)
			}
		}
	}
	t.Logf("%d ownerships of %d partitions", len(h.all), len(by))
}

// balanced waits until all partitions are owned by the workers alone, by each as many as by
// another to within 10 % or one, and returns how long that took.
func (h *history) balanced(t *testing.T, limit time.Duration, partitions int, workers ...string) time.Duration {
	t.Helper()
	start := time.Now()
	for {
		h.mu.Lock()
		sum, good := 0, len(h.owned) == partitions
		share := float64(partitions) / float64(len(workers))
		for _, id := range workers {
			sum += h.count[id]
			off := float64(h.count[id]) - share
			good = good && max(off, -off) <= max(0.1*share, 1)
		}
		text := fmt.Sprint(h.count)
		h.mu.Unlock()
		if good && sum == partitions {
			return time.Since(start)
		}
		if time.Since(start) > limit {
			t.Fatalf("after %v the partitions are not spread over %v: %s", limit, workers, text)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func newGroup(t *testing.T, c *qlocktest.Cluster, nc *nats.Conn, partitions int, opts ...partition.Option) *partition.Group {
	t.Helper()
	g, err := partition.New(c.LockerOn(t, nc), "orders", partitions, append([]partition.Option{partition.WithEvents(nc)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func join(t *testing.T, g *partition.Group, id string, h partition.Handler) *partition.Worker {
	t.Helper()
	w, err := g.Join(within(t, 2*time.Minute), id, "", h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := w.Leave(ctx); err != nil && !errors.Is(err, qlock.ErrClosed) {
			t.Error(err)
		}
	})
	return w
}

// 256 partitions, and members that come, go and are cut off, with nodes that crash, and servers
// that are isolated with the members that stay with them: never two owners, and balanced again
// soon after.
func TestFaults(t *testing.T) {
	t.Parallel()
	const partitions = 256
	c := testworld.StartFaults(t, qlocktest.WithLease(3*time.Second)) // a loaded machine keeps it
	random := testworld.Rand(1)
	h := newHistory(testworld.NewSampler(t, 20*time.Millisecond))
	conns, workers := map[string]*nats.Conn{}, map[string]*partition.Worker{}
	start := func(id string) {
		conns[id] = c.Client(t)
		workers[id] = join(t, newGroup(t, c.Cluster, conns[id], partitions), id, h.handler(id, time.Duration(random.IntN(20))*time.Millisecond))
	}
	const soon = 2 * time.Minute // for a loaded machine; TestVirtualFaults knows what it takes
	start("a")
	t.Logf("the first worker has all after %v", h.balanced(t, soon, partitions, "a"))
	start("b")
	start("c")
	t.Logf("two more: balanced after %v", h.balanced(t, soon, partitions, "a", "b", "c"))

	if err := workers["b"].Leave(within(t, soon)); err != nil {
		t.Error(err)
	}
	t.Logf("one left: balanced after %v", h.balanced(t, soon, partitions, "a", "c"))

	start("d")
	start("e")
	h.balanced(t, soon, partitions, "a", "c", "d", "e")
	c.Disconnect(t, conns["d"]) // a death: it tells nobody
	t.Logf("one died: balanced after %v, with a lease of %v", h.balanced(t, soon, partitions, "a", "c", "e"), c.Lease())
	c.Reconnect(t, conns["d"])
	t.Logf("it came back: balanced after %v", h.balanced(t, soon, partitions, "a", "c", "d", "e"))

	c.Rounds(t)
	t.Logf("after one fault after the other: balanced after %v", h.balanced(t, soon, partitions, "a", "c", "d", "e"))
	// A node and a member at once.
	for range 2 {
		node := c.Names()[random.IntN(3)]
		c.Crash(t, node)
		id := []string{"a", "c", "d", "e"}[random.IntN(4)]
		c.Disconnect(t, conns[id])
		time.Sleep(time.Duration(random.IntN(1500)) * time.Millisecond)
		c.Restart(t, node)
		c.Reconnect(t, conns[id]) // its server may be that node's
		c.WaitVotes(t)
	}
	t.Logf("after nodes and members failed: balanced after %v", h.balanced(t, soon, partitions, "a", "c", "d", "e"))
	g := newGroup(t, c.Cluster, c.Connect(t), partitions)
	for ctx := within(t, soon); ; time.Sleep(20 * time.Millisecond) { // one may just have been lost
		owners, err := g.Owners(ctx)
		if err == nil && !slices.ContainsFunc(owners, func(o partition.Owner) bool {
			return o.ID == "" || o.Token == 0 || !strings.Contains("acde", o.ID)
		}) {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("not every partition has an owner: %+v, %v", owners, err)
		}
	}
	for _, w := range workers {
		if err := w.Leave(within(t, soon)); err != nil {
			t.Error(err)
		}
		if len(w.Owned()) > 0 {
			t.Errorf("%s left, and owns %v", w.ID(), w.Owned())
		}
	}
	h.check(t)
}

// A partition is handed over when its handler has returned, and its context ends after the
// drain time. Until the next owner waits for it, it stays.
func TestDrain(t *testing.T) {
	t.Parallel()
	c := qlocktest.StartCluster(t, 1, qlocktest.WithLease(30*time.Second))
	const drain = 300 * time.Millisecond
	var mu sync.Mutex // guards causes and returned
	causes, returned := map[int]error{}, map[int]time.Time{}
	g := newGroup(t, c, c.Connect(t), 8, partition.WithDrain(drain))
	var leaving atomic.Bool
	goOn := make(chan struct{})
	a := join(t, g, "a", func(ctx context.Context, p partition.Assignment) {
		if qlock.Token(ctx) != p.Token || qlock.Held(ctx) != nil {
			t.Error("the context is not that of the lock")
		}
		<-ctx.Done() // ignores Moving
		mu.Lock()
		causes[p.Partition] = context.Cause(ctx)
		mu.Unlock()
		time.Sleep(50 * time.Millisecond)
		if leaving.Load() {
			<-goOn
		}
		mu.Lock()
		returned[p.Partition] = time.Now()
		mu.Unlock()
	})
	for len(a.Owned()) < 8 {
		time.Sleep(time.Millisecond)
	}
	b := newGroup(t, c, c.Connect(t), 8, partition.WithDrain(drain))
	start := time.Now()
	type taken struct {
		partition int
		at        time.Time
	}
	first := make(chan taken, 8)
	join(t, b, "b", func(ctx context.Context, p partition.Assignment) {
		first <- taken{p.Partition, time.Now()}
		select {
		case <-p.Moving:
		case <-ctx.Done():
		}
	})
	for range 4 {
		next := <-first
		mu.Lock()
		if end, ok := returned[next.partition]; !ok || next.at.Before(end) || next.at.Sub(start) < drain {
			t.Errorf("partition %d: handed over after %v, its handler returned: %v, after %v", next.partition, next.at.Sub(start), ok, end.Sub(start))
		}
		mu.Unlock()
	}
	mu.Lock()
	for p, cause := range causes {
		if !errors.Is(cause, partition.ErrMoved) {
			t.Errorf("partition %d: %v", p, cause)
		}
	}
	mu.Unlock()
	key := ""
	for i := 0; g.Partition(key) != a.Owned()[0]; i++ {
		key = fmt.Sprint(i)
	}
	o, err := g.Owner(within(t, 2*time.Minute), key)
	if err != nil || o.ID != "a" || o.Partition != a.Owned()[0] {
		t.Errorf("%+v, %v", o, err)
	}
	// Leave does not wait for ever.
	leaving.Store(true)
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	wantIs(t, a.Leave(short), context.DeadlineExceeded)
	wantIs(t, context.Cause(a.Context()), partition.ErrLeft)
	close(goOn)
	if err := a.Leave(within(t, 2*time.Minute)); err != nil {
		t.Error(err)
	}
}

// A handler that returns early is called again; one whose Locker is closed ends.
func TestHandlerReturns(t *testing.T) {
	t.Parallel()
	c := qlocktest.StartCluster(t, 1, qlocktest.WithLease(30*time.Second))
	nc := c.Connect(t)
	l := c.LockerOn(t, nc)
	g, err := partition.New(l, "orders", 1)
	if err != nil {
		t.Fatal(err)
	}
	calls := make(chan time.Time, 100)
	w := join(t, g, "a", func(context.Context, partition.Assignment) { calls <- time.Now() })
	one, two, three := <-calls, <-calls, <-calls
	if two.Sub(one) < 100*time.Millisecond || three.Sub(two) < 200*time.Millisecond {
		t.Errorf("called again after %v and %v", two.Sub(one), three.Sub(two))
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-w.Context().Done():
	case <-time.After(2 * time.Minute):
		t.Fatal("the worker does not stop")
	}
	wantIs(t, w.Leave(within(t, 2*time.Minute)), qlock.ErrClosed)
}

func TestMismatch(t *testing.T) {
	t.Parallel()
	c := qlocktest.StartCluster(t, 1, qlocktest.WithLease(30*time.Second))
	none := func(ctx context.Context, _ partition.Assignment) { <-ctx.Done() }
	a := newGroup(t, c, c.Connect(t), 8, partition.WithDrain(0))
	join(t, a, "a", none)
	_, err := newGroup(t, c, c.Connect(t), 16).Join(within(t, 2*time.Minute), "b", "", none)
	wantIs(t, err, partition.ErrMismatch)
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Millisecond) { // its release is on its way
		list, err := a.Members().List(within(t, 2*time.Minute))
		if err == nil && len(list) == 1 && list[0].Meta == "partitions=8" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%+v, %v", list, err)
		}
	}
	// A member that is no worker gets no partitions.
	if _, err := a.Members().Join(within(t, 2*time.Minute), "observer", "zone=b"); err != nil {
		t.Fatal(err)
	}
	// Before a node has answered, nobody knows who has the id.
	for limit := 100 * time.Millisecond; ; limit *= 2 {
		_, err = a.Join(within(t, limit), "a", "", none)
		if !errors.Is(err, qlock.ErrNoQuorum) || limit > time.Minute {
			break
		}
	}
	wantIs(t, err, qlock.ErrHeld)
}

func TestBadInput(t *testing.T) {
	t.Parallel()
	c := qlocktest.StartCluster(t, 1)
	l := c.Locker(t)
	for _, n := range []int{-1, 0, partition.MaxPartitions + 1} {
		_, err := partition.New(l, "g", n)
		wantIs(t, err, partition.ErrInvalid)
	}
	_, err := partition.New(nil, "g", 1)
	wantIs(t, err, members.ErrInvalid)
	_, err = partition.New(l, "a.b", 1)
	wantIs(t, err, members.ErrInvalid)
	_, err = partition.New(l, "g", 1, nil, partition.WithEvents(nil))
	wantIs(t, err, members.ErrInvalid)
	_, err = partition.New(l, "g", 1, partition.WithDrain(-1))
	wantIs(t, err, partition.ErrInvalid)
	g, err := partition.New(l, "g", 4, partition.WithInterval(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"", "a\tb", "\xff", strings.Repeat("x", 257)} {
		_, err := g.Join(t.Context(), id, "", func(context.Context, partition.Assignment) {})
		wantIs(t, err, partition.ErrInvalid)
	}
	_, err = g.Join(t.Context(), "a", "", nil)
	wantIs(t, err, partition.ErrInvalid)
	_, err = g.Join(t.Context(), "a", strings.Repeat("x", 250), func(context.Context, partition.Assignment) {})
	wantIs(t, err, members.ErrInvalid)
	_, err = g.Owner(within(t, 2*time.Minute), "x")
	wantIs(t, err, partition.ErrNoOwner)
	for name, want := range map[string]int{
		"qlock.partition.g.0": 0, "qlock.partition.g.17": 17, "qlock.partition.g.017": -1, "qlock.partition.g.x": -1,
		"qlock.partition.g": -1, "qlock.partition..1": -1, "qlock.partition.g.-1": -1, "other": -1,
	} {
		if group, p, ok := partition.ParseName(name); ok != (want >= 0) || ok && (p != want || group != "g") {
			t.Errorf("%s: %q %d %v", name, group, p, ok)
		}
	}
}

// BenchmarkRebalance measures how long it takes until all 256 partitions are where they
// belong after a member has joined, and after it has left.
func BenchmarkRebalance(b *testing.B) {
	c := qlocktest.StartCluster(b, 3, qlocktest.WithLease(10*time.Second))
	var mu sync.Mutex // guards owned
	owned := map[string]int{}
	handler := func(id string) partition.Handler {
		return func(ctx context.Context, a partition.Assignment) {
			mu.Lock()
			owned[id]++
			mu.Unlock()
			select {
			case <-a.Moving:
			case <-ctx.Done():
			}
			mu.Lock()
			owned[id]--
			mu.Unlock()
		}
	}
	start := func(id string) *partition.Worker {
		nc := c.Connect(b)
		g, err := partition.New(c.LockerOn(b, nc), "orders", 256, partition.WithEvents(nc))
		if err != nil {
			b.Fatal(err)
		}
		w, err := g.Join(b.Context(), id, "", handler(id))
		if err != nil {
			b.Fatal(err)
		}
		return w
	}
	spread := func(each int, ids ...string) {
		for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Microsecond) {
			mu.Lock()
			good := true
			for _, id := range ids {
				good = good && owned[id] == each
			}
			mu.Unlock()
			if good {
				return
			}
			if time.Now().After(end) {
				b.Fatalf("not balanced: %v", owned)
			}
		}
	}
	leave := func(w *partition.Worker) {
		if err := w.Leave(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
	x, y, z := start("x"), start("y"), start("z")
	defer leave(x)
	defer leave(y)
	defer leave(z)
	var joined, left time.Duration
	for b.Loop() {
		t0 := time.Now()
		w := start("w")
		spread(64, "w", "x", "y", "z")
		joined += time.Since(t0)
		t0 = time.Now()
		leave(w)
		for {
			mu.Lock()
			done := owned["x"]+owned["y"]+owned["z"] == 256 && min(owned["x"], owned["y"], owned["z"]) == 85
			mu.Unlock()
			if done {
				break
			}
			time.Sleep(100 * time.Microsecond)
		}
		left += time.Since(t0)
	}
	b.ReportMetric(float64(joined.Milliseconds())/float64(b.N), "ms/join")
	b.ReportMetric(float64(left.Milliseconds())/float64(b.N), "ms/leave")
}
