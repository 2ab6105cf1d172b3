package security

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

var hostileRounds = flag.Int("hostile.rounds", 1, "how often a hostile client repeats each of its attacks")

const (
	// hostileClaims is MaxClaims and MaxQueue of the nodes in these tests.
	hostileClaims = 2000

	// victims is how many clients go on locking while one is hostile.
	victims = 4

	// turns is how often each of them must have had the lock, at least.
	turns = 20

	// overtaken is how many turns others may have before one that waits, if they asked
	// when it had been told that a quorum of nodes has it in their queues. It is not one
	// for sure: a node may have voted for a younger request a moment before. How long a
	// request is on its way before it has a place depends on the machine, so that is not
	// counted.
	overtaken = victims
)

// attack sends a bounded number of messages.
type attack struct {
	name     string
	resource string // that the victims want
	run      func(h *hostile)
}

// hostile is a client that may publish under its own name, svc-a, and under orders
// only, and does so by hand.
type hostile struct {
	*raw
	inbox    string
	digest   string
	now      func() int64
	answered atomic.Int64
}

func (h *hostile) publish(subject, reply string, body string) {
	h.t.Helper()
	if err := h.nc.PublishMsg(&nats.Msg{Subject: "lock.prod.node." + subject, Reply: reply, Data: []byte(body)}); err != nil && !errors.Is(err, nats.ErrMaxPayload) {
		h.t.Error(err)
	}
}

func (h *hostile) flush() {
	h.t.Helper()
	must(h.t, h.nc.FlushWithContext(deadline(h.t)))
}

// acquire is the body of a request for a lock; more is put at its end.
func (h *hostile) acquire(instance uuid.UUID, seq int, beat any, at int64, more string) string {
	return fmt.Sprintf(`{"instance":"%s","seq":%d,"beat":%d,"mode":"exclusive","at":%d,"ttl_ms":500,"digest":"%s"%s}`,
		instance, seq, beat, at, h.digest, more)
}

func (h *hostile) release(instance uuid.UUID, seq int, now int64) string {
	return fmt.Sprintf(`{"instance":"%s","seq":%d,"now":%d}`, instance, seq, now)
}

