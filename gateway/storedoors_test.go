package gateway

import (
	"encoding/json"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/permissions"
	"github.com/qlock/qlock/store"
)

// natsDoor asks at the NATS door, and holds answers against the OpenAPI document.
func natsDoor(t *testing.T, nc *nats.Conn, verb, rest, body, status string) *reply {
	t.Helper()
	m, err := nc.Request("lock.default.api."+verb+rest, []byte(body), time.Minute)
	if err != nil {
		t.Fatalf("%s %s: %v", verb, body, err)
	}
	doc, err := document()
	if err != nil {
		t.Fatal(err)
	}
	out := &reply{body: m.Data}
	schema, code := "", m.Header.Get("Status")
	if e := m.Header.Get("Nats-Service-Error-Code"); e != "" {
		code, schema = e, "Problem"
		if err := json.Unmarshal(m.Data, &out.fault); err != nil {
			t.Error(err)
		}
	} else if len(m.Data) > 0 {
		schema = map[string]string{"store-get": "Entry", "store-put": "Written", "store-add": "Written", "store-transact": "TransactionAnswer", "stores": "BucketList", "store": "BucketReport", "store-keys": "KeyList", "acquire": "Lease"}[verb]
	}
	if schema != "" {
		checkBody(t, &http.Request{Method: verb}, out, doc.Components.Schemas[schema].Value)
	}
	if code+" "+out.fault.Kind() != status && code != status {
		t.Fatalf("%s %s: want %s, got %s %s", verb, body, status, code, m.Data)
	}
	return out
}

// The store is at the NATS door too, with the same JSON.
func TestStoreAtTheNATSDoor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newStoreWorld(t)
		g := w.gateway()
		if err := g.ServeNATS(); err != nil {
			t.Fatal(err)
		}
		settle() // the server has its subscriptions
		nc := w.connect().Conn
		ask := func(verb, body, status string) *reply {
			t.Helper()
			return natsDoor(t, nc, verb, "", body, status)
		}
		first := read[Written](t, ask("store-put", `{"bucket":"orders","key":"a","value":"one","create":true}`, "201"))
		if r := ask("store-put", `{"bucket":"orders","key":"a","value":"two","create":true}`, "412 conflict"); r.fault.Revision != first.Revision {
			t.Errorf("%s", r)
		}
		if e := read[Entry](t, ask("store-get", `{"bucket":"orders","key":"a"}`, "200")); *e.Value != "one" || e.Revision != first.Revision {
			t.Errorf("%+v", e)
		}
		ask("store-get", `{"bucket":"orders","key":"none"}`, "404 no-key")
		ask("store-get", `{"bucket":"orders","key":"a","wait":"3s"}`, "422 invalid")
		waits := make(chan *nats.Msg, 1)
		go func() {
			m, err := nc.Request("lock.default.api.store-get", []byte(`{"bucket":"orders","key":"b","after":0,"wait":"30s"}`), time.Minute)
			if err != nil {
				t.Error(err)
			}
			waits <- m
		}()
		settle()
		ask("store-put", `{"bucket":"orders","key":"b","value_base64":"AP8=","ttl":"1h"}`, "200")
		if m := <-waits; !strings.Contains(string(m.Data), `"value_base64":"AP8="`) {
			t.Errorf("%s", m.Data)
		}
		ask("store-add", `{"bucket":"orders","key":"n","by":4}`, "200")
		id := read[Lease](t, ask("acquire", `{"name":"nightly"}`, "201")).ID
		if a := read[Written](t, ask("store-put", `{"bucket":"orders","key":"a","value":"fenced","lease":"`+id+`"}`, "200")); a.Token == 0 {
			t.Errorf("%+v", a)
		}
		ask("store-delete", `{"bucket":"orders","key":"a","revision":1,"lease":"`+id+`"}`, "412 conflict")
		ask("store-delete", `{"bucket":"orders","key":"a","lease":"`+id+`"}`, "204")
		ask("release", `{"id":"`+id+`"}`, "204")
		ask("store-put", `{"bucket":"orders","key":"a","value":"late","lease":"`+id+`"}`, "410 gone")
		for _, want := range []bool{false, true} {
			if a := read[TransactionAnswer](t, ask("store-transact", `{"bucket":"orders","once":"x","lock":{"name":"nightly","wait":"5s"},"ops":[{"op":"add","key":"n"}]}`, "200")); a.Duplicate != want || *a.Results[0].Number != 5 {
				t.Errorf("%+v", a)
			}
		}
		if l := read[KeyList](t, ask("store-keys", `{"bucket":"orders","pattern":"*"}`, "200")); len(l.Keys) != 2 {
			t.Errorf("%+v", l)
		}
		if r := read[BucketReport](t, ask("store", `{"bucket":"orders"}`, "200")); len(r.Fences) != 1 {
			t.Errorf("%+v", r)
		}
		ask("stores", ``, "200")
		ask("store-get", `{"bucket":"none","key":"a"}`, "404 no-bucket")
		ask("store-put", `{"bucket":"orders","key":"a"}`, "422 invalid")
		ask("store-get", `{"key":"a","nom":1}`, "422 invalid")
		ask("store-get", strings.Repeat(" ", 70<<10), "413 too-large")
		// A value that JSON makes larger than a message may be.
		ask("store-put", `{"bucket":"orders","key":"large","value":"`+strings.Repeat("<", 900<<10)+`"}`, "200")
		ask("store-get", `{"bucket":"orders","key":"large"}`, "413 too-large")
		w.noClaims()
	})
}

