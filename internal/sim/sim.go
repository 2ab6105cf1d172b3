// Package sim is a deterministic simulator. It runs the machines of production unchanged
// (packages voter, client, hold and members), in one goroutine and in virtual time. One
// seed decides all faults. After every event it checks what the protocol promises.
//
// The model is the simulators of TigerBeetle and Resonate: one seed, one thread, faults
// always on, checks always on.
package sim

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/hold"
	"github.com/qlock/qlock/internal/members"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

// Options choose a run. The same options always give the same run.
type Options struct {
	Seed  uint64
	Trace io.Writer // nil: no trace
	// With Copy, machines are well, but one snapshot of a client comes to life within a
	// lease.
	Copy bool

	// With Owners, jobs use what a program may ask for with a lock (terms).
	Owners bool
	// With Members, clients learn the list of nodes from the nodes, under faults made for
	// that.
	Members bool
}

// Result counts what happened in a run.
type Result struct {
	Events, Held, Lost, GaveUp, TryFailed     int
	Crashes, Restarts, Pauses, Cuts, Suspends int
	Dropped, Duplicated, Late                 int
	Nodes, Clients, Resources                 int
	// Overtaken is the most often that one waiter was, for each kind of world.
	Overtaken                                                           [worlds]int
	WaitedLongest, TriedLongest                                         time.Duration
	Twins, WrongConfig, ClientCrashes, Refused                          int
	Evicted, EvictedLate, Departed, TriedFree, PassedOn, Wanted, Copies int
	Knew, Kept, Expired, Left, Leaps                                    int
	// Found and Moved count the configurations that clients took at their start and later.
	Found, Moved int
}

// The kinds of worlds differ in what may come between a waiter and its turn.
const (
	sound = iota // every message arrives, within 5 ms
	lossy        // messages may be lost or late, and machines are well
	rough        // everything happens
	worlds
)

// mostOvertaken bounds how often younger claims may be held that conflict with a waiting
// one. These are claims whose requests were under way earlier, and that no vote was
// recalled from in time. Holds to which clients pass their claims on come in addition
// (passOn). In rough worlds there is no bound, because any client may overtake one that
// is cut off from nodes.
var mostOvertaken = [worlds]int64{sound: 15, lossy: 30, rough: 1 << 30}

const (
	ttl      = 10 * time.Second
	maxTTL   = 12 * time.Second
	skew     = 5 * time.Second
	faulty   = 100 * time.Second // duration of faults and work
	calm     = 90 * time.Second  // after it nothing may be left
	baseWall = int64(1_750_000_000_000_000)
)

type event struct {
	at    time.Duration
	seq   uint64
	run   func()
	index int
}

type eventHeap []*event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i, j }
func (h *eventHeap) Push(x any)   { e := x.(*event); e.index = len(*h); *h = append(*h, e) }
func (h *eventHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.index = -1
	return e
}

// hostClock computes the readings of one machine's clocks from true time.
type hostClock struct {
	rate   float64       // of both clocks
	offset time.Duration // of the wall clock
	// ahead is how far the clock is ahead from the machine's start until NTP corrects it.
	ahead   time.Duration
	stopped time.Duration // how much true time the monotonic clock slept through
	asleep  time.Duration // start of the present sleep, or -1
}

func (c *hostClock) read(t time.Duration) wire.Now {
	awake := t - c.stopped
	if c.asleep >= 0 {
		awake = c.asleep - c.stopped
	}
	return wire.Now{
		Mono: time.Duration(float64(awake) * c.rate),
		Wall: baseWall + int64(float64(t)*c.rate/1000) + (c.offset + c.ahead).Microseconds(),
		Boot: time.Hour + time.Duration(float64(t)*c.rate),
	}
}

// wake ends the machine's sleep at true time t: its monotonic clock goes on.
func (c *hostClock) wake(t time.Duration) {
	if c.asleep >= 0 {
		c.stopped += t - c.asleep
		c.asleep = -1
	}
}

type simNode struct {
	sim   *Sim
	stops int // how often it was paused or stopped
	name  string
	cfg   wire.Config
	clock hostClock
	core  *voter.Node // nil while it is down
	dir   *simDir     // nil: it keeps no state
	inbox string
	timer *event
	out   voter.Out
	// twin is empty for the first machine of its name, else a suffix that identifies this
	// one.
	twin    string
	paused  bool
	backlog []func()
	claims  int // limits
	queue   int

	previous time.Duration // longest lease allowed earlier, as the operator states it
}

type simClient struct {
	sim      *Sim
	id       int
	name     string // of the machine
	user     string // of the client
	clock    hostClock
	core     *client.Client
	table    *hold.Table // nil: each of its jobs has a claim of its own
	inbox    string
	timer    *event
	out      hold.Out
	paused   bool
	backlog  []func()
	instance uuid.UUID

	evictions int           // how often somebody evicted one of its claims
	copied    bool          // it had or has a copy
	slack     time.Duration // added to its timers

	// For clients that learn the list of nodes.
	members    *members.Machine
	queryInbox string
	asking     *event
	began      time.Duration
	heard      map[heardOf]time.Duration // when an answer last showed it
	// heardOwn has, for each name, when it last showed the client's configuration, in answer to
	// the query under way or in an answer about a claim.
	heardOwn  map[string]time.Duration
	lastQuery string
	queriedAt time.Duration
}

// job is the work of one goroutine of a client: it requests a lock, waits, holds, and
// releases.
type job struct {
	client *simClient
	// A job has a claim of its own, or a hold on a claim that its client's jobs share.
	claim *client.Claim
	use   *hold.Hold
	made  int64
	mode  quorum.Mode
	res   string
	asked time.Duration
	try   bool
	terms
	free   bool // it is a try, and nobody else has wanted the lock so far
	held   bool
	heldAt time.Duration // since when
	ended  bool
	side   int // cluster to which its client was connected when it got the lock
	timer  *event
	over   int // younger conflicting claims that were held while it waited
}

