package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock/store"
)

// startPermitted starts a server with the configuration of docs/store.md, as it stands there.
// The passwords are the users' names.
func startPermitted(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/store.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "<!-- config: store -->\n```\n")
	text, _, ends := strings.Cut(rest, "```\n")
	if !ok || !ends {
		t.Fatal("docs/store.md has no configuration")
	}
	for _, user := range []string{"svc-a", "svc-b", "view", "watch", "admin"} {
		t.Setenv("QLOCK_"+strings.ToUpper(strings.ReplaceAll(user, "-", "_")), user)
	}
	path := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := server.ProcessConfigFile(path)
	if err != nil {
		t.Fatal(err)
	}
	o.Host, o.Port, o.NoLog, o.NoSigs, o.JetStream, o.StoreDir, o.AuthTimeout = "127.0.0.1", -1, true, true, true, t.TempDir(), patience.Seconds()
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(2 * time.Minute) {
		t.Fatal("the server does not start")
	}
	return s.ClientURL()
}

func as(t *testing.T, url, user string) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(url, nats.Timeout(patience), nats.UserInfo(user, user), nats.CustomInboxPrefix("_INBOX."+user), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(patience/4))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// sharedLock is a lock that is held for reading.
type sharedLock struct{ lock }

func (sharedLock) Shared() bool { return true }

func TestPermissions(t *testing.T) {
	url := startPermitted(t)
	ctx := t.Context()
	opts := []store.Option{store.WithCluster("prod"), store.WithAnswerTimeout(200 * time.Millisecond), store.WithTimeout(time.Minute)}
	can := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	cannot := func(what, subject string, err error) {
		t.Helper()
		if !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(err.Error(), subject) {
			t.Errorf("%s: %v, want that a permission for %s is missing", what, err, subject)
		}
	}
	admin := as(t, url, "admin")
	made, err := store.Create(ctx, admin, jetstream.KeyValueConfig{Bucket: "orders"}, opts...)
	can("admin creates", err)
	can("admin prepares", store.Prepare(ctx, admin, "orders"))
	stores := map[string]*store.Store{"admin": made}
	for _, user := range []string{"svc-a", "svc-b", "view", "watch"} {
		stores[user], err = store.Open(ctx, as(t, url, user), "orders", opts...)
		can(user+" opens", err)
	}

	a := stores["svc-a"]
	w := a.With(lock{"orders.1", 1})
	_, err = w.Put(ctx, "k", []byte("1"))
	can("a writer puts", err)
	_, err = w.Create(ctx, "new", []byte("1"))
	can("a writer creates", err)
	_, err = w.Do(ctx, store.Once("id", time.Hour), store.Get("k"), store.Add("n", 1))
	can("a writer commits", err)
	_, err = a.Do(ctx, store.Get("k"), store.Add("n", 1))
	can("a writer commits without a lock", err)
	// A lock that is none of its own: it cannot move that fence, not even to read.
	_, err = a.With(lock{"other", 1}).Put(ctx, "k", nil)
	cannot("a writer puts under another lock", "$KV.orders-qlock.fence.prod.other", err)
	_, err = a.With(lock{"other", 1}).Get(ctx, "k")
	cannot("a writer gets under another lock", "$KV.orders-qlock.fence.prod.other", err)

	b := stores["svc-b"]
	r := b.With(sharedLock{lock{"orders.1", 2}})
	_, err = r.Get(ctx, "k")
	can("a reader gets under a shared lock", err)
	r = b.With(lock{"orders.1", 3})
	_, err = r.Get(ctx, "k")
	can("a reader gets under an exclusive lock", err)
	before, err := a.Do(ctx, store.Get("k"), store.Get("n"))
	can("a writer reads", err)
	_, err = r.Put(ctx, "k", []byte("not permitted"))
	cannot("a reader puts", "$KV.orders.k", err)
	if errors.Is(err, store.ErrUnknown) {
		t.Errorf("%v: the fence was moved, so that it is known", err)
	}
	_, err = r.Do(ctx, store.Put("k", nil), store.Add("n", 1))
	cannot("a reader commits", "$KV.orders.", err)
	_, err = r.Do(ctx, store.Put("k", nil))
	cannot("a reader commits one message", "$KV.orders.k", err)
	_, err = r.Do(ctx, store.Once("mine", time.Hour))
	cannot("a reader leaves a note", "$KV.orders-qlock.once.mine", err)
	_, err = b.Do(ctx, store.Put("k", nil), store.Get("n"))
	cannot("a reader commits without a lock", "$KV.orders.k", err)
	_, err = b.Do(ctx, store.Put("k", nil))
	cannot("a reader puts without a lock", "$KV.orders.k", err)

	v := stores["view"]
	_, err = v.Do(ctx, store.Get("k"))
	can("a reader without locks reads", err)
	_, err = v.Fence(ctx, "orders.1")
	can("a reader without locks sees a fence", err)
	_, err = v.With(lock{"orders.1", 9}).Get(ctx, "k")
	cannot("a reader without locks gets under a lock", "$KV.orders-qlock.fence.prod.orders.1", err)
	_, err = v.Unfence(ctx, "orders.1")
	cannot("a reader without locks sets a fence back", "$KV.orders-qlock.fence.prod.orders.1", err)
	short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	if e, err := v.Wait(short, "k", 0); err != nil {
		t.Logf("a reader that may not watch: %v", err)
	} else {
		t.Errorf("a reader that may not watch has %+v", e)
	}

	e, err := stores["watch"].Wait(ctx, "k", 0)
	can("a watcher waits", err)
	changed := make(chan error, 1)
	go func() {
		_, err := stores["watch"].Wait(ctx, "k", e.Revision())
		changed <- err
	}()
	_, err = a.Do(ctx, store.Put("k", []byte("2")))
	can("a writer puts without a lock", err)
	can("a watcher hears it", <-changed)
	_, err = stores["watch"].Do(ctx, store.Put("k", nil), store.Delete("n"))
	cannot("a watcher commits", "$KV.orders.", err)

	f, err := made.Unfence(ctx, "orders.1")
	can("admin sets a fence back", err)
	if f.Token != 3 {
		t.Errorf("the fence was at %d, want 3", f.Token)
	}
	_, err = made.With(lock{"x", 1}).Put(ctx, "k", nil)
	cannot("admin puts", "$KV.orders.k", err)

	// None of those who may not write have written, and only admin changes the bucket.
	now, err := v.Do(ctx, store.Get("k"), store.Get("n"))
	can("a reader without locks reads", err)
	old, _ := before.Get("n")
	if e, err := now.Get("n"); err != nil || e.Revision() != old.Revision() {
		t.Errorf("n is %+v (%v), and was %+v", e, err, old)
	}
	if e, err := now.Get("k"); err != nil || string(e.Value()) != "2" {
		t.Errorf("k is %+v (%v)", e, err)
	}
	for _, user := range []string{"svc-a", "svc-b", "view", "watch"} {
		short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		if err := as(t, url, user).DeleteStream(short, "KV_orders"); err == nil {
			t.Errorf("%s has deleted the bucket", user)
		}
		cancel()
	}
}

