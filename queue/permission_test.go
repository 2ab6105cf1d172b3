package queue_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock/qlocktest"
	"github.com/qlock/qlock/queue"
)

// The permissions that docs/recipes.md prints suffice for everything that a queue does, and
// each of them is used.
func TestPermissions(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/recipes.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "<!-- config: queue -->\n```\n")
	text, _, ends := strings.Cut(rest, "```\n")
	if !ok || !ends {
		t.Fatal("docs/recipes.md has no configuration")
	}
	path := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(path, []byte(strings.Replace(text, "$QLOCK_MAIL", `"mail"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := server.ProcessConfigFile(path)
	if err != nil {
		t.Fatal(err)
	}
	allowed := o.Users[0].Permissions.Publish.Allow
	o.Users = append(o.Users, &server.User{Username: "spy", Password: "spy"})
	o.AuthTimeout = long.Seconds()
	o.Host, o.Port, o.NoLog, o.NoSigs, o.JetStream, o.StoreDir = "127.0.0.1", -1, true, true, true, t.TempDir()
	srv, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(long) {
		t.Fatal("the server does not start")
	}
	as := func(user string) *nats.Conn {
		nc, err := nats.Connect(srv.ClientURL(), nats.Timeout(long), nats.UserInfo(user, user), nats.CustomInboxPrefix("_INBOX."+user),
			nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { t.Errorf("%s: %v", user, err) }))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}

	// What is published, by whomever.
	var mu sync.Mutex // guards used
	used := map[string]bool{}
	spy := as("spy")
	var items *nats.Subscription
	for _, subject := range []string{"$JS.>", "qlock.>"} {
		items, err = spy.Subscribe(subject, func(m *nats.Msg) {
			mu.Lock()
			defer mu.Unlock()
			used[m.Subject] = true
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := spy.Flush(); err != nil {
		t.Fatal(err)
	}

	js, err := jetstream.New(as("mail"))
	if err != nil {
		t.Fatal(err)
	}
	c := qlocktest.StartCluster(t, 1, qlocktest.WithLease(ample))
	q := open(t, js, queue.Config{MaxAttempts: 2, Backoff: []time.Duration{10 * time.Millisecond}})
	done := make(chan string, 10)
	var revived atomic.Bool
	stop := work(t, q, c.Locker(t), func(_ context.Context, it *queue.Item) error {
		it.Progress()
		if it.Key == "bad key" && !revived.Load() {
			return errors.New("not yet")
		}
		done <- it.Key
		return nil
	})
	enqueue(t, q, "good", "")
	enqueue(t, q, "later", "", queue.WithDelay(100*time.Millisecond))
	for range 2 {
		receive(t, done)
	}
	enqueue(t, q, "bad key", "")
	var dead []queue.DeadLetter
	waitUntil(t, "a dead letter", func() bool {
		for d, err := range q.Dead(within(t, long)) {
			if err != nil {
				t.Fatal(err)
			}
			dead = append(dead, d)
		}
		return len(dead) > 0
	})
	revived.Store(true)
	if err := q.Revive(within(t, long), dead[0].Seq); err != nil {
		t.Fatal(err)
	}
	receive(t, done)
	waitUntil(t, "nothing is left", func() bool {
		s, err := q.Stats(within(t, long))
		if err != nil {
			t.Fatal(err)
		}
		return s.Items == 0 && s.Dead == 0
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
	// A second program opens what is there, and looks for what is not any more.
	open(t, js, queue.Config{MaxAttempts: 2})
	if err := errors.Join(items.Unsubscribe(), spy.Flush()); err != nil { // else somebody receives what no stream does
		t.Fatal(err)
	}
	admin, err := jetstream.New(spy)
	if err != nil {
		t.Fatal(err)
	}
	if err := admin.DeleteStream(within(t, long), "qlock-queue-mail"); err != nil {
		t.Fatal(err)
	}
	// Enqueue does not wait for long to hear why no stream took the item.
	waitUntil(t, "Enqueue says that the stream is deleted", func() bool {
		_, err := q.Enqueue(within(t, long), "k", nil)
		if err == nil {
			t.Fatal("an item for a stream that was deleted")
		}
		return errors.Is(err, queue.ErrDeleted)
	})
	unused := func() (out []string) {
		mu.Lock()
		defer mu.Unlock()
		for _, p := range allowed {
			found := false
			for s := range used {
				found = found || server.SubjectsCollide(s, p)
			}
			if !found {
				out = append(out, p)
			}
		}
		return out
	}
	waitUntil(t, "each permission is used", func() bool {
		rest := unused()
		if len(rest) > 0 {
			t.Logf("not used so far: %q", rest)
		}
		return len(rest) == 0 || t.Failed()
	})
}
