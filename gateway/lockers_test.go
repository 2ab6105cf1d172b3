package gateway

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/nodes"
)

// changeLongest changes the longest lease of the cluster, and renews leases meanwhile.
func (w *world) changeLongest(g *Gateway, d time.Duration, renew ...string) {
	w.t.Helper()
	done, nc := make(chan error, 1), w.connect().Conn
	go func() { done <- nodes.Change(w.t.Context(), nc, []string{"n1", "n2", "n3"}, nodes.MaxLease(d)) }()
	for {
		select {
		case err := <-done:
			if err != nil {
				w.t.Fatal(err)
			}
			time.Sleep(2 * time.Second) // a third of the leases: Lockers in use have heard of it
			return
		case <-time.After(time.Second):
			for _, path := range renew {
				ask(w.t, g, "POST", path+"/renew", "").want(w.t, 200, "")
			}
		}
	}
}

// An operator changes the longest lease of the running cluster. The gateway follows, up and down:
// with the leases that it gives, and with those that it has given.
func TestLongestLeaseIsFollowed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		g := w.gateway()
		old, usual := "/v1/leases/"+uuid.NewString(), "/v1/leases/"+uuid.NewString()
		ask(t, g, "PUT", old, `{"name":"old","lease":"20s"}`).want(t, 201, "")
		ask(t, g, "PUT", usual, `{"name":"usual"}`).want(t, 201, "")
		// lease asks for a lock of its own, and checks the lease and for how long it is believed.
		lease := func(body string, length time.Duration) {
			t.Helper()
			a := ask(t, g, "POST", "/v1/leases", body).want(t, 201, "")
			if e := a.lease.ExpiresInMS; a.lease.LeaseMS != length.Milliseconds() || e < length.Milliseconds()*9/10 || e > length.Milliseconds() {
				t.Errorf("%s: want a lease of %v, got %s", body, length, a)
			}
			ask(t, g, "DELETE", "/v1/leases/"+a.lease.ID, "").want(t, 204, "")
		}
		refuse := func(body, text string) {
			t.Helper()
			if a := ask(t, g, "POST", "/v1/leases", body).want(t, 422, "invalid"); a.fault.Detail != text {
				t.Errorf("%s: %s", body, a)
			}
		}
		renew := func(path, body string, length time.Duration) {
			t.Helper()
			a := ask(t, g, "POST", path+"/renew", body).want(t, 200, "")
			if e := a.lease.ExpiresInMS; a.lease.LeaseMS != length.Milliseconds() || e < length.Milliseconds()/2 || e > length.Milliseconds() {
				t.Errorf("%s: want a lease of %v, got %s", path, length, a)
			}
		}
		refuse(`{"name":"x","lease":"50s"}`, "lease must be within 100ms and 28.8s")
		lease(`{"name":"x","lease":"25s"}`, 25*time.Second)

		w.changeLongest(g, time.Minute, old, usual)
		lease(`{"name":"x","lease":"50s"}`, 50*time.Second)
		lease(`{"name":"x"}`, 10*time.Second)
		renew(old, "", 20*time.Second)
		ask(t, g, "POST", old+"/renew", `{"lease":"40s"}`).want(t, 422, "invalid") // its Locker has 30 s

		w.changeLongest(g, 5*time.Second, old, usual)
		lease(`{"name":"x","lease":"20s"}`, 4800*time.Millisecond) // whose Locker hears of the change
		refuse(`{"name":"x","lease":"20s"}`, "lease must be within 100ms and 4.8s")
		lease(`{"name":"x"}`, 4800*time.Millisecond)
		renew(old, "", 4800*time.Millisecond)
		renew(usual, "", 4800*time.Millisecond)
		ask(t, g, "POST", old+"/renew", `{"lease":"20s"}`).want(t, 422, "invalid")

		w.changeLongest(g, 30*time.Second, old, usual)
		lease(`{"name":"x"}`, 10*time.Second)
		lease(`{"name":"x","lease":"20s"}`, 20*time.Second)
		renew(old, "", 4800*time.Millisecond) // its claim keeps the lease that it has now
		ask(t, g, "DELETE", old, "").want(t, 204, "")
		ask(t, g, "DELETE", usual, "").want(t, 204, "")

		// The Lockers that were replaced are closed when nobody can use them any more.
		if len(g.only.retired) == 0 {
			t.Error("no Locker was replaced")
		}
		time.Sleep(retiredFor + time.Second)
		lease(`{"name":"x"}`, 10*time.Second)
		if n := len(g.only.retired); n != 0 {
			t.Errorf("%d Lockers are left that were replaced", n)
		}
		w.noClaims()
	})
}

// A gateway without leases hears of no change. It asks the nodes when a request needs to know.
func TestLongestLeaseOfIdleGateway(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		g := w.gateway()
		w.changeLongest(g, time.Minute)
		a := ask(t, g, "POST", "/v1/locks/x", `{"lease":"50s"}`).want(t, 201, "")
		if a.lease.LeaseMS != 50_000 || a.lease.ExpiresInMS < 45_000 {
			t.Errorf("%s", a)
		}
		ask(t, g, "DELETE", "/v1/leases/"+a.lease.ID, "").want(t, 204, "")
		// It does not ask for each request that is refused.
		asked := w.nodes[0].Stats().Requests
		for range 10 {
			ask(t, g, "POST", "/v1/locks/x", `{"lease":"20h"}`).want(t, 422, "invalid")
		}
		if got := w.nodes[0].Stats().Requests; got > asked+3 {
			t.Errorf("a node was asked %d times", got-asked)
		}

		w.changeLongest(g, 5*time.Second)
		b := ask(t, g, "POST", "/v1/locks/x", `{"lease":"20s"}`).want(t, 201, "")
		if b.lease.LeaseMS != 4800 || b.lease.ExpiresInMS < 4000 || b.lease.ExpiresInMS > 4800 {
			t.Errorf("%s", b)
		}
		ask(t, g, "DELETE", "/v1/leases/"+b.lease.ID, "").want(t, 204, "")
		ask(t, g, "POST", "/v1/locks/x", `{"lease":"20s"}`).want(t, 422, "invalid")
		w.noClaims()
	})
}
