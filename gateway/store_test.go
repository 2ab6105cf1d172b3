package gateway

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock/store"
)

// newStoreWorld has a server with JetStream, and the bucket orders in memory.
func newStoreWorld(t *testing.T, users ...*server.User) *world {
	t.Helper()
	dir := t.TempDir()
	w := newWorldOn(t, 3, func(o *server.Options) { o.JetStream, o.StoreDir = true, dir }, users...)
	if _, err := store.Create(t.Context(), w.js(), jetstream.KeyValueConfig{Bucket: "orders", Storage: jetstream.MemoryStorage}); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) js() jetstream.JetStream {
	w.t.Helper()
	js, err := jetstream.New(w.connect().Conn)
	if err != nil {
		w.t.Fatal(err)
	}
	return js
}

func read[T any](t *testing.T, r *reply) *T {
	t.Helper()
	out := new(T)
	if err := json.Unmarshal(r.body, out); err != nil {
		t.Fatalf("%v: %s", err, r)
	}
	return out
}

// Keys over HTTP: values of any kind, conditions, deletion, sums.
func TestKeys(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newStoreWorld(t)
		g := w.gateway()
		const at = "/v1/stores/orders/keys/"
		ask(t, g, "GET", at+"a", "").want(t, 404, "no-key")
		first := read[Written](t, ask(t, g, "PUT", at+"a", "one", "If-None-Match", "*").want(t, 201, ""))
		p := ask(t, g, "PUT", at+"a", "two", "If-None-Match", "*").want(t, 412, "conflict")
		if p.fault.Key != "a" || p.fault.Revision != first.Revision {
			t.Errorf("%s", p)
		}
		tag := `"` + strconv.FormatUint(first.Revision, 10) + `"`
		got := ask(t, g, "GET", at+"a", "").want(t, 200, "")
		if string(got.body) != "one" || got.header.Get("ETag") != tag || got.header.Get("Qlock-Revision") != strings.Trim(tag, `"`) || got.header.Get("Content-Type") != "application/octet-stream" || !strings.Contains(got.header.Get("Content-Security-Policy"), "sandbox") {
			t.Errorf("%s %v", got, got.header)
		}
		ask(t, g, "GET", at+"a", "", "If-None-Match", tag).want(t, 304, "")
		second := ask(t, g, "PUT", at+"a", "two", "If-Match", tag).want(t, 200, "")
		ask(t, g, "PUT", at+"a", "three", "If-Match", tag).want(t, 412, "conflict")
		ask(t, g, "DELETE", at+"a", "", "If-Match", tag).want(t, 412, "conflict")
		if e := read[Entry](t, ask(t, g, "GET", at+"a", "", "Accept", "application/json").want(t, 200, "")); *e.Value != "two" || e.Key != "a" {
			t.Errorf("%+v", e)
		}
		ask(t, g, "DELETE", at+"a", "", "If-Match", second.header.Get("ETag")).want(t, 204, "")
		ask(t, g, "DELETE", at+"a", "").want(t, 204, "")
		ask(t, g, "GET", at+"a", "").want(t, 404, "no-key")

		bytes := "\x00\xff<script>"
		ask(t, g, "PUT", at+"x%2Fy.z", bytes, "Content-Type", "text/html").want(t, 200, "")
		if got := ask(t, g, "GET", at+"x%2Fy.z", ""); string(got.body) != bytes || got.header.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("%q %v", got.body, got.header)
		}
		if e := read[Entry](t, ask(t, g, "GET", at+"x%2Fy.z", "", "Accept", "application/json")); e.Value != nil || *e.ValueBase64 != base64.StdEncoding.EncodeToString([]byte(bytes)) {
			t.Errorf("%+v", e)
		}
		ask(t, g, "PUT", at+"empty", "").want(t, 200, "")
		if got := ask(t, g, "GET", at+"empty", "").want(t, 200, ""); len(got.body) != 0 {
			t.Errorf("%q", got.body)
		}

		for i, want := range []int64{1, 6, 3} {
			body := []string{"", `{"by":5}`, `{"by":-3}`}[i]
			if a := read[Written](t, ask(t, g, "POST", at+"n/add", body).want(t, 200, "")); a.Number == nil || *a.Number != want {
				t.Errorf("%+v", a)
			}
		}
		if got := ask(t, g, "GET", at+"n", ""); string(got.body) != "3" {
			t.Errorf("%s", got)
		}
		ask(t, g, "PUT", at+"text", "secret").want(t, 200, "")
		if r := ask(t, g, "POST", at+"text/add", "").want(t, 422, "not-number"); strings.Contains(r.fault.Detail, "secret") {
			t.Errorf("the answer has the value: %s", r)
		}

		ask(t, g, "PUT", at+"short", "x", "Qlock-TTL", "2s").want(t, 200, "")
		ask(t, g, "GET", at+"short", "").want(t, 200, "")
		time.Sleep(5 * time.Second)
		ask(t, g, "GET", at+"short", "").want(t, 404, "no-key")

		keys := read[KeyList](t, ask(t, g, "GET", "/v1/stores/orders/keys", "").want(t, 200, ""))
		if got := fmt.Sprint(names(keys)); got != "[empty n text x/y.z]" || keys.More {
			t.Errorf("%s", got)
		}
		if got := fmt.Sprint(names(read[KeyList](t, ask(t, g, "GET", "/v1/stores/orders/keys?pattern=*.z", "")))); got != "[x/y.z]" {
			t.Errorf("%s", got)
		}
	})
}

