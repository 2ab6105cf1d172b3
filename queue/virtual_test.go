package queue_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/testworld"
	"github.com/qlock/qlock/queue"
)

const lease = testworld.Lease

// shop is a queue in virtual time: a cluster of nodes, and JetStream on a server of its own.
type shop struct {
	*testworld.World
	t      *testing.T
	stored *server.Server
	cfg    queue.Config
	js     jetstream.JetStream // of the test, and never cut
	*queue.Queue
}

func inShop(t *testing.T, cfg queue.Config, f func(t *testing.T, s *shop)) {
	t.Helper()
	testworld.Run(t, func(t *testing.T, w *testworld.World) {
		s := &shop{World: w, t: t, stored: w.JetStream(), cfg: cfg}
		_, s.js = s.jetStream()
		s.Queue = open(t, s.js, cfg)
		f(t, s)
	})
}

func (s *shop) jetStream() (*testworld.Link, jetstream.JetStream) {
	s.t.Helper()
	nc := testworld.Connect(s.t, s.stored, nats.PingInterval(lease/5), nats.MaxPingsOutstanding(1))
	js, err := jetstream.New(nc.Conn)
	if err != nil {
		s.t.Fatal(err)
	}
	return nc, js
}

// clerk is a worker, with connections of its own to the nodes and to JetStream.
type clerk struct {
	locker        *qlock.Locker
	locks, stored *testworld.Link
	stop          context.CancelFunc
	ended         chan struct{}
	err           error // of Work, when ended is closed

	mu   sync.Mutex // guards errs
	errs []error    // that were reported
}

func (s *shop) hire(name string, h queue.Handler, opts ...queue.WorkOption) *clerk {
	s.t.Helper()
	c := &clerk{ended: make(chan struct{})}
	c.locker, c.locks = s.Client(name)
	nc, js := s.jetStream()
	c.stored = nc
	q := open(s.t, js, s.cfg)
	ctx, cancel := context.WithCancel(s.t.Context())
	c.stop = cancel
	report := queue.WithErrors(func(_ *queue.Item, err error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.errs = append(c.errs, err)
	})
	go func() {
		defer close(c.ended)
		c.err = q.Work(ctx, c.locker, h, append(opts, report)...)
	}()
	s.t.Cleanup(func() { cancel(); <-c.ended })
	return c
}

// reported reports whether one of the errors has the words.
func (c *clerk) reported(words string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.errs, func(err error) bool { return strings.Contains(err.Error(), words) })
}

// end waits until Work has returned.
func (c *clerk) end(t *testing.T, limit time.Duration) error {
	t.Helper()
	select {
	case <-c.ended:
	case <-time.After(limit):
		t.Fatalf("Work has not returned within %v; it reported %v", limit, c.errs)
	}
	return c.err
}

// empty waits until all items are done.
func (s *shop) empty(limit time.Duration) {
	s.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		if st, err := s.Stats(s.t.Context()); err == nil && st.Items == 0 {
			return
		} else if time.Now().After(end) {
			s.t.Fatalf("not done within %v: %+v, %v", limit, st, err)
		}
	}
}

func nothing(context.Context, *queue.Item) error { return nil }

// Work returns when it cannot go on, whatever it is waiting for at that moment: for items,
// for a place, for a lock, or for a handler.
func TestWorkCannotGoOn(t *testing.T) {
	deleteConsumer := func(s *shop, _ *clerk) error {
		return s.js.DeleteConsumer(s.t.Context(), "qlock-queue-mail", "workers")
	}
	deleteStream := func(s *shop, _ *clerk) error { return s.js.DeleteStream(s.t.Context(), "qlock-queue-mail") }
	for _, end := range []struct {
		what string
		do   func(s *shop, c *clerk) error
		want error // of Work
	}{
		{"the consumer is deleted", deleteConsumer, queue.ErrDeleted},
		{"the stream is deleted", deleteStream, queue.ErrDeleted},
		{"the connection is closed", func(_ *shop, c *clerk) error { c.stored.Close(); return nil }, nats.ErrConnectionClosed},
		{"the connection is drained", func(_ *shop, c *clerk) error { return c.stored.Drain() }, nil},
		{"the Locker is closed", func(_ *shop, c *clerk) error { return c.locker.Close() }, qlock.ErrClosed},
		{"the connection of the Locker is closed", func(_ *shop, c *clerk) error { c.locks.Close(); return nil }, qlock.ErrClosed},
		{"the server is gone, and comes back without the queue", func(s *shop, c *clerk) error {
			c.stored.Cut()
			time.Sleep(time.Minute)
			if err := deleteStream(s, c); err != nil {
				return err
			}
			c.stored.Mend()
			return nil
		}, queue.ErrDeleted},
	} {
		for _, when := range []string{"idle", "full", "waiting for a lock"} {
			t.Run(end.what+", "+when, func(t *testing.T) {
				inShop(t, queue.Config{}, func(t *testing.T, s *shop) {
					c := s.hire("a", func(ctx context.Context, it *queue.Item) error {
						<-ctx.Done()
						return context.Cause(ctx)
					})
					var other *qlock.Lock
					switch when {
					case "full":
						for range 20 {
							enqueue(t, s.Queue, "k", "")
						}
					case "waiting for a lock":
						l, _ := s.Client("other")
						var err error
						if other, err = l.Lock(t.Context(), "qlock.queue.mail.k"); err != nil {
							t.Fatal(err)
						}
						for range 20 {
							enqueue(t, s.Queue, "k", "")
						}
					}
					time.Sleep(3*time.Second + 300*time.Millisecond)
					if err := end.do(s, c); err != nil {
						t.Fatal(err)
					}
					start := time.Now()
					err := c.end(t, lease+2*time.Second)
					t.Logf("after %v: %v", time.Since(start), err)
					if err == nil {
						t.Error("Work returned nil, and nobody had stopped it")
					}
					if end.want != nil {
						wantIs(t, err, end.want)
					}
					if other != nil {
						_ = other.Unlock(t.Context())
					}
				})
			})
		}
	}
}

