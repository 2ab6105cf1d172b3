package gateway

import (
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// NewServer is an http.Server for a Gateway, with the limits of time and size that a handler
// cannot set. It has no WriteTimeout, because requests may wait.
func NewServer(g *Gateway) *http.Server {
	return &http.Server{
		Handler: g, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: 250},
		ErrorLog: slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
}

// LimitListener closes connections at once that are more than total, or more than perAddress
// from one address. All addresses of an IPv6 network (/64) count as one.
func LimitListener(l net.Listener, total, perAddress int) net.Listener {
	return &limitListener{Listener: l, total: total, perAddress: perAddress, by: map[string]int{}}
}

type limitListener struct {
	net.Listener
	total, perAddress int

	mu  sync.Mutex // guards what follows
	all int
	by  map[string]int
}

func (l *limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		host := callerOf(c.RemoteAddr().String())
		l.mu.Lock()
		fits := l.all < l.total && l.by[host] < l.perAddress
		if fits {
			l.all++
			l.by[host]++
		}
		l.mu.Unlock()
		if fits {
			return &limitedConn{Conn: c, leave: sync.OnceFunc(func() { l.leave(host) })}, nil
		}
		_ = c.Close()
	}
}

func (l *limitListener) leave(host string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.by[host]--; l.by[host] == 0 {
		delete(l.by, host)
	}
}

type limitedConn struct {
	net.Conn
	leave func()
}

func (c *limitedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}
