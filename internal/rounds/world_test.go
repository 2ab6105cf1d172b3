package rounds

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/hold"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	baseWall = int64(1_750_000_000_000_000)
	maxTTL   = 30 * time.Second
	skew     = 5 * time.Second
	ttl      = 10 * time.Second

	// The time that a message takes, as in one data centre. Each link keeps its order.
	fastest = 100 * time.Microsecond
	slowest = 300 * time.Microsecond
)

type event struct {
	at  time.Duration
	seq uint64
	run func()
}

type events []event

func (h events) Len() int { return len(h) }
func (h events) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}
func (h events) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *events) Push(x any)   { *h = append(*h, x.(event)) }
func (h *events) Pop() any {
	old := *h
	e := old[len(old)-1]
	*h = old[:len(old)-1]
	return e
}

// world is a cluster and its clients in one goroutine and in virtual time.
type world struct {
	t       testing.TB
	now     time.Duration
	seq     uint64
	events  events
	rng     *rand.Rand
	cluster wire.Config
	nodes   []*machine
	clients map[string]*asker
	links   map[[2]string]time.Duration // when the last message on each arrives
	tokens  map[string]uint64           // highest by name
}

func newWorld(t testing.TB, nodes int) *world {
	w := &world{
		t: t, rng: rand.New(rand.NewPCG(1, 2)), clients: map[string]*asker{},
		links: map[[2]string]time.Duration{}, tokens: map[string]uint64{},
	}
	w.cluster = wire.Config{MaxTTL: maxTTL, Skew: skew}
	for i := range nodes {
		w.cluster.Nodes = append(w.cluster.Nodes, fmt.Sprintf("n%d", i+1))
	}
	for _, name := range w.cluster.Nodes {
		w.nodes = append(w.nodes, &machine{world: w, name: name})
	}
	return w
}

// begun returns a new cluster whose nodes vote.
func begun(t testing.TB, nodes int) *world {
	w := newWorld(t, nodes)
	for _, n := range w.nodes {
		n.start(&voter.Saved{})
	}
	w.run(time.Second)
	w.mustVote()
	return w
}

func (w *world) mustVote() {
	w.t.Helper()
	for _, n := range w.nodes {
		if n.core != nil && n.core.State() != wire.Voting {
			w.t.Fatalf("%s is %v", n.name, n.core.State())
		}
	}
}

func (w *world) after(d time.Duration, run func()) {
	w.seq++
	heap.Push(&w.events, event{w.now + max(d, 0), w.seq, run})
}

// run lets time d pass.
func (w *world) run(d time.Duration) {
	end := w.now + d
	for len(w.events) > 0 && w.events[0].at <= end {
		e := heap.Pop(&w.events).(event)
		w.now = e.at
		e.run()
	}
	w.now = end
}

func (w *world) carry(from, to string, deliver func()) {
	link := [2]string{from, to}
	at := max(w.now+fastest+time.Duration(w.rng.Int64N(int64(slowest-fastest)+1)), w.links[link]+1)
	w.links[link] = at
	w.after(at-w.now, deliver)
}

// machine is a machine that runs a node.
type machine struct {
	world *world
	name  string
	wrong time.Duration // how far its wall clock is ahead
	core  *voter.Node   // nil while it is down
	life  byte
	out   voter.Out
}

func (n *machine) clock() wire.Now {
	return wire.Now{Mono: n.world.now, Wall: baseWall + (n.world.now + n.wrong).Microseconds()}
}

// start starts a node with the mark saved; nil: it forgot.
func (n *machine) start(saved *voter.Saved) {
	n.life++
	n.core = voter.New(voter.Config{
		Name: n.name, Config: n.world.cluster, Incarnation: uuid.UUID{1, n.name[1], n.life}, ProbeWait: 10 * time.Millisecond,
		MaxClaims: 1 << 20, MaxQueue: 1 << 20, MaxRuns: wire.MaxRuns, FloorKey: [16]byte{n.name[1], n.life},
	}, n.clock(), saved, 0)
	n.tick(n.core)
}

// stop returns the mark that the node leaves, or nil.
func (n *machine) stop() *voter.Saved {
	saved, _ := n.core.Save(n.clock())
	n.core = nil
	return saved
}

func (n *machine) tick(core *voter.Node) {
	if n.core != core {
		return // that life is over
	}
	core.Tick(n.clock(), &n.out)
	n.flush()
	n.world.after(min(max(core.Deadline()-n.world.now, time.Microsecond), 100*time.Millisecond), func() { n.tick(core) })
}

func (n *machine) handle(r wire.Request, from string) {
	if n.core != nil {
		n.core.Handle(n.clock(), &r, from, &n.out)
		n.flush()
	}
}