// Sim is one run.
type Sim struct {
	opt     Options
	rng     *rand.Rand
	now     time.Duration
	seq     uint64
	events  eventHeap
	nodes   []*simNode
	clients []*simClient
	inboxes map[string]func(*wire.Answer)
	cuts    map[[2]string]time.Duration // by sender and receiver: cut until then
	deaf    map[string]bool             // hosts that hear nobody
	mute    map[string]bool             // hosts that nobody hears
	// sides tells, by host or inbox, which of two clusters it is connected to.
	sides  map[string]int
	won    map[*client.Claim]int // by claim: in which of them it became held
	jobs   map[string][]*job     // waiting or holding, by resource
	tokens map[string]*tokens
	res    Result
	err    error

	// The properties of this seed's world.
	loss, dup, late float64
	codec           bool
	batches         bool                     // requests of one moment go in one message
	shared          bool                     // the jobs of a client share claims
	retention       time.Duration            // and the client keeps unused ones for that long
	passOn          passOn                   // and passes them on while others wait
	ended           map[string]time.Duration // by resource: when a job last ended
	cluster         wire.Config
	twins, dirs     int
	names           *names // nil unless nodes replace each other in this world
	members         *membership
	owners          *rand.Rand // nil unless jobs do what Options.Owners says
	words           []*job     // that gave their word
	kept            []*job     // that are unlocked, and whose claims stay
	operator        *rand.Rand // nil unless an operator evicts claims
	rtc             *rand.Rand // nil unless machines start with their clocks ahead
	// floors is the size of each node's table: small, so that names share floors, or the
	// default.
	floors  int
	wrong   string // who has another configuration: "node", "client", or nobody
	uuids   uint64
	working bool
	world   int
	// patience bounds how long anybody waits, and makes all holds short; 0: no bound.
	patience time.Duration
	lenient  time.Duration // until then two may hold: see copyWithinLease
}

type tokens struct{ exclusive, any uint64 }

// Run runs one seed. It returns what happened and the first broken promise, if any.
// Concurrent calls are safe.
func Run(opt Options) (Result, error) {
	s := newSim(opt)
	s.run()
	return s.res, s.err
}

// emptySim returns a world without nodes and clients.
func emptySim(opt Options) *Sim {
	return &Sim{
		opt: opt, rng: rand.New(rand.NewPCG(opt.Seed, 0x716c6f636b)),
		inboxes: map[string]func(*wire.Answer){}, cuts: map[[2]string]time.Duration{}, deaf: map[string]bool{}, mute: map[string]bool{},
		jobs: map[string][]*job{}, tokens: map[string]*tokens{}, working: true, passOn: newPassOn(opt.Seed), ended: map[string]time.Duration{},
	}
}

func newSim(opt Options) *Sim {
	if opt.Members || opt.Owners && opt.Seed%6 == 1 {
		return newMembership(opt)
	}
	if opt.Seed%20 == 14 { // none of these seeds has an operator or other peculiarities
		return newOneLink(opt)
	}
	s := emptySim(opt)
	r := s.rng
	n := 1 + r.IntN(7)
	if r.IntN(3) > 0 {
		n = 2 + r.IntN(4) // the usual sizes
	}
	if opt.Seed%4 == 3 {
		n = s.newNames()
	}
	cfg := wire.Config{MaxTTL: maxTTL, Skew: skew}
	for i := range n {
		cfg.Nodes = append(cfg.Nodes, fmt.Sprintf("n%d", i+1))
	}
	s.cluster = cfg
	s.loss = [...]float64{0, 0.01, 0.05, 0.25}[r.IntN(4)]
	s.dup = [...]float64{0, 0.02, 0.2}[r.IntN(3)]
	s.late = [...]float64{0, 0.001, 0.02}[r.IntN(3)]
	s.codec, s.batches = r.IntN(8) == 0, opt.Seed%3 == 1
	if s.shared = r.IntN(3) > 0; s.shared && r.IntN(2) == 0 {
		s.retention = s.between(0, ttl)
	}
	s.world = [...]int{sound, lossy, rough, rough, rough, rough, rough, rough, rough, rough}[r.IntN(10)]
	if s.names != nil {
		s.names.settle()
	}
	if s.world == sound {
		s.loss, s.late = 0, 0
	}
	for i := range n {
		nd := &simNode{sim: s, name: cfg.Nodes[i], cfg: cfg, clock: s.newClock(2 * time.Second), inbox: "node." + cfg.Nodes[i], claims: 1000, queue: 1000}
		// A bootstrapped cluster starts from clean marks.
		if s.names == nil || s.names.keeps {
			nd.dir = s.newDir()
			nd.dir.save(nd, &voter.Saved{})
		}
		s.nodes = append(s.nodes, nd)
		s.at(s.between(0, 50*time.Millisecond), nd.start)
	}
	clients := 1 + r.IntN(6)
	if r.IntN(10) == 0 {
		clients = 20 + r.IntN(31)
	}
	resources := 1 + r.IntN(3)
	if s.names != nil {
		clients, resources = 2+r.IntN(4), 1+r.IntN(2)
	}
	if r.IntN(6) == 0 && s.world != sound { // limits that are reached
		for _, nd := range s.nodes {
			nd.claims, nd.queue = 1+r.IntN(3), 1+r.IntN(3)
		}
	}
	for i := range clients {
		c := &simClient{sim: s, id: i, name: fmt.Sprintf("c%d", i), clock: s.newClock(time.Second)}
		if c.user = c.name; opt.Seed%7 == 3 { // two programs with the same name
			c.user = fmt.Sprintf("c%d", i/2*2)
		}
		s.clients = append(s.clients, c)
		c.start(cfg)
		loops := 1 + r.IntN(2)
		if s.shared {
			loops = 1 + r.IntN(5)
		}
		for range loops {
			s.at(s.between(0, 3*time.Second), func() { c.want(resources) })
		}
	}
	s.res.Nodes, s.res.Clients, s.res.Resources = n, clients, resources
	s.at(faulty, func() { s.calmDown() })
	s.floors = [...]int{1, 2, 8, 0}[opt.Seed/5%4]
	if opt.Seed%5 == 3 {
		s.rtc = rand.New(rand.NewPCG(opt.Seed, 0x727463))
	}
	// Not with clocks that are wrong by hours: then tokens rest on the honesty of clients.
	if opt.Seed%8 == 5 && s.world != sound && s.rtc == nil {
		s.newRogue(resources)
	}
	// Random numbers of its own leave the other worlds unchanged.
	if opt.Seed%5 == 2 && opt.Seed%16 != 8 {
		s.operator = rand.New(rand.NewPCG(opt.Seed, 0x65766963))
		s.at(5*time.Second, s.evict)
	}
	if opt.Owners {
		s.newOwners()
	}
	switch {
	case opt.Copy:
		s.copyWithinLease(resources)
	case s.names != nil:
		s.at(s.between(0, 5*time.Second), s.names.play)
	case opt.Seed%16 == 8:
		s.newForeign()
	case s.world == rough:
		s.at(s.between(0, 10*time.Second), s.fault)
	}
	if opt.Seed%4 == 1 && !opt.Copy { // with random numbers of its own
		s.copyLater(resources)
	}
	return s
}

