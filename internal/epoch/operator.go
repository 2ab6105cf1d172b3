package epoch

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

const (
	repeat   = 250 * time.Millisecond // a question or step is sent again
	patience = time.Second            // for how long nodes are waited for beyond those that are enough
	giveUp   = 3 * time.Second        // an attempt that has not come about by then is made anew
	gather   = 100 * time.Millisecond // promises beyond a majority are waited for
)

// Goal is what the operator wants.
type Goal int

const (
	Enable   Goal = iota // leave epoch 0: give all nodes of the list ids
	Change               // another list, or another longest lease or skew: both decisions
	Finish               // the change that is under way, to its end
	RollBack             // the change that is under way, back
)

// Wish is what the operator's command is for.
type Wish struct {
	Goal
	CID    uuid.UUID     // random: of the cluster, if it is at epoch 0
	Nodes  []string      // Change: the new list, sorted
	MaxTTL time.Duration // Change: 0: as it is
	Skew   time.Duration // Change: 0: as it is

	Gone       []string // Change: nodes that will not come back, and need not show that they have ids
	StayJoint  bool     // Change: leave the cluster joint
	Hurry      bool     // Change: begin although the last change was just now: held locks may be lost
	MostOfNext bool     // Finish: do not wait for all of the new list, a majority of it is enough
}

// Shown is what a node says of itself.
type Shown struct {
	Node    string
	ID      uuid.UUID   // nil UUID: it has no state directory
	Record  *Record     // nil: it has none
	Base    wire.Config // without record: of epoch 0
	Joining bool        // without record: it has no configuration at all
	Links   []wire.Link // the history up to Record
	Had     time.Duration
	Votes   bool
	// Recovering is for how long it will give no votes yet, also when a record names it.
	Recovering time.Duration
}

func (s *Shown) epoch() uint64 {
	if s.Record == nil {
		return 0
	}
	return s.Record.Epoch
}

// Want is what a step of the operator wants done.
type Want struct {
	Ask   string      // ask all nodes for what they show, with this nonce; "": do not
	Steps []wire.Step // for all nodes, or the one that they name
	Done  bool        // the wish is fulfilled, or Err says why it cannot be
	Err   error
	Note  string // what the operator should read
}

type phase int

const (
	surveying phase = iota // what is there?
	telling                // those that are behind learn what was decided
	preparing
	accepting
	pausing // until a moment, and then from the beginning
	ended
)

// Operator is the operator's command. It keeps nothing that is not also at the nodes: it may
// die at any moment, and another may go on. It is not safe for concurrent use.
type Operator struct {
	cluster string
	wish    Wish
	run     uuid.UUID // random: of this run of the command
	serial  int       // of surveys
	number  uint64    // of the last ballot seen

	phase   phase
	began   time.Duration // the phase
	sent    time.Duration
	until   time.Duration // while pausing
	shown   map[string]Shown
	current *Current
	want    func(floor uint64) *Record // what to propose if nothing was accepted before; nil: nothing
	round   *Round
	steps   []wire.Step // accepting: not yet answered
	learn   wire.Step
	told    map[string]bool
	mine    string          // digest of the last record that this run had decided
	carried string          // digest of another command's joint record that this one had to have decided
	left    []string        // nodes that the last decision of this run took out of all lists
	outbid  bool            // a node had promised a higher ballot
	silent  map[string]bool // nodes that do not vote yet, and so have no part in the present attempt
	noted   string
}

// NewOperator begins a run of the command. Ask for what it wants with Tick.
func NewOperator(cluster string, wish Wish, run uuid.UUID) *Operator {
	return &Operator{cluster: cluster, wish: wish, run: run, phase: pausing}
}

// Ended reports whether the command is over.
func (o *Operator) Ended() bool { return o.phase == ended }

// Deadline is when Tick must be called next.
func (o *Operator) Deadline() time.Duration {
	switch {
	case o.phase == ended:
		return 1 << 62
	case o.phase == pausing:
		return o.until
	case o.phase == preparing && o.round.Promised():
		return min(o.sent+repeat, o.began+gather)
	}
	return o.sent + repeat
}

