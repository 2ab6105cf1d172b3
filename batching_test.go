package qlock_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/wire"
)

// batches are the messages on the subject of svc-a's batches.
type batches struct {
	mu   sync.Mutex
	seen []*nats.Msg
}

func (w *world) batches() *batches {
	w.t.Helper()
	b := &batches{}
	_, err := w.connect().Subscribe("lock.default.node.*", func(m *nats.Msg) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.seen = append(b.seen, m)
	})
	if err != nil {
		w.t.Fatal(err)
	}
	settle()
	return b
}

// take returns the verbs of each batch since the last call.
func (b *batches) take(t *testing.T) (verbs [][]string) {
	t.Helper()
	settle()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.seen {
		var list []struct{ Verb string }
		if err := json.Unmarshal(m.Data, &list); err != nil || m.Subject != "lock.default.node.svc-a" {
			t.Errorf("%s: %.100s: %v", m.Subject, m.Data, err)
		}
		if len(m.Data) > wire.MaxBatchBody {
			t.Errorf("a batch of %d bytes", len(m.Data))
		}
		var one []string
		for _, r := range list {
			one = append(one, r.Verb)
		}
		verbs = append(verbs, one)
	}
	b.seen = nil
	return verbs
}

// sizes are how many requests of the verb each has; there must be no others.
func sizes(t *testing.T, verbs [][]string, verb string) (all []int) {
	t.Helper()
	for _, batch := range verbs {
		for _, v := range batch {
			if v != verb {
				t.Errorf("a %s among the %d of a batch, want %s only", v, len(batch), verb)
			}
		}
		all = append(all, len(batch))
	}
	return all
}

// restart has the first node forget everything. It learns of all claims at the next
// refresh, which names none: the client asks for each of those that the node does not
// know, in one step.
func (w *world) restart(claims int) {
	w.t.Helper()
	w.nodes[0].crash()
	w.nodes[0].start()
	time.Sleep(testLease / 2)
	settle()
	if got := w.claims(0); got != claims {
		w.t.Errorf("%d claims are known after a restart, want %d", got, claims)
	}
}

func lockMany(t *testing.T, l *qlock.Locker, n int, name string) (all []*qlock.Lock) {
	t.Helper()
	for i := range n {
		all = append(all, mustLock(t, l, fmt.Sprint(name, i)))
	}
	return all
}

func (w *world) allHeld(all []*qlock.Lock) {
	w.t.Helper()
	for _, k := range all {
		if err := context.Cause(k.Context()); err != nil {
			w.t.Errorf("%s: %v", k.Name(), err)
		}
	}
}

// heldToTheEnd sees all locks through the first node's quarantine, and the Locker's Close.
func (w *world) heldToTheEnd(l *qlock.Locker, all []*qlock.Lock) {
	w.t.Helper()
	time.Sleep(quarantine)
	w.allHeld(all)
	if err := l.Close(); err != nil {
		w.t.Error(err)
	}
	w.noClaims()
}

// What a Locker has to say at one moment goes in one message, once it knows that it
// may: at first it asks, and sends what it has one by one.
func TestRequestsGoTogether(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const many = 100
		w := newWorld(t, 3)
		a := w.client("svc-a")
		all := lockMany(t, a, many, "x")
		b, o := w.batches(), w.observe()
		w.restart(many)
		if got := sizes(t, b.take(t), "info"); len(got) != 1 || got[0] != 1 {
			t.Errorf("at first %d went together, want one question", got)
		}
		o.take()
		w.restart(many)
		if got := sizes(t, b.take(t), "acquire"); len(got) != 2 || got[0] != wire.MaxBatch || got[1] != many-wire.MaxBatch {
			t.Errorf("%d requests went in batches of %d", many, got)
		}
		if got := o.take(); got["acquire"] != many {
			t.Errorf("published %v, want %d acquires", got, many)
		}
		time.Sleep(quarantine)
		w.allHeld(all)

		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if got := sizes(t, b.take(t), "release"); len(got) != 2 || got[0]+got[1] != many {
			t.Errorf("%d releases went in batches of %d", many, got)
		}
		w.noClaims()
		if lines := w.log.find("ignored"); len(lines) != 0 {
			t.Errorf("logged %q", lines)
		}
	})
}

