package sim

import (
	"cmp"
	"container/heap"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/epoch"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

// A world of epochs changes its list of nodes while clients lock (E1 to E18). Its nodes are
// real ones with disks, and the commands of several operators are real too: they want
// different things, and die. Messages are encoded; they are late, lost and repeated. Nodes
// crash before and after they write, stop, lose their directories, and sleep through epochs.
// Then all is well: one more command must come to its end, and locks must be had by the list
// that it leaves.
//
// Some clients are minimal ones. They have the rules that make counting safe (C1, C3, C7, E15
// to E18) and none that make locking fast, so little hides a fault of the nodes. In most
// worlds there are also clients of production (epochLocker), which lock the same names.
const (
	epochTTL   = 2 * time.Second
	epochSkew  = 500 * time.Millisecond
	epochProbe = 40 * time.Millisecond
	epochWall  = 1_800_000_000_000_000
)

// EpochResult counts what happened in a world of epochs.
type EpochResult struct {
	Decisions, Joint     int // records decided, and of these with two lists
	Held, HeldJoint      int // locks had, and of these by two lists
	Local                int // tokens out of spans
	Lost, Moved, Carried int // held claims lost; clients' moves, and claims held across one
	Crashes, Directories int // directories that were lost
	Retired              int // nodes that learned that they are in no list
	Evicted              int
	Full                 EpochLockers
}

func (r *EpochResult) add(o EpochResult) {
	r.Decisions += o.Decisions
	r.Joint += o.Joint
	r.Held += o.Held
	r.HeldJoint += o.HeldJoint
	r.Local += o.Local
	r.Lost += o.Lost
	r.Moved += o.Moved
	r.Carried += o.Carried
	r.Crashes += o.Crashes
	r.Directories += o.Directories
	r.Retired += o.Retired
	r.Evicted += o.Evicted
	r.Full.add(o.Full)
}

type epochWorld struct {
	rng    *rand.Rand
	now    time.Duration
	todo   epochEvents
	serial int
	ids    int
	trace  io.Writer
	base   wire.Config
	calm   bool
	quiet  bool // no faults: only changes
	split  bool // clients reach some nodes only, each for a while
	slow   bool // clients are slow to move
	deadly bool // operators die soon
	apart  bool // the clocks of nodes are far apart, and fences lie far ahead
	plot   epochPlot
	plots  *rand.Rand
	act    epochAct
	far    bool // clients want tokens that are far ahead
	alone  bool // clients that move to a joint record reach the new nodes only
	// staging is asked before a command sends steps, and takes the matter into its hands.
	staging func(*epochCommand, []wire.Step) bool
	died    time.Duration // when a client of production crashed last; 0: never
	loss    float64
	cuts    map[[2]string]time.Duration
	res     EpochResult
	err     error

	nodes   []*epochNode
	foreign []*epochNode // nodes of another cluster with the same names
	clients []*epochClient
	lockers []*epochLocker
	batches bool // clients of production send what they send at once in one message
	jobs    map[string][]*epochJob
	won     map[*client.Claim]int // by claim: the cluster in which it became held
	ops     []*epochCommand
	names   []string // what is locked

	records map[string]*epoch.Record // by digest: seen at any node
	byEpoch map[uint64]string
	since   map[string]time.Duration // node, its id and digest: since when on disk
	tokens  map[string]*epochTokens
}

type epochTokens struct{ exclusive, any uint64 }

type epochEvent struct {
	at time.Duration
	n  int
	do func()
}

type epochEvents []epochEvent

func (e epochEvents) Len() int { return len(e) }
func (e epochEvents) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(e[i].at, e[j].at), e[i].n-e[j].n) < 0
}
func (e epochEvents) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *epochEvents) Push(x any)   { *e = append(*e, x.(epochEvent)) }
func (e *epochEvents) Pop() any {
	x := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return x
}

func (w *epochWorld) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf("%v: "+format, append([]any{w.now}, args...)...)
		w.tracef("FAILED: %v", w.err)
	}
}

func (w *epochWorld) tracef(format string, args ...any) {
	if w.trace != nil {
		fmt.Fprintf(w.trace, "%10v %s\n", w.now.Round(10*time.Microsecond), fmt.Sprintf(format, args...))
	}
}

func (w *epochWorld) at(d time.Duration, do func()) {
	w.serial++
	heap.Push(&w.todo, epochEvent{w.now + max(d, 0), w.serial, do})
}

func (w *epochWorld) between(a, b time.Duration) time.Duration {
	return a + time.Duration(w.rng.Int64N(int64(b-a)))
}

func (w *epochWorld) id() uuid.UUID {
	w.ids++
	var u uuid.UUID
	for i := range 8 {
		u[i] = byte(w.rng.Uint32())
	}
	u[14], u[15] = byte(w.ids>>8), byte(w.ids)
	return u
}

// send carries a message: mostly once, soon.
func (w *epochWorld) send(from, to string, deliver func()) {
	if w.cuts[[2]string{from, to}] > w.now || !w.calm && w.rng.Float64() < w.loss {
		return
	}
	w.at(w.between(200*time.Microsecond, 4*time.Millisecond), deliver)
	if !w.calm && !w.quiet && w.rng.IntN(40) == 0 {
		w.at(w.between(time.Millisecond, 2*time.Second), deliver)
	}
}

// ask carries a request to all nodes, and their answers to answer.
func (w *epochWorld) ask(from string, r wire.Request, answer func(*wire.Answer)) {
	w.askAll(w.nodes, from, r, answer)
}

func (w *epochWorld) askAll(nodes []*epochNode, from string, r wire.Request, answer func(*wire.Answer)) {
	body := wire.AppendRequest(nil, &r)
	for _, nd := range nodes {
		w.send(from, nd.name, func() {
			got, err := wire.DecodeRequest(r.Verb, r.Client, r.Resource, slices.Clone(body))
			if err != nil {
				w.fail("%s sends %s: %v", from, body, err)
				return
			}
			nd.handle(got, &epochInbox{from, answer})
		})
	}
}

// epochInbox is where answers go. Nodes keep it as text.
type epochInbox struct {
	host   string
	answer func(*wire.Answer)
}

