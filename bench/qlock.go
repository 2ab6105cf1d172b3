package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

// connectTry is how long one attempt to reach a peer may take, where a message may have
// been sent before its subscribers were known.
const connectTry = 200 * time.Millisecond

// qlockRival is qlock with n nodes. Without opts it has the default options, with which
// each lock publishes two events for observers.
func qlockRival(n int, transport, variant string, opts ...qlock.Option) *rival {
	name := fmt.Sprintf("qlock n=%d", n)
	if transport == overTCP {
		name += " TCP"
	}
	if variant != "" {
		name += " " + variant
	}
	return &rival{
		name: name, transport: transport, floor: floorName(n, transport),
		start: func(ctx context.Context, _ setup) (service, error) {
			f, err := startFleet(ctx, transport, serversFor(n, transport), false)
			if err != nil {
				return nil, err
			}
			q := &qlockService{fleet: f, opts: opts}
			if err := q.start(ctx, n); err != nil {
				return nil, errors.Join(err, q.close())
			}
			return q, nil
		},
	}
}

type qlockService struct {
	*fleet
	opts  []qlock.Option
	conns []*nats.Conn
	nodes []*qlock.Node
	count atomic.Int64
}

func (q *qlockService) start(ctx context.Context, n int) error {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("n%d", i+1))
	}
	nodes, errs := make([]*qlock.Node, n), make([]error, n)
	var wg sync.WaitGroup
	for i, name := range names {
		nc, err := q.local(i)
		if err != nil {
			return err
		}
		q.conns = append(q.conns, nc)
		cfg := qlock.NodeConfig{
			Name: name, Nodes: names, StateDir: filepath.Join(q.dir, name),
			ProbeWait: 100 * time.Millisecond, // enough on loopback
		}
		if err := qlock.Bootstrap(cfg); err != nil {
			return err
		}
		wg.Go(func() {
			if nodes[i], errs[i] = qlock.StartNode(ctx, nc, cfg); errs[i] == nil {
				errs[i] = nodes[i].WaitReady(ctx)
			}
		})
	}
	wg.Wait()
	for _, node := range nodes {
		if node != nil {
			q.nodes = append(q.nodes, node)
		}
	}
	return errors.Join(errs...)
}

func (q *qlockService) close() error {
	var errs []error
	for _, n := range q.nodes {
		errs = append(errs, n.Close())
	}
	for _, nc := range q.conns {
		nc.Close()
	}
	return errors.Join(append(errs, q.fleet.close())...)
}

func (q *qlockService) connect(ctx context.Context) (client, error) {
	nc, err := q.fleet.connect()
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("bench-%d", q.count.Add(1))
	l, err := qlock.New(ctx, nc, append([]qlock.Option{qlock.WithName(name), qlock.WithLease(lease)}, q.opts...)...)
	if err != nil {
		nc.Close()
		return nil, err
	}
	return &qlockClient{l, nc}, nil
}

type qlockClient struct {
	locker *qlock.Locker
	nc     *nats.Conn
}

func (c *qlockClient) lock(ctx context.Context, key string) (hold, error) {
	k, err := c.locker.Lock(ctx, key)
	if err != nil {
		return nil, err
	}
	return (*qlockHold)(k), nil
}

func (c *qlockClient) rlock(ctx context.Context, key string) (hold, error) {
	k, err := c.locker.RLock(ctx, key)
	if err != nil {
		return nil, err
	}
	return (*qlockHold)(k), nil
}

// mutex returns a sync.Locker for key.
func (c *qlockClient) mutex(key string) sync.Locker { return c.locker.RWMutex(key) }

func (c *qlockClient) close() error {
	err := c.locker.Close()
	c.nc.Close()
	return err
}

type qlockHold qlock.Lock

func (h *qlockHold) token() uint64 { return (*qlock.Lock)(h).Token() }

func (h *qlockHold) unlock(ctx context.Context) error { return (*qlock.Lock)(h).Unlock(ctx) }