// The first time, it asks whether it may; a single request asks nothing.
func TestBatchesAreAskedFor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		b := w.batches()
		a, nc := w.clientOn("svc-a")
		k := mustLock(t, a, "y")
		time.Sleep(testLease)
		mustUnlock(t, k)
		if got := b.take(t); len(got) != 0 {
			t.Errorf("one lock asked for batches: %v", got)
		}
		all := append(lockMany(t, a, 1, "x"), mustLock(t, a, "y"))
		b.take(t)
		asked := func(when string) {
			t.Helper()
			if got := b.take(t); len(got) != 1 || len(got[0]) != 1 || got[0][0] != "info" {
				t.Errorf("%s: published %v on the subject of batches, want one question", when, got)
			}
			w.restart(2)
			if got := sizes(t, b.take(t), "acquire"); len(got) != 1 || got[0] != 2 {
				t.Errorf("%s: 2 requests went in batches of %d", when, got)
			}
		}
		nc.cut()
		time.Sleep(testLease / 10)
		nc.mend()
		time.Sleep(testLease / 10)
		w.restart(2)
		asked("after a reconnect")
		w.allHeld(all)
		nc.cut()
		time.Sleep(testLease / 10)
		nc.mend()
		time.Sleep(testLease / 10)
		w.restart(2)
		asked("after another")
		w.allHeld(all)
	})
}

// Long names make small batches, and a server with small messages smaller ones, of
// requests and of answers.
func TestBatchesFit(t *testing.T) {
	for _, payload := range []int32{0, 8 << 10, 5 << 10} {
		t.Run(fmt.Sprint(payload), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const many = 80
				w := newWorld(t, 3, setup{server: func(o *server.Options) { o.MaxPayload = payload }})
				a := w.client("svc-a")
				all := lockMany(t, a, many, strings.Repeat("*", 1000)) // which are 3,000 bytes in a subject
				all = append(all, lockMany(t, a, many, "short")...)
				b := w.batches()
				w.restart(2 * many)
				b.take(t)
				w.restart(2 * many)
				got, sum := sizes(t, b.take(t), "acquire"), 0
				for _, n := range got {
					sum += n
				}
				if len(got) < 4 || sum < many {
					t.Errorf("%d requests went in batches of %d", 2*many, got)
				}
				time.Sleep(quarantine)
				w.allHeld(all)
				for _, words := range [][]string{{"not sent"}, {"publish failed"}, {"ignored"}} {
					if lines := w.log.find(words...); len(lines) != 0 {
						t.Errorf("logged %q", lines)
					}
				}
				if err := a.Close(); err != nil {
					t.Error(err)
				}
				w.noClaims()
			})
		})
	}
}

// limited are the permissions that the documentation gives to a client, but for that
// to send batches: no pattern of theirs includes it.
func limited(more ...string) setup {
	return withUsers(&server.Permissions{
		Publish: &server.SubjectPermission{Allow: append([]string{
			"lock.default.node.*.svc-a", "lock.default.node.*.svc-a.>", "lock.default.event.*.svc-a.>",
		}, more...)},
		Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.svc-a.>"}},
	})
}

