package epoch

import (
	"cmp"
	"container/heap"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

var (
	seeds = flag.Int("epoch.seeds", 300, "random worlds")
	first = flag.Uint64("epoch.first", 1, "the first of them")
	trace = flag.Bool("epoch.trace", false, "print what happens")
)

// A random world has nodes with disks, commands of several operators who want different
// things and die, messages that are late, lost and repeated, and nodes that crash, stop,
// lose their directories and are replaced. Then all is well, and one more command must come
// to its end.
//
// Locks are taken by a client that sees everything: it takes one under any record of which
// it finds a quorum of nodes that have just that record, vote, and have no vote standing.
// No two locks may be held at once, and tokens must rise, through all changes.
type chaos struct {
	t    *testing.T
	seed uint64
	rng  *rand.Rand
	now  time.Duration
	todo events
	serial,
	ids int

	nodes   []*member
	ops     []*command
	calm    bool
	loss    float64
	records map[string]*Record // by digest: seen at any node
	byEpoch map[uint64]string
	since   map[string]time.Duration // node, life of its directory and digest: since when on disk

	token     uint64
	heldUntil time.Duration
	changes   int
	locks     int
	joint     int // of these, under joint records
	failed    string
}

type event struct {
	at time.Duration
	n  int
	do func()
}

type events []event

func (e events) Len() int           { return len(e) }
func (e events) Less(i, j int) bool { return cmp.Or(cmp.Compare(e[i].at, e[j].at), e[i].n-e[j].n) < 0 }
func (e events) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)        { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	x := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return x
}

// member is a node: a name, a disk, and what of a voter matters here.
type member struct {
	name     string
	told     bool // the list of epoch 0
	disk     State
	a        *Acceptor // nil: it is down
	clock    time.Duration
	votesAt  time.Duration // it forgot: no votes before
	fence    uint64
	standing time.Duration // its vote is valid until then
}

type command struct {
	o     *Operator
	dead  bool
	timer int
	err   error
}

func (c *chaos) fail(format string, args ...any) {
	if c.failed == "" {
		c.failed = fmt.Sprintf(format, args...)
	}
}

func (c *chaos) tracef(format string, args ...any) {
	if *trace {
		c.t.Logf("%8v %s", c.now.Round(time.Millisecond), fmt.Sprintf(format, args...))
	}
}

func (c *chaos) at(d time.Duration, do func()) {
	c.serial++
	heap.Push(&c.todo, event{c.now + d, c.serial, do})
}

func (c *chaos) between(a, b time.Duration) time.Duration {
	return a + time.Duration(c.rng.Int64N(int64(b-a)))
}

func (c *chaos) newID() uuid.UUID {
	c.ids++
	return idOf(fmt.Sprint("id", c.ids))
}

// send carries a message: mostly once, soon.
func (c *chaos) send(deliver func()) {
	if !c.calm && c.rng.Float64() < c.loss {
		return
	}
	c.at(c.between(time.Millisecond, 20*time.Millisecond), deliver)
	if !c.calm && c.rng.IntN(10) == 0 {
		c.at(c.between(time.Millisecond, 3*time.Second), deliver)
	}
}

func (m *member) mono(c *chaos) time.Duration { return c.now + m.clock }

func (m *member) votes(c *chaos) bool {
	return m.a != nil && c.now >= m.votesAt && (m.a.Record() == nil && !m.a.Joining() || m.a.In() != 0)
}

func (m *member) start(c *chaos) {
	if m.a != nil {
		return
	}
	var told *wire.Config
	if m.told {
		told = &base
	}
	m.clock = c.between(0, time.Hour)
	m.a = NewAcceptor("test", m.name, told, m.disk, m.mono(c))
	c.keepTime(m)
}

func (c *chaos) keepTime(m *member) {
	a := m.a
	c.at(50*time.Millisecond, func() {
		if m.a != a {
			return
		}
		if a.SaveDue(m.mono(c)) {
			m.disk = reread(c.t, a.Save(m.mono(c)))
		}
		c.keepTime(m)
	})
}

