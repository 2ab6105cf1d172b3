package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func consumers(t *testing.T, s *Store, nc *nats.Conn) int {
	t.Helper()
	stream := must(newJS(t, nc).Stream(t.Context(), s.stream()))(t)
	return must(stream.Info(t.Context()))(t).State.Consumers
}

// removals returns how many requests to remove a consumer of the bucket have come since. The server
// removes one that nobody listens to by itself, some seconds later.
func removals(t *testing.T, s *Store, nc *nats.Conn) func() int {
	t.Helper()
	sub := must(nc.SubscribeSync(s.api + "CONSUMER.DELETE." + s.stream() + ".*"))(t)
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return func() int {
		n, _, err := sub.Pending()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
}

func TestWatch(t *testing.T) {
	s, nc := memory(t)
	removed := removals(t, s, nc)
	v := s.With(lock(t, "l", 1))
	mustPut(t, v, "a.1", "1")
	mustPut(t, v, "b", "1")
	for _, c := range []struct {
		keys []string
		want []string
	}{
		{nil, []string{"a.1=1", "b=1", "a.1=2", "a.2=1", "b=2", "b=DEL"}},
		{[]string{"a.*"}, []string{"a.1=1", "a.1=2", "a.2=1"}},
		{[]string{"b", "c"}, []string{"b=1", "b=2", "b=DEL"}},
		{[]string{"a.1", "a.>"}, []string{"a.1=1", "a.1=2", "a.2=1"}},
	} {
		mustPut(t, v, "a.1", "1")
		must(s.KeyValue().Put(t.Context(), "b", []byte("1")))(t)
		if err := s.KeyValue().Purge(t.Context(), "a.2"); err != nil {
			t.Fatal(err)
		}
		stream := must(newJS(t, nc).Stream(t.Context(), s.stream()))(t)
		if err := stream.Purge(t.Context(), jetstream.WithPurgeSubject(s.key("a.2"))); err != nil {
			t.Fatal(err)
		}
		changes, err := s.Watch(t.Context(), c.keys...)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		writes := []func(){
			func() { mustPut(t, v, "a.1", "2") },
			func() { mustPut(t, v, "a.2", "1") },
			func() { mustPut(t, v, "b", "2") },
			func() { _ = v.Delete(t.Context(), "b") },
		}
		initial := 0
		for _, w := range c.want {
			if w == "a.1=1" || w == "b=1" {
				initial++
			}
		}
		for e, err := range changes {
			if err != nil {
				t.Fatal(err)
			}
			text := e.Key() + "=" + string(e.Value())
			if e.Operation() != jetstream.KeyValuePut {
				text = e.Key() + "=DEL"
			}
			got = append(got, text)
			for len(writes) > 0 && len(got) >= initial {
				next := writes[0]
				writes = writes[1:]
				next()
				if n := len(got); n < len(c.want) && changesOf(c.keys, len(writes)) {
					break
				}
			}
			if len(got) == len(c.want) {
				break
			}
		}
		seen := map[string]bool{}
		for _, g := range got {
			seen[g] = true
		}
		for _, w := range c.want {
			if !seen[w] {
				t.Errorf("watch %q: %q is missing in %q", c.keys, w, got)
			}
		}
	}
	// The last watcher waits for the removal of the consumer, and not for ever.
	eventually(t, "no consumer is left", func() bool { return removed() >= 4 && consumers(t, s, nc) == 0 })
	for _, key := range []string{"", "a..b", "a.>.b", "a b"} {
		_, err := s.Watch(t.Context(), key)
		wantIs(t, err, ErrInvalid)
	}
}

// changesOf reports whether the write before the last left ones shows for these keys.
func changesOf(keys []string, left int) bool {
	key := []string{"b", "b", "a.2", "a.1"}[left]
	if len(keys) == 0 {
		return true
	}
	for _, k := range keys {
		if matches(k, key) {
			return true
		}
	}
	return false
}

func TestWait(t *testing.T) {
	s, nc := memory(t)
	v := s.With(lock(t, "l", 1))
	rev := mustPut(t, v, "k", "1")
	if e := must(s.Wait(t.Context(), "k", 0))(t); e.Revision() != rev {
		t.Errorf("%+v", e)
	}
	got := make(chan jetstream.KeyValueEntry)
	go func() { got <- must(s.Wait(t.Context(), "k", rev))(t) }()
	mustPut(t, v, "other", "1")
	next := mustPut(t, v, "k", "2")
	if e := <-got; e.Revision() != next {
		t.Errorf("%+v, want revision %d", e, next)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := s.Wait(ctx, "k", next)
	wantIs(t, err, context.DeadlineExceeded)
	// If the context has ended while the server made the consumer, the server removes it later.
	eventually(t, "no consumer is left", func() bool { return consumers(t, s, nc) == 0 })
}

// A thousand watchers have one consumer, and each gets the last value.
func TestManyWatchers(t *testing.T) {
	s, nc := memory(t)
	removed := removals(t, s, nc)
	v := s.With(lock(t, "l", 1))
	mustPut(t, v, "k", "0")
	var wg sync.WaitGroup
	defer wg.Wait() // also if a put fails
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	const n = 1000
	var joined atomic.Int64
	for range n {
		wg.Go(func() {
			changes, err := s.Watch(ctx, "k")
			if err != nil {
				t.Error(err)
				return
			}
			first := true
			last := uint64(0)
			for e, err := range changes {
				if err != nil {
					t.Error(err)
					return
				}
				if first {
					joined.Add(1)
					first = false
				}
				if e.Revision() <= last {
					t.Errorf("revision %d after %d", e.Revision(), last)
				}
				last = e.Revision()
				if string(e.Value()) == "last" {
					return
				}
			}
		})
	}
	for i := 0; joined.Load() < n; i++ {
		mustPut(t, v, "k", fmt.Sprint(i))
		time.Sleep(time.Millisecond)
	}
	// While the client makes it anew, because the server was silent, there may be two.
	eventually(t, "there is one consumer", func() bool { return consumers(t, s, nc) == 1 })
	mustPut(t, v, "k", "last")
	wg.Wait()
	eventually(t, "no consumer is left", func() bool { return removed() >= 1 && consumers(t, s, nc) == 0 })
}

// A consumer that starts where a replica is behind misses nothing.
func TestWatchFromAReplicaThatIsBehind(t *testing.T) {
	s, _ := memory(t)
	v := s.With(lock(t, "l", 1))
	mustPut(t, v, "k", "1")
	must(s.barrier(t.Context()))(t)
	w := fake(s)
	before := must(w.wire.read(t.Context(), []string{s.key("k"), s.guard()}))(t)
	mustPut(t, v, "k", "2")
	w.setRead(func(ctx context.Context, subjects []string, real wire) (answer, error) {
		a, err := real.read(ctx, subjects)
		return stale(a, before.upTo, before.items), err
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if e := must(s.Wait(ctx, "k", before.items[s.key("k")].seq))(t); string(e.Value()) != "2" {
		t.Errorf("%+v", e)
	}
}

// A connection that is closed ends all watchers.
func TestWatchOfAClosedConnection(t *testing.T) {
	s, nc := memory(t)
	v := s.With(lock(t, "l", 1))
	rev := mustPut(t, v, "k", "1")
	done := make(chan error)
	go func() {
		_, err := s.Wait(t.Context(), "k", rev)
		done <- err
	}()
	eventually(t, "it waits", func() bool {
		s.watching.mu.Lock()
		defer s.watching.mu.Unlock()
		return s.watching.count == 1
	})
	time.Sleep(10 * time.Millisecond)
	nc.Close()
	if err := <-done; !errors.Is(err, nats.ErrConnectionClosed) {
		t.Error(err)
	}
}

// A watcher whose patterns overlap gets each change once, however fast it is.
func TestOverlappingPatterns(t *testing.T) {
	for _, patterns := range [][]string{{"k", ">"}, {"*", "k", "k"}, {"k", "j", "k"}} {
		var h hub
		w := &watcher{patterns: patterns, signal: make(chan struct{}, 1)}
		h.add(w)
		var got []uint64
		for _, set := range []map[*watcher]struct{}{h.exact["k"], h.wild} {
			for w := range set {
				w.offer(&entry{key: "k", rev: 1})
				got = append(got, w.pending[0].rev)
				w.drop(1) // it has taken the change
			}
		}
		if len(got) != 1 {
			t.Errorf("%q: %d times", patterns, len(got))
		}
		h.leave(w)
		if len(h.exact) > 0 || len(h.wild) > 0 || h.count != 0 {
			t.Errorf("%q: %v, %v, %d are left", patterns, h.exact, h.wild, h.count)
		}
	}
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, key string
		want         bool
	}{
		{">", "a", true}, {">", "a.b", true}, {"a.>", "a", false}, {"a.>", "a.b.c", true}, {"*", "a", true}, {"*", "a.b", false},
		{"a.*.c", "a.b.c", true}, {"a.*.c", "a.b.d", false}, {"a", "a", true}, {"a.b", "a", false}, {"a", "a.b", false},
	} {
		if got := matches(c.pattern, c.key); got != c.want {
			t.Errorf("%s, %s: %v", c.pattern, c.key, got)
		}
	}
}