func names(l *KeyList) []string {
	var out []string
	for _, k := range l.Keys {
		out = append(out, k.Key)
	}
	return out
}

// What is written under a lease is refused when the lock has a newer holder, and says whose.
func TestFencedWrites(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newStoreWorld(t)
		g := w.gateway()
		const at = "/v1/stores/orders/keys/"
		held := ask(t, g, "POST", "/v1/locks/nightly", `{"lease":"20s"}`).want(t, 201, "")
		id := held.lease.ID
		a := read[Written](t, ask(t, g, "PUT", at+"k", "one", "Qlock-Lease", id).want(t, 200, ""))
		if a.Token != held.lease.Token || a.Revision == 0 {
			t.Errorf("%+v, the lease has the token %d", a, held.lease.Token)
		}
		if got := ask(t, g, "GET", at+"k", "", "Qlock-Lease", id).want(t, 200, ""); string(got.body) != "one" {
			t.Errorf("%s", got)
		}
		ask(t, g, "POST", at+"n/add", `{"by":2}`, "Qlock-Lease", id).want(t, 200, "")
		ask(t, g, "DELETE", at+"n", "", "Qlock-Lease", id).want(t, 204, "")
		ask(t, g, "GET", at+"n", "", "Qlock-Lease", id).want(t, 404, "no-key")
		created := ask(t, g, "PUT", at+"c", "x", "Qlock-Lease", id, "If-None-Match", "*").want(t, 201, "")
		ask(t, g, "PUT", at+"c", "x", "Qlock-Lease", id, "If-None-Match", "*").want(t, 412, "conflict")
		ask(t, g, "PUT", at+"c", "y", "Qlock-Lease", id, "If-Match", created.header.Get("ETag")).want(t, 200, "")
		report := read[BucketReport](t, ask(t, g, "GET", "/v1/stores/orders", "").want(t, 200, ""))
		if len(report.Fences) != 1 || report.Fences[0].Name != "nightly" || report.Fences[0].Token != held.lease.Token || report.Fences[0].Client != "gateway" {
			t.Errorf("%+v", report)
		}

		// Somebody with a newer token takes the fence, as after a pause of this gateway.
		s, err := store.Open(t.Context(), w.js(), "orders", store.WithClient("rival"))
		if err != nil {
			t.Fatal(err)
		}
		rival := newerHold{"nightly", held.lease.Token + 1, t.Context()}
		if _, err := s.With(rival).Put(t.Context(), "k", []byte("rival's")); err != nil {
			t.Fatal(err)
		}
		for _, r := range []*reply{
			ask(t, g, "PUT", at+"k", "late", "Qlock-Lease", id),
			ask(t, g, "DELETE", at+"k", "", "Qlock-Lease", id),
			ask(t, g, "GET", at+"k", "", "Qlock-Lease", id),
			ask(t, g, "POST", "/v1/stores/orders/transactions", `{"ops":[{"op":"add","key":"n"}]}`, "Qlock-Lease", id),
		} {
			r.want(t, 409, "fenced")
			if r.fault.NewerToken != rival.token || r.fault.Client != "rival" || r.fault.Token != held.lease.Token {
				t.Errorf("%s", r)
			}
		}
		if got := ask(t, g, "GET", at+"k", ""); string(got.body) != "rival's" {
			t.Errorf("%s", got)
		}

		// A lease that is over, that waits, or that is somebody else's.
		ask(t, g, "DELETE", "/v1/leases/"+id, "").want(t, 204, "")
		if r := ask(t, g, "PUT", at+"k", "late", "Qlock-Lease", id).want(t, 410, "gone"); r.fault.Cause != causeReleased {
			t.Errorf("%s", r)
		}
		ask(t, g, "PUT", at+"k", "x", "Qlock-Lease", "nobody's").want(t, 404, "unknown-lease")
		other := ask(t, g, "POST", "/v1/locks/other", `{"lease":"1s"}`).want(t, 201, "")
		waits := ask(t, g, "POST", "/v1/locks/other", `{"wait":"10m"}`, "Prefer", "wait=0").want(t, 202, "")
		ask(t, g, "PUT", at+"k", "x", "Qlock-Lease", waits.lease.ID).want(t, 409, "held")
		time.Sleep(3 * time.Second)
		if r := ask(t, g, "PUT", at+"k", "x", "Qlock-Lease", other.lease.ID).want(t, 410, "gone"); r.fault.Cause != causeExpired {
			t.Errorf("%s", r)
		}
		ask(t, g, "PUT", at+"k", "granted", "Qlock-Lease", waits.lease.ID).want(t, 200, "")
		ask(t, g, "DELETE", "/v1/leases/"+waits.lease.ID, "").want(t, 204, "")

		settle() // the nodes have the release
		// A shared lease reads.
		shared := ask(t, g, "POST", "/v1/locks/other", `{"mode":"shared"}`).want(t, 201, "").lease.ID
		ask(t, g, "GET", at+"k", "", "Qlock-Lease", shared).want(t, 200, "")
		ask(t, g, "PUT", at+"k", "x", "Qlock-Lease", shared).want(t, 409, "read-only")
		ask(t, g, "DELETE", "/v1/leases/"+shared, "").want(t, 204, "")
		w.noClaims()
	})
}

// newerHold stands for a holder of the lock after the one that a gateway believes in.
type newerHold struct {
	name  string
	token uint64
	ctx   context.Context
}

func (h newerHold) Name() string             { return h.name }
func (h newerHold) Token() uint64            { return h.token }
func (h newerHold) Shared() bool             { return false }
func (h newerHold) Context() context.Context { return h.ctx }

