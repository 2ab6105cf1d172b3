package epoch

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// quiet is a world in which all is well, with nodes a, b and c of epoch 0 and d, e and f
// that are to join.
func quiet(t *testing.T) *chaos {
	c := newChaos(t, 1)
	c.rng, c.loss, c.calm = rand.New(rand.NewPCG(2, 2)), 0, true
	return c
}

// done runs a command to its end.
func (c *chaos) done(wish Wish) error {
	c.t.Helper()
	x := c.operate(wish)
	c.until(c.now + 20*time.Second)
	if !x.o.Ended() {
		c.t.Fatalf("%v %v is not done: %s", wish.Goal, wish.Nodes, x.o.noted)
	}
	if c.failed != "" {
		c.t.Fatal(c.failed)
	}
	return x.err
}

func (c *chaos) must(wish Wish) {
	c.t.Helper()
	if err := c.done(wish); err != nil {
		c.t.Fatalf("%v %v: %v", wish.Goal, wish.Nodes, err)
	}
}

func (c *chaos) node(name string) *member {
	return c.nodes[strings.Index("abcdef", name)]
}

// has checks which record a node has: its epoch and lists.
func (c *chaos) has(name, want string) {
	c.t.Helper()
	r := c.node(name).a.Record()
	got := "-"
	if r != nil {
		got = strings.Join(names(r.Nodes), " ")
		if r.Joint() {
			got += " + " + strings.Join(names(r.Next), " ")
		}
	}
	if got != want {
		c.t.Fatalf("node %s has the list %q, want %q", name, got, want)
	}
}

func list(s string) []string { return strings.Fields(s) }

