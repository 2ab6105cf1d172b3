package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// settings determine the duration and the size of a run.
type settings struct {
	Rounds   int           `json:"rounds"`
	Duration time.Duration `json:"duration_ns"` // of the measurement in a cell
	Limit    time.Duration `json:"limit_ns"`    // of a cell whose load may take its time
	Waiters  int           `json:"waiters"`     // in a crowd
	Locks    int           `json:"locks"`       // held at once
}

// workload is a load that every rival is measured with. It gives one table.
type workload struct {
	name, title string
	extent      func(s settings) string // of one round, for the reader
	columns     []column
	turns       bool // the floor needs turns to be comparable
	quiet       bool // nothing may be left of what ran before
	only        func(r *rival) bool
	run         func(ctx context.Context, c *cell) error
}

func forDuration(s settings) string { return s.Duration.String() + " each" }

// cell is one workload on one rival in one round.
type cell struct {
	settings
	svc    service
	rival  *rival
	values map[string]float64
	note   string

	guards []*guard

	mu      sync.Mutex
	clients []client // closed when the cell is over
}

func (c *cell) set(key string, value float64) { c.values[key] = value }

func (c *cell) guard(key string) *guard {
	g := &guard{key: key, excluded: !strings.HasPrefix(c.rival.name, "floor")}
	c.guards = append(c.guards, g)
	return g
}

// connect makes n clients.
func (c *cell) connect(ctx context.Context, n int) ([]client, error) {
	clients, errs := make([]client, n), make([]error, n)
	gate := make(chan struct{}, 16) // a machine with two cores is not a fleet
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			if clients[i], errs[i] = c.svc.connect(ctx); errs[i] == nil {
				c.mu.Lock()
				c.clients = append(c.clients, clients[i])
				c.mu.Unlock()
			}
		})
	}
	wg.Wait()
	return clients, errors.Join(errs...)
}

func (c *cell) close() error {
	errs := make([]error, len(c.clients))
	var wg sync.WaitGroup
	for i, cl := range c.clients {
		wg.Go(func() { errs[i] = cl.close() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// once locks the key, visits the guard and unlocks. It returns how long acquiring took, and
// how long all of it took.
func once(ctx context.Context, cl client, g *guard) (waited, all time.Duration, err error) {
	start := time.Now()
	h, err := cl.lock(ctx, g.key)
	if err != nil {
		return 0, 0, fmt.Errorf("lock %s: %w", g.key, err)
	}
	waited = time.Since(start)
	g.enter(h, false).leave()
	if err := h.unlock(ctx); err != nil {
		return 0, 0, fmt.Errorf("unlock %s: %w", g.key, err)
	}
	return waited, time.Since(start), nil
}

// result is the result of a load.
type result struct {
	took    time.Duration
	samples [][]time.Duration // by worker, of what began and ended during the measurement
	traffic traffic
	counted bool // traffic is known
}

func (r *result) ops() (n int) {
	for _, s := range r.samples {
		n += len(s)
	}
	return n
}

func (r *result) rate() float64 { return float64(r.ops()) / r.took.Seconds() }

func (r *result) all() []time.Duration {
	all := make([]time.Duration, 0, r.ops())
	for _, s := range r.samples {
		all = append(all, s...)
	}
	return all
}

// counts returns how many operations each worker did.
func (r *result) counts() (counts []float64) {
	for _, s := range r.samples {
		counts = append(counts, float64(len(s)))
	}
	return counts
}

// load has workers call op repeatedly. It measures for c.Duration, after a tenth of that in
// which connections and heaps reach their size. It measures for longer if no call has ended
// by then. op returns the duration to sample.
func (c *cell) load(ctx context.Context, workers int, op func(ctx context.Context, worker, i int) (time.Duration, error)) (*result, error) {
	// A call that hangs is ended after this time.
	ctx, cancel := context.WithTimeout(ctx, 2*c.Duration+c.Limit)
	defer cancel()
	const (
		warmUp = iota
		measured
		over
	)
	var phase atomic.Int32
	r := &result{samples: make([][]time.Duration, workers)}
	errs := make([]error, workers)
	failed := make(chan struct{}, workers)
	something, some := make(chan struct{}), sync.Once{}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := 0; ; i++ {
				before := phase.Load()
				if before == over {
					return
				}
				took, err := op(ctx, w, i)
				if err != nil {
					errs[w] = err
					failed <- struct{}{}
					return
				}
				if before == measured && phase.Load() == measured {
					if r.samples[w] = append(r.samples[w], took); len(r.samples[w]) == 1 {
						some.Do(func() { close(something) })
					}
				}
			}
		})
	}
	// wait waits for d, and reports whether the load still goes on then.
	wait := func(d time.Duration) bool {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			return true
		case <-failed:
		case <-ctx.Done():
		}
		return false
	}
	err := func() error {
		defer phase.Store(over)
		if !wait(c.Duration / 10) {
			return nil
		}
		before, err := c.traffic()
		if err != nil {
			return err
		}
		start := time.Now()
		phase.Store(measured)
		if wait(c.Duration) {
			select {
			case <-something:
			case <-failed:
			case <-ctx.Done():
			}
		}
		phase.Store(over)
		r.took = time.Since(start)
		after, err := c.traffic()
		r.traffic = after.sub(before)
		return err
	}()
	wg.Wait()
	_, r.counted = c.svc.(metered)
	if err := errors.Join(append(errs, err, context.Cause(ctx))...); err != nil {
		return nil, firstLines(err)
	}
	return r, nil
}

// firstLines shortens an error of many workers so that it is readable.
func firstLines(err error) error {
	lines := strings.Split(err.Error(), "\n")
	if len(lines) <= 3 {
		return err
	}
	return fmt.Errorf("%s, and %d errors more", strings.Join(lines[:3], "; "), len(lines)-3)
}

func (c *cell) traffic() (traffic, error) {
	if m, ok := c.svc.(metered); ok {
		return m.traffic()
	}
	return traffic{}, nil
}

// perHandover records how many messages went into and out of the servers for each handover.
func (c *cell) perHandover(t traffic, counted bool, n int) {
	if counted && n > 0 {
		c.set("in", float64(t.inMsgs)/float64(n))
		c.set("out", float64(t.outMsgs)/float64(n))
	}
}
