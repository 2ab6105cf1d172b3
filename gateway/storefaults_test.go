package gateway

import (
	"bytes"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// lossy is the way to a server that a test can break in the middle of a write: at the message that
// does it. Nothing closes the connection, so the gateway waits for an answer.
type lossy struct {
	srv *server.Server

	mu       sync.Mutex // guards what follows
	conns    []net.Conn
	at       []byte // when this is sent, the way breaks
	requests bool   // it is lost too, not the answers alone
	broken   bool
}

type lossyConn struct {
	net.Conn
	l *lossy
}

func (l *lossy) InProcessConn() (net.Conn, error) {
	c, err := l.srv.InProcessConn()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = append(l.conns, c)
	return &lossyConn{c, l}, nil
}

func (c *lossyConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		c.l.mu.Lock()
		lost := c.l.broken
		c.l.mu.Unlock()
		if err != nil || !lost {
			return n, err
		}
	}
}

func (c *lossyConn) Write(b []byte) (int, error) {
	c.l.mu.Lock()
	if c.l.at != nil && bytes.Contains(b, c.l.at) {
		c.l.broken = true
	}
	lost := c.l.broken && c.l.requests
	c.l.mu.Unlock()
	if lost {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// breakAt breaks the way when a message with this text is sent.
func (l *lossy) breakAt(text string, requests bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at, l.requests = []byte(text), requests
}

// mend lets the gateway reconnect. It reports whether the way was broken.
func (l *lossy) mend() (was bool) {
	l.mu.Lock()
	was, l.broken, l.at = l.broken, false, nil
	conns := l.conns
	l.conns = nil
	l.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
	time.Sleep(time.Second) // in which it reconnects
	return was
}

// The server is lost in the middle of a write: before it has the write, or before its answer
// arrives. The gateway says that it does not know the outcome, or that nothing was written, and
// then nothing was. A repetition with the same once gets the first answer if it was done, and does
// it otherwise: at every gateway, and whether or not the lease is still held.
func TestServerLostInAWrite(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newStoreWorld(t)
		l := &lossy{srv: w.srv}
		g := w.gateway(func(c *Config) { c.Conn = w.connect(nats.InProcessServer(l)).Conn })
		other := w.gateway(func(c *Config) { c.Client, c.Alone = "other", true })
		const at = "/v1/stores/orders/"
		for _, requests := range []bool{false, true} {
			lost := map[bool]string{false: "-answer", true: "-request"}[requests]
			// failed checks an answer, and reports whether it says that nothing was written.
			failed := func(r *reply) (nothing bool) {
				t.Helper()
				if !l.mend() {
					t.Fatalf("the write did not meet the fault: %s", r)
				}
				nothing = r.fault.Kind() == "store-unreachable"
				if !nothing && r.fault.Kind() != "unknown-outcome" || nothing && !requests {
					t.Errorf("%s: %s", lost, r)
				}
				return nothing
			}
			lease := func(name string) string {
				t.Helper()
				id := uuid.NewString()
				ask(t, g, "PUT", "/v1/leases/"+id, `{"name":"`+name+`","lease":"25s"}`).want(t, 201, "")
				return id
			}

			key := "put" + lost
			id := lease(key)
			l.breakAt("$KV.orders."+key, requests)
			failed(ask(t, g, "PUT", at+"keys/"+key, "x", "Qlock-Lease", id))
			if requests {
				ask(t, other, "GET", at+"keys/"+key, "").want(t, 404, "no-key")
			} else if r := ask(t, other, "GET", at+"keys/"+key, "").want(t, 200, ""); string(r.body) != "x" {
				t.Errorf("%s", r)
			}
			ask(t, g, "DELETE", "/v1/leases/"+id, "").want(t, 204, "")

			for _, kind := range []string{"held", "lock"} {
				name := kind + lost
				body := `{"once":"` + name + `","ops":[{"op":"add","key":"` + name + `","by":7}],`
				if kind == "held" {
					body += `"lease":"` + lease(name) + `"}`
				} else {
					body += `"lock":{"name":"` + name + `","wait":"5s"}}`
				}
				l.breakAt("Nats-Batch-Commit", requests)
				failed(ask(t, g, "POST", at+"transactions", body))
				time.Sleep(30 * time.Second) // the lease is over, whatever it was
				if !requests {
					body = strings.Replace(body, `"by":7`, `"by":7 `, 1) // the same in other bytes
					for _, g := range []*Gateway{g, other} {
						r := read[TransactionAnswer](t, ask(t, g, "POST", at+"transactions", body).want(t, 200, ""))
						if !r.Duplicate || *r.Results[0].Number != 7 {
							t.Errorf("%s: %+v", name, r)
						}
					}
					continue
				}
				if kind == "held" { // it was not done, and the lease is over
					ask(t, g, "POST", at+"transactions", body).want(t, 410, "gone")
					ask(t, other, "GET", at+"keys/"+name, "").want(t, 404, "no-key")
					continue
				}
				for _, repeated := range []bool{false, true} {
					r := read[TransactionAnswer](t, ask(t, g, "POST", at+"transactions", body).want(t, 200, ""))
					if r.Duplicate != repeated || *r.Results[0].Number != 7 {
						t.Errorf("%s: %+v", name, r)
					}
				}
			}
		}
	})
}
