package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// What docs/store.md says of the server, for clients that do not use this package. If one of these
// fails with a newer server, the page is to be changed.
func TestServerIsAsThePageSays(t *testing.T) {
	s, nc := memory(t)
	mustPut(t, s.With(lock(t, "l", 1)), "k", "1")
	mustPut(t, s.With(lock(t, "l", 2)), "k", "2")
	send := func(m *nats.Msg) string {
		t.Helper()
		return string(must(nc.RequestMsgWithContext(t.Context(), m))(t).Data)
	}
	fenced := func(key string, rev uint64) *nats.Msg {
		m := &nats.Msg{Subject: s.key(key), Data: []byte("x")}
		condition(m, must(s.fenceOf("l"))(t), rev)
		return m
	}
	rev := must(s.Fence(t.Context(), "l"))(t).Revision
	says := func(what, got, want string) {
		t.Helper()
		if !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}

	// A subscription without a consumer hears what is refused.
	sub := must(nc.SubscribeSync(s.keys() + ">"))(t)
	says("a former holder", send(fenced("heard", 1)), "10071")
	if m := must(sub.NextMsgWithContext(t.Context()))(t); m.Subject != s.key("heard") {
		t.Errorf("%s was heard", m.Subject)
	}
	if err := sub.Unsubscribe(); err != nil {
		t.Fatal(err)
	}

	// A message id is one of the stream, and unfit for a batch.
	m := fenced("a", rev)
	m.Header.Set(jetstream.MsgIDHeader, "id")
	says("the first with an id", send(m), `"seq":`)
	m = fenced("b", rev)
	m.Header.Set(jetstream.MsgIDHeader, "id")
	says("the same id for another key", send(m), `"duplicate": true`)
	wantStored(t, s, "b", "")
	batch := func(ms ...*nats.Msg) string {
		t.Helper()
		id := newID()
		for i, m := range ms {
			m.Header.Set(headerBatch, id)
			m.Header.Set(headerBatchSeq, fmt.Sprint(i+1))
			if i < len(ms)-1 {
				if err := nc.PublishMsg(m); err != nil {
					t.Fatal(err)
				}
			}
		}
		ms[len(ms)-1].Header.Set(headerBatchCommit, "1")
		return send(ms[len(ms)-1])
	}
	m = fenced("b", rev)
	m.Header.Set(jetstream.MsgIDHeader, "id")
	says("the same id in a batch", batch(m, fenced("c", rev)), "10201")

	// In a batch a condition comes before what breaks it, else its answer is no answer.
	subject := must(s.fenceOf("l"))(t)
	move := func() *nats.Msg { return fenceMsg(subject, fence{token: 2}, rev) }
	says("the fence moved, then looked at", batch(move(), fenced("c", rev)), "10164")
	own := func() *nats.Msg {
		m := &nats.Msg{Subject: s.key("c"), Data: []byte("x")}
		condition(m, m.Subject, 0)
		return m
	}
	says("a key written, then looked at", batch(fenced("c", rev), own()), "10164")
	says("a key looked at, then written", batch(own(), fenced("c", rev)), `"seq":`)
	says("the fence looked at, then moved", batch(fenced("c", rev), move()), `"seq":`)

	// A condition that holds always: revision 0 of what is not there. And one that is compared with
	// the fence of any lock.
	on := func(subject string, rev uint64) *nats.Msg {
		m := &nats.Msg{Subject: s.key("d"), Data: []byte("x")}
		condition(m, subject, rev)
		return m
	}
	says("revision 0 of a misspelled fence", send(on(s.fences()+"default.misspelled", 0)), `"seq":`)
	mustPut(t, s.With(lock(t, "other", 1)), "k", "3")
	says("a fence of which another is newer", send(on(s.fences()+"default.*", must(s.Fence(t.Context(), "other"))(t).Revision)), `"seq":`)
}

