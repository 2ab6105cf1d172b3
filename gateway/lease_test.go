package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/uuid"

	"github.com/qlock/qlock"
)

func TestAcquireRenewRelease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		g := w.gateway()
		a := ask(t, g, "POST", "/v1/locks/nightly", "").want(t, 201, "")
		if a.lease.State != "held" || a.lease.Token == 0 || a.lease.Name != "nightly" || a.lease.Encoded != "nightly" || a.lease.Mode != "exclusive" || a.lease.LeaseMS != 10000 {
			t.Errorf("%s", a)
		}
		if a.lease.ExpiresInMS < 9500 || a.lease.ExpiresInMS > 9604 {
			t.Errorf("expires_in_ms is %d", a.lease.ExpiresInMS)
		}
		if !strings.HasPrefix(a.lease.ID, g.Name()+".") || a.header.Get("Location") != "/v1/leases/"+a.lease.ID || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s %v", a, a.header)
		}
		path := a.header.Get("Location")
		busy := ask(t, g, "POST", "/v1/locks/nightly", "").want(t, 409, "held")
		if b := busy.fault.Blocker; b == nil || b.Client != "gateway" || !b.Held || !busy.fault.Retryable {
			t.Errorf("%s", busy)
		}

		// Renewed, it lives on; the token stays.
		for range 10 {
			time.Sleep(6 * time.Second)
			r := ask(t, g, "POST", path+"/renew", "").want(t, 200, "")
			if r.lease.Token != a.lease.Token || r.lease.ExpiresInMS < 6000 {
				t.Fatalf("%s", r)
			}
		}
		ask(t, g, "DELETE", path, "").want(t, 204, "")
		ask(t, g, "DELETE", path, "").want(t, 204, "")
		if r := ask(t, g, "GET", path, "").want(t, 410, "gone"); r.fault.Cause != "released" || r.fault.Token != a.lease.Token {
			t.Errorf("%s", r)
		}
		ask(t, g, "POST", path+"/renew", "").want(t, 410, "gone")
		w.noClaims()

		next := ask(t, g, "POST", "/v1/locks/nightly", "").want(t, 201, "")
		if next.lease.Token <= a.lease.Token {
			t.Errorf("the token %d follows %d", next.lease.Token, a.lease.Token)
		}
	})
}

// Who does not renew loses the lock when the lease is over, and is told.
func TestExpiry(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		g := w.gateway()
		a := ask(t, g, "POST", "/v1/locks/x", `{"lease":"3s"}`).want(t, 201, "")
		if a.lease.ExpiresInMS != 3000 || a.lease.LeaseMS != 3000 {
			t.Errorf("%s", a)
		}
		time.Sleep(3 * time.Second)
		p := ask(t, g, "GET", a.header.Get("Location"), "").want(t, 200, "") // G8: a slow caller may believe it for so long
		if p.lease.ExpiresInMS > 60 {
			t.Errorf("%s", p)
		}
		time.Sleep(70 * time.Millisecond)
		if p := ask(t, g, "GET", a.header.Get("Location"), "").want(t, 410, "gone"); p.fault.Cause != "expired" {
			t.Errorf("%s", p)
		}
		w.noClaims()
		ask(t, g, "POST", "/v1/locks/x", "").want(t, 201, "")

		// A long lease needs a Locker of its own.
		long := ask(t, g, "POST", "/v1/locks/long", `{"lease":"28s"}`).want(t, 201, "")
		if long.lease.ExpiresInMS < 27900 || long.lease.ExpiresInMS > 28000 {
			t.Errorf("%s", long)
		}
		ask(t, g, "POST", "/v1/locks/long", `{"lease":"29s"}`).want(t, 422, "invalid")
	})
}

