package gateway

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock/store"
)

// What Terraform 1.11.4 sends, as seen on the wire. Its answers mean: LOCK 200 or 423 with the
// holder's info; UNLOCK 200 only, 204 is a failure; GET 200, or 204 and 404 for none.

func newStateWorld(t *testing.T, n int, users ...*server.User) *world {
	t.Helper()
	return newStateWorldOf(t, n, 1<<20, users...)
}

func newStateWorldOf(t *testing.T, n int, maxPayload int32, users ...*server.User) *world {
	t.Helper()
	dir := t.TempDir()
	w := newWorldOn(t, n, func(o *server.Options) { o.JetStream, o.StoreDir, o.MaxPayload = true, dir, maxPayload }, users...)
	js, err := jetstream.New(w.connect().Conn)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Create(t.Context(), js, jetstream.KeyValueConfig{Bucket: "tf", Storage: jetstream.MemoryStorage}); err != nil {
		t.Fatal(err)
	}
	return w
}

// backend sends requests as Terraform does.
type backend struct {
	t    testing.TB
	g    *Gateway
	path string
}

func (b backend) send(method, rest, body string, header ...string) *reply {
	b.t.Helper()
	r := httptest.NewRequest(method, "http://localhost"+b.path+rest, strings.NewReader(body))
	if body != "" {
		sum := md5.Sum([]byte(body))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Content-MD5", base64.StdEncoding.EncodeToString(sum[:]))
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	b.g.ServeHTTP(w, r)
	return &reply{status: w.Code, header: w.Header(), body: w.Body.Bytes()}
}

func (b backend) want(status int, text, method, rest, body string, header ...string) {
	b.t.Helper()
	a := b.send(method, rest, body, header...)
	if a.status != status || !strings.Contains(string(a.body), text) {
		b.t.Fatalf("%s%s: want %d with %q, got %s", method, rest, status, text, a)
	}
}

func lockText(id string) string {
	return fmt.Sprintf(`{"ID":%q,"Operation":"OperationTypeApply","Info":"","Who":"ann@host7","Version":"1.11.4","Created":"2026-01-02T03:04:05.6Z","Path":"","Later":{"kept":[1]}}`, id)
}

func stateText(serial int) string {
	return fmt.Sprintf(`{"version":4,"terraform_version":"1.11.4","serial":%d,"lineage":"4f1c"}`, serial)
}

func TestTerraform(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newStateWorld(t, 3)
		b := backend{t, w.gateway(), "/v1/stores/tf/terraform/prod%2Fnet.eu"}
		b.want(204, "", "GET", "", "") // none yet
		b.want(200, "", "LOCK", "", lockText("one"))
		b.want(200, "", "LOCK", "", lockText("one")) // the answer was lost, and it asks again
		b.want(423, lockText("one"), "LOCK", "", lockText("two"))
		b.want(200, "", "POST", "?ID=one", stateText(1))
		b.want(200, "", "POST", "?ID=one", stateText(2))
		b.want(409, "state-conflict", "POST", "?ID=two", stateText(3))
		b.want(423, "state-locked", "POST", "", stateText(3)) // -lock=false
		b.want(423, "state-locked", "DELETE", "", "")
		b.want(409, lockText("one"), "UNLOCK", "", lockText("two"))
		b.want(200, stateText(2), "GET", "", "")
		b.want(200, "", "UNLOCK", "", lockText("one"))
		b.want(200, "", "UNLOCK", "", lockText("one")) // asks again
		b.want(409, "state-conflict", "POST", "?ID=one", stateText(4))
		b.want(200, "", "POST", "", stateText(5))
		a := b.send("GET", "", "")
		if sum := md5.Sum([]byte(stateText(5))); a.header.Get("Content-MD5") != base64.StdEncoding.EncodeToString(sum[:]) || string(a.body) != stateText(5) {
			t.Errorf("%s %v", a, a.header)
		}
		b.want(200, "", "DELETE", "", "")
		b.want(204, "", "GET", "", "")

		// Other methods, and a lock of its own address.
		b.want(200, "", "PUT", "/lock", lockText("three"))
		b.want(423, lockText("three"), "POST", "/lock", lockText("four"))
		b.want(200, "", "DELETE", "/lock", lockText("three"))
		b.want(200, "", "POST", "/lock", lockText("four"))
		b.want(200, "", "PUT", "?ID=four", stateText(6))
		b.want(200, "", "PUT", "/unlock", lockText("four"))

		// Another state of a similar name is another one.
		for _, name := range []string{"prod%2Fnet", "prod=2Fnet.eu", "prod%2Fnet.eu.lock", ".prod", "%00"} {
			c := b
			c.path = "/v1/stores/tf/terraform/" + name
			c.want(204, "", "GET", "", "")
		}
	})
}

