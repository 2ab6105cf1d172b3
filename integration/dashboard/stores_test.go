package dashboard

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/store"
)

// newStoreWorld has a server with JetStream. Several would need to elect its leader first.
func newStoreWorld(t *testing.T) (*world, jetstream.JetStream) {
	t.Helper()
	w := newWorldOn(t, 1, func(c *embedded.Config) {
		dir := t.TempDir()
		c.Options = func(o *server.Options) { o.JetStream, o.StoreDir, o.Cluster = true, dir, server.ClusterOpts{} }
	})
	w.serve()
	js, err := jetstream.New(w.connect(), jetstream.WithDefaultTimeout(patience))
	if err != nil {
		t.Fatal(err)
	}
	return w, js
}

// put writes a key through the gateway, under a lease if one is given.
func (w *world) put(bucket, key, value, lease string) {
	w.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		r, err := http.NewRequestWithContext(w.t.Context(), http.MethodPut, "http://"+w.addr+"/v1/stores/"+bucket+"/keys/"+key, strings.NewReader(value))
		if err != nil {
			w.t.Fatal(err)
		}
		if lease != "" {
			r.Header.Set("Qlock-Lease", lease)
		}
		a, err := http.DefaultClient.Do(r)
		if err != nil {
			w.t.Fatal(err)
		}
		_ = a.Body.Close()
		switch {
		case a.StatusCode == http.StatusOK:
			return
		case a.StatusCode < 503 || time.Now().After(end): // else JetStream was late
			w.t.Fatalf("put %s: %s", key, a.Status)
		}
	}
}

// Buckets have pages with their keys, values and locks, which change as they do.
func TestStores(t *testing.T) {
	w, js := newStoreWorld(t)
	memory := func(name string) jetstream.KeyValueConfig {
		return jetstream.KeyValueConfig{Bucket: name, Storage: jetstream.MemoryStorage}
	}
	s, err := store.Create(t.Context(), js, memory("orders"), store.WithClient("billing"), store.WithTimeout(patience), store.WithAnswerTimeout(patience))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateKeyValue(t.Context(), memory("plain")); err != nil {
		t.Fatal(err)
	}
	lock := hold(t, w.locker("billing"), "orders.42", "monthly run")
	if _, err := s.With(lock).Put(t.Context(), "order.42", []byte("{\n  \"state\": \"paid\"\n}")); err != nil {
		t.Fatal(err)
	}
	const script = `<img src=x onerror="document.title='broken in'">` + "\u202e"
	w.put("orders", "hostile", script, "")
	w.put("orders", "binary", "\xff\x00", "")

	p := w.open("#/stores", "404") // the browser reports a key that is not there
	p.has("orders")
	p.has("qlock store prepare plain")
	p.until(isLive)
	p.picture("stores", 1280, 800, false)
	p.click(".stores td a")
	p.has("order.42")
	p.has("orders.42") // its lock
	p.until(`document.querySelector(".stores table tbody").innerText.match(/billing/g).length === 2`)
	p.do(chromedp.Evaluate[chromedp.Void](`location.hash = "#/stores/orders/order.42"`))
	p.until("document.querySelector('.text').textContent === `{\n  \"state\": \"paid\"\n}`") // indented
	p.picture("store", 1280, 800, true)
	p.picture("store-narrow", 390, 844, false)
	if _, err := s.With(lock).Put(t.Context(), "order.42", []byte("sent")); err != nil {
		t.Fatal(err)
	}
	p.until(`document.querySelector(".text").innerText === "sent"`)
	w.put("orders", "new.key", "x", "")
	p.has("new.key")
	p.filter("new")
	p.until(`document.querySelectorAll(".keys-list tbody tr").length === 1`)

	p.do(chromedp.Evaluate[chromedp.Void](`location.hash = "#/stores/orders/hostile"`))
	p.has(`<img src=x onerror="document.title='broken in'">\u{202E}`)
	if n := p.number(`document.images.length`); n != 0 {
		t.Errorf("%d images", n)
	}
	p.do(chromedp.Evaluate[chromedp.Void](`location.hash = "#/stores/orders/binary"`))
	p.has("binary, as base64")
	p.has("/wA=")
	p.do(chromedp.Evaluate[chromedp.Void](`location.hash = "#/stores/orders/none"`))
	p.has("The key has no value.")
	p.do(chromedp.Evaluate[chromedp.Void](`document.activeElement.blur()`))
	// Twice before the browser tells the page that its address changed.
	p.do(chromedp.Evaluate[chromedp.Void](`for (let i = 0; i < 2; i++) document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }))`))
	p.until(`location.hash === "#/stores"`)
	if err := lock.Unlock(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.do(chromedp.Evaluate[chromedp.Void](`location.hash = "#/stores/orders"`))
	p.until(`document.querySelector(".stores table tbody").innerText.includes("nobody")`)
}

// Without JetStream, the page says so, and all the rest works.
func TestStoresWithoutJetStream(t *testing.T) {
	w := newWorld(t)
	p := w.open("", "501")
	p.until(isLive)
	p.key("4")
	p.has("has no JetStream")
	p.key("1")
	p.until(`location.hash === "#/"`)
	p.until(isLive)
}
