package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// doer is a View, or a Store.
type doer interface {
	Do(ctx context.Context, ops ...Op) (Result, error)
}

// both runs a test with and without a lock.
func both(t *testing.T, f func(t *testing.T, s *Store, d doer, w *fakeWire)) {
	js := newJS(t, connect(t, startServer(t).ClientURL()))
	for _, name := range []string{"lock", "no lock"} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, js, jetstream.KeyValueConfig{Storage: jetstream.MemoryStorage})
			w := fake(s)
			if name == "lock" {
				f(t, s, s.With(lock(t, "l", 10)), w)
			} else {
				f(t, s, s, w)
			}
		})
	}
}

func wantStored(t *testing.T, s *Store, key, value string) {
	t.Helper()
	e, err := s.KeyValue().Get(context.Background(), key)
	if value == "" {
		wantIs(t, err, jetstream.ErrKeyNotFound)
	} else if err != nil || string(e.Value()) != value {
		t.Errorf("%s: %+v, %v, want %q", key, e, err, value)
	}
}

func TestTransaction(t *testing.T) {
	both(t, func(t *testing.T, s *Store, d doer, w *fakeWire) {
		res := must(d.Do(t.Context(), Put("a", []byte("1")), Insert("b", []byte("2")), Add("n", 5), Get("c"), Get("a")))(t)
		wantStored(t, s, "a", "1")
		wantStored(t, s, "b", "2")
		wantStored(t, s, "n", "5")
		if res.Number("n") != 5 || res.Written("c") != 0 {
			t.Errorf("%+v", res)
		}
		for _, key := range []string{"a", "b", "n"} {
			if e := must(s.KeyValue().Get(t.Context(), key))(t); e.Revision() != res.Written(key) {
				t.Errorf("%s has revision %d, the result says %d", key, e.Revision(), res.Written(key))
			}
		}
		if e, err := res.Get("a"); err != nil || string(e.Value()) != "1" || e.Revision() != res.Written("a") {
			t.Errorf("%+v, %v", e, err)
		}
		_, err := res.Get("c")
		wantIs(t, err, jetstream.ErrKeyNotFound)

		// Nothing is done where one cannot be.
		for _, ops := range [][]Op{
			{Put("a", []byte("x")), Insert("b", nil)}, {Put("a", []byte("x")), Update("b", nil, res.Written("a"))}, {Put("a", []byte("x")), Update("none", nil, 3)},
		} {
			_, err := d.Do(t.Context(), ops...)
			wantIs(t, err, ErrConflict)
			wantStored(t, s, "a", "1")
		}
		must(d.Do(t.Context(), Update("b", []byte("3"), res.Written("b")), Delete("a")))(t)
		wantStored(t, s, "a", "")
		wantStored(t, s, "b", "3")
		must(d.Do(t.Context(), Insert("a", []byte("again"))))(t)
		wantStored(t, s, "a", "again")
		res = must(d.Do(t.Context(), Get("a"), Get("b")))(t)
		if len(res.Keys()) != 2 {
			t.Errorf("%q", res.Keys())
		}
		must(d.Do(t.Context()))(t)

		_, err = d.Do(t.Context(), Add("a", 1))
		wantIs(t, err, ErrNotNumber)
		must(d.Do(t.Context(), Put("n", []byte(fmt.Sprint(int64(math.MaxInt64))))))(t)
		_, err = d.Do(t.Context(), Add("n", 1))
		wantIs(t, err, ErrNotNumber)
		must(d.Do(t.Context(), Add("n", math.MinInt64), Add("n", 0)))(t)
		wantStored(t, s, "n", "-1")
		_, err = d.Do(t.Context(), Add("n", math.MinInt64))
		wantIs(t, err, ErrNotNumber)
		for _, ops := range [][]Op{
			{Put("a b", nil)}, {Get("")}, {Put("a", nil, TTL(1))}, {Once("", time.Hour)}, {Once("x", 1)}, {Once("x", 0), Once("y", 0)}, {Update("a", nil, 0)}, many(maxKeys + 1),
		} {
			_, err := d.Do(t.Context(), ops...)
			wantIs(t, err, ErrInvalid)
		}
		must(d.Do(t.Context(), many(maxKeys)...))(t)
		if keys := must(s.KeyValue().Keys(t.Context()))(t); len(keys) < maxKeys {
			t.Errorf("%d keys", len(keys))
		}
		must(d.Do(t.Context(), manyGets(maxKeys)...))(t)
	})
}

