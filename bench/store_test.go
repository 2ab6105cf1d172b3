package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock/internal/testworld"
	"github.com/qlock/qlock/store"
)

var (
	storeRounds   = flag.Int("store.rounds", 0, "measure package store in so many rounds, such as 5; 0: not at all")
	storeFor      = flag.Duration("store.for", time.Second, "how long each figure of a round takes")
	storeWatchers = flag.Int("store.watchers", 10_000, "watchers of one key")
)

type storeLock struct {
	name  string
	token uint64
}

func (l storeLock) Name() string             { return l.name }
func (l storeLock) Token() uint64            { return l.token }
func (l storeLock) Shared() bool             { return false }
func (l storeLock) Context() context.Context { return context.Background() }

// TestStoreFigures compares package store with the key-value bucket that it stands on, in
// one run: the rounds are interleaved, and the ratios are medians.
//
//	go test . -run TestStoreFigures -store.rounds 5 -v -timeout 20m
func TestStoreFigures(t *testing.T) {
	if *storeRounds == 0 {
		t.Skip("-store.rounds 5 measures")
	}
	for _, c := range []struct {
		replicas int
		storage  jetstream.StorageType
	}{{1, jetstream.MemoryStorage}, {1, jetstream.FileStorage}, {3, jetstream.MemoryStorage}, {3, jetstream.FileStorage}} {
		t.Run(fmt.Sprintf("R%d %s", c.replicas, strings.ToLower(c.storage.String())), func(t *testing.T) { storeFigures(t, c.replicas, c.storage) })
	}
}