// epochNode is a node: a name, a directory, and a life while it runs.
type epochNode struct {
	w      *epochWorld
	name   string
	told   bool // the list of epoch 0
	offset time.Duration
	disk   epochDisk
	core   *voter.Node // nil: it is down
	mono   time.Duration
	timer  int
	boxes  map[string]*epochInbox
	peers  *[]*epochNode // the nodes of its cluster
	fresh  bool          // its directory was empty when this life began
	voted  bool          // it has voted in this life

	paused  bool
	asleep  time.Duration // since when its monotonic clock stands still, or -1
	backlog []func()
}

type epochDisk struct {
	id      uuid.UUID
	state   []byte
	mark    []byte // nil: none that is clean
	digest  string // in the mark
	longest time.Duration
	runs    []uuid.UUID
	fresh   bool
}

func (nd *epochNode) clock() wire.Now {
	w := nd.w
	mono := w.now
	if nd.asleep >= 0 {
		mono = nd.asleep
	}
	return wire.Now{Mono: mono + nd.mono, Wall: epochWall + (w.now + nd.offset).Microseconds(), Boot: w.now + time.Hour}
}

func (nd *epochNode) read() epoch.State {
	state, err := epoch.DecodeState(nd.disk.id, nd.disk.state)
	if err != nil {
		nd.w.fail("%s: %v", nd.name, err)
	}
	return state
}

func (nd *epochNode) write(s *epoch.State) {
	var err error
	if nd.disk.state, err = s.Encode(); err != nil {
		nd.w.fail("%s: %v", nd.name, err)
	}
	lease := epochTTL
	if s.Record != nil {
		lease = s.Record.Longest()
	}
	nd.disk.longest = max(nd.disk.longest, lease)
}

func (nd *epochNode) start() {
	w := nd.w
	if nd.core != nil {
		return
	}
	nd.mono, nd.boxes = w.between(0, time.Hour), map[string]*epochInbox{}
	state := nd.read()
	cfg := voter.Config{
		Name: nd.name, Config: wire.Config{MaxTTL: epochTTL, Skew: epochSkew}, Cluster: "test", State: state, Fresh: nd.disk.fresh,
		Incarnation: w.id(), ProbeWait: epochProbe, MaxClaims: 100, MaxQueue: 100, FloorKey: w.id(), Floors: 64, Past: nd.disk.runs,
	}
	if nd.told {
		cfg.Config = w.base
	}
	digest := cfg.Config.Digest()
	if state.Record != nil {
		digest = state.Record.Digest()
	}
	var saved *voter.Saved
	if nd.disk.mark != nil && nd.disk.digest == digest {
		saved = new(voter.Saved)
		if err := json.Unmarshal(nd.disk.mark, saved); err != nil {
			w.fail("%s: %v", nd.name, err)
		}
	}
	nd.core = voter.New(cfg, nd.clock(), saved, nd.disk.longest)
	nd.fresh, nd.voted = nd.disk.fresh, false
	nd.disk.mark, nd.disk.fresh = nil, false
	nd.disk.runs = append(nd.disk.runs, cfg.Incarnation)
	nd.disk.longest = max(nd.disk.longest, epochTTL)
	w.tracef("%s starts at epoch %d, %s, with a mark: %v", nd.name, nd.core.Epoch(), nd.core.State(), saved != nil)
	nd.wake()
}

// stop ends a life, with a clean mark or without.
func (nd *epochNode) stop(clean bool) {
	if nd.core == nil {
		return
	}
	nd.w.tracef("%s stops, clean %v", nd.name, clean)
	if clean {
		nd.write(nd.core.Configuration(nd.clock()))
		if saved, ok := nd.core.Save(nd.clock()); ok {
			nd.disk.mark, _ = json.Marshal(saved)
			state := nd.read()
			if nd.disk.digest = nd.w.base.Digest(); state.Record != nil {
				nd.disk.digest = state.Record.Digest()
			} else if !nd.told {
				nd.disk.digest = wire.Config{MaxTTL: epochTTL, Skew: epochSkew}.Digest()
			}
			nd.disk.longest = epochTTL
			if state.Record != nil {
				nd.disk.longest = state.Record.Longest()
			}
		}
	} else {
		nd.w.res.Crashes++
	}
	nd.core, nd.paused, nd.asleep, nd.backlog = nil, false, -1, nil // what it has not read is lost
	nd.timer++
}

// do calls f now, or when a node goes on that stands still.
func (nd *epochNode) do(f func()) {
	if nd.paused {
		nd.backlog = append(nd.backlog, f)
		return
	}
	f()
}

// pause makes the node's process, or its whole machine, stand still for a while.
func (nd *epochNode) pause(d time.Duration, machine bool) {
	if nd.core == nil || nd.paused {
		return
	}
	nd.w.tracef("%s stands still for %v, its machine sleeps: %v", nd.name, d, machine)
	nd.paused = true
	if machine {
		nd.asleep = nd.w.now
	}
	core := nd.core
	nd.w.at(d, func() {
		if nd.core == core {
			nd.resume()
		}
	})
}

func (nd *epochNode) resume() {
	if !nd.paused {
		return
	}
	nd.w.tracef("%s goes on", nd.name)
	nd.paused = false
	nd.voted = true // or another node of its name did meanwhile (N9)
	if nd.asleep >= 0 {
		nd.mono -= nd.w.now - nd.asleep
		nd.asleep = -1
	}
	backlog := nd.backlog
	nd.backlog = nil
	for _, f := range backlog {
		nd.do(f)
	}
	if nd.core != nil {
		nd.wake()
	}
}

// restore replaces the directory by a copy of what it was. The copy has another id, and its
// mark is void.
func (nd *epochNode) restore(disk epochDisk) {
	w := nd.w
	nd.stop(false)
	w.res.Directories++
	nd.disk = disk
	state := nd.read()
	nd.disk.id, nd.disk.mark, nd.disk.runs = w.id(), nil, slices.Clone(disk.runs)
	nd.write(&epoch.State{ID: nd.disk.id, Record: state.Record, Links: state.Links})
	w.tracef("%s has a copy of its directory of before, with epoch %d", nd.name, state.Epoch())
}

// lose replaces the directory by an empty one.
func (nd *epochNode) lose() {
	w := nd.w
	nd.stop(false)
	w.res.Directories++
	if state := nd.read(); state.Record != nil {
		nd.told = nd.told && w.rng.IntN(2) == 0 // or started as before, with the list of then
	}
	nd.disk = epochDisk{id: w.id(), fresh: true}
	w.tracef("%s has lost its directory", nd.name)
}

