package sim

import (
	"encoding/binary"
	"flag"
	"fmt"
	"hash/maphash"
	"math"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

// Small worlds are explored exhaustively: every order in which messages can arrive (in
// larger worlds: every order in which a number of messages are overtaken by all others),
// with a number of messages lost or repeated, nodes restarted with and without their
// memory, clients that give up, and leaps of time, at every possible moment. In every
// state, at most one claim is held, or readers together, and tokens rise. From every
// state in which nothing more can go wrong, waiting claims get the lock, and nothing is
// left behind.
//
// A machine's state is a function of its inputs, and machines interact only by messages.
// So the states of each machine are computed once, by running the real machine, and
// stored. The state of the world is the state of each machine, the messages under way,
// and how much may still go wrong. Then a step of the world takes a few look-ups, and
// worlds that arose in different ways are recognized as equal.

var exhaustive = flag.Bool("sim.exhaustive", false, "explore the larger of the small worlds too, for minutes")

const (
	xTTL    = 10 * time.Second
	xMaxTTL = 10 * time.Second
	xMoment = xTTL / 1000
)

// xWorld is one small world: its members, and how often each event may happen.
type xWorld struct {
	name    string
	nodes   int
	modes   []quorum.Mode // one claim for each client
	try     bool
	behind  bool // the second client's clock is behind the first's, not ahead
	drops   int  // messages that are lost
	dups    int  // messages that are repeated
	crashes int  // nodes that restart and have forgotten
	stops   int  // nodes that restart with a clean mark
	ends    int  // claims that their clients release or give up
	leaps   int  // leaps of time
	leap    []time.Duration
	late    int // messages that may be under way while time leaps
	// If swaps is positive, messages come in order, and that many times one is put last; else
	// they come in any order.
	swaps   int
	inOrder bool // messages come in order, and none is put last
	large   bool // only with -sim.exhaustive

	// If next is not empty, the first nodes, as many as before says, are the cluster's list, and
	// it changes to these. Any decision that the rules allow may be made at any moment (E1 to
	// E5), and any node or client may take any decided record at any moment.
	before int
	next   []int
	back   bool // the change may be rolled back
	hasty  bool // a deliberate error: the change is finished without a wait
	// If lazy is set, a machine takes a record just before it handles a message, or when no message
	// is under way. It might as well have taken it before, but for when it says what it says then.
	lazy bool

	// Deliberate errors, to see that the explorer finds faults.
	forgetful bool // a crash counts as the first start of a new cluster
	tamper    func(a *wire.Answer, yielded bool)
	slow      bool // the clients' clocks stand still
	find      string
}

// xInput is an input to a machine.
type xInput struct {
	do  xDo
	msg uint16
	now time.Duration
}

type xDo uint8

const (
	xStart xDo = iota
	xDeliver
	xTick
	xCrash
	xRestart
	xEnd
	xTake // a node or a client takes the record msg
)

// xLocal is one state of one machine.
type xLocal struct {
	id      uint32
	machine int
	from    *xLocal // nil: it does not exist yet
	by      xInput
	steps   map[xInput]*xStep

	due time.Duration // of its next tick

	epoch   uint64        // of its record
	jointAt time.Duration // when a node took its joint record

	// Of a client's claim:
	state  client.State
	token  uint64
	until  time.Duration // it is held until then if its client does nothing
	failed bool          // it was lost, or never held
}

// xStep is the result of an input.
type xStep struct {
	to    *xLocal
	sends []uint16
	won   bool
}

// xState is a state of the world.
type xState struct {
	now    time.Duration
	locals [8]*xLocal
	flight []uint16 // oldest first, or in any order if that does not matter
	left   [8]uint8 // how often each event may still happen: see xDrops and so on
	record uint16   // the last one that was decided
	any    uint64   // highest token given
	excl   uint64   // highest token given to a writer
}

const (
	xDrops = iota
	xDups
	xCrashes
	xStops
	xEnds
	xLeaps
	xSwaps
	xNothing // xNothing costs nothing
)

// xMessage is a message to one machine.
type xMessage struct {
	to      int
	request *wire.Request
	reply   string
	answer  *wire.Answer
	text    string
}

type explorer struct {
	xWorld
	cfg      wire.Config
	records  []xRecord // that were decided somewhere
	machines int       // nodes first, then clients
	messages []xMessage
	ids      map[string]uint16
	locals   map[string]*xLocal
	seen     map[[2]uint64]struct{}
	seeds    [2]maphash.Seed
	path     []func() string
	err      error
	trail    []string // events that led to it
	edges    int
	deepest  int
	ended    int // states in which nothing more can happen
}

func (x *explorer) isClient(m int) bool { return m >= x.nodes }

func xID(kind byte, i int, life byte) uuid.UUID { return uuid.UUID{0: kind, 1: byte(i), 15: life} }

func (x *explorer) nodeName(i int) string { return "n" + strconv.Itoa(i+1) }
func (x *explorer) host(m int) string {
	if x.isClient(m) {
		return string(rune('a' + m - x.nodes))
	}
	return x.nodeName(m)
}

const xBase = int64(1_000_000)

func (x *explorer) clock(m int, now time.Duration) wire.Now {
	wall := xBase + now.Microseconds()
	if m == x.nodes+1 {
		if x.behind {
			wall -= 1000
		} else {
			wall += 1000
		}
	}
	if x.slow && x.isClient(m) {
		now, wall = 0, xBase
	}
	return wire.Now{Mono: now, Wall: wall}
}

// machine is a real machine in some state.
type xMachine struct {
	node  *voter.Node
	life  byte
	core  *client.Client
	claim *client.Claim
	won   bool          // in the last step
	lost  bool          // or failed
	due   time.Duration // of its next tick

	yielded bool
	jointAt time.Duration
}

func (x *explorer) nodeConfig(m int, life byte) voter.Config {
	c := voter.Config{
		Name: x.nodeName(m), Config: x.cfg, Incarnation: xID(1, m, life), ProbeWait: time.Microsecond, MaxClaims: 100, MaxQueue: 100,
	}
	if len(x.next) > 0 {
		x.joinOrVote(&c, m)
	}
	return c
}

// build runs a machine through all inputs that led to l.
func (x *explorer) build(l *xLocal) *xMachine {
	var inputs []xInput
	for ; l.from != nil; l = l.from {
		inputs = append(inputs, l.by)
	}
	mc := &xMachine{}
	for _, in := range slices.Backward(inputs) {
		x.apply(mc, l.machine, in, x.message(in))
	}
	return mc
}

// apply gives a machine one input and returns what it sends.
func (x *explorer) apply(mc *xMachine, m int, in xInput, msg *xMessage) (sends []xMessage) {
	now := x.clock(m, in.now)
	if !x.isClient(m) {
		var out voter.Out
		switch in.do {
		case xStart:
			mc.life = 1
			saved := &voter.Saved{}
			if len(x.next) > 0 && m >= x.before {
				saved = nil
			}
			mc.node = voter.New(x.nodeConfig(m, 1), now, saved, 0)
			x.settle(mc.node, now, &out)
		case xCrash:
			mc.life++
			var saved *voter.Saved
			if x.forgetful {
				saved = &voter.Saved{}
			}
			mc.node = voter.New(x.nodeConfig(m, mc.life), now, saved, xMaxTTL)
			x.settle(mc.node, now, &out)
		case xRestart:
			mc.life++
			saved, ok := mc.node.Save(now)
			if !ok {
				saved = nil
			}
			mc.node = voter.New(x.nodeConfig(m, mc.life), now, saved, xMaxTTL)
			x.settle(mc.node, now, &out)
		case xDeliver:
			x.pass(mc.node, m, now, &out)
			r := *msg.request
			mc.node.Handle(now, &r, msg.reply, &out)
		case xTick:
			x.pass(mc.node, m, now, &out)
			x.settle(mc.node, now, &out)
		case xTake:
			x.pass(mc.node, m, now, &out)
			x.takeAtNode(mc, in, now, &out)
		}
		mc.due = mc.node.Deadline()
		for _, s := range out.Answers {
			a := s.Answer
			// These are told, but nothing is decided by them.
			a.Place, a.Recovering, a.Text = 0, 0, ""
			if a.Blocker != nil {
				b := *a.Blocker
				b.For = 0
				a.Blocker = &b
			}
			sends = append(sends, xMessage{to: x.machineOf(s.To), answer: &a})
		}
		return sends
	}
	var out client.Out
	i := m - x.nodes
	switch in.do {
	case xStart:
		mc.core = client.New(client.Config{
			Name: x.host(m), Instance: xID(2, i, 0), TTL: xTTL, MaxRuns: 4, Cluster: x.cfg,
		}, now)
		mc.claim = mc.core.Claim(now, client.Request{Resource: "r", Mode: x.modes[i], Try: x.try}, &out)
	case xDeliver:
		a := *msg.answer
		if x.tamper != nil {
			x.tamper(&a, mc.yielded)
		}
		mc.core.Handle(now, &a, &out)
	case xTick:
		mc.core.Tick(now, &out)
	case xEnd:
		mc.core.Release(now, mc.claim, &out)
	case xTake:
		mc.core.SetCluster(now, x.records[in.msg].config(), &out)
	}
	mc.won = false
	for _, e := range out.Events {
		switch {
		case e.Kind == client.Held && !mc.lost:
			mc.won = true
		case e.Kind == client.Held:
			x.fail("%s is held after it was over", x.host(m))
		default:
			mc.lost = true
		}
	}
	mc.due = math.MaxInt64
	if wait, ok := mc.core.Wait(now); ok {
		mc.due = in.now + wait
	}
	for _, r := range out.Requests {
		mc.yielded = mc.yielded || r.Verb == wire.Yield
		for n := range x.nodes {
			if r.Node == "" || r.Node == x.nodeName(n) {
				copied := r
				sends = append(sends, xMessage{to: n, request: &copied, reply: x.host(m)})
			}
		}
	}
	return sends
}

// settle ticks a node and lets it hear its own probe at once, since probes are not part
// of this world.
func (x *explorer) settle(n *voter.Node, now wire.Now, out *voter.Out) {
	for n.Tick(now, out); out.Probe != nil; n.Tick(now, out) {
		var echo voter.Out
		n.Handle(now, out.Probe, "", &echo)
		a := wire.Answer{
			Kind: wire.Informed, Node: out.Probe.Client, Incarnation: out.Probe.Incarnation,
			Info: &wire.NodeInfo{Nonce: out.Probe.Nonce},
		}
		n.HandleAnswer(now, &a, &echo)
		out.Probe = nil
		if n.Probed() {
			return
		}
		now.Mono += time.Microsecond // it has listened, and nobody else answered
	}
}

// pass lets a node do what became due while time leapt. It was not away.
func (x *explorer) pass(n *voter.Node, m int, now wire.Now, out *voter.Out) {
	for n.Deadline() < now.Mono {
		at := x.clock(m, n.Deadline())
		if x.settle(n, at, out); out.Write != nil { // for how long it has had a record (E5)
			n.Written(at, out)
		}
	}
}

func (x *explorer) message(in xInput) *xMessage {
	if in.do != xDeliver {
		return nil
	}
	return &x.messages[in.msg]
}

// anyOrder reports whether messages come in any order.
func (x *explorer) anyOrder() bool { return x.swaps == 0 && !x.inOrder }

func (x *explorer) lies() bool { return x.slow || x.forgetful || x.tamper != nil }

func (x *explorer) machineOf(inbox string) int {
	for m := x.nodes; m < x.machines; m++ {
		if x.host(m) == inbox {
			return m
		}
	}
	panic("an answer to " + inbox)
}

func (x *explorer) intern(msg xMessage) uint16 {
	var body []byte
	if msg.request != nil {
		body = wire.AppendRequest([]byte(string(msg.request.Verb)+" "), msg.request)
	} else {
		body = wire.AppendAnswer(nil, msg.answer)
	}
	key := fmt.Sprintf("%d %s %s", msg.to, msg.reply, body)
	id, ok := x.ids[key]
	if !ok {
		if len(x.messages) > math.MaxUint16 {
			panic("too many messages")
		}
		id = uint16(len(x.messages))
		msg.text = x.describe(msg)
		x.messages = append(x.messages, msg)
		x.ids[key] = id
	}
	return id
}

// describe returns a message in a form short enough for long paths to be readable.
func (x *explorer) describe(msg xMessage) string {
	who := func(id wire.ClaimID) string { return x.host(x.nodes + int(id.Instance[1])) }
	var b strings.Builder
	if r := msg.request; r != nil {
		fmt.Fprintf(&b, "%s -> %s: %s %d", who(r.Claim), x.host(msg.to), r.Verb, r.SentAt)
		if r.MinFence > 0 {
			fmt.Fprintf(&b, ", wants %d", r.MinFence)
		}
		if r.Held {
			b.WriteString(", held")
		}
		return b.String()
	}
	a := msg.answer
	fmt.Fprintf(&b, "%s -> %s: %s %d", a.Node, x.host(msg.to), a.Kind, a.SentAt)
	switch {
	case a.Kind == wire.Granted:
		fmt.Fprintf(&b, ", fence %d", a.Fence)
	case a.Blocker != nil:
		fmt.Fprintf(&b, " behind %s, voted %v", who(a.Blocker.Claim), a.Blocker.Voted)
	case a.Kind == wire.Refreshed:
		fmt.Fprintf(&b, ", waiting %v, unknown %v", a.Waiting, a.Unknown)
	}
	return b.String()
}

// step returns the result of an input in a state. It is computed once.
func (x *explorer) step(l *xLocal, in xInput) *xStep {
	if s := l.steps[in]; s != nil {
		return s
	}
	mc := x.build(l)
	s := &xStep{}
	for _, msg := range x.apply(mc, l.machine, in, x.message(in)) {
		s.sends = append(s.sends, x.intern(msg))
	}
	s.won = mc.won

	var d dumper
	d.value(reflect.ValueOf(mc).Elem())
	key := strconv.Itoa(l.machine) + d.String()
	to := x.locals[key]
	if to == nil {
		to = &xLocal{id: uint32(len(x.locals)), machine: l.machine, from: l, by: in, steps: map[xInput]*xStep{}}
		to.due = mc.due
		if mc.node != nil {
			to.epoch, to.jointAt = mc.node.Epoch(), mc.jointAt
		}
		if mc.core != nil {
			cluster := mc.core.Cluster()
			to.epoch = cluster.Epoch()
			to.token, to.state, to.failed = mc.claim.Token(), mc.claim.State(), mc.lost
			// The client is asked as a holder would ask it.
			low, high := in.now, in.now+10*xTTL // not sort.Search: an int may have 32 bits
			for low < high {
				if mid := low + (high-low)/2; mc.core.HeldAt(x.clock(l.machine, mid), mc.claim) {
					low = mid + 1
				} else {
					high = mid
				}
			}
			to.until = low
		}
		x.locals[key] = to
	}
	s.to = to
	l.steps[in] = s
	return s
}

// holds reports whether the client counts its claim as held now.
func (l *xLocal) holds(now time.Duration) bool { return l.state == client.Holding && now < l.until }

// dumper writes a machine's state so that equal states give equal texts. It leaves out
// what no later step can depend on.
type dumper struct {
	strings.Builder
	seen map[uintptr]int
}

var notState = map[string]bool{
	"serial": true, // of a step: two steps never have the same
	"fences": true, // scratch
	"untils": true, // scratch
	"trips":  true, // scratch
	"ended":  true, // decides only what nodes tell each other, which is not carried here
	"doubts": true, // the same
	"overAt": true, // the same
	"User":   true,
	"won":    true,
	"peak":   true, // what memory to give back
	"peaks":  true,
	"counts": true, // told, but nothing is decided by them
	"trip":   true, // the same
	"old":    true, // the same
	"moved":  true, // when the heap of leases is put in order at once
	"roll":   true, // for lists
	"born":   true, // the same
	"since":  true, // told, but nothing is decided by it; so is all of a detail but the blocker
}

func (d *dumper) value(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			d.WriteByte('-')
			return
		}
		if n, ok := d.seen[v.Pointer()]; ok {
			fmt.Fprintf(d, "#%d", n)
			return
		}
		if d.seen == nil {
			d.seen = map[uintptr]int{}
		}
		d.seen[v.Pointer()] = len(d.seen)
		d.value(v.Elem())
	case reflect.Struct:
		d.WriteByte('{')
		for i := range v.NumField() {
			if name := v.Type().Field(i).Name; !notState[name] {
				d.value(v.Field(i))
				d.WriteByte(' ')
			}
		}
		d.WriteByte('}')
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			for i := range v.Len() {
				d.WriteString(strconv.FormatUint(v.Index(i).Uint(), 16))
				d.WriteByte('.')
			}
			return
		}
		d.WriteByte('[')
		for i := range v.Len() {
			d.value(v.Index(i))
			d.WriteByte(' ')
		}
		d.WriteByte(']')
	case reflect.Map:
		type entry struct {
			key string
			v   reflect.Value
		}
		var all []entry
		for it := v.MapRange(); it.Next(); {
			var k dumper
			k.value(it.Key())
			all = append(all, entry{k.String(), it.Value()})
		}
		sort.Slice(all, func(i, j int) bool { return all[i].key < all[j].key })
		d.WriteByte('(')
		for _, e := range all {
			d.WriteString(e.key)
			d.WriteByte(':')
			d.value(e.v)
			d.WriteByte(' ')
		}
		d.WriteByte(')')
	case reflect.String:
		d.WriteString(strconv.Quote(v.String()))
	case reflect.Bool:
		d.WriteString(strconv.FormatBool(v.Bool()))
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		d.WriteString(strconv.FormatInt(v.Int(), 10))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		d.WriteString(strconv.FormatUint(v.Uint(), 10))
	default:
		panic(fmt.Sprintf("a machine has a %v, which is not state that can be compared", v.Kind()))
	}
}

