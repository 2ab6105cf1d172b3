package store

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/subject"
)

func wantIs(t *testing.T, err error, targets ...error) {
	t.Helper()
	for _, target := range targets {
		if !errors.Is(err, target) {
			t.Errorf("%v, want %v", err, target)
		}
	}
}

func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func mustPut(t *testing.T, v *View, key, value string) uint64 {
	t.Helper()
	return must(v.Put(t.Context(), key, []byte(value)))(t)
}

func wantValue(t *testing.T, v *View, key, value string) {
	t.Helper()
	e, err := v.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if string(e.Value()) != value {
		t.Errorf("%s is %q, want %q", key, e.Value(), value)
	}
}

// The names of locks are encoded as the nodes do it.
func TestEncodeIsThatOfTheWire(t *testing.T) {
	names := []string{"a", "a.b", "", ".", "..", "a..b", "*", ">", "a b", "ä", "%", "%41", "\x00", "'\"`\\", "a>b", strings.Repeat("x", 1024), strings.Repeat("x", 1025)}
	for c := range 256 {
		names = append(names, string([]byte{byte(c)}))
	}
	for _, name := range names {
		got, err := encode("name", name)
		want, wantErr := subject.EncodeName(name)
		if got != want || (err == nil) != (wantErr == nil) {
			t.Errorf("%q: %q, %v, want %q, %v", name, got, err, want, wantErr)
		}
	}
}

func TestPutGet(t *testing.T) {
	s := newStore(t, newJS(t, connect(t, startServer(t).ClientURL())), jetstream.KeyValueConfig{})
	v := s.With(lock(t, "l", 10))
	_, err := v.Get(t.Context(), "k")
	wantIs(t, err, jetstream.ErrKeyNotFound)
	rev := mustPut(t, v, "k", "one")
	e := must(v.Get(t.Context(), "k"))(t)
	if string(e.Value()) != "one" || e.Revision() != rev || e.Key() != "k" || e.Bucket() != s.Bucket() || e.Created().IsZero() || e.Operation() != jetstream.KeyValuePut {
		t.Errorf("%+v", e)
	}
	// It is an ordinary entry for others.
	if e := must(s.KeyValue().Get(t.Context(), "k"))(t); e.Revision() != rev || string(e.Value()) != "one" {
		t.Errorf("%+v", e)
	}
	if keys := must(s.KeyValue().Keys(t.Context()))(t); len(keys) != 1 {
		t.Errorf("keys %q: the fence shows", keys)
	}
	if err := v.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	_, err = v.Get(t.Context(), "k")
	wantIs(t, err, jetstream.ErrKeyNotFound)
	rev = must(v.Create(t.Context(), "k", []byte("two")))(t)
	_, err = v.Create(t.Context(), "k", []byte("three"))
	wantIs(t, err, ErrConflict, jetstream.ErrKeyExists)
	c := (*ConflictError)(nil)
	if !errors.As(err, &c) || c.Revision != rev || c.Key != "k" {
		t.Errorf("%+v", c)
	}
	rev2 := must(v.Update(t.Context(), "k", []byte("four"), rev))(t)
	_, err = v.Update(t.Context(), "k", []byte("five"), rev)
	wantIs(t, err, ErrConflict)
	if errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, ErrFenced) {
		t.Errorf("%v is more than a conflict", err)
	}
	if e := must(v.Get(t.Context(), "k"))(t); e.Revision() != rev2 || string(e.Value()) != "four" {
		t.Errorf("%+v, want revision %d", e, rev2)
	}
	if err := v.Purge(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"", ".", "a.", ".a", "a..b", "a b", "*", "a.>", "ä"} {
		_, err := v.Put(t.Context(), key, nil)
		wantIs(t, err, ErrInvalid)
		_, err = v.Get(t.Context(), key)
		wantIs(t, err, ErrInvalid)
	}
}

func TestSnapshotIsOneMoment(t *testing.T) {
	s := newStore(t, newJS(t, connect(t, startServer(t).ClientURL())), jetstream.KeyValueConfig{Storage: jetstream.MemoryStorage})
	v := s.With(lock(t, "l", 1))
	mustPut(t, v, "a", "1")
	mustPut(t, v, "b", "2")
	snap := must(v.GetAll(t.Context(), "a", "b", "c"))(t)
	if keys := snap.Keys(); len(keys) != 2 || snap.Revision() == 0 {
		t.Errorf("%q at %d", keys, snap.Revision())
	}
	_, err := snap.Get("c")
	wantIs(t, err, jetstream.ErrKeyNotFound)
}

