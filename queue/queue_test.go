package queue_test

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
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/testworld"
	"github.com/qlock/qlock/qlocktest"
	"github.com/qlock/qlock/queue"
)

const long = 2 * time.Minute

// ample is a lease that a machine with much else to do keeps as well.
const ample = 10 * time.Second

func connect(t testing.TB, url string) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := nats.Connect(url, nats.Timeout(long), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.ReconnectJitter(0, 0),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return nc, js
}

func open(t testing.TB, js jetstream.JetStream, cfg queue.Config) *queue.Queue {
	t.Helper()
	if cfg.Name == "" {
		cfg.Name = "mail"
	}
	cfg.Storage = jetstream.MemoryStorage
	q, err := queue.Open(within(t, long), js, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func enqueue(t testing.TB, q *queue.Queue, key, data string, opts ...queue.EnqueueOption) queue.Receipt {
	t.Helper()
	r, err := q.Enqueue(within(t, long), key, []byte(data), opts...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// work runs a worker until stop is called, which returns what Work did.
func work(t testing.TB, q *queue.Queue, l *qlock.Locker, h queue.Handler, opts ...queue.WorkOption) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- q.Work(ctx, l, h, opts...) }()
	var once sync.Once
	var err error
	stop = func() error {
		cancel()
		once.Do(func() { err = <-done })
		return err
	}
	t.Cleanup(func() { _ = stop() })
	return stop
}

// attempt is a call of a handler.
type attempt struct {
	key, data, by string
	seq, token    uint64
	number        int
	from, to      time.Time
	ok            bool
}

type history struct {
	mu  sync.Mutex // guards all
	all []attempt
}

func (h *history) add(a attempt) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, a)
}

func (h *history) done() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	done := map[uint64]bool{}
	for _, a := range h.all {
		if a.ok {
			done[a.seq] = true
		}
	}
	return len(done)
}

// check looks for two attempts of a key at once, for tokens that fall, and for items that
// begin before an earlier one of their key was done.
func (h *history) check(t *testing.T) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	by := map[string][]attempt{}
	again := 0
	for _, a := range h.all {
		by[a.key] = append(by[a.key], a)
		if a.number > 1 {
			again++
		}
	}
	for _, list := range by {
		slices.SortFunc(list, func(a, b attempt) int { return a.from.Compare(b.from) })
		for i := 1; i < len(list); i++ {
			a, b := list[i-1], list[i]
			if over := a.to.Sub(b.from); over > 0 {
				t.Errorf("two at once for %v: %+v and %+v", over, a, b)
			}
			if b.token < a.token {
				t.Errorf("tokens fall: %+v, then %+v", a, b)
			}
			if b.seq < a.seq {
				t.Errorf("out of order: %+v, then %+v", a, b)
			}
			// An attempt whose confirmation was lost may be followed by one that fails, and is
			// confirmed then.
			earlier := slices.ContainsFunc(list[:i], func(o attempt) bool { return o.seq == a.seq && o.ok })
			if b.seq > a.seq && !earlier {
				t.Errorf("begun before the one ahead was done: %+v, then %+v", a, b)
			}
		}
	}
	t.Logf("%d attempts of items of %d keys, %d of them not the first", len(h.all), len(by), again)
}

// receive waits for what must come.
func receive[T any](t testing.TB, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(long):
		t.Fatalf("nothing within %v", long)
	}
	return v
}

func waitUntil(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(long); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, long)
		}
	}
}

