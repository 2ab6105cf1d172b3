package qlock

import (
	"errors"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/proto"
	"github.com/qlock/qlock/internal/subject"
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
	shut  func()                // the connection is closed
	most  atomic.Int64          // bytes of a message that the connection takes, 0: not known yet
	other func(most int)        // it takes another number now

	mu    sync.Mutex
	load  load // what is to be published
	spare load // the memory of the load before
	full  bool // messages were dropped since the last load
	crowd bool // several goroutines lock and unlock just now
	held  int  // how often it was told to publish nothing for now

	wake chan struct{} // has room for one

	batching batching
	parcel   parcel
	hasty    time.Time // until then nobody is waited for

	busy atomic.Int64 // until then (ns since 1970) nobody gives way

	late  *time.Timer // sees to events that nothing else took along
	timed bool        // it runs
}

// load is messages in order. Their subjects become one string when they are
// published.
type load struct {
	messages []outgoing
	subjects []byte
	bodies   []byte
	acquired uint64
	loose    int // requests that may go in one message with others
}

type outgoing struct {
	verb          proto.Verb // "": an event
	name          int        // where the resource begins, which is the end of the subject if there is none
	subject, body int        // their ends; they begin where those of the message before end
	reply         bool
}

// loose reports whether it may go in one message with others.
func (m *outgoing) loose() bool { return m.verb.InBatch() && m.name < m.subject }

// eventDelay is how long events wait for company. Most locks are given back before
// that, and an event that goes with the release costs no flush and no switch of its
// own.
const eventDelay = 2 * time.Millisecond

// mostWaiting is how many bytes wait for a connection that stands still. What does
// not fit is dropped: the protocol repeats what matters.
const mostWaiting = 4 << 20

// longTurn is as long as Go lets one goroutine compute where others are ready to run,
// and hasteTime how long nobody is waited for after somebody did.
const (
	longTurn  = 10 * time.Millisecond
	hasteTime = time.Second
)

func newOutbox(nc *nats.Conn, inbox string, opt options, log *limited) *outbox {
	o := &outbox{nc: nc, inbox: inbox, log: log, wake: make(chan struct{}, 1)}
	o.batching.subject = subject.Batch(opt.cluster, opt.name)
	if !opt.batches {
		o.batching.state.Store(batchesUnwanted)
	}
	o.late = time.AfterFunc(idle, o.pokeLate)
	return o
}

func (l *load) end(verb proto.Verb, name int, reply bool) {
	m := outgoing{verb, len(l.subjects) - name, len(l.subjects), len(l.bodies), reply}
	if l.messages = append(l.messages, m); m.loose() {
		l.loose++
	}
}

