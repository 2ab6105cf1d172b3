package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// backup is a snapshot of a bucket, as nats stream backup takes it.
type backup struct {
	config, state json.RawMessage
	chunks        [][]byte
}

func ask(nc *nats.Conn, subject string, body []byte) (map[string]json.RawMessage, error) {
	m, err := nc.Request(subject, body, time.Minute)
	if err != nil {
		return nil, err
	}
	var a map[string]json.RawMessage
	if err := json.Unmarshal(m.Data, &a); len(m.Data) > 0 && err != nil {
		return nil, err
	}
	if a["error"] != nil {
		return nil, fmt.Errorf("%s: %s", subject, a["error"])
	}
	return a, nil
}

func takeBackup(t *testing.T, nc *nats.Conn, bucket string) backup {
	t.Helper()
	sub := must(nc.SubscribeSync(nc.NewInbox()))(t)
	a := must(ask(nc, "$JS.API.STREAM.SNAPSHOT.KV_"+bucket, marshal(map[string]any{"deliver_subject": sub.Subject, "no_consumers": true})))(t)
	b := backup{config: a["config"], state: a["state"]}
	for {
		m := must(sub.NextMsgWithContext(t.Context()))(t)
		if len(m.Data) == 0 {
			return b
		}
		b.chunks = append(b.chunks, m.Data)
		if m.Reply == "" {
			continue
		}
		if err := m.Respond(nil); err != nil {
			t.Fatal(err)
		}
	}
}

func (b backup) restore(nc *nats.Conn, bucket string) error {
	a, err := ask(nc, "$JS.API.STREAM.RESTORE.KV_"+bucket, marshal(map[string]any{"config": b.config, "state": b.state}))
	if err != nil {
		return err
	}
	var to string
	if err := json.Unmarshal(a["deliver_subject"], &to); err != nil {
		return err
	}
	for _, c := range append(b.chunks, nil) {
		if _, err := ask(nc, to, c); err != nil {
			return err
		}
	}
	return nil
}

// replace restores the backup of a bucket that was deleted.
func (b backup) replace(t *testing.T, srv *server.Server, js jetstream.JetStream) *Store {
	t.Helper()
	// The server goes on removing files when it has said that the bucket is deleted.
	eventually(t, "the bucket is restored", func() bool {
		left := must(filepath.Glob(filepath.Join(srv.JetStreamConfig().StoreDir, "*", "streams", "*")))(t)
		return len(left) == 0 && b.restore(js.Conn(), "b") == nil
	})
	return must(Open(t.Context(), js, "b", patient...))(t)
}

// replacing is a way to put another bucket in the place of one.
type replacing struct {
	name    string
	storage jetstream.StorageType
	create  func(t *testing.T, js jetstream.JetStream, cfg jetstream.KeyValueConfig) *Store
	again   func(t *testing.T, js jetstream.JetStream, cfg jetstream.KeyValueConfig) *Store // nil: from a backup
	safe    bool                                                                            // sequences are not given a second time
}

func replacings() []replacing {
	create := func(t *testing.T, js jetstream.JetStream, cfg jetstream.KeyValueConfig) *Store {
		return newStore(t, js, cfg)
	}
	prepare := func(t *testing.T, js jetstream.JetStream, cfg jetstream.KeyValueConfig) *Store {
		t.Helper()
		must(js.CreateKeyValue(t.Context(), cfg))(t)
		if err := Prepare(t.Context(), js, cfg.Bucket); err != nil {
			t.Fatal(err)
		}
		return must(Open(t.Context(), js, cfg.Bucket, patient...))(t)
	}
	return []replacing{
		{"Create", jetstream.MemoryStorage, create, create, true},
		{"CreateKeyValue and Prepare", jetstream.MemoryStorage, prepare, prepare, false},
		{"restored, of Create", jetstream.FileStorage, create, nil, false},
		{"restored, of Prepare", jetstream.FileStorage, prepare, nil, false},
	}
}

