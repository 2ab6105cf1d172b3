package qlock

import (
	"errors"
	"log/slog"
	"sync"
	"time"

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

	late  *time.Timer // sees to events that nothing else took along
	timed bool        // it runs
}

// batch is messages in order. Their subjects become one string when they are
// published.
type batch struct {
	messages []outgoing
	subjects []byte
	bodies   []byte
	acquired uint64
}

type outgoing struct {
	subject, body int // their ends; they begin where those of the message before end
	reply         bool
}

// eventDelay is how long events wait for company. Most locks are given back before
// that, and an event that goes with the release costs no flush and no switch of its
// own.
const eventDelay = 2 * time.Millisecond

// mostWaiting is how many bytes wait for a connection that stands still. What does
// not fit is dropped: the protocol repeats what matters.
const mostWaiting = 4 << 20

func newOutbox(nc *nats.Conn, inbox string, log *limited) *outbox {
	o := &outbox{nc: nc, inbox: inbox, log: log, wake: make(chan struct{}, 1)}
	o.late = time.AfterFunc(idle, o.pokeLate)
	return o
}

func (b *batch) end(reply bool) {
	b.messages = append(b.messages, outgoing{len(b.subjects), len(b.bodies), reply})
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
		b.subjects = appendRequestSubject(b.subjects, cluster, string(r.Verb), r.Client, r.Resource)
		b.bodies = proto.AppendRequest(b.bodies, r)
		b.end(r.Verb != proto.Release && r.Verb != proto.Yield)
		if r.Verb == proto.Acquire {
			b.acquired = max(b.acquired, r.Claim.Seq)
		}
	}
	o.mu.Unlock()
	o.poke()
}

// event adds what nobody answers. It goes with the next request, or a little later.
func (o *outbox) event(cluster, kind, client, encodedResource string, e *Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.isFull() {
		return
	}
	b := &o.batch
	b.subjects = appendEventSubject(b.subjects, cluster, kind, client, encodedResource)
	b.bodies = e.appendJSON(b.bodies)
	b.end(false)
	if !o.timed {
		o.timed = true
		o.late.Reset(eventDelay)
	}
}

func (o *outbox) pokeLate() {
	o.mu.Lock()
	waiting := len(o.batch.messages) > 0
	o.timed = false
	o.mu.Unlock()
	if waiting {
		o.poke()
	}
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
	defer o.late.Stop()
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
	subjects, last := string(b.subjects), outgoing{}
	for _, m := range b.messages {
		var err error
		subject, body := subjects[last.subject:m.subject], b.bodies[last.body:m.body]
		if last = m; m.reply {
			err = o.nc.PublishRequest(subject, o.inbox, body)
		} else {
			err = o.nc.Publish(subject, body)
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
	o.mu.Lock()
	o.spare = batch{messages: b.messages[:0], subjects: b.subjects[:0], bodies: b.bodies[:0]}
	o.mu.Unlock()
}