func (s *Sim) newClock(spread time.Duration) hostClock {
	return hostClock{
		// Within the one per cent that docs/protocol.md allows.
		rate:   1 + (s.rng.Float64()*2-1)*0.009,
		offset: s.between(-spread, spread),
		asleep: -1,
	}
}

func (s *Sim) between(a, b time.Duration) time.Duration {
	return a + time.Duration(s.rng.Int64N(int64(b-a)+1))
}

func (s *Sim) newUUID() uuid.UUID {
	s.uuids++
	var id uuid.UUID
	binary.BigEndian.PutUint64(id[:], s.rng.Uint64())
	binary.BigEndian.PutUint64(id[8:], s.uuids)
	return id
}

func (s *Sim) at(after time.Duration, run func()) *event {
	s.seq++
	e := &event{at: s.now + max(after, 0), seq: s.seq, run: run}
	heap.Push(&s.events, e)
	return e
}

func (s *Sim) cancel(e *event) {
	if e != nil && e.index >= 0 {
		heap.Remove(&s.events, e.index)
	}
}

func (s *Sim) tracef(format string, args ...any) {
	if s.opt.Trace != nil {
		fmt.Fprintf(s.opt.Trace, "%12.6f  "+format+"\n", append([]any{s.now.Seconds()}, args...)...)
	}
}

func (s *Sim) fail(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf("at %.6f s: "+format, append([]any{s.now.Seconds()}, args...)...)
		s.tracef("VIOLATION %v", s.err)
	}
}

func (s *Sim) run() {
	for len(s.events) > 0 && s.err == nil {
		e := heap.Pop(&s.events).(*event)
		if e.at > faulty+calm {
			break
		}
		s.now = e.at
		e.run()
		s.check()
		if s.res.Events++; s.res.Events > 2_000_000 {
			s.fail("more events than any run needs: probably a storm of messages")
		}
	}
	if s.err == nil {
		s.now = faulty + calm
		s.checkEmpty()
	}
}

// ---- the network

func (s *Sim) isCut(from, to string) bool {
	return s.sides[from] != s.sides[to] || s.deaf[to] || s.mute[from] || s.now < s.cuts[[2]string{from, to}]
}

// carry delivers a message once, twice, late, or not at all.
func (s *Sim) carry(from, to, what string, deliver func()) {
	if s.isCut(from, to) || s.working && s.rng.Float64() < s.loss {
		s.res.Dropped++
		s.tracef("%s -> %s lost: %s", from, to, what)
		return
	}
	copies := 1
	if s.working && s.rng.Float64() < s.dup {
		copies++
		s.res.Duplicated++
	}
	for range copies {
		delay := s.between(100*time.Microsecond, 5*time.Millisecond)
		if s.working && s.rng.Float64() < s.late {
			delay = s.between(0, 2*ttl)
			s.res.Late++
		}
		s.at(delay, deliver)
	}
}

// publish sends requests to all nodes, several of them as a batch.
func (s *Sim) publish(from, reply string, list ...wire.Request) {
	if s.codec {
		s.checkCodec(list)
	}
	for _, nd := range s.nodes {
		what := ""
		if s.opt.Trace != nil {
			for _, r := range list {
				what += fmt.Sprintf("%s %s %s ", r.Verb, r.Resource, wire.AppendRequest(nil, &r))
			}
		}
		s.carry(from, nd.host(), what, func() {
			nd.do(func() {
				s.tracef("%s <- %s: %s", nd.host(), from, what)
				now := nd.clock.read(s.now)
				for _, r := range list {
					nd.core.Handle(now, &r, reply, &nd.out)
				}
				nd.flush()
			})
		})
	}
}

// checkCodec checks that decoding returns what was encoded.
func (s *Sim) checkCodec(list []wire.Request) {
	var batch []byte
	for _, r := range list {
		body := wire.AppendRequest(nil, &r)
		back, err := wire.DecodeRequest(r.Verb, r.Client, r.Resource, body)
		if err != nil || !reflect.DeepEqual(*back, r) {
			s.fail("the codec changes %+v to %+v (%v)", r, back, err)
		}
		name, err := subject.EncodeName(r.Resource)
		if r.Verb == wire.Refresh || r.Verb == wire.Info {
			continue
		}
		if err != nil {
			s.fail("the codec does not encode %q: %v", r.Resource, err)
		}
		batch = wire.AppendToBatch(wire.AppendSeparator(batch), r.Verb, name, body)
	}
	if len(list) < 2 {
		return
	}
	back, err := wire.DecodeBatch(nil, list[0].Client, append(batch, ']'))
	if err != nil || !reflect.DeepEqual(back, list) {
		s.fail("the codec changes the batch %+v to %+v (%v)", list, back, err)
	}
}

func (s *Sim) answer(from *simNode, to string, a wire.Answer) {
	if s.codec {
		body := wire.AppendAnswer(nil, &a)
		back, err := wire.DecodeAnswer(body)
		if err != nil {
			s.fail("the codec does not read %s: %v", body, err)
			return
		}
		a = *back
	}
	what := ""
	if s.opt.Trace != nil {
		what = string(wire.AppendAnswer(nil, &a))
	}
	s.carry(from.host(), to, what, func() {
		if deliver := s.inboxes[to]; deliver != nil {
			s.tracef("%s <- %s: %s", to, from.host(), what)
			copied := a
			deliver(&copied)
		}
	})
}

// ---- nodes

func (nd *simNode) host() string {
	return nd.name + nd.twin
}