func newExplorer(w xWorld) *explorer {
	x := &explorer{
		xWorld: w, machines: w.nodes + len(w.modes), ids: map[string]uint16{}, locals: map[string]*xLocal{},
		seen: map[[2]uint64]struct{}{}, seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
		cfg: wire.Config{MaxTTL: xMaxTTL, Skew: 5 * time.Second},
	}
	for i := range w.nodes {
		x.cfg.Nodes = append(x.cfg.Nodes, x.nodeName(i))
	}
	if len(x.next) > 0 {
		x.firstRecord()
	}
	return x
}

func (x *explorer) fail(format string, args ...any) {
	if x.err == nil {
		x.err = fmt.Errorf(format, args...)
		for _, what := range x.path {
			x.trail = append(x.trail, what())
		}
	}
}

func (x *explorer) explore() {
	s := xState{left: [8]uint8{
		xDrops: uint8(x.drops), xDups: uint8(x.dups), xCrashes: uint8(x.crashes), xStops: uint8(x.stops),
		xEnds: uint8(x.ends), xLeaps: uint8(x.leaps), xSwaps: uint8(x.swaps),
	}}
	for m := range x.machines {
		s.locals[m] = &xLocal{machine: m, steps: map[xInput]*xStep{}}
		s = x.after(s, m, xInput{do: xStart})
	}
	x.visit(s)
}