var attacks = []attack{
	{"flood of locks", "billing.1", func(h *hostile) {
		id := uuid.New()
		for i := 1; i <= 8_000; i++ {
			h.publish(fmt.Sprintf("acquire.svc-a.orders.%d", i), h.inbox, h.acquire(id, i, i, h.now(), ""))
			h.publish(fmt.Sprintf("release.svc-a.orders.%d", i), "", h.release(id, i, h.now()))
		}
	}},
	{"flood of questions and of rubbish", "billing.1", func(h *hostile) {
		for i := range 3_000 {
			h.publish("info.svc-a", h.inbox, fmt.Sprintf(`{"nonce":"%d","node":"n1","incarnation":"%s","started":1,"voted":true}`, i, uuid.New()))
			h.publish("info.svc-a", h.inbox, `{"nonce":"x"}`)
			h.publish("refresh.svc-a", h.inbox, "\x00\xff{[")
			h.publish("acquire.svc-a.orders.1", h.inbox, strings.Repeat("[", 500))
		}
	}},
	{"giant names, lists and bodies", "billing.1", func(h *hostile) {
		id := uuid.New()
		var live strings.Builder
		for i := range 8192 {
			if i > 0 {
				live.WriteByte(',')
			}
			fmt.Fprintf(&live, "[%d,%d]", 2*i+1, 2*i+1)
		}
		refresh := func(beat int, list string) string {
			return fmt.Sprintf(`{"instance":"%s","beat":%d,"lo":1,"hi":%d,"live":[%s]}`, id, beat, int64(1)<<53-1, list)
		}
		for i := 1; i <= 500; i++ {
			h.publish(fmt.Sprintf("acquire.svc-a.orders.x%d", i), h.inbox, h.acquire(id, i, i, h.now(), ""))
		}
		for i := 1; i <= 6; i++ {
			h.publish("refresh.svc-a", h.inbox, refresh(1000+i, live.String()))
			h.publish("refresh.svc-a", h.inbox, refresh(2000+i, fmt.Sprintf("[1,%d]", int64(1)<<53-1)))
			h.publish("refresh.svc-a", h.inbox, refresh(3000+i, live.String()+",[1,1]"))
			h.publish("refresh.svc-a", h.inbox, refresh(4000+i, live.String()+","+strings.Replace(live.String(), "[", "[9", -1)))
			h.publish("info.svc-a", h.inbox, `{"nonce":"`+strings.Repeat("x", 900_000)+`"}`)
			h.publish("acquire.svc-a.orders.1", h.inbox, strings.Repeat(" ", 1<<20-4096)+"{}")
		}
		for i := 1; i <= 2_000; i++ {
			name := "orders." + strings.Repeat("x", 1010) + fmt.Sprint(i) // some are too long
			h.publish("acquire.svc-a."+name, h.inbox, h.acquire(id, 1000+i, 5000+i, h.now(), ""))
		}
		h.publish("acquire.svc-a.orders."+strings.Repeat("%20", 1000), h.inbox, h.acquire(id, 4000, 9000, h.now(), ""))
		h.publish("acquire.svc-a.orders"+strings.Repeat(".%", 1500), h.inbox, h.acquire(id, 4001, 9001, h.now(), ""))
	}},
	{"ages", "orders.1", func(h *hostile) {
		for i := 1; i <= 200; i++ {
			id := uuid.New()
			ages := []int64{0, 1, h.now() - 3_600_000_000, h.now() + 4_900_000, h.now() + 3_600_000_000, 1<<53 - 1, 1 << 53, -1}
			for seq, at := range ages {
				h.publish("acquire.svc-a.orders.1", h.inbox, h.acquire(id, seq+1, 1, at, ""))
			}
			for seq := range ages {
				h.publish("release.svc-a.orders.1", "", h.release(id, seq+1, []int64{0, 1, h.now(), 1<<53 - 1, h.now() + 4_900_000}[i%5]))
			}
		}
	}},
	{"numbers at the end of their range", "orders.1", func(h *hostile) {
		for i := 1; i <= 200; i++ {
			id := uuid.New()
			wants := []string{"9007199254740991", "9007199254740992", "18446744073709551615", "-1", "1e300", fmt.Sprint(h.now() + 29_000_000), fmt.Sprint(h.now() + 31_000_000)}
			for seq, want := range wants {
				h.publish("acquire.svc-a.orders.1", h.inbox, h.acquire(id, seq+1, 1, h.now(), `,"want":`+want))
				h.publish("acquire.svc-a.orders.1", h.inbox, h.acquire(id, seq+1, int64(1<<53-1), h.now(), `,"want":`+want))
				h.publish("acquire.svc-a.orders.2", h.inbox, h.acquire(id, seq+100, 1, h.now(), `,"want":`+want+`,"node":"n1"`))
			}
			for seq := range wants {
				h.publish("release.svc-a.orders.1", "", h.release(id, seq+1, h.now()))
				h.publish("release.svc-a.orders.2", "", h.release(id, seq+100, h.now()))
			}
		}
	}},
	{"held, it says", "orders.1", func(h *hostile) {
		for i := 1; i <= 500; i++ {
			id := uuid.New()
			fence := []int64{1, h.now(), h.now() + 20_000_000, h.now() + 29_900_000, 1<<53 - 1}[i%5]
			h.publish("acquire.svc-a.orders.1", h.inbox, h.acquire(id, 1, 1, 1, fmt.Sprintf(`,"held":true,"want":%d`, fence)))
			h.publish("acquire.svc-a.orders.1", h.inbox, h.acquire(id, 1, 2, 1, fmt.Sprintf(`,"held":true,"want":%d`, fence)))
			h.publish("refresh.svc-a", h.inbox, fmt.Sprintf(`{"instance":"%s","beat":3,"lo":1,"hi":5,"live":[[1,5]],"held":true,"want":%d}`, id, fence))
			h.publish("release.svc-a.orders.1", "", h.release(id, 1, h.now()))
		}
	}},
	{"replies elsewhere", "billing.1", func(h *hostile) {
		id, seq := uuid.New(), 0
		for range 300 {
			for _, reply := range []string{
				"lock.prod.node.release.svc-b.billing.1", "lock.prod.node.refresh.svc-b", "lock.prod.event.lost.svc-b.billing.1",
				"$SRV.PING", "$JS.API.STREAM.CREATE.x", "$SYS.REQ.SERVER.PING", "_R_.x.y", "_INBOX.>", "_INBOX.*.*", "_INBOX.svc-b.>", "_INBOX.n1.x",
				"other.subject", ">", "*", strings.Repeat("x", 2000),
			} {
				seq++
				h.publish(fmt.Sprintf("acquire.svc-a.orders.r%d", seq%300), reply, h.acquire(id, seq, seq, h.now(), ""))
				h.publish("info.svc-a", reply, `{"nonce":"x"}`)
			}
		}
		h.publish("refresh.svc-a", "", fmt.Sprintf(`{"instance":"%s","beat":1000000,"lo":1,"hi":%d,"live":[]}`, id, seq))
	}},
	{"wildcards in names", "orders.1", func(h *hostile) {
		id := uuid.New()
		for i := 1; i <= 500; i++ {
			for j, name := range []string{"orders.*", "orders.>", "orders.*.1", "orders.%2A", "orders.%3E", "orders.%2a", "orders.1%", "orders.%31"} {
				for _, verb := range []string{"acquire", "release", "yield"} {
					h.publish(verb+".svc-a."+name, h.inbox, h.acquire(id, 10*i+j, i, h.now(), `,"now":1,"node":"n1"`))
				}
			}
		}
	}},
	{"many claims of many instances", "orders.1", func(h *hostile) {
		for i := 1; i <= 3*hostileClaims; i++ {
			h.publish(fmt.Sprintf("acquire.svc-a.orders.%d.%d", i, i), h.inbox, h.acquire(uuid.New(), i, 1, h.now(), ""))
		}
	}},
	{"many readers and a writer before them", "orders.1", func(h *hostile) {
		readers := uuid.New()
		for i := 1; i <= 300; i++ {
			h.publish("acquire.svc-a.orders.crowd", h.inbox, strings.Replace(h.acquire(readers, i, 1, h.now(), ""), "exclusive", "shared", 1))
		}
		for i := 1; i <= 20; i++ {
			h.publish("acquire.svc-a.orders.crowd", h.inbox, h.acquire(uuid.New(), 1, 1, int64(i), ""))
		}
		h.publish("refresh.svc-a", h.inbox, fmt.Sprintf(`{"instance":"%s","beat":9,"lo":1,"hi":300,"live":[]}`, readers))
	}},
}

