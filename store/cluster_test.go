package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/qlocktest"
)

// audit reads the whole stream. No fence may fall, each value must have been written under
// the fence of the token that it names, and each number is the one before and one more.
func audit(t *testing.T, s *Store, js jetstream.JetStream) {
	t.Helper()
	stream := soon(t, func() (jetstream.Stream, error) { return js.Stream(t.Context(), s.stream()) })
	last := soon(t, func() (*jetstream.StreamInfo, error) { return stream.Info(t.Context()) }).State.LastSeq
	cons := soon(t, func() (jetstream.Consumer, error) {
		return js.OrderedConsumer(t.Context(), s.stream(), jetstream.OrderedConsumerConfig{})
	})
	msgs := soon(t, func() (jetstream.MessagesContext, error) { return cons.Messages() })
	defer msgs.Stop()
	var token uint64
	numbers := map[string]int{}
	for {
		m := must(msgs.Next())(t)
		meta := must(m.Metadata())(t)
		switch {
		case strings.HasPrefix(m.Subject(), s.fences()):
			next := must(strconv.ParseUint(string(m.Data()), 10, 64))(t)
			if next < token {
				t.Errorf("the fence fell from %d to %d, at %d", token, next, meta.Sequence.Stream)
			}
			token = next
		case strings.HasPrefix(m.Subject(), s.keys()):
			var by uint64
			var n int
			if _, err := fmt.Sscanf(string(m.Data()), "%d %d", &by, &n); err != nil {
				t.Fatal(err)
			}
			if by != token {
				t.Errorf("a write of token %d under the fence of %d, at %d", by, token, meta.Sequence.Stream)
			}
			if n != numbers[m.Subject()]+1 {
				t.Errorf("%s: %d after %d, at %d: an increment is lost or torn", m.Subject(), n, numbers[m.Subject()], meta.Sequence.Stream)
			}
			numbers[m.Subject()] = n
		}
		if meta.Sequence.Stream >= last {
			return
		}
	}
}

// keepAll lets an audit see every message.
func keepAll(t *testing.T, s *Store, js jetstream.JetStream) {
	t.Helper()
	change(t, s, js, func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1 << 30 })
}

// change changes the configuration of a bucket.
func change(t *testing.T, s *Store, js jetstream.JetStream, f func(c *jetstream.StreamConfig)) {
	t.Helper()
	soon(t, func() (jetstream.Stream, error) {
		c, err := config(t.Context(), js, s.Bucket())
		if err != nil {
			return nil, err
		}
		f(&c)
		return js.UpdateStream(t.Context(), c)
	})
}

// next is the number after that of an entry, as a value of a token.
func next(t *testing.T, snap Snapshot, key string, token uint64) []byte {
	n := 0
	if e, err := snap.Get(key); err == nil {
		var by uint64
		if _, err := fmt.Sscanf(string(e.Value()), "%d %d", &by, &n); err != nil {
			t.Error(err)
		}
	}
	return fmt.Appendf(nil, "%d %d", token, n+1)
}

// rivals take the same lock again and again, each while the others still believe that they
// hold it, as if their leases had ended. They increment numbers, one by one and two in a
// batch.
func rivals(t *testing.T, s *Store, js jetstream.JetStream, urls []string, replicas int, disturb func()) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var token atomic.Uint64
	var done, fenced, unknown atomic.Int64
	var wg sync.WaitGroup
	for i := range 6 {
		nc := connect(t, urls[i%len(urls)])
		own := reopen(t, s, nc, WithAnswerTimeout(300*time.Millisecond), WithTimeout(5*time.Second))
		own.grouped = replicas > 1
		wg.Go(func() {
			for ctx.Err() == nil {
				l := lock(t, "l", token.Add(1))
				v := own.With(l)
				for range 1 + rand.IntN(20) {
					var err error
					snap, err := v.GetAll(t.Context(), "a", "b", "c")
					if err == nil && rand.IntN(3) == 0 {
						_, err = v.Do(t.Context(), Put("b", next(t, snap, "b", l.token)), Put("c", next(t, snap, "c", l.token)))
					} else if err == nil {
						_, err = v.Put(t.Context(), "a", next(t, snap, "a", l.token))
					}
					switch {
					case err == nil:
						done.Add(1)
						continue
					case errors.Is(err, ErrFenced):
						fenced.Add(1)
					case errors.Is(err, ErrUnknown):
						unknown.Add(1)
					case errors.Is(err, context.DeadlineExceeded): // no leader for long
					default:
						t.Error(err)
					}
					break
				}
			}
		})
	}
	// On a slow machine it goes on until it has seen enough.
	few := func() bool { return done.Load() < 20 || fenced.Load() == 0 }
	for start := time.Now(); time.Since(start) < 1200*time.Millisecond || few() && time.Since(start) < patience; {
		disturb()
	}
	cancel()
	wg.Wait()
	t.Logf("%d done, %d fenced off, %d unknown, %d tokens", done.Load(), fenced.Load(), unknown.Load(), token.Load())
	if few() {
		t.Errorf("only %d were done and %d fenced off: this tests nothing", done.Load(), fenced.Load())
	}
	audit(t, s, js)
}

