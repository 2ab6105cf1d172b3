package store

import (
	"context"
	"flag"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock/store"
)

var long = flag.Bool("store.long", false, "also run the tests that wait for elections and kill processes")

func TestMain(m *testing.M) {
	switch os.Getenv("STORE_TEST_ROLE") {
	case "server":
		runServer()
	case "worker":
		runWorker()
	default:
		os.Exit(m.Run())
	}
}

// patience bounds every wait for what must come.
const patience = 2 * time.Minute

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	end := time.Now().Add(patience)
	for !f() {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func connect(t *testing.T, url string) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := nats.Connect(url, nats.Timeout(patience), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(patience/4))
	if err != nil {
		t.Fatal(err)
	}
	return nc, js
}

func create(t *testing.T, js jetstream.JetStream, cfg jetstream.KeyValueConfig, opts ...store.Option) *store.Store {
	t.Helper()
	var s *store.Store
	eventually(t, "the bucket is made", func() bool {
		var err error
		s, err = store.Create(t.Context(), js, cfg, opts...)
		return err == nil
	})
	return s
}

func open(t *testing.T, js jetstream.JetStream, bucket string, opts ...store.Option) *store.Store {
	t.Helper()
	var s *store.Store
	eventually(t, "the bucket is opened", func() bool {
		var err error
		s, err = store.Open(t.Context(), js, bucket, opts...)
		return err == nil
	})
	return s
}

func stepDown(nc *nats.Conn, bucket string) {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	_, _ = nc.RequestWithContext(ctx, "$JS.API.STREAM.LEADER.STEPDOWN.KV_"+bucket, nil) // there may be no leader
}

// lock is a lock without nodes.
type lock struct {
	name  string
	token uint64
}

func (l lock) Name() string             { return l.name }
func (l lock) Token() uint64            { return l.token }
func (l lock) Shared() bool             { return false }
func (l lock) Context() context.Context { return context.Background() }