// Tick does what time alone brings.
func (o *Operator) Tick(now time.Duration, w *Want) {
	switch o.phase {
	case ended:
	case pausing:
		if now >= o.until {
			o.survey(now, w)
		}
	case surveying:
		o.conclude(now, w)
		if o.phase == surveying && now-o.sent >= repeat {
			o.ask(now, w)
		}
	case telling:
		if now-o.began >= giveUp { // nodes that are down learn it later
			o.survey(now, w)
			return
		}
		o.send(now, w, o.learn)
	case preparing:
		if o.propose(now, w); o.phase != preparing {
			return
		}
		if now-o.began >= giveUp {
			o.again(now, o.undecided(), w)
			return
		}
		o.send(now, w, o.round.Prepare())
	case accepting:
		if now-o.began >= giveUp {
			o.again(now, o.undecided(), w)
			return
		}
		o.send(now, w, o.steps...)
	}
}

// undecided says why an attempt has not come about.
func (o *Operator) undecided() string {
	text := fmt.Sprintf("waiting for nodes: %d of %v have to decide", o.current.need(), o.current.acceptors())
	if len(o.silent) == 0 {
		return text + ", and too few of them answer in time"
	}
	return text + fmt.Sprintf(", and %v do not vote yet", slices.Sorted(maps.Keys(o.silent)))
}

func (o *Operator) send(now time.Duration, w *Want, steps ...wire.Step) {
	if now-o.sent >= repeat {
		o.sent, w.Steps = now, append(w.Steps, steps...)
	}
}

func (o *Operator) enter(now time.Duration, p phase) {
	o.phase, o.began, o.sent = p, now, now-repeat // what it says first is due at once
}

func (o *Operator) survey(now time.Duration, w *Want) {
	o.enter(now, surveying)
	o.serial++
	o.shown = map[string]Shown{}
	o.ask(now, w)
}

func (o *Operator) nonce() string { return fmt.Sprintf("%s/%d", o.run, o.serial) }

func (o *Operator) ask(now time.Duration, w *Want) { o.sent, w.Ask = now, o.nonce() }

// again goes back to the beginning after a pause that two commands do not keep in step.
func (o *Operator) again(now time.Duration, why string, w *Want) {
	b := o.run[:]
	b = binary.BigEndian.AppendUint64(slices.Clone(b), o.number)
	h := sha256.Sum256(binary.BigEndian.AppendUint64(b, uint64(o.serial)))
	o.pause(now, repeat/5+time.Duration(binary.BigEndian.Uint16(h[:]))*(3*repeat)/(1<<16), why, w)
}

func (o *Operator) pause(now, d time.Duration, why string, w *Want) {
	o.enter(now, pausing)
	o.until = now + d
	o.note(why, w)
}

func (o *Operator) note(text string, w *Want) {
	if text != "" && text != o.noted {
		o.noted, w.Note = text, text
	}
}

func (o *Operator) end(err error, w *Want) {
	o.phase, w.Done, w.Err = ended, true, err
}

// Show takes what a node shows, in answer to a question with this nonce.
func (o *Operator) Show(now time.Duration, nonce string, s Shown, w *Want) {
	if o.phase != surveying || nonce != o.nonce() {
		return
	}
	if old, ok := o.shown[s.Node]; ok && old.epoch() > s.epoch() {
		return // its answer of before it learned, late; or another process of its name, which says so itself
	}
	o.shown[s.Node] = s
	o.conclude(now, w)
}

// Hear takes a node's answer to a step.
func (o *Operator) Hear(now time.Duration, node string, a *wire.StepAnswer, w *Want) {
	switch o.phase {
	case preparing, accepting:
		o.round.Hear(now, node, a)
		if !o.current.acceptor(node, a.ID) {
			return
		}
		switch {
		case a.Why == wire.WhyNone:
		case a.Why == wire.WhyPromised && a.Ballot.Compare(o.round.ballot) > 0:
			// The first time it may be the ballot of a command that has ended.
			why := ""
			if o.number = max(o.number, a.Ballot.N); o.outbid {
				why = "another command is at work"
			}
			o.outbid = true
			o.again(now, why, w)
			return
		case a.Epoch > o.current.Epoch():
			o.again(now, "", w) // somebody decided
			return
		case a.Why == wire.WhyVotes:
			o.silent[node] = true
		}
		if o.phase == preparing {
			o.propose(now, w)
			return
		}
		o.steps = slices.DeleteFunc(o.steps, func(s wire.Step) bool { return o.round.accepted[s.Node] })
		if o.round.Decided() {
			o.decided(now, w)
		}
	case telling:
		if a.Kind == wire.Learn && a.Why == wire.WhyNone && a.Epoch >= o.learn.Epoch && In(o.learn.Record, node, a.ID) != 0 {
			o.told[node] = true
			if o.allTold() {
				o.survey(now, w)
			}
		}
	}
}