// after returns the state after one machine got one input.
func (x *explorer) after(s xState, m int, in xInput) xState {
	in.now = s.now
	step := x.step(s.locals[m], in)
	s.locals[m] = step.to
	if len(step.sends) > 0 {
		s.flight = append(slices.Clone(s.flight), step.sends...)
		if x.anyOrder() {
			slices.Sort(s.flight)
		}
	}
	if step.won {
		token, mode := step.to.token, x.modes[m-x.nodes]
		if mode == quorum.Exclusive && token <= s.any {
			x.fail("%s has token %d, %d was given before", x.host(m), token, s.any)
		}
		if mode == quorum.Shared && token < s.excl {
			x.fail("%s has shared token %d, below the exclusive %d before it", x.host(m), token, s.excl)
		}
		if mode == quorum.Exclusive {
			s.excl = max(s.excl, token)
		}
		s.any = max(s.any, token)
	}
	return s
}

func (s *xState) without(k int) xState {
	c := *s
	c.flight = slices.Delete(slices.Clone(s.flight), k, k+1)
	return c
}

func (x *explorer) key(s *xState, buf []byte) []byte {
	buf = binary.AppendVarint(buf[:0], int64(s.now))
	for m := range x.machines {
		buf = binary.LittleEndian.AppendUint32(buf, s.locals[m].id)
	}
	buf = append(buf, s.left[:]...)
	buf = binary.LittleEndian.AppendUint16(buf, s.record)
	buf = binary.AppendUvarint(buf, s.any)
	buf = binary.AppendUvarint(buf, s.excl)
	for _, id := range s.flight {
		buf = binary.LittleEndian.AppendUint16(buf, id)
	}
	return buf
}

