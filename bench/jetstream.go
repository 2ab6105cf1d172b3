package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// jetStreamRival is a mutex on a JetStream stream in memory, as good as we can make one.
// Each lock has a subject whose last message says which client holds it. A client locks by
// publishing on condition that the last message is the one that freed the lock (or that
// there is none). Its message has a TTL in case the client dies. A client unlocks by
// publishing on condition that the last message is still its own. The stream republishes
// each message, and that wakes waiters, so no client polls. The sequence of the message is
// the fencing token.
//
// A mutex on a key-value bucket does the same, since a bucket is such a stream. Freeing a
// key by a message costs at most half as much as deleting it, because a deletion goes
// through JetStream's API.
//
// Goroutines of one client take turns, so that a release wakes one of each client and not
// all.
func jetStreamRival(replicas int, transport string) *rival {
	name := fmt.Sprintf("jetstream R%d", replicas)
	if replicas == 1 && transport == overTCP {
		name += " TCP"
	}
	return &rival{
		name: name, transport: transport, floor: floorName(replicas, transport),
		start: func(ctx context.Context, _ setup) (service, error) {
			f, err := startFleet(ctx, transport, serversFor(replicas, transport), true)
			if err != nil {
				return nil, err
			}
			js := &jetStream{fleet: f}
			if err := js.start(ctx, replicas); err != nil {
				return nil, errors.Join(err, js.close())
			}
			return js, nil
		},
	}
}

const (
	jsStream = "LOCKS"
	jsLocks  = "js.lock."  // followed by the key: the holder
	jsEvents = "js.event." // followed by the key: the same, for waiters
	jsFree   = "Free"      // header of a message that frees the lock

	// A message that frees a lock is deleted after this time, when it is of no more use to any
	// client.
	jsForget = time.Minute

	// After a wait, a client keeps its subscription to the key for this time, since another
	// wait for the key is likely soon. Then it unsubscribes, because otherwise each message of
	// the key would be sent to all clients that ever waited for it.
	jsLinger = 100 * time.Millisecond

	// A waiter asks for the state after these times, in case a message to it was lost. It asks
	// soon for the first time, because the replica that said that the key is taken may have
	// lagged behind.
	jsAskFirst, jsAskAgain = 20 * time.Millisecond, time.Second
)

type jetStream struct{ *fleet }

func (j *jetStream) start(ctx context.Context, replicas int) error {
	nc, err := j.local(0)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	cfg := jetstream.StreamConfig{
		Name: jsStream, Subjects: []string{jsLocks + ">"}, Storage: jetstream.MemoryStorage, Replicas: replicas,
		MaxMsgsPerSubject: 1, AllowMsgTTL: true,
		AllowDirect: true, // halves the cost of asking for a key's last message
		// A lock that expires leaves a message too, so that waiters are woken.
		SubjectDeleteMarkerTTL: jsForget,
		RePublish:              &jetstream.RePublish{Source: jsLocks + ">", Destination: jsEvents + ">"},
	}
	// The servers elect a leader first.
	return poll(ctx, "the stream was not made", func() (bool, error) {
		again, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err := js.CreateOrUpdateStream(again, cfg)
		return err == nil, err
	})
}

func (j *jetStream) connect(ctx context.Context) (client, error) {
	nc, err := j.fleet.connect()
	if err != nil {
		return nil, err
	}
	c := &jsClient{nc: nc, topics: map[string]*jsTopic{}, guesses: map[string]jsGuess{}}
	if c.js, err = jetstream.New(nc); err == nil {
		c.stream, err = c.js.Stream(ctx, jsStream)
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	return c, nil
}

type jsClient struct {
	nc     *nats.Conn
	js     jetstream.JetStream
	stream jetstream.Stream
	turn   turns

	mu      sync.Mutex // guards what follows
	topics  map[string]*jsTopic
	guesses map[string]jsGuess
}

// jsGuess is what a client knows about a key without asking.
type jsGuess struct {
	seq     uint64 // the message by which this client freed the key; 0 if it never did
	foreign bool   // other clients lock it too: the last guess was wrong
}

// jsTopic is the subscription to a key, for one goroutine of its client at a time.
type jsTopic struct {
	sub   *nats.Subscription
	free  chan uint64 // sequence of the newest message that freed the key
	used  bool        // a goroutine waits, or may wait soon
	until *time.Timer // ends the subscription while it is not used
}

// hear records the newest message. If the key is taken, another client was faster, so a
// waiter that has not tried yet need not try.
func (t *jsTopic) hear(m *nats.Msg) {
	select {
	case <-t.free: // it is out of date
	default:
	}
	if !frees(m.Header) {
		return
	}
	if seq, err := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64); err == nil {
		t.free <- seq // there is room: nothing else writes
	}
}

func (c *jsClient) lock(ctx context.Context, key string) (hold, error) {
	if err := c.turn.take(ctx, key); err != nil {
		return nil, err
	}
	h, err := c.acquire(ctx, key)
	if err != nil {
		c.turn.give(key)
		return nil, err
	}
	return h, nil
}