// conclude looks at what the nodes show, and decides what is to be done.
func (o *Operator) conclude(now time.Duration, w *Want) {
	current, err := o.evaluate()
	late := now-o.began >= patience
	switch {
	case err != nil && late:
		o.end(err, w)
		return
	case current == nil && late:
		o.note(o.nobody(), w)
		return
	case current == nil || !late && len(o.missing(current)) > 0:
		return
	}
	o.current = current
	if n := o.heard(current); n < current.need() {
		o.note(fmt.Sprintf("waiting for nodes: %d of %v answer, %d must", n, current.acceptors(), current.need()), w)
		return
	}
	if r := current.Record; r != nil {
		o.learn = wire.Step{Kind: wire.Learn, Epoch: r.Epoch, Record: r, Links: slices.DeleteFunc(slices.Clone(current.Links), func(l wire.Link) bool { return l.Epoch >= r.Epoch })}
		o.told = map[string]bool{}
		have, behind := 0, false
		for name, s := range o.shown {
			switch {
			case s.epoch() < r.Epoch:
				behind = behind || !s.Joining || In(r, name, s.ID) != 0
			case In(r, name, s.ID) != 0:
				o.told[name] = true
				if current.acceptor(name, s.ID) {
					have++
				}
			}
		}
		if have < current.need() {
			o.enter(now, telling)
			o.Tick(now, w)
			return
		}
		if behind {
			w.Steps = append(w.Steps, o.learn)
		}
	}
	o.decide(now, w)
}

// nobody says that no node shows a configuration.
func (o *Operator) nobody() string {
	if len(o.shown) == 0 {
		return "waiting for nodes: none answers"
	}
	return fmt.Sprintf("waiting for nodes that have a list: %v answer, but only wait to be added to one; the nodes of a new cluster are started with a list (--nodes in place of --join)", slices.Sorted(maps.Keys(o.shown)))
}

// evaluate finds the configuration that the cluster has by what the nodes show; nil if that
// cannot be said yet.
func (o *Operator) evaluate() (*Current, error) {
	var top, base *Shown
	differ := false
	for _, name := range slices.Sorted(maps.Keys(o.shown)) {
		s := o.shown[name]
		switch {
		case s.Record == nil && s.Joining:
		case s.Record == nil:
			if base != nil && base.Base.Digest() != s.Base.Digest() {
				differ = true
			}
			base = &s
		case s.Record.Cluster != o.cluster:
			return nil, fmt.Errorf("node %s is of cluster %s, not of %s", name, s.Record.Cluster, o.cluster)
		case top != nil && s.Record.CID != top.Record.CID:
			return nil, fmt.Errorf("nodes %s and %s are of two clusters of one name: their nodes must not reach each other", top.Node, name)
		case top != nil && s.epoch() == top.epoch() && s.Record.Digest() != top.Record.Digest():
			return nil, fmt.Errorf("history is split: nodes %s and %s have different records of epoch %d; stop all nodes and set the cluster up anew", top.Node, name, s.epoch())
		case top == nil || s.epoch() > top.epoch():
			top = &s
		}
	}
	switch {
	case top != nil:
		return &Current{Cluster: o.cluster, Record: top.Record, Links: top.Links}, nil
	case differ:
		return nil, errors.New("nodes were told different lists, longest leases or skews: correct their configurations first")
	case base != nil:
		return &Current{Cluster: o.cluster, Base: base.Base}, nil
	}
	return nil, nil
}

// missing lists the nodes that should have answered.
func (o *Operator) missing(c *Current) (out []string) {
	all := slices.Concat(c.acceptors(), o.wish.Nodes)
	if c.Record != nil {
		all = append(all, names(c.Record.Next)...)
	}
	for _, name := range all {
		if _, ok := o.shown[name]; !ok && !slices.Contains(o.wish.Gone, name) {
			out = append(out, name)
		}
	}
	return out
}

func (o *Operator) heard(c *Current) (n int) {
	for name, s := range o.shown {
		if c.acceptor(name, s.ID) {
			n++
		}
	}
	return n
}

// allTold reports whether a quorum of each list has the record.
func (o *Operator) allTold() bool {
	r := o.learn.Record
	var c quorum.Count
	for name := range o.told {
		for _, m := range r.Nodes {
			if m.Name == name {
				c.Add(quorum.InNodes)
			}
		}
		for _, m := range r.Next {
			if m.Name == name {
				c.Add(quorum.InNext)
			}
		}
	}
	return quorum.JointSize(len(r.Nodes), len(r.Next), quorum.Exclusive).Met(c)
}