// A repeated PUT finds its lease, and never takes the lock a second time.
func TestIdempotent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		g := w.gateway()
		path := "/v1/leases/" + uuid.NewString()
		a := ask(t, g, "PUT", path, `{"name":"x"}`).want(t, 201, "")
		b := ask(t, g, "PUT", strings.ToUpper(path[11:12])+path[12:], "")
		_ = b // another path: not found
		b = ask(t, g, "PUT", "/v1/leases/"+strings.ToUpper(path[11:]), `{"name":"x"}`).want(t, 200, "")
		if a.lease.ID != b.lease.ID || a.lease.Token != b.lease.Token {
			t.Errorf("%s, then %s", a, b)
		}
		ask(t, g, "PUT", path, `{"name":"y"}`).want(t, 409, "lease-mismatch")
		ask(t, g, "PUT", path, `{"name":"x","mode":"shared"}`).want(t, 409, "lease-mismatch")
		c := ask(t, g, "POST", "/v1/locks/x", "", "Idempotency-Key", a.lease.ID).want(t, 200, "")
		if c.lease.Token != a.lease.Token {
			t.Errorf("%s", c)
		}
		ask(t, g, "DELETE", path, "").want(t, 204, "")
		ask(t, g, "PUT", path, `{"name":"x"}`).want(t, 410, "gone")
		w.noClaims()

		// One that never held anything may be asked for again.
		held := ask(t, g, "POST", "/v1/locks/x", "").want(t, 201, "")
		path = "/v1/leases/" + uuid.NewString()
		ask(t, g, "PUT", path, `{"name":"x"}`).want(t, 409, "held")
		ask(t, g, "GET", path, "").want(t, 409, "held")
		ask(t, g, "DELETE", "/v1/locks/x?lease="+held.lease.ID, "").want(t, 204, "")
		ask(t, g, "PUT", path, `{"name":"x"}`).want(t, 201, "")

		for _, id := range []string{"x", "0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a1", "{0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11}", "urn:uuid:0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11"} {
			ask(t, g, "PUT", "/v1/leases/"+id, `{"name":"x"}`).want(t, 422, "invalid")
		}
	})
}

// A waiter keeps its place between two polls, is told who is in the way, and all who poll
// are told the same at the same moment.
func TestWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		g := w.gateway()
		other := w.locker("other")
		k, err := other.Lock(t.Context(), "x", qlock.Note("report"))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		path := "/v1/leases/" + uuid.NewString()
		a := ask(t, g, "PUT", path, `{"name":"x","wait":"10m"}`, "Prefer", "wait=1").want(t, 202, "")
		if b := a.lease.Blocker; a.lease.State != "waiting" || b == nil || b.Client != "other" || !b.Held || b.ForMS < 1000 || a.lease.Place != 1 || a.lease.PollWithinMS != 9800 {
			t.Errorf("%s", a)
		}
		if a.header.Get("Preference-Applied") != "wait=1" || a.header.Get("Retry-After") != "0" {
			t.Errorf("%v", a.header)
		}
		younger := other.Start(t.Context(), "x") // behind ours

		start := time.Now()
		p := ask(t, g, "GET", path, "", "Prefer", "wait=30").want(t, 200, "")
		if d := time.Since(start); d != 30*time.Second || p.lease.State != "waiting" {
			t.Errorf("after %v: %s", d, p)
		}
		if p = ask(t, g, "GET", path, "", "If-None-Match", `"1"`, "Prefer", "wait=2"); p.status != 304 {
			t.Errorf("%s", p)
		}
		time.Sleep(8 * time.Second)
		polls := []chan *reply{
			later(t, g, "GET", path, "", "Prefer", "wait=50"),
			later(t, g, "GET", path, "", "Prefer", "wait=50", "If-None-Match", `"1"`),
			later(t, g, "PUT", path, `{"name":"x"}`, "Prefer", "wait=50"),
		}
		leaves, cancel := context.WithCancel(t.Context())
		gone := make(chan *reply, 1)
		go func() { gone <- askIn(t, leaves, g, "GET", path, "", "Prefer", "wait=50") }()
		settle()
		cancel()
		<-gone
		time.Sleep(20 * time.Second)
		if err := k.Unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		settle()
		var token uint64
		for i, c := range polls {
			select {
			case r := <-c:
				r.want(t, 200, "")
				if r.lease.State != "held" || token != 0 && token != r.lease.Token {
					t.Errorf("%d: %s", i, r)
				}
				// It polled for 20 s, and the votes were given with the last refresh, a third of the
				// lease ago at most.
				if r.lease.HandledMS < 19000 || r.lease.ExpiresInMS < 6000 {
					t.Errorf("%d: %s", i, r)
				}
				token = r.lease.Token
			default:
				t.Fatalf("%d was not told", i)
			}
		}
		ask(t, g, "DELETE", path, "").want(t, 204, "")
		late, err := younger.Wait(t.Context())
		if err != nil || late.Token() <= token {
			t.Errorf("%v, %v", late, err)
		}
		_ = late.Unlock(t.Context())
		w.noClaims()
	})
}

