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

// A transaction under a lock does not delete a value that another goroutine with the same view
// has put after the transaction has read.
func TestDoDoesNotDeleteWhatItHasNotRead(t *testing.T) {
	s := newStore(t, newJS(t, connect(t, startServer(t).ClientURL())), inMemory(""))
	for _, grouped := range []bool{false, true} {
		s.grouped = grouped
		v := s.With(lock(t, "L", 5))
		mustPut(t, v, "box", "first")
		f := fake(s)
		put := make(chan error, 1)
		f.set(func(ctx context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) {
			if msgs[0].Header.Get(headerKVOp) == "" || !strings.HasSuffix(msgs[0].Subject, "box") {
				return real.send(ctx, id, msgs)
			}
			f.set(nil)
			// The put does not come between the read and the commit.
			c, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			_, err := v.Put(c, "box", []byte("second"))
			cancel()
			put <- err
			return real.send(ctx, id, msgs)
		})
		res := must(v.Do(t.Context(), Get("box"), Delete("box")))(t)
		if e, err := res.Get("box"); err != nil || string(e.Value()) != "first" {
			t.Error(e, err)
		}
		if err := <-put; !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnknown) {
			t.Errorf("the put while the transaction ran: %v", err)
		}
		if _, err := v.Get(t.Context(), "box"); !errors.Is(err, jetstream.ErrKeyNotFound) {
			t.Error(err)
		}
		mustPut(t, v, "box", "third")
		wantValue(t, v, "box", "third")
	}
}

// A transaction waits for the puts that are running.
func TestDoWaitsForPuts(t *testing.T) {
	s := newStore(t, newJS(t, connect(t, startServer(t).ClientURL())), inMemory(""))
	v := s.With(lock(t, "L", 5))
	mustPut(t, v, "box", "first")
	f := fake(s)
	sending, send := make(chan struct{}), make(chan struct{})
	f.set(func(ctx context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) {
		f.set(nil)
		close(sending)
		<-send
		return real.send(ctx, id, msgs)
	})
	put := make(chan error, 1)
	go func() { _, err := v.Put(t.Context(), "box", []byte("second")); put <- err }()
	<-sending
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := v.Do(ctx, Get("box"), Delete("box")); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	go func() { time.Sleep(10 * time.Millisecond); close(send) }()
	res := must(v.Do(t.Context(), Get("box"), Delete("box")))(t)
	if e, err := res.Get("box"); err != nil || string(e.Value()) != "second" {
		t.Error(e, err)
	}
	if err := <-put; err != nil {
		t.Error(err)
	}
}

// Several readers of one process have the same token, and each view ends with its own lock.
func TestReadersOfOneProcess(t *testing.T) {
	s := newStore(t, newJS(t, connect(t, startServer(t).ClientURL())), inMemory(""))
	mustPut(t, s.With(lock(t, "L", 5)), "k", "v")
	one, two := rlock(t, "L", 5), rlock(t, "L", 5)
	v1, v2 := s.With(one), s.With(two)
	wantValue(t, v1, "k", "v")
	wantValue(t, v2, "k", "v")
	if s.With(one).c != v1.c {
		t.Error("two views of one lock are two claims")
	}
	one.end(nil)
	wantValue(t, v2, "k", "v")
	_, err := v1.Get(t.Context(), "k")
	wantIs(t, err, ErrFenced)
}

// Puts that go in one batch end with their own contexts: neither later, nor with the end of
// another one's.
func TestPutsOfAGroupEndWithTheirContexts(t *testing.T) {
	s := newStore(t, newJS(t, connect(t, startServer(t).ClientURL())), inMemory(""))
	s.grouped = true
	v := s.With(lock(t, "L", 5))
	mustPut(t, v, "k", "1")
	f := fake(s)
	busy := func(context.Context, string, []*nats.Msg, wire) (uint64, error) {
		return 0, fmt.Errorf("%w: no leader", errBusy)
	}
	grouped := make(chan struct{}, 1)
	f.set(func(ctx context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error) {
		if len(msgs) == 3 {
			select {
			case grouped <- struct{}{}:
			default:
			}
		}
		return busy(ctx, id, msgs, real)
	})
	v.c.turn <- struct{}{} // all of them wait
	type outcome struct {
		key string
		err error
	}
	out := make(chan outcome, 3)
	short, end := context.WithCancel(t.Context())
	defer end()
	for key, ctx := range map[string]context.Context{"short1": short, "short2": short, "long": t.Context()} {
		go func() {
			_, err := v.Put(ctx, key, []byte("v"))
			out <- outcome{key, err}
		}()
	}
	eventually(t, "all wait", func() bool {
		v.c.mu.Lock()
		defer v.c.mu.Unlock()
		return len(v.c.waiting) == 3
	})
	<-v.c.turn
	<-grouped
	end()
	for range 2 {
		if o := <-out; o.key == "long" || !errors.Is(o.err, context.Canceled) || errors.Is(o.err, ErrUnknown) {
			t.Errorf("%s: %v", o.key, o.err)
		}
	}
	f.set(nil)
	if o := <-out; o.key != "long" || o.err != nil {
		t.Errorf("%s: %v", o.key, o.err)
	}
	wantValue(t, v, "long", "v")
}

// The same while no server answers: the puts that were sent have no known outcome.
func TestPutsOfAGroupEndWithTheirContextsInSilence(t *testing.T) {
	s := newStore(t, newJS(t, connect(t, startServer(t).ClientURL())), inMemory(""))
	s.grouped = true
	s.opt.timeout = time.Hour
	v := s.With(lock(t, "L", 5))
	mustPut(t, v, "k", "1")
	f := fake(s)
	sent := make(chan struct{}, 1)
	silent := func(context.Context) error {
		select {
		case sent <- struct{}{}:
		default:
		}
		return fmt.Errorf("%w: no server", errSilent)
	}
	f.set(func(ctx context.Context, _ string, _ []*nats.Msg, _ wire) (uint64, error) { return 0, silent(ctx) })
	f.setRead(func(ctx context.Context, _ []string, _ wire) (answer, error) { return answer{}, silent(ctx) })
	v.c.turn <- struct{}{} // all of them wait
	ctx, end := context.WithCancel(t.Context())
	defer end()
	out := make(chan error, 3)
	for i := range 3 {
		go func() {
			_, err := v.Put(ctx, fmt.Sprint("k", i), []byte("v"))
			out <- err
		}()
	}
	eventually(t, "all wait", func() bool {
		v.c.mu.Lock()
		defer v.c.mu.Unlock()
		return len(v.c.waiting) == 3
	})
	<-v.c.turn
	<-sent
	end()
	for range 3 {
		select {
		case err := <-out:
			wantIs(t, err, context.Canceled, ErrUnknown)
		case <-time.After(time.Minute):
			t.Fatal("a put goes on after its context has ended")
		}
	}
}

// Unfence frees a fence that has no number, which no holder can take.
func TestUnfenceOfAFenceWithoutANumber(t *testing.T) {
	js := newJS(t, connect(t, startServer(t).ClientURL()))
	s := newStore(t, js, inMemory("garbage"))
	must(js.Publish(t.Context(), "$KV.garbage-qlock.fence.default.L", []byte("17\n")))(t)
	v := s.With(lock(t, "L", 99))
	_, err := v.Get(t.Context(), "k")
	wantIs(t, err, ErrInvalid)
	if f := must(s.Unfence(t.Context(), "L"))(t); f.Token != 0 || f.Revision == 0 {
		t.Errorf("%+v", f)
	}
	mustPut(t, v, "k", "v")
}