func (nd *epochNode) wake() {
	nd.timer++
	timer := nd.timer
	nd.w.at(nd.core.Deadline()-nd.clock().Mono+nd.w.between(0, time.Millisecond), func() {
		nd.do(func() {
			if nd.timer == timer && nd.core != nil {
				nd.step(func(out *voter.Out) { nd.core.Tick(nd.clock(), out) })
			}
		})
	})
}

// step is one step of a node, as its driver does it.
func (nd *epochNode) step(do func(*voter.Out)) {
	w, core := nd.w, nd.core
	var out voter.Out
	before := core.State()
	epochBefore := core.Epoch()
	do(&out)
	if out.Write != nil {
		odds := 60
		if w.calm || w.quiet || w.plot == staged {
			odds = 0
		}
		if odds > 0 && w.rng.IntN(odds) == 0 {
			nd.stop(false) // before it writes
			w.at(w.between(0, time.Second), nd.start)
			return
		}
		nd.write(out.Write)
		state := nd.read()
		if state.Epoch() > epochBefore {
			w.learned(nd, state.Record)
		}
		if odds > 0 && w.rng.IntN(odds) == 0 {
			nd.stop(false) // before it answers
			w.at(w.between(0, time.Second), nd.start)
			return
		}
		core.Written(nd.clock(), &out)
	}
	after := core.State()
	if nd.voted = nd.voted || after == wire.Voting; before == wire.Joining && after == wire.Recovering && nd.fresh && !nd.voted {
		w.fail("%s has joined, its directory never voted, and it has a wait before it", nd.name)
	}
	if after != before {
		w.tracef("%s is %s", nd.name, after)
		if after == wire.Retired {
			w.res.Retired++
		}
	}
	for _, note := range out.Notes {
		w.tracef("%s: %s", nd.name, note)
	}
	for i := range out.Answers {
		box := nd.boxes[out.Answers[i].To]
		if box == nil {
			continue
		}
		body := wire.AppendAnswer(nil, &out.Answers[i].Answer)
		w.send(nd.name, box.host, func() {
			a, err := wire.DecodeAnswer(slices.Clone(body))
			if err != nil {
				w.fail("%s answers %s: %v", nd.name, body, err)
				return
			}
			box.answer(a)
		})
	}
	for _, q := range []*wire.Request{out.Probe, out.Ask, out.Survey} {
		if q != nil {
			w.askAll(*nd.peers, nd.name, *q, func(a *wire.Answer) {
				nd.do(func() {
					if nd.core == core {
						nd.step(func(out *voter.Out) { core.HandleAnswer(nd.clock(), a, out) })
					}
				})
			})
		}
	}
	nd.wake()
}

func (nd *epochNode) handle(r *wire.Request, box *epochInbox) {
	if nd.core == nil {
		return
	}
	if nd.paused {
		nd.backlog = append(nd.backlog, func() { nd.handle(r, box) })
		return
	}
	reply := box.host
	if r.Verb == wire.Info || r.Verb == wire.Configure || r.Verb == wire.Evict {
		reply += "/" + r.Nonce
	}
	nd.boxes[reply] = box
	nd.step(func(out *voter.Out) { nd.core.Handle(nd.clock(), r, reply, out) })
	if strings.Contains(reply, "/") && r.Over == nil && r.Recalled == nil {
		delete(nd.boxes, reply)
	}
}

// learned looks at a record that a node has from now on.
func (w *epochWorld) learned(nd *epochNode, r *epoch.Record) {
	d := r.Digest()
	w.tracef("%s has epoch %d: %s", nd.name, r.Epoch, shortRecord(r))
	w.since[nd.name+nd.disk.id.String()+d] = w.now
	if other, ok := w.byEpoch[r.Epoch]; ok {
		if other != d {
			w.fail("two records of epoch %d: %s and %s", r.Epoch, shortRecord(w.records[other]), shortRecord(r))
		}
		return
	}
	w.byEpoch[r.Epoch], w.records[d] = d, r
	if w.res.Decisions++; r.Joint() {
		w.res.Joint++
	}
	before := w.records[r.Prev]
	switch {
	case r.Epoch == 1:
		if err := epoch.Begins("test", w.base, r); err != nil {
			w.fail("epoch 1: %v", err)
		}
	case before == nil:
		w.fail("%s follows a record that nobody has", shortRecord(r))
	default:
		if err := epoch.Follows(before, r); err != nil {
			w.fail("%s follows %s: %v", shortRecord(r), shortRecord(before), err)
		}
		if !epoch.Finishes(before, r) {
			return
		}
		n := 0
		for _, o := range before.Nodes {
			if at, ok := w.since[o.Name+o.ID.String()+r.Prev]; ok && w.now-at >= before.Longest()+before.Longest()/50 {
				n++
			}
		}
		if n < quorum.Size(len(before.Nodes), quorum.Exclusive) {
			w.fail("%s follows %s when %d nodes had waited", shortRecord(r), shortRecord(before), n)
		}
	}
}

func shortRecord(r *epoch.Record) string {
	list := func(l []wire.Member) (out []string) {
		for _, m := range l {
			out = append(out, fmt.Sprintf("%s(%.4s)", m.Name, m.ID))
		}
		return out
	}
	s := fmt.Sprintf("%v %v", list(r.Nodes), r.MaxTTL)
	if r.Joint() {
		s += fmt.Sprintf(" to %v %v", list(r.Next), r.NextMaxTTL)
	}
	return fmt.Sprintf("%s floor +%v", s, time.Duration(int64(r.Floor)-epochWall)*time.Microsecond)
}

// epochClient is a client with one claim at a time.
type epochClient struct {
	w            *epochWorld
	name         string
	life         int
	mono, offset time.Duration
	instance     uuid.UUID
	seq          uint64
	asleep       bool

	record *epoch.Record // nil: at epoch 0
	links  []wire.Link
	digest string
	lease  time.Duration // never raised (E18)

	surveyed time.Duration
	nonce    string
	serial   int
	asked    map[string]bool // digests that were asked about
	shown    map[string]*wire.NodeConfig

	claim *epochClaim
	over  map[uint64]string // what its earlier claims were for
}

