package queue

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock/internal/testworld"
)

// delivery is an item that is delivered again in the moment in which it is given back.
type delivery struct {
	jetstream.Msg
	number uint64
	again  func(jetstream.Msg)
}

func (d *delivery) Subject() string      { return "qlock.queue.mail.item.k" }
func (d *delivery) Data() []byte         { return nil }
func (d *delivery) Headers() nats.Header { return nil }
func (d *delivery) Metadata() (*jetstream.MsgMetadata, error) {
	return &jetstream.MsgMetadata{Sequence: jetstream.SequencePair{Stream: 7}, NumDelivered: d.number}, nil
}
func (d *delivery) Nak() error {
	d.again(&delivery{number: d.number + 1, again: d.again})
	return nil
}
func (d *delivery) NakWithDelay(time.Duration) error { return d.Nak() }

// The server may be faster than this worker: an item that comes again before the worker has
// forgotten it is taken as one that was extended too late, and waits for the whole lease.
func TestRedeliveredBeforeForgotten(t *testing.T) {
	for name, handle := range map[string]Handler{
		"failed": func(context.Context, *Item) error { return RetryAfter(errors.New("busy"), 0) },
		"lost": func(ctx context.Context, _ *Item) error {
			<-ctx.Done()
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			testworld.Run(t, func(t *testing.T, world *testworld.World) {
				l, nc := world.Client("a")
				lock, err := l.Lock(t.Context(), "qlock.queue.mail.k")
				if err != nil {
					t.Fatal(err)
				}
				if name == "lost" {
					nc.Cut()
				}
				q := &Queue{cfg: Config{Name: "mail"}}
				if err := q.cfg.check(); err != nil {
					t.Fatal(err)
				}
				ln := &lane{key: "k"}
				w := &worker{q: q, handle: handle, lanes: map[string]*lane{"k": ln}, ours: map[uint64]*held{}, late: map[string]block{},
					room: make(chan struct{}, 1), report: func(*Item, error) {}, ctx: t.Context(), hard: t.Context()}
				w.take(&delivery{number: 1, again: w.take})
				w.try(ln, ln.items[0], lock)
				if len(ln.items) != 1 || ln.items[0].delivered != 2 || w.ours[7] != ln.items[0] {
					t.Errorf("the item that came again is not there: %+v", ln.items)
				}
			})
		})
	}
}