// A new holder shuts out the one before it: at its first read already.
func TestFenced(t *testing.T) {
	nc := connect(t, startServer(t).ClientURL())
	s := newStore(t, newJS(t, nc), jetstream.KeyValueConfig{}, WithClient("one"))
	other := reopen(t, s, nc, WithClient("two"))
	old, next := s.With(lock(t, "l", 10)), other.With(lock(t, "l", 11))
	mustPut(t, old, "k", "old")
	wantValue(t, next, "k", "old")
	_, err := old.Put(t.Context(), "k", []byte("stale"))
	wantIs(t, err, ErrFenced, qlock.ErrLost)
	f := (*FencedError)(nil)
	if !errors.As(err, &f) || f.Token != 10 || f.Newer != 11 || f.Client != "two" || f.Lock != "l" {
		t.Errorf("%+v", f)
	}
	for _, err := range []error{
		second(old.Get(t.Context(), "k")), old.Delete(t.Context(), "k"), old.Purge(t.Context(), "k"),
		second(old.Do(t.Context(), Add("n", 1))), second(old.Do(t.Context(), Get("n"))), second(old.Create(t.Context(), "x", nil)),
		second(s.With(lock(t, "l", 9)).Put(t.Context(), "k", nil)), second(s.With(lock(t, "l", 10)).Get(t.Context(), "k")),
	} {
		wantIs(t, err, ErrFenced)
	}
	wantValue(t, next, "k", "old")
	// Another lock, and a lock of the same name in another cluster, have fences of their own.
	mustPut(t, s.With(lock(t, "m", 1)), "k", "m")
	mustPut(t, reopen(t, s, nc, WithCluster("c2")).With(lock(t, "l", 1)), "k", "c2")
	wantValue(t, next, "k", "c2")
}

func second[T any](_ T, err error) error { return err }

// After the lock's context has ended nothing is sent.
func TestNothingIsSentAfterTheLock(t *testing.T) {
	s := newStore(t, newJS(t, connect(t, startServer(t).ClientURL())), jetstream.KeyValueConfig{})
	w := fake(s)
	l := lock(t, "l", 10)
	v := s.With(l)
	mustPut(t, v, "k", "1")
	sends, reads := w.sends.Load(), w.reads.Load()
	l.end(qlock.ErrLost)
	_, err := v.Put(t.Context(), "k", []byte("2"))
	wantIs(t, err, ErrFenced, qlock.ErrLost)
	_, err = v.Get(t.Context(), "k")
	wantIs(t, err, ErrFenced)
	_, err = v.Do(t.Context(), Put("k", nil))
	wantIs(t, err, ErrFenced)
	if w.sends.Load() != sends || w.reads.Load() != reads {
		t.Error("something was sent")
	}
	// The next claim of the same Store is not the old one.
	mustPut(t, s.With(lock(t, "l", 11)), "k", "3")
	u := lock(t, "l", 12)
	u.end(qlock.ErrUnlocked)
	_, err = s.With(u).Put(t.Context(), "k", nil)
	wantIs(t, err, ErrFenced, qlock.ErrUnlocked)
	if errors.Is(err, qlock.ErrLost) {
		t.Errorf("%v of a lock that was unlocked", err)
	}
}

// Two programs that work under one claim do not shut each other out.
func TestOneClaimInTwoPrograms(t *testing.T) {
	nc := connect(t, startServer(t).ClientURL())
	s := newStore(t, newJS(t, nc), jetstream.KeyValueConfig{})
	other := reopen(t, s, nc)
	a, b := s.With(lock(t, "l", 10)), other.With(lock(t, "l", 10))
	mustPut(t, a, "k", "a")
	mustPut(t, b, "k", "b")
	wantValue(t, a, "k", "b")
	b.c.doubt(b.c.rev) // b moves the fence
	mustPut(t, b, "k", "b2")
	mustPut(t, a, "k", "a2")
	wantValue(t, b, "k", "a2")
	for range 3 {
		must(a.Do(t.Context(), Add("n", 1)))(t)
		must(b.Do(t.Context(), Add("n", 1)))(t)
	}
	wantValue(t, a, "n", "6")
}