// Who may not send batches sends requests one by one, and nobody is troubled.
func TestBatchesNotPermitted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const many = 20
		w := newWorld(t, 3, limited())
		var told atomic.Int32
		nc := w.connect(svcA(nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) { told.Add(1) }))...)
		a := w.locker(nc.Conn, "svc-a")
		b, o := w.batches(), w.observe()
		all := lockMany(t, a, many, "x")
		for range 3 {
			o.take()
			w.restart(many)
			if got := o.take(); got["acquire"] != many {
				t.Errorf("published %v, want %d acquires", got, many)
			}
		}
		if got := b.take(t); len(got) != 0 {
			t.Errorf("%v went through", got)
		}
		if _, err := nc.GetClientID(); err != nil || nc.LastError() == nil {
			t.Errorf("the connection remembers %v: this tests nothing", nc.LastError())
		}
		if told.Load() != 0 || len(w.log.find("permission")) != 0 {
			t.Errorf("%d errors were told, logged %q", told.Load(), w.log.find("permission"))
		}
		w.heldToTheEnd(a, all)
	})
}

// What was in a batch that is denied, though others were not, is made good at once.
func TestBatchesNotPermittedAnyMore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const many = 20
		w := newWorld(t, 3, limited("lock.default.node.svc-a"))
		nc := w.connect(svcA()...)
		a := w.locker(nc.Conn, "svc-a")
		b := w.batches()
		all := lockMany(t, a, many, "x")
		w.restart(many)
		b.take(t)
		w.restart(many)
		if got := sizes(t, b.take(t), "acquire"); len(got) != 1 {
			t.Errorf("%d requests went in batches of %d", many, got)
		}
		if err := w.srv.ReloadOptions(limited().options()); err != nil {
			t.Fatal(err)
		}
		settle()
		if !nc.IsConnected() {
			t.Fatal("the connection is gone: this tests nothing")
		}
		w.nodes[0].crash()
		w.nodes[0].start()
		for nc.LastError() == nil {
			time.Sleep(testLease / 1000)
		}
		time.Sleep(testLease / 1000)
		settle()
		if got := w.claims(0); got != many {
			t.Errorf("%d claims are known after a batch was denied, want %d", got, many)
		}
		if got := b.take(t); len(got) != 0 {
			t.Errorf("%v went through", got)
		}
		w.heldToTheEnd(a, all)
	})
}

// Answers that are too long for one message come in several.
func TestAnswersToABatchFit(t *testing.T) {
	for _, payload := range []int32{0, 16 << 10} {
		t.Run(fmt.Sprint(payload), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, 3, setup{server: func(o *server.Options) { o.MaxPayload = payload }})
				nc := w.connect()
				inbox, answers := nc.NewInbox(), make(chan *nats.Msg, 1000)
				if _, err := nc.ChanSubscribe(inbox, answers); err != nil {
					t.Fatal(err)
				}
				body := []byte{'['}
				for i := range wire.MaxBatch {
					if i > 0 {
						body = append(body, ',')
					}
					body = fmt.Appendf(body, `{"verb":"acquire","name":"x","instance":"11111111-2222-4333-8444-555555555555","seq":%d,"beat":1,"mode":"shared","at":1,"ttl_ms":10}`, i+1)
				}
				body = append(body, ']') // all of which are refused, for want of a digest
				if err := nc.PublishRequest("lock.default.node.s", inbox, body); err != nil {
					t.Fatal(err)
				}
				settle()
				messages, got := len(answers), 0
				for range messages {
					m := <-answers
					list, err := wire.DecodeAnswers(nil, m.Data)
					if err != nil || len(m.Data) > wire.MaxBatchBody {
						t.Errorf("%d bytes, %v", len(m.Data), err)
					}
					got += len(list)
				}
				if got != 3*wire.MaxBatch || payload > 0 && messages <= 3 {
					t.Errorf("%d answers of 3 nodes to %d requests, in %d messages: want all, in several", got, wire.MaxBatch, messages)
				}
				if lines := w.log.find("not sent"); len(lines) != 0 {
					t.Errorf("logged %q", lines)
				}
			})
		})
	}
}

func TestWithoutBatches(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("svc-a", qlock.WithoutBatches())
		b := w.batches()
		all := lockMany(t, a, 10, "x")
		w.restart(10)
		w.restart(10)
		if got := b.take(t); len(got) != 0 {
			t.Errorf("published %v", got)
		}
		w.allHeld(all)
	})
}