type epochClaim struct {
	c     *epochClient
	id    wire.ClaimID
	name  string
	mode  quorum.Mode
	at    int64
	ttl   time.Duration
	want  uint64
	span  uint64
	votes map[string]epochVote
	since uint64            // beat: nothing older counts, by E17
	gave  map[string]uint64 // beat of the last yield to a node
	next  time.Duration     // when it asks again
	beat  uint64

	held  bool
	token uint64
	stock uint64 // tokens of the span that are left
	grace time.Duration
	until time.Duration // when it is released
}

type epochVote struct {
	fence, span, beat uint64
	until             time.Duration
}

func (c *epochClient) time() time.Duration { return c.w.now + c.mono }

func (c *epochClient) wall() int64 { return epochWall + (c.w.now + c.offset).Microseconds() }

func (c *epochClient) start() {
	w := c.w
	c.life++
	c.mono, c.instance, c.seq, c.claim = w.between(time.Hour, 2*time.Hour), w.id(), 0, nil
	c.record, c.links, c.digest = nil, []wire.Link{{Epoch: 0, Digest: w.base.Digest()}}, w.base.Digest()
	c.lease = w.between(epochTTL/4, epochTTL).Truncate(time.Millisecond)
	c.over = map[uint64]string{}
	c.asked, c.shown, c.surveyed = map[string]bool{}, map[string]*wire.NodeConfig{}, 0
	c.tick(c.life)
}

// in gives the lists of the client's record that a node is in. The name is enough: nodes that
// have another id do not answer under this digest.
func (c *epochClient) in(node string) (in quorum.In) {
	if c.record == nil {
		if slices.Contains(c.w.base.Nodes, node) {
			in = quorum.InNodes
		}
		return in
	}
	for _, m := range c.record.Nodes {
		if m.Name == node {
			in |= quorum.InNodes
		}
	}
	for _, m := range c.record.Next {
		if m.Name == node {
			in |= quorum.InNext
		}
	}
	return in
}

func (c *epochClient) need(m quorum.Mode) quorum.Joint {
	if c.record == nil {
		return quorum.JointSize(len(c.w.base.Nodes), 0, m)
	}
	return quorum.JointSize(len(c.record.Nodes), len(c.record.Next), m)
}

// valid returns the claim's votes that stand at a time.
func (k *epochClaim) valid(now time.Duration) (all []quorum.JointVote) {
	for _, node := range slices.Sorted(maps.Keys(k.votes)) {
		if v := k.votes[node]; v.until > now {
			all = append(all, quorum.JointVote{Fence: v.fence, In: k.c.in(node)})
		}
	}
	return all
}

// stands reports whether the client holds the lock at a time.
func (k *epochClaim) stands(now time.Duration) bool {
	if !k.held {
		return false
	}
	if now < k.grace {
		return true
	}
	won, _ := quorum.HeldJoint(k.valid(now), k.c.need(k.mode), k.token)
	return won == quorum.Won
}

// lostAt is when a held claim is lost if nothing more is heard.
func (k *epochClaim) lostAt() time.Duration {
	ends := []time.Duration{k.grace}
	for _, v := range k.votes {
		ends = append(ends, v.until)
	}
	slices.Sort(ends)
	for _, end := range ends {
		if !k.stands(end) {
			return end
		}
	}
	return k.grace
}

func (c *epochClient) tick(life int) {
	w := c.w
	if c.life != life {
		return
	}
	w.at(w.between(20*time.Millisecond, 60*time.Millisecond), func() { c.tick(life) })
	if c.asleep {
		return
	}
	now := c.time()
	k := c.claim
	if k == nil {
		if w.rng.IntN(4) == 0 {
			c.lock()
		}
		return
	}
	switch {
	case k.held && !k.stands(now):
		w.res.Lost++
		w.tracef("%s has lost %s", c.name, k.name)
		w.lostFor(c.name, k.name)
		c.release()
	case now >= k.until:
		c.release()
	case k.held && k.stock > 0 && w.rng.IntN(3) == 0:
		k.stock--
		k.token++
		w.res.Local++
		w.use(c, k)
	case now >= k.next:
		c.acquire(k, "")
	}
}

// lostFor is called when a lock is lost that was not evicted. Without faults that must not be. But
// a client that dies while it waits keeps its votes until its lease ends, and if that is in a move,
// the holder may get too few votes of the new nodes until then (E17).
func (w *epochWorld) lostFor(who, name string) {
	if w.quiet && (w.died == 0 || w.now > w.died+epochTTL+epochTTL/20) {
		w.fail("%s has lost %s, and there are no faults", who, name)
	}
}

func (c *epochClient) lock() {
	w := c.w
	c.seq++
	k := &epochClaim{
		c: c, id: wire.ClaimID{Instance: c.instance, Seq: c.seq}, name: w.names[w.rng.IntN(len(w.names))], at: c.wall(), ttl: c.lease,
		votes: map[string]epochVote{}, gave: map[string]uint64{}, until: c.time() + w.between(time.Second, 6*time.Second),
	}
	if w.apart && w.rng.IntN(3) == 0 {
		k.want = uint64(k.at + w.between(0, 4*epochTTL).Microseconds())
	}
	if w.far {
		k.want = uint64(k.at + (farSpread + epochTTL/2).Microseconds())
	}
	switch w.rng.IntN(4) {
	case 0:
		k.mode = quorum.Shared
	case 1:
		k.span = 1 + w.rng.Uint64N(8)
	}
	c.claim = k
	c.acquire(k, "")
}

// acquire asks for the claim, or for what it has to go on.
func (c *epochClient) acquire(k *epochClaim, node string) {
	k.beat = max(k.beat+1, uint64(c.time().Microseconds()))
	if node == "" {
		k.next = c.time() + k.ttl/3
	}
	r := wire.Request{
		Verb: wire.Acquire, Client: c.name, Resource: k.name, Claim: k.id, SentAt: k.beat, Mode: k.mode, At: k.at, TTL: k.ttl,
		MinFence: max(k.want, k.token), Held: k.held, Digest: c.digest, Node: node,
	}
	if k.span > 0 {
		r.Keep, r.RangeSize = true, k.span
	}
	c.publish(r)
}

func (c *epochClient) publish(r wire.Request) {
	life := c.life
	c.w.ask(c.name, r, func(a *wire.Answer) {
		if c.life == life && !c.asleep {
			c.hear(a)
		}
	})
}

func (c *epochClient) release() {
	k := c.claim
	c.claim, c.over[k.id.Seq] = nil, k.name
	c.publish(wire.Request{Verb: wire.Release, Client: c.name, Resource: k.name, Claim: k.id, Now: c.wall()})
}

