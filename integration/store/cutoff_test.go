package store

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/qlocktest"
	"github.com/qlock/qlock/store"
)

// A leader that is cut off answers reads with old values for seconds. A view takes none of
// them, and none of its writes is stored there.
func TestCutOffLeader(t *testing.T) {
	if !*long {
		t.Skip("waits for elections: run it with -store.long")
	}
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	c := qlocktest.StartCluster(t, 3, qlocktest.WithLinks(), qlocktest.WithConfig(func(i int, c *embedded.Config) {
		c.Options = func(o *server.Options) { o.JetStream, o.StoreDir = true, dirs[i] }
	}))
	stores := map[string]*store.Store{}
	var leader string
	for _, n := range c.Names() {
		js, err := jetstream.New(c.ConnectTo(t, n))
		if err != nil {
			t.Fatal(err)
		}
		if len(stores) == 0 {
			create(t, js, jetstream.KeyValueConfig{Bucket: "b", Replicas: 3, Storage: jetstream.MemoryStorage})
		}
		stores[n] = open(t, js, "b", store.WithAnswerTimeout(500*time.Millisecond), store.WithTimeout(40*time.Second))
		eventually(t, "the stream has a leader", func() bool {
			stream, err := js.Stream(t.Context(), "KV_b")
			if err != nil || stream.CachedInfo().Cluster == nil {
				return false
			}
			leader = stream.CachedInfo().Cluster.Leader
			return leader != ""
		})
	}
	other := c.Names()[0]
	if other == leader {
		other = c.Names()[1]
	}
	cut := stores[leader]
	old := cut.With(lock{"l", 1})
	if _, err := old.Put(t.Context(), "k", []byte("old")); err != nil {
		t.Fatal(err)
	}
	c.Isolate(t, leader)
	next := stores[other].With(lock{"l", 2})
	if _, err := next.Put(t.Context(), "k", []byte("new")); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		if e, err := next.Get(t.Context(), "k"); err != nil || string(e.Value()) != "new" {
			t.Errorf("%+v, %v, want the new value", e, err)
		}
	}
	check()
	for range 10 { // some of these while the old leader still answers
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if _, err := old.Put(ctx, "k", []byte("stale")); err == nil {
			t.Error("a leader that is cut off has accepted a write")
		}
		if e, err := cut.With(lock{"l", 3}).Get(ctx, "k"); err == nil {
			t.Errorf("a new holder has read %q beside a leader that is cut off", e.Value())
		}
		cancel()
	}
	c.Mend(t)
	if e, err := cut.With(lock{"l", 4}).Get(t.Context(), "k"); err != nil || string(e.Value()) != "new" {
		t.Errorf("%+v, %v, want the new value", e, err)
	}
}