// acquire must be called by the goroutine that has the key's turn in this client.
func (c *jsClient) acquire(ctx context.Context, key string) (hold, error) {
	c.mu.Lock()
	guess := c.guesses[key]
	topic := c.topics[key]
	if topic != nil {
		topic.used = true
		topic.until.Stop()
	}
	c.mu.Unlock()
	defer func() { c.leave(topic) }()
	last, free := guess.seq, true
	if guess.foreign && topic == nil {
		// A wrong guess costs more than a query.
		var err error
		if last, free, err = c.look(ctx, key); err != nil {
			return nil, err
		}
		c.guessed(key, last == guess.seq)
	}
	for first := true; ; first = false {
		if free {
			seq, err := c.publish(ctx, key, last, false)
			if err == nil {
				return &jsHold{c: c, key: key, first: seq, seq: seq}, nil
			}
			if !wrongSequence(err) {
				return nil, err
			}
		}
		if first && topic == nil && !guess.foreign {
			// Most likely the key is free, and the guess was wrong.
			var err error
			if last, free, err = c.look(ctx, key); err != nil {
				return nil, err
			}
			c.guessed(key, last == guess.seq)
			if free {
				continue
			}
		}
		ask := jsAskAgain
		if topic == nil {
			ask = jsAskFirst
			var err error
			if topic, err = c.topic(key); err != nil {
				return nil, err
			}
			// A query shows what happened before the subscription; the subscription shows the rest.
			if last, free, err = c.look(ctx, key); err != nil {
				return nil, err
			}
			if free {
				continue
			}
		}
		var err error
		if last, err = c.wait(ctx, key, topic, ask); err != nil {
			return nil, err
		}
		free = true
	}
}

// guessed records whether a guess was right.
func (c *jsClient) guessed(key string, right bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.guesses[key] = jsGuess{seq: c.guesses[key].seq, foreign: !right}
}

// wait waits until the key is free, and returns the sequence of the message that freed it.
func (c *jsClient) wait(ctx context.Context, key string, topic *jsTopic, ask time.Duration) (uint64, error) {
	timer := time.NewTimer(ask)
	defer timer.Stop()
	for {
		select {
		case seq := <-topic.free:
			return seq, nil
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-timer.C:
			seq, free, err := c.look(ctx, key)
			if free || err != nil {
				return seq, err
			}
			timer.Reset(jsAskAgain)
		}
	}
}

// look returns the sequence of the key's last message, and whether the key is free after
// it.
func (c *jsClient) look(ctx context.Context, key string) (seq uint64, free bool, err error) {
	m, err := c.stream.GetLastMsgForSubject(ctx, jsLocks+key)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return 0, true, nil
	}
	if err != nil {
		return 0, false, err
	}
	return m.Sequence, frees(m.Header), nil
}

func frees(h nats.Header) bool { return h.Get(jsFree) != "" || h.Get("Nats-Marker-Reason") != "" }

func (c *jsClient) topic(key string) (*jsTopic, error) {
	t := &jsTopic{free: make(chan uint64, 1), used: true}
	var err error
	t.sub, err = c.nc.Subscribe(jsEvents+key, t.hear)
	if err != nil {
		return nil, err
	}
	t.until = time.AfterFunc(jsLinger, func() { c.end(key, t) })
	t.until.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.topics[key] = t
	return t, nil
}

// leave ends a subscription after a while, unless another wait for the key begins before.
func (c *jsClient) leave(t *jsTopic) {
	if t == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	t.used = false
	t.until.Reset(jsLinger)
}

func (c *jsClient) end(key string, t *jsTopic) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.used || c.topics[key] != t {
		return
	}
	delete(c.topics, key)
	_ = t.sub.Unsubscribe() // on a closed connection there is nothing to end
}

func (c *jsClient) publish(ctx context.Context, key string, last uint64, free bool) (uint64, error) {
	m := &nats.Msg{Subject: jsLocks + key, Header: nats.Header{}}
	ttl := lease
	if free {
		m.Header.Set(jsFree, "1")
		ttl = jsForget
	}
	ack, err := c.js.PublishMsg(ctx, m, jetstream.WithExpectLastSequencePerSubject(last), jetstream.WithMsgTTL(ttl))
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// publishHeld does what publish does, for the holder of the key. The leader of several
// replicas acknowledges a message before it takes the subject off its list of subjects with
// a message in progress, and it rejects the next message until then. publishHeld repeats
// the message, which is safe because its condition is the same.
func (c *jsClient) publishHeld(ctx context.Context, key string, last uint64, free bool) (uint64, error) {
	for {
		seq, err := c.publish(ctx, key, last, free)
		if !isAPIError(err, jsUnderWay) {
			return seq, err
		}
		if err := pause(ctx, 100*time.Microsecond); err != nil {
			return 0, err
		}
	}
}

const (
	jsWrongSequence = 10071
	jsUnderWay      = 10164 // another message for the subject is on its way to the replicas
)

// wrongSequence reports whether another client was first.
func wrongSequence(err error) bool {
	return isAPIError(err, jsWrongSequence) || isAPIError(err, jsUnderWay)
}

func isAPIError(err error, code jetstream.ErrorCode) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == code
}

func (c *jsClient) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.topics {
		t.until.Stop()
	}
	c.nc.Close()
	return nil
}

type jsHold struct {
	c     *jsClient
	key   string
	first uint64 // the message that acquired the lock: the token
	seq   uint64 // the last message that extended it
}

func (h *jsHold) token() uint64 { return h.first }

func (h *jsHold) extend(ctx context.Context) error {
	seq, err := h.c.publishHeld(ctx, h.key, h.seq, false)
	if err == nil {
		h.seq = seq
	}
	return err
}

func (h *jsHold) unlock(ctx context.Context) error {
	seq, err := h.c.publishHeld(ctx, h.key, h.seq, true)
	if err == nil {
		h.c.mu.Lock()
		h.c.guesses[h.key] = jsGuess{seq: seq, foreign: h.c.guesses[h.key].foreign}
		h.c.mu.Unlock()
	}
	h.c.turn.give(h.key)
	return err
}