func (c *epochClient) hear(a *wire.Answer) {
	if a.Kind == wire.Informed {
		if !c.w.slow || c.w.calm || c.w.rng.IntN(4) == 0 {
			c.survey(a)
		}
		return
	}
	if a.Digest != c.digest {
		c.other(a.Digest)
		return
	}
	k := c.claim
	if a.Claim.Instance != c.instance || c.in(a.Node) == 0 {
		return
	}
	if k == nil || a.Claim != k.id {
		if a.Kind == wire.Recall { // its release came before its last acquire
			c.publish(wire.Request{Verb: wire.Release, Client: c.name, Resource: c.over[a.Claim.Seq], Claim: a.Claim, Now: c.wall()})
		}
		return
	}
	switch a.Kind {
	case wire.Granted:
		if a.SentAt < k.since || a.SentAt < k.gave[a.Node] || a.SentAt < k.votes[a.Node].beat || a.SentAt > k.beat {
			return
		}
		k.votes[a.Node] = epochVote{
			fence: a.Fence, span: max(a.RangeSize, 1), beat: a.SentAt,
			until: time.Duration(a.SentAt)*time.Microsecond + k.ttl - wire.Margin(k.ttl),
		}
		c.judge(k)
	case wire.Queued:
		// At one beat a vote comes after the place in the queue, whatever comes first here.
		if a.SentAt > k.votes[a.Node].beat {
			delete(k.votes, a.Node)
		}
	case wire.Recall:
		if a.Behind {
			return
		}
		if k.held {
			c.acquire(k, a.Node)
			return
		}
		delete(k.votes, a.Node)
		k.beat = max(k.beat+1, uint64(c.time().Microseconds()))
		k.gave[a.Node] = k.beat
		c.publish(wire.Request{Verb: wire.Yield, Client: c.name, Resource: k.name, Claim: k.id, SentAt: k.beat, Node: a.Node})
	case wire.Evicted:
		c.w.res.Evicted++
		c.release()
	}
}

// judge looks whether a claim is held now (E15).
func (c *epochClient) judge(k *epochClaim) {
	if k.held {
		return
	}
	now := c.time()
	outcome, fence := quorum.TallyJoint(k.valid(now), c.need(k.mode))
	switch outcome {
	case quorum.Won:
		k.held, k.token = true, fence
		k.stock = c.spanOf(k, now)
		k.until = now + c.w.between(100*time.Millisecond, 5*time.Second)
		if c.w.res.Held++; c.record != nil && c.record.Joint() {
			c.w.res.HeldJoint++
		}
		c.w.use(c, k)
	case quorum.Split:
		if fence > k.want {
			k.want = fence
			c.acquire(k, "")
		}
	}
}

// spanOf is how many fences after the first one the claim has at quorums.
func (c *epochClient) spanOf(k *epochClaim, now time.Duration) (more uint64) {
	for {
		var count quorum.Count
		for node, v := range k.votes {
			if v.until > now && v.fence == k.token && v.span > more+1 {
				count.Add(c.in(node))
			}
		}
		if k.mode != quorum.Exclusive || !c.need(k.mode).Met(count) {
			return more
		}
		more++
	}
}

// other notes a digest that is not the client's (E16).
func (c *epochClient) other(digest string) {
	now := c.time()
	if digest == "" || c.asked[digest] && now-c.surveyed < min(time.Second, c.lease/10) {
		return
	}
	c.asked[digest] = true
	c.ask()
}

func (c *epochClient) ask() {
	c.surveyed = c.time()
	c.serial++
	c.nonce, c.shown = fmt.Sprint("s", c.serial), map[string]*wire.NodeConfig{}
	c.publish(wire.Request{Verb: wire.Info, Client: c.name, Nonce: c.nonce, ShowConfig: true, Epoch: c.epoch()})
}

func (c *epochClient) epoch() uint64 {
	if c.record == nil {
		return 0
	}
	return c.record.Epoch
}

// survey takes a later record of this history that a majority of its own nodes show (E16).
func (c *epochClient) survey(a *wire.Answer) {
	if a.Info.Nonce != c.nonce || a.Info.Config == nil {
		return
	}
	c.shown[a.Node] = a.Info.Config
	r := a.Info.Config.Record
	if r == nil || r.Epoch <= c.epoch() || !slices.Contains(a.Info.Config.Links, wire.Link{Epoch: c.epoch(), Digest: c.digest}) {
		return
	}
	n := 0
	for _, m := range r.Nodes {
		if s := c.shown[m.Name]; s != nil && s.ID == m.ID && s.Record != nil && s.Record.Digest() == r.Digest() {
			n++
		}
	}
	if n >= quorum.Size(len(r.Nodes), quorum.Exclusive) {
		c.move(r, a.Info.Config.Links)
	}
}

// move goes by a new record (E17, E18).
func (c *epochClient) move(r *epoch.Record, links []wire.Link) {
	c.w.res.Moved++
	k := c.claim
	if k != nil && k.stands(c.time()) {
		k.grace = k.lostAt()
		c.w.res.Carried++
		c.w.tracef("%s has %s until %v at least", c.name, k.name, k.grace-c.mono)
	}
	c.record, c.links, c.digest = r, links, r.Digest()
	c.lease = min(c.lease, r.Lease())
	c.w.tracef("%s goes by epoch %d", c.name, r.Epoch)
	c.w.movesAlone(c.name, r)
	if k == nil {
		return
	}
	clear(k.votes)
	k.since, k.ttl = max(k.beat+1, uint64(c.time().Microseconds())), min(k.ttl, c.lease)
	k.want = 0
	k.beat = k.since
	c.acquire(k, "")
}

// use is a use of a lock with a token.
func (w *epochWorld) use(c *epochClient, k *epochClaim) {
	w.tracef("%s holds %s (%s) with token +%v at epoch %d", c.name, k.name, k.mode, time.Duration(int64(k.token)-epochWall)*time.Microsecond, c.epoch())
	w.checkAlone(k, fmt.Sprintf("%s at epoch %d", c.name, c.epoch()), k.name, k.mode, 0)
	w.checkToken(c.name, k.name, k.mode, k.token)
}