// stop ends a node's run, with a mark or without.
func (m *member) stop(c *chaos, clean bool) {
	if m.a == nil {
		return
	}
	c.tracef("%s stops, clean %v", m.name, clean)
	if clean {
		m.disk = reread(c.t, m.a.Save(m.mono(c)))
	} else {
		// What it gave stands, and it does not remember. When it votes again, it gives fences
		// above all of before.
		m.votesAt = c.now + 2*(maxTTL+maxTTL/50) + 10*time.Millisecond
		m.fence, m.standing = 0, 0
	}
	m.a = nil
}

func (m *member) floor(c *chaos) uint64 {
	if m.votesAt > 0 && c.now >= m.votesAt {
		m.fence, m.votesAt = max(m.fence, c.token), 0
	}
	return m.fence
}

func (c *chaos) handle(m *member, s wire.Step, reply func(string, wire.StepAnswer)) {
	if m.a == nil || s.Node != "" && s.Node != m.name {
		return
	}
	out := m.a.Handle(m.mono(c), Self{Votes: m.votes(c), Floor: m.floor(c)}, &s)
	if out.Write != nil {
		m.disk = reread(c.t, out.Write)
		if !c.calm && c.rng.IntN(50) == 0 {
			m.stop(c, false) // after the write, before the answer
			c.at(c.between(0, time.Second), func() { m.start(c) })
		} else {
			m.a.Written(m.mono(c))
		}
		if out.Learned {
			c.learned(m, out.Write.Record)
		}
	}
	if m.a != nil {
		c.send(func() { reply(m.name, out.Answer) })
	}
}

// learned looks at a record that a node has from now on.
func (c *chaos) learned(m *member, r *Record) {
	d := r.Digest()
	c.tracef("%s has epoch %d: %s", m.name, r.Epoch, short(r))
	m.fence = max(m.fence, r.Floor)
	c.since[m.name+m.disk.ID.String()+d] = c.now
	if other, ok := c.byEpoch[r.Epoch]; ok {
		if other != d {
			c.fail("two records of epoch %d: %s and %s", r.Epoch, short(c.records[other]), short(r))
		}
		return
	}
	c.byEpoch[r.Epoch], c.records[d] = d, r
	c.changes++
	if r.Epoch == 1 {
		if err := Begins("test", base, r); err != nil {
			c.fail("epoch 1: %v", err)
		}
		return
	}
	before := c.records[r.Prev]
	if before == nil {
		c.fail("%s follows a record that nobody has", short(r))
		return
	}
	if err := Follows(before, r); err != nil {
		c.fail("%s follows %s: %v", short(r), short(before), err)
	}
	if Finishes(before, r) {
		n := 0
		for _, o := range before.Nodes {
			if at, ok := c.since[o.Name+o.ID.String()+r.Prev]; ok && c.now-at >= before.Longest()+before.Longest()/50 {
				n++
			}
		}
		if n < quorum.Size(len(before.Nodes), quorum.Exclusive) {
			c.fail("%s follows %s when %d nodes had waited", short(r), short(before), n)
		}
	}
}

// lock takes a lock if it can be had under some record that a node has.
func (c *chaos) lock() {
	c.at(c.between(0, 200*time.Millisecond), c.lock)
	holder := c.nodes[c.rng.IntN(len(c.nodes))]
	if holder.a == nil {
		return
	}
	r := holder.a.Record() // nil: by the list of epoch 0
	lease := base.MaxTTL
	need := quorum.JointSize(len(base.Nodes), 0, quorum.Exclusive)
	if r != nil {
		lease = r.Lease()
		need = quorum.JointSize(len(r.Nodes), len(r.Next), quorum.Exclusive)
	}
	var voters []*member
	var count quorum.Count
	token := uint64(0)
	for _, i := range c.rng.Perm(len(c.nodes)) {
		m := c.nodes[i]
		if !m.votes(c) || m.standing > c.now || m.a.Digest() != holder.a.Digest() {
			continue
		}
		in := m.a.In()
		if r == nil && slices.Contains(base.Nodes, m.name) {
			in = quorum.InNodes
		}
		if need.Met(count) {
			break
		}
		count.Add(in)
		voters = append(voters, m)
		token = max(token, m.floor(c)+1)
	}
	for _, m := range voters {
		if m.fence = token; need.Met(count) || c.rng.IntN(8) == 0 { // or it votes in vain
			m.standing = c.now + lease
		}
	}
	if !need.Met(count) {
		return
	}
	c.locks++
	if r != nil && r.Joint() {
		c.joint++
	}
	c.tracef("lock with token %d under %s by %d nodes", token, short(r), len(voters))
	if c.now < c.heldUntil {
		c.fail("two hold the lock: one until %v", c.heldUntil)
	}
	if token <= c.token {
		c.fail("token %d after %d", token, c.token)
	}
	c.token, c.heldUntil = max(token, c.token), c.now+lease-lease/50
	if c.rng.IntN(2) == 0 { // released
		c.heldUntil = c.now
		for _, m := range voters {
			if c.rng.IntN(4) > 0 {
				m.standing = c.now
			}
		}
	}
}

