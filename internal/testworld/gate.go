package testworld

import (
	"net"
	"sync"
	"testing"
)

// gate is the way of a connection to the server. It can be shut: then what is written
// waits, as for a peer whose window is full, and what comes is not delivered; or the
// server behind it falls silent: then what is written is lost.
type gate struct {
	net.Conn
	closed chan struct{}
	once   sync.Once

	mu     sync.Mutex    // guards what follows
	shut   chan struct{} // nil: it is open
	stuck  chan struct{} // closed by the first write that waits
	silent bool
}

func (g *gate) Close() error {
	g.once.Do(func() { close(g.closed) })
	return g.Conn.Close()
}

func (g *gate) Write(b []byte) (int, error) {
	g.mu.Lock()
	shut, silent := g.shut, g.silent
	if shut != nil && g.stuck != nil {
		close(g.stuck)
		g.stuck = nil
	}
	g.mu.Unlock()
	if silent {
		return len(b), nil
	}
	g.wait(shut)
	return g.Conn.Write(b)
}

func (g *gate) Read(b []byte) (int, error) {
	n, err := g.Conn.Read(b)
	g.mu.Lock()
	shut, silent := g.shut, g.silent
	g.mu.Unlock()
	if silent {
		<-g.closed
		return 0, net.ErrClosed
	}
	g.wait(shut)
	return n, err
}

func (g *gate) wait(shut <-chan struct{}) {
	if shut != nil {
		select {
		case <-shut:
		case <-g.closed:
		}
	}
}

// Shut lets the connection stand still until the function that it returns is called:
// a call on it is in a write that does not end, with the connection's mutex. In a
// bubble time would stand still as well.
func (l *Link) Shut(t testing.TB) (open func()) {
	l.mu.Lock()
	g := l.conns[len(l.conns)-1]
	l.mu.Unlock()
	shut, stuck := make(chan struct{}), make(chan struct{})
	g.mu.Lock()
	g.shut, g.stuck = shut, stuck
	g.mu.Unlock()
	published := make(chan struct{})
	go func() {
		defer close(published)
		_ = l.Publish("other.things", make([]byte, 512<<10)) // more than the client library's buffer holds
	}()
	<-stuck
	open = sync.OnceFunc(func() {
		g.mu.Lock()
		g.shut = nil
		g.mu.Unlock()
		close(shut)
		<-published
	})
	t.Cleanup(open)
	return open
}

// Hush lets the server at the other end of the connection fall silent: it neither
// answers nor closes. A new connection leads to another.
func (l *Link) Hush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, g := range l.conns {
		g.mu.Lock()
		g.silent = true
		g.mu.Unlock()
	}
}

// IsSilent reports whether the connection that was made last leads to a server that fell
// silent: see Hush.
func (l *Link) IsSilent() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.conns[len(l.conns)-1]
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.silent
}
