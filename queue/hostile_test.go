package queue_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock/queue"
)

// A number of attempts that somebody else stored does not end the process, and is not believed.
func TestForgedAttempts(t *testing.T) {
	for _, forged := range []string{"9223372036854775807", "-5", "4", "many", ""} {
		t.Run(forged, func(t *testing.T) {
			inShop(t, queue.Config{MaxAttempts: 3, Backoff: []time.Duration{time.Second}}, func(t *testing.T, s *shop) {
				r := enqueue(t, s.Queue, "k", "")
				attempts := make(chan int, 10)
				s.hire("a", func(ctx context.Context, it *queue.Item) error {
					attempts <- it.Attempt
					if it.Attempt == 1 {
						if _, err := s.js.Publish(ctx, fmt.Sprint("qlock.queue.mail.try.", r.Seq), []byte(forged)); err != nil {
							t.Error(err)
						}
					}
					return errors.New("it fails")
				})
				s.empty(time.Minute)
				for want := 1; want <= 3; want++ {
					if n := receive(t, attempts); n != want {
						t.Errorf("attempt %d, want %d", n, want)
					}
				}
				if len(attempts) > 0 {
					t.Errorf("%d attempts more", len(attempts))
				}
			})
		})
	}
}

// discardAll makes all items dead letters, and returns them.
func (s *shop) discardAll() (dead []queue.DeadLetter) {
	s.t.Helper()
	c := s.hire("discards", func(context.Context, *queue.Item) error { return queue.Discard(errors.New("no")) })
	s.empty(time.Minute)
	c.stop()
	if err := c.end(s.t, time.Minute); err != nil {
		s.t.Error(err)
	}
	for d, err := range s.Dead(s.t.Context()) {
		if err != nil {
			s.t.Fatal(err)
		}
		dead = append(dead, d)
	}
	return dead
}

// doAll does all items, and returns their data.
func (s *shop) doAll() (done []string) {
	s.t.Helper()
	c := s.hire("does", func(_ context.Context, it *queue.Item) error {
		done = append(done, string(it.Data))
		return nil
	})
	s.empty(time.Minute)
	c.stop()
	if err := c.end(s.t, time.Minute); err != nil {
		s.t.Error(err)
	}
	return done
}

// No id of a producer, and no earlier dead letter with the same number, makes the stream take a
// revived item for one that it has.
func TestReviveIsNoDuplicate(t *testing.T) {
	inShop(t, queue.Config{Duplicates: time.Hour}, func(t *testing.T, s *shop) {
		for _, data := range []string{"one", "two"} {
			enqueue(t, s.Queue, "k", data)
			dead := s.discardAll()
			if len(dead) != 1 {
				t.Fatalf("%+v", dead)
			}
			enqueue(t, s.Queue, "x", "other", queue.WithID("revived-1"))
			if err := s.Revive(t.Context(), dead[0].Seq); err != nil {
				t.Fatal(err)
			}
			if done := s.doAll(); !slices.Contains(done, data) {
				t.Errorf("%s is lost: done are %q", data, done)
			}
			// The next one has the same number.
			if err := s.js.DeleteStream(t.Context(), "qlock-dead-mail"); err != nil {
				t.Fatal(err)
			}
			s.Queue = open(t, s.js, s.cfg)
		}
	})
}

// keeps is JetStream whose streams cannot delete a message for a while.
type keeps struct {
	jetstream.JetStream
	err error
}

type keepsMsg struct {
	jetstream.Stream
	err *error
}

func (k *keeps) CreateOrUpdateStream(ctx context.Context, cfg jetstream.StreamConfig) (jetstream.Stream, error) {
	s, err := k.JetStream.CreateOrUpdateStream(ctx, cfg)
	return &keepsMsg{s, &k.err}, err
}

func (k *keepsMsg) DeleteMsg(ctx context.Context, seq uint64) error {
	if *k.err != nil {
		return *k.err
	}
	return k.Stream.DeleteMsg(ctx, seq)
}

// Revive stores the item, and fails before it has deleted the dead letter. If the item is still
// there, another Revive stores no second one. If it is not there, it is stored again: that may be
// once too often, and never loses it.
func TestReviveAgain(t *testing.T) {
	for _, between := range []string{"it waits", "it is done"} {
		t.Run(between, func(t *testing.T) {
			inShop(t, queue.Config{Duplicates: time.Hour}, func(t *testing.T, s *shop) {
				enqueue(t, s.Queue, "k", "one")
				dead := s.discardAll()
				js := &keeps{s.js, errors.New("no leader")}
				q := open(t, js, s.cfg)
				wantIs(t, q.Revive(t.Context(), dead[0].Seq), js.err)
				js.err = nil
				if between == "it is done" {
					if done := s.doAll(); !slices.Equal(done, []string{"one"}) {
						t.Errorf("done are %q", done)
					}
				}
				if err := q.Revive(t.Context(), dead[0].Seq); err != nil {
					t.Fatal(err)
				}
				if done := s.doAll(); !slices.Equal(done, []string{"one"}) {
					t.Errorf("done are %q", done)
				}
				if st, err := q.Stats(t.Context()); err != nil || st.Dead != 0 {
					t.Errorf("%+v, %v", st, err)
				}
			})
		})
	}
}