func (nd *simNode) start() {
	s := nd.sim
	if nd.core != nil || nd.twin != "" && !s.working || nd.dir != nil && nd.dir.user != nil {
		return
	}
	nd.setClock()
	run := s.newUUID()
	saved, longest, past := nd.dir.take(nd, run)
	nd.core = voter.New(voter.Config{
		Name: nd.name, Config: nd.cfg, Incarnation: run, ProbeWait: 100 * time.Millisecond,
		MaxClaims: nd.claims, MaxQueue: nd.queue, MaxRuns: 2, Past: past,
		FloorKey: [16]byte{byte(s.opt.Seed), byte(s.uuids), byte(s.uuids >> 8)}, Floors: s.floors,
	}, nd.clock.read(s.now), saved, longest)
	s.tracef("%s starts, clean mark: %v", nd.host(), saved != nil)
	s.inboxes[nd.inbox] = func(a *wire.Answer) {
		nd.do(func() {
			nd.core.HandleAnswer(nd.clock.read(s.now), a, &nd.out)
			nd.flush()
		})
	}
	nd.flush()
}

// setClock makes a machine start with its wall clock hours ahead, in some worlds. The
// clock is corrected before a node that forgot votes gives any. Otherwise the fences that
// it gave would stay too high, and the other nodes would have to do without it.
func (nd *simNode) setClock() {
	s := nd.sim
	if s.rtc == nil || !s.working || s.rtc.IntN(2) == 0 {
		return
	}
	nd.clock.ahead = time.Minute + time.Duration(s.rtc.Int64N(int64(3*time.Hour)))
	wrong := time.Duration(s.rtc.Int64N(int64(maxTTL / 2)))
	s.tracef("%s starts with its clock %v ahead, for %v", nd.host(), nd.clock.ahead, wrong)
	s.at(wrong, func() {
		nd.clock.ahead = 0
		s.tracef("%s has its clock set right", nd.host())
	})
}

// do runs f now, or when a paused node resumes, or never if the node ends before that.
func (nd *simNode) do(f func()) {
	switch {
	case nd.core == nil:
	case nd.paused:
		nd.backlog = append(nd.backlog, f)
	default:
		f()
	}
}

func (nd *simNode) resume() {
	if !nd.paused {
		return
	}
	nd.paused = false
	nd.stops++
	nd.sim.tracef("%s goes on", nd.host())
	nd.clock.wake(nd.sim.now)
	backlog := nd.backlog
	nd.backlog = nil
	for _, f := range backlog {
		nd.do(f)
	}
}

func (nd *simNode) flush() {
	s := nd.sim
	for _, send := range nd.out.Answers {
		s.answer(nd, send.To, send.Answer)
	}
	if nd.out.Probe != nil {
		s.publish(nd.host(), nd.inbox, *nd.out.Probe)
	}
	if nd.out.Ask != nil {
		s.publish(nd.host(), nd.inbox, *nd.out.Ask)
	}
	for _, note := range nd.out.Notes {
		s.tracef("%s: %s", nd.host(), note)
	}
	nd.out.Reset()
	s.cancel(nd.timer)
	d := time.Duration(float64(nd.core.Deadline()-nd.clock.read(s.now).Mono)/nd.clock.rate) + time.Microsecond
	if d < faulty+calm {
		core := nd.core
		nd.timer = s.at(d, func() {
			nd.do(func() {
				if nd.core == core {
					nd.core.Tick(nd.clock.read(s.now), &nd.out)
					nd.flush()
				}
			})
		})
	}
}

func (nd *simNode) stop(clean bool) {
	s := nd.sim
	if nd.core == nil {
		return
	}
	if clean {
		if saved, ok := nd.core.Save(nd.clock.read(s.now)); ok && nd.dir != nil {
			nd.dir.save(nd, saved)
		}
		s.publish(nd.host(), "", *nd.core.Farewell())
		s.res.Restarts++
	} else {
		s.res.Crashes++
	}
	if nd.dir != nil {
		nd.dir.user = nil
	}
	s.tracef("%s stops, clean: %v, mark: %v", nd.host(), clean, nd.dir != nil && nd.dir.disk != nil)
	nd.stops++
	nd.core = nil
	if nd.paused {
		nd.resume() // what the dead process had not read is lost
	}
	s.cancel(nd.timer)
}

// ---- clients

func (c *simClient) start(cfg wire.Config) {
	s := c.sim
	c.instance = s.newUUID()
	seed := uint64(0)
	if s.opt.Seed%2 == 1 {
		seed = binary.BigEndian.Uint64(c.instance[:8])
	}
	c.core = client.New(client.Config{
		Name: c.user, Instance: c.instance, TTL: min(ttl, cfg.MaxTTL), MaxRuns: 2, Seed: seed, Cluster: cfg,
	}, c.clock.read(s.now))
	if s.shared {
		c.table = hold.New(c.core, s.retention)
		c.table.PassOn(s.passOn.most, s.passOn.within)
	}
	c.inbox = fmt.Sprintf("%s.%s", c.name, c.instance)
	s.inboxes[c.inbox] = c.hear(c.core)
}

// hear returns the handler of answers to the process that core belongs to. It ignores
// them when that process has ended.
func (c *simClient) hear(core *client.Client) func(*wire.Answer) {
	return func(a *wire.Answer) {
		c.do(func() {
			if c.core == core {
				c.shown(a)
				if now := c.clock.read(c.sim.now); c.table != nil {
					c.table.Handle(now, a, &c.out)
				} else {
					c.core.Handle(now, a, &c.out.Out)
				}
				c.flush()
			}
		})
	}
}

// do runs f now, or when a paused client resumes.
func (c *simClient) do(f func()) {
	if c.paused {
		c.backlog = append(c.backlog, f)
		return
	}
	f()
}