// A worker that reaches JetStream, and too few nodes, leaves its items to others, until it
// reaches the nodes again.
func TestNoQuorum(t *testing.T) {
	for _, when := range []string{"before the items come", "while it waits for a lock", "in the middle of one"} {
		t.Run(when, func(t *testing.T) {
			inShop(t, queue.Config{}, func(t *testing.T, s *shop) {
				var more atomic.Int64
				a := s.hire("a", func(ctx context.Context, it *queue.Item) error {
					if it.Key == "more" {
						more.Add(1)
						return nil
					}
					select {
					case <-time.After(time.Minute):
						return nil
					case <-ctx.Done():
						return context.Cause(ctx)
					}
				})
				l, _ := s.Client("other")
				var other *qlock.Lock
				switch when {
				case "before the items come":
					a.locks.Cut()
				case "while it waits for a lock":
					var err error
					if other, err = l.Lock(t.Context(), "qlock.queue.mail.k"); err != nil {
						t.Fatal(err)
					}
				}
				for i := range 8 {
					enqueue(t, s.Queue, "k", "")
					if other == nil {
						enqueue(t, s.Queue, fmt.Sprint("key", i), "")
					}
				}
				time.Sleep(5 * time.Second)
				a.locks.Cut()
				if other != nil {
					_ = other.Unlock(t.Context())
				}
				b := s.hire("b", nothing)
				start := time.Now()
				s.empty(10 * time.Minute)
				t.Logf("done %v after a worker lost the nodes, with a lease of %v", time.Since(start), lease)
				if took := time.Since(start); took > 3*lease {
					t.Errorf("done after %v", took)
				}
				if !a.reported("no quorum") {
					t.Errorf("it reported %v", a.errs)
				}
				b.stop()
				b.end(t, time.Minute)
				a.locks.Mend()
				enqueue(t, s.Queue, "more", "")
				s.empty(time.Minute)
				if more.Load() != 1 {
					t.Errorf("%d times", more.Load())
				}
			})
		})
	}
}

// A record of attempts that cannot be read, and an item that is too large for a dead letter
// with its reason, do not hold up their keys for ever.
func TestKeyIsNotStuck(t *testing.T) {
	inShop(t, queue.Config{MaxAttempts: 3, Backoff: []time.Duration{0}}, func(t *testing.T, s *shop) {
		largest := s.js.Conn().MaxPayload()
		for n := largest - 200; n < largest; n += 20 {
			if _, err := s.Enqueue(t.Context(), "large", make([]byte, n)); err != nil {
				wantIs(t, err, queue.ErrInvalid)
				continue
			}
			enqueue(t, s.Queue, "large", "behind it")
			break
		}
		r := enqueue(t, s.Queue, "unreadable", "x")
		enqueue(t, s.Queue, "unreadable", "behind it")
		if _, err := s.js.Publish(t.Context(), fmt.Sprint("qlock.queue.mail.try.", r.Seq), []byte("x")); err != nil {
			t.Fatal(err)
		}
		s.hire("a", func(_ context.Context, it *queue.Item) error {
			if string(it.Data) == "behind it" {
				return nil
			}
			return errors.New(strings.Repeat("long reason ", 1000))
		})
		s.empty(time.Hour)
	})
}