func (x *explorer) visit(s xState) {
	if x.err != nil {
		return
	}
	var scratch [256]byte
	key := x.key(&s, scratch[:])
	hash := [2]uint64{maphash.Bytes(x.seeds[0], key), maphash.Bytes(x.seeds[1], key)}
	if _, ok := x.seen[hash]; ok {
		return
	}
	x.seen[hash] = struct{}{}
	x.deepest = max(x.deepest, len(x.path))
	x.check(&s)

	moved := false
	try := func(what func() string, to func() xState) {
		if x.err != nil {
			return
		}
		moved = true
		x.edges++
		x.path = append(x.path, what)
		x.visit(to())
		x.path = x.path[:len(x.path)-1]
	}
	spend := func(s xState, what int) xState {
		if what != xNothing {
			s.left[what]--
		}
		return s
	}

	// A tick that is due comes first. A late tick would only send late messages, which are
	// explored anyway, and any input makes the machine do what is due first.
	for m := range x.machines {
		if s.locals[m].due <= s.now {
			try(func() string { return "tick " + x.host(m) }, func() xState { return x.after(s, m, xInput{do: xTick}) })
			return
		}
	}

	for k, id := range s.flight {
		if x.anyOrder() && k > 0 && s.flight[k-1] == id {
			continue // the same
		}
		if !x.anyOrder() && k > 0 {
			break // only the oldest
		}
		msg := x.messages[id]
		text := func(how string) func() string { return func() string { return how + " " + msg.text } }
		in := xInput{do: xDeliver, msg: id}
		try(text("deliver"), func() xState { return x.after(s.without(k), msg.to, in) })
		if s.left[xDrops] > 0 {
			try(text("lose"), func() xState { return spend(s.without(k), xDrops) })
		}
		if s.left[xDups] > 0 {
			try(text("deliver, and once more later,"), func() xState { return spend(x.after(s, msg.to, in), xDups) })
		}
		if s.left[xSwaps] > 0 && len(s.flight) > 1 {
			try(text("later"), func() xState {
				t := spend(s.without(k), xSwaps)
				t.flight = append(t.flight, id)
				return t
			})
		}
	}
	for m := range x.machines {
		do := func(how string, do xDo, what int) {
			try(func() string { return how + " " + x.host(m) }, func() xState { return spend(x.after(s, m, xInput{do: do}), what) })
		}
		switch {
		case x.isClient(m):
			if s.left[xEnds] > 0 && s.locals[m].state != client.Over {
				do("end the claim of", xEnd, xEnds)
			}
		default:
			if s.left[xCrashes] > 0 {
				do("crash and start", xCrash, xCrashes)
			}
			if s.left[xStops] > 0 {
				do("stop and start", xRestart, xStops)
			}
		}
	}
	if len(x.next) > 0 {
		x.change(s, try)
	}
	// Where time passes, a client that waits for a moment (C6, C9) gets to its end at no
	// cost.
	if len(x.leap) > 0 && len(s.flight) == 0 {
		next := s.now + xMoment + 1
		for m := range x.machines {
			if x.isClient(m) {
				next = min(next, s.locals[m].due)
			}
		}
		if next <= s.now+xMoment {
			try(func() string { return "a moment goes by" }, func() xState {
				t := s
				t.now = next
				return t
			})
		}
	}
	if s.left[xLeaps] > 0 && len(s.flight) <= x.late {
		for _, d := range x.leap {
			try(func() string { return fmt.Sprintf("%v go by", d) }, func() xState {
				t := spend(s, xLeaps)
				t.now += d
				return t
			})
		}
	}
	if !moved && x.err == nil {
		x.ended++
		x.calm(s)
	}
}