// Two clients with one name: the lock of one is removed by force, and it learns that when it
// writes.
func TestTerraformForce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newStateWorld(t, 3)
		b := backend{t, w.gateway(), "/v1/stores/tf/terraform/net"}
		b.want(200, "", "LOCK", "", lockText("one"))
		b.want(200, "", "UNLOCK", "", "")
		b.want(200, "", "LOCK", "", lockText("two"))
		b.want(409, "another ID", "POST", "?ID=one", stateText(1))
		b.want(409, lockText("two"), "UNLOCK", "", lockText("one"))
		b.want(200, "", "POST", "?ID=two", stateText(2))
		b.want(200, stateText(2), "GET", "", "")

		// A lock that nobody gives back is replaced only if that is asked for.
		time.Sleep(time.Hour)
		b.want(423, lockText("two"), "LOCK", "?max_age=70m", lockText("three"))
		b.want(200, "", "LOCK", "?max_age=50m", lockText("three"))
		b.want(409, "another ID", "POST", "?ID=two", stateText(3))
		b.want(422, "max_age", "LOCK", "?max_age=5", lockText("four"))
	})
}

// force-unlock needs the permission to evict, and everything that of the bucket.
func TestTerraformPermissions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		may := func(user string, publish ...string) *server.User {
			return &server.User{Username: user, Password: "pw", Permissions: &server.Permissions{
				Publish:   &server.SubjectPermission{Allow: append(publish, "lock.default.node.>", "lock.default.event.>")},
				Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX." + user + ".>"}},
			}}
		}
		bucket := []string{"$JS.API.STREAM.INFO.KV_tf", "$JS.API.DIRECT.GET.KV_tf", "$KV.tf.>", "$KV.tf-qlock.>"}
		w := newStateWorld(t, 3, &server.User{Username: "all", Password: "pw"}, may("ops", append(bucket, "lock.default.admin.>")...), may("ci", bucket...), may("other"))
		g := w.gatewayForUsers(new(atomic.Int64))
		b := backend{t, g, "/v1/stores/tf/terraform/net"}
		as := func(user string) []string { return []string{"Authorization", basic(user, "pw")} }
		b.want(401, "", "LOCK", "", lockText("one"))
		b.want(403, "", "LOCK", "", lockText("one"), as("other")...)
		b.want(200, "", "LOCK", "", lockText("one"), as("ci")...)
		b.want(403, "", "UNLOCK", "", "", as("ci")...)
		b.want(423, lockText("one"), "LOCK", "", lockText("two"), as("ci")...)
		b.want(200, "", "UNLOCK", "", "", as("ops")...)
		b.want(200, "", "LOCK", "", lockText("two"), as("ci")...)
	})
}

// A state that is too large for one message, and then for the gateway.
func TestTerraformLargeState(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newStateWorldOf(t, 1, 32<<10) // in parts of half of that
		g := w.gateway(func(c *Config) { c.Limits.State = 128 << 10 })
		b := backend{t, g, "/v1/stores/tf/terraform/net"}
		r := rand.New(rand.NewPCG(1, 2))
		large := func(serial, size int) string { // it does not get smaller by compression
			noise := make([]byte, size)
			for i := range noise {
				noise[i] = byte(r.Uint32())
			}
			return fmt.Sprintf(`{"serial":%d,"x":"%x"}`, serial, noise)
		}
		js, _ := jetstream.New(w.connect().Conn)
		kv, err := js.KeyValue(t.Context(), "tf")
		if err != nil {
			t.Fatal(err)
		}
		parts := func() (n int) {
			keys, err := kv.Keys(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range keys {
				if strings.Contains(k, partKey) {
					n++
				}
			}
			return n
		}
		text := large(1, 20<<10)
		b.want(200, "", "POST", "", text)
		b.want(200, text, "GET", "", "")
		if n := parts(); n != 2 {
			t.Errorf("%d parts", n)
		}
		for i := range stateVersions + 3 {
			text = large(i+2, 17<<10)
			b.want(200, "", "POST", "", text)
		}
		if n := parts(); n != 2*(stateVersions+1) {
			t.Errorf("%d parts are left", n)
		}
		b.want(200, "", "POST", "", stateText(99)) // a small one again
		b.want(200, stateText(99), "GET", "", "")
		b.want(413, "too-large", "POST", "", large(1, 70<<10))
		b.want(200, "", "LOCK", "", lockText("one"))
		before := parts()
		b.want(409, "state-conflict", "POST", "?ID=two", text)
		if n := parts(); n != before {
			t.Errorf("a refused state left parts: %d, then %d", before, n)
		}
		b.want(200, "", "DELETE", "?ID=one", "")
		if n := parts(); n != 0 {
			t.Errorf("%d parts are left of a state that was removed", n)
		}
	})
}