// storeOn makes a bucket on servers of its own.
func storeOn(t *testing.T, replicas int, storage jetstream.StorageType) (*store.Store, *nats.Conn) {
	t.Helper()
	urls := testworld.StartJetStream(t, replicas)
	nc, err := nats.Connect(urls[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	var s *store.Store
	for range 100 {
		if s, err = store.Create(t.Context(), js, jetstream.KeyValueConfig{Bucket: "b", Replicas: replicas, Storage: storage}); err == nil {
			return s, nc
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal(err)
	return nil, nil
}

func storeFigures(t *testing.T, replicas int, storage jetstream.StorageType) {
	s, nc := storeOn(t, replicas, storage)
	var err error
	kv, v := s.KeyValue(), s.With(storeLock{"one", 1})
	ctx := context.Background()
	body := make([]byte, 64)
	revs := make([]uint64, 64)
	views := make([]*store.View, 64)
	for i := range revs {
		if revs[i], err = kv.Put(ctx, fmt.Sprint("u", i), body); err != nil {
			t.Fatal(err)
		}
		views[i] = s.With(storeLock{fmt.Sprint("l", i), 1})
	}
	if _, err := kv.Put(ctx, "one", body); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Get(ctx, "one"); err != nil {
		t.Fatal(err)
	}
	type kind struct {
		name    string
		workers int
		base    string
		do      func(worker int) error
	}
	put := func(w int) error { _, err := kv.Put(ctx, fmt.Sprint("k", w), body); return err }
	update := func(w int) (err error) {
		for {
			var rev uint64
			if rev, err = kv.Update(ctx, fmt.Sprint("u", w), body, revs[w]); err == nil {
				revs[w] = rev
				return nil
			} else if !errors.Is(err, jetstream.ErrKeyExists) && !strings.Contains(err.Error(), "10164") {
				return err
			}
			e, err := kv.Get(ctx, fmt.Sprint("u", w))
			if err != nil {
				return err
			}
			revs[w] = e.Revision()
		}
	}
	fenced := func(w int) error { _, err := v.Put(ctx, fmt.Sprint("f", w), body); return err }
	// The same message, without the package: no client can be faster.
	var fence store.Fence
	bare := func(w int) error {
		for {
			wait, cancel := context.WithTimeout(ctx, 5*time.Second)
			reply, err := nc.RequestMsgWithContext(wait, &nats.Msg{Subject: "$KV.b.bare", Data: body, Header: nats.Header{
				jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(fence.Revision, 10)}, jetstream.ExpectedLastSubjSeqSubjHeader: {"$KV.b-qlock.fence.default.one"},
			}})
			cancel()
			if err != nil || !bytes.Contains(reply.Data, []byte(`"error"`)) {
				return err
			}
			if fence, err = s.Fence(ctx, "one"); err != nil { // the package has moved it
				return err
			}
		}
	}
	own := func(w int) error { _, err := views[w].Put(ctx, fmt.Sprint("g", w), body); return err }
	oneKey := func(w int) error { _, err := v.Put(ctx, "hot", body); return err }
	manyKeys := func(w int) error { _, err := v.Put(ctx, fmt.Sprint("m", rand.IntN(1000)), body); return err }
	read := func(w int) error { _, err := kv.Get(ctx, "one"); return err }
	fencedRead := func(w int) error { _, err := v.Get(ctx, "one"); return err }
	run := fmt.Sprint(os.Getpid())
	var ids atomic.Int64
	request := func(w int) error {
		_, err := views[w].Do(ctx, store.Once(fmt.Sprint(run, ".", ids.Add(1)), time.Minute), store.Put(fmt.Sprint("t", w), body), store.Get(fmt.Sprint("k", w)), store.Add(fmt.Sprint("n", w), 1))
		return err
	}
	kinds := []kind{
		{"kv.Put alone", 1, "", put}, {"kv.Update alone", 1, "kv.Put alone", update}, {"fenced Put alone", 1, "kv.Put alone", fenced}, {"the same message, bare", 1, "kv.Put alone", bare},
		{"kv.Get alone", 1, "kv.Put alone", read}, {"fenced Get alone", 1, "kv.Put alone", fencedRead}, {"request (once, put, get, add) alone", 1, "kv.Put alone", request},
		{"kv.Put, 64 workers", 64, "", put}, {"kv.Update, 64 workers", 64, "kv.Put, 64 workers", update}, {"fenced Put, 64 workers, one fence", 64, "kv.Put, 64 workers", fenced},
		{"fenced Put, 64 workers, a fence each", 64, "kv.Put, 64 workers", own},
		{"fenced Put, 64 workers, one key", 64, "kv.Put, 64 workers", oneKey}, {"fenced Put, 64 workers, 1,000 keys", 64, "kv.Put, 64 workers", manyKeys},
	}
	// The kinds take turns in short slices, so that what else the machine does concerns all
	// of them alike.
	rates, ratios := map[string][]float64{}, map[string][]float64{}
	const turns = 20
	for range *storeRounds {
		done, took := map[string]int64{}, map[string]time.Duration{}
		for range turns {
			for _, k := range kinds {
				var n atomic.Int64
				var wg sync.WaitGroup
				start := time.Now()
				for w := range k.workers {
					wg.Go(func() {
						for time.Since(start) < *storeFor/turns {
							if err := k.do(w); err != nil {
								t.Errorf("%s: %v", k.name, err)
								return
							}
							n.Add(1)
						}
					})
				}
				wg.Wait()
				took[k.name] += time.Since(start)
				done[k.name] += n.Load()
			}
		}
		rate := func(name string) float64 { return float64(done[name]) / took[name].Seconds() }
		for _, k := range kinds {
			rates[k.name] = append(rates[k.name], rate(k.name))
			if k.base != "" {
				ratios[k.name] = append(ratios[k.name], rate(k.name)/rate(k.base))
			}
		}
	}
	for _, k := range kinds {
		line := fmt.Sprintf("%-42s %9.0f/s", k.name, middle(rates[k.name]))
		if k.base != "" {
			line += fmt.Sprintf("   %.2f of %s", middle(ratios[k.name]), k.base)
		}
		t.Log(line)
	}
}

func middle(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return x[len(x)/2]
}

// TestStoreWatchers tells all watchers of one key of a change: those of a Store, which share a
// consumer, and fewer that have a KeyValue.Watch each. Clients and servers are one process.
//
//	go test . -run TestStoreWatchers -store.rounds 5 -v
func TestStoreWatchers(t *testing.T) {
	if *storeRounds == 0 {
		t.Skip("-store.rounds 5 measures")
	}
	few := min(*storeWatchers, 1000) // as many consumers as a stream has by default
	for _, replicas := range []int{1, 3} {
		for _, k := range []struct {
			name  string
			n     int
			watch func(ctx context.Context, s *store.Store, heard func() bool) error
		}{
			{"Store.Watch", *storeWatchers, storeWatch}, {"Store.Watch", few, storeWatch}, {"KeyValue.Watch", few, keyValueWatch},
		} {
			t.Run(fmt.Sprintf("R%d %s %d", replicas, k.name, k.n), func(t *testing.T) { watchFigures(t, replicas, k.n, k.watch) })
		}
	}
}

func storeWatch(ctx context.Context, s *store.Store, heard func() bool) error {
	changes, err := s.Watch(ctx, "k")
	if err != nil {
		return err
	}
	for _, err := range changes {
		if err != nil {
			return err
		}
		if !heard() {
			return nil
		}
	}
	return nil
}

func keyValueWatch(ctx context.Context, s *store.Store, heard func() bool) error {
	w, err := s.KeyValue().Watch(ctx, "k")
	if err != nil {
		return err
	}
	for e := range w.Updates() {
		if e != nil && !heard() {
			break
		}
	}
	if err := w.Stop(); !errors.Is(err, nats.ErrConnectionClosed) && !errors.Is(err, nats.ErrBadSubscription) {
		return err
	}
	return nil
}

func watchFigures(t *testing.T, replicas, n int, watch func(ctx context.Context, s *store.Store, heard func() bool) error) {
	s, nc := storeOn(t, replicas, jetstream.MemoryStorage)
	v := s.With(storeLock{"l", 1})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if _, err := v.Put(ctx, "k", []byte("0")); err != nil {
		t.Fatal(err)
	}
	memory := func() (bytes int64) {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse)
	}
	before, start := memory(), time.Now()
	var wg sync.WaitGroup
	heard := make(chan time.Time, n)
	joining := make(chan struct{}, 64)
	var ended atomic.Bool
	for range n {
		joining <- struct{}{}
		wg.Go(func() {
			first := true
			err := watch(ctx, s, func() bool {
				if first {
					<-joining
					first = false
				}
				heard <- time.Now()
				return !ended.Load()
			})
			if err != nil && !ended.Load() {
				t.Error(err)
				cancel()
			}
		})
	}
	all := func(since time.Time) (ms []float64) {
		for range n {
			select {
			case at := <-heard:
				ms = append(ms, float64(at.Sub(since).Microseconds())/1000)
			case <-ctx.Done():
				t.Fatal(ctx.Err())
			}
		}
		slices.Sort(ms)
		return ms
	}
	all(start)
	made := time.Since(start)
	each := (memory() - before) / int64(n)
	var last, median []float64
	for range *storeRounds * 4 {
		start := time.Now()
		if _, err := v.Put(ctx, "k", []byte("1")); err != nil {
			t.Fatal(err)
		}
		ms := all(start)
		last, median = append(last, ms[len(ms)-1]), append(median, ms[len(ms)/2])
	}
	slices.Sort(last)
	t.Logf("made in %v, %.1f KB each; from the put to the median watcher %.1f ms, to the last %.1f ms (%.1f to %.1f)",
		made.Round(time.Millisecond), float64(each)/1000, middle(median), middle(last), last[0], last[len(last)-1])
	ended.Store(true)
	nc.Close()
	wg.Wait()
}
