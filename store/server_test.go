package store

import (
	"fmt"
	"strings"
	"testing"

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
}
