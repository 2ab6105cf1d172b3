package sim

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/epoch"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

// In the small worlds of this file the list of nodes changes (E1 to E18). A decision is one
// step, because package epoch explores how it is made. It is possible whenever the nodes that
// make it would accept it, and has the floor that they promise then.
//
// With messages in any order, or records taken at any moment, a change that is followed to its end
// has more states than a machine remembers: 10 million and more with one message overtaken. So the
// worlds that go to the end have bounds: messages come in the order in which they were sent, a
// machine takes a record when it handles the next message or none is under way (lazy), and a lease
// runs out once, when no message is under way. No message is lost, and no node crashes: the worlds of
// epochs have that, by chance. Where a change is rolled back, one message may be overtaken by all
// others.

// xRecord is a decided record and its history.
type xRecord struct {
	r     *wire.EpochRecord
	links []wire.Link
}

func (r *xRecord) config() wire.Config { return wire.RecordConfig(r.r, r.links) }

func (x *explorer) member(i int) wire.Member {
	return wire.Member{Name: x.nodeName(i), ID: xID(3, i, 0)}
}

// firstRecord is the record with which the world begins.
func (x *explorer) firstRecord() {
	base := x.cfg
	base.Nodes = base.Nodes[:x.before]
	r := &wire.EpochRecord{Cluster: "c", CID: uuid.UUID{9}, Epoch: 1, Prev: base.Digest(), MaxTTL: base.MaxTTL, Skew: base.Skew}
	for i := range x.before {
		r.Nodes = append(r.Nodes, x.member(i))
	}
	x.records = []xRecord{{r, []wire.Link{{Epoch: 0, Digest: base.Digest()}, {Epoch: 1, Digest: r.Digest()}}}}
	x.cfg = x.records[0].config()
}

// joinOrVote gives a node of the list its record. All others wait to join.
func (x *explorer) joinOrVote(c *voter.Config, m int) {
	c.Cluster, c.State = "c", epoch.State{ID: x.member(m).ID}
	if m < x.before {
		c.State.Record, c.State.Links = x.records[0].r, x.records[0].links
	} else {
		c.Config, c.Fresh = wire.Config{MaxTTL: xMaxTTL, Skew: x.cfg.Skew}, true
	}
}

// after returns the record that follows another one, and notes it.
func (x *explorer) follow(before uint16, change func(r *wire.EpochRecord)) uint16 {
	b := x.records[before]
	r := *b.r
	r.Epoch, r.Prev = r.Epoch+1, b.r.Digest()
	change(&r)
	if err := epoch.Follows(b.r, &r); err != nil {
		panic(err)
	}
	digest := r.Digest()
	if i := slices.IndexFunc(x.records, func(o xRecord) bool { return o.r.Digest() == digest }); i >= 0 {
		return uint16(i)
	}
	if len(x.records) == math.MaxUint16 {
		panic("too many records")
	}
	x.records = append(x.records, xRecord{&r, append(slices.Clone(b.links), wire.Link{Epoch: r.Epoch, Digest: digest})})
	return uint16(len(x.records) - 1)
}

// takeAtNode tells a node a record.
func (x *explorer) takeAtNode(mc *xMachine, in xInput, now wire.Now, out *voter.Out) {
	r := x.records[in.msg]
	mc.node.Handle(now, &wire.Request{Verb: wire.Configure, Client: "ops", Step: &wire.Step{
		Kind: wire.Learn, Epoch: r.r.Epoch, Record: r.r, Links: r.links[:len(r.links)-1],
	}}, "", out)
	if out.Write == nil {
		panic(fmt.Sprintf("a node does not take epoch %d", r.r.Epoch))
	}
	mc.node.Written(now, out)
	mc.jointAt = 0
	if r.r.Joint() {
		mc.jointAt = in.now
	}
}

// floorOf is what a node promises to be above all fences that it gave (E7).
func (x *explorer) floorOf(l *xLocal, at time.Duration) uint64 {
	mc := x.build(l)
	var out voter.Out
	mc.node.Handle(x.clock(l.machine, at), &wire.Request{Verb: wire.Configure, Client: "ops", Nonce: "f", Step: &wire.Step{
		Kind: wire.Prepare, Epoch: l.epoch + 1, Prev: x.digestOf(mc), Ballot: wire.Ballot{N: 1, Run: uuid.UUID{1}},
	}}, "ops", &out)
	if out.Write != nil {
		mc.node.Written(x.clock(l.machine, at), &out)
	}
	for _, s := range out.Answers {
		if a := s.Answer.Step; a != nil && a.Why == wire.WhyNone {
			return a.Floor
		}
	}
	panic("a node promises nothing")
}

func (x *explorer) digestOf(mc *xMachine) string {
	return mc.node.Configuration(wire.Now{}).Record.Digest()
}

