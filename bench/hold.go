package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	holdClients = 4
	holdWorkers = 256
)

// holding measures the cost of holding a large number of locks without using them.
var holding = &workload{
	name: "hold",
	extent: func(s settings) string {
		return fmt.Sprintf("%s locks, taken within %v at most", thousands(s.Locks), s.Limit)
	},
	title: fmt.Sprintf("locks held in %d clients and left alone, with a lease of %v; all that is needed to keep them", holdClients, lease),
	quiet: true,
	only:  func(r *rival) bool { return !strings.HasPrefix(r.name, "floor") },
	columns: []column{
		{key: "locks", title: "locks held", unit: count, more: true},
		{key: "took", title: "taken within", unit: nanoseconds},
		{key: "cpu", title: "processor", unit: percent},
		{key: "in", title: "messages in/s", unit: perSecond, counted: true},
		{key: "out", title: "messages out/s", unit: perSecond, counted: true},
		{key: "bytes", title: "bytes in/s", unit: byteCount, counted: true},
		{key: "heap", title: "memory per lock", unit: byteCount, counted: true},
	},
	run: runHold,
}

func runHold(ctx context.Context, c *cell) error {
	cs, err := c.connect(ctx, holdClients)
	if err != nil {
		return err
	}
	before, err := c.memory(ctx)
	if err != nil {
		return err
	}
	// If the holder itself must extend its locks, it starts with the first lock: to acquire all
	// of them may take longer than a lease.
	keeping, stop := context.WithCancel(ctx)
	defer stop()
	var h heldLocks
	failed := make(chan error, 1)
	go func() { failed <- h.keep(keeping) }()

	start := time.Now()
	takeErr := takeMany(ctx, c, cs, &h)
	took, n := time.Since(start), len(h.all())
	if n == 0 {
		stop()
		return errors.Join(fmt.Errorf("no lock was had within %v", c.Limit), takeErr, <-failed)
	}
	// The locks settle in their rhythm for one third of a lease, and two thirds are measured.
	// Every lock is refreshed once in each third.
	third := lease / 3
	u, err := c.watch(ctx, third, 2*third)
	checkHeld(ctx, c, cs, &h)
	stop()
	lost := <-failed
	if err != nil {
		return err
	}
	c.set("locks", float64(n))
	c.set("took", float64(took))
	if n < c.Locks {
		c.note = fmt.Sprintf("not all %s were had within %v", thousands(c.Locks), c.Limit)
	}
	if takeErr != nil {
		c.note = fmt.Sprintf("not all %s were had: %v", thousands(c.Locks), takeErr)
	}
	if lost != nil {
		// The cost of keeping the locks is then unknown.
		c.note = fmt.Sprintf("not all could be kept: %v", lost)
		return nil
	}
	after, err := c.memory(ctx)
	if err != nil {
		return err
	}
	runtime.KeepAlive(&h)
	if u.cpuKnown {
		c.set("cpu", u.cpu.Seconds()/u.took.Seconds())
	}
	if _, ok := c.svc.(metered); ok {
		c.set("in", float64(u.traffic.inMsgs)/u.took.Seconds())
		c.set("out", float64(u.traffic.outMsgs)/u.took.Seconds())
		c.set("bytes", float64(u.traffic.inBytes)/u.took.Seconds())
	}
	c.set("heap", float64(after-before)/float64(n))
	return nil
}

// checkHeld has another client than the holder ask for some of the locks, for a moment.
// That client must not get a lock that is held. It may get a lock that its holder extended
// too late.
func checkHeld(ctx context.Context, c *cell, cs []client, h *heldLocks) {
	const asked, moment = 32, 200 * time.Millisecond
	g := c.guard("hold")
	ctx, cancel := context.WithTimeout(ctx, moment)
	defer cancel()
	locks := h.all()
	var wg sync.WaitGroup
	for i := 0; i < len(locks); i += max(len(locks)/asked, 1) {
		k := locks[i]
		wg.Go(func() {
			if _, err := cs[(k.number+1)%len(cs)].lock(ctx, k.key()); err == nil && !k.late() {
				g.violated("the lock %s was given to a second client", k.key())
			}
		})
	}
	wg.Wait()
}

// heldLocks are locks that are held until the end.
type heldLocks struct {
	mu    sync.Mutex // guards locks, which only grows
	locks []*heldLock
}