// checkAlone looks whether anybody else has what its new holder has.
func (w *epochWorld) checkAlone(new any, who, name string, mode quorum.Mode, side int) {
	for _, o := range w.clients {
		if k := o.claim; k != nil && new != any(k) && side == 0 && k.name == name && quorum.Conflicts(k.mode, mode) && k.stands(o.time()) {
			w.fail("%s holds %s, and %s at epoch %d", who, name, o.name, o.epoch())
		}
	}
	for _, j := range w.jobs[name] {
		if new != any(j) && j.holds() && j.side == side && quorum.Conflicts(j.mode, mode) {
			w.fail("%s holds %s, and %s at epoch %d", who, name, j.locker.name, j.locker.epoch())
		}
	}
}

func (w *epochWorld) checkToken(who, name string, mode quorum.Mode, token uint64) {
	t := w.tokens[name]
	if token < t.exclusive || mode == quorum.Exclusive && token <= t.any {
		w.fail("%s has token %d of %s (%s) after %d, exclusive %d", who, token, name, mode, t.any, t.exclusive)
	}
	t.any = max(t.any, token)
	if mode == quorum.Exclusive {
		t.exclusive = max(t.exclusive, token)
	}
}

// epochCommand is a run of an operator's command.
type epochCommand struct {
	w     *epochWorld
	name  string
	o     *epoch.Operator
	dead  bool
	timer int
	nonce int
	err   error
}

func (w *epochWorld) operate(wish epoch.Wish) *epochCommand {
	wish.CID = w.id()
	x := &epochCommand{w: w, name: fmt.Sprint("op", len(w.ops)), o: epoch.NewOperator("test", wish, w.id())}
	w.tracef("%s: goal %v, nodes %v, lease %v", x.name, wish.Goal, wish.Nodes, wish.MaxTTL)
	w.ops = append(w.ops, x)
	x.step(func(want *epoch.Want) { x.o.Tick(w.now, want) })
	return x
}

func (x *epochCommand) step(f func(*epoch.Want)) {
	w := x.w
	if x.dead {
		return
	}
	var want epoch.Want
	f(&want)
	if want.Note != "" {
		w.tracef("%s: %s", x.name, want.Note)
	}
	if want.Done {
		x.err = want.Err
		w.tracef("%s is done: %v", x.name, want.Err)
	}
	if want.Ask != "" {
		w.ask(x.name, wire.Request{Verb: wire.Info, Client: "admin", Nonce: want.Ask, ShowConfig: true}, x.hear)
	}
	if len(want.Steps) > 0 && w.hushed(x, want.Steps) {
		return
	}
	for i := range want.Steps {
		if w.plot == hush && !w.calm && want.Steps[i].Kind == wire.Accept && w.plots.IntN(2) == 0 {
			continue
		}
		x.nonce++
		w.ask(x.name, wire.Request{Verb: wire.Configure, Client: "admin", Nonce: fmt.Sprint(x.nonce), Step: &want.Steps[i]}, x.hear)
	}
	mortality := 150
	if w.deadly {
		mortality = 15
	}
	if !w.calm && !w.quiet && w.plot != staged && w.rng.IntN(mortality) == 0 {
		w.tracef("%s dies", x.name)
		x.dead = true
	}
	if x.o.Ended() {
		x.dead = true
		return
	}
	x.timer++
	timer := x.timer
	w.at(max(x.o.Deadline()-w.now, time.Millisecond), func() {
		if x.timer == timer {
			x.step(func(want *epoch.Want) { x.o.Tick(w.now, want) })
		}
	})
}

func (x *epochCommand) hear(a *wire.Answer) {
	x.step(func(want *epoch.Want) {
		switch {
		case a.Kind == wire.Configured:
			x.o.Hear(x.w.now, a.Node, a.Step, want)
		case a.Kind == wire.Informed && a.Info.Config != nil:
			c := a.Info.Config
			x.o.Show(x.w.now, a.Info.Nonce, epoch.Shown{
				Node: a.Node, ID: c.ID, Record: c.Record, Links: c.Links, Joining: c.Joining, Had: c.Had, Votes: a.Info.State == wire.Voting, Recovering: a.Recovering,
				Base: wire.Config{Nodes: a.Info.Nodes, MaxTTL: a.Info.MaxTTL, Skew: a.Info.Skew},
			}, want)
		}
	})
}

// play has something happen now and then.
func (w *epochWorld) play() {
	if w.calm {
		return
	}
	w.at(w.between(0, 1200*time.Millisecond), w.play)
	if w.split {
		w.cutClient()
	}
	if len(w.lockers) > 0 {
		w.playLocker()
	}
	if w.plot == shadows && w.plots.IntN(3) == 0 {
		w.strike()
		return
	}
	nd := w.nodes[w.rng.IntN(len(w.nodes))]
	kind := w.rng.IntN(19)
	if w.quiet && kind >= 5 {
		kind = 16 + w.rng.IntN(2)
	}
	switch kind {
	case 0, 1:
		if w.quiet && slices.ContainsFunc(w.ops, func(x *epochCommand) bool { return !x.dead }) {
			return
		}
		wish := epoch.Wish{Goal: epoch.Change, Nodes: w.list(), StayJoint: w.rng.IntN(3) == 0, MostOfNext: w.rng.IntN(2) == 0}
		wish.Hurry = !w.quiet && w.rng.IntN(2) == 0
		if w.rng.IntN(3) == 0 {
			wish.MaxTTL = []time.Duration{epochTTL / 2, epochTTL, 2 * epochTTL}[w.rng.IntN(3)]
			wish.Skew = min(epochSkew, wish.MaxTTL)
		}
		w.operate(wish)
	case 2:
		w.operate(epoch.Wish{Goal: epoch.Finish, MostOfNext: true})
	case 3:
		w.operate(epoch.Wish{Goal: epoch.RollBack})
	case 4:
		w.evict()
	case 5, 6, 7:
		nd.stop(w.rng.IntN(2) == 0)
		away := w.between(0, 3*time.Second)
		if w.rng.IntN(6) == 0 {
			away = w.between(0, 20*time.Second) // it misses epochs
		}
		w.at(away, nd.start)
	case 8:
		if w.rng.IntN(3) == 0 && w.healthy(nd) {
			nd.lose()
			w.at(w.between(0, 2*time.Second), nd.start)
		}
	case 9:
		c := w.clients[w.rng.IntN(len(w.clients))]
		c.asleep = true
		away := w.between(0, 2*time.Second)
		if w.rng.IntN(4) == 0 {
			away = w.between(0, 15*time.Second)
		}
		w.at(away, func() { c.asleep = false })
	case 10:
		w.clients[w.rng.IntN(len(w.clients))].start()
	case 11:
		w.cut()
	case 12:
		w.strike()
	case 17: // a node that is in no list crashes, and is named soon
		w.nameAgain(nd)
	case 13:
		nd.pause(w.between(0, 2*epochTTL), w.rng.IntN(2) == 0)
	case 14: // all nodes restart
		for _, nd := range w.nodes {
			nd.stop(w.rng.IntN(2) == 0)
			w.at(w.between(0, time.Second), nd.start)
		}
	case 15: // a copy of a directory is started when the first one is gone
		if w.rng.IntN(2) == 0 || !w.healthy(nd) {
			return
		}
		disk := nd.disk
		w.at(w.between(0, 10*time.Second), func() {
			if !w.calm && w.healthy(nd) {
				nd.restore(disk)
				w.at(w.between(0, time.Second), nd.start)
			}
		})
	default:
		if w.byEpoch[1] == "" {
			w.operate(epoch.Wish{Goal: epoch.Enable})
		}
	}
}