func many(n int) (ops []Op) {
	for i := range n {
		ops = append(ops, Put(fmt.Sprintf("many.%d", i), []byte("v")))
	}
	return ops
}

func manyGets(n int) (ops []Op) {
	ops = append(ops, Put("many.0", []byte("w")))
	for i := range n - 1 {
		ops = append(ops, Get(fmt.Sprintf("many.%d", i+1)))
	}
	return ops
}

// A whole request is two round trips under a lock that has the fence.
func TestTwoRoundTrips(t *testing.T) {
	both(t, func(t *testing.T, s *Store, d doer, w *fakeWire) {
		must(d.Do(t.Context(), Put("warm", nil)))(t)
		sends, reads := w.sends.Load(), w.reads.Load()
		must(d.Do(t.Context(), Once("ABC_create", time.Hour), Put("ABC", []byte("b")), Get("CDE"), Add("total", 1)))(t)
		if sends, reads := w.sends.Load()-sends, w.reads.Load()-reads; sends != 1 || reads != 1 {
			t.Errorf("%d writes and %d reads", sends, reads)
		}
	})
}

func TestOnce(t *testing.T) {
	both(t, func(t *testing.T, s *Store, d doer, w *fakeWire) {
		must(d.Do(t.Context(), Put("other", []byte("o"))))(t)
		ops := []Op{Once("pay 7", time.Hour, []byte("answer")...), Add("n", 3), Get("other")}
		must(d.Do(t.Context(), ops...))(t)
		must(d.Do(t.Context(), Put("other", []byte("o2"))))(t)
		res, err := d.Do(t.Context(), ops...)
		wantIs(t, err, ErrDuplicate)
		dup := (*DuplicateError)(nil)
		if !errors.As(err, &dup) || string(dup.Answer) != "answer" || dup.ID != "pay 7" || dup.When.IsZero() {
			t.Errorf("%+v", dup)
		}
		e, err := res.Get("other")
		if err != nil || string(e.Value()) != "o" || res.Number("n") != 3 {
			t.Errorf("the first answer is not given: %+v, %v", res, err)
		}
		wantStored(t, s, "n", "3")
		must(d.Do(t.Context(), Once("alone", 0)))(t)
		_, err = d.Do(t.Context(), Once("alone", 0), Put("x", nil))
		wantIs(t, err, ErrDuplicate)
		wantStored(t, s, "x", "")
	})
}

// After its time a note is gone, also where the bucket keeps a message in its place.
func TestOnceExpires(t *testing.T) {
	const life = 3 * time.Second
	js := newJS(t, connect(t, startServer(t).ClientURL()))
	for _, marker := range []time.Duration{0, time.Hour} {
		s := newStore(t, js, jetstream.KeyValueConfig{LimitMarkerTTL: marker, Storage: jetstream.MemoryStorage})
		var ops []Op
		key := ""
		for n := 0; ; n++ {
			key = fmt.Sprint("n", n)
			ops = []Op{Once(key, life), Add(key, 1)}
			start := time.Now()
			must(s.Do(t.Context(), ops...))(t)
			_, err := s.Do(t.Context(), ops...)
			if err == nil && time.Since(start) >= life {
				continue // the second call came too late
			}
			wantIs(t, err, ErrDuplicate)
			break
		}
		eventually(t, "the note expires", func() bool {
			_, err := s.Do(t.Context(), ops...)
			return err == nil
		})
		wantStored(t, s, key, "2")
	}
}