type heldLock struct {
	hold
	number int
	asked  atomic.Int64 // when the last message that extended it was sent, in ns since 1970
}

func (k *heldLock) key() string { return holdKey(k.number) }

func holdKey(number int) string { return fmt.Sprintf("hold.%d", number) }

// late reports whether the lock may have expired because its holder did not extend it in
// time.
func (k *heldLock) late() bool {
	_, extended := k.hold.(extender)
	return extended && time.Since(time.Unix(0, k.asked.Load())) >= lease
}

func (h *heldLocks) add(number int, k hold, asked time.Time) {
	held := &heldLock{hold: k, number: number}
	held.asked.Store(asked.UnixNano())
	h.mu.Lock()
	defer h.mu.Unlock()
	h.locks = append(h.locks, held)
}

func (h *heldLocks) all() []*heldLock {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.locks
}

// takeMany acquires locks until there are enough, or time is over. Each has a key of its
// own. It returns an error if acquiring some locks failed for another reason than time.
func takeMany(ctx context.Context, c *cell, cs []client, h *heldLocks) error {
	ctx, cancel := context.WithTimeout(ctx, c.Limit)
	defer cancel()
	errs := make([]error, holdWorkers)
	var next atomic.Int64
	var wg sync.WaitGroup
	for w := range holdWorkers {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1) - 1)
				if i >= c.Locks {
					return
				}
				asked := time.Now()
				k, err := cs[i%len(cs)].lock(ctx, holdKey(i))
				switch {
				case err == nil:
					h.add(i, k, asked)
				case ctx.Err() == nil:
					errs[w] = err
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return firstLines(err)
	}
	return nil
}

// keepers is how many extensions may be in progress at once.
const keepers = 64

// keep extends the locks that their holder must extend, each every third of its lease,
// until ctx ends or the first of them is lost.
func (h *heldLocks) keep(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for w := range keepers {
		wg.Go(func() {
			for {
				round := time.Now()
				locks := h.all()
				for i := w; i < len(locks); i += keepers {
					if _, ok := locks[i].hold.(extender); !ok {
						return
					}
					if err := locks[i].extend(ctx); err != nil {
						if ctx.Err() == nil {
							cancel(fmt.Errorf("%w: %w", errLockLost, err))
						}
						return
					}
				}
				if pause(ctx, time.Until(round.Add(lease/3))) != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); errors.Is(err, errLockLost) {
		return err
	}
	return nil
}

func (k *heldLock) extend(ctx context.Context) error {
	if k.late() {
		return fmt.Errorf("its turn came after its lease of %v", lease)
	}
	asked := time.Now()
	err := k.hold.(extender).extend(ctx)
	if err == nil {
		k.asked.Store(asked.UnixNano())
	}
	return err
}

var errLockLost = errors.New("a lock was lost")

// use has the resources that were used in a period.
type use struct {
	took     time.Duration
	cpu      time.Duration
	cpuKnown bool
	traffic  traffic
}

// watch waits for settle, and then measures for d what is used.
func (c *cell) watch(ctx context.Context, settle, d time.Duration) (use, error) {
	if err := pause(ctx, settle); err != nil {
		return use{}, err
	}
	u0, err := c.used(ctx)
	if err != nil {
		return u0, err
	}
	start := time.Now()
	if err := pause(ctx, d); err != nil {
		return use{}, err
	}
	u1, err := c.used(ctx)
	return use{time.Since(start), u1.cpu - u0.cpu, u1.cpuKnown, u1.traffic.sub(u0.traffic)}, err
}

func (c *cell) used(ctx context.Context) (u use, err error) {
	u.cpu, u.cpuKnown = processCPU()
	if o, ok := c.svc.(outsider); ok {
		cpu, _, err := o.usage(ctx)
		if err != nil {
			return u, err
		}
		u.cpu += cpu
	}
	u.traffic, err = c.traffic()
	return u, err
}

// memory returns the live heap of this process, which clients, nodes and servers share,
// plus the memory of servers in other processes, in bytes.
func (c *cell) memory(ctx context.Context) (int64, error) {
	runtime.GC()
	runtime.GC() // the content of a sync.Pool survives the first collection
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	total := int64(m.HeapAlloc)
	if o, ok := c.svc.(outsider); ok {
		_, memory, err := o.usage(ctx)
		return total + memory, err
	}
	return total, nil
}