// A transaction does all of its operations, or none.
func TestTransactions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newStoreWorld(t)
		g := w.gateway()
		const path = "/v1/stores/orders/transactions"
		a := read[TransactionAnswer](t, ask(t, g, "POST", path, `{"ops":[{"op":"put","key":"a","value":"1"},{"op":"create","key":"b","value_base64":"AP8="},{"op":"add","key":"n","by":7},{"op":"get","key":"a"},{"op":"get","key":"none"}]}`).want(t, 200, ""))
		r := a.Results
		if len(r) != 5 || r[0].Revision == 0 || *r[2].Number != 7 || *r[3].Value != "1" || !*r[3].Found || *r[4].Found || a.Duplicate {
			t.Errorf("%+v", a)
		}
		rev := strconv.FormatUint(r[0].Revision, 10)
		ask(t, g, "POST", path, `{"ops":[{"op":"update","key":"a","value":"2","revision":`+rev+`},{"op":"create","key":"b","value":"x"}]}`).want(t, 412, "conflict")
		if got := ask(t, g, "GET", "/v1/stores/orders/keys/a", ""); string(got.body) != "1" {
			t.Errorf("half of a transaction was done: %s", got)
		}
		ask(t, g, "POST", path, `{"ops":[{"op":"update","key":"a","value":"2","revision":`+rev+`},{"op":"delete","key":"b"}]}`).want(t, 200, "")
		ask(t, g, "POST", path, `{"ops":[{"op":"delete","key":"a","revision":`+rev+`},{"op":"add","key":"n"}]}`).want(t, 412, "conflict")
		if got := ask(t, g, "GET", "/v1/stores/orders/keys/n", ""); string(got.body) != "7" {
			t.Errorf("%s", got)
		}

		// The first answer is repeated.
		once := `{"once":"pay-7","once_ttl":"1m","ops":[{"op":"add","key":"total","by":10},{"op":"get","key":"a"}]}`
		first := read[TransactionAnswer](t, ask(t, g, "POST", path, once).want(t, 200, ""))
		ask(t, g, "POST", path, `{"ops":[{"op":"add","key":"total","by":1},{"op":"put","key":"a","value":"changed"}]}`).want(t, 200, "")
		again := read[TransactionAnswer](t, ask(t, g, "POST", path, once).want(t, 200, ""))
		if first.Duplicate || !again.Duplicate || *again.Results[0].Number != 10 || *again.Results[1].Value != "2" {
			t.Errorf("%+v, then %+v", first, again)
		}
		header := read[TransactionAnswer](t, ask(t, g, "POST", path, `{"ops":[{"op":"add","key":"total","by":10},{"op":"get","key":"a"}]}`, "Idempotency-Key", "pay-7").want(t, 200, ""))
		if !header.Duplicate {
			t.Errorf("%+v", header)
		}
		ask(t, g, "POST", path, `{"once":"pay-7","ops":[{"op":"add","key":"total","by":11},{"op":"get","key":"a"}]}`).want(t, 409, "once-mismatch")
		time.Sleep(2 * time.Minute)
		if r := read[TransactionAnswer](t, ask(t, g, "POST", path, once).want(t, 200, "")); r.Duplicate {
			t.Error("the id was remembered for longer than asked for")
		}

		// Under a lease.
		id := ask(t, g, "POST", "/v1/locks/nightly", "").want(t, 201, "").lease.ID
		if r := read[TransactionAnswer](t, ask(t, g, "POST", path, `{"lease":"`+id+`","ops":[{"op":"unchanged","key":"total"},{"op":"add","key":"total"},{"op":"unchanged","key":"none"}]}`).want(t, 200, "")); r.Token == 0 || *r.Results[2].Found || *r.Results[0].Value != "21" || *r.Results[1].Number != 22 {
			t.Errorf("%+v", r)
		}
		ask(t, g, "DELETE", "/v1/leases/"+id, "").want(t, 204, "")
		if got := g.Stats().Store; got[StoreOperation{"transaction", "done"}] != 6 || got[StoreOperation{"transaction", "duplicate"}] != 2 || got[StoreOperation{"transaction", "conflict"}] != 2 || got[StoreOperation{"transaction", "once-mismatch"}] != 1 {
			t.Errorf("%v", got)
		}
		w.noClaims()
	})
}

// A transaction that was done under a lease is told of as done when it is repeated after the
// lease's end, and not as refused.
func TestOnceOutlivesItsLease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newStoreWorld(t)
		a, b := w.gateway(), w.gateway(func(c *Config) { c.Client = "gateway2" })
		time.Sleep(time.Second)
		const path = "/v1/stores/orders/transactions"
		id := uuid.NewString()
		held := ask(t, a, "PUT", "/v1/leases/"+id, `{"name":"nightly","lease":"20s"}`).want(t, 201, "")
		body := func(once string, by int) string {
			return fmt.Sprintf(`{"lease":%q,"once":%q,"ops":[{"op":"add","key":"n","by":%d}]}`, id, once, by)
		}
		ask(t, a, "POST", path, body("o", 5)).want(t, 200, "")
		first := func(why string) {
			t.Helper()
			for _, g := range []*Gateway{a, b} {
				r := read[TransactionAnswer](t, ask(t, g, "POST", path, body("o", 5)).want(t, 200, ""))
				if !r.Duplicate || *r.Results[0].Number != 5 {
					t.Errorf("%s: %+v", why, r)
				}
			}
		}
		first("held")
		s, err := store.Open(t.Context(), w.js(), "orders", store.WithClient("rival"))
		if err != nil {
			t.Fatal(err)
		}
		rival := newerHold{"nightly", held.lease.Token + 1, t.Context()}
		if _, err := s.With(rival).Put(t.Context(), "k", []byte("rival's")); err != nil {
			t.Fatal(err)
		}
		first("fenced")
		ask(t, b, "POST", path, body("p", 5)).want(t, 409, "fenced")
		ask(t, a, "DELETE", "/v1/leases/"+id, "").want(t, 204, "")
		first("released")
		ask(t, b, "POST", path, body("p", 5)).want(t, 410, "gone")
		ask(t, b, "POST", path, body("o", 6)).want(t, 410, "gone") // another transaction, which was not done
		time.Sleep(11 * time.Minute)
		first("forgotten")
		ask(t, b, "POST", path, body("p", 5)).want(t, 404, "unknown-lease")
		if got := ask(t, a, "GET", "/v1/stores/orders/keys/n", ""); string(got.body) != "5" {
			t.Errorf("%s", got)
		}
	})
}

