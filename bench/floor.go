package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go"
)

// floorRival is what no quorum lock over NATS can be faster than: publish to n
// responders that only send back what they get, wait for a majority of answers,
// publish a release that nobody answers. It excludes nobody.
//
// Where a workload has all clients want one key, they take turns by a mutex of
// this process: a lock that calls the next waiter also needs one message to the
// nodes and a majority of answers from them, from one holder to the next.
func floorRival(n int, transport string) *rival {
	name := floorName(n, transport)
	return &rival{
		name: name, transport: transport, floor: name,
		start: func(ctx context.Context, s setup) (service, error) {
			f, err := startFleet(ctx, transport, false)
			if err != nil {
				return nil, err
			}
			fl := &floor{fleet: f, n: n, setup: s}
			if err := fl.start(); err != nil {
				return nil, errors.Join(err, fl.close())
			}
			return fl, nil
		},
	}
}

func floorName(n int, transport string) string {
	if transport == overTCP {
		return fmt.Sprintf("floor n=%d TCP", n)
	}
	return fmt.Sprintf("floor n=%d", n)
}

type floor struct {
	*fleet
	setup
	n     int
	conns []*nats.Conn
	turn  turns
	rw    sync.RWMutex // the turns of readers and writers; the workload has one key
}

func (f *floor) start() error {
	for i := range f.n {
		nc, err := f.local(i)
		if err != nil {
			return err
		}
		f.conns = append(f.conns, nc)
		if _, err := nc.Subscribe("floor.>", func(m *nats.Msg) {
			if m.Reply != "" {
				_ = nc.Publish(m.Reply, m.Data) // an answer less than a majority shows as an error at the client
			}
		}); err != nil {
			return err
		}
		if err := nc.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func (f *floor) close() error {
	for _, nc := range f.conns {
		nc.Close()
	}
	return f.fleet.close()
}

func (f *floor) connect(ctx context.Context) (client, error) {
	nc, err := f.fleet.connect()
	if err != nil {
		return nil, err
	}
	c := &floorClient{floor: f, nc: nc, inbox: nc.NewInbox(), waiting: map[uint64]*echo{}}
	if _, err := nc.Subscribe(c.inbox, c.receive); err != nil {
		nc.Close()
		return nil, err
	}
	// All must be heard once, through whatever routes there are, before the first
	// majority is worth measuring.
	err = poll(ctx, fmt.Sprintf("not all of %d responders are heard", f.n), func() (bool, error) {
		again, cancel := context.WithTimeout(ctx, connectTry)
		defer cancel()
		return c.ask(again, "ready", f.n) == nil, nil
	})
	if err != nil {
		nc.Close()
		return nil, err
	}
	return c, nil
}

type floorClient struct {
	*floor
	nc    *nats.Conn
	inbox string

	mu      sync.Mutex // guards what follows
	last    uint64
	waiting map[uint64]*echo
}

type echo struct {
	missing int
	done    chan struct{}
}

func (c *floorClient) ask(ctx context.Context, key string, need int) error {
	e := &echo{missing: need, done: make(chan struct{})}
	c.mu.Lock()
	c.last++
	id := c.last
	c.waiting[id] = e
	c.mu.Unlock()
	var body [8]byte
	err := c.nc.PublishRequest("floor."+key, c.inbox, binary.BigEndian.AppendUint64(body[:0], id))
	if err == nil {
		select {
		case <-e.done:
			return nil
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	c.mu.Lock()
	delete(c.waiting, id)
	c.mu.Unlock()
	return err
}

func (c *floorClient) receive(m *nats.Msg) {
	if len(m.Data) != 8 {
		return // the server says that nobody hears yet
	}
	id := binary.BigEndian.Uint64(m.Data)
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.waiting[id]
	if e == nil {
		return // one more than the majority
	}
	if e.missing--; e.missing == 0 {
		delete(c.waiting, id)
		close(e.done)
	}
}

func (c *floorClient) lock(ctx context.Context, key string) (hold, error) {
	h := &floorHold{c: c, key: key, done: func() {}}
	if c.turns {
		if err := c.turn.take(ctx, key); err != nil {
			return nil, err
		}
		c.rw.Lock()
		h.done = func() { c.rw.Unlock(); c.turn.give(key) }
	}
	return h.ask(ctx)
}

func (c *floorClient) rlock(ctx context.Context, key string) (hold, error) {
	h := &floorHold{c: c, key: key, done: func() {}}
	if c.turns {
		c.rw.RLock()
		h.done = c.rw.RUnlock
	}
	return h.ask(ctx)
}

func (c *floorClient) close() error {
	c.nc.Close()
	return nil
}

type floorHold struct {
	c    *floorClient
	key  string
	done func() // ends the turn
}

func (h *floorHold) ask(ctx context.Context) (hold, error) {
	if err := h.c.ask(ctx, h.key, h.c.n/2+1); err != nil {
		h.done()
		return nil, err
	}
	return h, nil
}

func (h *floorHold) token() uint64 { return 0 }

func (h *floorHold) unlock(context.Context) error {
	defer h.done()
	return h.c.nc.Publish("floor."+h.key, nil)
}