// decide begins what the wish needs next.
func (o *Operator) decide(now time.Duration, w *Want) {
	r := o.current.Record
	if o.wish.Goal == Change && (r == nil || !r.Joint()) {
		longest := o.wish.MaxTTL
		if longest == 0 {
			longest = o.current.maxTTL()
		}
		if o.wish.Skew > longest {
			o.end(fmt.Errorf("a skew of %v is more than the longest lease of %v: give a longer lease with it, or a smaller skew", o.wish.Skew, longest), w)
			return
		}
	}
	if r == nil {
		o.enable(now, w)
		return
	}
	if r.Epoch == 1 {
		// A node that is still at epoch 0, and one that lost its directory, could make a
		// quorum of a list that the cluster has left.
		for _, m := range r.Nodes {
			if s, ok := o.shown[m.Name]; (!ok || s.epoch() < 1 && !s.Joining) && !slices.Contains(o.wish.Gone, m.Name) { //plant:epoch-all-have-ids
				w.Steps = append(w.Steps, o.learn)
				o.pause(now, repeat, fmt.Sprintf("waiting for node %s: before the first change, all nodes must show that they have ids; if it will never come back, name it as gone", m.Name), w)
				return
			}
		}
	}
	switch {
	case o.wish.Goal == Enable:
		o.end(nil, w)
		if o.current.Digest() != o.mine {
			o.idle(w)
		}
	case !r.Joint() && o.wish.Goal == Change:
		o.begin(now, w)
	case !r.Joint():
		o.nothing(now, w)
	case o.wish.Goal == RollBack:
		o.decideOn(now, o.ending(false), w)
	case o.wish.Goal == Change && !o.wishes(names(r.Next), r.NextMaxTTL, r.NextSkew) && o.current.Digest() == o.carried:
		// Nobody waits for it any more, and its new nodes may be dead: then nobody would get a
		// lock until somebody looks.
		o.decideOn(now, o.ending(false), w)
	case o.wish.Goal == Change && !o.wishes(names(r.Next), r.NextMaxTTL, r.NextSkew):
		o.end(fmt.Errorf("a change to %s is under way: finish it or roll it back first", aims(r)), w)
	case o.wish.Goal == Change && o.wish.StayJoint:
		o.end(nil, w)
	default:
		o.finish(now, w)
	}
}

// aims says what a joint record changes to: the new list, and the limits if they are other ones.
func aims(r *Record) string {
	s := fmt.Sprint(names(r.Next))
	if r.NextMaxTTL != r.MaxTTL || r.NextSkew != r.Skew {
		s += fmt.Sprintf(" with leases of up to %v and a skew of up to %v", r.NextMaxTTL, r.NextSkew)
	}
	return s
}

// wishes reports whether the list and its limits are those that the operator wants.
func (o *Operator) wishes(nodes []string, maxTTL, skew time.Duration) bool {
	return slices.Equal(nodes, o.wish.Nodes) && (o.wish.MaxTTL == 0 || o.wish.MaxTTL == maxTTL) && (o.wish.Skew == 0 || o.wish.Skew == skew)
}

// enable proposes epoch 1.
func (o *Operator) enable(now time.Duration, w *Want) {
	if o.wish.Goal == Finish || o.wish.Goal == RollBack {
		// All nodes answered, and a joint record needs that all show epoch 1 before it.
		o.end(nil, w)
		o.idle(w)
		return
	}
	base := o.current.Base
	first := &Record{Cluster: o.cluster, CID: o.wish.CID, Epoch: 1, Prev: base.Digest(), MaxTTL: base.MaxTTL, Skew: base.Skew}
	for _, name := range slices.Sorted(slices.Values(base.Nodes)) {
		s := o.shown[name]
		if s.ID == uuid.Nil {
			o.end(fmt.Errorf("node %s has no state directory: the list of nodes can only be changed where all have one", name), w)
			return
		}
		first.Nodes = append(first.Nodes, wire.Member{Name: name, ID: s.ID})
	}
	o.decideOn(now, func(uint64) *Record { return first }, w)
}

