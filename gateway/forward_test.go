package gateway

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
)

// pair is two gateways that have heard of each other.
func (w *world) pair() (a, b *Gateway, la *link) {
	a, la = w.gatewayOn(func(c *Config) { c.Client = "gw-a" })
	b = w.gateway(func(c *Config) { c.Client = "gw-b" })
	time.Sleep(time.Second)
	return a, b, la
}

// A caller may ask any gateway about its lease.
func TestForward(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b, _ := w.pair()
		own := "/v1/leases/" + uuid.NewString()
		for _, path := range []string{own, ""} {
			var first *reply
			if path != "" {
				first = ask(t, a, "PUT", path, `{"name":"x","lease":"20s"}`).want(t, 201, "")
			} else {
				first = ask(t, a, "POST", "/v1/locks/x", `{"lease":"20s"}`).want(t, 201, "")
				path = first.header.Get("Location")
			}
			got := ask(t, b, "GET", path, "", "X-Request-Id", "r7").want(t, 200, "")
			if l := got.lease; l.ID != first.lease.ID || l.Token != first.lease.Token || l.Gateway != a.Name() || l.Request != "r7" || l.ExpiresInMS < 9000 || got.header.Get("ETag") != first.header.Get("ETag") {
				t.Errorf("%s, not %s", got, first)
			}
			time.Sleep(15 * time.Second)
			ask(t, b, "POST", path+"/renew", fmt.Sprintf(`{"token":%d}`, first.lease.Token)).want(t, 200, "")
			time.Sleep(15 * time.Second)
			ask(t, a, "GET", path, "").want(t, 200, "")
			ask(t, b, "POST", path+"/renew", `{"token":7}`).want(t, 410, "gone")
			if path == own {
				again := ask(t, b, "PUT", path, `{"name":"x"}`).want(t, 200, "")
				if again.lease.Token != first.lease.Token {
					t.Errorf("%s", again)
				}
				ask(t, b, "PUT", path, `{"name":"y"}`).want(t, 409, "lease-mismatch")
			}

			// One waits at the one gateway, and polls at the other.
			waits := ask(t, a, "POST", "/v1/locks/x", `{"wait":"1m"}`).want(t, 202, "")
			poll := later(t, b, "GET", waits.header.Get("Location"), "", "Prefer", "wait=30")
			start := time.Now()
			time.Sleep(5 * time.Second)
			ask(t, b, "DELETE", path, "").want(t, 204, "")
			if granted := (<-poll).want(t, 200, ""); granted.lease.State != "held" || granted.lease.ID != waits.lease.ID || time.Since(start) > 5100*time.Millisecond {
				t.Errorf("%s after %v", granted, time.Since(start))
			}
			if r := ask(t, b, "GET", path, "").want(t, 410, "gone"); r.fault.Cause != causeReleased {
				t.Errorf("%s", r)
			}
			ask(t, b, "DELETE", path, "").want(t, 204, "")
			ask(t, b, "DELETE", fmt.Sprintf("/v1/locks/x?token=%d", ask(t, b, "GET", waits.header.Get("Location"), "").lease.Token), "").want(t, 204, "")
			ask(t, a, "GET", waits.header.Get("Location"), "").want(t, 410, "gone")
		}
		// What never was, and what is over for good, at either gateway.
		ask(t, b, "PUT", own, `{"name":"x"}`).want(t, 410, "gone")
		ask(t, b, "GET", "/v1/leases/"+uuid.NewString(), "").want(t, 404, "unknown-lease")
		ask(t, b, "POST", "/v1/leases/"+uuid.NewString()+"/renew", `{"token":8}`).want(t, 410, "gone")
		ask(t, b, "GET", "/v1/leases/"+a.Name()+".nothing", "").want(t, 404, "unknown-lease")
		ask(t, b, "GET", "/v1/leases/"+b.Name()+".nothing", "").want(t, 404, "unknown-lease")
		if r := ask(t, b, "GET", "/v1/leases/gzzzzzzz.nothing", "").want(t, 410, "gone"); r.fault.Cause != causeGatewayLost {
			t.Errorf("%s", r)
		}
		// A request that was refused at one gateway may be repeated at another.
		hold := ask(t, a, "POST", "/v1/locks/x", "").want(t, 201, "")
		ask(t, a, "PUT", "/v1/leases/3a64f5e0-0000-4000-8000-000000000000", `{"name":"x"}`).want(t, 409, "held")
		ask(t, b, "DELETE", hold.header.Get("Location"), "").want(t, 204, "")
		ask(t, b, "PUT", "/v1/leases/3a64f5e0-0000-4000-8000-000000000000", `{"name":"x"}`).want(t, 201, "")
		ask(t, a, "DELETE", "/v1/leases/3a64f5e0-0000-4000-8000-000000000000", "").want(t, 204, "")
		w.noClaims()
	})
}