// The same for buckets with replicas.
func TestServersAreAsThePageSays(t *testing.T) {
	nc := connect(t, startCluster(t, 3)[0].ClientURL())
	js := newJS(t, nc)
	s := newStore(t, js, jetstream.KeyValueConfig{Replicas: 3, Storage: jetstream.MemoryStorage})
	former := s.With(lock(t, "l", 1))
	mustPut(t, former, "k", "1")
	old, _ := former.c.state()
	write := func(rev uint64, id string) *nats.Msg {
		m := &nats.Msg{Subject: s.key("k"), Data: []byte("x")}
		condition(m, former.c.subject, rev)
		if id != "" {
			m.Header.Set(jetstream.MsgIDHeader, id)
		}
		return m
	}

	// One write at a time may depend on a fence. The others have an answer that is none.
	eventually(t, "a write meets another one", func() bool {
		replies := must(nc.SubscribeSync(nc.NewInbox()))(t)
		for range 64 {
			m := write(old, "")
			m.Reply = replies.Subject
			if err := nc.PublishMsg(m); err != nil {
				t.Fatal(err)
			}
		}
		for range 64 {
			m, err := replies.NextMsg(5 * time.Second)
			if err != nil {
				return false // there is another leader
			}
			switch _, err := stored(m, nil); {
			case errors.Is(err, errBusy):
				return true
			case err != nil && !errors.Is(err, errSilent):
				t.Fatal(err)
			}
		}
		return false
	})

	// A message id is looked at before the fence: who is fenced off is told that it has written.
	eventually(t, "the first with an id", func() bool {
		_, err := stored(nc.RequestMsg(write(old, "id"), 5*time.Second))
		return err == nil
	})
	mustPut(t, s.With(lock(t, "l", 2)), "k", "2")
	eventually(t, "the answer to a former holder that repeats an id", func() bool {
		m, err := nc.RequestMsg(write(old, "id"), 5*time.Second)
		if r := (*refused)(nil); err == nil {
			if _, err := stored(m, nil); errors.As(err, &r) {
				t.Fatal(err)
			}
		}
		return err == nil && strings.Contains(string(m.Data), `"duplicate": true`)
	})
	wantValue(t, s.With(lock(t, "l", 2)), "k", "2")

	// A former holder that writes without a pause does not keep the next one from the fence.
	flood := reopen(t, s, nc)
	flood.grouped = false
	v := flood.With(lock(t, "l", 3))
	mustPut(t, v, "k", "3")
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for {
				if _, err := v.Put(t.Context(), "k", []byte("flood")); err != nil {
					wantIs(t, err, ErrFenced)
					return
				}
			}
		})
	}
	next := s.With(lock(t, "l", 4))
	mustPut(t, next, "k", "4")
	wg.Wait()
	wantValue(t, next, "k", "4")
}

// A mirror may answer the reads of its origin, and is behind. Its answers count only from the
// claim's own writes on.
func TestMirrorThatAnswers(t *testing.T) {
	s, nc := memory(t)
	must(newJS(t, nc).CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "M", Mirror: &jetstream.StreamSource{Name: s.stream()}, MirrorDirect: true, AllowDirect: true, AllowMsgTTL: true, Storage: jetstream.MemoryStorage,
	}))(t)
	v := s.With(lock(t, "l", 1))
	w := fake(s)
	var mirrored atomic.Int64
	w.setRead(func(ctx context.Context, subjects []string, real wire) (answer, error) {
		a, err := real.read(ctx, subjects)
		for _, i := range a.items {
			if i.hdr.Get(jetstream.StreamHeader) == "M" {
				mirrored.Add(1)
				break
			}
		}
		return a, err
	})
	n := 0
	eventually(t, "the mirror answers", func() bool {
		n++
		mustPut(t, v, "k", fmt.Sprint(n))
		wantValue(t, v, "k", fmt.Sprint(n))
		return mirrored.Load() > 20
	})
}

// A server has room for so many unfinished batches of a stream. A transaction waits for a place.
func TestUnfinishedBatches(t *testing.T) {
	s, nc := memory(t)
	v := s.With(lock(t, "l", 1))
	mustPut(t, v, "k", "0")
	w := fake(s)
	begin := func(id string, n int) *nats.Msg {
		return &nats.Msg{Subject: s.key("x"), Header: nats.Header{headerBatch: {id}, headerBatchSeq: {fmt.Sprint(n)}}}
	}
	// The server gives them up after ten seconds, which may pass before the transaction comes.
	eventually(t, "a transaction finds no place", func() bool {
		id := newID()
		for i := range 50 {
			if err := nc.PublishMsg(begin(fmt.Sprint(id, i), 1)); err != nil {
				t.Fatal(err)
			}
		}
		busy := false
		w.set(func(ctx context.Context, batch string, msgs []*nats.Msg, real wire) (uint64, error) {
			seq, err := real.send(ctx, batch, msgs)
			if errors.Is(err, errBusy) && !busy {
				busy = true
				last := begin(fmt.Sprint(id, 0), 2)
				last.Header.Set(headerBatchCommit, "1")
				must(nc.RequestMsgWithContext(t.Context(), last))(t)
			}
			return seq, err
		})
		must(v.Do(t.Context(), Put("k", []byte("1")), Add("n", 1)))(t)
		return busy
	})
}
