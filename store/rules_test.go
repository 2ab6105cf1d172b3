package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// stale lets a read be answered by a replica that has nothing after seq.
func stale(a answer, seq uint64, before map[string]*item) answer {
	out := answer{upTo: min(a.upTo, seq), items: map[string]*item{}}
	for s, i := range a.items {
		if i.seq <= seq {
			out.items[s] = i
		} else if old := before[s]; old != nil {
			out.items[s] = old
		}
	}
	return out
}

func memory(t *testing.T) (*Store, *nats.Conn) {
	nc := connect(t, startServer(t).ClientURL())
	return newStore(t, newJS(t, nc), jetstream.KeyValueConfig{Storage: jetstream.MemoryStorage}), nc
}

// A replica that is behind the claim's own write does not count (S2).
func TestFloorOfOwnWrites(t *testing.T) {
	s, _ := memory(t)
	w := fake(s)
	v := s.With(lock(t, "l", 10))
	mustPut(t, v, "k", "1")
	before := must(w.wire.read(t.Context(), []string{s.key("k"), v.c.subject}))(t)
	mustPut(t, v, "k", "2")
	behind := 3
	w.setRead(func(ctx context.Context, subjects []string, real wire) (answer, error) {
		a, err := real.read(ctx, subjects)
		if behind--; behind >= 0 {
			a = stale(a, before.upTo, before.items)
		}
		return a, err
	})
	wantValue(t, v, "k", "2")
}

// A replica that is behind the fence does not look like another holder (S2), and the values
// of an earlier holder that it lacks are waited for.
func TestFloorOfTheFence(t *testing.T) {
	s, nc := memory(t)
	old := reopen(t, s, nc).With(lock(t, "l", 9))
	mustPut(t, old, "k", "1")
	w := fake(s)
	v := s.With(lock(t, "l", 10))
	var before answer
	var mu sync.Mutex
	behind := 3
	w.setRead(func(ctx context.Context, subjects []string, real wire) (answer, error) {
		a, err := real.read(ctx, subjects)
		mu.Lock()
		defer mu.Unlock()
		if before.items == nil { // the first look at the fence; then the old holder writes
			before = must(real.read(ctx, []string{s.key("k"), v.c.subject}))(t)
			mustPut(t, old, "k", "2")
		} else if behind--; behind >= 0 {
			a = stale(a, before.upTo, before.items)
		}
		return a, err
	})
	wantValue(t, v, "k", "2")
}

// The fence is moved before the first read: what the old holder writes afterwards would be
// lost (S1).
func TestFirstReadMovesTheFence(t *testing.T) {
	s, nc := memory(t)
	old := reopen(t, s, nc).With(lock(t, "l", 9))
	mustPut(t, old, "n", "1")
	v := s.With(lock(t, "l", 10))
	wantValue(t, v, "n", "1")
	if _, err := old.Put(t.Context(), "n", []byte("2")); err == nil {
		mustPut(t, v, "n", "2")
		t.Error("an increment of the old holder was accepted between read and write, and is lost")
	} else {
		wantIs(t, err, ErrFenced)
	}
}

// A put without an answer that is stored late, after the next put of the same holder (S5).
func TestLatePut(t *testing.T) {
	for _, group := range []bool{false, true} {
		s, _ := memory(t)
		s.grouped = group
		w := fake(s)
		v := s.With(lock(t, "l", 10))
		mustPut(t, v, "k", "0")
		var late []*nats.Msg
		ctx, cancel := context.WithCancel(t.Context())
		w.set(func(_ context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) {
			late = msgs
			cancel()
			return 0, errSilent
		})
		_, err := v.Put(ctx, "k", []byte("late"))
		wantIs(t, err, ErrUnknown, context.Canceled)
		w.set(nil)
		mustPut(t, v, "k", "next")
		_, err = w.wire.send(t.Context(), newID(), late)
		if r := (*refused)(nil); !errors.As(err, &r) {
			t.Errorf("the late put: %v, want a refusal", err)
		}
		wantValue(t, v, "k", "next")
	}
}