// One request acquires a lock, changes what it protects, and releases it.
func TestLockChangeUnlock(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newStoreWorld(t)
		g := w.gateway()
		const path = "/v1/stores/orders/transactions"
		body := func(once, rest string) string {
			return `{"once":"` + once + `","lock":{"name":"nightly"` + rest + `},"ops":[{"op":"get","key":"n"},{"op":"add","key":"n"}]}`
		}
		a := read[TransactionAnswer](t, ask(t, g, "POST", path, body("a", "")).want(t, 200, ""))
		if a.Token == 0 || *a.Results[1].Number != 1 || a.Lease != nil {
			t.Errorf("%+v", a)
		}
		w.noClaims()
		if a := read[TransactionAnswer](t, ask(t, g, "POST", path, body("a", "")).want(t, 200, "")); !a.Duplicate || *a.Results[1].Number != 1 || a.Token != 0 {
			t.Errorf("%+v", a)
		}
		w.noClaims()

		// The lock is held: nothing is done. But what was done before is found.
		other := w.locker("other")
		lock, err := other.Lock(t.Context(), "nightly")
		if err != nil {
			t.Fatal(err)
		}
		if r := ask(t, g, "POST", path, body("b", "")).want(t, 409, "held"); r.fault.Blocker == nil || r.fault.Blocker.Client != "other" {
			t.Errorf("%s", r)
		}
		start := time.Now()
		ask(t, g, "POST", path, body("b", `,"wait":"2s"`)).want(t, 409, "held")
		if d := time.Since(start); d < 2*time.Second || d > 3*time.Second {
			t.Errorf("it waited for %v", d)
		}
		if a := read[TransactionAnswer](t, ask(t, g, "POST", path, body("a", "")).want(t, 200, "")); !a.Duplicate || *a.Results[1].Number != 1 {
			t.Errorf("%+v", a)
		}
		c := later(t, g, "POST", path, body("b", `,"wait":"30s"`))
		time.Sleep(3 * time.Second)
		if err := lock.Unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		if a := read[TransactionAnswer](t, (<-c).want(t, 200, "")); *a.Results[1].Number != 2 || a.Duplicate {
			t.Errorf("%+v", a)
		}
		w.noClaims()

		// The lease can be kept.
		kept := ask(t, g, "POST", path, `{"once":"c","lock":{"encoded":"nightly","lease":"20s","note":"keeps it"},"unlock":false,"ops":[{"op":"put","key":"k","value":"v"}]}`).want(t, 200, "")
		a = read[TransactionAnswer](t, kept)
		if a.Lease == nil || a.Lease.State != "held" || a.Lease.Token != a.Token || a.Lease.ExpiresInMS <= 0 || kept.header.Get("Location") != "/v1/leases/"+a.Lease.ID {
			t.Fatalf("%+v", a)
		}
		ask(t, g, "PUT", "/v1/stores/orders/keys/k", "w", "Qlock-Lease", a.Lease.ID).want(t, 200, "")
		ask(t, g, "DELETE", "/v1/leases/"+a.Lease.ID, "").want(t, 204, "")
		settle() // the nodes have the release
		// A request that fails leaves nothing.
		ask(t, g, "POST", path, `{"once":"d","lock":{"name":"nightly"},"unlock":false,"ops":[{"op":"create","key":"k","value":"v"}]}`).want(t, 412, "conflict")
		w.noClaims()
		// Nor does one whose caller has left.
		if lock, err = other.Lock(t.Context(), "nightly"); err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancel(t.Context())
		gone := make(chan *reply, 1)
		go func() { gone <- askIn(t, ctx, g, "POST", path, body("e", `,"wait":"30s"`)) }()
		time.Sleep(time.Second)
		leave()
		<-gone
		if err := lock.Unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.noClaims()

		ask(t, g, "POST", path, `{"lock":{"name":"nightly"},"ops":[{"op":"get","key":"k"}]}`).want(t, 422, "invalid")
		ask(t, g, "POST", path, body("f", `,"wait":"2h"`)).want(t, 422, "invalid")
		if got := g.Stats().Store; got[StoreOperation{"lock", "done"}] != 3 || got[StoreOperation{"lock", "held"}] < 2 {
			t.Errorf("%v", got)
		}
	})
}

