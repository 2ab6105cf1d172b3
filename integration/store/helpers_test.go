package store

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
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

// startServers starts n servers with JetStream in this process.
func startServers(t *testing.T, n int) (urls []string) {
	t.Helper()
	dirs := make([]string, n)
	for i := range dirs {
		dirs[i] = t.TempDir()
	}
	var routes []string
	var all []*server.Server
	for i := range n {
		o := &server.Options{ServerName: fmt.Sprint("s", i), Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, JetStream: true, StoreDir: dirs[i]}
		if n > 1 {
			o.Cluster = server.ClusterOpts{Name: "c", Host: "127.0.0.1", Port: -1, PoolSize: 1}
			o.Routes = server.RoutesFromStr(strings.Join(routes, ","))
		}
		s, err := server.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		if !s.ReadyForConnections(10 * time.Second) {
			t.Fatal("a server does not start")
		}
		all = append(all, s)
		urls = append(urls, s.ClientURL())
		if n > 1 {
			routes = append(routes, "nats://"+s.ClusterAddr().String())
		}
	}
	eventually(t, "the servers elect a leader", func() bool {
		for _, s := range all {
			if n == 1 || s.JetStreamIsLeader() && len(s.JetStreamClusterPeers()) == n {
				return true
			}
		}
		return false
	})
	return urls
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	end := time.Now().Add(time.Minute)
	for !f() {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func connect(t *testing.T, url string) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
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
