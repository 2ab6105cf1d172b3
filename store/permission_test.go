package store

import (
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

// A put that is not permitted fails soon and alone, also when it waits together with others:
// the server drops its message, and with it the batch.
func TestForbiddenPut(t *testing.T) {
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, JetStream: true, StoreDir: t.TempDir(),
		Users: []*server.User{{Username: "u", Password: "u", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"$KV.b.bad.>"}}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	nc := connect(t, srv.ClientURL(), nats.UserInfo("u", "u"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	s := newStore(t, newJS(t, nc), jetstream.KeyValueConfig{Bucket: "b", Storage: jetstream.MemoryStorage}, WithAnswerTimeout(200*time.Millisecond), WithTimeout(30*time.Second))
	s.grouped = true
	v := s.With(lock(t, "l", 1))
	denied := func(err error, key string) {
		t.Helper()
		if !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(err.Error(), key) || errors.Is(err, ErrUnknown) {
			t.Errorf("%v, want that a permission for %s is missing", err, key)
		}
	}
	_, err = v.Put(t.Context(), "bad.0", nil)
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