// Many requests that lock, change and unlock: each counts once, however often it is repeated and
// at whichever gateway.
func TestLockChangeUnlockByMany(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newStoreWorld(t)
		gs := []*Gateway{w.gateway(), w.gateway(func(c *Config) { c.Client = "gateway2" })}
		const clients, each = 4, 5
		var all sync.WaitGroup
		for i := range clients {
			all.Go(func() {
				for j := range each {
					body := fmt.Sprintf(`{"once":"%d-%d","lock":{"name":"sum","wait":"50s"},"ops":[{"op":"get","key":"n"},{"op":"add","key":"n"}]}`, i, j)
					for k := range 2 {
						a := read[TransactionAnswer](t, ask(t, gs[(i+j+k)%2], "POST", "/v1/stores/orders/transactions", body).want(t, 200, ""))
						if a.Duplicate != (k == 1) {
							t.Errorf("%d-%d: %+v", i, j, a)
						}
					}
				}
			})
		}
		all.Wait()
		if got := ask(t, gs[0], "GET", "/v1/stores/orders/keys/n", ""); string(got.body) != strconv.Itoa(clients*each) {
			t.Errorf("%s", got)
		}
		w.noClaims()
	})
}

// Requests wait for a change of a key, or for the time.
func TestAwaitKey(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newStoreWorld(t)
		g := w.gateway(func(c *Config) { c.Limits.KeyWaits = 3 })
		const at = "/v1/stores/orders/keys/k"
		ask(t, g, "GET", at, "", "Prefer", "wait=5").want(t, 422, "invalid") // wait for what?
		start := time.Now()
		ask(t, g, "GET", at+"?after=0&wait=5", "").want(t, 404, "no-key")
		if d := time.Since(start); d < 5*time.Second || d > 7*time.Second {
			t.Errorf("it waited for %v", d)
		}
		born := later(t, g, "GET", at+"?after=0&wait=30", "")
		ask(t, g, "PUT", at, "one").want(t, 200, "")
		one := (<-born).want(t, 200, "")
		tag := one.header.Get("ETag")
		if string(one.body) != "one" || tag == "" {
			t.Errorf("%s", one)
		}
		ask(t, g, "GET", at+"?after=0&wait=30", "").want(t, 200, "")
		start = time.Now()
		ask(t, g, "GET", at, "", "Prefer", "wait=5", "If-None-Match", tag).want(t, 304, "")
		if d := time.Since(start); d < 5*time.Second || d > 7*time.Second {
			t.Errorf("it waited for %v", d)
		}
		var waits []chan *reply
		for range 3 {
			waits = append(waits, later(t, g, "GET", at, "", "Prefer", "wait=30", "If-None-Match", tag))
		}
		if n := g.Stats().KeyWaits; n != 3 {
			t.Errorf("%d wait", n)
		}
		ask(t, g, "GET", at, "", "Prefer", "wait=30", "If-None-Match", tag).want(t, 429, "too-many")
		ask(t, g, "PUT", at, "two").want(t, 200, "")
		for _, c := range waits {
			if r := (<-c).want(t, 200, ""); string(r.body) != "two" {
				t.Errorf("%s", r)
			}
		}
		// A deletion is a change.
		two := ask(t, g, "GET", at, "").header.Get("ETag")
		c := later(t, g, "GET", at, "", "Prefer", "wait=30", "If-None-Match", two)
		ask(t, g, "DELETE", at, "").want(t, 204, "")
		if r := (<-c).want(t, 404, "no-key"); r.fault.Revision == 0 {
			t.Errorf("%s", r)
		}
		// Lists of keys wait as other lists do.
		list := ask(t, g, "GET", "/v1/stores/orders/keys", "").want(t, 200, "")
		c = later(t, g, "GET", "/v1/stores/orders/keys", "", "Prefer", "wait=30", "If-None-Match", list.header.Get("ETag"))
		ask(t, g, "PUT", at, "three").want(t, 200, "")
		if l := read[KeyList](t, (<-c).want(t, 200, "")); len(l.Keys) != 1 {
			t.Errorf("%+v", l)
		}
		// A gateway that stops keeps nobody waiting.
		tag = ask(t, g, "GET", at, "").header.Get("ETag")
		c = later(t, g, "GET", at, "", "Prefer", "wait=50", "If-None-Match", tag)
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		(<-c).want(t, 503, "draining")
		if n := g.Stats().KeyWaits; n != 0 {
			t.Errorf("%d wait", n)
		}
	})
}

