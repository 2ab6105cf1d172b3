package main

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"
)

// goSync measures a lock as a drop-in replacement for sync.Mutex. It runs the benchmarks of
// Go's package sync for its mutex, for which dsync published results of its own. The root
// module has the same benchmarks for go test -bench.
var goSync = &workload{
	name:    "sync",
	extent:  forDuration,
	title:   "the benchmarks that Go has for sync.Mutex, and dsync had for its own, on qlock.RWMutex, all goroutines in one client; time for each operation of all together",
	columns: syncColumns(),
	turns:   true,
	only: func(r *rival) bool {
		return strings.HasPrefix(r.name, "floor") || strings.HasPrefix(r.name, "qlock")
	},
	run: func(ctx context.Context, c *cell) error {
		clients, err := c.connect(ctx, 1)
		if err != nil {
			return err
		}
		for _, v := range syncVariants {
			if err := v.run(ctx, c, clients[0]); err != nil {
				return fmt.Errorf("%s: %w", v.name, err)
			}
		}
		return nil
	},
}

// syncVariant is one of these benchmarks.
type syncVariant struct {
	name        string
	parallelism int  // goroutines for each processor
	own         bool // each goroutine has a mutex that no other uses
	// op is one operation. do locks and unlocks.
	op func(i int, do func(), scratch *[16 << 10]uint64)
}

var syncVariants = []syncVariant{
	{"Uncontended", 1, true, just},
	{"Mutex", 1, false, just},
	{"MutexSlack", 10, false, just},
	{"MutexWork", 1, false, andWork},
	{"MutexWorkSlack", 10, false, andWork},
	{"MutexNoSpin", 4, false, inBetween},
	{"MutexSpin", 1, false, andMuchWork},
}

func just(_ int, do func(), _ *[16 << 10]uint64) { do() }

func andWork(_ int, do func(), scratch *[16 << 10]uint64) {
	do()
	for range 100 {
		scratch[0] *= 2
		scratch[0] /= 2
	}
}

func andMuchWork(_ int, do func(), scratch *[16 << 10]uint64) {
	do()
	for i := 0; i < len(scratch); i += 4 {
		scratch[i]++
	}
}

// inBetween locks every fourth time. Otherwise it works and lets another goroutine run.
func inBetween(i int, do func(), scratch *[16 << 10]uint64) {
	if i%4 == 0 {
		do()
		return
	}
	for i := 0; i < 4<<10; i += 4 {
		scratch[i]++
	}
	c := make(chan bool)
	go func() { c <- true }()
	<-c
}

func syncColumns() (columns []column) {
	for _, v := range syncVariants {
		columns = append(columns, column{key: v.name, title: v.name, unit: nanoseconds, ratio: true})
	}
	return columns
}

func (v syncVariant) run(ctx context.Context, c *cell, cl client) error {
	workers := v.parallelism * runtime.GOMAXPROCS(0)
	dos := make([]func(), workers)
	for w := range workers {
		if w > 0 && !v.own {
			dos[w] = dos[0]
			continue
		}
		key := "sync." + v.name
		if v.own {
			key += fmt.Sprintf(".%d", w)
		}
		g := c.guard(key)
		var m sync.Locker = &holdLocker{ctx: ctx, cl: cl, key: key}
		if has, ok := cl.(mutexer); ok {
			m = has.mutex(key)
		}
		dos[w] = func() {
			m.Lock()
			g.enter(noToken{}, false).leave()
			m.Unlock()
		}
	}
	scratch := make([][16 << 10]uint64, workers)
	r, err := c.load(ctx, workers, func(_ context.Context, w, i int) (time.Duration, error) {
		v.op(i, dos[w], &scratch[w])
		return 0, nil
	})
	if err != nil {
		return err
	}
	c.set(v.name, float64(r.took)/float64(r.ops()))
	return nil
}

// mutexer is a client with mutexes like those of package sync.
type mutexer interface{ mutex(key string) sync.Locker }

// holdLocker makes a sync.Locker of a client that has none.
type holdLocker struct {
	ctx context.Context
	cl  client
	key string
	h   hold // only the holder of the lock writes and reads it
}

func (l *holdLocker) Lock() {
	h, err := l.cl.lock(l.ctx, l.key)
	if err != nil {
		panic(fmt.Errorf("lock %s: %w", l.key, err)) // a sync.Locker cannot return an error
	}
	l.h = h
}

func (l *holdLocker) Unlock() {
	if err := l.h.unlock(l.ctx); err != nil {
		panic(fmt.Errorf("unlock %s: %w", l.key, err))
	}
}

type noToken struct{ hold }

func (noToken) token() uint64 { return 0 }