// While it is not known whether the owner lives, nothing is said (G3). When it is gone, the
// lease is lost, and a poll that waits for the owner's answer is told.
func TestOwnerGone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b, la := w.pair()
		held := ask(t, a, "POST", "/v1/locks/x", "").want(t, 201, "")
		path, id := held.header.Get("Location"), "/v1/leases/"+uuid.NewString()
		ask(t, a, "PUT", id, `{"name":"x","wait":"5m","lease":"25s"}`).want(t, 202, "")
		poll := later(t, b, "GET", id, "", "Prefer", "wait=55")
		la.Cut()
		settle()
		start := time.Now()
		looks, renews, releases := later(t, b, "GET", path, ""), later(t, b, "POST", path+"/renew", ""), later(t, b, "DELETE", path, "")
		(<-looks).want(t, 503, "unreachable")
		(<-renews).want(t, 503, "unreachable")
		(<-releases).want(t, 202, "")
		if r := (<-poll).want(t, 410, "gone"); r.fault.Cause != causeGatewayLost || time.Since(start) > 5*time.Second {
			t.Errorf("%s after %v", r, time.Since(start))
		}
		time.Sleep(3 * time.Second)
		if r := ask(t, b, "GET", path, "").want(t, 410, "gone"); r.fault.Cause != causeGatewayLost {
			t.Errorf("%s", r)
		}
		ask(t, b, "GET", id, "").want(t, 404, "unknown-lease")
		// The gateway that is cut off cannot know of the other's leases.
		other := "/v1/leases/" + uuid.NewString()
		ask(t, b, "PUT", other, `{"name":"y"}`).want(t, 201, "")
		ask(t, a, "GET", other, "").want(t, 503, "unreachable")
		la.Mend()
		time.Sleep(3 * time.Second)
		ask(t, a, "GET", other, "").want(t, 200, "")
	})
}

// One that stops in order is known to be gone at once.
func TestOwnerStops(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		a, b, _ := w.pair()
		hold := ask(t, b, "POST", "/v1/locks/x", `{"lease":"20s"}`).want(t, 201, "")
		id := "/v1/leases/" + uuid.NewString()
		waits := ask(t, a, "PUT", id, `{"name":"x","wait":"5m"}`).want(t, 202, "")
		poll := later(t, b, "PUT", id, `{"name":"x","wait":"5m"}`, "Prefer", "wait=55")
		if err := a.Shutdown(context.Background()); err != nil {
			t.Fatal(err)
		}
		// The other gateway has taken it over, with its place.
		time.Sleep(time.Second)
		ask(t, b, "DELETE", hold.header.Get("Location"), "").want(t, 204, "")
		if r := (<-poll).want(t, 201, ""); r.lease.State != "held" || r.lease.Gateway != b.Name() || r.lease.Age != waits.lease.Age {
			t.Errorf("%s, not %s", r, waits)
		}
		if r := ask(t, b, "GET", "/v1/leases/"+a.Name()+".x", "").want(t, 410, "gone"); r.fault.Cause != causeGatewayLost {
			t.Errorf("%s", r)
		}
	})
}

