package script

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/members"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

const probeWait = 100 * time.Millisecond

// world is where a story runs: hosts, a network that does nothing by itself, and true
// time.
type world struct {
	now     time.Duration // 0: the nodes vote, and the story begins
	hosts   map[string]*host
	order   []string // hosts in order of creation
	flight  []*message
	aside   []*message
	cuts    map[[2]string]bool
	tokens  map[string]*tokens
	claims  map[string]*claim
	cluster wire.Config
	limits  voter.Config
	probes  bool // probes are messages like others
	// The cluster's records, from epoch 1 on; none: it stays at epoch 0. Nodes were told the first
	// ones as decided. promised is the highest floor of the answers to the last prepare.
	records  []*wire.EpochRecord
	decided  int
	promised uint64
	out      strings.Builder
}

type tokens struct{ exclusive, any uint64 }

// host is a machine with one node or one client on it.
type host struct {
	name   string
	wall   time.Duration // its wall clock's offset
	slept  time.Duration // how long its monotonic clock slept
	asleep time.Duration // start of the present sleep
	paused bool
	due    time.Duration // its next Tick

	node   *voter.Node // nil while it is down
	isNode bool
	id     string // of the node: its name in the cluster
	config wire.Config
	lives  byte
	// Of these lives, the state directory names those after known.
	known  byte
	mark   []byte
	marked string        // digest in the mark
	ttl    time.Duration // longest that it may have granted
	// What its directory has about records, how many it had before that, and whether it is empty.
	// joins: it was started to be added to the list.
	state        []byte
	directories  byte
	fresh, joins bool

	client  *client.Client
	members *members.Machine // nil: it does not learn the list of nodes
	// of is the client that it is a copy of, or itself. It determines its name at the nodes,
	// and its inbox.
	of       string
	instance uuid.UUID // the current one
}

type claim struct {
	name string
	host *host
	core *client.Claim
}

type message struct {
	from, to string
	kind     string
	claim    string
	text     string
	deliver  func(*host)
}

func newWorld() *world {
	return &world{
		hosts: map[string]*host{}, cuts: map[[2]string]bool{}, tokens: map[string]*tokens{}, claims: map[string]*claim{},
		cluster: wire.Config{MaxTTL: 12 * time.Second, Skew: 5 * time.Second},
		limits:  voter.Config{MaxClaims: 100, MaxQueue: 100},
	}
}

func (w *world) printf(format string, args ...any) { fmt.Fprintf(&w.out, format+"\n", args...) }

func (w *world) read(h *host) wire.Now {
	mono := w.now - h.slept
	if h.asleep > 0 {
		mono = h.asleep - h.slept
	}
	return wire.Now{Mono: mono, Wall: max((w.now + h.wall).Microseconds(), 0), Boot: w.now + time.Hour}
}

// id returns ids such that those of a come before those of b, and that of a node's first
// life before that of its second.
func id(name string, life byte) uuid.UUID {
	var u uuid.UUID
	copy(u[:14], name)
	u[15] = life
	return u
}

func (w *world) nameOf(id wire.ClaimID) string {
	if name := w.nameOfInstance(id.Instance); name != "" {
		return fmt.Sprintf("%s%d", name, id.Seq)
	}
	return id.String()
}

func (w *world) list(all []wire.ClaimOf) (text string) {
	for _, c := range all {
		text += " " + w.nameOf(c.Claim)
	}
	return text
}

// nameOfInstance returns the name of the client that started with it, and a stroke for
// each new instance since (C15).
func (w *world) nameOfInstance(instance uuid.UUID) string {
	for _, h := range w.hosts {
		for life := byte(0); h.client != nil && life <= h.lives; life++ {
			if instance == id(h.name, life) {
				return h.name + strings.Repeat("'", int(life))
			}
		}
	}
	return ""
}

func clientID(name string) uuid.UUID { return id(name, 0) }

// inbox returns where answers to a host are sent. Copies of a client share one.
func (h *host) inbox() string {
	if h.client != nil {
		return h.of
	}
	return h.name
}

func beat(b uint64) string { return "@" + (time.Duration(b)*time.Microsecond - time.Second).String() }

func (w *world) runs(name string, runs wire.Runs) string {
	var parts []string
	for _, r := range runs {
		if r.Lo == r.Hi {
			parts = append(parts, fmt.Sprintf("%s%d", name, r.Lo))
		} else {
			parts = append(parts, fmt.Sprintf("%s%d-%s%d", name, r.Lo, name, r.Hi))
		}
	}
	return strings.Join(parts, " ")
}

