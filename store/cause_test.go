package store

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock"
)

// A call that its context ends tells why the context ended, wherever it waits: before it begins,
// for the server, or for another call.
func TestErrorsHaveTheCause(t *testing.T) {
	s, nc := memory(t)
	js := newJS(t, nc)
	w := fake(s)
	v := s.With(lock(t, "l", 10))
	mustPut(t, v, "k", "0")
	why := fmt.Errorf("the request was withdrawn: %w", &refused{1 << 60}) // which is not the server's
	calls := map[string]func(ctx context.Context) error{
		"Get":       func(ctx context.Context) error { _, err := v.Get(ctx, "k"); return err },
		"Put":       func(ctx context.Context) error { _, err := v.Put(ctx, "k", nil); return err },
		"Create":    func(ctx context.Context) error { _, err := v.Create(ctx, "new", nil); return err },
		"View.Do":   func(ctx context.Context) error { _, err := v.Do(ctx, Add("n", 1), Put("k", nil)); return err },
		"Store.Do":  func(ctx context.Context) error { _, err := s.Do(ctx, Get("n"), Put("k", nil)); return err },
		"reads":     func(ctx context.Context) error { _, err := s.Do(ctx, Get("n")); return err },
		"Repeat":    func(ctx context.Context) error { _, err := s.Repeat(ctx, "x"); return err },
		"Fence":     func(ctx context.Context) error { _, err := s.Fence(ctx, "l"); return err },
		"Fences":    func(ctx context.Context) error { _, err := s.Fences(ctx); return err },
		"Unfence":   func(ctx context.Context) error { _, err := s.Unfence(ctx, "l"); return err },
		"Wait":      func(ctx context.Context) error { _, err := s.Wait(ctx, "none", 0); return err },
		"Watch":     func(ctx context.Context) error { return watchUntil(ctx, s) },
		"new claim": func(ctx context.Context) error { _, err := s.With(lock(t, "l", 11)).Get(ctx, "k"); return err },
	}
	check := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, context.Canceled) || !errors.Is(err, why) {
			t.Errorf("%s: %v, want the cause", what, err)
		}
	}
	ending := func() context.Context {
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(20*time.Millisecond, func() { cancel(why) })
		return ctx
	}
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	for what, f := range map[string]func(ctx context.Context) error{
		"Open":    func(ctx context.Context) error { _, err := Open(ctx, js, s.Bucket()); return err },
		"Prepare": func(ctx context.Context) error { return Prepare(ctx, js, s.Bucket()) },
		"Create_": func(ctx context.Context) error {
			_, err := Create(ctx, js, jetstream.KeyValueConfig{Bucket: s.Bucket()})
			return err
		},
	} {
		check(what, f(ended))
	}
	for what, f := range calls {
		check(what+", ended before", f(ended))
	}
	if _, floor := v.c.state(); floor >= 1<<60 {
		t.Error("the cause of a context was taken for an answer of the server")
	}
	for _, grouped := range []bool{false, true} {
		s.grouped = grouped
		w.setRead(func(ctx context.Context, _ []string, _ wire) (answer, error) {
			<-ctx.Done()
			return answer{}, errSilent
		})
		w.set(func(ctx context.Context, _ string, _ []*nats.Msg, _ wire) (uint64, error) {
			<-ctx.Done()
			return 0, errSilent
		})
		for what, f := range calls {
			if what == "Wait" || what == "Watch" {
				continue // they have made their consumer, or not
			}
			check(what+", without an answer", f(ending()))
		}
		w.set(nil)
		w.setRead(nil)
		mustPut(t, v, "k", "1")
		for _, waits := range []struct {
			what  string
			for_  chan struct{}
			calls []string
		}{
			{"the turn", v.c.turn, []string{"View.Do", "Create"}},
			{"the consumer", s.watching.starting, []string{"Wait", "Watch"}},
		} {
			waits.for_ <- struct{}{}
			for _, what := range waits.calls {
				check(what+", waiting for "+waits.what, calls[what](ending()))
			}
			if grouped && waits.for_ == v.c.turn {
				check("Put, waiting for the turn", calls["Put"](ending()))
			}
			<-waits.for_
		}
		if !grouped {
			v.c.enter()
			check("View.Do, waiting for puts", calls["View.Do"](ending()))
			v.c.exit()
		}
		check("Wait", calls["Wait"](ending()))
		check("Watch", calls["Watch"](ending()))
	}
	other := s.With(lock(t, "other", 1))
	other.c.taking <- struct{}{}
	_, err := other.Get(ending(), "k")
	check("Get, waiting for the fence", err)
	<-other.c.taking
	wantValue(t, v, "k", "1")
}

func watchUntil(ctx context.Context, s *Store) error {
	seq, err := s.Watch(ctx, "none")
	if err != nil {
		return err
	}
	for _, e := range seq {
		err = e
	}
	return err
}

// What says that nothing was written is not in an error that says that it is not known.
func TestUnknownIsNothingElse(t *testing.T) {
	for _, undone := range []error{
		&FencedError{Lock: "l", Token: 1, Newer: 2}, &ConflictError{Key: "k"}, &DuplicateError{ID: "x"}, ErrFull, ErrTooLarge, ErrNotNumber,
	} {
		for _, err := range []error{
			&UnknownError{What: "k", Cause: fmt.Errorf("store: commit: %w", undone)},
			&UnknownError{What: "k", Cause: errors.Join(undone, errSilent)},
		} {
			wantIs(t, err, ErrUnknown)
			for _, not := range []error{ErrFenced, ErrConflict, ErrDuplicate, ErrFull, ErrTooLarge, ErrNotNumber} {
				if errors.Is(err, not) {
					t.Errorf("%v is %v", err, not)
				}
			}
		}
	}
	wantIs(t, &UnknownError{Cause: &FencedError{Lock: "l"}}, ErrUnknown, qlock.ErrLost)
	wantIs(t, &UnknownError{Cause: context.Canceled}, ErrUnknown, context.Canceled)
}
