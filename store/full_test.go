package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A bucket without room refuses writes, also the move of a fence. No transaction is done in
// part, none that was answered is missing, and after there is room again work goes on.
func TestFullBucket(t *testing.T) {
	one := connect(t, startServer(t).ClientURL())
	three := connect(t, startCluster(t, 3)[0].ClientURL())
	for _, replicas := range []int{1, 3} {
		for _, storage := range []jetstream.StorageType{jetstream.MemoryStorage, jetstream.FileStorage} {
			t.Run(fmt.Sprint(replicas, " ", storage), func(t *testing.T) {
				nc := one
				if replicas == 3 {
					nc = three
				}
				js := newJS(t, nc)
				s := newStore(t, js, jetstream.KeyValueConfig{Storage: storage, Replicas: replicas, MaxBytes: 200_000})
				v := s.With(lock(t, "l", 1))
				must(v.Put(t.Context(), "large", make([]byte, 3000)))(t)
				// Each transaction writes keys of its own and a counter, in messages of any size.
				var mu sync.Mutex
				done, failed := map[string][]string{}, map[string][]string{}
				work := func(d doer, worker string) {
					for i := 0; ; i++ {
						id := fmt.Sprint(worker, ".", i)
						var keys []string
						ops := []Op{Once(id, 0), Add("n", 1)}
						for k := range 1 + rand.IntN(8) {
							key := fmt.Sprint("k.", id, ".", k)
							keys = append(keys, key)
							ops = append(ops, Put(key, make([]byte, rand.IntN(3000))))
						}
						_, err := d.Do(t.Context(), ops...)
						mu.Lock()
						if err == nil {
							done[id] = keys
						} else {
							failed[id] = keys
						}
						mu.Unlock()
						if err != nil {
							wantIs(t, err, ErrFull)
							if !strings.Contains(err.Error(), "max_bytes") {
								t.Error(err)
							}
							return
						}
					}
				}
				check := func() {
					t.Helper()
					res := must(s.Do(t.Context(), Get("n")))(t)
					if e := must(res.Get("n"))(t); string(e.Value()) != fmt.Sprint(len(done)) {
						t.Errorf("the counter is %s after %d transactions", e.Value(), len(done))
					}
					var all []string
					for _, keys := range done {
						all = append(all, keys...)
					}
					for _, keys := range failed {
						all = append(all, keys...)
					}
					there := map[string]bool{}
					for some := range slices.Chunk(all, maxKeys) {
						for _, k := range must(v.GetAll(t.Context(), some...))(t).Keys() {
							there[k] = true
						}
					}
					for id, keys := range done {
						for _, k := range keys {
							if !there[k] {
								t.Errorf("%s was answered, and %s is missing", id, k)
							}
						}
					}
					for id, keys := range failed {
						for _, k := range keys {
							if there[k] {
								t.Errorf("%s has failed, and %s is there", id, k)
							}
						}
					}
				}
				var wg sync.WaitGroup
				for i := range 3 {
					wg.Go(func() { work(v, fmt.Sprint("v", i)) })
					wg.Go(func() { work(s, fmt.Sprint("s", i)) })
				}
				wg.Wait()
				// Fill the rest: puts of a group too, down to the smallest.
				for size := 2000; size >= 0; size -= 100 {
					for i := range 20 {
						wg.Go(func() {
							if _, err := v.Put(t.Context(), fmt.Sprint("p.", size, ".", i), make([]byte, size)); err != nil {
								wantIs(t, err, ErrFull)
							}
						})
					}
					wg.Wait()
				}
				// Down to the last byte.
				for i, full := 0, error(nil); full == nil; i++ {
					full = soon(t, func() (error, error) {
						_, err := s.KeyValue().Put(t.Context(), fmt.Sprint(i), nil)
						if api := (*jetstream.APIError)(nil); errors.As(err, &api) && api.ErrorCode == codeStoreFailed {
							return err, nil
						}
						return nil, err // that of a write without an answer says nothing of room
					})
				}
				// Nobody new can take the lock, and the holder can not even delete where there are
				// replicas. With one there is room for what takes the place of its predecessor.
				_, err := s.With(lock(t, "another", 1)).Get(t.Context(), "n")
				wantIs(t, err, ErrFull)
				switch err = v.Delete(t.Context(), "large"); {
				case replicas == 3:
					wantIs(t, err, ErrFull)
				case err != nil:
					t.Errorf("delete: %v", err)
				}
				// The holder still reads, and nobody else can: that needs a message of its own.
				must(v.Get(t.Context(), "n"))(t)
				if replicas == 3 {
					_, err = s.Do(t.Context(), Get("n"))
					wantIs(t, err, ErrFull)
				}

				change(t, s, js, func(c *jetstream.StreamConfig) { c.MaxBytes = 2_000_000 })
				eventually(t, "there is room", func() bool {
					_, err := v.Put(t.Context(), "room", nil)
					if err != nil && !errors.Is(err, ErrFull) {
						t.Fatal(err)
					}
					return err == nil
				})
				check()
				must(s.With(lock(t, "another", 1)).Get(t.Context(), "n"))(t)
				// What has failed can be done now, once.
				for id, keys := range failed {
					must(v.Do(t.Context(), Once(id, 0), Add("n", 1), Put(keys[0], nil)))(t)
					done[id] = keys[:1]
				}
				clear(failed)
				check()
			})
		}
	}
}