// eachReplacing calls f for a former holder that has the fence and has written n times, and the
// Store of the bucket that is in place of the one that it knows.
func eachReplacing(t *testing.T, n int, f func(t *testing.T, r replacing, former *View, other *Store)) {
	for _, r := range replacings() {
		t.Run(r.name, func(t *testing.T) {
			srv := startServer(t)
			js := newJS(t, connect(t, srv.ClientURL()))
			cfg := jetstream.KeyValueConfig{Bucket: "b", Storage: r.storage}
			s := r.create(t, js, cfg)
			var b backup
			if r.again == nil {
				b = takeBackup(t, js.Conn(), "b")
			}
			former := s.With(lock(t, "l", 5))
			for range n {
				mustPut(t, former, "k", "A")
			}
			must(former.GetAll(t.Context(), "k"))(t)
			if err := js.DeleteKeyValue(t.Context(), "b"); err != nil {
				t.Fatal(err)
			}
			if r.again != nil {
				f(t, r, former, r.again(t, js, cfg))
				return
			}
			f(t, r, former, b.replace(t, srv, js))
		})
	}
}

// The hole that docs/store.md warns of: the fence of a newer holder got the sequence that a former
// holder's fence had, so that the server takes the former holder's write. Where sequences rise over
// buckets, as with Create, it is refused.
func TestReplacedBucketWithTheSameSequences(t *testing.T) {
	eachReplacing(t, 1, func(t *testing.T, r replacing, former *View, other *Store) {
		next := other.With(lock(t, "l", 6))
		for range 3 {
			mustPut(t, next, "k", "B")
		}
		_, err := former.Put(t.Context(), "k", []byte("late"))
		if r.safe {
			wantIs(t, err, ErrFenced)
			wantValue(t, next, "k", "B")
			return
		}
		if err != nil {
			t.Errorf("%v: it is refused, and docs/store.md says that it is not", err)
		}
		wantValue(t, next, "k", "late")
		// The next read notices.
		_, err = former.Get(t.Context(), "k")
		wantIs(t, err, ErrFenced)
		_, err = former.Put(t.Context(), "k", nil)
		wantIs(t, err, ErrFenced)
	})
}

// Where the fence of the newer holder has another sequence, nothing of the former one is taken. It
// is told at once, and does not ask until its time is over for what will not come.
func TestReplacedBucketWithOtherSequences(t *testing.T) {
	eachReplacing(t, 20, func(t *testing.T, r replacing, former *View, other *Store) {
		mustPut(t, other.With(lock(t, "other", 1)), "j", "B")
		next := other.With(lock(t, "l", 6))
		mustPut(t, next, "k", "B")
		for what, f := range map[string]func() error{
			"Put":    func() error { _, err := former.Put(t.Context(), "k", []byte("late")); return err },
			"Do":     func() error { _, err := former.Do(t.Context(), Put("k", nil), Add("n", 1)); return err },
			"Create": func() error { _, err := former.Create(t.Context(), "new", nil); return err },
			"Get":    func() error { _, err := former.Get(t.Context(), "k"); return err },
		} {
			former.c.mu.Lock()
			former.c.fenced = nil // as the first call after the bucket was replaced
			former.c.mu.Unlock()
			start := time.Now()
			if err := f(); !errors.Is(err, ErrFenced) {
				t.Errorf("%s: %v after %v, want ErrFenced", what, err, time.Since(start))
			}
		}
		wantValue(t, next, "k", "B")
		wantStored(t, other, "new", "")
	})
}