// Many goroutines that want many locks exclude each other with batches as without.
func TestManyGoroutinesInBatches(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const names, workers, rounds = 5, 40, 25
		w := newWorld(t, 3)
		b := w.batches()
		lockers := []*qlock.Locker{w.client("svc-a"), w.client("svc-a"), w.client("svc-a", qlock.WithoutBatches())}
		var inside [names]atomic.Int32
		var last [names]atomic.Uint64
		var wg sync.WaitGroup
		for i := range workers {
			wg.Go(func() {
				for r := range rounds {
					name := (i*7 + r) % names
					k, err := lockers[i%len(lockers)].Lock(t.Context(), fmt.Sprint("n", name))
					if err != nil {
						t.Error(err)
						return
					}
					if inside[name].Add(1) != 1 || last[name].Swap(k.Token()) >= k.Token() {
						t.Errorf("n%d: two are inside, or token %d is not above the last", name, k.Token())
					}
					inside[name].Add(-1)
					if err := k.Unlock(t.Context()); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if got := b.take(t); len(got) < 2 {
			t.Errorf("there were no batches: this tests nothing")
		}
		w.noClaims()
	})
}

// A node takes a batch of anybody, request by request and in order, and answers it in
// one message.
func TestNodeAnswersBatchInOneMessage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		nc := w.connect()
		inbox, answers := nc.NewInbox(), make(chan *nats.Msg, 100)
		if _, err := nc.ChanSubscribe(inbox, answers); err != nil {
			t.Fatal(err)
		}
		digest := wire.Config{Nodes: []string{"n1", "n2", "n3"}, MaxTTL: maxLease, Skew: w.nodes[0].cfg.MaxSkew}
		if digest.Skew == 0 {
			digest.Skew = 5 * time.Second
		}
		id := uuid.New()
		request := func(seq uint64, verb wire.Verb, name string) string {
			r := wire.Request{
				Verb: verb, Claim: wire.ClaimID{Instance: id, Seq: seq}, SentAt: 1_000_000, At: time.Now().UnixMicro(), TTL: testLease,
				Digest: digest.Digest(), Now: time.Now().UnixMicro(), Node: "",
			}
			return string(wire.AppendToBatch(nil, verb, name, wire.AppendRequest(nil, &r)))
		}
		batch := "[" + strings.Join([]string{
			request(1, wire.Acquire, "x"), request(2, wire.Acquire, "y"), `{"verb":"steal","name":"x"}`,
			request(1, wire.Release, "x"), request(3, wire.Acquire, "x"), request(4, wire.Acquire, "y"),
		}, ",") + "]"
		if err := nc.PublishRequest("lock.default.node.s", inbox, []byte(batch)); err != nil {
			t.Fatal(err)
		}
		settle()
		count := len(answers)
		for range count {
			m := <-answers
			list, err := wire.DecodeAnswers(nil, m.Data)
			var got []string
			for _, a := range list {
				got = append(got, fmt.Sprintf("%d %s", a.Claim.Seq, a.Kind))
			}
			if want := []string{"1 granted", "2 granted", "3 granted", "4 queued"}; err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("a node answers %v, %v, want %v", got, err, want)
			}
		}
		if count != 3 {
			t.Errorf("%d messages of 3 nodes", count)
		}
		for i := range w.nodes {
			if s := w.nodes[i].Stats(); s.Claims != 3 || s.Malformed != 1 {
				t.Errorf("%+v", s)
			}
		}

		// Under another's name it can release nothing of this one's.
		others := "[" + request(2, wire.Release, "y") + "," + request(3, wire.Release, "x") + "]"
		if err := nc.Publish("lock.default.node.b", []byte(others)); err != nil {
			t.Fatal(err)
		}
		settle()
		if got := w.claims(0); got != 3 {
			t.Errorf("%d claims are left, want 3", got)
		}
		time.Sleep(testLease + time.Second)
		w.noClaims()
	})
}
