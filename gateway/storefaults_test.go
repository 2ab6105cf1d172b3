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

// A gateway loses its connection, and with it the answer of the owner of a lease. What may be sent
// twice is sent again, and a caller whose write may have been done is told so while its lease lives.
func TestAnswerOfOwnerLost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newStoreWorld(t)
		l := &lossy{srv: w.srv}
		owner := w.gateway(func(c *Config) { c.Client = "owner" })
		g := w.gateway(func(c *Config) { c.Conn = w.connect(nats.InProcessServer(l)).Conn })
		time.Sleep(time.Second)
		const at = "/v1/stores/orders/keys/"
		held := ask(t, owner, "POST", "/v1/locks/x", `{"lease":"25s"}`).want(t, 201, "").lease.ID
		// lost sends a request whose answer is lost, or the request with it, and returns what the
		// caller is told after the reconnect, and how long that took.
		lost := func(requests bool, method, path, body string, header ...string) (*reply, time.Duration) {
			t.Helper()
			l.breakAt("gw.to."+owner.Name(), requests)
			answer := later(t, g, method, path, body, header...)
			time.Sleep(100 * time.Millisecond)
			if !l.mend() {
				t.Fatal("the request did not meet the fault")
			}
			start := time.Now()
			return <-answer, time.Since(start)
		}
		for _, requests := range []bool{false, true} {
			for _, again := range []struct{ method, path, body, lease string }{
				{"POST", "/v1/leases/" + held + "/renew", "", ""},
				{"GET", "/v1/leases/" + held, "", ""},
				{"GET", at + "total", "", held},
			} {
				ask(t, owner, "PUT", at+"total", "7", "Qlock-Lease", held).want(t, 200, "")
				r, took := lost(requests, again.method, again.path, again.body, "Qlock-Lease", again.lease)
				if r.want(t, 200, ""); took > time.Second {
					t.Errorf("%s %s was answered %v after the reconnect", again.method, again.path, took)
				}
			}
			r, took := lost(requests, "POST", at+"n/add", "", "Qlock-Lease", held)
			if r.want(t, 504, "unknown-outcome"); took > lostAfter+time.Second {
				t.Errorf("a write was answered %v after the reconnect", took)
			}
			if got := ask(t, g, "GET", at+"n", "", "Qlock-Lease", held); string(got.body) != "1" && !(requests && got.status == 404) {
				t.Errorf("it was done twice, or lost with its answer: %s", got)
			}
			ask(t, g, "DELETE", at+"n", "", "Qlock-Lease", held).want(t, 204, "")
			ask(t, g, "POST", "/v1/leases/"+held+"/renew", "").want(t, 200, "")
		}
		// One who waits, and whose lease is granted meanwhile.
		waits := ask(t, owner, "POST", "/v1/locks/x", `{"wait":"10m"}`).want(t, 202, "").lease.ID
		l.breakAt("gw.to."+owner.Name(), false)
		answer := later(t, g, "GET", "/v1/leases/"+waits, "", "Prefer", "wait=50")
		ask(t, owner, "DELETE", "/v1/leases/"+held, "").want(t, 204, "")
		time.Sleep(100 * time.Millisecond)
		l.mend()
		start := time.Now()
		if r := (<-answer).want(t, 200, ""); r.lease.State != "held" || time.Since(start) > time.Second {
			t.Errorf("after %v: %s", time.Since(start), r)
		}
		ask(t, g, "DELETE", "/v1/leases/"+waits, "").want(t, 204, "")
	})
}