func (c *simClient) flush() {
	s := c.sim
	if c.out.Renew { // before anything is sent (C15)
		c.instance = c.nextInstance()
		s.tracef("%s begins anew as %v", c.name, c.instance)
		if now := c.clock.read(s.now); c.table != nil {
			c.table.Renew(now, c.instance, &c.out)
		} else {
			c.core.Renew(now, c.instance, &c.out.Out)
		}
	}
	requests, events, uses := c.out.Requests, c.out.Events, c.out.Holds
	if c.out.AskInfo && c.members != nil {
		defer c.learn(c.members.Query)
	}
	for _, note := range c.out.Notes {
		s.tracef("%s: %s", c.name, note)
	}
	c.out = hold.Out{}
	var batch []wire.Request
	for _, r := range requests {
		if s.batches && r.Verb.InBatch() && len(batch) < wire.MaxBatch {
			batch = append(batch, r)
			continue
		}
		s.publish(c.name, c.inbox, r)
	}
	if len(batch) > 0 {
		s.publish(c.name, c.inbox, batch...)
	}
	for _, e := range events {
		switch j := e.Claim.User.(*job); e.Kind {
		case client.Held:
			j.event(hold.Event{Kind: hold.Held})
		case client.Lost, client.Evicted:
			if !j.left { // otherwise it was evicted before
				j.event(hold.Event{Kind: hold.Lost, Left: e.Claim.State() != client.Over})
			}
		case client.Failed:
			j.event(hold.Event{Kind: hold.Failed})
		}
	}
	s.passOn.check(s, c, c.clock.read(s.now), uses)
	for _, e := range uses {
		e.Hold.User.(*job).event(e)
	}
	s.cancel(c.timer)
	if wait, ok := c.wait(); ok {
		core := c.core
		d := min(time.Duration(float64(wait)/c.clock.rate)+time.Microsecond, time.Second) + c.slack
		c.timer = s.at(d, func() {
			c.do(func() {
				if c.core == core {
					c.tick()
					c.flush()
				}
			})
		})
	}
}

func (c *simClient) tick() {
	now := c.clock.read(c.sim.now)
	if c.table != nil {
		c.table.Tick(now, &c.out)
	} else {
		c.core.Tick(now, &c.out.Out)
	}
}

func (c *simClient) wait() (time.Duration, bool) {
	if c.table != nil {
		return c.table.Wait(c.clock.read(c.sim.now))
	}
	return c.core.Wait(c.clock.read(c.sim.now))
}

// end releases what a job has, or ends its waiting.
func (c *simClient) end(j *job) {
	now := c.clock.read(c.sim.now)
	if j.use != nil {
		c.table.Unlock(now, j.use, &c.out)
	} else {
		c.core.Release(now, j.claim, &c.out.Out)
	}
}

func (j *job) token() uint64 {
	if j.use != nil {
		return j.use.Token()
	}
	return j.claim.Token()
}

// id identifies a job in a trace.
func (j *job) id() int64 { return j.made - baseWall }

func (c *simClient) want(resources int) {
	c.do(func() {
		s := c.sim
		if !s.working {
			return
		}
		if c.core == nil { // it does not know the nodes yet
			s.at(100*time.Millisecond, func() { c.want(resources) })
			return
		}
		j := &job{client: c, res: fmt.Sprintf("r%d", s.rng.IntN(resources)), asked: s.now, try: s.rng.IntN(6) == 0}
		if s.rng.IntN(3) == 0 {
			j.mode = quorum.Shared
		}
		if s.rng.IntN(4) == 0 || j.try {
			j.timer = s.at(s.between(10*time.Millisecond, 15*time.Second), func() { c.do(j.giveUp) })
		}
		j.begin()
		s.jobs[j.res] = append(s.jobs[j.res], j)
		c.ask(j)
		c.flush()
		again := s.between(0, 8*time.Second)
		if s.rng.IntN(2) == 0 {
			again = s.between(0, 20*time.Millisecond)
		}
		j.then(func() { s.at(again, func() { c.want(resources) }) })
	})
}

// ask makes the client request the job's lock.
func (c *simClient) ask(j *job) {
	s := c.sim
	s.tracef("%s wants %s %v try=%v", c.name, j.res, j.mode, j.try)
	now := c.clock.read(s.now)
	j.made = now.Wall
	watch := s.owners != nil && j.draw()
	if c.table != nil {
		j.use = c.table.Lock(now, hold.Request{Resource: j.res, Mode: j.mode, Try: j.try, Watch: watch, Manual: j.manual, AtLeast: j.atLeast, AtMost: j.atMost, User: j}, &c.out)
	} else {
		j.claim = c.core.Claim(now, client.Request{Resource: j.res, Mode: j.mode, Try: j.try, Watch: watch, User: j}, &c.out.Out)
	}
}

// then calls next after the job has ended. It polls, and draws no random numbers.
func (j *job) then(next func()) {
	j.client.sim.at(200*time.Millisecond, func() {
		if j.ended {
			next()
		} else if j.client.sim.working {
			j.then(next)
		}
	})
}

func (j *job) giveUp() {
	c := j.client
	if j.ended || j.held {
		return
	}
	c.sim.res.GaveUp++
	j.decided(false)
	j.checkKnows()
	c.sim.tracef("%s gives up %s #%d", c.name, j.res, j.id())
	c.end(j)
	j.end()
	c.flush()
}

func (j *job) release() {
	if j.ended {
		return
	}
	c := j.client
	c.sim.tracef("%s releases %s #%d", c.name, j.res, j.id())
	j.takeBack()
	j.keep()
	c.end(j)
	j.endIfNot()
	c.flush()
}

func (j *job) end() {
	j.ended = true
	s := j.client.sim
	s.ended[j.res] = s.now
	list := s.jobs[j.res]
	for i, o := range list {
		if o == j {
			s.jobs[j.res] = append(list[:i:i], list[i+1:]...)
		}
	}
	s.cancel(j.timer)
}

func (j *job) event(e hold.Event) {
	c, s := j.client, j.client.sim
	switch e.Kind {
	case hold.Held:
		if j.held || j.ended {
			s.fail("%s #%d on %s became held though it was held already or over", c.name, j.id(), j.res)
		}
		j.held, j.heldAt, j.side = true, s.now, s.sideOf(j)
		j.decided(false)
		s.res.Held++
		s.res.WaitedLongest = max(s.res.WaitedLongest, s.now-j.asked)
		if s.patience > 0 && s.now-j.asked > s.patience {
			s.fail("%s #%d on %s waited for %v, though its client reaches a quorum", c.name, j.id(), j.res, s.now-j.asked)
		}
		s.tracef("%s HOLDS %s #%d %v token %d", c.name, j.res, j.id(), j.mode, j.token())
		s.checkToken(j)
		s.checkWord(j)
		for _, o := range s.jobs[j.res] {
			if o != j && !o.held && o.made < j.made && quorum.Conflicts(o.mode, j.mode) {
				s.overtaken(o)
			}
		}
		s.cancel(j.timer)
		hold := s.between(0, 100*time.Millisecond)
		if s.working && s.patience == 0 && (s.rng.IntN(10) == 0 || s.names != nil && s.rng.IntN(2) == 0) {
			hold = s.between(0, 3*ttl)
		}
		j.timer = s.at(hold, func() { c.do(j.release) })
		if s.owners != nil {
			j.own(hold)
		}
	case hold.Lost:
		s.res.Lost++
		if !j.held {
			s.fail("%s #%d lost without having been held", c.name, j.id())
		}
		s.tracef("%s LOST %s #%d, to be released: %v", c.name, j.res, j.id(), e.Left)
		j.lost(e.Left)
		j.endIfNot()
	case hold.Wanted:
		if !j.held || j.ended || !j.asks {
			s.fail("%s #%d on %s was told that somebody waits, but did not ask or does not hold", c.name, j.id(), j.res)
		}
		j.asks = false
		s.res.Wanted++
	case hold.Expired:
		j.expire()
	case hold.Failed:
		if j.held {
			s.fail("%s #%d failed after it was held", c.name, j.id())
		}
		if j.try {
			j.decided(true)
			s.res.TryFailed++
		} else {
			s.res.Refused++
		}
		s.tracef("%s failed %s #%d", c.name, j.res, j.id())
		j.endIfNot()
	}
}