func TestSharedLocks(t *testing.T) {
	nc := connect(t, startServer(t).ClientURL())
	s := newStore(t, newJS(t, nc), jetstream.KeyValueConfig{})
	w5 := s.With(lock(t, "l", 5))
	mustPut(t, w5, "k", "5")
	r5, r6 := s.With(rlock(t, "l", 5)), s.With(rlock(t, "l", 6)) // a reader's token may be the writer's before it
	wantValue(t, r6, "k", "5")
	wantValue(t, r5, "k", "5")
	_, err := w5.Put(t.Context(), "k", []byte("stale"))
	wantIs(t, err, ErrFenced)
	_, err = r5.Put(t.Context(), "k", nil)
	wantIs(t, err, ErrShared)
	_, err = r5.Do(t.Context(), Add("k", 1))
	wantIs(t, err, ErrShared)
	if f := must(s.Fence(t.Context(), "l"))(t); f.Token != 6 || !f.Shared {
		t.Errorf("%+v", f)
	}
	// A writer whose token lies between is over, and one after the readers is not.
	_, err = s.With(lock(t, "l", 6)).Put(t.Context(), "k", nil)
	wantIs(t, err, ErrFenced)
	mustPut(t, s.With(lock(t, "l", 7)), "k", "7")
	_, err = r6.Get(t.Context(), "k")
	wantIs(t, err, ErrFenced)
	// A reader after that writer moves the fence. The old ones see that a writer was between.
	wantValue(t, s.With(rlock(t, "l", 8)), "k", "7")
	_, err = s.With(rlock(t, "l", 6)).Get(t.Context(), "k")
	wantIs(t, err, ErrFenced)
	wantValue(t, s.With(rlock(t, "l", 7)), "k", "7")
}

// The server refuses nothing for an unfenced program: that is documented.
func TestUnfence(t *testing.T) {
	s := newStore(t, newJS(t, connect(t, startServer(t).ClientURL())), jetstream.KeyValueConfig{})
	high := s.With(lock(t, "l", 1000))
	mustPut(t, high, "k", "1000")
	_, err := s.With(lock(t, "l", 10)).Put(t.Context(), "k", nil)
	wantIs(t, err, ErrFenced)
	if f := must(s.Unfence(t.Context(), "l"))(t); f.Token != 1000 {
		t.Errorf("%+v", f)
	}
	_, err = high.Put(t.Context(), "k", nil)
	wantIs(t, err, ErrFenced)
	mustPut(t, s.With(lock(t, "l", 11)), "k", "11")
	if f := must(s.Unfence(t.Context(), "never"))(t); f.Token != 0 {
		t.Errorf("%+v", f)
	}
}

// Unfence does not believe a replica that is behind and has no fence yet. It tells what the fence
// was also if the answer to its own message is lost.
func TestUnfenceReadsFromAReplicaThatIsBehind(t *testing.T) {
	s, _ := memory(t)
	must(s.barrier(t.Context()))(t)
	before := must(s.wire.read(t.Context(), []string{s.guard()}))(t)
	high := s.With(lock(t, "l", 1000))
	mustPut(t, high, "k", "1000")
	w := fake(s)
	behind := 2
	w.setRead(func(ctx context.Context, subjects []string, real wire) (answer, error) {
		a, err := real.read(ctx, subjects)
		if behind--; behind >= 0 {
			a = stale(a, before.upTo, before.items)
		}
		return a, err
	})
	w.set(func(ctx context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) {
		seq, err := real.send(ctx, id, msgs)
		if err == nil {
			w.set(nil)
			return 0, errSilent
		}
		return seq, err
	})
	if f := must(s.Unfence(t.Context(), "l"))(t); f.Token != 1000 {
		t.Errorf("the fence was at token %d, want 1000", f.Token)
	}
	mustPut(t, s.With(lock(t, "l", 11)), "k", "11")
}

