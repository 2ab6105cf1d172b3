package store

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock/internal/loopback"
)

// A server that restarts loses a bucket in memory, with its fences. A former holder's write is
// refused by the bucket that is made after that.
func TestRestartWithABucketInMemory(t *testing.T) {
	dir := t.TempDir()
	port, err := loopback.Reserve() // nobody gets it while the server is down
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = port.Close() })
	number := port.Number
	if number == 0 {
		number = -1
	}
	start := func() *server.Server {
		srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: number, NoLog: true, NoSigs: true, JetStream: true, StoreDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		srv.Start()
		t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
		if !srv.ReadyForConnections(2 * time.Minute) {
			t.Fatal("the server does not start")
		}
		return srv
	}
	srv := start()
	js := newJS(t, connect(t, srv.ClientURL()))
	former := newStore(t, js, inMemory("mem")).With(lock(t, "L", 5))
	mustPut(t, former, "k", "A")
	number = srv.Addr().(*net.TCPAddr).Port
	srv.Shutdown()
	srv.WaitForShutdown()
	srv = start()
	next := newStore(t, newJS(t, connect(t, srv.ClientURL())), inMemory("mem")).With(lock(t, "L", 6))
	mustPut(t, next, "k", "B")
	eventually(t, "the former holder is connected", js.Conn().IsConnected)
	if _, err := former.Put(t.Context(), "k", []byte("A again")); err == nil {
		t.Error("a former holder has written")
	}
	wantValue(t, next, "k", "B")
}

// So does a bucket that was deleted and made anew. Create opens one that is there.
func TestRevisionsRiseOverBuckets(t *testing.T) {
	js := newJS(t, connect(t, startServer(t).ClientURL()))
	s := newStore(t, js, inMemory("rise"))
	former := s.With(lock(t, "L", 5))
	before := mustPut(t, former, "k", "A")
	same, err := Create(t.Context(), js, inMemory("rise"))
	if err != nil {
		t.Fatal(err)
	}
	wantValue(t, same.With(lock(t, "L", 5)), "k", "A")
	other := inMemory("rise")
	other.History = 7
	if _, err := Create(t.Context(), js, other); !errors.Is(err, jetstream.ErrBucketExists) {
		t.Error(err)
	}
	if err := js.DeleteKeyValue(t.Context(), "rise"); err != nil {
		t.Fatal(err)
	}
	next := newStore(t, js, inMemory("rise")).With(lock(t, "L", 6))
	if after := mustPut(t, next, "k", "B"); after <= before {
		t.Errorf("revision %d after %d", after, before)
	}
	if _, err := former.Put(t.Context(), "k", []byte("A again")); err == nil {
		t.Error("a former holder has written")
	}
}

// The purge of a stream takes its fences away, and lets nobody write who has had one.
func TestPurgedStream(t *testing.T) {
	js := newJS(t, connect(t, startServer(t).ClientURL()))
	for _, subject := range []string{"", ".fence.>"} {
		s := newStore(t, js, jetstream.KeyValueConfig{Storage: jetstream.MemoryStorage})
		former, only := s.With(lock(t, "l", 5)), s.With(lock(t, "m", 5))
		mustPut(t, former, "k", "A")
		mustPut(t, only, "m", "A")
		var opts []jetstream.StreamPurgeOpt
		if subject != "" {
			opts = append(opts, jetstream.WithPurgeSubject(strings.TrimSuffix(s.own(), ".")+subject))
		}
		if err := must(js.Stream(t.Context(), s.stream()))(t).Purge(t.Context(), opts...); err != nil {
			t.Fatal(err)
		}
		mustPut(t, s.With(lock(t, "l", 6)), "k", "B")
		for name, v := range map[string]*View{"k": former, "m": only} {
			_, err := v.Put(t.Context(), name, []byte("late"))
			wantIs(t, err, ErrFenced)
			_, err = v.Get(t.Context(), name)
			wantIs(t, err, ErrFenced)
		}
		wantStored(t, s, "k", "B")
	}
}