// A client that may lock under its own name does what it can to harm others. Their
// locks stay exclusive and are not lost, their tokens rise and stay near the clock,
// they wait their turn and no longer, and the nodes' tables stay within bounds.
func TestHostileClient(t *testing.T) {
	for _, a := range attacks {
		t.Run(strings.ReplaceAll(a.name, " ", "-"), func(t *testing.T) {
			w := static(t, func(c *qlock.NodeConfig) { c.MaxClaims, c.MaxQueue = hostileClaims, hostileClaims })
			before := heap()
			h := newHostile(t, w)
			strays := w.strays()

			g := newGame(t, w, a.resource)
			for range *hostileRounds {
				a.run(h)
			}
			h.flush()
			g.end()
			// A node that got no time from a busy machine listens for a second before it votes again.
			await(t, "all nodes vote", func() bool {
				return !slices.ContainsFunc(w.stats(), func(s qlock.NodeStats) bool { return s.State != "voting" })
			})
			for i, s := range w.stats() {
				if s.Claims > hostileClaims+victims || s.Resources > hostileClaims+1 {
					t.Errorf("%s has %d claims on %d resources, a name may have %d", nodeNames[i], s.Claims, s.Resources, hostileClaims)
				}
			}
			// All three nodes, the server, and both clients of the connection are in this
			// process; what they keep beside claims is buffers.
			if grown := int64(heap()) - int64(before); grown > 3*hostileClaims*perClaim+32<<20 {
				t.Errorf("the memory in use grew by %d bytes", grown)
			}
			await(t, "the nodes forget", func() bool { return w.claims() == "[0 0 0]" })
			for _, s := range strays() {
				t.Errorf("a node published to %s", s)
			}
			t.Logf("%d messages made the nodes handle %d requests, %d of them rubbish, and send %d answers; others took %d turns, overtaken by %d at most",
				h.nc.Stats().OutMsgs, w.stats()[0].Requests, w.stats()[0].Malformed, h.answered.Load(), g.count, g.worst)
		})
	}
}

func newHostile(t *testing.T, w *world) *hostile {
	t.Helper()
	h := &hostile{raw: w.raw("svc-a"), now: func() int64 { return time.Now().UnixMicro() }}
	h.inbox = h.nc.NewInbox()
	b := w.locker("svc-b")
	c := w.overheard("lock.prod.node.acquire.svc-b.>", func() { mustUnlock(t, mustLock(t, b, "billing.1")) })
	h.digest = c.Digest
	must(t, b.Close())
	if !h.listen(h.inbox, "", func(*nats.Msg) { h.answered.Add(1) }) {
		t.Fatal("svc-a may not hear its answers")
	}
	return h
}

// strays collects requests and events that no honest user published since.
func (w *world) strays() func() []string {
	w.t.Helper()
	var mu sync.Mutex
	var found []string
	r := w.raw("audit")
	r.listen("lock.prod.node.>", "", func(m *nats.Msg) {
		if strings.Contains(m.Subject, ".svc-b") && !strings.HasPrefix(m.Reply, "_INBOX.svc-b.") && m.Reply != "" {
			mu.Lock()
			found = append(found, m.Subject+" with reply "+m.Reply)
			mu.Unlock()
		}
	})
	r.listen("lock.prod.event.lost.>", "", func(m *nats.Msg) {
		mu.Lock()
		found = append(found, m.Subject)
		mu.Unlock()
	})
	return func() []string {
		w.t.Helper()
		must(w.t, r.nc.FlushWithContext(deadline(w.t)))
		mu.Lock()
		defer mu.Unlock()
		return found
	}
}

