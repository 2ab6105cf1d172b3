package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// kept is how much a watcher has of what was not taken.
func (w *watcher) kept() (n, bytes int, missed uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.pending), w.bytes, w.missed
}

// heardUpTo waits until all watchers have been offered a revision.
func heardUpTo(t testing.TB, s *Store, rev uint64) {
	t.Helper()
	eventually(t, "the consumer gives the last change", func() bool {
		s.watching.mu.Lock()
		defer s.watching.mu.Unlock()
		return s.watching.pos >= rev
	})
}

// fill puts keys k0, k1 and so on, each with the value and its number, and returns the last
// revision.
func fill(t testing.TB, s *Store, from, to int, value string) (last uint64) {
	t.Helper()
	for from < to {
		var ops []Op
		for ; from < to && len(ops) < 500; from++ {
			ops = append(ops, Put(fmt.Sprint("k", from), fmt.Appendf(nil, "%s%d", value, from)))
		}
		last = must(s.Do(t.Context(), ops...))(t).Revision()
	}
	return last
}

// take takes changes until it has as many different keys, and checks that revisions rise.
func take(t testing.TB, s *Store, w *watcher, got map[string]*entry, keys int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for len(got) < keys {
		es, err := s.next(ctx, w)
		if err != nil {
			t.Fatalf("%v, with %d of %d keys", err, len(got), keys)
		}
		for _, e := range es {
			if old := got[e.key]; old != nil && old.rev >= e.rev {
				t.Fatalf("%s: revision %d after %d", e.key, e.rev, old.rev)
			}
			got[e.key] = e
		}
	}
}

// A watcher that does not take its changes keeps a bounded number of them, and misses no key.
func TestSlowWatcher(t *testing.T) {
	s, _ := memory(t)
	for _, keys := range [][]string{{">"}, {"k1", "k10", "k0", "*"}} {
		slow := must(s.join(t.Context(), keys))(t)
		got := map[string]*entry{}
		fill(t, s, 0, 10, "a")
		take(t, s, slow, got, 10)
		heardUpTo(t, s, fill(t, s, 0, 3000, "b"))
		n, _, missed := slow.kept()
		if n > watchMost || missed == 0 {
			t.Errorf("it keeps %d changes, and has missed %d", n, missed)
		}
		// While it reads what it has missed, there are changes of all kinds.
		fill(t, s, 2000, 3000, "c")
		got = map[string]*entry{}
		take(t, s, slow, got, 1500)
		fill(t, s, 1000, 2500, "d")
		fill(t, s, 3000, 3010, "e")
		take(t, s, slow, got, 3010)
		for {
			if n, _, missed := slow.kept(); n == 0 && missed == 0 {
				break
			}
			for _, e := range must(s.next(t.Context(), slow))(t) {
				got[e.key] = e
			}
		}
		for i := range 3010 {
			want := map[bool]string{true: "b", false: "c"}[i < 2000]
			if i >= 1000 && i < 2500 {
				want = "d"
			} else if i >= 3000 {
				want = "e"
			}
			if e := got[fmt.Sprint("k", i)]; e == nil || string(e.value) != fmt.Sprint(want, i) {
				t.Fatalf("k%d: %v, want %s", i, e, want)
			}
		}
		// It hears again.
		rev := must(s.KeyValue().Put(t.Context(), "k7", []byte("now")))(t)
		for e := (*entry)(nil); e == nil || e.rev < rev; {
			es := must(s.next(t.Context(), slow))(t)
			e = es[len(es)-1]
		}
		s.watching.leave(slow)
		if _, err := s.Do(t.Context(), Put("k7", []byte("a7"))); err != nil {
			t.Fatal(err)
		}
	}
}

// The bytes that a watcher keeps are bounded too.
func TestSlowWatcherOfLargeValues(t *testing.T) {
	s, _ := memory(t)
	slow := must(s.join(t.Context(), []string{">"}))(t)
	defer s.watching.leave(slow)
	const n, size = 20, 500_000
	var rev uint64
	for i := range n {
		rev = must(s.KeyValue().Put(t.Context(), fmt.Sprint("k", i), make([]byte, size)))(t)
	}
	heardUpTo(t, s, rev)
	if _, bytes, missed := slow.kept(); bytes > watchBytes || missed == 0 {
		t.Errorf("it keeps %d bytes, and has missed %d", bytes, missed)
	}
	got := map[string]*entry{}
	take(t, s, slow, got, n)
	for k, e := range got {
		if len(e.value) != size {
			t.Errorf("%s has %d bytes", k, len(e.value))
		}
	}
}

// More keys than an answer has may match when a watch begins.
func TestWatchManyKeys(t *testing.T) {
	s, _ := memory(t)
	fill(t, s, 0, 2500, "a")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	seq := must(s.Watch(ctx))(t)
	got := map[string]bool{}
	for e, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		if got[e.Key()] = true; len(got) == 2500 {
			break
		}
	}
}