// An item that is as large as the server takes has no place for the id of a revived one.
func TestReviveLarge(t *testing.T) {
	inShop(t, queue.Config{}, func(t *testing.T, s *shop) {
		large := strings.Repeat("x", int(s.js.Conn().MaxPayload()))
		enqueue(t, s.Queue, "k", large)
		if err := s.Revive(t.Context(), s.discardAll()[0].Seq); err != nil {
			t.Fatal(err)
		}
		if done := s.doAll(); len(done) != 1 || done[0] != large {
			t.Errorf("%d are done", len(done))
		}
	})
}

// Two tokens that decode to one key: the key's lock and its order are those of the one that this
// package writes. An item under the other is nobody's, and does not stay for ever.
func TestForeignKey(t *testing.T) {
	inShop(t, queue.Config{MaxPending: 6}, func(t *testing.T, s *shop) {
		for range 2 {
			for _, token := range []string{"=YQ", "=w7x", "a@b"} { // a word; bits that count for nothing; no word
				if _, err := s.js.Publish(t.Context(), "qlock.queue.mail.item."+token, nil); err != nil {
					t.Fatal(err)
				}
			}
		}
		enqueue(t, s.Queue, "b", "good")
		if done := s.doAll(); !slices.Equal(done, []string{"good"}) {
			t.Errorf("done are %q", done)
		}
		if st, err := s.Stats(t.Context()); err != nil || st.Dead != 6 {
			t.Errorf("%+v, %v", st, err)
		}
	})
}

// In a full account nothing can be recorded. The items run all the same, as only those that are
// done make room: after a failure, and after a worker that died.
func TestFullAccount(t *testing.T) {
	for _, before := range []string{"a failure", "a dead worker"} {
		t.Run(before, func(t *testing.T) {
			inShop(t, queue.Config{Backoff: []time.Duration{time.Second}}, func(t *testing.T, s *shop) {
				if err := s.stored.GlobalAccount().UpdateJetStreamLimits(map[string]server.JetStreamAccountLimits{
					"": {MaxMemory: 5000, MaxStore: 5000, MaxStreams: -1, MaxConsumers: -1, MaxAckPending: -1},
				}); err != nil {
					t.Fatal(err)
				}
				for i := 0; ; i++ {
					_, err := s.Enqueue(t.Context(), fmt.Sprint("k", i%4), nil)
					if err != nil {
						t.Logf("%d items: %v", i, err)
						break
					}
				}
				if before == "a dead worker" {
					dies := s.hire("dies", func(ctx context.Context, _ *queue.Item) error { <-ctx.Done(); return nil }, queue.WithConcurrency(8))
					time.Sleep(time.Second)
					dies.stored.Cut()
					dies.locks.Cut()
				}
				var mu sync.Mutex // guards failed
				failed := map[uint64]bool{}
				c := s.hire("a", func(_ context.Context, it *queue.Item) error {
					mu.Lock()
					defer mu.Unlock()
					if before == "a failure" && !failed[it.Seq] {
						failed[it.Seq] = true
						return errors.New("not yet")
					}
					return nil
				}, queue.WithConcurrency(64))
				s.empty(5 * time.Minute)
				if before == "a failure" && !c.reported("is not counted") {
					t.Error("it was not reported that an attempt is not counted")
				}
			})
		})
	}
}

// An item that its worker gives back was not tried: with a single attempt, it still has that.
func TestGivenBackIsNoAttempt(t *testing.T) {
	t.Run("the worker stops", func(t *testing.T) {
		inShop(t, queue.Config{MaxAttempts: 1}, func(t *testing.T, s *shop) {
			for i := range 8 {
				enqueue(t, s.Queue, fmt.Sprint("k", i/2), "")
			}
			began := make(chan bool, 8)
			a := s.hire("a", func(context.Context, *queue.Item) error {
				began <- true
				time.Sleep(300 * time.Millisecond)
				return nil
			})
			<-began
			a.stop()
			if err := a.end(t, time.Minute); err != nil {
				t.Error(err)
			}
			if done := len(began) + 1 + len(s.doAll()); done != 8 {
				t.Errorf("%d items ran, want 8", done)
			}
		})
	})
	t.Run("another worker has the key", func(t *testing.T) {
		inShop(t, queue.Config{MaxAttempts: 1}, func(t *testing.T, s *shop) {
			for range 30 {
				enqueue(t, s.Queue, "hot", "")
			}
			ran := make(chan bool, 100)
			slow := func(context.Context, *queue.Item) error {
				ran <- true
				time.Sleep(400 * time.Millisecond)
				return nil
			}
			s.hire("a", slow)
			s.hire("b", slow)
			s.empty(5 * time.Minute)
			if st, err := s.Stats(t.Context()); err != nil || st.Dead != 0 || len(ran) != 30 {
				t.Errorf("%d ran; %+v, %v", len(ran), st, err)
			}
		})
	})
}

// A handler that ends its goroutine has failed, and no more than that.
func TestHandlerExits(t *testing.T) {
	inShop(t, queue.Config{}, func(t *testing.T, s *shop) {
		enqueue(t, s.Queue, "k", "one")
		enqueue(t, s.Queue, "k", "two")
		exited := false
		c := s.hire("a", func(context.Context, *queue.Item) error {
			if !exited {
				exited = true
				runtime.Goexit()
			}
			return nil
		})
		s.empty(time.Minute)
		c.stop()
		if err := c.end(t, time.Minute); err != nil || !c.reported("ended its goroutine") {
			t.Errorf("%v; reported %v", err, c.errs)
		}
	})
}