// cut cuts some hosts off from the rest for a while.
func (w *epochWorld) cut() {
	var all []string
	for _, nd := range w.nodes {
		all = append(all, nd.name)
	}
	all = append(all, w.hosts()...)
	side := map[string]bool{}
	for _, h := range all {
		side[h] = w.rng.IntN(3) == 0
	}
	until := w.now + w.between(0, 4*time.Second)
	for _, a := range all {
		for _, b := range all {
			if side[a] != side[b] {
				w.cuts[[2]string{a, b}] = until
			}
		}
	}
}

// nameAgain restarts a node that has left the list, without a clean mark, and adds it to the
// list. While it may have forgotten votes, nobody must need its vote (E11).
func (w *epochWorld) nameAgain(nd *epochNode) {
	last := w.last()
	if last == nil || last.Joint() || nd.core == nil || nd.core.State() != wire.Retired ||
		slices.ContainsFunc(w.nodes, func(o *epochNode) bool {
			return epoch.In(last, o.name, o.disk.id) != 0 && (o.core == nil || o.core.Epoch() != last.Epoch)
		}) ||
		slices.ContainsFunc(w.ops, func(x *epochCommand) bool { return !x.dead }) {
		return
	}
	nd.stop(false)
	nd.start()
	to := []string{nd.name}
	for _, m := range last.Nodes {
		if m.Name != nd.name && w.rng.IntN(2) == 0 {
			to = append(to, m.Name)
		}
	}
	slices.Sort(to)
	w.operate(epoch.Wish{Goal: epoch.Change, Nodes: to})
}

// last is the latest record that any node has had.
func (w *epochWorld) last() (last *epoch.Record) {
	for _, r := range w.records {
		if last == nil || r.Epoch > last.Epoch {
			last = r
		}
	}
	return last
}

// strike replaces all nodes at once, by the only command there is, while a holder hears
// nothing of it: the new nodes know of that lock only what the change brings them.
func (w *epochWorld) strike() {
	last := w.last()
	if last == nil || last.Joint() {
		return
	}
	var to []string
	for _, nd := range w.nodes {
		if nd.core != nil && nd.core.State() != wire.Stopped && epoch.In(last, nd.name, nd.disk.id) == 0 && (nd.core.Epoch() > 0 || nd.core.State() == wire.Joining) {
			to = append(to, nd.name)
		}
	}
	if len(to) == 0 {
		return
	}
	for _, x := range w.ops {
		x.dead = true
	}
	for _, c := range w.clients {
		if k := c.claim; k != nil && k.held && w.rng.IntN(2) == 0 {
			k.until = max(k.until, c.time()+2*epochTTL)
			w.cutOff(c.name, w.now+2*epochTTL)
		}
	}
	for _, l := range w.lockers {
		if l.keepOn(w.now+2*epochTTL) && w.rng.IntN(2) == 0 {
			w.cutOff(l.name, w.now+2*epochTTL)
		}
	}
	w.operate(epoch.Wish{Goal: epoch.Change, Nodes: to[:1+w.rng.IntN(min(len(to), 2))], Hurry: true})
}

// cutClient cuts a client off from some nodes, mostly for longer than a lease.
func (w *epochWorld) cutClient() {
	hosts := w.hosts()
	host := hosts[w.rng.IntN(len(hosts))]
	until := w.now + w.between(0, 3*epochTTL)
	for _, nd := range w.nodes {
		if w.rng.IntN(2) == 0 {
			w.cuts[[2]string{host, nd.name}], w.cuts[[2]string{nd.name, host}] = until, until
		}
	}
}

// cutOff cuts a client off from all nodes.
func (w *epochWorld) cutOff(host string, until time.Duration) {
	for _, nd := range w.nodes {
		w.cuts[[2]string{host, nd.name}], w.cuts[[2]string{nd.name, host}] = until, until
	}
}

// hosts lists the clients of both kinds.
func (w *epochWorld) hosts() (all []string) {
	for _, c := range w.clients {
		all = append(all, c.name)
	}
	for _, l := range w.lockers {
		all = append(all, l.name)
	}
	return all
}

// evict ends a claim of somebody.
func (w *epochWorld) evict() {
	c := w.clients[w.rng.IntN(len(w.clients))]
	if k := c.claim; k != nil {
		w.tracef("%s is evicted from %s", c.name, k.name)
		w.ask("ops", wire.Request{Verb: wire.Evict, Client: "ops", Resource: k.name, Nonce: "e", Holder: c.name, Claim: k.id}, func(*wire.Answer) {})
	}
}

func (w *epochWorld) list() []string {
	var out []string
	for _, i := range w.rng.Perm(len(w.nodes))[:1+w.rng.IntN(4)] {
		out = append(out, w.nodes[i].name)
	}
	slices.Sort(out)
	return out
}

// healthy reports whether the cluster goes on without the directory of nd: a majority of each
// list that it has had have theirs.
func (w *epochWorld) healthy(nd *epochNode) bool {
	if slices.Contains(w.base.Nodes, nd.name) && !nd.told {
		return false // lost before
	}
	for _, r := range w.records {
		for _, list := range [][]wire.Member{r.Nodes, r.Next} {
			n := 0
			for _, m := range list {
				for _, x := range w.nodes {
					if x != nd && x.name == m.Name && x.disk.id == m.ID {
						n++
					}
				}
			}
			if len(list) > 0 && n < quorum.Size(len(list), quorum.Exclusive) {
				return false
			}
		}
	}
	return len(w.records) > 0
}

