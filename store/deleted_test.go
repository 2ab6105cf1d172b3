package store

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

func inMemory(bucket string) jetstream.KeyValueConfig {
	return jetstream.KeyValueConfig{Bucket: bucket, Storage: jetstream.MemoryStorage}
}

// Calls on a bucket that was deleted say so, also those without a deadline.
func TestDeletedBucketIsTold(t *testing.T) {
	nc := connect(t, startServer(t).ClientURL())
	js := newJS(t, nc)
	s := newStore(t, js, inMemory("deleted"))
	v := s.With(lock(t, "L", 5))
	mustPut(t, v, "k", "1")
	if err := js.DeleteKeyValue(t.Context(), "deleted"); err != nil {
		t.Fatal(err)
	}
	for what, f := range map[string]func() error{
		"Wait":      func() error { _, err := s.Wait(t.Context(), "k", 0); return err },
		"View.Get":  func() error { _, err := v.Get(t.Context(), "k"); return err },
		"Store.Do":  func() error { _, err := s.Do(t.Context(), Put("k", nil)); return err },
		"a new Get": func() error { _, err := s.With(lock(t, "M", 5)).Get(t.Context(), "k"); return err },
	} {
		if err := f(); !errors.Is(err, jetstream.ErrBucketNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A Wait ends with its context also while another one makes the consumer.
func TestWaitEndsWithItsContextWhileTheConsumerIsMade(t *testing.T) {
	s := newStore(t, newJS(t, connect(t, startServer(t).ClientURL())), inMemory(""))
	s.watching.starting <- struct{}{}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Wait(ctx, "k", 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	<-s.watching.starting
}

// Watchers of a bucket that was made anew end with an error, and a new one hears the new bucket.
func TestWatchersOfABucketMadeAnew(t *testing.T) {
	js := newJS(t, connect(t, startServer(t).ClientURL()))
	s := newStore(t, js, inMemory("anew"))
	s.watching.every = 100 * time.Millisecond
	mustPut(t, s.With(lock(t, "L", 5)), "k", "1")
	seq, err := s.Watch(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	heard, ended := make(chan struct{}, 10), make(chan error, 1)
	go func() {
		for _, err := range seq {
			if err != nil {
				ended <- err
				return
			}
			heard <- struct{}{}
		}
	}()
	<-heard
	if err := js.DeleteKeyValue(t.Context(), "anew"); err != nil {
		t.Fatal(err)
	}
	next := newStore(t, js, inMemory("anew"))
	rev := mustPut(t, next.With(lock(t, "L", 6)), "k", "2")
	if err := <-ended; !errors.Is(err, jetstream.ErrBucketNotFound) {
		t.Error(err)
	}
	e, err := s.Wait(t.Context(), "k", rev-1)
	if err != nil || string(e.Value()) != "2" {
		t.Error(e, err)
	}
}

// The first read of a new watcher does not hang on a position that the bucket made anew lacks.
func TestWaitAfterABucketWasMadeAnew(t *testing.T) {
	js := newJS(t, connect(t, startServer(t).ClientURL()))
	s := newStore(t, js, inMemory("again"))
	s.watching.every = 500 * time.Millisecond
	v := s.With(lock(t, "L", 5))
	for range 20 {
		mustPut(t, v, "k", "1")
	}
	w, err := s.join(t.Context(), []string{"other"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.watching.leave(w)
	if err := js.DeleteKeyValue(t.Context(), "again"); err != nil {
		t.Fatal(err)
	}
	mustPut(t, newStore(t, js, inMemory("again")).With(lock(t, "L", 6)), "k", "2")
	if _, err := s.Wait(t.Context(), "k", 0); err != nil && !errors.Is(err, jetstream.ErrBucketNotFound) {
		t.Error(err)
	}
	if _, err := s.next(t.Context(), w); !errors.Is(err, jetstream.ErrBucketNotFound) {
		t.Error(err)
	}
}

// The last watcher leaves at once, also while no server answers.
func TestLeaveWithoutAServer(t *testing.T) {
	srv := startServer(t)
	s := newStore(t, newJS(t, connect(t, srv.ClientURL())), inMemory(""))
	w, err := s.join(t.Context(), []string{"k"})
	if err != nil {
		t.Fatal(err)
	}
	ended := s.watching.ended
	srv.Shutdown()
	s.watching.leave(w)
	select {
	case s.watching.starting <- struct{}{}:
		<-s.watching.starting
	default:
		t.Error("the consumer's removal blocks the next watcher")
	}
	<-ended
}