func TestRivals(t *testing.T) {
	for _, storage := range []jetstream.StorageType{jetstream.MemoryStorage, jetstream.FileStorage} {
		t.Run(storage.String(), func(t *testing.T) {
			url := startServer(t).ClientURL()
			js := newJS(t, connect(t, url))
			s := newStore(t, js, jetstream.KeyValueConfig{Storage: storage})
			keepAll(t, s, js)
			rivals(t, s, js, []string{url}, 1, func() { time.Sleep(100 * time.Millisecond) })
		})
	}
}

func stepDown(nc *nats.Conn, s *Store) {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	_, _ = nc.RequestWithContext(ctx, fmt.Sprintf(server.JSApiStreamLeaderStepDownT, s.stream()), nil) // there may be no leader
}

func urls(servers []*server.Server) (out []string) {
	for _, s := range servers {
		out = append(out, s.ClientURL())
	}
	return out
}

// Three replicas, and a new leader again and again.
func TestRivalsOnReplicas(t *testing.T) {
	servers := startCluster(t, 3)
	nc := connect(t, servers[0].ClientURL())
	js := newJS(t, nc)
	for _, storage := range []jetstream.StorageType{jetstream.MemoryStorage, jetstream.FileStorage} {
		t.Run(storage.String(), func(t *testing.T) {
			s := newStore(t, js, jetstream.KeyValueConfig{Replicas: 3, Storage: storage})
			keepAll(t, s, js)
			rivals(t, s, js, urls(servers), 3, func() {
				stepDown(nc, s)
				time.Sleep(250 * time.Millisecond)
			})
		})
	}
	t.Run("group commit", func(t *testing.T) {
		s := newStore(t, js, jetstream.KeyValueConfig{Replicas: 3, Storage: jetstream.MemoryStorage}, WithAnswerTimeout(300*time.Millisecond))
		if !s.grouped {
			t.Fatal("three replicas, and writes are not grouped")
		}
		v := s.With(lock(t, "l", 1))
		var wg sync.WaitGroup
		for i := range 32 {
			wg.Go(func() {
				for j := range 10 {
					key := fmt.Sprint("k", i)
					rev, err := v.Put(t.Context(), key, []byte(fmt.Sprint(j)))
					if err != nil {
						t.Error(err)
						return
					}
					if e, err := v.Get(t.Context(), key); err != nil || e.Revision() != rev || string(e.Value()) != fmt.Sprint(j) {
						t.Errorf("%s: %+v, %v, want %d at %d", key, e, err, j, rev)
					}
				}
			})
		}
		for range 3 {
			stepDown(nc, s)
			time.Sleep(50 * time.Millisecond)
		}
		wg.Wait()
	})
	t.Run("transactions", func(t *testing.T) {
		s := newStore(t, js, jetstream.KeyValueConfig{Replicas: 3, Storage: jetstream.MemoryStorage}, WithAnswerTimeout(300*time.Millisecond))
		for name, d := range map[string]doer{"lock": s.With(lock(t, "l", 1)), "none": s} {
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for i := range 10 {
						// Each request comes twice.
						for range 2 {
							_, err := d.Do(t.Context(), Once(fmt.Sprint(name, i), time.Hour), Add("n."+name, 1), Put("k", nil))
							if err != nil && !errors.Is(err, ErrDuplicate) {
								t.Error(err)
							}
						}
					}
				})
			}
			time.Sleep(20 * time.Millisecond)
			stepDown(nc, s)
			wg.Wait()
			if res := must(s.Do(t.Context(), Get("n."+name)))(t); string(res.entries["n."+name].value) != "10" {
				t.Errorf("%s: %s, want each of ten requests once", name, res.entries["n."+name].value)
			}
		}
	})
}