// Callers that stand in the subject may name bucket and key there, and then nowhere else.
func TestStoreOfCallers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newStoreWorld(t)
		g := w.gateway(func(c *Config) { c.Callers = true })
		if err := g.ServeNATS(); err != nil {
			t.Fatal(err)
		}
		settle() // the server has its subscriptions
		nc := w.connect().Conn
		ask := func(verb, rest, body, status string) *reply {
			t.Helper()
			return natsDoor(t, nc, verb, rest, body, status)
		}
		ask("store-put", ".billing.orders.order.7", `{"value":"one"}`, "200")
		if e := read[Entry](t, ask("store-get", ".billing.orders.order.7", "", "200")); e.Bucket != "orders" || e.Key != "order.7" || *e.Value != "one" {
			t.Errorf("%+v", e)
		}
		ask("store-get", ".billing.orders.order.7", `{"key":"other"}`, "422 invalid")
		ask("store-get", ".billing.orders.order.7", `{"bucket":"other"}`, "422 invalid")
		ask("store-get", ".billing.orders", ``, "422 invalid")
		ask("store-get", ".billing", `{"bucket":"orders","key":"order.7"}`, "200")
		ask("store-add", ".billing.orders.n", `{"by":2}`, "200")
		ask("store-delete", ".billing.orders.order.7", ``, "204")
		ask("store-keys", ".billing.orders", ``, "200")
		ask("store", ".billing.orders", ``, "200")
		ask("store-transact", ".billing.orders", `{"ops":[{"op":"get","key":"n"}]}`, "200")
		ask("store-transact", ".billing.orders", `{"bucket":"orders","ops":[{"op":"get","key":"n"}]}`, "422 invalid")
		// The subject does not name the lock, so permissions do not guard it.
		ask("store-transact", ".billing.orders", `{"once":"x","lock":{"name":"y"},"ops":[{"op":"get","key":"n"}]}`, "422 invalid")
		ask("store-transact", ".billing.orders", `{"once":"x","lock":{},"ops":[{"op":"get","key":"n"}]}`, "422 invalid")
		ask("store-transact", ".billing", `{"bucket":"orders","once":"x","lock":{"name":"y"},"ops":[{"op":"get","key":"n"}]}`, "200")
		// The lease of a caller is unknown to others.
		id := read[Lease](t, ask("acquire", ".billing.nightly", ``, "201")).ID
		ask("store-put", ".billing.orders.k", `{"value":"x","lease":"`+id+`"}`, "200")
		ask("store-put", ".other.orders.k", `{"value":"x","lease":"`+id+`"}`, "404 unknown-lease")
		ask("store-transact", ".other.orders", `{"lease":"`+id+`","ops":[{"op":"get","key":"k"}]}`, "404 unknown-lease")
		ask("release", ".billing.nightly", `{"id":"`+id+`"}`, "204")
	})
}