// A lease that waits ends when its time to wait is over, when nobody asks for it, or when
// it was granted and nobody asked in time.
func TestWaitEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		g := w.gateway()
		other := w.locker("other")
		k, err := other.Lock(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		ask(t, g, "POST", "/v1/locks/x", `{"wait":"3s"}`, "Prefer", "wait=30").want(t, 409, "held")
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("it waited for %v", d)
		}
		ask(t, g, "POST", "/v1/locks/x", "", "Prefer", "wait=4").want(t, 409, "held")
		if d := time.Since(start); d != 7*time.Second {
			t.Errorf("they waited for %v", d)
		}

		abandoned := ask(t, g, "POST", "/v1/locks/x", `{"wait":"10m","lease":"5s"}`).want(t, 202, "").header.Get("Location")
		time.Sleep(4900 * time.Millisecond)
		ask(t, g, "GET", abandoned, "").want(t, 200, "")
		time.Sleep(5100 * time.Millisecond)
		if p := ask(t, g, "GET", abandoned, "").want(t, 410, "gone"); p.fault.Cause != "abandoned" {
			t.Errorf("%s", p)
		}

		granted := ask(t, g, "POST", "/v1/locks/x", `{"wait":"10m","lease":"5s"}`).want(t, 202, "").header.Get("Location")
		time.Sleep(time.Second)
		if err := k.Unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(4 * time.Second)
		if p := ask(t, g, "GET", granted, "").want(t, 200, ""); p.lease.State != "held" || p.lease.ExpiresInMS > 1200 {
			t.Errorf("%s", p)
		}
		time.Sleep(2 * time.Second)
		if p := ask(t, g, "GET", granted, "").want(t, 410, "gone"); p.fault.Cause != "expired" {
			t.Errorf("%s", p)
		}
		w.noClaims()
	})
}

// The age of an answer takes the place in the queue along to another gateway.
func TestAge(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		g1, g2, g3 := w.gateway(), w.gateway(), w.gateway()
		other := w.locker("other")
		k, err := other.Lock(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		a := ask(t, g1, "POST", "/v1/locks/x", `{"wait":"10m"}`).want(t, 202, "")
		time.Sleep(time.Second)
		rival := ask(t, g3, "POST", "/v1/locks/x", `{"wait":"10m"}`).want(t, 202, "")
		time.Sleep(time.Second)
		b := later(t, g2, "POST", "/v1/locks/x", fmt.Sprintf(`{"wait":"10m","age":%d}`, a.lease.Age), "Prefer", "wait=50")
		ask(t, g1, "DELETE", "/v1/leases/"+a.lease.ID, "").want(t, 204, "")
		if err := k.Unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		settle()
		select {
		case r := <-b:
			r.want(t, 201, "")
			if r.lease.Age != a.lease.Age {
				t.Errorf("%s", r)
			}
		default:
			t.Fatal("it has lost its place")
		}
		ask(t, g3, "DELETE", "/v1/leases/"+rival.lease.ID, "").want(t, 204, "")
		ask(t, g1, "POST", "/v1/locks/y", fmt.Sprintf(`{"age":%d}`, time.Now().Add(time.Minute).UnixMicro())).want(t, 422, "invalid")
		old := ask(t, g1, "POST", "/v1/locks/y", `{"age":1}`).want(t, 201, "")
		if d := time.Since(time.UnixMicro(old.lease.Age)); d < 59*time.Minute || d > 61*time.Minute {
			t.Errorf("an age of %v", d)
		}
	})
}

