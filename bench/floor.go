package main

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
)

// floorRival is a lower bound of the cost of a quorum lock over NATS. A client publishes a
// request to n responders that answer without a decision, waits for a majority of answers,
// and publishes a release that nobody answers. It excludes nobody.
//
// It transmits what a lock must transmit: bodies are as long as qlock's, and each names the
// claim that it is about. A responder reads the claim from the request and writes it into
// its answer, and the client reads it from there. The claim is at a fixed position, so that
// this costs as little as possible. The rest of the body is constant, and nobody reads it.
//
// If a workload has all clients lock one key, they take turns by a mutex of this process: a
// lock that notifies the next waiter also needs one message to the nodes and a majority of
// answers from them, from one holder to the next.
func floorRival(n int, transport string) *rival {
	name := floorName(n, transport)
	return &rival{
		name: name, transport: transport, floor: name,
		start: func(ctx context.Context, s setup) (service, error) {
			f, err := startFleet(ctx, transport, serversFor(n, transport), false)
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
			claim, ok := readClaim(m.Data)
			if ok && m.Reply != "" {
				// If too few answers for a majority arrive, the client reports an error.
				_ = nc.Publish(m.Reply, floorBody(claim, floorAnswer))
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
	c := &floorClient{floor: f, nc: nc, inbox: nc.NewInbox(), instance: uuid.New(), waiting: map[uint64]*echo{}}
	if _, err := nc.Subscribe(c.inbox, c.receive); err != nil {
		nc.Close()
		return nil, err
	}
	// Before the first measurement, all responders must have answered once, through all routes
	// in between.
	err = poll(ctx, fmt.Sprintf("not all of %d responders are heard", f.n), func() (bool, error) {
		again, cancel := context.WithTimeout(ctx, connectTry)
		defer cancel()
		_, err := c.ask(again, "ready", f.n)
		return err == nil, nil
	})
	if err != nil {
		nc.Close()
		return nil, err
	}
	return c, nil
}

type floorClient struct {
	*floor
	nc       *nats.Conn
	inbox    string
	instance uuid.UUID

	mu      sync.Mutex // guards what follows
	last    uint64
	waiting map[uint64]*echo
}

// echo is a request in progress.
type echo struct {
	missing int
	done    chan struct{}
}

// floorClaim identifies a client and one of its requests.
type floorClaim struct {
	instance uuid.UUID
	seq      uint64
}

// A body of the floor consists of its claim as text, as in qlock's bodies, and of as many
// further bytes as they have.
const (
	claimBefore, claimBetween, claimAfter = `{"instance":"`, `","seq":`, `,`
	instanceLen, seqLen                   = 36, 16 // text of a UUID, and a number in hexadecimal

	claimLen = len(claimBefore) + instanceLen + len(claimBetween) + seqLen + len(claimAfter)

	floorRequest = `"beat":5250000,"mode":"exclusive","at":1750000000000000,"ttl_ms":10000,"digest":"df3f45630dd9c8c1"}`
	floorAnswer  = `"answer":"granted","node":"n1","incarnation":"5d0c2f7a-1be7-4bb0-8a3e-2f6f6a8f9b01",` +
		`"digest":"df3f45630dd9c8c1","client":"bench-1","beat":5250000,"fence":1750000000000000}`
	floorRelease = `"now":1750000004200000}`
)

func floorBody(c floorClaim, rest string) []byte {
	b := make([]byte, 0, claimLen+len(rest))
	b = append(b, claimBefore...)
	b = b[:len(b)+instanceLen]
	text := b[len(b)-instanceLen:]
	hex.Encode(text[:8], c.instance[:4])
	for i, at := range [...]int{9, 14, 19} {
		text[at-1] = '-'
		hex.Encode(text[at:at+4], c.instance[4+2*i:6+2*i])
	}
	text[23] = '-'
	hex.Encode(text[24:], c.instance[10:])
	b = append(b, claimBetween...)
	var seq [8]byte
	binary.BigEndian.PutUint64(seq[:], c.seq)
	b = hex.AppendEncode(b, seq[:])
	b = append(b, claimAfter...)
	return append(b, rest...)
}

// readClaim reads the claim of a body. It reports false for other messages, such as the
// server's reply that a request has no subscribers.
func readClaim(b []byte) (c floorClaim, ok bool) {
	if len(b) < claimLen || string(b[:len(claimBefore)]) != claimBefore {
		return c, false
	}
	at := len(claimBefore)
	var err error
	if c.instance, err = uuid.ParseBytes(b[at : at+instanceLen]); err != nil {
		return c, false
	}
	at += instanceLen + len(claimBetween)
	var seq [8]byte
	if _, err = hex.Decode(seq[:], b[at:at+seqLen]); err != nil {
		return c, false
	}
	c.seq = binary.BigEndian.Uint64(seq[:])
	return c, true
}

func (c *floorClient) ask(ctx context.Context, key string, need int) (floorClaim, error) {
	e := &echo{missing: need, done: make(chan struct{})}
	c.mu.Lock()
	c.last++
	claim := floorClaim{c.instance, c.last}
	c.waiting[claim.seq] = e
	c.mu.Unlock()
	err := c.nc.PublishRequest("floor."+key, c.inbox, floorBody(claim, floorRequest))
	if err == nil {
		select {
		case <-e.done:
			return claim, nil
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	c.mu.Lock()
	delete(c.waiting, claim.seq)
	c.mu.Unlock()
	return claim, err
}

func (c *floorClient) receive(m *nats.Msg) {
	claim, ok := readClaim(m.Data)
	if !ok || claim.instance != c.instance {
		return // the server says that there are no subscribers yet
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.waiting[claim.seq]
	if e == nil {
		return // an answer beyond the majority
	}
	if e.missing--; e.missing == 0 {
		delete(c.waiting, claim.seq)
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
	c     *floorClient
	key   string
	claim floorClaim
	done  func() // ends the turn
}

func (h *floorHold) ask(ctx context.Context) (hold, error) {
	var err error
	if h.claim, err = h.c.ask(ctx, h.key, h.c.n/2+1); err != nil {
		h.done()
		return nil, err
	}
	return h, nil
}

func (h *floorHold) token() uint64 { return 0 }

func (h *floorHold) unlock(context.Context) error {
	defer h.done()
	return h.c.nc.Publish("floor."+h.key, floorBody(h.claim, floorRelease))
}