// The configuration is that of jetstream.CreateKeyValue, but for what fences need.
func TestCreateIsAKeyValueBucket(t *testing.T) {
	js := newJS(t, connect(t, startServer(t).ClientURL()))
	for _, cfg := range []jetstream.KeyValueConfig{
		{}, {Description: "d", History: 5, TTL: time.Minute, MaxBytes: 1 << 20, MaxValueSize: 1000, Storage: jetstream.MemoryStorage, Compression: true, LimitMarkerTTL: time.Minute, Metadata: map[string]string{"a": "b"}},
	} {
		cfg.Bucket = "plain"
		if _, err := js.CreateKeyValue(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		want := must(config(t.Context(), js, "plain"))(t)
		if err := js.DeleteKeyValue(t.Context(), "plain"); err != nil {
			t.Fatal(err)
		}
		must(Create(t.Context(), js, cfg))(t)
		got := must(config(t.Context(), js, "plain"))(t)
		addFences(names{"plain"}, &want)
		want.MaxConsumers = maxConsumers
		if want.FirstSeq = got.FirstSeq; got.FirstSeq == 0 {
			t.Error("the sequences of a bucket that is made anew do not rise")
		}
		delete(got.Metadata, "_nats.req.level") // higher, for batches
		delete(want.Metadata, "_nats.req.level")
		if a, b := string(marshal(got)), string(marshal(want)); a != b {
			t.Errorf("made %s\nwant %s", a, b)
		}
		must(Create(t.Context(), js, cfg))(t) // the same again
		other := cfg
		other.History = 7
		_, err := Create(t.Context(), js, other)
		wantIs(t, err, jetstream.ErrBucketExists)
		if err := js.DeleteKeyValue(t.Context(), "plain"); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Create(t.Context(), js, jetstream.KeyValueConfig{Bucket: "a.b"})
	wantIs(t, err, ErrInvalid)
}

func TestPrepare(t *testing.T) {
	js := newJS(t, connect(t, startServer(t).ClientURL()))
	wantIs(t, Prepare(t.Context(), js, "none"), jetstream.ErrBucketNotFound)
	_, err := Open(t.Context(), js, "none")
	wantIs(t, err, jetstream.ErrBucketNotFound)
	cfg := jetstream.KeyValueConfig{Bucket: "plain", History: 3}
	kv := must(js.CreateKeyValue(t.Context(), cfg))(t)
	rev := must(kv.Put(t.Context(), "k", []byte("before")))(t)
	_, err = Open(t.Context(), js, "plain")
	wantIs(t, err, ErrNotPrepared)
	if !strings.Contains(err.Error(), "qlock store prepare plain") || !strings.Contains(err.Error(), "$KV.plain-qlock.>") {
		t.Error(err)
	}
	for range 2 {
		if err := Prepare(t.Context(), js, "plain"); err != nil {
			t.Fatal(err)
		}
	}
	s := must(Open(t.Context(), js, "plain"))(t)
	v := s.With(lock(t, "l", 1))
	if e := must(v.Get(t.Context(), "k"))(t); e.Revision() != rev {
		t.Errorf("%+v", e)
	}
	// A program that makes its bucket at each start is refused by the server, which does not
	// take back allow_msg_ttl, and changes nothing.
	_, err = js.CreateOrUpdateKeyValue(t.Context(), cfg)
	if err == nil {
		t.Error("an update without limit markers was let through")
	}
	mustPut(t, s.With(lock(t, "m", 1)), "k", "x")
	// With limit markers it takes the fences away. No new holder can take the fence then; the
	// error says so.
	cfg.LimitMarkerTTL = time.Minute
	must(js.CreateOrUpdateKeyValue(t.Context(), cfg))(t)
	_, err = s.With(lock(t, "l", 2)).Put(t.Context(), "k", []byte("x"))
	wantIs(t, err, ErrNotPrepared)
	if err := Prepare(t.Context(), js, "plain"); err != nil {
		t.Fatal(err)
	}
	mustPut(t, s.With(lock(t, "l", 2)), "k", "x")

	must(js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "mirror", Mirror: &jetstream.StreamSource{Name: "plain"}}))(t)
	wantIs(t, Prepare(t.Context(), js, "mirror"), ErrUnsupported)
	_, err = Open(t.Context(), js, "mirror")
	wantIs(t, err, ErrUnsupported)
	must(js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "sourced", Sources: []*jetstream.StreamSource{{Name: "plain"}}}))(t)
	_, err = Open(t.Context(), js, "sourced")
	wantIs(t, err, ErrUnsupported)
	_, err = Create(t.Context(), js, jetstream.KeyValueConfig{Bucket: "m2", Mirror: &jetstream.StreamSource{Name: "plain"}})
	wantIs(t, err, ErrUnsupported)
}