func TestWork(t *testing.T) {
	t.Parallel()
	c := qlocktest.StartCluster(t, 1, qlocktest.WithLease(ample))
	_, js := connect(t, jetStream(t))
	q := open(t, js, queue.Config{Lease: ample})
	const keys, each = 10, 12
	for i := range each {
		for k := range keys {
			enqueue(t, q, fmt.Sprint("customer ", k), fmt.Sprint(i))
		}
	}
	var h history
	var running atomic.Int64
	two := make(chan struct{}) // closed when two run at the same time
	both := sync.OnceFunc(func() { close(two) })
	for i := range 3 {
		work(t, q, c.Locker(t), func(ctx context.Context, it *queue.Item) error {
			if running.Add(1) == 2 {
				both()
			}
			defer running.Add(-1)
			receive(t, two)
			if err := qlock.Held(ctx); err != nil {
				t.Error(err)
			}
			from := time.Now()
			time.Sleep(time.Millisecond)
			h.add(attempt{it.Key, string(it.Data), fmt.Sprint(i), it.Seq, qlock.Token(ctx), it.Attempt, from, time.Now(), true})
			return nil
		}, queue.WithConcurrency(4))
	}
	waitUntil(t, "all done", func() bool { return h.done() == keys*each })
	waitUntil(t, "the stream is empty", func() bool { s, err := q.Stats(within(t, long)); return err == nil && s.Items == 0 })
	h.check(t)
	if len(h.all) != keys*each {
		t.Errorf("%d attempts of %d items", len(h.all), keys*each)
	}
	seen := map[string]string{}
	for _, a := range h.all {
		seen[a.key] += a.data + " "
	}
	for k, got := range seen {
		if want := "0 1 2 3 4 5 6 7 8 9 10 11 "; got != want {
			t.Errorf("%s: %s", k, got)
		}
	}
}