// Requests under a lease of another gateway are done there.
func TestStoreElsewhere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newStoreWorld(t)
		a, b := w.gateway(), w.gateway(func(c *Config) { c.Client = "gateway2" })
		time.Sleep(time.Second)
		const at = "/v1/stores/orders/keys/"
		id := uuid.NewString()
		ask(t, a, "PUT", "/v1/leases/"+id, `{"name":"nightly","lease":"20s"}`).want(t, 201, "")
		ours := ask(t, a, "POST", "/v1/locks/other", `{"lease":"20s"}`).want(t, 201, "").lease.ID
		for _, lease := range []string{id, ours} {
			wrote := read[Written](t, ask(t, b, "PUT", at+"k", "\x00\xff", "Qlock-Lease", lease).want(t, 200, ""))
			if wrote.Gateway != a.Name() || wrote.Token == 0 {
				t.Errorf("%+v", wrote)
			}
			if got := ask(t, b, "GET", at+"k", "", "Qlock-Lease", lease).want(t, 200, ""); string(got.body) != "\x00\xff" {
				t.Errorf("%q", got.body)
			}
		}
		ask(t, b, "PUT", at+"k", "x", "Qlock-Lease", id, "If-None-Match", "*").want(t, 412, "conflict")
		ask(t, b, "POST", "/v1/stores/none/transactions", `{"lease":"`+id+`","ops":[{"op":"get","key":"k"}]}`).want(t, 404, "no-bucket")
		once := `{"lease":"` + id + `","once":"o","ops":[{"op":"add","key":"n"}]}`
		ask(t, b, "POST", "/v1/stores/orders/transactions", once).want(t, 200, "")
		if r := read[TransactionAnswer](t, ask(t, a, "POST", "/v1/stores/orders/transactions", once)); !r.Duplicate || r.Token != 0 {
			t.Errorf("%+v", r)
		}
		// A value that fits into a message of JetStream may not fit into one between gateways.
		large := strings.Repeat("\xff", 900<<10)
		ask(t, a, "PUT", at+"large", large, "Qlock-Lease", id).want(t, 200, "")
		ask(t, b, "PUT", at+"large", large, "Qlock-Lease", id).want(t, 413, "too-large")
		ask(t, b, "PUT", at+"large", large[:700<<10], "Qlock-Lease", id).want(t, 200, "")
		ask(t, a, "DELETE", "/v1/leases/"+id, "").want(t, 204, "")
		if r := ask(t, b, "PUT", at+"k", "x", "Qlock-Lease", id).want(t, 410, "gone"); r.fault.Cause != causeReleased {
			t.Errorf("%s", r)
		}
		ask(t, b, "PUT", at+"k", "x", "Qlock-Lease", uuid.NewString()).want(t, 404, "unknown-lease")
		// Its gateway is gone.
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second) // what is on the way between servers when it stops has no answer
		if r := ask(t, b, "PUT", at+"k", "x", "Qlock-Lease", ours).want(t, 410, "gone"); r.fault.Cause != causeGatewayLost {
			t.Errorf("%s", r)
		}
	})
}

// The bytes between gateways are not trusted, as everywhere.
func TestStoreElsewhereHostile(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newStoreWorld(t)
		g := w.gateway()
		id := uuid.NewString()
		ask(t, g, "PUT", "/v1/leases/"+id, `{"name":"nightly","lease":"20s"}`).want(t, 201, "")
		key := keyOf(g.only, id).hex()
		nc := w.connect()
		for body, want := range map[string]string{
			`{"lease":"` + key + `","request":"r","transaction":{"ops":null}}`:                                                              "invalid",
			`{"lease":"` + key + `","request":"r","transaction":{"ops":[{"op":"put","key":"k"}]}}`:                                          "invalid",
			`{"lease":"` + key + `","request":"r","transaction":{"bucket":"orders","once":"x","lock":{"name":"x"},"ops":[{"op":"get"}]}}`:   "unknown-lease",
			`{"lease":"` + key + `","request":"r","transaction":{"bucket":"$KV.>","ops":[{"op":"get","key":"k"}]}}`:                         "invalid",
			`{"lease":"abc","request":"r","transaction":{"ops":[{"op":"get","key":"k"}]}}`:                                                  "unknown-lease",
			`{"lease":"` + key + `","request":"r","principal":"caller/x","transaction":{"bucket":"orders","ops":[{"op":"get","key":"k"}]}}`: "unknown-lease",
		} {
			m, err := nc.Request("lock.default.gw.to."+g.Name()+".store", []byte(body), 5*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			a := new(answered)
			if err := json.Unmarshal(m.Data, a); err != nil || a.Problem == nil || a.Problem.Kind() != want {
				t.Errorf("%s: %s", body, m.Data)
			}
		}
		for _, body := range []string{"", "{", "[]", "null", `{"request":"r"}`, `{"transaction":{}}`} {
			if _, err := nc.Request("lock.default.gw.to."+g.Name()+".store", []byte(body), time.Second); err == nil {
				t.Errorf("%s: it was answered", body)
			}
		}
		if n := g.Stats().Panics; n != 0 {
			t.Errorf("%d panics", n)
		}
		for _, text := range []string{"", "{", "null", "{}", `{"transaction":{},"problem":{}}`} {
			if a, p := readTransaction([]byte(text), true); a != nil || p.Kind() != "unknown-outcome" {
				t.Errorf("%s: %v %v", text, a, p)
			}
			if a, p := readTransaction([]byte(text), false); a != nil || p.Kind() != "unreachable" {
				t.Errorf("%s: %v %v", text, a, p)
			}
		}
	})
}