func TestShared(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		g := w.gateway()
		a := ask(t, g, "POST", "/v1/locks/x", `{"mode":"shared"}`).want(t, 201, "")
		b := ask(t, g, "POST", "/v1/locks/x", `{"mode":"shared"}`).want(t, 201, "")
		if a.lease.Mode != "shared" {
			t.Errorf("%s", a)
		}
		ask(t, g, "POST", "/v1/locks/x", "").want(t, 409, "held")
		ask(t, g, "DELETE", "/v1/leases/"+a.lease.ID, "").want(t, 204, "")
		ask(t, g, "POST", "/v1/locks/x", "").want(t, 409, "held")
		ask(t, g, "DELETE", fmt.Sprintf("/v1/locks/x?token=%d", b.lease.Token), "").want(t, 204, "")
		ask(t, g, "POST", "/v1/locks/x", "").want(t, 201, "")
	})
}

// A lease is over for its caller at once when it is evicted, and its claim stays until the
// caller cannot believe any more that it holds (G8).
func TestEvict(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		g := w.gateway()
		a := ask(t, g, "POST", "/v1/locks/x", `{"note":"stuck"}`).want(t, 201, "")
		end := time.Now().Add(time.Duration(a.lease.ExpiresInMS) * time.Millisecond)
		time.Sleep(time.Second)
		other := w.gateway(func(c *Config) { c.Client = "other" })
		e := ask(t, other, "POST", "/v1/locks/x/evict", `{"reason":"test"}`).want(t, 202, "")
		if !strings.Contains(string(e.body), `"client":"gateway"`) {
			t.Errorf("%s", e)
		}
		isEvicted := func(p *reply, token uint64) {
			t.Helper()
			if f := p.want(t, 410, "gone").fault; f.Cause != "evicted" || f.By != "other" || f.Reason != "test" || f.Token != token || !strings.Contains(f.Detail, "test") {
				t.Errorf("%s", p)
			}
		}
		isEvicted(ask(t, g, "GET", "/v1/leases/"+a.lease.ID, ""), a.lease.Token)
		isEvicted(ask(t, other, "POST", "/v1/leases/"+a.lease.ID+"/renew", ""), a.lease.Token) // forwarded
		if err := g.ServeNATS(); err != nil {
			t.Fatal(err)
		}
		if f := natsDoor(t, w.connect().Conn, "poll", "", `{"id":"`+a.lease.ID+`"}`, "410 gone").fault; f.By != "other" || f.Reason != "test" {
			t.Errorf("over NATS: %+v", f)
		}
		b := ask(t, other, "POST", "/v1/locks/x", "", "Prefer", "wait=50").want(t, 201, "")
		if now := time.Now(); now.Before(end) || now.After(end.Add(300*time.Millisecond)) {
			t.Errorf("another has it %v after the end of the promise", now.Sub(end))
		}
		waits := later(t, g, "POST", "/v1/locks/x", "", "Prefer", "wait=50")
		info, err := w.locker("looker").Inspect(t.Context(), "x")
		if err != nil || len(info.Queue) != 1 {
			t.Fatal(info, err)
		}
		ask(t, other, "POST", "/v1/locks/x/evict", fmt.Sprintf(`{"claim":%q,"reason":"test"}`, info.Queue[0].ID)).want(t, 200, "")
		isEvicted(<-waits, 0)
		ask(t, other, "POST", "/v1/evict", `{"name":"y"}`).want(t, 404, "not-found")
		ask(t, other, "POST", "/v1/locks/x/evict", `{"claim":"no such"}`).want(t, 404, "not-found")
		ask(t, other, "DELETE", "/v1/leases/"+b.lease.ID, "").want(t, 204, "")
		w.noClaims()
	})
}