// If two gateways make a lease of one id at once, one gives up its own (G10), and both tell
// the same.
func TestOneIDTwoGateways(t *testing.T) {
	for _, free := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, 3)
			a, b, _ := w.pair()
			hold := ask(t, a, "POST", "/v1/locks/x", `{"lease":"25s"}`).want(t, 201, "")
			if free {
				ask(t, a, "DELETE", hold.header.Get("Location"), "").want(t, 204, "")
			}
			twice := 0
			for range 20 {
				id := "/v1/leases/" + uuid.NewString()
				one := make(chan *reply, 2)
				for _, g := range []*Gateway{a, b} {
					go func() { one <- ask(t, g, "PUT", id, `{"name":"x","wait":"1m"}`, "Prefer", "wait=1") }()
				}
				x, y := <-one, <-one
				if x.lease.Gateway != y.lease.Gateway || x.lease.State != y.lease.State || x.lease.Token != y.lease.Token {
					t.Errorf("%s\n%s", x, y)
				}
				if len(a.all())+len(b.all()) > 2 {
					twice++
				}
				ask(t, b, "DELETE", id, "").want(t, 204, "")
				settle()
			}
			if twice > 0 {
				t.Errorf("%d ids had two leases", twice)
			}
			if !free {
				ask(t, b, "DELETE", hold.header.Get("Location"), "").want(t, 204, "")
			}
			w.noClaims()
		})
	}
}

// A caller that ends its lease ends it at each gateway that has one of that id: two that made
// one of a shared lock at once, or one that made it while the first was cut off.
func TestReleasedEverywhere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b, la := w.pair()
		ended := func(path string) {
			t.Helper()
			ask(t, a, "DELETE", path, "").want(t, 204, "")
			settle()
			if r := ask(t, b, "GET", path, "").want(t, 410, "gone"); r.fault.Cause != causeReleased {
				t.Errorf("%s", r)
			}
			w.noClaims()
		}
		id := "/v1/leases/" + uuid.NewString()
		ask(t, a, "PUT", id, `{"name":"x","mode":"shared"}`).want(t, 201, "")
		settle()
		b.peers.mu.Lock()
		clear(b.peers.heard) // as if it had asked a moment before the other made its lease
		b.peers.mu.Unlock()
		ask(t, b, "PUT", id, `{"name":"x","mode":"shared"}`).want(t, 201, "")
		ended(id)

		id = "/v1/leases/" + uuid.NewString()
		ask(t, a, "PUT", id, `{"name":"y"}`).want(t, 201, "")
		la.Cut()
		time.Sleep(5 * time.Second)
		other := later(t, b, "PUT", id, `{"name":"y","wait":"30s"}`, "Prefer", "wait=30")
		(<-other).want(t, 201, "")
		la.Mend()
		time.Sleep(5 * time.Second)
		ask(t, a, "GET", id, "").want(t, 410, "gone")
		ask(t, b, "POST", id+"/renew", "").want(t, 200, "")
		ended(id)
	})
}

// What gateways tell each other names no lease by its id, and what others send there is
// ignored.
func TestBetweenGateways(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		spy := w.connect()
		var mu sync.Mutex
		var heard bytes.Buffer
		if _, err := spy.Subscribe(">", func(m *nats.Msg) {
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintf(&heard, "%s %v %s\n", m.Subject, m.Header, m.Data)
		}); err != nil {
			t.Fatal(err)
		}
		if err := spy.Flush(); err != nil {
			t.Fatal(err)
		}
		a, b, _ := w.pair()
		id := uuid.NewString()
		first := ask(t, a, "PUT", "/v1/leases/"+id, `{"name":"x"}`).want(t, 201, "")
		ask(t, b, "GET", "/v1/leases/"+id, "").want(t, 200, "")
		settle()
		mu.Lock()
		text := heard.String()
		mu.Unlock()
		if strings.Contains(text, id) || !strings.Contains(text, first.lease.ID[:0]+"lock.default.gw.where") || !strings.Contains(text, "gw.to."+a.Name()+".poll") {
			t.Errorf("%s", text)
		}
		for _, garbage := range []string{"", "{}", "[]", `{"gateway":"g2222222","lease":"00"}`, `{"gateway":"` + b.Name() + `","gone":true,"lease":"` + strings.Repeat("ab", 32) + `"}`, `{"gateway":"evil.>"}`} {
			for _, subject := range []string{"have", "where", "to." + a.Name() + ".poll", "to." + a.Name() + ".x"} {
				if err := spy.PublishRequest("lock.default.gw."+subject, "lock.default.node.acquire.evil.x", []byte(garbage)); err != nil {
					t.Fatal(err)
				}
			}
		}
		settle()
		mu.Lock()
		text = heard.String()
		mu.Unlock()
		if strings.Contains(text, "node.acquire.evil") {
			t.Errorf("%s", text)
		}
		time.Sleep(2 * time.Second)
		ask(t, b, "GET", "/v1/leases/"+id, "").want(t, 200, "")
		ask(t, b, "DELETE", "/v1/leases/"+id, "").want(t, 204, "")
	})
}