// nothing ends the command if no change is under way. Another command may have died when its
// change was decided, or was about to be, and none of those that have to decide knew it: so
// they are asked, unless it was this run that had the record decided.
func (o *Operator) nothing(now time.Duration, w *Want) {
	if o.current.Digest() == o.mine {
		o.end(nil, w)
		if len(o.left) > 0 {
			o.note(fmt.Sprintf("done: %v may be stopped, no list has them any more", o.left), w)
		}
		return
	}
	o.decideOn(now, nil, w) //plant:epoch-nothing-hidden
}

// idle says why the command ends without having done anything.
func (o *Operator) idle(w *Want) {
	switch o.wish.Goal {
	case Enable:
		o.note("the nodes have ids already: nothing to do", w)
	case Change:
		o.note(fmt.Sprintf("the nodes are %v already: nothing to do", o.wish.Nodes), w)
	default:
		o.note("no change of the list of nodes is under way: nothing to do", w)
	}
}

// begin proposes the joint record.
func (o *Operator) begin(now time.Duration, w *Want) {
	r := o.current.Record
	if o.wishes(names(r.Nodes), r.MaxTTL, r.Skew) {
		for _, m := range r.Nodes { // else the operator would believe that all is well
			if s, ok := o.shown[m.Name]; ok && s.ID != m.ID {
				o.end(lostDirectory(m.Name), w)
				return
			}
		}
		o.nothing(now, w)
		return
	}
	joint := &Record{
		Cluster: r.Cluster, CID: r.CID, Epoch: r.Epoch + 1, Prev: r.Digest(), Floor: r.Floor,
		Nodes: r.Nodes, MaxTTL: r.MaxTTL, Skew: r.Skew,
		NextMaxTTL: r.MaxTTL, NextSkew: r.Skew,
	}
	if o.wish.MaxTTL > 0 {
		joint.NextMaxTTL = o.wish.MaxTTL
		if o.wish.MaxTTL < r.MaxTTL {
			// What is left of the lease is how far the clocks of nodes may differ (N3).
			joint.NextSkew = min(r.Skew, (o.wish.MaxTTL / 2).Truncate(time.Millisecond))
		}
	}
	if o.wish.Skew > 0 {
		joint.NextSkew = o.wish.Skew
	}
	for _, name := range o.wish.Nodes {
		s, ok := o.shown[name]
		i := slices.IndexFunc(r.Nodes, func(m wire.Member) bool { return m.Name == name })
		switch {
		case i >= 0 && ok && s.ID != r.Nodes[i].ID:
			o.end(lostDirectory(name), w)
			return
		case i >= 0:
			joint.Next = append(joint.Next, r.Nodes[i])
			continue
		case !ok:
			o.pause(now, repeat, fmt.Sprintf("waiting for node %s, which is new: start it so that it joins, or check its name", name), w)
			return
		case s.ID == uuid.Nil:
			o.end(fmt.Errorf("node %s has no state directory, and so cannot become a node of this cluster", name), w)
			return
		case s.Record == nil && !s.Joining:
			o.end(fmt.Errorf("node %s was started with a list of nodes: start it so that it joins (--join in place of --nodes)", name), w)
			return
		case s.Recovering > 0: //plant:epoch-new-node-votes
			// While joint, locks need the votes of the new list too.
			o.pause(now, min(s.Recovering, patience), fmt.Sprintf("waiting for node %s, which is new and may have forgotten votes: it gives none until those have expired", name), w)
			return
		}
		joint.Next = append(joint.Next, wire.Member{Name: name, ID: s.ID})
	}
	if err := Follows(r, joint); err != nil {
		o.end(err, w)
		return
	}
	// A client must have got its votes under one record before the next but one comes.
	if left := o.remaining(r.Longest()); left > 0 && !o.wish.Hurry && r.Epoch > 1 { //plant:epoch-pause
		o.pause(now, min(left, patience), fmt.Sprintf("waiting for %v: clients have to follow the last change before the next one", (left+time.Second-1).Truncate(time.Second)), w)
		return
	}
	o.decideOn(now, func(uint64) *Record { return joint }, w)
}

func lostDirectory(name string) error {
	return fmt.Errorf("node %s has lost its state directory since it became a node, and is another node now: start it under another name, or change it out of the list and then in again", name)
}

// remaining is how long it takes until a majority has had the record for so long.
func (o *Operator) remaining(long time.Duration) time.Duration {
	var all []time.Duration
	for name, s := range o.shown {
		if o.current.acceptor(name, s.ID) && s.epoch() == o.current.Epoch() {
			all = append(all, max(long-s.Had, 0))
		}
	}
	slices.Sort(all)
	if len(all) < o.current.need() {
		return long
	}
	return all[o.current.need()-1]
}