// A gateway that is cut off promises less and less, then tells that the lock is lost.
func TestCutOff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		g, nc := w.gatewayOn()
		a := ask(t, g, "POST", "/v1/locks/x", "").want(t, 201, "")
		path := "/v1/leases/" + a.lease.ID
		time.Sleep(5 * time.Second)
		nc.Cut()
		var end time.Time // of the votes
		lost := false
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			r := ask(t, g, "POST", path+"/renew", "")
			if r.status == 410 {
				if r.fault.Cause != "lost" || !strings.Contains(r.fault.Detail, "too few nodes") {
					t.Errorf("%s", r)
				}
				lost = true
				break
			}
			r.want(t, 200, "")
			now := time.Now().Add(longer(time.Duration(r.lease.ExpiresInMS) * time.Millisecond))
			if !end.IsZero() && now.After(end.Add(2*time.Millisecond)) {
				t.Errorf("the end moved by %v without an answer of the nodes", now.Sub(end))
			}
			end = now
		}
		if !lost {
			t.Error("it was not told that the lock is lost")
		}
		nc.Mend()
		time.Sleep(20 * time.Second)
		ask(t, g, "GET", path, "").want(t, 410, "gone")
		w.noClaims()
	})
}

// Too few nodes: a try fails within its bound, and says which node did not answer.
func TestNoQuorum(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		g := w.gateway()
		for _, n := range w.nodes[1:] {
			_ = n.Close()
		}
		start := time.Now()
		p := ask(t, g, "POST", "/v1/locks/x", "").want(t, 503, "no-quorum")
		if d := time.Since(start); d != 5*time.Second || len(p.fault.Nodes) != 3 || p.header.Get("Retry-After") == "" || !p.fault.Retryable {
			t.Errorf("after %v: %s", d, p)
		}
		ask(t, g, "POST", "/v1/locks/x", `{"wait":"1s"}`, "Prefer", "wait=2").want(t, 503, "no-quorum")
		for _, p := range []*reply{p, ask(t, g, "GET", "/v1/locks", "").want(t, 503, "no-quorum")} {
			if strings.Contains(p.fault.Detail, "context") {
				t.Errorf("it speaks of what only Go programs know: %s", p)
			}
		}
		// Who waits is told as well what there is to wait for.
		waits := ask(t, g, "POST", "/v1/locks/x", `{"wait":"1m"}`).want(t, 202, "")
		answers := map[string]string{}
		for _, n := range waits.lease.Nodes {
			answers[n.Node] = n.Answer
		}
		if fmt.Sprint(answers) != "map[n1:voted n2:silent n3:silent]" {
			t.Errorf("%s", waits)
		}
	})
}

// While the list of nodes changes, the error says which list lacks votes.
func TestNoQuorumOfAList(t *testing.T) {
	p := problemOf(&qlock.LockError{
		Reason: qlock.ErrNoQuorum, Need: 3,
		Nodes: []qlock.NodeAnswer{{Node: "n1", Answer: qlock.AnswerVoted}, {Node: "n2", Answer: qlock.AnswerSilent}},
		Lists: []qlock.ListVotes{{Nodes: []string{"n1"}, Votes: 1, Need: 1}, {Nodes: []string{"n1", "n2"}, Votes: 1, Need: 2}},
	})
	body, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	const want = `"lists":[{"nodes":["n1"],"votes":1,"need":1},{"nodes":["n1","n2"],"votes":1,"need":2}]`
	if p.Kind() != "no-quorum" || !strings.Contains(string(body), want) {
		t.Errorf("%s: %s, want %s", p.Kind(), body, want)
	}
	doc, err := document()
	if err != nil {
		t.Fatal(err)
	}
	var value any
	if err := json.Unmarshal(body, &value); err != nil {
		t.Fatal(err)
	}
	if err := doc.Components.Schemas["Problem"].Value.VisitJSON(value, openapi3.MultiErrors()); err != nil {
		t.Error("not as in the OpenAPI document:", err)
	}
}