// The same for a transaction.
func TestLateTransaction(t *testing.T) {
	s, _ := memory(t)
	w := fake(s)
	v := s.With(lock(t, "l", 10))
	mustPut(t, v, "k", "0")
	var late []*nats.Msg
	ctx, cancel := context.WithCancel(t.Context())
	w.set(func(_ context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) {
		late = msgs
		cancel()
		return 0, errSilent
	})
	_, err := v.Do(ctx, Put("k", []byte("late")), Put("j", []byte("late")))
	wantIs(t, err, ErrUnknown)
	w.set(nil)
	must(v.Do(t.Context(), Put("k", []byte("next")), Put("j", []byte("next"))))(t)
	_, err = w.wire.send(t.Context(), newID(), late)
	if r := (*refused)(nil); !errors.As(err, &r) {
		t.Errorf("the late transaction: %v, want a refusal", err)
	}
	wantValue(t, v, "k", "next")
}

// The same for two processes that work under one lock, such as two commands of a script: what the
// second one has read stands.
func TestLatePutOfAnotherProcess(t *testing.T) {
	s, nc := memory(t)
	w := fake(s)
	first := s.With(lock(t, "l", 10))
	mustPut(t, first, "k", "0")
	var late []*nats.Msg
	ctx, cancel := context.WithCancel(t.Context())
	w.set(func(_ context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) {
		late = msgs
		cancel()
		return 0, errSilent
	})
	_, err := first.Put(ctx, "k", []byte("late"))
	wantIs(t, err, ErrUnknown)
	second := reopen(t, s, nc).With(lock(t, "l", 10))
	wantValue(t, second, "k", "0")
	_, err = w.wire.send(t.Context(), newID(), late)
	if r := (*refused)(nil); !errors.As(err, &r) {
		t.Errorf("the late put: %v, want a refusal", err)
	}
	wantValue(t, second, "k", "0")
	w.set(nil)
	mustPut(t, first, "k", "1")
	wantValue(t, second, "k", "1")
}

// A fence that this claim has left is not taken again because a read has seen it.
func TestLeftFenceIsNotFollowed(t *testing.T) {
	s, _ := memory(t)
	c := s.With(lock(t, "l", 10)).c
	c.adopt(10)
	c.follow(20)
	c.doubt(20)
	c.follow(20)
	if rev, _ := c.state(); rev != 0 {
		t.Errorf("the fence at %d is followed, and a write that depends on it has no answer", rev)
	}
}

// A put whose answer is lost is done once.
func TestLostAnswerOfPut(t *testing.T) {
	s, nc := memory(t)
	w := fake(s)
	l := lock(t, "l", 10)
	v := s.With(l)
	kv := must(newJS(t, nc).Stream(t.Context(), s.stream()))(t)
	for i, stored := range []bool{true, false, true} {
		mustPut(t, v, "k", "0")
		silence(w, stored)
		value := fmt.Sprint("v", i)
		rev := mustPut(t, v, "k", value)
		if e := must(v.Get(t.Context(), "k"))(t); e.Revision() != rev || string(e.Value()) != value {
			t.Errorf("%+v, want revision %d", e, rev)
		}
		silence(w, stored)
		if err := v.Delete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		wantStored(t, s, "k", "")
	}
	_ = kv
	// Fenced off meanwhile: nobody can know.
	next := reopen(t, s, nc).With(lock(t, "l", 11))
	w.set(func(ctx context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) {
		mustPut(t, next, "other", "x")
		return 0, errSilent
	})
	_, err := v.Put(t.Context(), "k", []byte("x"))
	wantIs(t, err, ErrUnknown)
	if errors.Is(err, ErrFenced) {
		t.Errorf("%v claims that nothing was written", err)
	}
}

// "Wrong last sequence" without a number is no conflict and no fencing: nothing is known, and
// the write is repeated (S3).
func TestUnsaidRefusalIsRepeated(t *testing.T) {
	unsaid := &nats.Msg{Data: []byte(`{"error":{"code":400,"err_code":10164,"description":"wrong last sequence"},"stream":"KV_b","seq":0}`)}
	if _, err := stored(unsaid, nil); !errors.Is(err, errBusy) {
		t.Errorf("10164 is %v", err)
	}
	said := &nats.Msg{Data: []byte(`{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 17"},"stream":"KV_b","seq":0}`)}
	if _, err := stored(said, nil); err == nil || err.Error() != "wrong last sequence: 17" {
		t.Errorf("10071 is %v", err)
	}
	both(t, func(t *testing.T, s *Store, d doer, w *fakeWire) {
		left := 0
		w.set(func(ctx context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) {
			if left--; left >= 0 {
				return stored(unsaid, nil)
			}
			return real.send(ctx, id, msgs)
		})
		left = 5
		must(d.Do(t.Context(), Add("n", 1)))(t)
		left = 5
		must(d.Do(t.Context(), Insert("i", nil)))(t)
		if v, ok := d.(*View); ok {
			left = 5
			mustPut(t, v, "n", "2")
		}
	})
}