// check checks what must be true in every state.
func (x *explorer) check(s *xState) {
	for a := x.nodes; a < x.machines; a++ {
		for b := a + 1; b < x.machines; b++ {
			if s.locals[a].holds(s.now) && s.locals[b].holds(s.now) && quorum.Conflicts(x.modes[a-x.nodes], x.modes[b-x.nodes]) {
				x.fail("two hold: %s with token %d and %s with token %d", x.host(a), s.locals[a].token, x.host(b), s.locals[b].token)
			}
		}
	}
	if !x.try || s.any > 0 {
		return
	}
	failed := 0
	for m := x.nodes; m < x.machines; m++ {
		if s.locals[m].failed {
			failed++
		}
	}
	if failed == len(x.modes) {
		x.fail("all tries failed on a lock that nobody held")
	}
}

// calm continues from a state in which nothing more can go wrong, with machines of its
// own. All messages are delivered, all clocks tick, and holders release. Waiting claims
// must get the lock, and when all are over, nothing may be left.
func (x *explorer) calm(s xState) {
	if x.lies() {
		return
	}
	mcs := make([]*xMachine, x.machines)
	for m := range mcs {
		mcs[m] = x.build(s.locals[m])
	}
	var flight []xMessage
	for _, id := range s.flight {
		flight = append(flight, x.messages[id])
	}
	for end := s.now + 8*xTTL; s.now < end; {
		if len(flight) > 0 {
			m := flight[0].to
			flight = append(flight[1:], x.apply(mcs[m], m, xInput{do: xDeliver, now: s.now}, &flight[0])...)
			continue
		}
		left, next, who := 0, end, -1
		for m, mc := range mcs {
			if mc.node != nil {
				left += mc.node.Claims() + mc.node.Resources()
			} else {
				left += mc.core.Claims()
				if mc.claim.State() == client.Holding {
					flight = append(flight, x.apply(mc, m, xInput{do: xEnd, now: s.now}, nil)...)
				}
			}
			if mc.due < next {
				next, who = mc.due, m
			}
		}
		if left == 0 {
			return
		}
		if len(flight) == 0 {
			if s.now = max(s.now, next); who < 0 {
				break // nobody does anything before the end
			}
			flight = x.apply(mcs[who], who, xInput{do: xTick, now: s.now}, nil)
		}
	}
	for m, mc := range mcs {
		switch {
		case mc.node != nil && mc.node.Claims()+mc.node.Resources() > 0:
			x.fail("%s has %d claims left", x.host(m), mc.node.Claims())
		case mc.core != nil && mc.core.Claims() > 0:
			x.fail("%s waits for ever", x.host(m))
		}
	}
}