func TestTerraformRefuses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newStateWorld(t, 1)
		g := w.gateway()
		b := backend{t, g, "/v1/stores/tf/terraform/net"}
		b.want(400, "Content-MD5", "POST", "", stateText(1), "Content-MD5", "AAAA")
		b.want(415, "", "POST", "", stateText(1), "Content-Type", "text/plain")
		b.want(422, "", "POST", "", "")
		b.want(422, "no ID", "LOCK", "", "{}")
		b.want(422, "no ID", "LOCK", "", "[")
		b.want(422, "no ID", "UNLOCK", "", `{"ID":7}`)
		b.want(413, "", "LOCK", "", lockText(strings.Repeat("x", 70<<10)))
		b.want(405, "LOCK, POST, PUT, UNLOCK", "PATCH", "", "")
		b.want(403, "cross-origin", "POST", "", stateText(1), "Origin", "https://evil.example")

		// 404 would say that there is no state yet.
		none := backend{t, g, "/v1/stores/none/terraform/net"}
		none.want(501, "qlock store create", "GET", "", "")
		bad := backend{t, g, "/v1/stores/a.b/terraform/net"}
		bad.want(422, "", "GET", "", "")
		long := backend{t, g, "/v1/stores/tf/terraform/" + strings.Repeat("x", 257)}
		long.want(422, "256", "GET", "", "")
		plain := backend{t, g, "/v1/stores/plain/terraform/net"}
		js, _ := jetstream.New(w.connect().Conn)
		if _, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "plain", Storage: jetstream.MemoryStorage}); err != nil {
			t.Fatal(err)
		}
		plain.want(501, "qlock store prepare plain", "GET", "", "")

		// Somebody else's value is neither shown nor overwritten.
		kv, err := js.KeyValue(t.Context(), "tf")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := kv.PutString(t.Context(), "net.state", "mine"); err != nil {
			t.Fatal(err)
		}
		b.want(500, "", "GET", "", "")
		b.want(500, "", "POST", "", stateText(1))
	})
}

// The bucket of states stays open between requests. When it goes away, no answer says that there
// is no state yet, and when it is back, it is opened anew.
func TestTerraformKeepsBucket(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newStateWorld(t, 1)
		g := w.gateway()
		b := backend{t, g, "/v1/stores/tf/terraform/net"}
		var opened atomic.Int64
		nc := w.connect().Conn
		if _, err := nc.Subscribe("$JS.API.STREAM.INFO.KV_tf", func(*nats.Msg) { opened.Add(1) }); err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		b.want(204, "", "GET", "", "")
		settle()
		first := opened.Load()
		for n := range 3 {
			b.want(200, "", "LOCK", "", lockText("one"))
			b.want(200, "", "POST", "?ID=one", stateText(n))
			b.want(200, "", "UNLOCK", "", lockText("one"))
			b.want(200, stateText(n), "GET", "", "")
		}
		ask(t, g, "GET", "/v1/stores/tf/keys/net.state", "").want(t, 200, "")
		settle()
		if n := opened.Load(); first == 0 || n != first {
			t.Errorf("%d looks at the bucket to open it, and %d afterwards", first, n-first)
		}

		js, _ := jetstream.New(nc)
		if err := js.DeleteKeyValue(t.Context(), "tf"); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second one opens it
			b.want(501, "qlock store create", "GET", "", "")
			b.want(501, "qlock store create", "LOCK", "", lockText("one"))
			b.want(501, "qlock store create", "POST", "", stateText(1))
		}
		if _, err := store.Create(t.Context(), js, jetstream.KeyValueConfig{Bucket: "tf", Storage: jetstream.MemoryStorage}); err != nil {
			t.Fatal(err)
		}
		b.want(204, "", "GET", "", "")
		b.want(200, "", "POST", "", stateText(1))
		b.want(200, stateText(1), "GET", "", "")
	})
}