// A gateway that is to be alone knows its own leases only.
func TestAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		a := w.gateway(func(c *Config) { c.Client = "gw-a" })
		b := w.gateway(func(c *Config) { c.Client, c.Alone = "gw-b", true })
		time.Sleep(2 * time.Second)
		held := ask(t, a, "POST", "/v1/locks/x", "").want(t, 201, "")
		ask(t, b, "GET", held.header.Get("Location"), "").want(t, 404, "unknown-lease")
		ask(t, b, "DELETE", held.header.Get("Location"), "").want(t, 204, "")
		ask(t, b, "DELETE", fmt.Sprintf("/v1/locks/x?token=%d", held.lease.Token), "").want(t, 204, "")
		ask(t, a, "GET", held.header.Get("Location"), "").want(t, 200, "")
	})
}

// A gateway that stops answers those who wait through it for leases of others, and does not wait
// for the ends of their waits. The leases keep their places.
func TestStopsWhileOthersAreAsked(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b, _ := w.pair()
		if err := a.ServeNATS(); err != nil {
			t.Fatal(err)
		}
		held := ask(t, b, "POST", "/v1/locks/x", "").want(t, 201, "")
		own := uuid.NewString()
		first := ask(t, b, "PUT", "/v1/leases/"+own, `{"name":"x","wait":"10m"}`).want(t, 202, "")
		answers := []chan *reply{
			later(t, a, "PUT", "/v1/leases/"+own, `{"name":"x","wait":"10m"}`, "Prefer", "wait=50"),
			later(t, a, "GET", "/v1/leases/"+own, "", "Prefer", "wait=50"),
			later(t, a, "GET", "/v1/leases/"+held.lease.ID, "", "Prefer", "wait=50", "If-None-Match", held.header.Get("ETag")),
		}
		nc, polled := w.connect(), make(chan string, 1)
		go func() {
			m, err := nc.Request(a.api()+"poll", []byte(`{"id":"`+own+`","wait":"50s"}`), time.Minute)
			if err != nil {
				polled <- err.Error()
				return
			}
			polled <- string(m.Data)
		}()
		settle()
		start := time.Now()
		if err := a.Shutdown(t.Context()); err != nil || time.Since(start) > 2*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		settle()
		for i, status := range []int{202, 200, 304} {
			select {
			case r := <-answers[i]:
				if r.want(t, status, ""); status != 304 && (r.lease.State != "waiting" || r.lease.Moved || r.lease.Age != first.lease.Age) {
					t.Errorf("%s", r)
				}
			default:
				t.Errorf("request %d is not answered", i)
			}
		}
		select {
		case text := <-polled:
			if !strings.Contains(text, `"waiting"`) {
				t.Errorf("%s", text)
			}
		default:
			t.Error("the request at the NATS door is not answered")
		}
		ask(t, b, "DELETE", "/v1/leases/"+held.lease.ID, "").want(t, 204, "")
		ask(t, b, "GET", "/v1/leases/"+own, "", "Prefer", "wait=10").want(t, 200, "")
		ask(t, b, "DELETE", "/v1/leases/"+own, "").want(t, 204, "")
	})
}