// Workers are cut off and stopped, nodes crash and are isolated, and handlers fail: each item
// is done, none twice at once, in order.
func TestFaults(t *testing.T) {
	t.Parallel()
	const lease = 700 * time.Millisecond
	c := testworld.StartFaults(t, qlocktest.WithLease(lease))
	srv := jetStream(t)
	_, js := connect(t, srv)
	cfg := queue.Config{Lease: lease, Backoff: []time.Duration{20 * time.Millisecond}, MaxAttempts: 1000}
	q := open(t, js, cfg)
	var h history
	look := testworld.NewSampler(t, time.Millisecond)
	var stops []func() error
	for i := range 4 {
		_, js := connect(t, srv) // a worker has two connections here; those to JetStream stay
		random := testworld.Rand(uint64(1 + i))
		var mu sync.Mutex // guards random
		stops = append(stops, work(t, open(t, js, cfg), c.LockerOn(t, c.Client(t)), func(ctx context.Context, it *queue.Item) (err error) {
			mu.Lock()
			d, fails := time.Duration(random.IntN(30))*time.Millisecond, random.IntN(10) == 0
			mu.Unlock()
			a := attempt{key: it.Key, by: fmt.Sprint(i), seq: it.Seq, token: qlock.Token(ctx), number: it.Attempt}
			end := look.Begin(ctx)
			select {
			case <-time.After(d):
				if fails {
					err = errors.New("it was to fail")
				}
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
			var ok bool
			if a.from, a.to, ok = end(); !ok {
				return errors.New("the lock was lost before the handler ran")
			}
			a.ok = err == nil
			h.add(a)
			return err
		}, queue.WithConcurrency(4)))
	}
	const total = 120
	filled := make(chan struct{})
	go func() { // while the faults go on
		defer close(filled)
		random := testworld.Rand(9)
		for range total {
			if _, err := q.Enqueue(within(t, long), fmt.Sprint(random.IntN(8)), nil); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Duration(random.IntN(60)) * time.Millisecond)
		}
	}()
	time.Sleep(lease)
	time.AfterFunc(2*lease, func() {
		if err := stops[3](); err != nil {
			t.Error(err)
		}
	})
	c.Rounds(t)
	<-filled
	waitUntil(t, "all done", func() bool { return h.done() == total })
	waitUntil(t, "the stream is empty", func() bool { s, err := q.Stats(within(t, long)); return err == nil && s.Items == 0 && s.Dead == 0 })
	for _, stop := range stops {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
	h.check(t)
}

func TestRetriesAndDeadLetters(t *testing.T) {
	t.Parallel()
	c := qlocktest.StartCluster(t, 1, qlocktest.WithLease(ample))
	_, js := connect(t, jetStream(t))
	q := open(t, js, queue.Config{MaxAttempts: 3, Backoff: []time.Duration{100 * time.Millisecond, 200 * time.Millisecond}})
	header := nats.Header{"Trace": {"1", "2"}}
	enqueue(t, q, "größe", "fails", queue.WithID("order\t1"), queue.WithHeader(header))
	enqueue(t, q, "größe", "after it")
	enqueue(t, q, "other", "discarded")
	enqueue(t, q, "soon", "later")
	var mu sync.Mutex // guards what follows
	seen := map[string][]time.Time{}
	var attempts []int
	work(t, q, c.Locker(t), func(_ context.Context, it *queue.Item) error {
		mu.Lock()
		defer mu.Unlock()
		data := string(it.Data)
		seen[data] = append(seen[data], time.Now())
		switch {
		case data == "fails":
			attempts = append(attempts, it.Attempt)
			if it.ID != "order\t1" || !slices.Equal(it.Header["Trace"], []string{"1", "2"}) || it.Key != "größe" || it.Enqueued.IsZero() {
				t.Errorf("%+v", it)
			}
			return fmt.Errorf("attempt %d\nfailed", it.Attempt)
		case data == "discarded":
			return fmt.Errorf("wrapped: %w", queue.Discard(errors.New("no such customer")))
		case data == "later" && it.Attempt == 1:
			return queue.RetryAfter(errors.New("busy"), 400*time.Millisecond)
		}
		return nil
	}, queue.WithConcurrency(3))
	waitUntil(t, "all over", func() bool { s, err := q.Stats(within(t, long)); return err == nil && s.Items == 0 && s.Dead == 2 })
	mu.Lock()
	if f := seen["fails"]; !slices.Equal(attempts, []int{1, 2, 3}) || f[1].Sub(f[0]) < 100*time.Millisecond || f[2].Sub(f[1]) < 200*time.Millisecond {
		t.Errorf("attempts %v at %v", attempts, f)
	}
	if a := seen["after it"]; len(a) != 1 || a[0].Before(seen["fails"][2]) {
		t.Errorf("out of order: %v", seen)
	}
	if l := seen["later"]; len(l) != 2 || l[1].Sub(l[0]) < 400*time.Millisecond {
		t.Errorf("%v", l)
	}
	mu.Unlock()
	var dead []queue.DeadLetter
	for d, err := range q.Dead(within(t, long)) {
		if err != nil {
			t.Fatal(err)
		}
		dead = append(dead, d)
	}
	slices.SortFunc(dead, func(a, b queue.DeadLetter) int { return cmp.Compare(a.Key, b.Key) })
	if len(dead) != 2 || dead[0].Key != "größe" || dead[0].Reason != "attempt 3 failed" || dead[0].Attempts != 3 || dead[0].ID != "order\t1" ||
		dead[1].Reason != "wrapped: no such customer" || dead[1].Attempts != 1 || string(dead[1].Data) != "discarded" {
		t.Errorf("%+v", dead)
	}
	mu.Lock()
	before := len(seen["discarded"])
	mu.Unlock()
	if err := q.Revive(within(t, long), dead[1].Seq); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "it runs again", func() bool { mu.Lock(); defer mu.Unlock(); return len(seen["discarded"]) > before })
	wantIs(t, q.Revive(within(t, long), 12345), queue.ErrNotFound)
}

