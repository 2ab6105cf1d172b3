package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// lostThen stores the next message or batch, does something, and loses the answer.
func lostThen(w *fakeWire, then func()) {
	w.set(func(ctx context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) {
		if _, err := real.send(ctx, id, msgs); err != nil {
			return 0, err
		}
		w.set(nil)
		then()
		return 0, errSilent
	})
}

// A value that is not there may have been stored and have expired since. Then nothing tells
// whether the write was done, and it is not done again (S5).
func TestLostAnswerAndExpiredValue(t *testing.T) {
	s, nc := memory(t)
	w := fake(s)
	v := s.With(lock(t, "l", 10))
	stream := must(newJS(t, nc).Stream(t.Context(), s.stream()))(t)
	expire := func(subjects ...string) {
		t.Helper()
		for _, subject := range subjects {
			if err := stream.Purge(t.Context(), jetstream.WithPurgeSubject(subject)); err != nil {
				t.Fatal(err)
			}
		}
	}
	other := func(value string) { must(s.KeyValue().Put(t.Context(), "n", []byte(value)))(t) }

	mustPut(t, v, "k", "0") // moves the fence
	// The bucket's age limit.
	s.maxAge = time.Nanosecond
	lostThen(w, func() { expire(s.key("a")); other("100") })
	_, err := v.Do(t.Context(), Put("a", nil), Add("n", 1))
	wantIs(t, err, ErrUnknown)
	wantStored(t, s, "n", "100")
	lostThen(w, func() { expire(s.key("a")) })
	_, err = v.Put(t.Context(), "a", nil)
	wantIs(t, err, ErrUnknown)
	s.maxAge = 0

	// What has expired is the note of Once, and others have written the number since.
	lostThen(w, func() {
		expire(s.own() + "once.id")
		other("200")
		time.Sleep(600 * time.Millisecond) // more than half of its time
	})
	_, err = v.Do(t.Context(), Once("id", time.Second), Add("n", 1))
	wantIs(t, err, ErrUnknown)
	wantStored(t, s, "n", "200")

	// A note that cannot have expired tells that nothing was stored.
	silence(w, false)
	must(v.Do(t.Context(), Once("id2", time.Hour), Add("n", 1)))(t)
	wantStored(t, s, "n", "201")
}

// A subject that does not fit into a line of the protocol would cost the connection, and with
// it all locks of the program.
func TestHugeKeys(t *testing.T) {
	s, nc := memory(t)
	name := strings.Repeat("*", maxName) // each byte takes three
	v := s.With(lock(t, name, 1))
	fits, huge := strings.Repeat("k", maxKey), strings.Repeat("k", 5000)
	mustPut(t, v, fits, "v")
	wantValue(t, v, fits, "v")
	must(v.Do(t.Context(), Once(name, time.Hour), Put(fits, nil)))(t)
	must(s.Do(t.Context(), Put(fits, nil), Get("k")))(t)
	for _, key := range []string{huge, huge + "." + huge, fits + "k"} {
		_, err := v.Put(t.Context(), key, nil)
		wantIs(t, err, ErrInvalid)
		_, err = v.Get(t.Context(), key)
		wantIs(t, err, ErrInvalid)
		_, err = s.Do(t.Context(), Insert(key, nil))
		wantIs(t, err, ErrInvalid)
		_, err = s.Wait(t.Context(), key, 0)
		wantIs(t, err, ErrInvalid)
		_, err = s.Watch(t.Context(), key+".>")
		wantIs(t, err, ErrInvalid)
		if err != nil && len(err.Error()) > 12_000 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	}
	_, err := s.With(lock(t, name+"*", 1)).Get(t.Context(), "k")
	wantIs(t, err, ErrInvalid)
	if n := nc.Stats().Reconnects; n != 0 {
		t.Errorf("the connection broke %d times", n)
	}
}