// Without JetStream, the gateway says so and serves all the rest. A bucket that cannot be used
// says what it lacks.
func TestStoreIsNotThere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newWorld(t, 3).gateway()
		for _, r := range []*reply{
			ask(t, g, "GET", "/v1/stores", ""), ask(t, g, "GET", "/v1/stores/orders", ""), ask(t, g, "GET", "/v1/stores/orders/keys", ""),
			ask(t, g, "GET", "/v1/stores/orders/keys/k", ""), ask(t, g, "PUT", "/v1/stores/orders/keys/k", "x"), ask(t, g, "GET", "/v1/stores/orders/keys/k?after=0&wait=3", ""),
			ask(t, g, "POST", "/v1/stores/orders/transactions", `{"once":"x","lock":{"name":"l"},"ops":[{"op":"get","key":"k"}]}`),
		} {
			r.want(t, 501, "no-jetstream")
		}
		ask(t, g, "POST", "/v1/locks/nightly", "").want(t, 201, "")
	})
	bubble(t, func(t *testing.T) {
		w := newStoreWorld(t)
		g := w.gateway()
		if _, err := w.js().CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "plain", Storage: jetstream.MemoryStorage}); err != nil {
			t.Fatal(err)
		}
		for _, r := range []*reply{ask(t, g, "GET", "/v1/stores/plain/keys/k", ""), ask(t, g, "PUT", "/v1/stores/plain/keys/k", "x"), ask(t, g, "GET", "/v1/stores/plain", "")} {
			r.want(t, 501, "not-prepared")
			if r.fault.Command != "qlock store prepare plain" || len(r.fault.Missing) == 0 {
				t.Errorf("%s", r)
			}
		}
		ask(t, g, "GET", "/v1/stores/none/keys/k", "").want(t, 404, "no-bucket")
		list := read[BucketList](t, ask(t, g, "GET", "/v1/stores", "").want(t, 200, ""))
		if len(list.Buckets) != 2 || !list.Buckets[0].Prepared || list.Buckets[0].Bucket != "orders" || list.Buckets[1].Prepared || list.Buckets[1].Command != "qlock store prepare plain" {
			t.Errorf("%+v", list)
		}
		if err := store.Prepare(t.Context(), w.js(), "plain"); err != nil {
			t.Fatal(err)
		}
		ask(t, g, "PUT", "/v1/stores/plain/keys/k", "x").want(t, 200, "")
		// A bucket that goes away while it is open, and comes back.
		if err := w.js().DeleteKeyValue(t.Context(), "plain"); err != nil {
			t.Fatal(err)
		}
		ask(t, g, "PUT", "/v1/stores/plain/keys/k", "x").want(t, 404, "no-bucket")
		if _, err := store.Create(t.Context(), w.js(), jetstream.KeyValueConfig{Bucket: "plain", Storage: jetstream.MemoryStorage}); err != nil {
			t.Fatal(err)
		}
		ask(t, g, "PUT", "/v1/stores/plain/keys/k", "x").want(t, 200, "")

		full, err := store.Create(t.Context(), w.js(), jetstream.KeyValueConfig{Bucket: "full", Storage: jetstream.MemoryStorage, MaxBytes: 2048})
		if err != nil {
			t.Fatal(err)
		}
		ask(t, g, "PUT", "/v1/stores/"+full.Bucket()+"/keys/k", strings.Repeat("x", 4000)).want(t, 507, "full")

		// The bucket's own limit for a value, of one message and of a batch.
		if _, err := store.Create(t.Context(), w.js(), jetstream.KeyValueConfig{Bucket: "narrow", Storage: jetstream.MemoryStorage, MaxValueSize: 600}); err != nil {
			t.Fatal(err)
		}
		for _, r := range []*reply{
			ask(t, g, "PUT", "/v1/stores/narrow/keys/k", strings.Repeat("x", 700)),
			ask(t, g, "POST", "/v1/stores/narrow/transactions", `{"once":"x","ops":[{"op":"put","key":"k","value":"`+strings.Repeat("x", 700)+`"}]}`),
		} {
			if r.want(t, 413, "too-large"); !strings.Contains(r.fault.Detail, "limit was 600") || r.fault.Retryable {
				t.Errorf("%s", r)
			}
		}
		ask(t, g, "PUT", "/v1/stores/narrow/keys/k", "x").want(t, 200, "")

		// Buckets that no change lets have fences.
		if _, err := w.js().CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "mirror", Storage: jetstream.MemoryStorage, Mirror: &jetstream.StreamSource{Name: "KV_orders"}}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.js().CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "tiny", Storage: jetstream.MemoryStorage, MaxValueSize: 100}); err != nil {
			t.Fatal(err)
		}
		for bucket, why := range map[string]string{"mirror": "a mirror of KV_orders", "tiny": "at most 100 bytes"} {
			at := "/v1/stores/" + bucket
			for _, r := range []*reply{
				ask(t, g, "GET", at, ""), ask(t, g, "GET", at+"/keys/k", ""), ask(t, g, "PUT", at+"/keys/k", "x"),
				ask(t, g, "POST", at+"/transactions", `{"ops":[{"op":"get","key":"k"}]}`),
			} {
				if r.want(t, 422, "unsupported"); !strings.Contains(r.fault.Detail, why) {
					t.Errorf("%s", r)
				}
			}
		}
	})
}