// silence loses the answer of the next write that has a condition. With store, it is stored.
func silence(w *fakeWire, store bool) {
	done := false
	var mu sync.Mutex
	w.set(func(ctx context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) {
		mu.Lock()
		first := !done && msgs[0].Subject[len(msgs[0].Subject)-2:] != ".l" // not the fence
		if first {
			done = true
		}
		mu.Unlock()
		if !first {
			return real.send(ctx, id, msgs)
		}
		if store {
			if _, err := real.send(ctx, id, msgs); err != nil {
				return 0, err
			}
		}
		return 0, errSilent
	})
}

// A commit whose answer is lost is done once, whether it was stored or not.
func TestLostAnswerOfTransaction(t *testing.T) {
	both(t, func(t *testing.T, s *Store, d doer, w *fakeWire) {
		n := 0
		for _, stored := range []bool{true, false} {
			for _, ops := range [][]Op{
				{Add("n", 1)}, {Add("n", 1), Put("k", []byte("v"))}, {Once(fmt.Sprint("id", stored), 0), Add("n", 1), Put("k", nil), Get("z")},
			} {
				silence(w, stored)
				res := must(d.Do(t.Context(), ops...))(t)
				n++
				wantStored(t, s, "n", fmt.Sprint(n))
				if res.Number("n") != int64(n) {
					t.Errorf("the result says %d, want %d", res.Number("n"), n)
				}
				if e := must(s.KeyValue().Get(t.Context(), "n"))(t); e.Revision() != res.Written("n") {
					t.Errorf("revision %d, the result says %d", e.Revision(), res.Written("n"))
				}
			}
		}
	})
}

// Where somebody else has written the same keys meanwhile, only Once knows.
func TestLostAnswerAndOverwritten(t *testing.T) {
	both(t, func(t *testing.T, s *Store, d doer, w *fakeWire) {
		for i, stored := range []bool{true, false} {
			for _, once := range []bool{true, false} {
				lost := true
				w.set(func(ctx context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) {
					if !lost || len(msgs) == 1 && msgs[0].Subject == "" || msgs[0].Subject[len(msgs[0].Subject)-2:] == ".l" {
						return real.send(ctx, id, msgs)
					}
					lost = false
					if stored {
						if _, err := real.send(ctx, id, msgs); err != nil {
							t.Error(err)
						}
					}
					if _, err := s.KeyValue().Put(ctx, "n", []byte("100")); err != nil {
						t.Error(err)
					}
					return 0, errSilent
				})
				must(s.KeyValue().Put(t.Context(), "n", []byte("0")))(t)
				ops := []Op{Add("n", 1)}
				if once {
					ops = append(ops, Once(fmt.Sprint("id", i), 0))
				}
				_, err := d.Do(t.Context(), ops...)
				switch {
				case !once:
					wantIs(t, err, ErrUnknown)
					if errors.Is(err, ErrFenced) || errors.Is(err, ErrConflict) {
						t.Errorf("%v says more than is known", err)
					}
					wantStored(t, s, "n", "100")
				case err != nil:
					t.Error(err)
				case stored:
					wantStored(t, s, "n", "100")
				default:
					wantStored(t, s, "n", "101")
				}
			}
		}
	})
}

// A context that ends while a commit has no answer leaves it unknown.
func TestContextEndsInCommit(t *testing.T) {
	both(t, func(t *testing.T, s *Store, d doer, w *fakeWire) {
		must(d.Do(t.Context(), Put("k", nil)))(t)
		ctx, cancel := context.WithCancel(t.Context())
		w.set(func(ctx context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) {
			cancel()
			return 0, errSilent
		})
		_, err := d.Do(ctx, Add("n", 1))
		wantIs(t, err, ErrUnknown, context.Canceled)
	})
}

