package main

import (
	"context"
	"fmt"
	"time"
)

// alone is one client that locks and unlocks a key that no other client uses.
var alone = &workload{
	name:   "alone",
	extent: forDuration,
	title:  "one client, one goroutine; lock and unlock of a key that nobody else wants",
	columns: []column{
		{key: "p50", title: "p50", unit: nanoseconds, ratio: true},
		{key: "p99", title: "p99", unit: nanoseconds, ratio: true},
	},
	run: func(ctx context.Context, c *cell) error {
		clients, err := c.connect(ctx, 1)
		if err != nil {
			return err
		}
		g := c.guard("alone")
		r, err := c.load(ctx, 1, func(ctx context.Context, _, _ int) (time.Duration, error) {
			_, all, err := once(ctx, clients[0], g)
			return all, err
		})
		if err != nil {
			return err
		}
		p := percentiles(r.all(), 50, 99)
		c.set("p50", p[0])
		c.set("p99", p[1])
		return nil
	},
}

const (
	spreadWorkers = 64
	spreadKeys    = 1000
	spreadClients = 8
	ownKeys       = 16 // of each worker
)

var manyColumns = []column{
	{key: "rate", title: "locks/s", unit: perSecond, ratio: true, more: true},
	{key: "p50", title: "p50", unit: nanoseconds},
	{key: "p99", title: "p99", unit: nanoseconds},
	{key: "in", title: "messages in", unit: count, counted: true},
	{key: "out", title: "messages out", unit: count, counted: true},
}

// spread is many clients that rarely lock the same key at the same time. Usually another
// client has locked the key before, and now and then two clients ask for it at once.
var spread = &workload{
	name:    "spread",
	extent:  forDuration,
	title:   fmt.Sprintf("%d goroutines of %d clients; lock and unlock of one of %s keys each", spreadWorkers, spreadClients, thousands(spreadKeys)),
	columns: manyColumns,
	run: func(ctx context.Context, c *cell) error {
		return manyKeys(ctx, c, spreadKeys, func(w, i int) int {
			// The stride shares no factor with the number of keys: every worker uses every key, and
			// no two workers use the same order.
			return (w*7919 + i*(2*w+7)) % spreadKeys
		})
	},
}

// own is as many clients that never lock the same key. Each key is locked repeatedly by one
// client only.
var own = &workload{
	name:   "own",
	extent: forDuration,
	title: fmt.Sprintf("%d goroutines of %d clients; each locks and unlocks %d keys that no other goroutine wants, in turn",
		spreadWorkers, spreadClients, ownKeys),
	columns: manyColumns,
	run: func(ctx context.Context, c *cell) error {
		return manyKeys(ctx, c, spreadWorkers*ownKeys, func(w, i int) int { return w*ownKeys + i%ownKeys })
	},
}

// manyKeys has each worker lock the keys that which returns, one after the other.
func manyKeys(ctx context.Context, c *cell, keys int, which func(worker, i int) int) error {
	clients, err := c.connect(ctx, spreadClients)
	if err != nil {
		return err
	}
	guards := make([]*guard, keys)
	for i := range guards {
		guards[i] = c.guard(fmt.Sprintf("many.%d", i))
	}
	r, err := c.load(ctx, spreadWorkers, func(ctx context.Context, w, i int) (time.Duration, error) {
		_, all, err := once(ctx, clients[w%spreadClients], guards[which(w, i)])
		return all, err
	})
	if err != nil {
		return err
	}
	p := percentiles(r.all(), 50, 99)
	c.set("rate", r.rate())
	c.set("p50", p[0])
	c.set("p99", p[1])
	c.perHandover(r.traffic, r.counted, r.ops())
	return nil
}