func TestOperator(t *testing.T) {
	change := func(to string) Wish { return Wish{Goal: Change, Nodes: list(to), Hurry: true} }
	joint := func(to string) Wish { return Wish{Goal: Change, Nodes: list(to), Hurry: true, StayJoint: true} }
	for _, c := range []struct {
		name string
		do   func(t *testing.T, c *chaos)
	}{
		{"enable, and enable again", func(t *testing.T, c *chaos) {
			c.must(Wish{Goal: Enable})
			c.has("c", "a b c")
			c.must(Wish{Goal: Enable})
			if r := c.node("a").a.Record(); r.Epoch != 1 {
				t.Errorf("epoch %d", r.Epoch)
			}
		}},
		{"grow and shrink from epoch 0", func(t *testing.T, c *chaos) {
			c.must(change("a b c d e"))
			for _, n := range list("a b c d e") {
				c.has(n, "a b c d e")
			}
			c.must(change("e"))
			c.has("e", "e")
			c.has("a", "e") // so that it knows that it can be stopped
			c.must(change("a b c d e f"))
			c.has("f", "a b c d e f")
		}},
		{"a new node is in doubt", func(t *testing.T, c *chaos) {
			c.must(Wish{Goal: Enable})
			c.node("d").votesAt = c.now + 5*time.Second
			x := c.operate(change("b c d"))
			if c.until(c.now + 4*time.Second); c.node("a").a.Record().Epoch != 1 || !strings.Contains(x.o.noted, "node d, which is new") {
				t.Errorf("epoch %d, and it says %q", c.node("a").a.Record().Epoch, x.o.noted)
			}
			if c.until(c.now + 15*time.Second); !x.o.Ended() || x.err != nil {
				t.Errorf("it has not ended: %v", x.err)
			}
			c.has("d", "b c d")
		}},
		{"nothing to do", func(t *testing.T, c *chaos) {
			c.must(Wish{Goal: Enable})
			c.must(change("a b c"))
			if e := c.node("a").a.Record().Epoch; e != 1 {
				t.Errorf("epoch %d", e)
			}
			c.must(Wish{Goal: Finish})
			c.must(Wish{Goal: RollBack})
		}},
		{"it says what it did not do, and who may be stopped", func(t *testing.T, c *chaos) {
			says := func(w Wish, want string) {
				t.Helper()
				x := c.operate(w)
				c.until(c.now + 20*time.Second)
				if !x.o.Ended() || x.err != nil || x.o.noted != want {
					t.Errorf("ended %v: %v; it says %q, want %q", x.o.Ended(), x.err, x.o.noted, want)
				}
			}
			says(Wish{Goal: Enable}, "epoch 1 is decided: nodes [a b c]")
			says(Wish{Goal: Enable}, "the nodes have ids already: nothing to do")
			says(Wish{Goal: RollBack}, "no change of the list of nodes is under way: nothing to do")
			says(change("a b c"), "the nodes are [a b c] already: nothing to do")
			says(change("a b c d"), "epoch 3 is decided: nodes [a b c d]")
			says(change("a e"), "done: [b c d] may be stopped, no list has them any more")
			c.must(joint("a f"))
			says(Wish{Goal: RollBack}, "done: [f] may be stopped, no list has them any more")
		}},
		{"no change is under way at epoch 0", func(t *testing.T, c *chaos) {
			for _, g := range []Goal{Finish, RollBack} {
				x := c.operate(Wish{Goal: g})
				if c.until(c.now + 20*time.Second); !x.o.Ended() || x.err != nil || !strings.Contains(x.o.noted, "no change of the list of nodes is under way") {
					t.Errorf("ended %v: %v; it says %q", x.o.Ended(), x.err, x.o.noted)
				}
				c.has("a", "-")
			}
		}},
		{"another lease for the same list", func(t *testing.T, c *chaos) {
			c.must(Wish{Goal: Change, Nodes: list("a b c"), MaxTTL: maxTTL / 20, Hurry: true})
			if r := c.node("b").a.Record(); r.Epoch != 3 || r.MaxTTL != maxTTL/20 || r.Skew != maxTTL/40 {
				t.Errorf("%+v", r)
			}
			c.must(Wish{Goal: Change, Nodes: list("a b c"), MaxTTL: maxTTL, Skew: skew, Hurry: true})
			if r := c.node("b").a.Record(); r.Epoch != 5 || r.MaxTTL != maxTTL || r.Skew != skew {
				t.Errorf("%+v", r)
			}
		}},
		{"a skew beyond the longest lease changes nothing", func(t *testing.T, c *chaos) {
			for _, w := range []Wish{
				{Goal: Change, Nodes: list("a b c"), Skew: maxTTL + time.Millisecond}, // at epoch 0
				{Goal: Change, Nodes: list("a b d"), Skew: maxTTL / 2, MaxTTL: maxTTL / 4},
			} {
				if err := c.done(w); err == nil || !strings.Contains(err.Error(), "is more than the longest lease of") {
					t.Errorf("%v", err)
				}
				c.has("a", "-")
			}
			c.must(Wish{Goal: Change, Nodes: list("a b c"), Skew: maxTTL})
			if r := c.node("b").a.Record(); r.Epoch != 3 || r.Skew != maxTTL {
				t.Errorf("%+v", r)
			}
		}},
		{"a change of limits is told", func(t *testing.T, c *chaos) {
			c.must(Wish{Goal: Change, Nodes: list("a b c"), MaxTTL: maxTTL / 4, StayJoint: true})
			want := fmt.Sprintf("a change to [a b c] with leases of up to %v and a skew of up to %v is under way", maxTTL/4, skew)
			if err := c.done(change("a b c d")); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %s", err, want)
			}
		}},
		{"no node has a list", func(t *testing.T, c *chaos) {
			for _, n := range list("a b c") {
				c.node(n).stop(c, true)
			}
			for _, g := range []Goal{Enable, Change, Finish} {
				x := c.operate(Wish{Goal: g, Nodes: list("d e f")})
				if c.until(c.now + 5*time.Second); x.o.Ended() || !strings.Contains(x.o.noted, "[d e f] answer, but only wait to be added") {
					t.Errorf("ended %v: %q", x.o.Ended(), x.o.noted)
				}
				x.dead = true
			}
			for _, n := range list("d e f") {
				c.node(n).stop(c, true)
			}
			if x := c.operate(change("d e f")); true {
				if c.until(c.now + 5*time.Second); x.o.Ended() || x.o.noted != "waiting for nodes: none answers" {
					t.Errorf("ended %v: %q", x.o.Ended(), x.o.noted)
				}
			}
		}},
		{"nodes that do not vote are told once", func(t *testing.T, c *chaos) {
			c.must(joint("b c d"))
			for _, n := range list("a b") {
				c.node(n).votesAt = c.now + 20*time.Second
			}
			x := c.operate(Wish{Goal: RollBack})
			said := map[string]int{}
			for end := c.now + 15*time.Second; c.now < end; c.until(c.todo[0].at) {
				if said[x.o.noted]++; x.o.noted != "" && x.o.noted != "waiting for nodes: 2 of [a b c] have to decide, and [a b] do not vote yet" {
					t.Fatal(x.o.noted)
				}
			}
			if len(said) != 2 || x.o.Ended() {
				t.Errorf("%v, ended %v", said, x.o.Ended())
			}
			if c.until(c.now + 15*time.Second); !x.o.Ended() || x.err != nil {
				t.Errorf("ended %v: %v", x.o.Ended(), x.err)
			}
		}},
		{"one command leaves it joint, another finishes", func(t *testing.T, c *chaos) {
			c.must(joint("b c d"))
			c.has("a", "a b c + b c d")
			c.must(Wish{Goal: Finish})
			c.has("a", "b c d")
		}},
		{"the same change again goes on where the first one stopped", func(t *testing.T, c *chaos) {
			c.must(joint("b c d"))
			c.must(change("b c d"))
			c.has("d", "b c d")
		}},
		{"another change is under way", func(t *testing.T, c *chaos) {
			c.must(joint("b c d"))
			if err := c.done(change("b c e")); err == nil || !strings.Contains(err.Error(), "under way") {
				t.Errorf("%v", err)
			}
			c.has("a", "a b c + b c d")
		}},
		{"the new nodes do not come up: roll back", func(t *testing.T, c *chaos) {
			c.must(joint("d e f"))
			for _, n := range list("d e f") {
				c.node(n).stop(c, false)
			}
			x := c.operate(Wish{Goal: Finish, MostOfNext: true})
			c.until(c.now + 10*time.Second)
			if x.o.Ended() || !strings.Contains(x.o.noted, "waiting for the new nodes") {
				t.Errorf("ended %v: %s", x.o.Ended(), x.o.noted)
			}
			c.has("a", "a b c + d e f")
			x.dead = true
			c.must(Wish{Goal: RollBack})
			c.has("a", "a b c")
			// No trace of the attempt to finish is left that could come to life.
			c.must(Wish{Goal: Change, Nodes: list("a b"), Hurry: true})
			c.has("a", "a b")
		}},
		{"all new nodes are waited for, unless told otherwise", func(t *testing.T, c *chaos) {
			c.must(joint("c d e"))
			c.node("e").stop(c, false)
			x := c.operate(Wish{Goal: Finish})
			c.until(c.now + 10*time.Second)
			if x.o.Ended() {
				t.Error("finished without node e")
			}
			x.dead = true
			c.must(Wish{Goal: Finish, MostOfNext: true})
			c.has("d", "c d e")
		}},
		{"a node of the old list is dead", func(t *testing.T, c *chaos) {
			c.must(Wish{Goal: Enable})
			c.node("a").stop(c, false)
			w := change("b c d")
			w.Gone = list("a")
			c.must(w)
			c.has("d", "b c d")
			c.node("b").stop(c, false)
			c.must(change("c d e")) // not the first change any more
			c.node("a").start(c)
			c.must(change("c d e"))
			c.has("a", "c d e")
		}},
		{"a node lost its directory", func(t *testing.T, c *chaos) {
			c.must(Wish{Goal: Enable})
			n := c.node("a")
			n.stop(c, false)
			n.disk, n.told = State{ID: c.newID()}, false
			n.start(c)
			if err := c.done(change("a b c d")); err == nil || !strings.Contains(err.Error(), "lost its state directory") {
				t.Errorf("%v", err)
			}
			c.must(change("b c d"))
			c.must(change("a b c"))
			c.has("a", "a b c")
		}},
		{"a change that nobody has learned is found, and rolled back", func(t *testing.T, c *chaos) {
			c.must(Wish{Goal: Enable})
			x := c.operate(joint("d e f"))
			for c.node("a").a.State().Proposal == nil || c.node("b").a.State().Proposal == nil {
				c.until(c.todo[0].at)
			}
			x.dead = true
			c.until(c.now + time.Second)
			c.has("a", "a b c")
			c.must(Wish{Goal: RollBack})
			c.has("a", "a b c")
			if r := c.node("a").a.Record(); r.Epoch != 3 {
				t.Errorf("epoch %d: the change is still hidden", r.Epoch)
			}
		}},
		{"not all nodes are up at epoch 0", func(t *testing.T, c *chaos) {
			c.node("b").stop(c, true)
			x := c.operate(change("a c d"))
			c.until(c.now + 10*time.Second)
			if x.o.Ended() {
				t.Error("done without node b")
			}
			c.node("b").start(c)
			c.until(c.now + 10*time.Second)
			c.has("d", "a c d")
		}},
		{"no change before all have ids", func(t *testing.T, c *chaos) {
			c.must(Wish{Goal: Enable})
			c.node("b").stop(c, false)
			c.node("b").disk = State{ID: c.node("b").disk.ID} // as if it had not learned
			c.node("b").start(c)
			c.node("b").stop(c, true)
			x := c.operate(change("a c d"))
			c.until(c.now + 10*time.Second)
			if x.o.Ended() || !strings.Contains(x.o.noted, "must show that they have ids") {
				t.Errorf("ended %v: %s", x.o.Ended(), x.o.noted)
			}
			c.node("b").start(c)
			c.until(c.now + 10*time.Second)
			c.has("d", "a c d")
		}},
		{"the next change waits for clients", func(t *testing.T, c *chaos) {
			x := c.operate(Wish{Goal: Change, Nodes: list("a b d")})
			for !x.o.Ended() {
				c.until(c.now + 10*time.Millisecond)
			}
			began := c.now
			x = c.operate(Wish{Goal: Change, Nodes: list("a b e"), StayJoint: true})
			for !x.o.Ended() && c.now < began+10*time.Second {
				c.until(c.now + 10*time.Millisecond)
			}
			if took := c.now - began; x.err != nil || took < maxTTL-200*time.Millisecond || took > 3*maxTTL {
				t.Errorf("%v, after %v", x.err, took)
			}
			c.has("e", "a b d + a b e")
		}},
		{"a new node is not up", func(t *testing.T, c *chaos) {
			c.must(Wish{Goal: Enable})
			c.node("d").stop(c, true)
			x := c.operate(change("a b d"))
			c.until(c.now + 10*time.Second)
			if x.o.Ended() || !strings.Contains(x.o.noted, "node d, which is new") {
				t.Errorf("ended %v: %s", x.o.Ended(), x.o.noted)
			}
			c.has("a", "a b c")
		}},
		{"a new node was told a list", func(t *testing.T, c *chaos) {
			c.must(Wish{Goal: Enable})
			n := c.node("d")
			n.stop(c, true)
			n.told = true
			n.start(c)
			if err := c.done(change("a b d")); err == nil || !strings.Contains(err.Error(), "so that it joins") {
				t.Errorf("%v", err)
			}
		}},
		{"nodes of two clusters of one name", func(t *testing.T, c *chaos) {
			c.must(Wish{Goal: Enable})
			n := c.node("f")
			n.stop(c, true)
			n.disk.Record = &Record{Cluster: "test", CID: idOf("x"), Epoch: 7, Prev: base.Digest(), Nodes: members("f"), MaxTTL: maxTTL, Skew: skew}
			n.start(c)
			if err := c.done(change("a b d")); err == nil || !strings.Contains(err.Error(), "two clusters") {
				t.Errorf("%v", err)
			}
			c.has("a", "a b c")
		}},
		{"a node with a name and another cluster", func(t *testing.T, c *chaos) {
			c.must(Wish{Goal: Enable})
			n := c.node("f")
			n.stop(c, true)
			n.disk.Record = &Record{Cluster: "other", CID: idOf("x"), Epoch: 7, Prev: base.Digest(), Nodes: members("f"), MaxTTL: maxTTL, Skew: skew}
			n.start(c)
			if err := c.done(change("a b d")); err == nil || !strings.Contains(err.Error(), "is of cluster other") {
				t.Errorf("%v", err)
			}
		}},
		{"history is split", func(t *testing.T, c *chaos) {
			c.must(Wish{Goal: Enable})
			n := c.node("c")
			n.stop(c, true)
			r := *n.disk.Record
			r.Nodes = members("a b c")
			n.disk.Record = &r
			n.start(c)
			if err := c.done(change("a b d")); err == nil || !strings.Contains(err.Error(), "history is split") {
				t.Errorf("%v", err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := quiet(t)
			c.do(t, w)
			if w.failed != "" {
				t.Error(w.failed)
			}
		})
	}
}

// The command dies after any number of its messages, and another one goes on: the same, or
// one that finishes, or one that rolls back.
func TestOperatorDies(t *testing.T) {
	for steps := 1; steps < 60; steps++ {
		for _, second := range []Wish{
			{Goal: Change, Nodes: list("b d e"), Hurry: true},
			{Goal: Change, Nodes: list("a c d"), Hurry: true},
			{Goal: RollBack},
		} {
			c := quiet(t)
			c.must(Wish{Goal: Enable})
			x := c.operate(Wish{Goal: Change, Nodes: list("b d e"), Hurry: true})
			// Its messages arrive one after the other, at one node after the other.
			for range steps {
				if len(c.todo) > 0 && c.failed == "" {
					c.until(c.todo[0].at)
				}
			}
			x.dead = true
			ended := x.o.Ended()
			c.until(c.now + time.Second)
			joint := c.node("a").a.Record().Joint()
			err := c.done(second)
			r := c.node("b").a.Record()
			switch {
			case second.Goal == Change && second.Nodes[0] == "a" && joint && err != nil && strings.Contains(err.Error(), "under way"):
			case r.Joint():
				t.Errorf("after %d steps, %v: it is still joint", steps, second.Goal)
			case second.Goal == RollBack && err != nil:
				t.Errorf("after %d steps, roll back: %v", steps, err)
			case second.Goal == Change && err != nil && !joint:
				t.Errorf("after %d steps, change to %v: %v", steps, second.Nodes, err)
			case second.Goal == Change && err == nil && strings.Join(names(r.Nodes), " ") != strings.Join(second.Nodes, " "):
				t.Errorf("after %d steps, change to %v: %v", steps, second.Nodes, names(r.Nodes))
			}
			if ended {
				break
			}
		}
	}
}

// A node is not asked to accept the new list while a majority would not: what it had could
// not be taken back if the new list turned out to be dead (E12).
func TestNobodyAcceptsAlone(t *testing.T) {
	c := quiet(t)
	c.must(Wish{Goal: Change, Nodes: list("d"), StayJoint: true, Hurry: true})
	c.until(c.now + 2*time.Second)
	// Two of three nodes restart without the time that they had: only one would accept.
	for _, n := range list("b c") {
		m := c.node(n)
		m.stop(c, true)
		m.disk.Had = 0
		m.start(c)
	}
	x := c.operate(Wish{Goal: Finish})
	c.until(c.now + 900*time.Millisecond)
	for _, n := range list("a b c") {
		if p := c.node(n).a.State().Proposal; p != nil {
			t.Errorf("node %s has accepted %s", n, short(p))
		}
	}
	c.until(c.now + 3*time.Second)
	if !x.o.Ended() || x.err != nil {
		t.Errorf("not finished: %s", x.o.noted)
	}
	if c.failed != "" {
		t.Error(c.failed)
	}
}
