// Package testproxy is a TCP proxy that harms what passes through it: it holds
// bytes back and lets them go late, in one direction or in both, slows them, and
// breaks connections. Tests put it on the routes between servers and on the
// connections of clients.
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

// Direction is a set of the two ways through a proxy.
type Direction uint8

const (
	Out  Direction = 1 << iota // from who dialled the proxy to the target
	Back                       // from the target to who dialled
	Both = Out | Back
)

// Proxy forwards the connections made to its address to a target. Its methods
// may be called from several goroutines. A fault counts for the connections that
// stand and for those that come.
type Proxy struct {
	listener net.Listener
	work     sync.WaitGroup

	mu      sync.Mutex // guards what follows
	rand    *rand.Rand
	target  string // empty: connections are closed as soon as they come
	refuse  bool
	ways    [2]way // Out, Back
	changed chan struct{}
	conns   map[*pair]struct{}
	closed  bool
}

// way is what is wrong with one direction.
type way struct {
	blocked       bool
	delay, jitter time.Duration
}

// pair is a connection to the proxy and the one that it was forwarded by.
type pair struct {
	near, far net.Conn
	once      sync.Once
	gone      chan struct{}
}

// New listens on a free port of 127.0.0.1. The seed is for the jitter of delays.
// The target may be empty, and be set when it is known.
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

// Addr is where the proxy listens, as host:port.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// SetTarget sets where connections that come from now on are forwarded to.
func (p *Proxy) SetTarget(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = addr
}

// Block makes a black hole of a direction: connections stay open, and nothing
// passes. What was sent into it is not lost: it arrives, late, after Heal, if its
// connection lives that long.
func (p *Proxy) Block(d Direction) { p.change(d, func(w *way) { w.blocked = true }) }

// Delay holds all bytes of a direction back for delay and up to jitter more. The
// order of bytes stays.
func (p *Proxy) Delay(d Direction, delay, jitter time.Duration) {
	p.change(d, func(w *way) { w.delay, w.jitter = delay, jitter })
}

// Reset breaks all connections that stand: both ends get a reset, and what was on
// the way is lost. New ones may be made at once.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.close()
	}
}

// Cut is Reset, after which new connections are broken as soon as they come.
func (p *Proxy) Cut() {
	p.mu.Lock()
	p.refuse = true
	p.mu.Unlock()
	p.Reset()
}

// Heal ends all faults. What a black hole holds is delivered now.
func (p *Proxy) Heal() {
	p.mu.Lock()
	p.refuse = false
	p.mu.Unlock()
	p.change(Both, func(w *way) { *w = way{} })
}

// Conns is the number of connections that stand.
func (p *Proxy) Conns() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

// Close breaks all connections, stops listening and waits for all that the proxy
// started. Calling it again does nothing.
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
			continue // a connection that was gone before it was taken
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

// close ends both connections with a reset, so that neither end takes it for an
// orderly end.
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

// chunk is bytes on their way, and when they are due.
type chunk struct {
	data []byte
	due  time.Time
}

// pump carries the bytes of one direction. The reader stamps what it reads with
// the delay of that moment; the writer waits until it is due, and until the
// direction is open. The bytes between the two are bounded, so that a sender into
// a black hole feels its window close, as it would in a real one. An orderly end
// passes like the bytes before it.
func (p *Proxy) pump(c *pair, d int, from, to net.Conn) {
	chunks := make(chan chunk, 256)
	p.work.Go(func() {
		defer close(chunks)
		for {
			buf := make([]byte, 4096)
			n, err := from.Read(buf)
			if n > 0 || err == io.EOF {
				select {
				case chunks <- chunk{buf[:n], p.due(d)}: // an empty one is the end
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

// pass waits until a chunk may go on, and reports false if its connection ended
// before that.
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