func (w *epochWorld) until(end time.Duration) {
	for len(w.todo) > 0 && w.todo[0].at <= end && w.err == nil {
		e := heap.Pop(&w.todo).(epochEvent)
		w.now = e.at
		e.do()
	}
	w.now = end
}

// await runs the world until something is so, for a while at most.
func (w *epochWorld) await(most time.Duration, done func() bool) bool {
	for end := w.now + most; w.now < end && w.err == nil && !done(); {
		w.until(w.now + 200*time.Millisecond)
	}
	return done()
}

func newEpochWorld(seed uint64, trace io.Writer) *epochWorld {
	w := &epochWorld{
		rng: rand.New(rand.NewPCG(seed, 13)), trace: trace, cuts: map[[2]string]time.Duration{}, since: map[string]time.Duration{},
		jobs: map[string][]*epochJob{}, won: map[*client.Claim]int{},
		records: map[string]*epoch.Record{}, byEpoch: map[uint64]string{}, tokens: map[string]*epochTokens{}, now: time.Second,
	}
	w.loss = []float64{0, 0.02, 0.1}[w.rng.IntN(3)]
	w.plot, w.plots = newEpochPlot(seed)
	if w.quiet = w.rng.IntN(4) == 0 && w.plot == noPlot; w.quiet {
		w.loss = 0
	}
	w.deadly = !w.quiet && w.rng.IntN(4) == 0
	if w.plot == staged {
		w.loss, w.act = 0, epochAct(w.plots.IntN(int(epochActs)))
	}
	w.split, w.slow = !w.quiet && w.rng.IntN(2) == 0, !w.quiet && w.plot != staged && w.rng.IntN(3) == 0
	all := strings.Fields("a b c d e f")
	w.base = wire.Config{Nodes: all[:1+w.rng.IntN(4)], MaxTTL: epochTTL, Skew: epochSkew}
	spread := []time.Duration{time.Millisecond, 100 * time.Millisecond, 400 * time.Millisecond}[w.rng.IntN(3)]
	if w.apart = w.plot == shadows || w.plot != staged && !w.quiet && w.rng.IntN(3) == 0; w.apart {
		spread = 3 * epochTTL
	}
	for i, name := range all {
		nd := &epochNode{w: w, name: name, told: i < len(w.base.Nodes), offset: w.offsetOf(i, w.between(0, spread)), disk: epochDisk{id: w.id(), fresh: true}, peers: &w.nodes, asleep: -1}
		if nd.told { // bootstrapped
			nd.disk.mark, _ = json.Marshal(&voter.Saved{})
			nd.disk.digest, nd.disk.fresh = w.base.Digest(), false
		}
		w.nodes = append(w.nodes, nd)
		nd.start()
	}
	for i := range 1 + w.rng.IntN(2) {
		name := fmt.Sprint("r", i)
		w.names = append(w.names, name)
		w.tokens[name] = &epochTokens{}
	}
	minimal, lockers := 5, 0
	if seed%3 > 0 {
		minimal, lockers = 2, 2+w.rng.IntN(3)
	}
	for i := range minimal {
		c := &epochClient{w: w, name: fmt.Sprint("c", i), offset: w.between(0, min(spread, epochSkew))}
		w.clients = append(w.clients, c)
		c.start()
	}
	w.newLockers(lockers, min(spread, epochSkew))
	return w
}

var errEpochs = errors.New("sim: world of epochs")

// RunEpochs runs a world of epochs.
func RunEpochs(seed uint64, trace io.Writer) (EpochResult, error) {
	w := newEpochWorld(seed, trace)
	if w.plot == staged {
		w.playActs(30 * time.Second)
	} else {
		w.at(0, w.play)
		w.until(30 * time.Second)
	}
	w.settle()
	if w.err != nil {
		return w.res, fmt.Errorf("%w, %w", errEpochs, w.err)
	}
	return w.res, nil
}

// settle lets all be well, and looks whether the cluster works.
func (w *epochWorld) settle() {
	w.calm = true
	w.tracef("all is well")
	clear(w.cuts)
	for _, x := range w.ops {
		x.dead = true
	}
	for _, nd := range w.nodes {
		nd.resume()
		nd.start()
	}
	for _, c := range w.clients {
		c.asleep = false
	}
	for _, l := range w.lockers {
		l.resume()
		l.reconnect(0)
	}
	w.until(w.now + 10*time.Second)
	if w.err != nil {
		return
	}
	x := w.operate(epoch.Wish{Goal: epoch.RollBack})
	if !w.await(30*time.Second, x.o.Ended) && w.err == nil {
		w.fail("roll back is not done in 30 s")
	}
	// A list of nodes that are now.
	var last *epoch.Record
	for _, nd := range w.nodes {
		if r := nd.read().Record; r != nil && (last == nil || r.Epoch > last.Epoch) {
			last = r
		}
	}
	var to []string
	for _, nd := range w.nodes {
		state := nd.read()
		named := last != nil && slices.ContainsFunc(last.Nodes, func(m wire.Member) bool { return m.Name == nd.name })
		switch {
		case last == nil && nd.told, last != nil && epoch.In(last, nd.name, nd.disk.id) != 0:
			to = append(to, nd.name)
		case last != nil && !named && (state.Record != nil || nd.core.State() == wire.Joining):
			to = append(to, nd.name)
		}
	}
	to = to[:max(1, w.rng.IntN(len(to)+1))]
	if last == nil {
		to = []string{"e", "f"}
	}
	if w.err != nil {
		return
	}
	x = w.operate(epoch.Wish{Goal: epoch.Change, Nodes: to})
	ended := w.await(40*time.Second, x.o.Ended)
	switch {
	case w.err != nil:
	case !ended:
		w.fail("change to %v is not done in 40 s", to)
	case x.err != nil:
		w.fail("change to %v: %v", to, x.err)
	}
	before := w.res.Held
	if !w.await(20*time.Second, func() bool { return w.res.Held >= before+2 }) && w.err == nil {
		w.fail("%d locks were had in 20 s while all was well", w.res.Held-before)
	}
	w.settleLockers()
}