// A transaction with a value that is too large is refused before any of it is sent. Else its
// beginning would take the place of another transaction at the server for ten seconds.
func TestTooLargeTransactions(t *testing.T) {
	s, nc := memory(t)
	v := s.With(lock(t, "l", 1))
	large := make([]byte, nc.MaxPayload())
	for i := range 60 {
		_, err := v.Do(t.Context(), Put("k", nil), Put("large", large[:len(large)-i]))
		wantIs(t, err, nats.ErrMaxPayload)
		_, err = s.Do(t.Context(), Put("k", nil), Put("large", large))
		wantIs(t, err, nats.ErrMaxPayload)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	must(v.Do(ctx, Put("k", nil), Put("j", nil)))(t)
	must(v.Do(ctx, Put("k", nil), Put("large", large[:len(large)-1000])))(t)
}

// A great number of operations is refused in a time that grows with the number alone.
func TestManyOperations(t *testing.T) {
	s, _ := memory(t)
	ops := make([]Op, 300_000)
	for i := range ops {
		ops[i] = Get(fmt.Sprint("k", i))
	}
	_, err := s.Do(t.Context(), ops...)
	wantIs(t, err, ErrInvalid)
}

// A value with a KV-Operation that nobody knows is a value, as it is for package jetstream. Insert
// does not overwrite it.
func TestUnknownOperation(t *testing.T) {
	s, nc := memory(t)
	js := newJS(t, nc)
	for _, op := range []string{"PUT", "x"} {
		key := "k" + op
		must(js.PublishMsg(t.Context(), &nats.Msg{Subject: s.key(key), Data: []byte("theirs"), Header: nats.Header{headerKVOp: {op}}}))(t)
		wantStored(t, s, key, "theirs")
		v := s.With(lock(t, "l", 1))
		wantValue(t, v, key, "theirs")
		_, err := v.Create(t.Context(), key, []byte("ours"))
		wantIs(t, err, ErrConflict)
	}
}

// Whoever may move a fence can name any client there.
func TestHostileClientName(t *testing.T) {
	s, nc := memory(t)
	v := s.With(lock(t, "l", 1))
	mustPut(t, v, "k", "1")
	m := &nats.Msg{Subject: v.c.subject, Data: []byte("2"), Header: nats.Header{headerClient: {"\x1b[2J\u202e" + strings.Repeat("x", 10_000)}}}
	must(newJS(t, nc).PublishMsg(t.Context(), m))(t)
	_, err := v.Put(t.Context(), "k", []byte("2"))
	wantIs(t, err, ErrFenced)
	if err != nil && (strings.ContainsAny(err.Error(), "\x1b\u202e") || len(err.Error()) > 2000) {
		t.Errorf("%q", err)
	}
}

// What is final, and what leaves the outcome open.
func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		answer string
		err    error
		want   error
	}{
		{`{"error":{"code":400,"err_code":10166,"description":"per-message TTL is disabled"}}`, nil, ErrNotPrepared},
		{`{"error":{"code":400,"err_code":10174,"description":"atomic publish is disabled"}}`, nil, ErrNotPrepared},
		{`{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"}}`, nil, ErrFull},
		{`{"error":{"code":400,"err_code":10176,"description":"atomic publish batch is incomplete"}}`, nil, errBusy},
		{`{"error":{"code":429,"err_code":10210,"description":"too many"}}`, nil, errBusy},
		{`{"stream":"KV_b","seq":0}`, nil, errSilent},
		{`null`, nil, errSilent},
		{`[]`, nil, errSilent},
		{``, nil, errSilent},
		{``, nats.ErrConnectionDraining, nats.ErrConnectionDraining},
		{``, nats.ErrMaxPayload, nats.ErrMaxPayload},
		{``, nats.ErrTimeout, errSilent},
		{``, nats.ErrDisconnected, errSilent},
		{``, nats.ErrNoResponders, errBusy},
	} {
		_, err := stored(&nats.Msg{Data: []byte(c.answer)}, c.err)
		wantIs(t, err, c.want)
		if !errors.Is(c.want, errSilent) && errors.Is(err, errSilent) {
			t.Errorf("%s, %v: %v leaves the outcome open", c.answer, c.err, err)
		}
	}
}