// No write depends on a fence that is not there: revision 0 would let it pass always, and a
// wildcard would be compared with whatever matches.
func TestNoConditionOnAMissingFence(t *testing.T) {
	s, nc := memory(t)
	w := fake(s)
	check := func(msgs []*nats.Msg) {
		for _, m := range msgs {
			on := m.Header.Get(jetstream.ExpectedLastSubjSeqSubjHeader)
			if strings.ContainsAny(on, "*>") || strings.Contains(on, ".fence.") && m.Header.Get(jetstream.ExpectedLastSubjSeqHeader) == "0" {
				t.Errorf("%s depends on revision %s of %q", m.Subject, m.Header.Get(jetstream.ExpectedLastSubjSeqHeader), on)
			}
		}
	}
	w.set(func(ctx context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) {
		check(msgs)
		return real.send(ctx, id, msgs)
	})
	v := s.With(lock(t, "*.>", 10))
	mustPut(t, v, "k", "1")
	must(v.Do(t.Context(), Add("n", 1)))(t)
	// Somebody removes all fences: this claim is over, and does not go on with none.
	stream := must(newJS(t, nc).Stream(t.Context(), s.stream()))(t)
	if err := stream.Purge(t.Context(), jetstream.WithPurgeSubject(s.fences()+">")); err != nil {
		t.Fatal(err)
	}
	_, err := v.Do(t.Context(), Put("k", []byte("2")))
	wantIs(t, err, ErrFenced)
	_, err = v.Put(t.Context(), "k", []byte("2"))
	wantIs(t, err, ErrFenced)
	fresh := s.With(lock(t, "new", 1))
	must(fresh.Do(t.Context(), Put("k", []byte("3"))))(t)
}

// tell puts a signal into a channel that has room for one.
func tell(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Writes that wait go together, each with its own revision, and the last of a key wins.
func TestGroupCommit(t *testing.T) {
	s, _ := memory(t)
	s.grouped = true
	w := fake(s)
	v := s.With(lock(t, "l", 10))
	mustPut(t, v, "k", "0")
	hold, sending := make(chan struct{}), make(chan struct{}, 1)
	var largest int
	var mu sync.Mutex
	w.set(func(ctx context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) {
		tell(sending)
		<-hold
		mu.Lock()
		largest = max(largest, len(msgs))
		mu.Unlock()
		return real.send(ctx, id, msgs)
	})
	const n = 60
	var wg sync.WaitGroup
	revs := make([]uint64, n)
	for i := range n {
		wg.Go(func() {
			var err error
			if revs[i], err = v.Put(t.Context(), fmt.Sprint("k", i%50), []byte(fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		})
		if i == 0 {
			<-sending // alone
		}
	}
	eventually(t, "all others wait", func() bool {
		v.c.mu.Lock()
		defer v.c.mu.Unlock()
		return len(v.c.waiting) == n-1
	})
	close(hold)
	wg.Wait()
	if largest < n/2 {
		t.Errorf("the largest batch had %d of %d writes", largest, n)
	}
	last := map[string]int{}
	for i, rev := range revs {
		if old, ok := last[fmt.Sprint("k", i%50)]; !ok || revs[old] < rev {
			last[fmt.Sprint("k", i%50)] = i
		}
	}
	for key, i := range maps.All(last) {
		e := must(v.Get(t.Context(), key))(t)
		if e.Revision() != revs[i] || string(e.Value()) != fmt.Sprint(i) {
			t.Errorf("%s: %q at %d, want %d at %d", key, e.Value(), e.Revision(), i, revs[i])
		}
	}
}

// One that spoils a batch does not take others with it, and a context that ends does not
// hold others up.
func TestGroupCommitTroubles(t *testing.T) {
	s, _ := memory(t)
	s.grouped = true
	w := fake(s)
	v := s.With(lock(t, "l", 10))
	mustPut(t, v, "k", "0")
	hold, sending := make(chan struct{}), make(chan struct{}, 1)
	bad := errors.New("not this one")
	w.set(func(ctx context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) {
		tell(sending)
		<-hold
		for _, m := range msgs {
			if m.Subject == s.key("bad") {
				return 0, bad
			}
		}
		return real.send(ctx, id, msgs)
	})
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() { must(v.Put(t.Context(), fmt.Sprint("k", i), nil))(t) })
		if i == 0 {
			<-sending // alone
		}
	}
	wg.Go(func() {
		_, err := v.Put(t.Context(), "bad", nil)
		wantIs(t, err, bad)
	})
	waits := func(n int) {
		eventually(t, "they wait", func() bool {
			v.c.mu.Lock()
			defer v.c.mu.Unlock()
			return len(v.c.waiting) >= n
		})
	}
	waits(10)
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() {
		_, err := v.Put(ctx, "gone", nil)
		wantIs(t, err, context.Canceled)
		if errors.Is(err, ErrUnknown) {
			t.Error(err)
		}
		close(hold)
	})
	waits(11)
	cancel()
	wg.Wait()
	wantStored(t, s, "gone", "")
	if n := len(must(s.KeyValue().Keys(t.Context()))(t)); n != 11 {
		t.Errorf("%d keys", n)
	}

	// The answer to a batch is lost.
	for _, stored := range []bool{true, false} {
		hold, sending = make(chan struct{}), make(chan struct{}, 1)
		lost := false
		var mu sync.Mutex
		w.set(func(ctx context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) {
			tell(sending)
			<-hold
			mu.Lock()
			lose := !lost && len(msgs) > 1
			lost = lost || lose
			mu.Unlock()
			if !lose {
				return real.send(ctx, id, msgs)
			}
			if stored {
				must(real.send(ctx, id, msgs))(t)
			}
			return 0, errSilent
		})
		revs := make([]uint64, 10)
		for i := range 10 {
			wg.Go(func() { revs[i] = must(v.Put(t.Context(), fmt.Sprint("k", i), []byte(fmt.Sprint(stored))))(t) })
			if i == 0 {
				<-sending // alone
			}
		}
		waits(9)
		close(hold)
		wg.Wait()
		if !lost {
			t.Error("no batch was lost")
		}
		for i, rev := range revs {
			if e := must(v.Get(t.Context(), fmt.Sprint("k", i)))(t); e.Revision() != rev || string(e.Value()) != fmt.Sprint(stored) {
				t.Errorf("k%d: %q at %d, want revision %d", i, e.Value(), e.Revision(), rev)
			}
		}
	}
}