func (s *Sim) overtaken(o *job) {
	o.over++
	s.res.Overtaken[s.world] = max(s.res.Overtaken[s.world], o.over)
	if int64(o.over) > mostOvertaken[s.world]+s.passOn.overtaken(len(s.clients)) {
		s.fail("%s #%d on %s was overtaken %d times", o.client.name, o.id(), o.res, o.over)
	}
}

func (j *job) endIfNot() {
	if !j.ended {
		j.end()
	}
}

// crash ends the client process. A new one with a new instance replaces it.
func (c *simClient) crash() {
	s := c.sim
	s.res.ClientCrashes++
	s.tracef("%s crashes", c.name)
	if !c.copied { // otherwise the copy listens there
		delete(s.inboxes, c.inbox)
	}
	s.cancel(c.timer)
	for _, list := range s.jobs {
		for _, j := range append([]*job(nil), list...) {
			if j.client == c {
				j.end()
			}
		}
	}
	c.clock.wake(c.sim.now)
	c.paused, c.backlog = false, nil
	c.out = hold.Out{}
	if s.members != nil {
		c.begin()
		return
	}
	side := s.sides[c.name]
	c.start(s.cluster)
	if side != 0 {
		s.sides[c.inbox] = side
	}
}

func (c *simClient) resume() {
	if !c.paused {
		return
	}
	s := c.sim
	c.paused = false
	s.tracef("%s goes on", c.name)
	c.clock.wake(c.sim.now)
	backlog := c.backlog
	c.backlog = nil
	s.rng.Shuffle(len(backlog), func(i, k int) { backlog[i], backlog[k] = backlog[k], backlog[i] })
	for _, f := range backlog {
		c.do(f)
	}
	if c.core != nil {
		c.tick()
		c.flush()
	}
}

// ---- faults

func (s *Sim) fault() {
	if !s.working {
		return
	}
	r := s.rng
	switch r.IntN(15) {
	case 0, 1: // a node crashes and forgets
		nd := s.nodes[r.IntN(len(s.nodes))]
		nd.stop(false)
		s.at(s.downFor(), nd.start)
	case 2, 3: // a clean restart
		nd := s.nodes[r.IntN(len(s.nodes))]
		nd.stop(true)
		s.at(s.downFor(), nd.start)
	case 4: // a client pauses, and its clocks go on
		c := s.clients[r.IntN(len(s.clients))]
		if !c.paused {
			s.res.Pauses++
			s.tracef("%s pauses", c.name)
			c.paused = true
			s.at(s.between(0, 2*ttl), c.resume)
		}
	case 5: // a client's machine sleeps: its monotonic clock stands still
		c := s.clients[r.IntN(len(s.clients))]
		if !c.paused {
			s.res.Suspends++
			s.tracef("%s is suspended", c.name)
			c.paused = true
			c.clock.asleep = s.now
			s.at(s.between(0, 2*ttl), c.resume)
		}
	case 6: // links are cut, in one direction or both
		s.res.Cuts++
		var hosts []string
		for _, nd := range s.nodes {
			hosts = append(hosts, nd.host())
		}
		c := s.clients[r.IntN(len(s.clients))]
		until := s.now + s.between(0, 2*ttl)
		way := r.IntN(3)
		for _, h := range hosts {
			if r.IntN(3) == 0 {
				continue
			}
			s.tracef("cut %s and %s until %v", c.name, h, until)
			if way != 0 {
				s.cuts[[2]string{c.name, h}] = until
			}
			if way != 1 {
				s.cuts[[2]string{h, c.inbox}] = until
			}
		}
	case 7: // a client process dies
		s.clients[r.IntN(len(s.clients))].crash()
	case 8: // a client's wall clock is set
		c := s.clients[r.IntN(len(s.clients))]
		// Not in the same second as a sleep, part of which a clock that is set back would hide
		// (docs/protocol.md, Bounds).
		if c.paused {
			break
		}
		c.tick()
		c.clock.offset = s.between(-2*time.Second, 2*time.Second)
		c.tick()
		c.flush()
		s.tracef("%s has its wall clock set to %v", c.name, c.clock.offset)
	case 9: // a node's process pauses, or its machine sleeps
		nd := s.nodes[r.IntN(len(s.nodes))]
		if nd.core != nil && !nd.paused {
			s.res.Pauses++
			nd.paused = true
			if r.IntN(2) == 0 {
				nd.clock.asleep = s.now
			}
			s.tracef("%s pauses, asleep: %v", nd.host(), nd.clock.asleep >= 0)
			s.at(s.between(0, 2*ttl), nd.resume)
		}
	case 10: // a node's wall clock is set
		nd := s.nodes[r.IntN(len(s.nodes))]
		nd.clock.offset = s.between(-2*time.Second, 2*time.Second)
		s.tracef("%s has its wall clock set to %v", nd.host(), nd.clock.offset)
	case 11: // a node is started with another configuration, and later with the right one
		nd := s.nodes[r.IntN(len(s.nodes))]
		if nd.twin != "" || len(nd.cfg.Nodes) != len(s.cluster.Nodes) || s.wrong == "client" {
			break
		}
		s.wrong = "node"
		s.res.WrongConfig++
		nd.stop(r.IntN(2) == 0)
		nd.dir.disk = nil                // a mark of another configuration is void (N8)
		nd.cfg.Nodes = []string{nd.name} // it is a whole cluster by itself
		s.at(s.downFor(), nd.start)
		s.at(s.between(0, 2*maxTTL), func() {
			nd.stop(false)
			nd.cfg = s.cluster
			s.at(s.downFor(), nd.start)
		})
	case 13: // a power failure: several nodes crash at once, and some are soon restarted again
		for _, nd := range s.nodes {
			if r.IntN(3) == 0 {
				continue
			}
			nd.stop(false)
			s.at(s.between(0, 300*time.Millisecond), nd.start)
			if r.IntN(3) == 0 {
				at := s.between(time.Second, 5*time.Second)
				s.at(at, func() { nd.stop(true) })
				s.at(at+s.between(0, 300*time.Millisecond), nd.start)
			}
		}
	case 14: // a client starts with another list of nodes, and later with the right one
		c := s.clients[r.IntN(len(s.clients))]
		if len(s.cluster.Nodes) == 1 || s.wrong == "node" {
			// A node and a client with the same other list would be another cluster.
			break
		}
		s.wrong = "client"
		s.res.WrongConfig++
		c.crash()
		wrong := s.cluster
		wrong.Nodes = []string{s.cluster.Nodes[r.IntN(len(s.cluster.Nodes))]}
		c.start(wrong)
		s.at(s.between(0, 2*maxTTL), c.crash)
	case 12: // somebody starts a second node under a name that is in use
		nd := s.nodes[r.IntN(len(s.nodes))]
		if nd.twin != "" || nd.core == nil || s.twins > 0 || len(s.nodes) == 1 {
			break
		}
		s.newTwin(nd, nil).start()
	}
	s.at(s.between(0, 12*time.Second), s.fault)
}

