package epoch

import (
	"crypto/sha256"
	"encoding/binary"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

var far = flag.Bool("epoch.far", false, "explore larger worlds, which takes many minutes: give -timeout 0")

const (
	maxTTL = 1000 * time.Millisecond
	skew   = 100 * time.Millisecond
)

func idOf(name string) uuid.UUID { return uuid.NewSHA1(uuid.Nil, []byte(name)) }

func members(list string) (out []wire.Member) {
	for _, name := range strings.Fields(list) {
		out = append(out, wire.Member{Name: name, ID: idOf(name)})
	}
	return out
}

var (
	base = wire.Config{Nodes: []string{"a", "b", "c"}, MaxTTL: maxTTL, Skew: skew}
	cid  = idOf("cluster")
)

// simple is a record of epoch 3 with a list, and chain its history.
func simple(list string) (*Record, []wire.Link) {
	r := &Record{Cluster: "test", CID: cid, Epoch: 3, Prev: "00000000000000aa", Floor: 1, Nodes: members(list), MaxTTL: maxTTL, Skew: skew}
	return r, []wire.Link{{Epoch: 2, Digest: r.Prev}, {Epoch: 3, Digest: r.Digest()}}
}

// toward is the joint record that follows r.
func toward(r *Record, list string) *Record {
	j := *r
	j.Epoch, j.Prev = r.Epoch+1, r.Digest()
	j.Next, j.NextMaxTTL, j.NextSkew = members(list), maxTTL, skew
	return &j
}

// The worlds here are explored to the end: every order in which messages can arrive, each
// any number of times or never, in which nodes crash and lose directories, and time goes on.
// The nodes are told of the joint record, and several attempts are made to end it. What is
// real are the acceptors, with their disks, and the rounds.
//
// What must be true:
//   - one record at most is decided for an epoch (E3, E4, E8);
//   - when the new list is decided, a majority of the old one has had the joint record for
//     1.02 of the longest lease (E5);
//   - then the record's floor is not below a token that was given under the record before
//     (E6, E7).
type place struct {
	acceptor *Acceptor
	disk     State
	votes    bool
	lost     bool          // its first directory
	fence    uint64        // the highest that it knows it gave
	joined   time.Duration // when it had the joint record on disk; -1: not yet
}

type attempt struct {
	round *Round
	want  func(floor uint64) *Record
	begun bool
	ask   wire.Step
	out   []wire.Step // of its second half
}

type world struct {
	now      time.Duration
	ticks    int
	mishaps  int
	old      *Record
	current  *Current // what the attempts start from: the joint record, or epoch 0
	links    []wire.Link
	token    uint64
	names    []string
	places   []place
	attempts []attempt
	answers  map[string]answer               // that are under way, or were
	accepted map[wire.Ballot]map[string]bool // ghost: who ever accepted, and whether it had waited for long enough
	proposed map[wire.Ballot]*Record         // ghost
	trail    *trail
}

// trail is how a world came about.
type trail struct {
	before *trail
	what   func() string
}

func (t *trail) String() string {
	if t == nil {
		return ""
	}
	return t.before.String() + t.what() + "\n"
}

type answer struct {
	attempt int
	node    string
	a       wire.StepAnswer
}

func (w *world) clone() *world {
	c := *w
	c.places = slices.Clone(w.places)
	for i := range c.places {
		a := *c.places[i].acceptor
		c.places[i].acceptor = &a
	}
	c.attempts = slices.Clone(w.attempts)
	for i := range c.attempts {
		r := *c.attempts[i].round
		r.promises, r.accepted = maps.Clone(r.promises), maps.Clone(r.accepted)
		c.attempts[i].round = &r
	}
	c.answers = maps.Clone(w.answers)
	c.accepted = map[wire.Ballot]map[string]bool{}
	for b, m := range w.accepted {
		c.accepted[b] = maps.Clone(m)
	}
	c.proposed = maps.Clone(w.proposed)
	return &c
}

func short(r *Record) string {
	if r == nil {
		return "-"
	}
	b := strconv.AppendUint(nil, r.Epoch, 10)
	for _, m := range r.Nodes {
		b = append(b, m.Name...)
	}
	if r.Joint() {
		b = append(b, '+')
	}
	b = strconv.AppendUint(append(b, ' '), r.Floor, 10)
	return string(append(b, r.CID[0]))
}

// hash stands for all that the future depends on.
func (w *world) hash() (h [16]byte) {
	b := make([]byte, 0, 512)
	num := func(n ...int64) {
		for _, n := range n {
			b = binary.AppendVarint(b, n)
		}
	}
	flag := func(f ...bool) {
		for _, f := range f {
			b = strconv.AppendBool(b, f)
		}
	}
	record := func(r *Record) { b = append(append(b, short(r)...), 0) }
	num(int64(w.ticks), int64(w.mishaps))
	for i := range w.places {
		p := &w.places[i]
		st := &p.acceptor.state
		num(int64(p.fence), int64(p.joined), int64(st.Promised.N), int64(st.Accepted.N), int64(p.acceptor.Had(w.now)), int64(p.disk.Promised.N), int64(p.disk.Accepted.N), int64(p.disk.Had))
		flag(p.votes, p.lost)
		record(st.Record)
		record(st.Proposal)
		record(p.disk.Record)
	}
	for i := range w.attempts {
		a := &w.attempts[i]
		flag(a.begun, a.round.Decided())
		if a.begun { // then what was promised has had its effect
			record(a.round.proposal)
			for _, s := range a.out {
				b = append(b, s.Node...)
			}
			continue
		}
		record(a.round.value)
		num(int64(a.round.highest.N), int64(a.round.floor))
		for _, n := range w.names {
			if p, ok := a.round.promises[n]; ok {
				b = append(b, n...)
				num(int64(max(p.left-(w.now-p.at), 0)))
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(w.answers)) {
		b = append(b, k...)
	}
	for n := range w.attempts {
		for _, name := range w.names {
			long, ok := w.accepted[w.ballot(n)][name]
			flag(ok, long)
		}
	}
	sum := sha256.Sum256(b)
	copy(h[:], sum[:])
	return h
}

func (w *world) ballot(attempt int) wire.Ballot {
	return wire.Ballot{N: uint64(attempt + 1), Run: idOf("run")}
}

// deliver has a node handle a step.
func (w *world) deliver(i, from int, s *wire.Step) {
	p := &w.places[i]
	out := p.acceptor.Handle(w.now, Self{Votes: p.votes, Floor: p.fence}, s)
	if out.Write != nil {
		p.disk = *out.Write
		p.acceptor.Written(w.now)
		if out.Learned && out.Write.Record == w.current.Record {
			p.joined = w.now
			p.fence = max(p.fence, out.Write.Record.Floor)
		}
	}
	if s.Kind == wire.Accept && out.Answer.Why == wire.WhyNone {
		if w.accepted[s.Ballot] == nil {
			w.accepted[s.Ballot] = map[string]bool{}
		}
		if _, again := w.accepted[s.Ballot][w.names[i]]; !again {
			w.accepted[s.Ballot][w.names[i]] = p.joined >= 0 && w.now-p.joined >= maxTTL+maxTTL/50
		}
		w.proposed[s.Ballot] = s.Record
	}
	switch {
	case out.Answer.Why != wire.WhyNone:
	case s.Kind == wire.Accept:
		// The sooner the better known what is decided: no way is lost by that.
		w.attempts[from].round.Hear(w.now, w.names[i], &out.Answer)
	case s.Kind == wire.Prepare && !w.attempts[from].begun:
		w.answers[fmt.Sprint("@", from, w.names[i], out.Answer.Accepted.N, short(out.Answer.Record), out.Answer.Floor, out.Answer.Left+w.now)] = answer{from, w.names[i], out.Answer}
	}
}

// crash has a node start again from its disk. It gives no votes until it has waited, and
// then its floor is above all.
func (w *world) crash(i int) {
	p := &w.places[i]
	var told *wire.Config
	if !p.lost { // an empty directory has no list, whatever its node is told
		told = &w.current.Base
	}
	p.acceptor = NewAcceptor("test", w.names[i], told, p.disk, w.now)
	p.votes, p.fence = false, 0
}

// lose has it start again from an empty directory.
func (w *world) lose(i int) {
	p := &w.places[i]
	p.disk = State{ID: idOf(w.names[i] + " again")}
	p.joined, p.lost = -1, true
	w.crash(i)
	p.votes = true // as a new node does
}

// check reports what must not be.
func (w *world) check() error {
	var first *Record
	for _, b := range slices.SortedFunc(maps.Keys(w.accepted), wire.Ballot.Compare) {
		n, waited := 0, 0
		for _, long := range w.accepted[b] {
			n++
			if long {
				waited++
			}
		}
		r := w.proposed[b]
		need := len(w.names)
		if w.old != nil {
			need = quorum.Size(len(w.old.Nodes), quorum.Exclusive)
		}
		if n < need {
			continue
		}
		if first != nil && short(first) != short(r) {
			return fmt.Errorf("two decisions for epoch %d: %s and %s", r.Epoch, short(first), short(r))
		}
		first = r
		if w.old == nil || !Finishes(w.current.Record, r) {
			continue
		}
		if waited < need {
			return fmt.Errorf("the new list is decided when %d nodes have waited, %d are a majority", waited, need)
		}
		if r.Floor < w.token {
			return fmt.Errorf("the new list's floor is %d, the token %d was given by the old one", r.Floor, w.token)
		}
	}
	for i := range w.places {
		if r := w.places[i].disk.Record; r != nil && r.Epoch > w.current.Epoch() && (first == nil || short(first) != short(r)) {
			return fmt.Errorf("node %s has %s, which was not decided", w.names[i], short(r))
		}
	}
	for i := range w.attempts {
		if a := &w.attempts[i]; a.round.Decided() && (first == nil || short(first) != short(a.round.proposal)) {
			return fmt.Errorf("attempt %d takes %s for decided", i, short(a.round.proposal))
		}
	}
	return nil
}

// next calls f with every world that can follow.
func (w *world) next(f func(*world)) {
	step := func(what func() string, do func(c *world)) {
		c := w.clone()
		c.trail = &trail{w.trail, what}
		do(c)
		f(c)
	}
	send := func(from int, s wire.Step) {
		for i, name := range w.names {
			if s.Node != "" && s.Node != name {
				continue
			}
			step(func() string { return fmt.Sprintf("%s hears %s of %d", name, s.Kind, from) }, func(c *world) { c.deliver(i, from, &s) })
		}
	}
	if w.old != nil {
		send(-1, wire.Step{Kind: wire.Learn, Epoch: w.current.Epoch(), Record: w.current.Record, Links: w.links})
	}
	for i := range w.attempts {
		a := &w.attempts[i]
		send(i, a.ask)
		for _, s := range a.out {
			send(i, s)
		}
		if a.round.Decided() {
			send(i, a.round.Learn())
		}
		if !a.begun && a.round.Promised() {
			step(func() string { return fmt.Sprintf("%d proposes", i) }, func(c *world) {
				a := &c.attempts[i]
				value := a.round.Found()
				if value == nil {
					value = a.want(a.round.Floor())
				}
				if a.out = a.round.Propose(c.now, value); a.out == nil {
					a.round.proposal = nil // it looks again later
					return
				}
				a.begun = true
				maps.DeleteFunc(c.answers, func(_ string, n answer) bool { return n.attempt == i })
			})
		}
	}
	for _, k := range slices.Sorted(maps.Keys(w.answers)) {
		n := w.answers[k]
		step(func() string { return fmt.Sprintf("%d hears %s of %s", n.attempt, n.a.Kind, n.node) }, func(c *world) { c.attempts[n.attempt].round.Hear(c.now, n.node, &n.a) })
	}
	if w.ticks > 0 {
		step(func() string { return "time goes on" }, func(c *world) { c.ticks--; c.now += (maxTTL + maxTTL/50) / 2 })
	}
	for i, name := range w.names {
		if !w.places[i].votes {
			step(func() string { return name + " has waited for long enough" }, func(c *world) { c.places[i].votes, c.places[i].fence = true, 99 })
		}
	}
	if w.mishaps > 0 {
		for i, name := range w.names {
			step(func() string { return name + " loses its directory" }, func(c *world) { c.mishaps--; c.lose(i) })
			step(func() string { return name + " crashes and starts again" }, func(c *world) { c.mishaps--; c.crash(i) })
		}
	}
}

// newWorld has nodes of an old list, of which those in gave gave the fence of a token.
func newWorld(from, to, gave string, ticks, mishaps int, finish ...bool) *world {
	w := &world{
		ticks: ticks, mishaps: mishaps, token: 10, answers: map[string]answer{},
		accepted: map[wire.Ballot]map[string]bool{}, proposed: map[wire.Ballot]*Record{},
	}
	w.old, w.links = simple(from)
	joint := toward(w.old, to)
	w.current = &Current{Cluster: "test", Record: joint, Links: append(slices.Clone(w.links), wire.Link{Epoch: joint.Epoch, Digest: joint.Digest()})}
	w.names = strings.Fields(from)
	for _, n := range strings.Fields(to) {
		if !slices.Contains(w.names, n) {
			w.names = append(w.names, n)
		}
	}
	for _, n := range w.names {
		p := place{disk: State{ID: idOf(n)}, votes: true, joined: -1, fence: 1}
		if slices.Contains(strings.Fields(from), n) {
			p.disk.Record, p.disk.Links = w.old, w.links
		}
		if slices.Contains(strings.Fields(gave), n) {
			p.fence = w.token
		}
		p.acceptor = NewAcceptor("test", n, nil, p.disk, 0)
		w.places = append(w.places, p)
	}
	o := Operator{current: w.current}
	for _, f := range finish {
		w.attempt(o.ending(f))
	}
	return w
}

func (w *world) attempt(want func(uint64) *Record) {
	r := NewRound(w.current, w.ballot(len(w.attempts)))
	w.attempts = append(w.attempts, attempt{round: r, want: want, ask: r.Prepare()})
}

// newFirst has nodes at epoch 0, and attempts that would give each other ids to one of them.
func newFirst(list string, mishaps, attempts int) *world {
	w := &world{mishaps: mishaps, answers: map[string]answer{}, accepted: map[wire.Ballot]map[string]bool{}, proposed: map[wire.Ballot]*Record{}}
	w.names = strings.Fields(list)
	w.current = &Current{Cluster: "test", Base: wire.Config{Nodes: w.names, MaxTTL: maxTTL, Skew: skew}}
	for _, n := range w.names {
		s := State{ID: idOf(n)}
		w.places = append(w.places, place{disk: s, votes: true, joined: -1, acceptor: NewAcceptor("test", n, &w.current.Base, s, 0)})
	}
	for i := range attempts {
		r := &Record{Cluster: "test", CID: idOf(fmt.Sprint("cluster ", i)), Epoch: 1, Prev: w.current.Digest(), Nodes: members(list), MaxTTL: maxTTL, Skew: skew}
		w.attempt(func(uint64) *Record { return r })
	}
	return w
}

// explore goes through all worlds that can follow, and returns how many there are. It fails
// the test if there is one that must not be, and says how it comes about.
func explore(t *testing.T, w *world, most int) int {
	t.Helper()
	seen := map[[16]byte]bool{w.hash(): true}
	queue := []*world{w}
	for len(queue) > 0 {
		w := queue[0]
		queue[0] = nil
		queue = queue[1:]
		w.next(func(c *world) {
			if t.Failed() {
				return
			}
			k := c.hash()
			if seen[k] {
				return
			}
			seen[k] = true
			if err := c.check(); err != nil {
				t.Errorf("%v:\n%s", err, c.trail)
				return
			}
			queue = append(queue, c)
		})
		if t.Failed() {
			return len(seen)
		}
		if len(seen) > most {
			t.Errorf("more than %d worlds", most)
			return len(seen)
		}
	}
	return len(seen)
}

func TestExplore(t *testing.T) {
	for _, c := range []struct {
		from, to, gave string
		ticks, mishaps int
		finish         []bool
		far            bool
	}{
		{"a", "b", "a", 2, 1, []bool{true, false}, false},
		{"a", "a b", "a", 2, 1, []bool{false, true}, false},
		{"a b", "a", "a b", 2, 0, []bool{true, false}, false},
		{"a b", "c", "a b", 2, 1, []bool{true}, false},
		{"a b c", "a", "a b", 2, 0, []bool{true}, false},
		{"a", "b", "a", 2, 2, []bool{true, false}, true},
		{"a b", "a b c", "a b", 2, 1, []bool{true, false}, true},
		{"a b c", "d", "a b", 2, 1, []bool{true}, true},
		{"a b c", "d", "b c", 2, 0, []bool{true, false}, true},
	} {
		if c.far && !*far {
			continue
		}
		t.Run(fmt.Sprintf("%s to %s %v", c.from, c.to, c.finish), func(t *testing.T) {
			n := explore(t, newWorld(c.from, c.to, c.gave, c.ticks, c.mishaps, c.finish...), 10_000_000)
			t.Logf("%d worlds", n)
		})
	}
	for _, c := range []struct {
		list              string
		mishaps, attempts int
		far               bool
	}{
		{"a", 0, 3, false}, // a node that is alone and forgets is a new cluster
		{"a b", 1, 2, false},
		{"a b", 1, 3, true},
		{"a b c", 1, 2, true},
	} {
		if c.far && !*far {
			continue
		}
		t.Run(fmt.Sprintf("first record of %s, %d attempts", c.list, c.attempts), func(t *testing.T) {
			n := explore(t, newFirst(c.list, c.mishaps, c.attempts), 10_000_000)
			t.Logf("%d worlds", n)
		})
	}
}