func TestDelayAndDuplicates(t *testing.T) {
	t.Parallel()
	c := qlocktest.StartCluster(t, 1, qlocktest.WithLease(ample))
	_, js := connect(t, jetStream(t))
	q := open(t, js, queue.Config{})
	start, delay := time.Now(), 1500*time.Millisecond
	for n := 0; ; n++ {
		enqueue(t, q, "k", "late", queue.WithDelay(delay), queue.WithID("a"))
		if r := enqueue(t, q, "k", "late", queue.WithDelay(delay), queue.WithID("a")); !r.Duplicate {
			t.Error("a delayed item is there twice")
		}
		enqueue(t, q, "k", "now", queue.WithID("b"), queue.WithDelay(-time.Second))
		if r := enqueue(t, q, "k", "now", queue.WithID("b")); !r.Duplicate {
			t.Error("an item is there twice")
		}
		if time.Since(start) < delay || delay > long {
			break
		}
		// On a slow machine the delayed item may have come before the other: another queue.
		q = open(t, js, queue.Config{Name: fmt.Sprint("mail", n)})
		start, delay = time.Now(), 2*delay
	}
	done := make(chan string, 10)
	work(t, q, c.Locker(t), func(_ context.Context, it *queue.Item) error {
		done <- string(it.Data) + " " + it.ID
		return nil
	})
	if got := receive(t, done); got != "now b" {
		t.Error(got)
	}
	if got := receive(t, done); got != "late a" || time.Since(start) < delay {
		t.Errorf("%s after %v", got, time.Since(start))
	}
	t.Logf("an item to come after %v came after %v", delay, time.Since(start))
	waitUntil(t, "the stream is empty", func() bool { s, err := q.Stats(within(t, long)); return err == nil && s.Items == 0 })
	select {
	case got := <-done:
		t.Errorf("once more: %s", got)
	default:
	}
}