func (s *Sim) downFor() time.Duration {
	if s.rng.IntN(2) == 0 {
		return s.between(0, 200*time.Millisecond)
	}
	return s.between(0, 2*maxTTL)
}

// calmDown ends all faults and new work. From then on all waiting claims must be served,
// and nothing may be left behind.
func (s *Sim) calmDown() {
	s.tracef("calm")
	s.working = false
	clear(s.cuts)
	clear(s.deaf)
	clear(s.mute)
	if s.sides != nil {
		for _, c := range s.clients {
			s.reconnect(c, 0)
		}
	}
	for _, nd := range s.nodes {
		nd.resume()
		if nd.twin != "" || nd.cfg.Digest() != s.cluster.Digest() || nd.core != nil && nd.core.Stopped() {
			nd.stop(false)
			nd.cfg = s.cluster
		}
	}
	for _, nd := range s.nodes { // after the twins have released their directories
		if nd.twin == "" && s.members.belongs(nd) {
			nd.start()
		}
	}
	for _, c := range s.clients {
		c.resume()
		if s.members == nil && c.core.Digest() != s.cluster.Digest() {
			c.crash()
		}
	}
	// The last answer of a second node may still be under way.
	s.at(time.Second, func() {
		for _, nd := range s.nodes {
			if nd.core != nil && nd.core.Stopped() {
				nd.stop(false)
				nd.start()
			}
		}
	})
}

// evict makes an operator evict a claim, held or waiting (N10, C12).
func (s *Sim) evict() {
	if !s.working {
		return
	}
	r := s.operator
	s.at(time.Duration(r.Int64N(int64(4*time.Second))), s.evict)
	var all []*job
	for _, res := range slices.Sorted(maps.Keys(s.jobs)) {
		all = append(all, s.jobs[res]...)
	}
	if len(all) == 0 {
		return
	}
	j := all[r.IntN(len(all))]
	claim := j.claim
	if j.use != nil {
		claim = j.use.Claim()
	}
	if claim == nil {
		return
	}
	c := j.client
	id := wire.ClaimID{Instance: c.instance, Seq: claim.Seq()}
	s.res.Evicted++
	s.tracef("%v of %s on %s is to be evicted", id, c.name, j.res)
	e := &eviction{job: j, claim: claim, id: id, held: j.holds(), until: s.now + 2*ttl}
	s.askDeparture(e)
}

// eviction is an operator's request that a claim end.
type eviction struct {
	job   *job
	claim *client.Claim
	id    wire.ClaimID
	// held is set if the claim was held at the request. Of a claim that some node may not
	// have heard of, nothing is promised.
	held  bool
	until time.Duration
}

// askDeparture asks all nodes to evict a claim, and repeats that until it is over, as
// Locker.Evict does.
func (s *Sim) askDeparture(e *eviction) {
	r, j, c, id := s.operator, e.job, e.job.client, e.id
	c.evictions++
	times := c.evictions
	nonce := fmt.Sprint(s.seq)
	d, over := client.NewDeparture(s.cluster, nonce), false
	const round = time.Second
	begun := s.now
	s.at(round+time.Duration(r.Int64N(int64(round))), func() {
		if !over && s.working && s.now < e.until {
			s.askDeparture(e)
		}
	})
	hear := func(a wire.Answer) {
		if r.Float64() < s.loss {
			return
		}
		s.at(time.Duration(r.Int64N(int64(5*time.Millisecond))), func() {
			if d.Hear(&a); d.Over() && !over && s.now < begun+round {
				over = true
				s.departed(e)
			}
		})
	}
	for _, nd := range s.nodes {
		if r.Float64() < s.loss {
			continue
		}
		s.at(time.Duration(r.Int64N(int64(5*time.Millisecond))), func() {
			nd.do(func() {
				nd.core.Handle(nd.clock.read(s.now), &wire.Request{
					Verb: wire.Evict, Client: "operator", Resource: j.res, Holder: c.user, Claim: id, Query: "simulated", Nonce: nonce,
				}, "operator", &nd.out)
				known := false
				for _, a := range nd.out.Answers {
					if a.Answer.Kind == wire.Evicting {
						known = known || a.Answer.Known
						hear(a.Answer)
					}
				}
				nd.flush()
				stops := nd.stops
				s.at(ttl+ttl/20, func() {
					// Not if it was evicted again: the client may have missed the first message,
					// and have acquired the claim again since.
					if known && nd.core != nil && !nd.paused && nd.stops == stops && c.evictions == times {
						s.checkEvicted(nd, j.res, id)
					}
				})
			})
		})
	}
}