func (x *explorer) report(t *testing.T) {
	t.Helper()
	t.Logf("%-34s %9d states, %9d steps, %7d ends, %5d states of machines, %5d messages, longest path %d",
		x.name, len(x.seen), x.edges, x.ended, len(x.locals), len(x.messages), x.deepest)
}

var (
	xWriters   = []quorum.Mode{quorum.Exclusive, quorum.Exclusive}
	xThenRead  = []quorum.Mode{quorum.Exclusive, quorum.Shared} // the writer is older
	xThenWrite = []quorum.Mode{quorum.Shared, quorum.Exclusive}

	xAsk = []time.Duration{250 * time.Millisecond} // a claim asks again
	// Leases and quarantines are over.
	xForg  = []time.Duration{10300 * time.Millisecond}
	xAnyOf = []time.Duration{250 * time.Millisecond, 10300 * time.Millisecond} // one or the other
)

func TestExhaustive(t *testing.T) {
	var states, steps, paths int
	for _, w := range []xWorld{
		// Messages in any order at all.
		{name: "1 node, a loss and a crash", nodes: 1, modes: xWriters, ends: 2, drops: 1, crashes: 1},
		{name: "1 node, a repeat", nodes: 1, modes: xWriters, ends: 2, dups: 1},
		{name: "1 node, a leap past leases", nodes: 1, modes: xWriters, ends: 1, leaps: 1, leap: xForg, late: 1},
		{name: "1 node, a crash and a leap", nodes: 1, modes: xWriters, crashes: 1, leaps: 1, leap: xAnyOf, late: 1},
		{name: "2 nodes, an end", nodes: 2, modes: xWriters, ends: 1},
		{name: "2 nodes, a crash", nodes: 2, modes: xWriters, crashes: 1},
		{name: "2 nodes, a loss", nodes: 2, modes: xWriters, drops: 1},
		{name: "2 nodes, a loss, asking again", nodes: 2, modes: xWriters, drops: 1, leaps: 1, leap: xAsk},
		{name: "2 nodes, a reader comes later", nodes: 2, modes: xThenRead, drops: 1},
		{name: "2 nodes, a writer comes later", nodes: 2, modes: xThenWrite, drops: 1},

		// A few messages are overtaken by all others.
		{name: "3 nodes, an end", nodes: 3, modes: xWriters, ends: 1, swaps: 3},
		{name: "3 nodes, a clock behind", nodes: 3, modes: xWriters, behind: true, ends: 1, swaps: 2},
		{name: "3 nodes, a reader comes later", nodes: 3, modes: xThenRead, ends: 1, swaps: 2},
		{name: "3 nodes, a writer comes later", nodes: 3, modes: xThenWrite, ends: 1, swaps: 2},
		{name: "3 nodes, a loss, asking again", nodes: 3, modes: xWriters, ends: 1, drops: 1, leaps: 1, leap: xAsk, late: 1, swaps: 1},
		{name: "3 nodes, a crash", nodes: 3, modes: xWriters, ends: 1, crashes: 1, swaps: 1},

		// These take some minutes.
		{name: "1 node, a loss and two leaps", nodes: 1, modes: xWriters, drops: 1, leaps: 2, leap: xAnyOf, late: 1, swaps: 4, large: true},
		{name: "2 nodes, an end and a loss", nodes: 2, modes: xWriters, ends: 1, drops: 1, large: true},
		{name: "2 nodes, a clean restart", nodes: 2, modes: xWriters, ends: 1, stops: 1, swaps: 5, large: true},
		{name: "2 nodes, a leap past leases", nodes: 2, modes: xWriters, ends: 1, leaps: 1, leap: xForg, late: 1, swaps: 4, large: true},
		{name: "2 nodes, reader, writer, an end", nodes: 2, modes: xThenWrite, ends: 1, large: true},
		{name: "2 nodes, writer, reader, an end", nodes: 2, modes: xThenRead, ends: 1, large: true},
		{name: "2 nodes, a crash and a leap", nodes: 2, modes: xWriters, ends: 1, crashes: 1, leaps: 1, leap: xForg, late: 1, swaps: 2, large: true},
		{name: "2 nodes, a restart and a leap", nodes: 2, modes: xWriters, ends: 1, stops: 1, leaps: 1, leap: xForg, late: 1, swaps: 2, large: true},
		{name: "2 nodes, a loss and a leap", nodes: 2, modes: xWriters, ends: 1, drops: 1, leaps: 1, leap: xForg, late: 1, swaps: 2, large: true},
		{name: "3 nodes, in any order", nodes: 3, modes: xWriters, large: true},
		{name: "3 nodes, writer, reader, any order", nodes: 3, modes: xThenRead, large: true},
		{name: "3 nodes, reader, writer, any order", nodes: 3, modes: xThenWrite, large: true},
		{name: "3 nodes, an end and a loss", nodes: 3, modes: xWriters, ends: 1, drops: 1, swaps: 3, large: true},
		{name: "3 nodes, a repeat", nodes: 3, modes: xWriters, ends: 1, dups: 1, swaps: 2, large: true},
		{name: "3 nodes, a crash and a leap", nodes: 3, modes: xWriters, ends: 1, crashes: 1, leaps: 1, leap: xForg, late: 1, swaps: 1, large: true},
	} {
		if w.large && !*exhaustive {
			continue
		}
		t.Run(w.name, func(t *testing.T) {
			x := newExplorer(w)
			x.explore()
			x.report(t)
			states, steps, paths = states+len(x.seen), steps+x.edges, paths+x.ended
			if x.err != nil {
				t.Fatalf("%v\n%s", x.err, strings.Join(x.trail, "\n"))
			}
			if len(x.seen) < 1000 {
				t.Errorf("only %d states: this world is too small to prove anything", len(x.seen))
			}
		})
	}
	t.Logf("%d states, %d steps, %d ends", states, steps, paths)
}

