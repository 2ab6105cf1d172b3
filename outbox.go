package qlock

import (
	"errors"
	"log/slog"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/proto"
)

// outbox publishes for a Locker, in order, from a goroutine of its own. Publishing
// may stand still for as long as the connection does: while it reconnects or
// flushes into a black hole, every call on it waits for its mutex, for up to a
// minute. The clock goes on meanwhile, and who holds a lock must be told that it is
// lost. So nothing else of a Locker touches the connection.
type outbox struct {
	nc    *nats.Conn
	inbox string
	log   *limited
	begin func(acquired uint64) // before messages are published; the highest claim number that they ask for, or 0
	shut  func(error)           // the connection is closed

	mu    sync.Mutex
	batch batch // what is to be published
	spare batch // the memory of the batch before
	full  bool  // messages were dropped since the last batch

	wake chan struct{} // has room for one
}

// batch is messages in order.
type batch struct {
	messages []outgoing
	bodies   []byte
	acquired uint64
}

type outgoing struct {
	subject  string
	reply    bool
	from, to int // its body among the bodies
}

// mostWaiting is how many bytes wait for a connection that stands still. What does
// not fit is dropped: the protocol repeats what matters.
const mostWaiting = 4 << 20

func newOutbox(nc *nats.Conn, inbox string, log *limited) *outbox {
	return &outbox{nc: nc, inbox: inbox, log: log, wake: make(chan struct{}, 1)}
}

// requests adds what a step of the machine gave, whose resources are encoded
// already. Call it in the order of the steps: were an acquire to overtake its
// claim's release, the nodes would have a vote for nobody until it is swept (C9).
func (o *outbox) requests(cluster string, all []proto.Request) {
	o.mu.Lock()
	for i := range all {
		r := &all[i]
		if o.isFull() {
			break
		}
		b := &o.batch
		from := len(b.bodies)
		b.bodies = proto.AppendRequest(b.bodies, r)
		b.messages = append(b.messages, outgoing{
			subject: requestSubject(cluster, string(r.Verb), r.Client, r.Resource),
			reply:   r.Verb != proto.Release && r.Verb != proto.Yield, from: from, to: len(b.bodies),
		})
		if r.Verb == proto.Acquire {
			b.acquired = max(b.acquired, r.Claim.Seq)
		}
	}
	o.mu.Unlock()
	o.poke()
}

// event adds what nobody answers.
func (o *outbox) event(subject string, e *Event) {
	o.mu.Lock()
	if b := &o.batch; !o.isFull() {
		from := len(b.bodies)
		b.bodies = e.appendJSON(b.bodies)
		b.messages = append(b.messages, outgoing{subject: subject, from: from, to: len(b.bodies)})
	}
	o.mu.Unlock()
	o.poke()
}

func (o *outbox) isFull() bool {
	full := len(o.batch.bodies) > mostWaiting
	o.full = o.full || full
	return full
}

// poke makes it look at the connection, also when there is nothing to publish.
func (o *outbox) poke() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// run publishes until stop is closed, and then what there is.
func (o *outbox) run(stop <-chan struct{}) {
	for {
		select {
		case <-o.wake:
			o.publish()
		case <-stop:
			o.publish()
			return
		}
	}
}

func (o *outbox) publish() {
	o.mu.Lock()
	b, full := o.batch, o.full
	o.batch, o.full = o.spare, false
	o.spare = batch{} // it is in use
	o.mu.Unlock()

	o.begin(b.acquired)
	var failed error
	for i := range b.messages {
		m := &b.messages[i]
		var err error
		if body := b.bodies[m.from:m.to]; m.reply {
			err = o.nc.PublishRequest(m.subject, o.inbox, body)
		} else {
			err = o.nc.Publish(m.subject, body)
		}
		if err != nil && failed == nil {
			failed = err
		}
	}
	switch {
	case errors.Is(failed, nats.ErrConnectionClosed):
		o.shut(failed)
	case failed != nil:
		o.log.line(slog.LevelWarn, "publish failed, it will be repeated", "error", failed)
	case full:
		o.log.line(slog.LevelWarn, "the NATS connection stands still, messages were dropped and will be repeated")
	}

	if cap(b.bodies) > mostWaiting/4 {
		b = batch{} // that was a bad time, do not keep it
	}
	clear(b.messages)
	o.mu.Lock()
	o.spare = batch{messages: b.messages[:0], bodies: b.bodies[:0]}
	o.mu.Unlock()
}
