package testworld

import (
	"errors"
	"net"
	"sync"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// Link is a connection inside the process that can be cut.
type Link struct {
	*nats.Conn
	srv *server.Server

	mu    sync.Mutex // guards the fields below
	isCut bool
	conns []*gate
}

// Connect makes a connection to a server and closes it when the test ends. It reconnects
// after ReconnectWait, as often as it takes.
func Connect(t testing.TB, srv *server.Server, opts ...nats.Option) *Link {
	t.Helper()
	l := &Link{srv: srv}
	nc, err := nats.Connect("", append([]nats.Option{
		nats.InProcessServer(l), nats.MaxReconnects(-1), nats.ReconnectWait(ReconnectWait), nats.ReconnectJitter(0, 0),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), // the default prints
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	l.Conn = nc
	t.Cleanup(nc.Close)
	return l
}

// InProcessConn connects nats.go to the server, unless the link is cut.
func (l *Link) InProcessConn() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isCut {
		return nil, errors.New("cut by the test")
	}
	c, err := l.srv.InProcessConn()
	if err != nil {
		return nil, err
	}
	g := &gate{Conn: c, closed: make(chan struct{})}
	l.conns = append(l.conns, g)
	return g, nil
}

// Cut breaks the connection and prevents reconnects.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isCut = true
	for _, c := range l.conns {
		_ = c.Close()
	}
	l.conns = nil
}

// Mend allows reconnects again. The connection reconnects within ReconnectWait.
func (l *Link) Mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isCut = false
}