// The permissions on the page are enough for the store, and a user that lacks them is told which.
func TestStorePermissions(t *testing.T) {
	page, err := os.ReadFile("../docs/gateway.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```text\npublish: \\[([^`]*STREAM.LIST[^`]*)\\]\n```").FindStringSubmatch(string(page))
	if block == nil {
		t.Fatal("the page has no permissions for the store")
	}
	var subjects []string
	for _, m := range regexp.MustCompile(`"([^"]+)"`).FindAllStringSubmatch(block[1], -1) {
		subjects = append(subjects, strings.ReplaceAll(m[1], ".prod.", ".default."))
	}
	client := func(name string, more ...string) *server.User {
		u, err := permissions.NewClient("default", name)
		u.Publish = append(u.Publish, more...)
		return userOf(t, u, err)
	}
	view := []string{"$KV.orders-qlock.guard", "$JS.API.DIRECT.GET.KV_orders", "$JS.API.STREAM.INFO.KV_orders"}
	bubble(t, func(t *testing.T) {
		w := newStoreWorld(t, &server.User{Username: "all", Password: "pw"}, client("keeper", subjects...), client("view", view...), client("locks"))
		var dials atomic.Int64
		g, other := w.gatewayForUsers(&dials), w.gatewayForUsers(&dials)
		time.Sleep(time.Second) // they have heard of each other
		keeper, reader, locks := basic("keeper", "pw-keeper"), basic("view", "pw-view"), basic("locks", "pw-locks")
		const at = "/v1/stores/orders/keys/"
		ask(t, g, "GET", at+"k", "").want(t, 401, "unauthenticated")
		ask(t, g, "PUT", at+"k", "one", "Authorization", keeper).want(t, 200, "")
		id := ask(t, g, "POST", "/v1/locks/nightly", "", "Authorization", keeper).want(t, 201, "").lease.ID
		ask(t, g, "PUT", at+"k", "two", "Authorization", keeper, "Qlock-Lease", id).want(t, 200, "")
		ask(t, g, "POST", "/v1/stores/orders/transactions", `{"once":"x","lock":{"name":"other"},"ops":[{"op":"add","key":"n"}]}`, "Authorization", keeper).want(t, 200, "")
		ask(t, g, "GET", at+"none?after=0&wait=1", "", "Authorization", keeper).want(t, 404, "no-key")
		for _, path := range []string{"/v1/stores", "/v1/stores/orders", "/v1/stores/orders/keys"} {
			ask(t, g, "GET", path, "", "Authorization", keeper).want(t, 200, "")
		}
		if f := read[BucketReport](t, ask(t, g, "GET", "/v1/stores/orders", "", "Authorization", keeper)).Fences; len(f) != 2 || f[0].Client != "keeper" {
			t.Errorf("%+v", f)
		}

		ask(t, g, "GET", at+"k", "", "Authorization", reader).want(t, 200, "")
		ask(t, g, "GET", "/v1/stores/orders", "", "Authorization", reader).want(t, 200, "")
		ask(t, g, "GET", at+"k", "", "Authorization", reader, "Qlock-Lease", id).want(t, 404, "unknown-lease")
		for _, c := range []struct {
			who, method, path, body, subject string
		}{
			{reader, "PUT", at + "k", "three", "$KV.orders.k"},
			{reader, "GET", "/v1/stores", "", "$JS.API.STREAM.LIST"},
			{reader, "GET", "/v1/stores/orders/keys", "", "$JS.API.CONSUMER.CREATE.KV_orders"},
			{reader, "GET", at + "none?after=0&wait=8", "", "$JS.API.CONSUMER.CREATE.KV_orders"},
			{locks, "GET", at + "k", "", "$JS.API.STREAM.INFO.KV_orders"},
			{locks, "PUT", at + "k", "four", "$JS.API.STREAM.INFO.KV_orders"},
			{locks, "GET", "/v1/stores/orders", "", "$JS.API.STREAM.INFO.KV_orders"},
		} {
			r := ask(t, g, c.method, c.path, c.body, "Authorization", c.who)
			if r.fault.Kind() == "unknown-outcome" && c.method == "PUT" { // the server does not say that it stored nothing
				r.fault.Type, r.status = ProblemBase+"forbidden", 403
			}
			if r.status != 403 || r.fault.Kind() != "forbidden" || !strings.Contains(r.fault.Detail, c.subject) {
				t.Errorf("%s %s: %s", c.method, c.path, r)
			}
		}
		if got := ask(t, g, "GET", at+"k", "", "Authorization", keeper); string(got.body) != "two" {
			t.Errorf("%s", got)
		}
		// The gateway that has a lease uses it as the same user, whoever was asked.
		id = ask(t, g, "POST", "/v1/locks/again", `{"lease":"20s"}`, "Authorization", keeper).want(t, 201, "").lease.ID
		if a := read[Written](t, ask(t, other, "PUT", at+"k", "two", "Authorization", keeper, "Qlock-Lease", id).want(t, 200, "")); a.Gateway != g.Name() {
			t.Errorf("%+v", a)
		}
		// Under a lease as well.
		held := ask(t, g, "POST", "/v1/locks/x", `{"lease":"20s"}`, "Authorization", reader).want(t, 201, "").lease.ID
		if r := ask(t, g, "PUT", at+"k", "five", "Authorization", reader, "Qlock-Lease", held).want(t, 403, "forbidden"); !strings.Contains(r.fault.Detail, "$KV.orders-qlock.fence.default.x") {
			t.Errorf("%s", r)
		}
		ask(t, other, "PUT", at+"k", "six", "Authorization", reader, "Qlock-Lease", held).want(t, 403, "forbidden")
		ask(t, other, "PUT", at+"k", "six", "Authorization", reader, "Qlock-Lease", id).want(t, 404, "unknown-lease")
	})
}

// All requests of a user share what the store knows of its holds.
func TestOneStoreForAll(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newStoreWorld(t)
		g := w.gateway()
		opened := make([]*store.Store, 20)
		var all sync.WaitGroup
		for i := range opened {
			all.Go(func() {
				var p *Problem
				if opened[i], p = g.only.bucket(t.Context(), "orders"); p != nil {
					t.Error(p)
				}
			})
		}
		all.Wait()
		for _, s := range opened {
			if s != opened[0] {
				t.Fatal("a bucket is open twice")
			}
		}
	})
}