// change tries all decisions, and has nodes and clients take what was decided.
func (x *explorer) change(s xState, try func(func() string, func() xState)) {
	last := x.records[s.record]
	decide := func(how string, next func() uint16) {
		try(func() string { return how }, func() xState {
			t := s
			t.record = next()
			return t
		})
	}
	have, waited := 0, 0
	for m := range x.before {
		if l := s.locals[m]; l.epoch == last.r.Epoch {
			have++
			if x.hasty || s.now-l.jointAt >= epoch.Wait(last.r) {
				waited++
			}
		}
	}
	need := quorum.Size(x.before, quorum.Exclusive)
	switch {
	case last.r.Epoch == 1:
		decide("a change is begun", func() uint16 {
			return x.follow(s.record, func(r *wire.EpochRecord) {
				for _, i := range x.next {
					r.Next = append(r.Next, x.member(i))
				}
				r.NextMaxTTL, r.NextSkew = r.MaxTTL, r.Skew
			})
		})
	case last.r.Epoch == 2 && have >= need:
		if x.back {
			decide("the change is rolled back", func() uint16 {
				return x.follow(s.record, func(r *wire.EpochRecord) { r.Next, r.NextMaxTTL, r.NextSkew = nil, 0, 0 })
			})
		}
		if waited >= need { // of one or two nodes that is all of them
			decide("the change is finished", func() uint16 {
				return x.follow(s.record, func(r *wire.EpochRecord) {
					for m := range x.before {
						r.Floor = max(r.Floor, x.floorOf(s.locals[m], s.now))
					}
					r.Nodes, r.MaxTTL, r.Skew = r.Next, r.NextMaxTTL, r.NextSkew
					r.Next, r.NextMaxTTL, r.NextSkew = nil, 0, 0
				})
			})
		}
	}
	for m := range x.machines {
		l := s.locals[m]
		if x.lazy && len(s.flight) > 0 && x.messages[s.flight[0]].to != m {
			continue
		}
		for id := s.record; x.records[id].r.Epoch > max(l.epoch, 1); id = x.recordBefore(id) {
			r := x.records[id].r
			if l.epoch == 0 && !x.isClient(m) && epoch.In(r, x.nodeName(m), x.member(m).ID) == 0 {
				continue
			}
			try(func() string { return fmt.Sprintf("%s takes epoch %d", x.host(m), r.Epoch) }, func() xState {
				return x.after(s, m, xInput{do: xTake, msg: id})
			})
		}
	}
}

func (x *explorer) recordBefore(id uint16) uint16 {
	prev := x.records[id].r.Prev
	return uint16(slices.IndexFunc(x.records, func(o xRecord) bool { return o.r.Digest() == prev }))
}

// The wait of a change that is finished.
var xWait = []time.Duration{xMaxTTL + xMaxTTL/50}

func TestExhaustiveChanges(t *testing.T) {
	exploreChanges(t, []xWorld{
		{name: "1 to another 1, joint", nodes: 2, before: 1, next: []int{1}, modes: xWriters, swaps: 1},
		{name: "1 to 2, joint", nodes: 2, before: 1, next: []int{0, 1}, modes: xWriters, swaps: 1},
		{name: "2 to 1, joint", nodes: 2, before: 2, next: []int{1}, modes: xWriters, swaps: 1},

		// And back.
		{name: "1 to 2 and back", nodes: 2, before: 1, next: []int{0, 1}, modes: xWriters, back: true, inOrder: true, lazy: true},

		// To the end: until the new list is alone and all messages have arrived. They take less than a
		// minute together.
		{name: "1 to another 1", nodes: 2, before: 1, next: []int{1}, modes: xWriters, leaps: 1, leap: xWait, inOrder: true, lazy: true, large: true},
		{name: "1 to 2", nodes: 2, before: 1, next: []int{0, 1}, modes: xWriters, leaps: 1, leap: xWait, inOrder: true, lazy: true, large: true},
		{name: "2 to 1", nodes: 2, before: 2, next: []int{1}, modes: xWriters, leaps: 1, leap: xWait, inOrder: true, lazy: true, large: true},
	})
}

// As many again, in about a minute.
func TestExhaustiveChangesMore(t *testing.T) {
	exploreChanges(t, []xWorld{
		{name: "1 to 2 and back, one overtaken", nodes: 2, before: 1, next: []int{0, 1}, modes: xWriters, back: true, swaps: 1, lazy: true, large: true},
		{name: "2 to 1 and back, one overtaken", nodes: 2, before: 2, next: []int{1}, modes: xWriters, back: true, swaps: 1, lazy: true, large: true},
		{name: "1 to another 1, a writer comes later", nodes: 2, before: 1, next: []int{1}, modes: xThenWrite, leaps: 1, leap: xWait, inOrder: true, lazy: true, large: true},
		{name: "1 to 2, a reader comes later", nodes: 2, before: 1, next: []int{0, 1}, modes: xThenRead, leaps: 1, leap: xWait, inOrder: true, lazy: true, large: true},
	})
}

func exploreChanges(t *testing.T, worlds []xWorld) {
	for _, w := range worlds {
		if w.large && !*exhaustive {
			continue
		}
		t.Run(w.name, func(t *testing.T) {
			x := newExplorer(w)
			x.explore()
			x.report(t)
			t.Logf("%d records", len(x.records))
			if x.err != nil {
				t.Fatalf("%v\n%s", x.err, strings.Join(x.trail, "\n"))
			}
			if len(x.seen) < 1000 {
				t.Errorf("only %d states: this world is too small to prove anything", len(x.seen))
			}
			if len(w.leap) > 0 && !slices.ContainsFunc(x.records, func(r xRecord) bool { return r.r.Epoch == 3 }) {
				t.Error("the change never came to its end")
			}
		})
	}
}

// The explorer finds that a change without a wait gives a lock to two (E5), also where messages come
// in order and records are taken late.
func TestExhaustiveChangesFindsFaults(t *testing.T) {
	for _, w := range []xWorld{
		{name: "one overtaken", nodes: 2, before: 1, next: []int{1}, modes: xWriters, swaps: 1, hasty: true},
		{name: "in order", nodes: 2, before: 1, next: []int{1}, modes: xWriters, inOrder: true, lazy: true, hasty: true},
	} {
		t.Run(w.name, func(t *testing.T) {
			x := newExplorer(w)
			x.explore()
			x.report(t)
			if x.err == nil || !strings.Contains(x.err.Error(), "two hold") {
				t.Fatalf("not found: %v", x.err)
			}
			t.Logf("%v\n%s", x.err, strings.Join(x.trail, "\n"))
		})
	}
}