// ---- what is sent

func (w *world) publish(from *host, r wire.Request) error {
	body := wire.AppendRequest(nil, &r)
	back, err := wire.DecodeRequest(r.Verb, r.Client, r.Resource, body)
	if err != nil {
		return fmt.Errorf("%s sends what cannot be read: %w", from.name, err)
	}
	m := message{from: from.name, kind: string(r.Verb)}
	switch r.Verb {
	case wire.Acquire:
		m.claim = w.nameOf(r.Claim)
		m.text = fmt.Sprintf("acquire %s %s %v %s", m.claim, r.Resource, r.Mode, beat(r.SentAt))
		if r.Held {
			m.text += ", held"
		}
		if r.SuppressQueued {
			m.text += ", quiet"
		}
		if r.Check {
			m.text += ", check"
		}
		if r.MinFence > 0 {
			m.text += fmt.Sprintf(", wants fence %d", r.MinFence)
		}
	case wire.Release:
		m.claim = w.nameOf(r.Claim)
		m.text = fmt.Sprintf("release %s %s", m.claim, r.Resource)
	case wire.Yield:
		m.claim = w.nameOf(r.Claim)
		m.text = fmt.Sprintf("yield %s %s %s", m.claim, r.Resource, beat(r.SentAt))
	case wire.Refresh:
		name := w.nameOfInstance(r.Claim.Instance)
		list := w.runs(name, r.Live)
		if list == "" {
			list = "nothing"
		}
		m.text = fmt.Sprintf("refresh %s of %s%d..%s%d %s", list, name, r.Lo, name, r.Hi, beat(r.SentAt))
	case wire.Info:
		m.text = "info: who is " + r.Node + "?"
		if r.Node == "" {
			m.text = fmt.Sprintf("info: who has more than epoch %d?", r.Epoch)
			if from.client != nil {
				m.text = "info: which record do you have?"
			}
		}
		if r.Stopped {
			m.text = fmt.Sprintf("info: I have given up the name %s, voted %v", r.Node, r.Voted)
		}
		if len(r.Over) > 0 {
			m.text = "info: which are over of" + w.list(r.Over) + "?"
		}
		if len(r.Recalled) > 0 {
			m.text = "info: recalled are" + w.list(r.Recalled)
			if len(r.Over) > 0 {
				m.text += ", and which are over of" + w.list(r.Over) + "?"
			}
		}
	}
	// A yield matters to other nodes only if the node that it names does not receive it
	// (N12).
	elsewhere := r.Verb == wire.Yield && slices.ContainsFunc(w.order, func(name string) bool {
		return w.hosts[name].id == r.Node && w.cuts[[2]string{from.name, name}]
	})
	if elsewhere {
		m.text += ", to " + r.Node
	}
	var to []string
	for _, name := range w.order {
		h := w.hosts[name]
		if !h.isNode || r.Node != "" && h.id != r.Node && !elsewhere {
			// Other nodes say how long their leases are, which is the same for all here.
			continue
		}
		to = append(to, name)
		m := m
		m.to = name
		m.deliver = func(h *host) {
			var out voter.Out
			h.node.Handle(w.read(h), back, from.inbox(), &out)
			w.nodeDid(h, out)
		}
		w.flight = append(w.flight, &m)
	}
	w.printf("%s -> %s: %s%s", from.name, strings.Join(to, " "), m.text, w.cutOff(len(to)))
	return nil
}