// A view stands on the locks of a cluster of nodes. Locks and data may be of different servers.
func TestUnderALocker(t *testing.T) {
	c := qlocktest.StartCluster(t, 1, qlocktest.WithLease(time.Minute)) // which a slow machine keeps
	nc := connect(t, startServer(t).ClientURL())
	s := newStore(t, newJS(t, nc), jetstream.KeyValueConfig{Storage: jetstream.MemoryStorage})
	l := c.Locker(t)
	for i := range 3 {
		err := s.Under(t.Context(), l, "orders.42", func(ctx context.Context, v *View) error {
			same, err := s.In(ctx)
			if err != nil || same != v {
				t.Errorf("In: %v, %v", same, err)
			}
			_, err = v.Do(ctx, Add("n", 1))
			if err != nil {
				return err
			}
			return l.Do(ctx, "inner", func(ctx context.Context) error {
				inner, err := s.In(ctx)
				if err == nil && inner.c.lock.Name() != "inner" {
					t.Errorf("In finds the view of %q", inner.c.lock.Name())
				}
				return err
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		wantStored(t, s, "n", fmt.Sprint(i+1))
	}
	if f := must(s.Fence(t.Context(), "orders.42"))(t); f.Client != l.Name() || f.Token == 0 {
		t.Errorf("%+v", f)
	}
	_, err := s.In(t.Context())
	wantIs(t, err, ErrNoLock)
	err = l.Do(t.Context(), "x", func(ctx context.Context) error {
		v, err := s.In(ctx)
		if err != nil {
			return err
		}
		_, err = v.Put(ctx, "in", []byte("Do"))
		return err
	})
	if err != nil {
		t.Error(err)
	}
	wantStored(t, s, "in", "Do")
	k := must(l.Lock(t.Context(), "orders.42"))(t)
	v := s.With(k)
	mustPut(t, v, "k", "v")
	if same := must(s.In(v.NewContext(k.Context())))(t); same != v {
		t.Error("another view")
	}
	if err := k.Unlock(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err = v.Put(t.Context(), "k", nil)
	wantIs(t, err, ErrFenced, qlock.ErrUnlocked)
	r := must(l.RLock(t.Context(), "orders.42"))(t)
	wantValue(t, s.With(r), "k", "v")
	_, err = s.With(r).Put(t.Context(), "k", nil)
	wantIs(t, err, ErrShared)
	if err := r.Unlock(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantIs(t, reopen(t, s, nc, WithCluster("other")).Under(t.Context(), l, "x", nil), ErrInvalid)
}

// The tokens of two clusters cannot be compared. A lock of another cluster than the store's is
// refused, before anything is sent.
func TestLockOfAnotherCluster(t *testing.T) {
	here := qlocktest.StartCluster(t, 1, qlocktest.WithLease(time.Minute))
	there := qlocktest.StartCluster(t, 1, qlocktest.WithLease(time.Minute), qlocktest.WithName("there"))
	nc := connect(t, startServer(t).ClientURL())
	s := newStore(t, newJS(t, nc), jetstream.KeyValueConfig{Storage: jetstream.MemoryStorage})
	w := fake(s)
	refused := func(err error) {
		t.Helper()
		wantIs(t, err, ErrInvalid)
		if err != nil && (!strings.Contains(err.Error(), `"there"`) || !strings.Contains(err.Error(), `"default"`)) {
			t.Errorf("%v does not name the clusters", err)
		}
	}
	use := func(v *View) {
		t.Helper()
		_, err := v.Get(t.Context(), "k")
		refused(err)
		_, err = v.Put(t.Context(), "k", nil)
		refused(err)
		_, err = v.Create(t.Context(), "k", nil)
		refused(err)
		_, err = v.Do(t.Context(), Get("k"))
		refused(err)
		refused(v.Delete(t.Context(), "k"))
	}
	l := there.Locker(t)
	k := must(l.Lock(t.Context(), "l"))(t)
	if k.Cluster() != "there" {
		t.Errorf("the lock is of cluster %q", k.Cluster())
	}
	use(s.With(k))
	if err := k.Unlock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.Do(t.Context(), "l", func(ctx context.Context) error {
		_, err := s.In(ctx)
		refused(err)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	refused(s.Under(t.Context(), l, "l", nil))
	// Also inside a lock of the store's cluster: it is not the innermost.
	if err := s.Under(t.Context(), here.Locker(t), "l", func(ctx context.Context, v *View) error {
		return l.Do(ctx, "l", func(ctx context.Context) error {
			_, err := s.In(ctx)
			refused(err)
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	if n := w.sends.Load() + w.reads.Load(); n != 0 {
		t.Errorf("%d messages were sent", n)
	}
	// With the right cluster it is as any lock.
	k = must(l.Lock(t.Context(), "l"))(t)
	mustPut(t, reopen(t, s, nc, WithCluster("there")).With(k), "k", "v")
	if err := k.Unlock(t.Context()); err != nil {
		t.Fatal(err)
	}
}