// A replica that is behind does not make a watcher believe that it has all that it missed, and
// neither does a last message that was removed make it wait.
func TestSlowWatcherReadsFromAReplicaThatIsBehind(t *testing.T) {
	s, _ := memory(t)
	slow := must(s.join(t.Context(), []string{">"}))(t)
	defer s.watching.leave(slow)
	heardUpTo(t, s, fill(t, s, 0, 1500, "a"))
	w := fake(s)
	reads := 0
	w.setSince(func(ctx context.Context, from uint64, real wire) (page, error) {
		p, err := real.since(ctx, from)
		if reads++; reads%2 == 1 && len(p.items) > 10 {
			// It ends before the others do.
			p.items, p.subjects, p.more = p.items[:10], p.subjects[:10], false
			p.last = p.items[9].seq
		}
		return p, err
	})
	take(t, s, slow, map[string]*entry{}, 1500)

	heardUpTo(t, s, fill(t, s, 0, 1500, "b"))
	rev := must(s.KeyValue().Put(t.Context(), "last", nil))(t)
	heardUpTo(t, s, rev)
	stream := must(newJS(t, s.nc).Stream(t.Context(), s.stream()))(t)
	if err := stream.Purge(t.Context(), jetstream.WithPurgeSubject(s.key("last"))); err != nil {
		t.Fatal(err)
	}
	take(t, s, slow, map[string]*entry{}, 1500)
	for {
		if n, _, missed := slow.kept(); n == 0 && missed == 0 {
			break
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_, err := s.catchUp(ctx, slow)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Watchers of any speed end with the last value of each key, on one server and on three.
func TestWatchersOfAllSpeeds(t *testing.T) {
	for _, replicas := range []int{1, 3} {
		url := ""
		if replicas == 1 {
			url = startServer(t).ClientURL()
		} else {
			url = startCluster(t, replicas)[0].ClientURL()
		}
		nc := connect(t, url)
		s := newStore(t, newJS(t, nc), jetstream.KeyValueConfig{Replicas: replicas, Storage: jetstream.MemoryStorage})
		const keys = watchMost + 100
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		for _, pace := range []time.Duration{0, 20 * time.Microsecond, 200 * time.Microsecond} {
			seq := must(s.Watch(ctx, "k.>", "end"))(t)
			wg.Go(func() {
				last := map[string]uint64{}
				end := false
				for e, err := range seq {
					if err != nil {
						t.Error(err)
						return
					}
					if e.Revision() <= last[e.Key()] {
						t.Errorf("%s: revision %d after %d", e.Key(), e.Revision(), last[e.Key()])
					}
					last[e.Key()] = e.Revision()
					if string(e.Value()) == "last" {
						last[e.Key()] = 1 << 62
					}
					done := 0
					if end = end || e.Key() == "end"; end {
						for _, rev := range last {
							if rev == 1<<62 {
								done++
							}
						}
					}
					if done == keys+1 {
						return
					}
					if pace > 0 && rand.IntN(10) == 0 {
						time.Sleep(10 * pace)
					}
				}
			})
		}
		put := func(value string, keys []int) {
			for part := range slices.Chunk(keys, 400) {
				var ops []Op
				for _, k := range part {
					ops = append(ops, Put(fmt.Sprint("k.", k), []byte(value)))
				}
				must(s.Do(ctx, ops...))(t)
			}
		}
		for range 4 {
			put("x", rand.Perm(keys))
		}
		put("last", rand.Perm(keys))
		must(s.Do(ctx, Put("end", []byte("last"))))(t)
		wg.Wait()
	}
}

// A consumer that the server has lost is made anew, and nothing is missed.
func TestConsumerThatIsGone(t *testing.T) {
	s, _ := memory(t)
	s.watching.beat = 100 * time.Millisecond
	w := must(s.join(t.Context(), []string{">"}))(t)
	defer s.watching.leave(w)
	stream := must(newJS(t, s.nc).Stream(t.Context(), s.stream()))(t)
	for name := range stream.ConsumerNames(t.Context()).Name() {
		if err := stream.DeleteConsumer(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, s, 0, 20, "a")
	take(t, s, w, map[string]*entry{}, 20)
}

// What a change costs does not depend on how much a watcher has not taken.
func BenchmarkOffer(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(n, " pending"), func(b *testing.B) {
			w := &watcher{signal: make(chan struct{}, 1)}
			es := make([]*entry, n)
			for i := range es {
				es[i] = &entry{key: fmt.Sprint("key.", i), value: make([]byte, 64)}
			}
			b.ReportAllocs()
			rev := uint64(0)
			for b.Loop() {
				rev++
				e := *es[rev%uint64(n)]
				e.rev = rev
				w.offer(&e)
			}
		})
	}
}