// Nobody else has used the new bucket yet. A claim that knows of later sequences than the bucket
// gives notices, also when the server has taken its write.
func TestReplacedBucketThatIsBehind(t *testing.T) {
	eachReplacing(t, 5, func(t *testing.T, r replacing, former *View, other *Store) {
		_, err := former.Put(t.Context(), "k", []byte("late"))
		wantIs(t, err, ErrFenced)
		wantStored(t, other, "k", "")
		_, err = former.Get(t.Context(), "k")
		wantIs(t, err, ErrFenced)
		if !strings.Contains(err.Error(), "bucket") {
			t.Errorf("%v does not say why", err)
		}
	})
	// The same sequence of the fence, and nothing more.
	eachReplacing(t, 5, func(t *testing.T, r replacing, former *View, other *Store) {
		must(other.With(lock(t, "l", 6)).GetAll(t.Context(), "k"))(t)
		_, err := former.Put(t.Context(), "k", []byte("late"))
		if r.safe {
			wantIs(t, err, ErrFenced)
		} else {
			wantIs(t, err, ErrUnknown, jetstream.ErrBucketNotFound) // it was stored
			if errors.Is(err, ErrFenced) {
				t.Errorf("%v says that nothing was written", err)
			}
		}
		_, err = former.Put(t.Context(), "k", []byte("late"))
		wantIs(t, err, ErrFenced)
	})
}

// A backup that has the fence of the former holder, but not that of the next one. When the lock has
// a holder again, its fence has a sequence that the former one's never had.
func TestRestoredBucketWithTheFence(t *testing.T) {
	srv := startServer(t)
	js := newJS(t, connect(t, srv.ClientURL()))
	s := newStore(t, js, jetstream.KeyValueConfig{Bucket: "b", Storage: jetstream.FileStorage})
	former := s.With(lock(t, "l", 5))
	mustPut(t, former, "k", "A")
	b := takeBackup(t, js.Conn(), "b")
	mustPut(t, s.With(lock(t, "l", 6)), "k", "lost")
	if err := js.DeleteKeyValue(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	next := b.replace(t, srv, js).With(lock(t, "l", 7))
	mustPut(t, next, "k", "B")
	_, err := former.Put(t.Context(), "k", []byte("late"))
	wantIs(t, err, ErrFenced)
	wantValue(t, next, "k", "B")
}

// The bucket is replaced between the read and the commit of a transaction, and the server takes it.
func TestReplacedBucketAmidATransaction(t *testing.T) {
	both(t, func(t *testing.T, s *Store, d doer, w *fakeWire) {
		must(d.Do(t.Context(), Add("n", 1)))(t)
		w.set(func(ctx context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) { return 7, nil })
		_, err := d.Do(t.Context(), Add("n", 1))
		wantIs(t, err, ErrUnknown, jetstream.ErrBucketNotFound)
		w.set(nil)
		if _, ok := d.(*View); ok {
			_, err = d.Do(t.Context(), Add("n", 1))
			wantIs(t, err, ErrFenced)
		}
	})
	s, _ := memory(t)
	w := fake(s)
	v := s.With(lock(t, "l", 10))
	mustPut(t, v, "k", "1")
	v.c.doubt(must(v.c.take(t.Context()))(t))
	w.set(func(ctx context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) { return 7, nil })
	_, err := v.Get(t.Context(), "k") // moves the fence
	wantIs(t, err, ErrFenced, jetstream.ErrBucketNotFound)
}

// A claim that had the fence does not take it a second time where it is gone or was set back. It
// moves it again after a write without an answer, and after many writes.
func TestAFenceIsNotTakenAgain(t *testing.T) {
	eachReplacing(t, 1, func(t *testing.T, r replacing, former *View, other *Store) {
		for range 5 { // the new bucket is not behind
			mustPut(t, other.With(lock(t, "other", 1)), "j", "B")
		}
		former.c.doubt(must(former.c.take(t.Context()))(t))
		_, err := former.Put(t.Context(), "k", []byte("late"))
		wantIs(t, err, ErrFenced)
		wantStored(t, other, "k", "")
	})
	s, _ := memory(t)
	for _, l := range []*testLock{lock(t, "l", 10), rlock(t, "l", 10)} {
		v := s.With(l)
		must(v.GetAll(t.Context(), "k"))(t)
		must(s.Unfence(t.Context(), "l"))(t)
		v.c.doubt(must(v.c.take(t.Context()))(t))
		_, err := v.Get(t.Context(), "k")
		wantIs(t, err, ErrFenced)
		if f := must(s.Fence(t.Context(), "l"))(t); f.Token != 0 {
			t.Errorf("%+v: who was fenced off has taken the fence again", f)
		}
	}
}