// Of two tries on a free lock, at least one gets it (C10), whatever the order of
// messages.
func TestExhaustiveTries(t *testing.T) {
	for _, w := range []xWorld{
		{name: "1 node", nodes: 1, modes: xWriters},
		{name: "1 node, writer and reader", nodes: 1, modes: xThenRead},
		{name: "2 nodes", nodes: 2, modes: xWriters},
		{name: "2 nodes, a loss, asking again", nodes: 2, modes: xWriters, drops: 1, leaps: 1, leap: xAsk, late: 1, swaps: 4},
		{name: "2 nodes, writer and reader", nodes: 2, modes: xThenRead},
		{name: "2 nodes, reader and writer", nodes: 2, modes: xThenWrite},
		{name: "3 nodes", nodes: 3, modes: xWriters, swaps: 3},
		{name: "3 nodes, a loss, asking again", nodes: 3, modes: xWriters, drops: 1, leaps: 1, leap: xAsk, late: 2, swaps: 1},
		{name: "4 nodes", nodes: 4, modes: xWriters, swaps: 2},
		{name: "4 nodes, reader and writer", nodes: 4, modes: xThenWrite, swaps: 2},
		{name: "3 nodes, in any order", nodes: 3, modes: xWriters, large: true},
		{name: "3 nodes, losses, asking again", nodes: 3, modes: xWriters, drops: 2, leaps: 2, leap: xAsk, late: 2, swaps: 2, large: true},
		{name: "5 nodes", nodes: 5, modes: xWriters, swaps: 3, large: true},
	} {
		if w.large && !*exhaustive {
			continue
		}
		w.try = true
		t.Run(w.name, func(t *testing.T) {
			x := newExplorer(w)
			x.explore()
			x.report(t)
			if x.err != nil {
				t.Fatalf("%v\n%s", x.err, strings.Join(x.trail, "\n"))
			}
		})
	}
}