// The warning of docs/store.md: the server delivers a consumer's messages to a subject on which
// its user may not publish.
func TestConsumersPublishAnywhere(t *testing.T) {
	url := startPermitted(t)
	ctx := t.Context()
	if _, err := store.Create(ctx, as(t, url, "admin"), jetstream.KeyValueConfig{Bucket: "orders"}, store.WithCluster("prod")); err != nil {
		t.Fatal(err)
	}
	a, err := store.Open(ctx, as(t, url, "svc-a"), "orders", store.WithCluster("prod"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Do(ctx, store.Put("k", []byte("forged"))); err != nil {
		t.Fatal(err)
	}
	nc := as(t, url, "svc-b").Conn()
	sub, err := nc.SubscribeSync("_INBOX.svc-b.answer")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	watch := as(t, url, "watch")
	if _, err := watch.Conn().RequestWithContext(ctx, "$JS.API.CONSUMER.CREATE.KV_orders.c.$KV.orders.k",
		[]byte(`{"stream_name":"KV_orders","config":{"name":"c","deliver_policy":"all","ack_policy":"none","deliver_subject":"_INBOX.svc-b.answer","filter_subject":"$KV.orders.k","mem_storage":true,"num_replicas":1}}`)); err != nil {
		t.Fatal(err)
	}
	m, err := sub.NextMsg(2 * time.Minute)
	if err != nil {
		t.Fatalf("the server does not do it any more, so the warning may go: %v", err)
	}
	if string(m.Data) != "forged" {
		t.Errorf("%q was delivered", m.Data)
	}
}