func (w *world) answer(from *host, to string, a wire.Answer) error {
	for _, name := range w.order {
		if w.hosts[name].inbox() == to {
			if err := w.answerTo(from, name, a); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *world) answerTo(from *host, to string, a wire.Answer) error {
	body := wire.AppendAnswer(nil, &a)
	back, err := wire.DecodeAnswer(body)
	if err != nil {
		return fmt.Errorf("%s sends what cannot be read: %w", from.name, err)
	}
	m := &message{from: from.name, to: to, kind: string(a.Kind)}
	if a.Kind != wire.Refreshed && a.Kind != wire.Informed && a.Kind != wire.Over && a.Kind != wire.Configured {
		m.claim = w.nameOf(a.Claim)
	}
	switch a.Kind {
	case wire.Granted:
		m.text = fmt.Sprintf("granted %s fence %d %s", m.claim, a.Fence, beat(a.SentAt))
		if a.Most > 0 {
			m.text += fmt.Sprintf(", gives at most %d", a.Most)
		}
		if a.Late {
			m.text += ", late"
		}
	case wire.Queued:
		m.text = fmt.Sprintf("queued %s %s: place %d", m.claim, beat(a.SentAt), a.Place)
		if b := a.Blocker; b != nil && b.Voted {
			m.text += ", " + w.nameOf(b.Claim) + " has the vote"
			if !b.Ahead {
				m.text += " and is younger"
			}
		} else if b != nil {
			m.text += ", " + w.nameOf(b.Claim) + " is before it"
		}
		if a.Recovering > 0 {
			m.text += fmt.Sprintf(", no votes for %v", a.Recovering)
		}
	case wire.Refused:
		m.text = fmt.Sprintf("refused %s %s: %s", m.claim, beat(a.SentAt), a.Reason)
	case wire.Recall:
		m.text = "recall " + m.claim
		if a.For != "" {
			m.text += " for " + a.For
		}
	case wire.Evicted:
		m.text = "evicted " + m.claim
	case wire.Over:
		if len(a.Over) > 0 || len(a.Yielded) == 0 {
			m.text = "over:" + w.list(a.Over)
		}
		for _, y := range a.Yielded {
			m.text = strings.TrimPrefix(fmt.Sprintf("%s, %s yields %s", m.text, w.nameOf(y.Claim), beat(y.SentAt)), ", ")
		}
	case wire.Refreshed:
		name := w.nameOfInstance(a.Claim.Instance)
		m.text = fmt.Sprintf("refreshed %s%d..%s%d %s", name, a.Lo, name, a.Hi, beat(a.SentAt))
		if len(a.Waiting) > 0 {
			m.text += ", waiting: " + w.runs(name, a.Waiting)
		}
		if len(a.Unknown) > 0 {
			m.text += ", unknown: " + w.runs(name, a.Unknown)
		}
	case wire.Informed:
		m.text = fmt.Sprintf("info: I am, %s, since %v, voted %v", a.Info.State, time.Duration(a.Info.Started)*time.Microsecond, a.Info.Voted)
		if a.Info.Config != nil {
			m.text = fmt.Sprintf("info: %s, epoch %d", a.Info.State, a.Info.Config.Epoch)
		}
	case wire.Configured:
		m.kind, m.text = string(a.Step.Kind), stepText(a.Step)
	}
	if len(w.records) > 0 && a.Kind != wire.Informed && a.Kind != wire.Configured {
		m.text += ", " + w.epochOf(a.Digest)
	}
	m.deliver = func(h *host) {
		if h.node != nil {
			var out voter.Out
			h.node.HandleAnswer(w.read(h), back, &out)
			w.nodeDid(h, out)
			return
		}
		if h.name == ops {
			w.heardByOps(back)
			return
		}
		if h.members != nil && back.Kind == wire.Informed {
			w.learn(h, func(now wire.Now, out *members.Out) { h.members.Hear(now, back, out) })
			return
		}
		var out client.Out
		h.client.Handle(w.read(h), back, &out)
		w.clientDid(h, out)
	}
	w.flight = append(w.flight, m)
	w.printf("%s -> %s: %s%s", from.name, to, m.text, w.cutOff(1))
	return nil
}

// cutOff loses what was just sent where the network is cut, and shows it.
func (w *world) cutOff(sent int) string {
	var to []string
	w.flight = slices.DeleteFunc(w.flight, func(m *message) bool {
		if !w.cuts[[2]string{m.from, m.to}] {
			return false
		}
		to = append(to, m.to)
		return true
	})
	switch len(to) {
	case 0:
		return ""
	case sent:
		return " (lost)"
	}
	return " (lost to " + strings.Join(to, " ") + ")"
}

func (w *world) nodeDid(h *host, out voter.Out) {
	w.written(h, &out)
	for _, note := range out.Notes {
		w.printf("%s says: %s", h.name, note)
	}
	if out.Ready {
		w.printf("%s says: ready: this node votes", h.name)
	}
	for _, s := range out.Answers {
		w.must(w.answer(h, s.To, s.Answer))
	}
	if out.Ask != nil {
		w.must(w.publish(h, *out.Ask))
	}
	if out.Survey != nil {
		w.must(w.publish(h, *out.Survey))
	}
	if p := out.Probe; p != nil {
		switch {
		case w.probes || w.namesakes(h.id) > 1 || h.node.Stopped():
			w.must(w.publish(h, *p))
		case w.cuts[[2]string{h.name, h.name}]:
		default: // heard by itself at once: not shown
			var heard voter.Out
			h.node.Handle(w.read(h), p, h.name, &heard)
			for _, s := range heard.Answers {
				h.node.HandleAnswer(w.read(h), &s.Answer, &heard)
			}
		}
	}
	if h.node != nil {
		h.due = w.now + max(h.node.Deadline()-w.read(h).Mono, 0)
	}
}

func (w *world) namesakes(id string) (n int) {
	for _, h := range w.hosts {
		if h.isNode && h.id == id && h.node != nil && !h.node.Stopped() {
			n++
		}
	}
	return n
}

func (w *world) clientDid(h *host, out client.Out) {
	if out.Renew { // before anything is sent
		h.lives++
		h.instance = id(h.name, h.lives)
		h.client.Renew(w.read(h), h.instance, &out)
		w.printf("%s begins anew as %s", h.name, w.nameOfInstance(h.instance))
	}
	for _, note := range out.Notes {
		w.printf("%s says: %s", h.name, note)
	}
	if out.AskInfo && h.members == nil {
		w.printf("%s wants to ask the nodes for their configuration", h.name)
	}
	for _, e := range out.Events {
		cl := e.Claim
		name := fmt.Sprintf("%s%d", h.name, cl.Seq())
		switch e.Kind {
		case client.Held:
			w.printf("%s HELD, token %d", name, cl.Token())
			w.checkToken(cl)
		case client.Lost:
			w.printf("%s LOST", name)
		case client.Failed:
			w.printf("%s FAILED", name)
		}
	}
	for _, r := range out.Requests {
		w.must(w.publish(h, r))
	}
	switch {
	case h.members == nil:
	case out.AskNow:
		w.learn(h, h.members.QueryNow)
	case out.AskInfo:
		w.learn(h, h.members.Query)
	}
	w.schedule(h)
	w.checkHolders()
}

// broken is the panic value of must: a broken promise.
type broken struct{ error }

func (w *world) must(err error) {
	if err != nil {
		panic(broken{err})
	}
}

func (w *world) checkHolders() {
	var held []*claim
	for _, c := range w.claims {
		if c.host.client.HeldAt(w.read(c.host), c.core) {
			held = append(held, c)
		}
	}
	for i, a := range held {
		for _, b := range held[i+1:] {
			if a.core.Resource() == b.core.Resource() && quorum.Conflicts(a.core.Mode(), b.core.Mode()) {
				w.must(fmt.Errorf("two hold %s: %s and %s", a.core.Resource(), a.name, b.name))
			}
		}
	}
}

func (w *world) checkToken(cl *client.Claim) {
	t := w.tokens[cl.Resource()]
	if t == nil {
		t = &tokens{}
		w.tokens[cl.Resource()] = t
	}
	if least := t.any; cl.Mode() == quorum.Exclusive && cl.Token() <= least {
		w.must(fmt.Errorf("token %d is not above %d", cl.Token(), least))
	}
	if cl.Mode() == quorum.Shared && cl.Token() < t.exclusive {
		w.must(fmt.Errorf("shared token %d is below %d", cl.Token(), t.exclusive))
	}
	if cl.Mode() == quorum.Exclusive {
		t.exclusive = cl.Token()
	}
	t.any = max(t.any, cl.Token())
}

// meant returns the hosts that one end of a link names. They need not exist yet.
func (w *world) meant(end string) []string {
	if end == "*" {
		return w.order
	}
	return []string{end}
}

func (w *world) between(from, to string) bool {
	return slices.ContainsFunc(w.flight, func(m *message) bool { return m.from == from && m.to == to })
}

// ---- delivery and time

func (w *world) deliverOne(m *message) {
	h := w.hosts[m.to]
	w.flight = slices.DeleteFunc(w.flight, func(o *message) bool { return o == m })
	if h.isNode && h.node == nil {
		w.printf("(lost: %s is down: %s)", h.name, m.text)
		return
	}
	m.deliver(h)
}

func (w *world) deliverAll() error {
	for i := 0; ; i++ {
		k := slices.IndexFunc(w.flight, func(m *message) bool { return !w.hosts[m.to].paused })
		if k < 0 {
			return nil
		}
		if i > 10_000 {
			return fmt.Errorf("the messages do not come to an end")
		}
		w.deliverOne(w.flight[k])
	}
}

func (w *world) tick(h *host) {
	if h.isNode {
		if h.node == nil {
			return
		}
		var out voter.Out
		h.node.Tick(w.read(h), &out)
		w.nodeDid(h, out)
		return
	}
	var out client.Out
	h.client.Tick(w.read(h), &out)
	w.clientDid(h, out)
	if h.members != nil {
		w.learn(h, h.members.Tick)
	}
}

func (w *world) pass(d time.Duration, deliver bool) error {
	end := w.now + d
	for {
		if deliver {
			if err := w.deliverAll(); err != nil {
				return err
			}
		}
		next := end
		for _, h := range w.hosts {
			if h.awake() {
				next = min(next, max(h.due, w.now))
			}
		}
		w.now = next
		acted := false
		for _, name := range w.order {
			if h := w.hosts[name]; h.awake() && h.due <= w.now {
				w.tick(h)
				acted = true
			}
		}
		w.checkHolders()
		if w.now == end && !acted {
			return nil
		}
	}
}

func (h *host) awake() bool { return !h.paused && (h.client != nil || h.node != nil) }

// ---- what is shown

func (w *world) showNode(h *host) {
	if h.node == nil {
		mark := "no mark"
		if h.mark != nil {
			mark = "a clean mark"
		}
		w.printf("%s is down, %s", h.name, mark)
		return
	}
	saved, ok := h.node.Save(w.read(h))
	if !ok {
		w.printf("%s %s, claims: %d, resources: %d", h.name, h.node.State(), h.node.Claims(), h.node.Resources())
		return
	}
	if len(saved.Floors) == 0 {
		w.printf("%s %s, floor %d, no claims", h.name, h.node.State(), saved.Floor)
		return
	}
	w.printf("%s %s, floor %d", h.name, h.node.State(), saved.Floor)
	for _, key := range slices.Sorted(maps.Keys(saved.Floors)) {
		res, err := hex.DecodeString(key)
		w.must(err)
		w.printf("  %s, floor %d", res, saved.Floors[key])
		var votes, queue []voter.SavedClaim
		for _, c := range saved.Claims {
			switch {
			case string(c.Resource) != string(res):
			case c.Voted:
				votes = append(votes, c)
			default:
				queue = append(queue, c)
			}
		}
		age := func(a, b voter.SavedClaim) int {
			if a.Held != b.Held {
				return map[bool]int{true: -1, false: 1}[a.Held]
			}
			if a.At != b.At {
				return int(a.At - b.At)
			}
			return wire.ClaimID{Instance: a.Instance, Seq: a.Seq}.Compare(wire.ClaimID{Instance: b.Instance, Seq: b.Seq})
		}
		slices.SortFunc(votes, age)
		slices.SortFunc(queue, age)
		for _, c := range votes {
			w.printf("    vote: %s, fence %d, %s", w.savedName(c), c.Fence, beat(c.Beat))
		}
		for _, c := range queue {
			w.printf("    queue: %s, %s", w.savedName(c), beat(c.Beat))
		}
	}
}

func (w *world) savedName(c voter.SavedClaim) string {
	mode := quorum.Exclusive
	if c.Shared {
		mode = quorum.Shared
	}
	name := fmt.Sprintf("%s %v", w.nameOf(wire.ClaimID{Instance: c.Instance, Seq: c.Seq}), mode)
	if c.Held {
		name += ", held"
	}
	return name
}

func (w *world) showClient(h *host) {
	all := h.client.All()
	if len(all) == 0 {
		w.printf("%s has no claims", h.name)
	}
	for _, cl := range all {
		var parts []string
		for _, n := range h.client.Report(w.read(h), cl).Nodes {
			s := n.Name + " silent"
			switch {
			case n.Voted:
				s = n.Name + " voted"
			case n.Queued:
				s = n.Name + " queued"
			case n.Refused:
				s = n.Name + " refused"
			}
			if n.Clash {
				s += " (two nodes)"
			}
			parts = append(parts, s)
		}
		state := "waits"
		if cl.State() == client.Holding {
			state = fmt.Sprintf("HOLDS, token %d", cl.Token())
		}
		w.printf("%s%d %s %v %s: %s", h.name, cl.Seq(), cl.Resource(), cl.Mode(), state, strings.Join(parts, ", "))
	}
}

func (w *world) showNetwork() {
	for _, m := range w.flight {
		w.printf("under way: %s -> %s: %s", m.from, m.to, m.text)
	}
	for _, m := range w.aside {
		w.printf("aside: %s -> %s: %s", m.from, m.to, m.text)
	}
}

// ---- commands

// options takes key=value words out of args.
func options(args []string) (rest []string, opts map[string]string) {
	opts = map[string]string{}
	for _, a := range args {
		if key, value, ok := strings.Cut(a, "="); ok {
			opts[key] = value
		} else {
			rest = append(rest, a)
		}
	}
	return rest, opts
}

func (w *world) configWith(base wire.Config, opts map[string]string) (wire.Config, error) {
	var err error
	if v, ok := opts["nodes"]; ok {
		base.Nodes = strings.Split(v, ",")
	}
	if v, ok := opts["max-ttl"]; ok {
		if base.MaxTTL, err = time.ParseDuration(v); err != nil {
			return base, err
		}
	}
	if v, ok := opts["skew"]; ok {
		if base.Skew, err = time.ParseDuration(v); err != nil {
			return base, err
		}
	}
	slices.Sort(base.Nodes)
	return base, nil
}

func (w *world) startNode(h *host) {
	h.lives++
	var saved *voter.Saved
	if h.mark != nil && h.marked == w.digestOf(h) {
		saved = new(voter.Saved)
		w.must(json.Unmarshal(h.mark, saved))
	}
	h.mark = nil // it serves once (N8)
	cfg := w.limits
	cfg.Name, cfg.Config, cfg.Incarnation, cfg.ProbeWait = h.id, h.config, id(h.name, h.lives), probeWait
	for life := h.known; life < h.lives-1; life++ {
		cfg.Past = append(cfg.Past, id(h.name, life+1))
	}
	w.startState(h, &cfg)
	h.node = voter.New(cfg, w.read(h), saved, h.ttl)
	h.ttl = h.node.LongestLease()
	h.due = w.now
}

func (w *world) addHost(h *host) error {
	if w.hosts[h.name] != nil {
		return fmt.Errorf("there is a %s already", h.name)
	}
	w.hosts[h.name] = h
	w.order = append(w.order, h.name)
	return nil
}

func (w *world) host(name string, isNode bool) (*host, error) {
	h := w.hosts[name]
	if h == nil || h.isNode != isNode {
		return nil, fmt.Errorf("there is no such host as %s", name)
	}
	return h, nil
}

func (w *world) command(line string) (err error) {
	args := strings.Fields(line)
	verb := args[0]
	args, opts := options(args[1:])
	want := func(least, most int) error {
		if len(args) < least || len(args) > most {
			return fmt.Errorf("%s has %d words after it", verb, len(args))
		}
		return nil
	}
	switch verb {
	case "nodes":
		if w.cluster, err = w.configWith(w.cluster, opts); err != nil {
			return err
		}
		w.cluster.Nodes = args
		for key, field := range map[string]*int{"max-claims": &w.limits.MaxClaims, "max-queue": &w.limits.MaxQueue} {
			if v, ok := opts[key]; ok {
				if *field, err = strconv.Atoi(v); err != nil {
					return err
				}
			}
		}
		w.now = -probeWait
		if opts["epoch"] == "1" {
			w.begin()
		}
		for _, name := range args {
			h := &host{name: name, id: name, isNode: true, config: w.cluster, mark: []byte("{}"), marked: w.cluster.Digest()}
			if err := w.addHost(h); err != nil {
				return err
			}
			if len(w.records) > 0 {
				if err := w.firstState(h); err != nil {
					return err
				}
			}
			w.startNode(h)
		}
		if err := w.pass(probeWait, true); err != nil {
			return err
		}
		w.out.Reset() // that they are ready now goes without saying
		return nil

	case "client":
		for _, name := range args {
			cfg, err := w.configWith(w.cluster, opts)
			if err != nil {
				return err
			}
			if len(w.records) > 0 {
				if cfg, err = w.recordOf(strconv.Itoa(len(w.records))); err != nil {
					return err
				}
			}
			if v, ok := opts["record"]; ok {
				if cfg, err = w.recordOf(v); err != nil {
					return err
				}
			}
			ttl := cfg.MaxTTL
			if v, ok := opts["ttl"]; ok {
				if ttl, err = time.ParseDuration(v); err != nil {
					return err
				}
			}
			h := &host{name: name, of: name}
			if v, ok := opts["of"]; ok {
				h.of = v
			}
			h.instance = clientID(h.of)
			if v, ok := opts["clock"]; ok {
				if h.wall, err = time.ParseDuration(v); err != nil {
					return err
				}
			}
			if err := w.addHost(h); err != nil {
				return err
			}
			h.client = client.New(client.Config{
				Name: h.of, Instance: h.instance, TTL: ttl, MaxRuns: 10, Cluster: cfg,
			}, w.read(h))
			h.due = w.now + time.Second
			if opts["learns"] == "yes" {
				if err := w.learns(h, ttl); err != nil {
					return err
				}
			}
		}
		return nil

	case "acquire":
		if err := want(3, 4); err != nil {
			return err
		}
		h, err := w.host(args[0], false)
		if err != nil {
			return err
		}
		mode := quorum.Exclusive
		switch args[2] {
		case "shared":
			mode = quorum.Shared
		case "exclusive":
		default:
			return fmt.Errorf("no such mode: %s", args[2])
		}
		try := len(args) == 4 && args[3] == "try"
		if len(args) == 4 && !try {
			return fmt.Errorf("what is %s?", args[3])
		}
		var out client.Out
		cl := h.client.Claim(w.read(h), client.Request{Resource: args[1], Mode: mode, Try: try}, &out)
		name := fmt.Sprintf("%s%d", h.name, cl.Seq())
		w.claims[name] = &claim{name, h, cl}
		w.clientDid(h, out)
		return nil

	case "release":
		if err := want(1, 1); err != nil {
			return err
		}
		c := w.claims[args[0]]
		if c == nil {
			return fmt.Errorf("there is no claim %s", args[0])
		}
		var out client.Out
		c.host.client.Release(w.read(c.host), c.core, &out)
		w.clientDid(c.host, out)
		return nil

	case "evict": // at once, at these nodes
		if err := want(2, len(w.order)); err != nil {
			return err
		}
		c := w.claims[args[0]]
		if c == nil {
			return fmt.Errorf("there is no claim %s", args[0])
		}
		for _, name := range args[1:] {
			h := w.hosts[name]
			if h == nil || h.node == nil {
				return fmt.Errorf("there is no node %s that runs", name)
			}
			var out voter.Out
			h.node.Handle(w.read(h), &wire.Request{
				Verb: wire.Evict, Client: "ops", Resource: c.core.Resource(), Holder: c.host.of,
				Claim: wire.ClaimID{Instance: c.host.instance, Seq: c.core.Seq()},
			}, "", &out)
			w.nodeDid(h, out)
		}
		return nil

	case "deliver", "drop", "hold-back", "copy", "let-go":
		if verb == "deliver" && len(args) == 0 {
			return w.deliverAll()
		}
		return w.move(verb, args)

	case "cut", "mend":
		for _, a := range args {
			from, to, ok := strings.Cut(a, "->")
			if !ok {
				return fmt.Errorf("%s is not a link", a)
			}
			for _, f := range w.meant(from) {
				for _, t := range w.meant(to) {
					if w.cuts[[2]string{f, t}] = verb == "cut"; verb == "cut" && w.between(f, t) {
						return fmt.Errorf("there is something under way on %s: deliver or drop it first", a)
					}
				}
			}
		}
		return nil

	case "advance", "run":
		if err := want(1, 1); err != nil {
			return err
		}
		d, err := time.ParseDuration(args[0])
		if err != nil {
			return err
		}
		return w.pass(d, verb == "run")

	case "crash", "stop":
		if err := want(1, 1); err != nil {
			return err
		}
		h, err := w.host(args[0], true)
		if err != nil {
			return err
		}
		if verb == "stop" {
			if saved, ok := h.node.Save(w.read(h)); ok {
				h.mark, err = json.Marshal(saved)
				err = errors.Join(err, w.saveRecord(h))
				h.marked = w.digestOf(h)
			}
		}
		h.node = nil
		return err

	case "start":
		if err := want(1, 1); err != nil {
			return err
		}
		h, err := w.host(args[0], true)
		if err != nil {
			return err
		}
		if as := opts["as"]; as != "" {
			h = &host{name: as, id: h.id, isNode: true, config: h.config}
			if err := w.addHost(h); err != nil {
				return err
			}
		}
		if opts["join"] == "yes" {
			h.joins, h.config = true, wire.Config{MaxTTL: w.cluster.MaxTTL, Skew: w.cluster.Skew}
		}
		if h.config, err = w.configWith(h.config, opts); err != nil {
			return err
		}
		if h.node != nil {
			return fmt.Errorf("%s runs", h.name)
		}
		switch opts["directory"] {
		case "":
		case "new":
			h.loseDirectory()
		case "bootstrapped":
			h.mark, h.marked, h.known, h.ttl = []byte("{}"), h.config.Digest(), h.lives, 0
		default:
			return fmt.Errorf("there is no such directory")
		}
		w.startNode(h)
		return nil

	case "join", "record", "prepare", "accept", "learn":
		return w.recordCommand(verb, args, opts)

	case "pause", "suspend", "resume", "clock", "reconnect", "reconfigure", "show":
		if verb == "show" && len(args) == 1 && args[0] == "network" {
			w.showNetwork()
			return nil
		}
		if len(args) == 0 || w.hosts[args[0]] == nil {
			return fmt.Errorf("%s whom?", verb)
		}
		return w.toHost(w.hosts[args[0]], verb, args[1:], opts)

	case "probes":
		if err := want(1, 1); err != nil || args[0] != "shown" && args[0] != "hidden" {
			return errors.Join(err, fmt.Errorf("shown or hidden?"))
		}
		w.probes = args[0] == "shown"
		return nil
	}
	return fmt.Errorf("there is no command %s", verb)
}

func (w *world) toHost(h *host, verb string, args []string, opts map[string]string) error {
	switch verb {
	case "pause":
		h.paused = true
	case "suspend":
		h.paused, h.asleep = true, w.now
	case "resume":
		if h.asleep > 0 {
			h.slept += w.now - h.asleep
			h.asleep = 0
		}
		h.paused = false
		w.tick(h)
	case "clock":
		if len(args) != 1 {
			return fmt.Errorf("set to what?")
		}
		d, err := time.ParseDuration(args[0])
		if err != nil {
			return err
		}
		h.wall = d
	case "show":
		if h.isNode {
			w.showNode(h)
		} else {
			w.showClient(h)
		}
	case "reconnect":
		var out client.Out
		h.client.Reconnected(w.read(h), &out)
		w.clientDid(h, out)
	case "reconfigure":
		cfg, err := w.configWith(h.client.Cluster(), opts)
		if err != nil {
			return err
		}
		if v, ok := opts["record"]; ok {
			if cfg, err = w.recordOf(v); err != nil {
				return err
			}
		}
		var out client.Out
		h.client.SetCluster(w.read(h), cfg, &out)
		w.clientDid(h, out)
	}
	return nil
}

// move applies a verb to the messages that match all of args.
func (w *world) move(verb string, args []string) error {
	list := w.flight
	if verb == "let-go" {
		list = w.aside
	}
	var found []*message
	for _, m := range list {
		meets := true
		for _, a := range args {
			switch from, to, isLink := strings.Cut(a, "->"); {
			case isLink:
				meets = meets && (from == "*" || from == m.from) && (to == "*" || to == m.to)
			case a == "all":
			default:
				meets = meets && (a == m.kind || a == m.claim)
			}
		}
		if meets {
			found = append(found, m)
		}
	}
	if len(found) == 0 || len(args) == 0 {
		return fmt.Errorf("there is no such message")
	}
	without := func(list []*message) []*message {
		return slices.DeleteFunc(slices.Clone(list), func(m *message) bool { return slices.Contains(found, m) })
	}
	switch verb {
	case "deliver":
		for _, m := range found {
			if w.hosts[m.to].paused {
				return fmt.Errorf("%s stands still", m.to)
			}
			w.deliverOne(m)
		}
	case "drop":
		w.flight = without(w.flight)
	case "hold-back":
		w.flight, w.aside = without(w.flight), append(w.aside, found...)
	case "copy":
		for _, m := range found {
			c := *m
			w.aside = append(w.aside, &c)
		}
	case "let-go":
		w.flight, w.aside = append(w.flight, found...), without(w.aside)
	}
	return nil
}
