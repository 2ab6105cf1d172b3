package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// permitted is a connection to a server with JetStream, whose user has permissions.
func permitted(t *testing.T, p server.Permissions) *nats.Conn {
	t.Helper()
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, JetStream: true, StoreDir: t.TempDir(), AuthTimeout: patience.Seconds(),
		Users: []*server.User{{Username: "u", Password: "u", Permissions: &p}},
	})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	return connect(t, srv.ClientURL(), nats.UserInfo("u", "u"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
}

// untilDenied is a context that ends when NATS has denied something.
func untilDenied(t *testing.T, nc *nats.Conn) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	before, looked := nc.LastError(), make(chan struct{})
	go func() {
		defer close(looked)
		for ctx.Err() == nil && nc.LastError() == before {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	t.Cleanup(func() { cancel(); <-looked })
	return ctx
}

// What has no answer for lack of a permission says so, also before there is a Store, and for a
// connection whose answers come to an inbox that its user may not hear.
func TestForbiddenRequests(t *testing.T) {
	deny := func(subject string) server.Permissions {
		return server.Permissions{Publish: &server.SubjectPermission{Deny: []string{subject}}}
	}
	cfg := jetstream.KeyValueConfig{Bucket: "b", Storage: jetstream.MemoryStorage}
	for _, c := range []struct {
		subject string
		p       server.Permissions
		call    func(ctx context.Context, js jetstream.JetStream) error
	}{
		{"$JS.API.STREAM.INFO.KV_b", deny("$JS.API.STREAM.INFO.>"), func(ctx context.Context, js jetstream.JetStream) error {
			_, err := Open(ctx, js, "b")
			return err
		}},
		{"$JS.API.INFO", deny("$JS.API.INFO"), func(ctx context.Context, js jetstream.JetStream) error { return Prepare(ctx, js, "b") }},
		{"$JS.API.STREAM.CREATE.KV_b", deny("$JS.API.STREAM.CREATE.>"), func(ctx context.Context, js jetstream.JetStream) error {
			_, err := Create(ctx, js, cfg)
			return err
		}},
		{"$JS.API.STREAM.UPDATE.KV_b", deny("$JS.API.STREAM.UPDATE.>"), func(ctx context.Context, js jetstream.JetStream) error {
			if _, err := js.CreateKeyValue(t.Context(), cfg); err != nil {
				return err
			}
			return Prepare(ctx, js, "b")
		}},
		{"$JS.API.CONSUMER.CREATE.KV_b", deny("$JS.API.CONSUMER.CREATE.>"), func(ctx context.Context, js jetstream.JetStream) error {
			s, err := Create(t.Context(), js, cfg)
			if err != nil {
				return err
			}
			_, err = s.Wait(ctx, "k", 0)
			return err
		}},
		{"CustomInboxPrefix", server.Permissions{Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.u.>"}}}, func(ctx context.Context, js jetstream.JetStream) error {
			_, err := Open(ctx, js, "b")
			return err
		}},
	} {
		nc := permitted(t, c.p)
		if err := c.call(untilDenied(t, nc), newJS(t, nc)); !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(err.Error(), c.subject) {
			t.Errorf("%v, want that a permission for %s is missing", err, c.subject)
		}
	}
}

// A server without JetStream is told from a bucket that is not there.
func TestNoJetStream(t *testing.T) {
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	_, err = Open(t.Context(), newJS(t, connect(t, srv.ClientURL())), "b")
	wantIs(t, err, nats.ErrNoResponders)
	if err != nil && !strings.Contains(err.Error(), "is JetStream enabled") {
		t.Error(err)
	}
}

// A put that is not permitted fails soon and alone, also when it waits together with others:
// the server drops its message, and with it the batch.
func TestForbiddenPut(t *testing.T) {
	nc := permitted(t, server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"$KV.b.bad.>"}}})
	s := newStore(t, newJS(t, nc), jetstream.KeyValueConfig{Bucket: "b", Storage: jetstream.MemoryStorage}, WithAnswerTimeout(200*time.Millisecond))
	s.grouped = true
	v := s.With(lock(t, "l", 1))
	denied := func(err error, key string) {
		t.Helper()
		if !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(err.Error(), key) || errors.Is(err, ErrUnknown) {
			t.Errorf("%v, want that a permission for %s is missing", err, key)
		}
	}
	_, err := v.Put(t.Context(), "bad.0", nil)
	denied(err, "bad.0")

	// First, the server drops the beginning of the batch; last, its commit.
	for _, place := range []int{0, 5} {
		v.c.turn <- struct{}{} // all of them wait
		var wg sync.WaitGroup
		for i := range 6 {
			key := fmt.Sprint("good.", i)
			if i == place {
				key = "bad.1"
			}
			wg.Go(func() {
				if _, err := v.Put(t.Context(), key, nil); key == "bad.1" {
					denied(err, key)
				} else if err != nil {
					t.Error(err)
				}
			})
			eventually(t, "it waits", func() bool {
				v.c.mu.Lock()
				defer v.c.mu.Unlock()
				return len(v.c.waiting) == i+1
			})
		}
		<-v.c.turn
		wg.Wait()
	}

	_, err = v.Do(t.Context(), Put("good.1", nil), Put("bad.2", nil))
	denied(err, "bad.2")
	_, err = v.Do(t.Context(), Put("bad.3", nil))
	denied(err, "bad.3")
	_, err = s.Do(t.Context(), Put("bad.4", nil), Put("good.1", nil))
	denied(err, "bad.4")
	// Without a lock, and without an answer as the last message is the one that was denied:
	// nothing tells that they were not stored.
	_, err = s.Do(t.Context(), Put("good.9", nil), Put("bad.5", nil))
	wantIs(t, err, ErrUnknown, nats.ErrPermissionViolation)
	_, err = s.Do(t.Context(), Put("bad.5", nil))
	wantIs(t, err, ErrUnknown, nats.ErrPermissionViolation)
	wantStored(t, s, "good.9", "")
	for i := range 6 {
		wantStored(t, s, fmt.Sprint("bad.", i), "")
	}
}