// game is several clients that take turns with one lock.
type game struct {
	t      *testing.T
	stop   context.CancelFunc
	wg     sync.WaitGroup
	holder atomic.Int32

	mu     sync.Mutex // guards what follows
	token  uint64
	count  int
	worst  int
	served []time.Time // when each turn was asked for, in the order of turns
}

func newGame(t *testing.T, w *world, resource string) *game {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	g := &game{t: t, stop: cancel}
	for range victims {
		l := w.locker("svc-b")
		g.wg.Go(func() {
			for n := 0; n < turns || ctx.Err() == nil; n++ {
				if !g.turn(l, resource) {
					return
				}
			}
		})
	}
	return g
}

func (g *game) turn(l *qlock.Locker, resource string) bool {
	asked := time.Now()
	g.mu.Lock()
	since := len(g.served)
	g.mu.Unlock()
	var placed time.Time // when it was known to have a place; zero: it was served before
	k, err := l.Lock(deadline(g.t), resource, qlock.WithWaitFunc(func(w qlock.Waiting) {
		queued := 0
		for _, n := range w.Nodes {
			if n.Answer == qlock.AnswerQueued {
				queued++
			}
		}
		if placed.IsZero() && queued >= w.Need {
			placed = time.Now()
		}
	}))
	if err != nil {
		g.t.Errorf("a victim is not served: %v", err)
		return false
	}
	if n := g.holder.Add(1); n != 1 {
		g.t.Errorf("%d hold the lock", n)
	}
	g.mu.Lock()
	if k.Token() <= g.token || k.Token() >= 1<<53 || k.Token() > uint64(time.Now().Add(qlock.DefaultMaxLease).UnixMicro())+1e6 {
		g.t.Errorf("token %d after %d", k.Token(), g.token)
	}
	g.token = k.Token()
	late := 0
	for _, other := range g.served[since:] {
		if !placed.IsZero() && other.After(placed) {
			late++
		}
	}
	if g.worst = max(g.worst, late); late > overtaken {
		g.t.Errorf("overtaken by %d that asked later", late)
	}
	g.served = append(g.served, asked)
	g.count++
	g.mu.Unlock()
	if err := context.Cause(k.Context()); err != nil {
		g.t.Errorf("a victim lost its lock: %v", err)
	}
	g.holder.Add(-1)
	if err := k.Unlock(g.t.Context()); err != nil {
		g.t.Errorf("a victim lost its lock: %v", err)
	}
	return true
}

// end lets everybody finish the turns that are due.
func (g *game) end() {
	g.stop()
	g.wg.Wait()
}

// A client that overhears others' requests, as an auditor may, knows their claims'
// ids, beats and inboxes. A node answers where a request says; so such a client can
// have its own votes sent to another, with the other's id. They must not count there.
func TestVotesOfAnotherNameDoNotCount(t *testing.T) {
	w := static(t)
	a := w.locker("svc-a")
	held := mustLock(t, a, "orders.1")
	b := w.locker("svc-b")
	granted := make(chan *qlock.Lock, 1)
	ctx, cancel := context.WithCancel(t.Context())
	c := w.overheard("lock.prod.node.acquire.svc-b.>", func() {
		go func() {
			k, err := b.Lock(ctx, "orders.1")
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			granted <- k
		}()
	})
	await(t, "svc-b waits", func() bool { return w.claims() == "[2 2 2]" })

	r := w.raw("svc-a")
	for _, at := range []int64{c.At, c.At + 1} {
		if !r.send("lock.prod.node.acquire.svc-a.orders.other", c.reply, c.acquire(c.Beat).with("at", at)) {
			t.Fatal("svc-a may not acquire")
		}
	}
	select {
	case k := <-granted:
		granted <- k
		if k != nil {
			t.Errorf("svc-b holds orders.1 with token %d by votes that were given to svc-a for another name; svc-a holds it with token %d: %v",
				k.Token(), held.Token(), held.Context().Err())
		}
	case <-time.After(quiet):
	}
	cancel()
	if k := <-granted; k != nil {
		mustUnlock(t, k)
	}
	r.send("lock.prod.node.release.svc-a.orders.other", "", body{"instance": c.Instance, "seq": c.Seq, "now": c.At})
	mustUnlock(t, held)
}