func (c *chaos) shown(m *member) Shown {
	s := Shown{Node: m.name, ID: m.disk.ID, Record: m.a.Record(), Links: m.a.State().Links, Had: m.a.Had(m.mono(c)), Votes: m.votes(c), Recovering: max(m.votesAt-c.now, 0)}
	if s.Record == nil {
		if s.Joining = m.a.Joining(); !s.Joining {
			s.Base = base
		}
	}
	return s
}

// operate begins a command.
func (c *chaos) operate(wish Wish) *command {
	c.tracef("command: %v %v", wish.Goal, wish.Nodes)
	wish.CID = c.newID()
	x := &command{o: NewOperator("test", wish, c.newID())}
	c.ops = append(c.ops, x)
	c.step(x, func(w *Want) { x.o.Tick(c.now, w) })
	return x
}

func (c *chaos) step(x *command, f func(*Want)) {
	if x.dead {
		return
	}
	var w Want
	f(&w)
	if w.Note != "" {
		c.tracef("command: %s", w.Note)
	}
	if w.Done {
		x.err = w.Err
		c.tracef("command is done: %v", w.Err)
	}
	if w.Ask != "" {
		for _, m := range c.nodes {
			c.send(func() {
				if m.a == nil {
					return
				}
				s := c.shown(m)
				c.send(func() { c.step(x, func(o *Want) { x.o.Show(c.now, w.Ask, s, o) }) })
			})
		}
	}
	for _, s := range w.Steps {
		for _, m := range c.nodes {
			c.send(func() {
				c.handle(m, s, func(node string, a wire.StepAnswer) {
					c.step(x, func(o *Want) { x.o.Hear(c.now, node, &a, o) })
				})
			})
		}
	}
	if !c.calm && c.rng.IntN(200) == 0 {
		x.dead = true
	}
	if x.o.Ended() {
		return
	}
	x.timer++
	timer := x.timer
	c.at(max(x.o.Deadline()-c.now, time.Millisecond), func() {
		if x.timer == timer {
			c.step(x, func(w *Want) { x.o.Tick(c.now, w) })
		}
	})
}

func (c *chaos) list() []string {
	var out []string
	for _, i := range c.rng.Perm(len(c.nodes))[:1+c.rng.IntN(4)] {
		out = append(out, c.nodes[i].name)
	}
	slices.Sort(out)
	return out
}

func (c *chaos) play() {
	if c.calm {
		return
	}
	c.at(c.between(0, 1500*time.Millisecond), c.play)
	m := c.nodes[c.rng.IntN(len(c.nodes))]
	switch c.rng.IntN(12) {
	case 0, 1:
		w := Wish{Goal: Change, Nodes: c.list(), Hurry: c.rng.IntN(2) == 0, StayJoint: c.rng.IntN(3) == 0, MostOfNext: c.rng.IntN(2) == 0}
		if c.rng.IntN(3) == 0 {
			w.MaxTTL = []time.Duration{maxTTL / 2, maxTTL}[c.rng.IntN(2)]
		}
		c.operate(w)
	case 2:
		c.operate(Wish{Goal: Finish, MostOfNext: true})
	case 3:
		c.operate(Wish{Goal: RollBack})
	case 4, 5, 6:
		m.stop(c, c.rng.IntN(2) == 0)
		c.at(c.between(0, 2*time.Second), func() { m.start(c) })
	case 7: // it loses its directory
		if c.rng.IntN(3) == 0 && c.healthy(m) {
			m.stop(c, false)
			m.disk = State{ID: c.newID()}
			m.told = false
			m.votesAt = 0
			c.tracef("%s has lost its directory", m.name)
			c.at(c.between(0, 2*time.Second), func() { m.start(c) })
		}
	default:
		if c.byEpoch[1] == "" {
			c.operate(Wish{Goal: Enable})
		}
	}
}