// A writer whose lock is taken away between the look at the lock and the commit writes
// nothing: the transaction depends on the lock's record.
func TestTerraformRace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newStateWorld(t, 1)
		g := w.gateway()
		b := backend{t, g, "/v1/stores/tf/terraform/net"}
		b.want(200, "", "LOCK", "", lockText("one"))
		js, _ := jetstream.New(g.only.nc)
		st, err := store.Open(t.Context(), js, "tf")
		if err != nil {
			t.Fatal(err)
		}
		s := &states{g: g, ctx: context.Background(), who: g.only, store: st, max: stateInline, name: "net", key: "net"}
		once := false
		r := httptest.NewRequest("POST", "http://localhost"+b.path+"?ID=one", nil)
		rec := httptest.NewRecorder()
		e := &exchange{ResponseWriter: rec, control: *http.NewResponseController(rec), writeTime: time.Second, started: time.Now(), id: "x"}
		s.change(e, r, stateRecord{SHA256: "x"}, func(stateRecord) (store.Op, error) {
			if !once {
				once = true
				b.want(200, "", "UNLOCK", "", "")
				b.want(200, "", "LOCK", "", lockText("two"))
				b.want(200, "", "POST", "?ID=two", stateText(7))
			}
			return store.Put("net.state", []byte("of the first")), nil
		})
		if rec.Code != 409 || !bytes.Contains(rec.Body.Bytes(), []byte("another ID")) {
			t.Errorf("%d %s", rec.Code, rec.Body)
		}
		b.want(200, stateText(7), "GET", "", "")
	})
}

// Each error of the store is a kind of problem of its own, and none that may pass by itself looks
// as if it would.
func TestProblemsOfTheStore(t *testing.T) {
	for _, c := range []struct {
		err         error
		keys, state string
	}{
		{&store.FencedError{Lock: "l", Token: 1, Newer: 2}, "fenced", ""},
		{&store.ConflictError{Key: "k", Revision: 1}, "conflict", ""},
		{&store.NotPreparedError{Bucket: "b", Missing: []string{"x"}}, "not-prepared", "not-prepared"},
		{&store.UnknownError{What: "k", Cause: errors.New("why")}, "unknown-outcome", "unknown-outcome"},
		{store.ErrFull, "full", "full"},
		{store.ErrTooLarge, "too-large", "too-large"},
		{store.ErrUnsupported, "unsupported", "unsupported"},
		{store.ErrShared, "read-only", ""},
		{store.ErrNotNumber, "not-number", ""},
		{store.ErrInvalid, "invalid", "invalid"},
		{jetstream.ErrBucketNotFound, "no-bucket", "not-prepared"},
		{jetstream.ErrKeyNotFound, "no-key", "internal"},
		{jetstream.ErrJetStreamNotEnabled, "no-jetstream", "no-jetstream"},
		{nats.ErrPermissionViolation, "forbidden", "forbidden"},
		{context.DeadlineExceeded, "store-unreachable", ""},
	} {
		err := fmt.Errorf("store: write k: %w", c.err)
		if p := storeProblem(err); strings.Contains(p.Detail, "context") {
			t.Errorf("%v: it speaks of what only Go programs know: %s", err, p.Detail)
		}
		if p := storeProblem(err); p.Kind() != c.keys {
			t.Errorf("%v: %s, want %s", err, p.Kind(), c.keys)
		}
		if c.state == "" {
			continue
		}
		if p := stateProblem(err); p.Kind() != c.state || p.Retryable && c.state != "internal" || p.Status == 404 {
			t.Errorf("the state, %v: %s, want %s", err, p.Kind(), c.state)
		}
	}
}