// departed checks that a claim holds nothing any more when it was reported as over.
func (s *Sim) departed(e *eviction) {
	s.res.Departed++
	s.tracef("%v of %s on %s is over according to enough nodes", e.id, e.job.client.name, e.job.res)
	for _, o := range s.jobs[e.job.res] {
		of := o.claim
		if o.use != nil {
			of = o.use.Claim()
		}
		if e.held && of == e.claim && o.holds() && s.now >= s.lenient {
			s.fail("%v of %s still holds %s, though its eviction is reported as done", e.id, o.client.name, o.res)
		}
	}
	for _, o := range s.words {
		if e.held && o.given == e.claim && s.now < o.word && s.now >= s.lenient {
			s.fail("%s #%d gave its word on %s for %v more, though the eviction of %v is reported as done", o.client.name, o.id(), o.res, o.word-s.now, e.id)
		}
	}
}

// checkEvicted checks that the node has not extended the claim's lease.
func (s *Sim) checkEvicted(nd *simNode, resource string, id wire.ClaimID) {
	nd.core.Handle(nd.clock.read(s.now), &wire.Request{Verb: wire.Inspect, Client: "operator", Resource: resource}, "operator", &nd.out)
	defer nd.flush()
	for _, a := range nd.out.Answers {
		if a.Answer.Kind != wire.Listed {
			continue
		}
		for _, rec := range a.Answer.List.Locks {
			for _, c := range rec.Claims {
				// Not one that went and was acquired again by a client that does not hear.
				if c.Claim == id && c.Evicted && c.For > ttl {
					s.fail("%s still has %v on %s, which was evicted more than a lease ago", nd.host(), id, resource)
				}
			}
		}
	}
}

// ---- promises

func (s *Sim) check() {
	if s.owners != nil {
		s.checkOwners()
	}
	if s.now < s.lenient {
		return
	}
	for res, list := range s.jobs {
		for i, a := range list {
			if !a.holds() {
				continue
			}
			for _, b := range list[i+1:] {
				if quorum.Conflicts(a.mode, b.mode) && b.holds() && a.side == b.side {
					s.fail("two hold %s: %s #%d (%v, token %d) and %s #%d (%v, token %d)", res,
						a.client.name, a.id(), a.mode, a.token(), b.client.name, b.id(), b.mode, b.token())
				}
			}
		}
	}
}

// holds reports whether the client believes that it has the lock. One that runs does
// until it is told otherwise. For one that is paused, it is what reading its clocks would
// tell it.
func (j *job) holds() bool {
	if !j.held || j.ended {
		return false
	}
	c := j.client
	if !c.paused {
		return true
	}
	if now := c.clock.read(c.sim.now); j.use != nil {
		return c.table.HeldAt(now, j.use)
	} else {
		return c.core.HeldAt(now, j.claim)
	}
}

// mostAhead bounds how far a token may lie ahead of true time (N3): how far a fence may
// be ahead of a node's clock, plus how wrong a clock may be, plus the range of fences
// that is set aside.
const mostAhead = maxTTL + 3*time.Second

func (s *Sim) checkToken(j *job) {
	if ahead := time.Duration(int64(j.token())-baseWall-s.now.Microseconds()) * time.Microsecond; ahead > mostAhead && s.rtc == nil {
		s.fail("%s has token %d on %s, %v ahead of the time", j.client.name, j.token(), j.res, ahead)
	}
	t := s.tokens[j.res]
	if t == nil {
		t = &tokens{}
		s.tokens[j.res] = t
	}
	token := j.token()
	if s.sides != nil || j.side != 0 { // each of two clusters has tokens of its own
		return
	}
	if s.now < s.lenient {
		t.any = max(t.any, token)
		return
	}
	if j.mode == quorum.Exclusive {
		if token <= t.any {
			s.fail("%s has token %d on %s, but %d was given before", j.client.name, token, j.res, t.any)
		}
		t.exclusive = max(t.exclusive, token)
	} else if token < t.exclusive {
		s.fail("%s has shared token %d on %s, below the exclusive %d before it", j.client.name, token, j.res, t.exclusive)
	}
	t.any = max(t.any, token)
}

func (s *Sim) checkEmpty() {
	for res, list := range s.jobs {
		for _, j := range list {
			s.fail("%s still waits for %s #%d (held %v), since %v", j.client.name, res, j.id(), j.held, j.asked)
		}
	}
	if s.members != nil {
		s.members.checkEnd()
	}
	for _, c := range s.clients {
		if c.core.Claims() > 0 {
			s.fail("%s still has %d claims", c.name, c.core.Claims())
		}
	}
	for _, nd := range s.nodes {
		if nd.core == nil {
			continue
		}
		var out voter.Out
		nd.core.Tick(nd.clock.read(s.now), &out)
		if nd.core.Claims() > 0 || nd.core.Resources() > 0 {
			s.fail("%s still has %d claims on %d resources", nd.host(), nd.core.Claims(), nd.core.Resources())
		}
		if st := nd.core.State(); st != wire.Voting {
			s.fail("%s does not vote: %s", nd.host(), st)
		}
	}
}

func (r *Result) add(o Result) {
	r.Events += o.Events
	r.Held += o.Held
	r.Lost += o.Lost
	r.GaveUp += o.GaveUp
	r.TryFailed += o.TryFailed
	r.Crashes += o.Crashes
	r.Restarts += o.Restarts
	r.Pauses += o.Pauses
	r.Cuts += o.Cuts
	r.Suspends += o.Suspends
	r.ClientCrashes += o.ClientCrashes
	r.Twins += o.Twins
	r.WrongConfig += o.WrongConfig
	r.Refused += o.Refused
	r.Dropped += o.Dropped
	r.Duplicated += o.Duplicated
	r.Late += o.Late
	r.Evicted += o.Evicted
	r.EvictedLate += o.EvictedLate
	r.Wanted += o.Wanted
	r.TriedFree += o.TriedFree
	r.Knew += o.Knew
	r.Kept += o.Kept
	r.Expired += o.Expired
	r.Left += o.Left
	r.Leaps += o.Leaps
	r.PassedOn += o.PassedOn
	r.Departed += o.Departed
	r.Copies += o.Copies
	r.Found += o.Found
	r.Moved += o.Moved
	for i, n := range o.Overtaken {
		r.Overtaken[i] = max(r.Overtaken[i], n)
	}
	r.WaitedLongest = max(r.WaitedLongest, o.WaitedLongest)
	r.TriedLongest = max(r.TriedLongest, o.TriedLongest)
}