// WithErrors takes nil for no function.
func TestNoErrorFunc(t *testing.T) {
	inShop(t, queue.Config{Backoff: []time.Duration{0}}, func(t *testing.T, s *shop) {
		s.hire("a", func(_ context.Context, it *queue.Item) error {
			if it.Attempt == 1 {
				return errors.New("fails")
			}
			return nil
		})
		l, _ := s.Client("b")
		wantIs(t, s.Work(t.Context(), l, nothing, queue.WithErrors(nil)), queue.ErrInvalid)
	})
}

// A long handler keeps its item, one that stalls does not; and one is told when the worker
// stops.
func TestProgressAndStop(t *testing.T) {
	const lease = 3 * time.Second
	inShop(t, queue.Config{Lease: lease, Backoff: []time.Duration{0}}, func(t *testing.T, s *shop) {
		q := s.Queue
		l, _ := s.Client("a", qlock.WithLease(lease))
		var calls atomic.Int64
		causes := make(chan error, 10)
		stop := work(t, q, l, func(ctx context.Context, it *queue.Item) error {
			calls.Add(1)
			switch string(it.Data) {
			case "long":
				for range 10 {
					time.Sleep(lease / 3)
					it.Progress()
				}
				causes <- ctx.Err()
			case "stalls":
				if calls.Load() == 2 { // it may be delivered more than once before this
					<-ctx.Done()
					causes <- context.Cause(ctx)
				}
			case "stopped":
				causes <- nil
				<-ctx.Done()
				causes <- context.Cause(ctx)
				return context.Cause(ctx)
			}
			return nil
		}, queue.WithStall(3*lease), queue.WithDrain(50*time.Millisecond))
		enqueue(t, q, "k", "long")
		enqueue(t, q, "k", "stalls")
		if err := receive(t, causes); err != nil {
			t.Error(err)
		}
		wantIs(t, receive(t, causes), queue.ErrStalled)
		waitUntil(t, "done", func() bool { s, err := q.Stats(within(t, long)); return err == nil && s.Items == 0 })
		if calls.Load() != 3 {
			t.Errorf("%d calls", calls.Load())
		}
		enqueue(t, q, "k", "stopped")
		receive(t, causes)
		start := time.Now()
		if err := stop(); err != nil {
			t.Error(err)
		}
		wantIs(t, receive(t, causes), queue.ErrStopped)
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("stopped after %v", took)
		}
		// It is another's at once.
		done := make(chan int, 1)
		next, _ := s.Client("b", qlock.WithLease(lease))
		work(t, q, next, func(_ context.Context, it *queue.Item) error { done <- it.Attempt; return nil })
		if n := receive(t, done); n != 2 {
			t.Errorf("attempt %d", n)
		}
	})
}

// A worker that dies gives its item back within the lease.
func TestWorkerDies(t *testing.T) {
	inShop(t, queue.Config{}, func(t *testing.T, s *shop) {
		enqueue(t, s.Queue, "k", "x")
		a := s.hire("a", func(ctx context.Context, it *queue.Item) error {
			<-ctx.Done()
			return context.Cause(ctx)
		})
		time.Sleep(lease / 2)
		done := make(chan *queue.Item, 1)
		s.hire("b", func(_ context.Context, it *queue.Item) error { done <- it; return nil })
		start := time.Now()
		a.locks.Cut()
		a.stored.Cut() // both at once, as when a process dies
		it := receive(t, done)
		t.Logf("its item runs again after %v, the lease is %v", time.Since(start), lease)
		if it.Attempt != 2 || string(it.Data) != "x" {
			t.Errorf("%+v", it)
		}
		if took := time.Since(start); took > lease+lease/3 {
			t.Errorf("after %v", took)
		}
	})
}

// An item that waits while its worker loses the lock is given back, which is no attempt.
func TestGivenBackWhileWaiting(t *testing.T) {
	inShop(t, queue.Config{}, func(t *testing.T, s *shop) {
		attempts := make(chan int, 10)
		a := s.hire("a", func(ctx context.Context, it *queue.Item) error {
			if string(it.Data) == "first" {
				select {
				case <-time.After(time.Minute):
				case <-ctx.Done():
					return context.Cause(ctx)
				}
				return nil
			}
			attempts <- it.Attempt
			return nil
		})
		enqueue(t, s.Queue, "k", "first")
		enqueue(t, s.Queue, "k", "second")
		time.Sleep(time.Second)
		a.locks.Cut()
		time.Sleep(2 * lease)
		a.locks.Mend()
		s.empty(10 * time.Minute)
		if n := receive(t, attempts); n != 1 || len(attempts) > 0 {
			t.Errorf("attempt %d, and %d more", n, len(attempts))
		}
	})
}