// One key with many items does not keep those of other keys from being done.
func TestHotKey(t *testing.T) {
	t.Parallel()
	c := qlocktest.StartCluster(t, 1, qlocktest.WithLease(ample))
	_, js := connect(t, jetStream(t))
	q := open(t, js, queue.Config{Backoff: []time.Duration{time.Hour}})
	for range 50 {
		enqueue(t, q, "hot", "")
	}
	enqueue(t, q, "cold", "")
	done := make(chan string, 100)
	stop := work(t, q, c.Locker(t), func(_ context.Context, it *queue.Item) error {
		if it.Key == "hot" {
			return errors.New("its customer is on holiday")
		}
		done <- it.Key
		return nil
	}, queue.WithConcurrency(2))
	select {
	case <-done:
	case <-time.After(long):
		t.Fatal("the cold key waits for the hot one")
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// A queue may have any name beside any other: the streams of the one are not those of the other.
func TestNamesStandApart(t *testing.T) {
	t.Parallel()
	_, js := connect(t, jetStream(t))
	names := []string{"a", "a-dead", "a-tries", "dead-a", "tries-a", "queue-a", "a-dead-tries"}
	for range 2 { // whichever is first
		for _, name := range names {
			enqueue(t, open(t, js, queue.Config{Name: name}), "k", name)
		}
		for _, name := range names {
			if st, err := open(t, js, queue.Config{Name: name}).Stats(within(t, long)); err != nil || st != (queue.Stats{Items: 1}) {
				t.Errorf("%s has %+v, %v, of one item", name, st, err)
			}
			for _, part := range []string{"queue", "dead", "tries"} {
				if err := js.DeleteStream(within(t, long), "qlock-"+part+"-"+name); err != nil {
					t.Error(err)
				}
			}
		}
		slices.Reverse(names)
	}
}

// An error says why the context of the call ended.
func TestErrorHasCause(t *testing.T) {
	t.Parallel()
	_, js := connect(t, jetStream(t))
	q := open(t, js, queue.Config{})
	why := errors.New("the shop is closed")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	for call, f := range map[string]func() error{
		"Open":    func() error { _, err := queue.Open(ctx, js, queue.Config{Name: "mail"}); return err },
		"Enqueue": func() error { _, err := q.Enqueue(ctx, "k", nil); return err },
		"Stats":   func() error { _, err := q.Stats(ctx); return err },
		"Revive":  func() error { return q.Revive(ctx, 1) },
		"Dead": func() error {
			for _, err := range q.Dead(ctx) {
				return err
			}
			return nil
		},
	} {
		if err := f(); !errors.Is(err, why) || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", call, err)
		}
	}
}

func TestBadInput(t *testing.T) {
	t.Parallel()
	c := qlocktest.StartCluster(t, 1)
	nc, js := connect(t, jetStream(t))
	for _, cfg := range []queue.Config{
		{}, {Name: "a.b"}, {Name: "größe"}, {Name: strings.Repeat("x", 65)}, {Name: "a", Replicas: -1}, {Name: "a", Lease: time.Millisecond},
		{Name: "a", Backoff: []time.Duration{-1}}, {Name: "a", Duplicates: 1}, {Name: "a", KeepDead: 50 * time.Millisecond},
	} {
		_, err := queue.Open(t.Context(), js, cfg)
		wantIs(t, err, queue.ErrInvalid)
	}
	_, err := queue.Open(t.Context(), nil, queue.Config{Name: "a"})
	wantIs(t, err, queue.ErrInvalid)
	q := open(t, js, queue.Config{})
	for _, key := range []string{"", strings.Repeat("x", 257)} {
		_, err := q.Enqueue(t.Context(), key, nil)
		wantIs(t, err, queue.ErrInvalid)
	}
	for _, o := range []queue.EnqueueOption{
		queue.WithID(""), queue.WithID("a\nb"), queue.WithHeader(nats.Header{"Nats-Rollup": {"all"}}), queue.WithHeader(nats.Header{"qlock-id": {"x"}}),
		queue.WithHeader(nats.Header{"": {"x"}}), queue.WithHeader(nats.Header{"a\r\nNats-Rollup": {"all"}}), queue.WithHeader(nats.Header{"a b": {"x"}}),
		queue.WithTime(time.Date(20_000, 1, 1, 0, 0, 0, 0, time.UTC)),
	} {
		_, err := q.Enqueue(t.Context(), "k", nil, nil, o)
		wantIs(t, err, queue.ErrInvalid)
	}
	l := c.Locker(t)
	h := func(context.Context, *queue.Item) error { return nil }
	wantIs(t, q.Work(t.Context(), nil, h), queue.ErrInvalid)
	wantIs(t, q.Work(t.Context(), l, nil), queue.ErrInvalid)
	for _, o := range []queue.WorkOption{queue.WithConcurrency(0), queue.WithDrain(-1), queue.WithStall(0)} {
		wantIs(t, q.Work(t.Context(), l, h, nil, o), queue.ErrInvalid)
	}
	// What is no item of this package does not keep a worker from its work.
	if _, err := js.Publish(within(t, long), "qlock.queue.mail.item.=no_base64!", []byte("x")); err != nil {
		t.Fatal(err)
	}
	done := make(chan string, 1)
	work(t, q, l, func(_ context.Context, it *queue.Item) error { done <- it.Key; return nil })
	enqueue(t, q, "=strange key", "")
	if key := receive(t, done); key != "=strange key" {
		t.Error(key)
	}
	waitUntil(t, "it is a dead letter", func() bool { s, err := q.Stats(within(t, long)); return err == nil && s.Items == 0 && s.Dead == 1 })
	if name, key, ok := queue.ParseName("qlock.queue.mail.customer.42"); name != "mail" || key != "customer.42" || !ok {
		t.Error(name, key, ok)
	}
	for _, name := range []string{"qlock.queue.mail", "qlock.queue..x", "qlock.queue.mail.", "other"} {
		if _, _, ok := queue.ParseName(name); ok {
			t.Error(name)
		}
	}
	// A Locker or a connection that was closed ends the work.
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	enqueue(t, q, "k", "")
	wantIs(t, q.Work(within(t, long), l, h), qlock.ErrClosed)
	nc.Close()
	if err := q.Work(within(t, long), c.Locker(t), h); err == nil {
		t.Error("no error of a closed connection")
	}
}