// Input that cannot be right is refused, and nothing of it is trusted.
func TestStoreHostileInput(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newStoreWorld(t)
		g := w.gateway(func(c *Config) {
			c.Limits.Value, c.Limits.Transaction, c.Limits.Operations = 2000, 5000, 10
		})
		const path = "/v1/stores/orders/transactions"
		ops := func(n int) string {
			return `{"ops":[` + strings.TrimSuffix(strings.Repeat(`{"op":"add","key":"n"},`, n), ",") + `]}`
		}
		for body, want := range map[string]string{
			``: "422 invalid", `{}`: "422 invalid", `{"ops":null}`: "422 invalid", `{"ops":[null]}`: "422 invalid", `{"ops":{}}`: "422 invalid", `[]`: "400 malformed", `{"ops":[{}]}`: "422 invalid",
			`{"ops":[[]]}`: "422 invalid",
			`{"ops":[{"op":"get","key":"a","key":"b"}]}`:                                    "400 malformed",
			`{"ops":[{"op":"get","key":"a","KEY":"b"}]}`:                                    "422 invalid",
			`{"ops":[{"op":"get","key":"a"}],"ops":[]}`:                                     "400 malformed",
			`{"ops":[{"op":"run","key":"a"}]}`:                                              "422 invalid",
			`{"ops":[{"op":"put","key":"a"}]}`:                                              "422 invalid",
			`{"ops":[{"op":"put","key":"a","value":7}]}`:                                    "422 invalid",
			`{"ops":[{"op":"put","key":"a","value_base64":"="}]}`:                           "422 invalid",
			`{"ops":[{"op":"put","key":"a","value":"x","value_base64":""}]}`:                "422 invalid",
			`{"ops":[{"op":"get","key":"a","value":"x"}]}`:                                  "422 invalid",
			`{"ops":[{"op":"put","key":"a","value":"x","ttl":"1ms"}]}`:                      "422 invalid",
			`{"ops":[{"op":"put","key":"a","value":"x","by":1}]}`:                           "422 invalid",
			`{"ops":[{"op":"add","key":"a","by":9223372036854775808}]}`:                     "422 invalid",
			`{"ops":[{"op":"update","key":"a","value":"x"}]}`:                               "422 invalid",
			`{"ops":[{"op":"get","key":""}]}`:                                               "422 invalid",
			`{"ops":[{"op":"get","key":"a.>"}]}`:                                            "422 invalid",
			`{"ops":[{"op":"get","key":"` + strings.Repeat("k", 3000) + `"}]}`:              "422 invalid",
			`{"ops":[{"op":"get","key":"a"}],"once":"` + strings.Repeat("k", 2000) + `"}`:   "422 invalid",
			`{"ops":[{"op":"get","key":"a"}],"lease":"x","once":"y","lock":{"name":"x"}}`:   "422 invalid",
			`{"ops":[{"op":"get","key":"a"}],"once":"y","lock":{"name":"x","encoded":"x"}}`: "422 invalid",
			`{"ops":[{"op":"get","key":"a"}],"once":"y","lock":{"name":"x","nom":"x"}}`:     "422 invalid",
			`{"ops":[{"op":"get","key":"a"}],"once":"y","lock":{"name":"x","name":"y"}}`:    "400 malformed",
			`{"ops":[{"op":"get","key":"a"}],"once":"y","lock":{}}`:                         "422 invalid",
			`{"ops":[{"op":"get","key":"a"}],"unlock":true}`:                                "422 invalid",
			`{"ops":[{"op":"get","key":"a"}],"once_ttl":"1h"}`:                              "422 invalid",
			`{"ops":[{"op":"get","key":"a"}],"bucket":"orders"}`:                            "422 invalid",
			ops(11): "413 too-large", strings.Repeat(" ", 6000): "413 too-large",
			`{"ops":[{"op":"put","key":"a","value":"` + strings.Repeat("x", 2001) + `"}]}`: "413 too-large",
			`{"ops":` + strings.Repeat("[", 2000) + strings.Repeat("]", 2000) + `}`:        "422 invalid",
		} {
			if r := ask(t, g, "POST", path, body); fmt.Sprint(r.status, " ", r.fault.Kind()) != want {
				t.Errorf("%.100s: want %s, got %s", body, want, r)
			}
		}
		ask(t, g, "POST", path, ops(10)).want(t, 200, "")
		for _, bucket := range []string{"$KV", "a.b", "*", "%3E", "a%20b", "a%2Fb", strings.Repeat("b", 65), "%FF"} {
			ask(t, g, "GET", "/v1/stores/"+bucket+"/keys/k", "").want(t, 422, "invalid")
			ask(t, g, "GET", "/v1/stores/"+bucket, "").want(t, 422, "invalid")
		}
		const at = "/v1/stores/orders/keys/"
		for _, key := range []string{"a..b", ".a", "a.", "%2A", "%3E", "a%20b", "%FF", "a%0D%0Ab", "%24KV"} {
			ask(t, g, "GET", at+key, "").want(t, 422, "invalid")
			ask(t, g, "PUT", at+key, "x").want(t, 422, "invalid")
			ask(t, g, "GET", at+key+"?after=0&wait=1", "").want(t, 422, "invalid")
		}
		for _, pattern := range []string{"a..b", "%3E.a", "a*", "a%20b", "%FF", "%24KV.%3E"} {
			ask(t, g, "GET", "/v1/stores/orders/keys?pattern="+pattern, "").want(t, 422, "invalid")
		}
		ask(t, g, "PUT", at+"a", strings.Repeat("x", 2001)).want(t, 413, "too-large")
		ask(t, g, "PUT", at+"a", strings.Repeat("x", 2000)).want(t, 200, "")
		for _, header := range [][]string{{"If-Match", "17"}, {"If-Match", "*"}, {"If-Match", `W/"17"`}, {"If-Match", `"0"`}, {"If-Match", `"1","2"`}, {"If-None-Match", `"1"`}, {"If-Match", `"1"`, "If-None-Match", "*"}, {"Qlock-TTL", "1ms"}, {"Qlock-TTL", "x"}, {"Idempotency-Key", "x"}} {
			ask(t, g, "PUT", at+"a", "x", header...).want(t, 422, "invalid")
		}
		ask(t, g, "GET", at+"a?after=-1&wait=1", "").want(t, 422, "invalid")
		ask(t, g, "GET", at+"a?after=0&wait=100000", "").want(t, 422, "invalid")
		ask(t, g, "PUT", at+"a", "x", "Sec-Fetch-Site", "cross-site").want(t, 403, "cross-origin")
		ask(t, g, "POST", path, `{"ops":[{"op":"get","key":"a"}],"lease":"x"}`, "Qlock-Lease", "y").want(t, 422, "invalid")
		ask(t, g, "POST", at+"a/add", `{"key":"b"}`).want(t, 422, "invalid")
		if n := g.Stats().Panics; n != 0 {
			t.Errorf("%d panics", n)
		}
	})
}