// Transactions that overlap add up, and what is only read is checked too.
func TestTransactionsAreSerializable(t *testing.T) {
	both(t, func(t *testing.T, s *Store, d doer, w *fakeWire) {
		const workers, each = 8, 20
		var wg sync.WaitGroup
		seen := make([]int, workers*each+1)
		var mu sync.Mutex
		for range workers {
			wg.Go(func() {
				for range each {
					res, err := d.Do(t.Context(), Add("n", 1), Add("m", -1))
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					seen[res.Number("n")]++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		wantStored(t, s, "n", fmt.Sprint(workers*each))
		wantStored(t, s, "m", fmt.Sprint(-workers*each))
		for i, n := range seen[1:] {
			if n != 1 {
				t.Errorf("%d was given %d times", i+1, n)
			}
		}

		// Write skew: each reads what the other writes. One must see the other's.
		for i := range 20 {
			a, b := fmt.Sprintf("a%d", i), fmt.Sprintf("b%d", i)
			saw := make([]bool, 2)
			for j, keys := range [][2]string{{a, b}, {b, a}} {
				wg.Go(func() {
					res, err := d.Do(t.Context(), Get(keys[0]), Put(keys[1], []byte("x")))
					if err != nil {
						t.Error(err)
						return
					}
					_, err = res.Get(keys[0])
					saw[j] = err == nil
				})
			}
			wg.Wait()
			if !saw[0] && !saw[1] {
				t.Fatalf("round %d: neither has seen the other's", i)
			}
		}
	})
}

// A transaction under a lock does not notice what somebody without that lock writes to a key
// between its read and its commit. With Unchanged it does, and so one of two transactions that
// read what the other one writes sees the other's value.
func TestUnchanged(t *testing.T) {
	for _, c := range []struct {
		name  string
		ops   []Op
		again bool   // the first try is refused
		a, b  string // what the transaction has read, and b in the end
	}{
		{"Get relies on the lock", []Op{Get("a"), Put("b", []byte("view"))}, false, "0", "view"},
		{"another key is written", []Op{Unchanged("a"), Put("b", []byte("view"))}, true, "1", "view"},
		{"Get as well", []Op{Get("a"), Unchanged("a"), Get("a"), Put("b", []byte("view"))}, true, "1", "view"},
		{"the same key is written", []Op{Unchanged("a"), Put("a", []byte("view")), Put("b", []byte("view"))}, true, "1", "view"},
		{"with an id", []Op{Once("x", time.Hour), Unchanged("a"), Put("b", []byte("view"))}, true, "1", "view"},
		{"nothing is written", []Op{Unchanged("a"), Get("b")}, false, "0", "0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, nc := memory(t)
			other := reopen(t, s, nc)
			must(s.Do(t.Context(), Put("a", []byte("0")), Put("b", []byte("0"))))(t)
			v := s.With(lock(t, "l", 5))
			must(v.Get(t.Context(), "a"))(t)
			w := fake(s)
			var once sync.Once
			tries := 0
			w.set(func(ctx context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) {
				tries++
				once.Do(func() { must(other.Do(t.Context(), Get("b"), Put("a", []byte("1"))))(t) })
				return real.send(ctx, id, msgs)
			})
			res := must(v.Do(t.Context(), c.ops...))(t)
			if got := string(must(res.Get("a"))(t).Value()); got != c.a || (tries > 1) != c.again {
				t.Errorf("it has read %q in %d tries, want %q", got, tries, c.a)
			}
			wantStored(t, s, "b", c.b)
		})
	}
	// Without a lock, and under a shared one, it is Get.
	both(t, func(t *testing.T, s *Store, d doer, w *fakeWire) {
		must(d.Do(t.Context(), Put("a", []byte("1"))))(t)
		res := must(d.Do(t.Context(), Unchanged("a"), Unchanged("none"), Add("n", 1)))(t)
		if e := must(res.Get("a"))(t); string(e.Value()) != "1" || len(res.Keys()) != 1 {
			t.Errorf("%v: %q", res.Keys(), e.Value())
		}
	})
	s, _ := memory(t)
	must(s.With(rlock(t, "l", 6)).Do(t.Context(), Unchanged("a")))(t)
}