// requests adds what a step of the machine gave, whose resources are encoded
// already. Call it in the order of the steps: were an acquire to overtake its
// claim's release, the nodes would have a vote for nobody until it is swept (C9).
// crowd says that several goroutines lock and unlock just now.
func (o *outbox) requests(cluster string, all []proto.Request, crowd bool) {
	o.mu.Lock()
	o.crowd = crowd
	for i := range all {
		r := &all[i]
		if o.isFull() {
			break
		}
		l := &o.load
		l.subjects = subject.AppendRequest(l.subjects, cluster, string(r.Verb), r.Client, r.Resource)
		begin := len(l.bodies)
		l.bodies = proto.AppendRequest(l.bodies, r)
		if len(l.bodies)-begin > o.fits() { // a lock matters more than what is said of it
			r.Note = ""
			if r.Verb == proto.Evict {
				r.Query = ""
			}
			l.bodies = proto.AppendRequest(l.bodies[:begin], r)
		}
		l.end(r.Verb, len(r.Resource), r.Verb != proto.Release && r.Verb != proto.Yield)
		if r.Verb == proto.Acquire {
			l.acquired = max(l.acquired, r.Claim.Seq)
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
	l := &o.load
	l.subjects = subject.AppendEvent(l.subjects, cluster, kind, client, encodedResource)
	begin := len(l.bodies)
	if l.bodies = e.appendJSON(l.bodies); len(l.bodies)-begin > o.fits() {
		e.Note = ""
		l.bodies = e.appendJSON(l.bodies[:begin])
	}
	l.end("", 0, false)
	if !o.timed {
		o.timed = true
		o.late.Reset(eventDelay)
	}
}

func (o *outbox) pokeLate() {
	o.mu.Lock()
	waiting := len(o.load.messages) > 0
	o.timed = false
	o.mu.Unlock()
	if waiting {
		o.poke()
	}
}

func (o *outbox) isFull() bool {
	full := len(o.load.bodies) > mostWaiting
	o.full = o.full || full
	return full
}

// hold keeps it from publishing until letGo was called as often. It looks at the
// connection meanwhile, as ever.
func (o *outbox) hold() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.held++
}

func (o *outbox) letGo() {
	o.mu.Lock()
	o.held--
	o.mu.Unlock()
	o.poke()
}

// poke makes it look at the connection, also when there is nothing to publish.
func (o *outbox) poke() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// giveWay lets the outbox publish before its caller goes on, for programs that end, or
// close their connection, right after their last Unlock. It is no promise; and in a
// program that computes all the time it is not tried.
func (o *outbox) giveWay() {
	before := time.Now()
	if before.UnixNano() < o.busy.Load() {
		return
	}
	runtime.Gosched()
	if after := time.Now(); after.Sub(before) > longTurn/10 {
		o.busy.Store(after.Add(hasteTime).UnixNano())
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

// fits is how many bytes of a message the connection takes, as far as known.
func (o *outbox) fits() int {
	if most := o.most.Load(); most > 0 {
		return int(most)
	}
	return proto.MaxBody
}

// measure asks the connection how long messages may be: another server may take less.
func (o *outbox) measure() {
	if most := o.nc.MaxPayload(); most > 0 && most != o.most.Swap(most) {
		o.other(int(most))
	}
}

func (o *outbox) publish() {
	o.measure()
	l, full := o.take()
	o.begin(l.acquired)
	switch err := o.send(l); {
	case errors.Is(err, nats.ErrConnectionClosed), len(l.messages) == 0 && o.nc.IsClosed():
		o.shut()
	case err != nil:
		o.log.line(slog.LevelWarn, "publish failed, it will be repeated", "error", err)
	case full:
		o.log.line(slog.LevelWarn, "the NATS connection is blocked; messages were dropped and will be repeated")
	}

	if cap(l.bodies) > mostWaiting/4 {
		l = load{} // that was a bad time, do not keep it
	}
	o.mu.Lock()
	o.spare = load{messages: l.messages[:0], subjects: l.subjects[:0], bodies: l.bodies[:0]}
	o.mu.Unlock()
}

// send publishes a load, and returns the first error.
func (o *outbox) send(l load) (failed error) {
	say := func(subject string, body []byte, reply bool) {
		var err error
		if reply {
			err = o.nc.PublishRequest(subject, o.inbox, body)
		} else {
			err = o.nc.Publish(subject, body)
		}
		if err != nil && failed == nil {
			failed = err
		}
	}
	p := &o.parcel
	ship := func() {
		if p.count > 0 {
			say(o.batching.subject, append(p.body, ']'), p.reply)
			p.reset()
		}
	}
	if l.loose > 1 && o.batching.may(o.nc, o.inbox) {
		p.most = min(proto.MaxBatchBody, o.fits())
	} else {
		p.most = 0 // nothing fits
	}
	subjects, last := string(l.subjects), outgoing{}
	for _, m := range l.messages {
		subject, name, body := subjects[last.subject:m.subject], subjects[m.name:m.subject], l.bodies[last.body:m.body]
		last = m
		switch {
		case m.verb == "": // an event may overtake requests, but not they it
			say(subject, body, m.reply)
			continue
		case !m.loose():
			ship()
		default:
			if !p.fits(name, body) {
				ship()
			}
			if p.fits(name, body) {
				p.add(m.verb, name, body, m.reply)
				continue
			}
		}
		say(subject, body, m.reply)
	}
	ship()
	return failed
}

// take gives what is to be published. Where several are about it, those that are ready
// to run put in theirs first: what goes in one message costs all of us a fraction. But
// in a program that computes all the time, that is to wait for a turn with those who
// do, and each turn is ten milliseconds: then it does without for a while.
func (o *outbox) take() (l load, full bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.crowd && o.batching.state.Load() == batchesAllowed {
		o.mu.Unlock()
		if before := time.Now(); before.After(o.hasty) {
			runtime.Gosched()
			if after := time.Now(); after.Sub(before) > longTurn {
				o.hasty = after.Add(hasteTime)
			}
		}
		o.mu.Lock()
	}
	if o.held > 0 { //plant:ends-awaited
		return load{}, false
	}
	l, full = o.load, o.full
	o.load, o.full = o.spare, false
	o.spare = load{} // it is in use
	return l, full
}
