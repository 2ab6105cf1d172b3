package main

import (
	"context"
	"fmt"
	"time"
)

// alone is one client that locks and unlocks a key that nobody else wants.
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
)

// spread is many who hardly ever want the same.
var spread = &workload{
	name:   "spread",
	extent: forDuration,
	title:  fmt.Sprintf("%d goroutines of %d clients; lock and unlock of one of %s keys each", spreadWorkers, spreadClients, thousands(spreadKeys)),
	columns: []column{
		{key: "rate", title: "locks/s", unit: perSecond, ratio: true, more: true},
		{key: "p50", title: "p50", unit: nanoseconds},
		{key: "p99", title: "p99", unit: nanoseconds},
		{key: "in", title: "messages in", unit: count, counted: true},
		{key: "out", title: "messages out", unit: count, counted: true},
	},
	run: func(ctx context.Context, c *cell) error {
		clients, err := c.connect(ctx, spreadClients)
		if err != nil {
			return err
		}
		var guards [spreadKeys]*guard
		for i := range guards {
			guards[i] = c.guard(fmt.Sprintf("spread.%d", i))
		}
		r, err := c.load(ctx, spreadWorkers, func(ctx context.Context, w, i int) (time.Duration, error) {
			// A stride that shares no factor with the number of keys: every worker comes
			// to every key, and no two go together.
			key := (w*7919 + i*(2*w+7)) % spreadKeys
			_, all, err := once(ctx, clients[w%spreadClients], guards[key])
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
	},
}
