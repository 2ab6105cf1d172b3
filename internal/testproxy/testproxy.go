// Package testproxy is a TCP proxy that injects faults: it holds bytes back and delivers
// them late, in one direction or in both, delays them, and breaks connections. Tests put it
// on the routes between servers and on the connections of clients.
package testproxy

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Direction is a set of the two directions through a proxy.
type Direction uint8

const (
	Out  Direction    = 1 << iota // from the client of the proxy to the target
	Back                          // from the target to the client
	Both = Out | Back             // both directions
)

// Proxy forwards the connections made to its address to a target. Its methods are safe for
// concurrent use. A fault affects existing connections and new ones.
type Proxy struct {
	listener net.Listener
	work     sync.WaitGroup

	mu      sync.Mutex // guards what follows
	rand    *rand.Rand
	target  string // empty: new connections are closed at once
	refuse  bool
	ways    [2]way // Out, Back
	changed chan struct{}
	conns   map[*pair]struct{}
	closed  bool
}

// way has the faults of one direction.
type way struct {
	blocked       bool
	delay, jitter time.Duration
}

// pair is a connection to the proxy and the connection to the target that forwards it.
type pair struct {
	near, far net.Conn
	once      sync.Once
	gone      chan struct{}
}

// New returns a proxy that listens on a free port of 127.0.0.1. The seed is for the jitter
// of delays. The target may be empty, and be set later.
func New(target string, seed uint64) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("testproxy: %w", err)
	}
	p := &Proxy{
		listener: l, target: target, rand: rand.New(rand.NewPCG(seed, seed)),
		changed: make(chan struct{}), conns: map[*pair]struct{}{},
	}
	p.work.Go(p.accept)
	return p, nil
}

// Addr returns the address that the proxy listens on, as host:port.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// SetTarget sets the target of connections that are made from now on.
func (p *Proxy) SetTarget(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = addr
}

// Block makes a direction a black hole: connections stay open, but nothing passes. Bytes
// that are sent into it are not lost: they arrive after Heal, if their connection still
// exists.
func (p *Proxy) Block(d Direction) { p.change(d, func(w *way) { w.blocked = true }) }

// Delay delays all bytes of a direction by delay and up to jitter more. The order of the
// bytes does not change.
func (p *Proxy) Delay(d Direction, delay, jitter time.Duration) {
	p.change(d, func(w *way) { w.delay, w.jitter = delay, jitter })
}

// Reset breaks all existing connections: both ends get a reset, and bytes in transit are
// lost. New connections can be made at once.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.close()
	}
}

// Cut does what Reset does, and then breaks new connections as soon as they are made.
func (p *Proxy) Cut() {
	p.mu.Lock()
	p.refuse = true
	p.mu.Unlock()
	p.Reset()
}

// Heal ends all faults. It delivers what a black hole holds.
func (p *Proxy) Heal() {
	p.mu.Lock()
	p.refuse = false
	p.mu.Unlock()
	p.change(Both, func(w *way) { *w = way{} })
}

// Conns returns the number of existing connections.
func (p *Proxy) Conns() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

// Close breaks all connections, stops listening and waits for all goroutines of the proxy.
// Further calls do nothing.
func (p *Proxy) Close() error {
	p.mu.Lock()
	closed := p.closed
	p.closed = true
	p.mu.Unlock()
	if closed {
		return nil
	}
	err := p.listener.Close()
	p.Reset()
	p.work.Wait()
	return err
}

func (p *Proxy) change(d Direction, f func(*way)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.ways {
		if d&(1<<i) != 0 {
			f(&p.ways[i])
		}
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Proxy) accept() {
	for {
		near, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the connection ended before it was accepted
		}
		p.work.Go(func() { p.forward(near) })
	}
}

func (p *Proxy) forward(near net.Conn) {
	p.mu.Lock()
	target, refuse := p.target, p.refuse
	p.mu.Unlock()
	c := &pair{near: near, gone: make(chan struct{})}
	if refuse || target == "" {
		c.close()
		return
	}
	far, err := net.DialTimeout("tcp", target, 5*time.Second)
	c.far = far
	if err != nil {
		c.far = nil
		c.close()
		return
	}
	p.mu.Lock()
	if p.refuse || p.closed {
		p.mu.Unlock()
		c.close()
		return
	}
	p.conns[c] = struct{}{}
	p.mu.Unlock()

	var out sync.WaitGroup
	out.Go(func() { p.pump(c, 0, near, far) })
	p.pump(c, 1, far, near)
	out.Wait()
	c.end(false)
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

// close ends both connections with a reset, so that neither end mistakes it for an orderly
// end.
func (c *pair) close() { c.end(true) }

func (c *pair) end(reset bool) {
	c.once.Do(func() {
		close(c.gone)
		for _, conn := range []net.Conn{c.near, c.far} {
			if t, ok := conn.(*net.TCPConn); ok {
				if reset {
					_ = t.SetLinger(0)
				}
				_ = t.Close()
			}
		}
	})
}

// chunk is a piece of data in transit, and the time when it is due.
type chunk struct {
	data []byte
	due  time.Time
}

// pump carries the bytes of one direction. The reader stamps what it reads with the current
// delay; the writer waits until a chunk is due and the direction is open. The number of
// bytes between the two is bounded, so that a sender into a black hole sees its window
// close, as with a real one. An orderly end passes like the bytes before it.
func (p *Proxy) pump(c *pair, d int, from, to net.Conn) {
	chunks := make(chan chunk, 256)
	p.work.Go(func() {
		defer close(chunks)
		for {
			buf := make([]byte, 4096)
			n, err := from.Read(buf)
			if n > 0 || err == io.EOF {
				select {
				case chunks <- chunk{buf[:n], p.due(d)}: // an empty chunk is the end
				case <-c.gone:
					return
				}
			}
			if err == io.EOF {
				return
			}
			if err != nil {
				c.close()
				return
			}
		}
	})
	for k := range chunks {
		if !p.pass(c, d, k.due) {
			break
		}
		if len(k.data) == 0 {
			_ = to.(*net.TCPConn).CloseWrite()
			return
		}
		if _, err := to.Write(k.data); err != nil {
			break
		}
	}
	c.close()
}

func (p *Proxy) due(d int) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.ways[d]
	if w.jitter > 0 {
		w.delay += time.Duration(p.rand.Int64N(int64(w.jitter)))
	}
	return time.Now().Add(w.delay)
}

// pass waits until a chunk may be delivered. It returns false if the connection ends before
// that.
func (p *Proxy) pass(c *pair, d int, due time.Time) bool {
	if wait := time.Until(due); wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-c.gone:
			return false
		}
	}
	for {
		p.mu.Lock()
		blocked, changed := p.ways[d].blocked, p.changed
		p.mu.Unlock()
		if !blocked {
			return true
		}
		select {
		case <-changed:
		case <-c.gone:
			return false
		}
	}
}