func (n *machine) flush() {
	for _, s := range n.out.Answers {
		if c := n.world.clients[s.To]; c != nil {
			a := s.Answer
			n.world.carry(n.name, c.name, func() { c.handle(&a) })
		}
	}
	probe := n.out.Probe
	n.out.Reset()
	if probe != nil { // it hears itself, and nobody else has its name
		n.core.Handle(n.clock(), probe, n.name, &n.out)
		for _, s := range slices.Clone(n.out.Answers) {
			n.core.HandleAnswer(n.clock(), &s.Answer, &n.out)
		}
		n.out.Reset()
	}
}

// asker is a client and its workers.
type asker struct {
	world *world
	name  string
	ahead time.Duration // how far its wall clock is ahead
	table *hold.Table
	out   hold.Out
	asked map[uint64]int // how often each claim asked that is not held
	timer uint64
}

func (w *world) client(ahead time.Duration) *asker {
	a := &asker{world: w, name: fmt.Sprintf("c%d", len(w.clients)+1), ahead: ahead, asked: map[uint64]int{}}
	core := client.New(client.Config{
		Name: a.name, Instance: uuid.UUID{2, byte(len(w.clients))}, TTL: ttl, MaxRuns: wire.MaxRuns, Cluster: w.cluster,
	}, a.clock())
	a.table = hold.New(core, 0)
	w.clients[a.name] = a
	return a
}

func (a *asker) clock() wire.Now {
	return wire.Now{Mono: a.world.now, Wall: baseWall + (a.world.now + a.ahead).Microseconds()}
}

func (a *asker) handle(answer *wire.Answer) {
	a.table.Handle(a.clock(), answer, &a.out)
	a.flush()
}

func (a *asker) flush() {
	requests, uses := slices.Clone(a.out.Requests), slices.Clone(a.out.Holds)
	a.out = hold.Out{}
	for _, r := range requests {
		if r.Verb == wire.Acquire && !r.Held {
			a.asked[r.Claim.Seq]++
		}
		a.publish(r)
	}
	for _, e := range uses {
		e.Hold.User.(*worker).told(e)
	}
	a.timer++
	timer := a.timer
	if d, ok := a.table.Wait(a.clock()); ok {
		a.world.after(min(d, time.Second)+time.Microsecond, func() {
			if timer == a.timer {
				a.table.Tick(a.clock(), &a.out)
				a.flush()
			}
		})
	}
}

func (a *asker) publish(r wire.Request) {
	for _, n := range a.world.nodes {
		a.world.carry(a.name, n.name, func() { n.handle(r, a.name) })
	}
}

// worker locks and unlocks one name after the other.
type worker struct {
	client *asker
	name   func(i int) string
	think  time.Duration // mean, between two locks
	hold   time.Duration
	begun  time.Duration
	stats  *stats
	i      int
}

// own returns names that nobody else uses.
func own(a *asker, k int) func(i int) string {
	return func(i int) string { return fmt.Sprintf("%s.%d.%d", a.name, k, i) }
}

func (a *asker) work(name func(i int) string, think time.Duration, s *stats) *worker {
	k := &worker{client: a, name: name, think: think, stats: s}
	a.world.after(k.pause(), k.lock)
	return k
}

func (k *worker) pause() time.Duration {
	return time.Duration(k.client.world.rng.Int64N(int64(2*k.think) + 1))
}

func (k *worker) lock() {
	a := k.client
	k.i++
	k.begun = a.world.now
	a.table.Lock(a.clock(), hold.Request{Resource: k.name(k.i), Mode: quorum.Exclusive, User: k}, &a.out)
	a.flush()
}

func (k *worker) told(e hold.Event) {
	a, w := k.client, k.client.world
	switch e.Kind {
	case hold.Held:
		seq := e.Hold.Claim().Seq()
		k.stats.add(a.asked[seq], w.now-k.begun)
		delete(a.asked, seq)
		name, token := k.name(k.i), e.Hold.Token()
		if token <= w.tokens[name] {
			w.t.Errorf("at %v: token %d on %s, after %d", w.now, token, name, w.tokens[name])
		}
		w.tokens[name] = token
		w.after(max(k.hold, 10*time.Microsecond), func() {
			a.table.Unlock(a.clock(), e.Hold, &a.out)
			a.flush()
			w.after(k.pause(), k.lock)
		})
	case hold.Lost, hold.Failed:
		w.t.Errorf("at %v: a lock on %s came to nothing", w.now, k.name(k.i))
	}
}

// stats are totals of locks that were acquired.
type stats struct {
	rounds int
	waits  []time.Duration
}

func (s *stats) add(rounds int, wait time.Duration) {
	s.rounds += rounds
	s.waits = append(s.waits, wait)
}

func (s *stats) mean() float64 { return float64(s.rounds) / float64(max(len(s.waits), 1)) }

func (s *stats) longest() time.Duration {
	if len(s.waits) == 0 {
		return 0
	}
	return slices.Max(s.waits)
}

func (s *stats) String() string {
	return fmt.Sprintf("%d locks, %.3f rounds each, longest wait %v", len(s.waits), s.mean(), s.longest())
}