// healthy reports whether the cluster goes on without m: a majority of each list that it has
// had lately are with their directories.
func (c *chaos) healthy(m *member) bool {
	for _, r := range c.records {
		for _, list := range [][]wire.Member{r.Nodes, r.Next} {
			n := 0
			for _, o := range list {
				for _, x := range c.nodes {
					if x != m && x.name == o.Name && x.disk.ID == o.ID {
						n++
					}
				}
			}
			if len(list) > 0 && n < quorum.Size(len(list), quorum.Exclusive) {
				return false
			}
		}
	}
	return len(c.records) > 0
}

func (c *chaos) until(end time.Duration) {
	for len(c.todo) > 0 && c.todo[0].at <= end && c.failed == "" {
		e := heap.Pop(&c.todo).(event)
		c.now = e.at
		e.do()
	}
	c.now = end
}

func newChaos(t *testing.T, seed uint64) *chaos {
	c := &chaos{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 1)), records: map[string]*Record{}, byEpoch: map[uint64]string{}, since: map[string]time.Duration{}}
	c.loss = []float64{0, 0.05, 0.25}[c.rng.IntN(3)]
	for i, name := range strings.Fields("a b c d e f") {
		m := &member{name: name, told: i < len(base.Nodes), disk: State{ID: c.newID()}}
		c.nodes = append(c.nodes, m)
		m.start(c)
	}
	return c
}

func (c *chaos) run() string {
	c.at(0, c.play)
	c.at(0, c.lock)
	c.until(60 * time.Second)
	c.calm = true
	c.tracef("calm")
	for _, m := range c.nodes {
		m.start(c)
	}
	for _, x := range c.ops {
		x.dead = true
	}
	c.until(c.now + 5*time.Second)
	if x := c.operate(Wish{Goal: RollBack}); c.failed == "" {
		c.until(c.now + 30*time.Second)
		if !x.o.Ended() {
			c.fail("roll back is not done in 30 s: %s", x.o.noted)
		}
	}
	// A list of nodes that are now.
	var last *Record
	for _, m := range c.nodes {
		if r := m.a.Record(); r != nil && (last == nil || r.Epoch > last.Epoch) {
			last = r
		}
	}
	var to []string
	for _, m := range c.nodes {
		if last == nil && m.told || last != nil && In(last, m.name, m.disk.ID) != 0 || last != nil && !slices.ContainsFunc(last.Nodes, func(o wire.Member) bool { return o.Name == m.name }) {
			to = append(to, m.name)
		}
	}
	to = to[:max(1, c.rng.IntN(len(to)+1))]
	if last == nil {
		to = []string{"d", "e"}
	}
	before := c.locks
	if x := c.operate(Wish{Goal: Change, Nodes: to}); c.failed == "" {
		c.until(c.now + 30*time.Second)
		switch {
		case x.err != nil:
			c.fail("change to %v: %v", to, x.err)
		case !x.o.Ended():
			c.fail("change to %v is not done in 30 s: %s", to, x.o.noted)
		case c.locks == before:
			c.fail("nobody got a lock while all was well")
		}
	}
	return c.failed
}

func TestRandom(t *testing.T) {
	changes, locks, joint := 0, 0, 0
	for seed := *first; seed < *first+uint64(*seeds); seed++ {
		c := newChaos(t, seed)
		if why := c.run(); why != "" {
			t.Fatalf("seed %d: %v: %s", seed, c.now, why)
		}
		changes, locks, joint = changes+c.changes, locks+c.locks, joint+c.joint
	}
	t.Logf("%d worlds, %d decisions, %d locks, %d of them by two lists", *seeds, changes, locks, joint)
	if changes < 2**seeds || joint < *seeds {
		t.Error("too little happens")
	}
}