// The explorer finds faults: a node that forgets and votes, a client whose clock stands
// still, answers that pretend to be newer than they are, and tries that do not ask
// whether what is in their way will yield.
func TestExhaustiveFindsFaults(t *testing.T) {
	for _, w := range []xWorld{
		{name: "a node forgets (N8)", nodes: 1, modes: xWriters, crashes: 1, forgetful: true, find: "two hold"},
		{name: "clocks stand still (C1, C7)", nodes: 1, modes: xWriters, leaps: 1, leap: xForg, late: 2, slow: true, find: "two hold"},
		{name: "votes are counted after a yield (C2)", nodes: 3, modes: xWriters, swaps: 6, find: "two hold", tamper: func(a *wire.Answer, yielded bool) {
			if a.Kind == wire.Granted && yielded {
				a.SentAt++
			}
		}},
		{
			name: "tries fail by who will yield (C10)", nodes: 3, modes: xWriters, try: true, swaps: 6,
			find: "all tries failed", tamper: func(a *wire.Answer, _ bool) {
				if a.Blocker != nil {
					b := *a.Blocker
					b.Ahead = true
					a.Blocker = &b
				}
			},
		},
	} {
		t.Run(w.name, func(t *testing.T) {
			x := newExplorer(w)
			x.explore()
			x.report(t)
			if x.err == nil || !strings.Contains(x.err.Error(), w.find) {
				t.Fatalf("not found: %v", x.err)
			}
			t.Logf("%v\n%s", x.err, strings.Join(x.trail, "\n"))
		})
	}
}