// The answer to the move of a fence is lost.
func TestLostAnswerOfFence(t *testing.T) {
	for _, stored := range []bool{true, false} {
		s, _ := memory(t)
		w := fake(s)
		first := true
		w.set(func(ctx context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) {
			if !first {
				return real.send(ctx, id, msgs)
			}
			first = false
			if stored {
				must(real.send(ctx, id, msgs))(t)
			}
			return 0, errSilent
		})
		v := s.With(lock(t, "l", 10))
		mustPut(t, v, "k", "1")
		wantValue(t, v, "k", "1")
	}
}

// A bucket that was restored from a backup is behind every claim: reads fail with why, and do
// not give old values.
func TestBehindForEver(t *testing.T) {
	s, _ := memory(t)
	w := fake(s)
	v := s.With(lock(t, "l", 10))
	mustPut(t, v, "k", "1")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	reads := 0
	w.setRead(func(ctx context.Context, subjects []string, real wire) (answer, error) {
		a, err := real.read(ctx, subjects)
		a.upTo = 1
		if reads++; reads == 3 {
			cancel()
		}
		return a, err
	})
	_, err := v.Get(ctx, "k")
	wantIs(t, err, context.Canceled)
	if !strings.Contains(err.Error(), "behind") {
		t.Error(err)
	}
}

// What claims leave behind in a Store is bounded.
func TestClaimsAreForgotten(t *testing.T) {
	s, _ := memory(t)
	for i := range 10_000 {
		l := lock(t, fmt.Sprint("l", i), 1)
		s.With(l)
		l.end(nil)
	}
	if n := len(s.claims); n > 200 {
		t.Errorf("%d claims are kept", n)
	}
}

// While a stream has no leader, nobody listens to a publish, and the question whether the
// bucket still has fences has no answer. That does not take the time of the call.
func TestNoLeaderForAWhile(t *testing.T) {
	s, _ := memory(t)
	s.opt.quiet = 20 * time.Millisecond
	s.check = func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	w := fake(s)
	left := 20
	w.set(func(ctx context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) {
		if left--; left >= 0 {
			return 0, fmt.Errorf("%w: %w", errBusy, nats.ErrNoResponders)
		}
		return real.send(ctx, id, msgs)
	})
	mustPut(t, s.With(lock(t, "l", 1)), "k", "v")
	left = 20
	must(s.Do(t.Context(), Add("n", 1)))(t)
}