// The limit for a value counts its headers, and the error says how much they take.
func TestTooLarge(t *testing.T) {
	nc := connect(t, startServer(t).ClientURL())
	js := newJS(t, nc)
	cfg := jetstream.KeyValueConfig{Bucket: "limited", Storage: jetstream.MemoryStorage, MaxValueSize: 100}
	_, err := Create(t.Context(), js, cfg)
	wantIs(t, err, ErrInvalid)
	must(js.CreateKeyValue(t.Context(), cfg))(t)
	wantIs(t, Prepare(t.Context(), js, "limited"), ErrUnsupported)
	cfg.Bucket, cfg.MaxValueSize = "wide", smallest
	for _, grouped := range []bool{false, true} {
		s := newStore(t, js, cfg)
		s.grouped = grouped
		// What fences need fits, also with long names.
		name := strings.Repeat("x", 60)
		v := reopen(t, s, nc, WithClient(name), WithCluster(name)).With(lock(t, name, 1<<62))
		if _, err := v.Get(t.Context(), "none"); !errors.Is(err, jetstream.ErrKeyNotFound) {
			t.Error(err)
		}
		v = s.With(lock(t, "l", 5))
		mustPut(t, v, "k", strings.Repeat("v", smallest/2))
		large := make([]byte, smallest-100)
		for what, f := range map[string]func() error{
			"View.Put":   func() error { _, err := v.Put(t.Context(), "k", large); return err },
			"View.Do":    func() error { _, err := v.Do(t.Context(), Put("k", large)); return err },
			"a batch":    func() error { _, err := v.Do(t.Context(), Put("k", large), Put("l", nil)); return err },
			"Store.Do":   func() error { _, err := s.Do(t.Context(), Put("k", make([]byte, smallest))); return err },
			"its answer": func() error { _, err := s.Do(t.Context(), Once("x", 0, make([]byte, smallest)...)); return err },
		} {
			err := f()
			wantIs(t, err, ErrTooLarge)
			if !strings.Contains(err.Error(), fmt.Sprint("limit was ", smallest)) || !strings.Contains(err.Error(), "headers") {
				t.Errorf("%s: %v", what, err)
			}
		}
		_, err = v.Put(t.Context(), "k", make([]byte, 2<<20))
		wantIs(t, err, ErrTooLarge, nats.ErrMaxPayload)
		_, err = v.Do(t.Context(), Put("k", make([]byte, 2<<20)), Put("l", nil))
		wantIs(t, err, ErrTooLarge, nats.ErrMaxPayload)
		wantStored(t, s, "k", strings.Repeat("v", smallest/2))
	}
}

// A limit that was changed after Open counts as well. The server gives no answer to a batch that is
// above it.
func TestLimitIsChanged(t *testing.T) {
	nc := connect(t, startServer(t).ClientURL())
	js := newJS(t, nc)
	limit := func(s *Store, most int32) {
		t.Helper()
		change(t, s, js, func(c *jetstream.StreamConfig) { c.MaxMsgSize = most })
	}
	value := make([]byte, 1000)
	calls := func(s *Store, v *View) map[string]func() error {
		return map[string]func() error{
			"View.Do":           func() error { _, err := v.Do(t.Context(), Put("k", value), Put("l", nil)); return err },
			"the last":          func() error { _, err := v.Do(t.Context(), Put("l", nil), Put("k", value)); return err },
			"no lock, the last": func() error { _, err := s.Do(t.Context(), Put("l", nil), Put("k", value)); return err },
			"View.Put":          func() error { _, err := v.Put(t.Context(), "k", value); return err },
			"a group": func() error {
				ps := []*put{{write: write{subject: s.key("k"), data: value}}, {write: write{subject: s.key("l")}}}
				for _, p := range ps {
					p.ctx, p.done = t.Context(), make(chan struct{})
				}
				v.c.turn <- struct{}{}
				v.c.commitPuts(t.Context(), ps)
				<-v.c.turn
				if ps[1].err != nil {
					t.Error(ps[1].err)
				}
				return ps[0].err
			},
			"Store.Do": func() error { _, err := s.Do(t.Context(), Put("k", value), Put("l", nil)); return err },
		}
	}
	for _, what := range []string{"View.Do", "the last", "View.Put", "a group", "Store.Do", "no lock, the last"} {
		s := newStore(t, js, jetstream.KeyValueConfig{Storage: jetstream.MemoryStorage})
		v := s.With(lock(t, "l", 1))
		mustPut(t, v, "k", "old")
		limit(s, smallest)
		err := calls(s, v)[what]()
		wantIs(t, err, ErrTooLarge)
		if text := fmt.Sprintf("limit was %d", smallest); !strings.Contains(fmt.Sprint(err), text) {
			t.Errorf("%s: %v", what, err)
		}
		wantStored(t, s, "k", "old")
		err = calls(s, v)[what]() // now it is known
		wantIs(t, err, ErrTooLarge)
		limit(s, 4096)
		if err := calls(s, v)[what](); err != nil {
			t.Errorf("%s: %v, and the limit was raised", what, err)
		}
		wantStored(t, s, "k", string(value))
	}
}