// ending is the record that ends a joint one, by the new list or by the old one.
func (o *Operator) ending(byNext bool) func(uint64) *Record {
	j := o.current.Record
	return func(floor uint64) *Record {
		r := &Record{
			Cluster: j.Cluster, CID: j.CID, Epoch: j.Epoch + 1, Prev: j.Digest(), Floor: j.Floor,
			Nodes: j.Nodes, MaxTTL: j.MaxTTL, Skew: j.Skew,
		}
		if byNext {
			r.Nodes, r.MaxTTL, r.Skew = j.Next, j.NextMaxTTL, j.NextSkew
			r.Floor = max(r.Floor, floor) //plant:epoch-floor-of-promises
		}
		return r
	}
}

// finish proposes the new list alone, if that can work without the old one.
func (o *Operator) finish(now time.Duration, w *Want) {
	r := o.current.Record
	ready := 0
	var missing []string
	for _, m := range r.Next {
		if s, ok := o.shown[m.Name]; ok && s.ID == m.ID && s.epoch() == r.Epoch && s.Votes {
			ready++
		} else {
			missing = append(missing, m.Name)
		}
	}
	need := len(r.Next)
	if o.wish.MostOfNext {
		need = quorum.Size(need, quorum.Exclusive)
	}
	if ready < need { //plant:epoch-next-ready
		w.Steps = append(w.Steps, o.learn)
		o.pause(now, repeat, fmt.Sprintf("waiting for the new nodes %v to vote", missing), w)
		return
	}
	if left := o.remaining(Wait(r)); left > 0 {
		o.runOut(now, left, w)
		return
	}
	o.decideOn(now, o.ending(true), w)
}

// runOut waits for votes from before the change. Whether another command ends it meanwhile
// is looked at now and then.
func (o *Operator) runOut(now, left time.Duration, w *Want) {
	o.pause(now, min(left, patience), fmt.Sprintf("waiting for %v: locks that were taken before the change have to run out", (left+time.Second-1).Truncate(time.Second)), w)
}

// decideOn begins an attempt to have the next record decided.
func (o *Operator) decideOn(now time.Duration, want func(floor uint64) *Record, w *Want) {
	o.number++
	o.want = want
	o.round = NewRound(o.current, wire.Ballot{N: o.number, Run: o.run})
	o.silent = map[string]bool{}
	o.enter(now, preparing)
	o.send(now, w, o.round.Prepare())
}

// propose goes on to the second half of the attempt as soon as it can.
func (o *Operator) propose(now time.Duration, w *Want) {
	if !o.round.Promised() || len(o.round.promises) < len(o.current.acceptors()) && now-o.began < gather {
		return
	}
	value := o.round.Found()
	if value == nil && o.want == nil {
		o.end(nil, w)
		o.idle(w)
		return
	}
	if value == nil {
		value = o.want(o.round.Floor())
	} else {
		if value.Joint() {
			o.carried = value.Digest()
		}
		o.note(fmt.Sprintf("carrying on what another command proposed: nodes %v", names(value.Nodes)), w)
	}
	o.steps = o.round.Propose(now, value)
	if len(o.steps) == 0 {
		o.runOut(now, o.round.Left(now), w)
		return
	}
	o.enter(now, accepting)
	o.send(now, w, o.steps...)
}

// decided is what follows a decision: all have to learn it.
func (o *Operator) decided(now time.Duration, w *Want) {
	r := o.round.proposal
	o.learn = o.round.Learn()
	o.mine = r.Digest()
	o.left = nil
	if before := o.current.Record; before != nil {
		for _, n := range names(slices.Concat(before.Nodes, before.Next)) {
			if in := names(slices.Concat(r.Nodes, r.Next)); !slices.Contains(in, n) && !slices.Contains(o.left, n) {
				o.left = append(o.left, n)
			}
		}
	}
	o.told = map[string]bool{}
	o.current = &Current{Cluster: o.cluster, Record: r, Links: append(slices.Clone(o.learn.Links), wire.Link{Epoch: r.Epoch, Digest: r.Digest()})}
	what := fmt.Sprintf("epoch %d is decided: nodes %v", r.Epoch, names(r.Nodes))
	if r.Joint() {
		what += " and " + aims(r)
	}
	o.note(what, w)
	o.enter(now, telling)
	o.send(now, w, o.learn)
}