// A gateway that stops refuses what is new, sends away who waits, lets held leases live for
// the time of the drain, and then ends them, though their callers may believe it for longer.
func TestDrain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		g := w.gateway()
		held := ask(t, g, "POST", "/v1/locks/x", "").want(t, 201, "")
		quiet := ask(t, g, "POST", "/v1/locks/x", `{"wait":"10m"}`).want(t, 202, "")
		polled := ask(t, g, "POST", "/v1/locks/x", `{"wait":"10m"}`).want(t, 202, "")
		polls := []chan *reply{
			later(t, g, "GET", "/v1/leases/"+polled.lease.ID, "", "Prefer", "wait=50"),
			later(t, g, "GET", "/v1/leases/"+polled.lease.ID, "", "Prefer", "wait=50"),
		}
		done := make(chan error, 1)
		time.Sleep(time.Second)
		start := time.Now()
		go func() { done <- g.Shutdown(context.Background()) }()
		settle()
		for _, c := range polls {
			select {
			case r := <-c:
				if r.want(t, 200, ""); !r.lease.Moved || r.lease.State != "waiting" || r.lease.Age != polled.lease.Age || r.lease.WaitedMS < 1000 {
					t.Errorf("%s", r)
				}
			default:
				t.Fatal("a poll goes on")
			}
		}
		if p := ask(t, g, "GET", "/v1/leases/"+quiet.lease.ID, "").want(t, 410, "gone"); p.fault.Cause != "draining" {
			t.Errorf("%s", p)
		}
		ask(t, g, "POST", "/v1/locks/new", "").want(t, 503, "draining")
		ask(t, g, "GET", "/readyz", "").want(t, 503, "draining")
		var end time.Time
		for time.Since(start) < 29*time.Second {
			time.Sleep(3 * time.Second)
			r := ask(t, g, "POST", "/v1/leases/"+held.lease.ID+"/renew", "")
			if r.status == 410 {
				break
			}
			if r.want(t, 200, ""); r.lease.DrainingInMS == 0 {
				t.Errorf("%s", r)
			}
			end = time.Now().Add(time.Duration(r.lease.ExpiresInMS) * time.Millisecond)
		}
		other := w.locker("other")
		next, err := other.Lock(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		if now := time.Now(); now.Before(end) || now.After(end.Add(time.Second)) {
			t.Errorf("another has it %v after the end of the last promise", now.Sub(end))
		}
		_ = next.Unlock(t.Context())
		if err := <-done; err != nil {
			t.Error(err)
		}
		if p := ask(t, g, "GET", "/v1/leases/"+held.lease.ID, "").want(t, 410, "gone"); p.fault.Cause != "draining" {
			t.Errorf("%s", p)
		}
		w.noClaims()
	})
}

// Without leases Shutdown takes no time.
func TestDrainOfNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		g := w.gateway()
		a := ask(t, g, "POST", "/v1/locks/x", "").want(t, 201, "")
		ask(t, g, "DELETE", a.header.Get("Location"), "").want(t, 204, "")
		start := time.Now()
		if err := g.Shutdown(t.Context()); err != nil || time.Since(start) > time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// A pause of the gateway between reading its clock and looking at the votes makes the
// answer promise less, not more (G7).
func TestPauseWhileAnswering(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		g := w.gateway()
		a := ask(t, g, "POST", "/v1/locks/x", "").want(t, 201, "")
		for pause := range 5 {
			calls := 0
			g.now = func() time.Time {
				now := time.Now()
				if calls++; calls == 1 {
					time.Sleep(time.Duration(pause) * time.Second) // after the reading, as a stopped process would
				}
				return now
			}
			sent := time.Now()
			r := ask(t, g, "GET", "/v1/leases/"+a.lease.ID, "").want(t, 200, "")
			end := sent.Add(time.Duration(r.lease.HandledMS+r.lease.ExpiresInMS) * time.Millisecond)
			g.now = time.Now
			l := g.leases[keyOf(g.only, a.lease.ID)]
			if stands := time.Now().Add(l.lock.Stands()); end.After(stands) {
				t.Errorf("a pause of %d s: the caller believes for %v longer than the votes stand", pause, end.Sub(stands))
			}
			ask(t, g, "POST", "/v1/leases/"+a.lease.ID+"/renew", "").want(t, http.StatusOK, "")
		}
	})
}
