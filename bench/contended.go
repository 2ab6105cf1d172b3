package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

var handoverColumns = []column{
	{key: "rate", title: "handovers/s", unit: perSecond, ratio: true, more: true},
	{key: "p50", title: "waiting p50", unit: nanoseconds},
	{key: "p99", title: "waiting p99", unit: nanoseconds, ratio: true},
	{key: "jain", title: "Jain", unit: fraction, more: true},
	{key: "in", title: "messages in", unit: count, counted: true},
	{key: "out", title: "messages out", unit: count, counted: true},
}

// oneKey runs workers on one key, spread over clients.
func oneKey(ctx context.Context, c *cell, workers, clients int) error {
	cs, err := c.connect(ctx, clients)
	if err != nil {
		return err
	}
	g := c.guard("hot")
	r, err := c.load(ctx, workers, func(ctx context.Context, w, _ int) (time.Duration, error) {
		waited, _, err := once(ctx, cs[w%clients], g)
		return waited, err
	})
	if err != nil {
		return err
	}
	p := percentiles(r.all(), 50, 99)
	c.set("rate", r.rate())
	c.set("p50", p[0])
	c.set("p99", p[1])
	c.set("jain", jain(r.counts()))
	c.perHandover(r.traffic, r.counted, r.ops())
	return nil
}

const hotClients = 8

// hot is a key that a few processes lock all the time.
var hot = &workload{
	name:    "hot",
	extent:  forDuration,
	title:   fmt.Sprintf("one key, %d clients of one goroutine each", hotClients),
	columns: handoverColumns, turns: true,
	run: func(ctx context.Context, c *cell) error { return oneKey(ctx, c, hotClients, hotClients) },
}

const localWorkers = 64

// local is a key that one process locks all the time, from many goroutines.
var local = &workload{
	name:    "local",
	extent:  forDuration,
	title:   fmt.Sprintf("one key, %d goroutines of one client", localWorkers),
	columns: handoverColumns, turns: true,
	run: func(ctx context.Context, c *cell) error { return oneKey(ctx, c, localWorkers, 1) },
}

// crowd is a large number of clients that all ask for one key at the same time. Each leaves
// after it has held the key.
func crowd(clients int) *workload {
	return &workload{
		name:   fmt.Sprintf("crowd%d", clients),
		extent: func(s settings) string { return fmt.Sprintf("%s waiters, %v at most", thousands(s.Waiters), s.Limit) },
		title:  fmt.Sprintf("one key, a crowd that comes at once in %d clients; until the last was served", clients),
		turns:  true,
		columns: []column{
			{key: "waiters", title: "waiters", unit: count},
			{key: "served", title: "served", unit: count, more: true},
			{key: "took", title: "took", unit: nanoseconds},
			{key: "rate", title: "handovers/s", unit: perSecond, ratio: true, more: true},
			{key: "in", title: "messages in", unit: count, counted: true},
			{key: "out", title: "messages out", unit: count, counted: true},
		},
		run: func(ctx context.Context, c *cell) error { return runCrowd(ctx, c, clients) },
	}
}

func runCrowd(ctx context.Context, c *cell, clients int) error {
	cs, err := c.connect(ctx, clients)
	if err != nil {
		return err
	}
	g := c.guard("crowd")
	before, err := c.traffic()
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, c.Limit)
	defer cancel()
	var served atomic.Int64
	errs := make([]error, c.Waiters)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range c.Waiters {
		wg.Go(func() {
			if _, _, err := once(limited, cs[i%clients], g); err == nil {
				served.Add(1)
			} else if limited.Err() == nil {
				errs[i] = err
				cancel() // a failure for another reason than time ends all
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-limited.Done():
	}
	took, n := time.Since(start), int(served.Load())
	after, err := c.traffic()
	<-done
	if err != nil {
		return err
	}
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	if n < c.Waiters {
		c.note = fmt.Sprintf("not all were served within %v", c.Limit)
	}
	c.set("waiters", float64(c.Waiters))
	c.set("served", float64(n))
	c.set("took", float64(took))
	c.set("rate", float64(n)/took.Seconds())
	_, counted := c.svc.(metered)
	c.perHandover(after.sub(before), counted, n)
	return nil
}

const (
	readerCount   = 64
	readerClients = 8
	readFor       = time.Millisecond
	writeEvery    = 100 * time.Millisecond
)

// readers is a key that is read nearly all the time.
var readers = &workload{
	name:   "readers",
	extent: forDuration,
	title: fmt.Sprintf("one key, %d readers in %d clients that read for %v each time, and a writer every %v",
		readerCount, readerClients, readFor, writeEvery),
	turns: true,
	columns: []column{
		{key: "rate", title: "reads/s", unit: perSecond, ratio: true, more: true},
		{key: "p50", title: "reader waits p50", unit: nanoseconds, ratio: true},
		{key: "p99", title: "p99", unit: nanoseconds},
		{key: "write50", title: "writer waits p50", unit: nanoseconds},
		{key: "write99", title: "p99", unit: nanoseconds},
		{key: "in", title: "messages in", unit: count, counted: true},
		{key: "out", title: "messages out", unit: count, counted: true},
	},
	run: runReaders,
}

func runReaders(ctx context.Context, c *cell) error {
	cs, err := c.connect(ctx, readerClients+1)
	if err != nil {
		return err
	}
	g := c.guard("readers")
	if _, ok := cs[0].(sharer); !ok {
		c.note = "no shared mode: readers exclude each other"
	}
	r, err := c.load(ctx, readerCount+1, func(ctx context.Context, w, _ int) (time.Duration, error) {
		if w == readerCount {
			if err := pause(ctx, writeEvery); err != nil {
				return 0, err
			}
			waited, _, err := once(ctx, cs[readerClients], g)
			return waited, err
		}
		return read(ctx, cs[w%readerClients], g)
	})
	if err != nil {
		return err
	}
	writes := r.samples[readerCount]
	r.samples = r.samples[:readerCount]
	p := percentiles(r.all(), 50, 99)
	c.set("rate", r.rate())
	c.set("p50", p[0])
	c.set("p99", p[1])
	if len(writes) > 0 {
		p = percentiles(writes, 50, 99)
		c.set("write50", p[0])
		c.set("write99", p[1])
	}
	c.perHandover(r.traffic, r.counted, r.ops()+len(writes))
	return nil
}

func read(ctx context.Context, cl client, g *guard) (time.Duration, error) {
	start := time.Now()
	lock, shared := cl.lock, false
	if s, ok := cl.(sharer); ok {
		lock, shared = s.rlock, true
	}
	h, err := lock(ctx, g.key)
	if err != nil {
		return 0, fmt.Errorf("read-lock %s: %w", g.key, err)
	}
	waited := time.Since(start)
	v := g.enter(h, shared)
	err = pause(ctx, readFor)
	v.leave()
	if unlockErr := h.unlock(ctx); err == nil {
		err = unlockErr
	}
	return waited, err
}

// pause simulates work that takes time but no processor.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