// An age limit of the bucket expires values, not fences.
func TestFencesOutliveTheAgeLimit(t *testing.T) {
	s := newStore(t, newJS(t, connect(t, startServer(t).ClientURL())), jetstream.KeyValueConfig{TTL: time.Second})
	v := s.With(lock(t, "l", 10))
	mustPut(t, v, "k", "1")
	eventually(t, "the value expires", func() bool {
		_, err := v.Get(t.Context(), "k")
		return errors.Is(err, jetstream.ErrKeyNotFound)
	})
	if f := must(s.Fence(t.Context(), "l"))(t); f.Token != 10 {
		t.Errorf("%+v: the fence expired", f)
	}
	mustPut(t, v, "k", "2")
}

func TestTTL(t *testing.T) {
	s := newStore(t, newJS(t, connect(t, startServer(t).ClientURL())), jetstream.KeyValueConfig{})
	v := s.With(lock(t, "l", 1))
	const life = 3 * time.Second
	eventually(t, "the value is read in its time", func() bool {
		start := time.Now()
		must(v.Put(t.Context(), "k", []byte("v"), TTL(life)))(t)
		e, err := v.Get(t.Context(), "k")
		if errors.Is(err, jetstream.ErrKeyNotFound) && time.Since(start) >= life {
			return false
		}
		if err != nil || string(e.Value()) != "v" {
			t.Fatalf("%+v, %v", e, err)
		}
		return true
	})
	_, err := v.Put(t.Context(), "k", nil, TTL(time.Millisecond))
	wantIs(t, err, ErrInvalid)
	eventually(t, "the value expires", func() bool {
		_, err := v.Get(t.Context(), "k")
		return errors.Is(err, jetstream.ErrKeyNotFound)
	})
	must(v.Create(t.Context(), "k", []byte("again")))(t)
}

func TestJetStreamPrefix(t *testing.T) {
	nc := connect(t, startServer(t).ClientURL())
	js := must(jetstream.NewWithAPIPrefix(nc, "$JS.API"))(t)
	s := newStore(t, js, jetstream.KeyValueConfig{})
	mustPut(t, s.With(lock(t, "l", 1)), "k", "v")
}

func TestOptions(t *testing.T) {
	js := newJS(t, connect(t, startServer(t).ClientURL()))
	for _, o := range []Option{WithCluster(""), WithCluster("a.b"), WithClient("a b"), WithTimeout(0), WithAnswerTimeout(-1)} {
		_, err := Open(t.Context(), js, "b", o)
		wantIs(t, err, ErrInvalid)
	}
	s := newStore(t, js, jetstream.KeyValueConfig{}, nil)
	v := s.With(lock(t, "", 1))
	_, err := v.Get(t.Context(), "k")
	wantIs(t, err, ErrInvalid)
	_, err = s.With(lock(t, "l", 0)).Put(t.Context(), "k", nil)
	wantIs(t, err, ErrInvalid)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.With(lock(t, "l", 1)).Put(ctx, "k", nil)
	wantIs(t, err, context.Canceled)
	if errors.Is(err, ErrUnknown) {
		t.Errorf("%v: nothing was sent", err)
	}
}

// A user's permissions say which fences it may move.
func TestClosedConnection(t *testing.T) {
	nc := connect(t, startServer(t).ClientURL())
	s := newStore(t, newJS(t, nc), jetstream.KeyValueConfig{})
	v := s.With(lock(t, "l", 1))
	mustPut(t, v, "k", "v")
	nc.Close()
	_, err := v.Put(t.Context(), "k", nil)
	wantIs(t, err, nats.ErrConnectionClosed)
	_, err = v.Get(t.Context(), "k")
	wantIs(t, err, nats.ErrConnectionClosed)
}