// A connection that is cut, or a server that falls silent, in the moment in which an item is
// done: it is not confirmed. The item runs again, on another worker too, one run after the other.
func TestLostConfirmation(t *testing.T) {
	for name, fault := range map[string]func(*testworld.Link){
		"cut": (*testworld.Link).Cut, "silent": (*testworld.Link).Hush, "closed": func(l *testworld.Link) { l.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			inShop(t, queue.Config{}, func(t *testing.T, s *shop) {
				var h history
				handler := func(by string, before func()) queue.Handler {
					return func(ctx context.Context, it *queue.Item) error {
						at := attempt{key: it.Key, by: by, seq: it.Seq, token: qlock.Token(ctx), number: it.Attempt, from: time.Now(), ok: true}
						before()
						time.Sleep(time.Millisecond)
						at.to = time.Now()
						h.add(at)
						return nil
					}
				}
				var a *clerk
				a = s.hire("a", handler("a", func() { fault(a.stored) }), queue.WithConcurrency(2))
				for i := range 10 {
					enqueue(t, s.Queue, fmt.Sprint(i%2), "")
				}
				time.Sleep(time.Second)
				s.hire("b", handler("b", func() {}))
				s.empty(10 * time.Minute)
				h.check(t)
				if h.done() != 10 {
					t.Errorf("%d were done", h.done())
				}
				a.stop()
				if err := a.end(t, time.Minute); (err != nil) != (name == "closed") {
					t.Error(err)
				}
			})
		})
	}
}

// Workers are cut off from the nodes, from JetStream and from both, servers fall silent, workers
// stop and others begin, handlers fail and take their time, from many seeds. Each item is done,
// none twice at once, in order, and soon after the last fault.
func TestVirtualFaults(t *testing.T) {
	var most time.Duration
	for seed := range uint64(testworld.Worlds(4)) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			cfg := queue.Config{MaxAttempts: 100_000, Backoff: []time.Duration{0, time.Second, 5 * time.Second}, MaxPending: 30}
			inShop(t, cfg, func(t *testing.T, s *shop) {
				r := testworld.Rand(100 + seed)
				var h history
				var all, clerks []*clerk
				hire := func() {
					name := fmt.Sprint("w", len(all))
					var mu sync.Mutex // guards random
					random := rand.New(rand.NewPCG(seed, uint64(len(all))))
					c := s.hire(name, func(ctx context.Context, it *queue.Item) (err error) {
						mu.Lock()
						d := time.Duration(random.IntN(1000)) * time.Millisecond
						if random.IntN(10) == 0 {
							d *= 20
						}
						fails := random.IntN(5) == 0
						mu.Unlock()
						a := attempt{key: it.Key, by: name, seq: it.Seq, token: qlock.Token(ctx), number: it.Attempt, from: time.Now()}
						select {
						case <-time.After(d):
							if fails {
								err = errors.New("it was to fail")
							}
						case <-ctx.Done():
							err = context.Cause(ctx)
						}
						a.to, a.ok = time.Now(), err == nil
						h.add(a)
						return err
					}, queue.WithConcurrency(1+r.IntN(4)), queue.WithDrain(time.Duration(r.IntN(3))*time.Second))
					all, clerks = append(all, c), append(clerks, c)
				}
				hire()
				hire()
				total := 0
				for range 15 {
					for range r.IntN(20) {
						enqueue(t, s.Queue, fmt.Sprint(r.IntN(6)), "")
						total++
					}
					i := r.IntN(len(clerks))
					c := clerks[i]
					switch what := r.IntN(10); {
					case what == 0 && len(clerks) < 5:
						hire()
					case what == 1 && len(clerks) > 2:
						c.stop()
						if err := c.end(t, 2*lease); err != nil {
							t.Error(err)
						}
						clerks = slices.Delete(clerks, i, i+1)
					case what == 2 || what == 3:
						c.locks.Cut()
					case what == 4 || what == 5:
						c.stored.Cut()
					case what == 6:
						c.locks.Hush()
					case what == 7:
						c.stored.Hush()
					default:
						c.locks.Mend()
						c.stored.Mend()
					}
					time.Sleep(time.Duration(r.Int64N(int64(2 * lease))))
				}
				for _, c := range clerks {
					c.locks.Mend()
					c.stored.Mend()
				}
				start := time.Now()
				s.empty(10 * time.Minute)
				most = max(most, time.Since(start))
				if h.done() != total {
					t.Errorf("%d of %d items were done", h.done(), total)
				}
				for _, c := range clerks {
					c.stop()
					if err := c.end(t, 2*lease); err != nil {
						t.Error(err)
					}
				}
				h.check(t)
				if len(h.all) < 50 {
					t.Errorf("only %d attempts", len(h.all))
				}
			})
		})
	}
	t.Logf("all done within %v after the last fault, with a lease of %v", most, lease)
}
