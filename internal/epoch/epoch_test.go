package epoch

import (
	"strings"
	"testing"
	"time"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// after is the record that ends a joint one.
func after(j *Record, list []wire.Member, maxTTL, skew time.Duration, floor uint64) *Record {
	return &Record{Cluster: j.Cluster, CID: j.CID, Epoch: j.Epoch + 1, Prev: j.Digest(), Floor: floor, Nodes: list, MaxTTL: maxTTL, Skew: skew}
}

func TestFollows(t *testing.T) {
	s, _ := simple("a b c")
	j := toward(s, "c d")
	j.NextMaxTTL = 2 * maxTTL
	finish, back := after(j, j.Next, 2*maxTTL, skew, 50), after(j, j.Nodes, maxTTL, skew, j.Floor)
	for _, c := range []struct {
		what      string
		before, r *Record
		change    func(r *Record)
		wrong     string
	}{
		{"joint", s, j, func(*Record) {}, ""},
		{"finish", j, finish, func(*Record) {}, ""},
		{"roll back", j, back, func(*Record) {}, ""},
		{"the same list with another lease", s, toward(s, "a b c"), func(r *Record) { r.NextMaxTTL = 2 * maxTTL }, ""},
		{"nothing changes", s, toward(s, "a b c"), func(*Record) {}, "changes nothing"},
		{"another cluster id", s, j, func(r *Record) { r.CID = idOf("x") }, "is of cluster"},
		{"another cluster", j, finish, func(r *Record) { r.Cluster = "x" }, "is of cluster"},
		{"an epoch is left out", s, finish, func(*Record) {}, "follows"},
		{"another history", j, finish, func(r *Record) { r.Prev = s.Digest() }, "follows"},
		{"the same epoch", j, j, func(*Record) {}, "follows"},
		{"the floor falls", s, j, func(r *Record) { r.Floor-- }, "floor falls"},
		{"the floor falls at the end", j, finish, func(r *Record) { r.Floor = 0 }, "floor falls"},
		{"the floor rises at the beginning", s, j, func(r *Record) { r.Floor++ }, "without a change"},
		{"the floor rises on the way back", j, back, func(r *Record) { r.Floor++ }, "without a change"},
		{"malformed", j, finish, func(r *Record) { r.Skew = time.Hour }, "skew"},
		{"another old list", s, j, func(r *Record) { r.Nodes = members("a b") }, "first list of a joint record"},
		{"another old lease", s, j, func(r *Record) { r.MaxTTL /= 2 }, "first list of a joint record"},
		{"another old skew", s, j, func(r *Record) { r.Skew /= 2 }, "first list of a joint record"},
		{"a third list", j, finish, func(r *Record) { r.Nodes = members("c e") }, "one of its two lists"},
		{"the new list with the old lease", j, finish, func(r *Record) { r.MaxTTL = maxTTL }, "one of its two lists"},
		{"the old list with the new lease", j, back, func(r *Record) { r.MaxTTL = 2 * maxTTL }, "one of its two lists"},
		{"the new list with another id", j, finish, func(r *Record) {
			r.Nodes = members("c d")
			r.Nodes[1].ID = idOf("x")
		}, "one of its two lists"},
	} {
		r := *c.r
		c.change(&r)
		if err := Follows(c.before, &r); (err == nil) != (c.wrong == "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if !Finishes(j, finish) || Finishes(j, back) || Finishes(s, j) || Finishes(s, s) {
		t.Error("what finishes a change")
	}
}

func TestBegins(t *testing.T) {
	right := &Record{Cluster: "test", CID: cid, Epoch: 1, Prev: base.Digest(), Nodes: members("a b c"), MaxTTL: maxTTL, Skew: skew}
	for _, c := range []struct {
		what   string
		change func(r *Record)
		ok     bool
	}{
		{"as it is", func(*Record) {}, true},
		{"any ids", func(r *Record) { r.Nodes[0].ID = idOf("x") }, true},
		{"another name", func(r *Record) { r.Nodes = members("a b d") }, false},
		{"fewer", func(r *Record) { r.Nodes = members("a b") }, false},
		{"another lease", func(r *Record) { r.MaxTTL *= 2 }, false},
		{"another skew", func(r *Record) { r.Skew *= 2 }, false},
		{"another history", func(r *Record) { r.Prev = "00000000000000aa" }, false},
		{"another cluster", func(r *Record) { r.Cluster = "x" }, false},
		{"later", func(r *Record) { r.Epoch = 3 }, false},
		{"a floor", func(r *Record) { r.Floor = 1 }, false},
		{"malformed", func(r *Record) { r.CID = [16]byte{} }, false},
	} {
		r := *right
		r.Nodes = members("a b c")
		c.change(&r)
		if err := Begins("test", base, &r); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

func TestWait(t *testing.T) {
	s, _ := simple("a")
	j := toward(s, "b")
	if Wait(j) != maxTTL+maxTTL/50 {
		t.Errorf("%v", Wait(j))
	}
	j.NextMaxTTL *= 4
	if Wait(j) != 4*(maxTTL+maxTTL/50) {
		t.Errorf("with a longer lease after the change %v", Wait(j))
	}
	j.NextMaxTTL = maxTTL / 4
	if Wait(j) != maxTTL+maxTTL/50 {
		t.Errorf("with a shorter one %v", Wait(j))
	}
}

func TestIn(t *testing.T) {
	s, _ := simple("a b")
	j := toward(s, "b c")
	for name, want := range map[string]quorum.In{"a": quorum.InNodes, "b": quorum.InNodes | quorum.InNext, "c": quorum.InNext, "d": 0} {
		if got := In(j, name, idOf(name)); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
		if In(j, name, idOf("x")) != 0 {
			t.Errorf("%s with another id is a member", name)
		}
	}
}

// A node takes a record only if that is a later one of its own history (E9).
func TestLearn(t *testing.T) {
	s, links := simple("a b c")
	j := toward(s, "c d")
	history := append(links[:len(links):len(links)], wire.Link{Epoch: j.Epoch, Digest: j.Digest()})
	finish := after(j, j.Next, maxTTL, skew, 50)
	other := *j
	other.Floor, other.Next = j.Floor, members("e")
	stray := *finish
	stray.CID = idOf("another cluster")
	named := *finish
	named.Cluster = "other"
	first := &Record{Cluster: "test", CID: cid, Epoch: 1, Prev: base.Digest(), Nodes: members("a b c"), MaxTTL: maxTTL, Skew: skew}
	zero := []wire.Link{{Epoch: 0, Digest: base.Digest()}}
	for _, c := range []struct {
		what  string
		node  string
		has   *Record
		base  *wire.Config
		r     *Record
		links []wire.Link
		why   wire.Why
		takes bool
	}{
		{"the next", "a", s, nil, j, links, "", true},
		{"the next but one", "a", s, nil, finish, history, "", true},
		{"its own", "a", j, nil, j, links, "", false},
		{"an earlier one", "a", finish, nil, j, links, "", false},
		{"another one of its epoch", "a", j, nil, &other, links, wire.WhyHistory, false},
		{"one that came from another one of its epoch", "a", &other, nil, finish, history, wire.WhyHistory, false},
		{"another cluster's id", "a", s, nil, &stray, history, wire.WhyHistory, false},
		{"another cluster's name", "a", s, nil, &named, history, wire.WhyHistory, false},
		{"no history", "a", s, nil, j, nil, wire.WhyHistory, false},
		{"a history that does not reach back", "a", s, nil, finish, history[2:], wire.WhyHistory, false},
		{"a history that does not reach the record", "a", s, nil, finish, links, wire.WhyHistory, false},
		{"nothing", "a", s, nil, nil, links, wire.WhyInvalid, false},
		{"the first", "a", nil, &base, first, zero, "", true},
		{"the first after another list", "a", nil, &wire.Config{Nodes: []string{"a", "b"}, MaxTTL: maxTTL, Skew: skew}, first, zero, wire.WhyHistory, false},
		{"a later one", "a", nil, &base, j, append(zero[:1:1], links...), "", true},
		{"a later one of a cluster with another beginning", "a", nil, &base, j, links, wire.WhyHistory, false},
		{"one that names a new node", "d", nil, nil, j, links, "", true},
		{"one that does not", "e", nil, nil, j, links, wire.WhyHistory, false},
		{"one that no longer names it", "a", j, nil, finish, history, "", true},
	} {
		a := NewAcceptor("test", c.node, c.base, State{ID: idOf(c.node), Record: c.has, Promised: wire.Ballot{N: 7}}, 0)
		s := wire.Step{Kind: wire.Learn, Record: c.r, Links: c.links}
		out := a.Handle(time.Second, Self{}, &s)
		if out.Answer.Why != c.why || out.Learned != c.takes || (out.Write != nil) != c.takes || c.takes != (a.Record() == c.r && a.Record() != c.has) {
			t.Errorf("%s: %q, learned %v", c.what, out.Answer.Why, out.Learned)
		}
		if c.takes && (a.State().Promised != wire.Ballot{} || out.Write.Had != 0 || out.Answer.Epoch != c.r.Epoch || a.State().Links[len(a.State().Links)-1].Digest != a.Digest()) {
			t.Errorf("%s: %+v", c.what, a.State())
		}
	}
}

// A node counts how long it has had the joint record over all its runs, and never too much.
func TestTimeUnderJoint(t *testing.T) {
	s, links := simple("a")
	j := toward(s, "b")
	a := NewAcceptor("test", "a", nil, State{ID: idOf("a"), Record: s, Links: links}, time.Hour)
	out := a.Handle(time.Hour, Self{Votes: true}, &wire.Step{Kind: wire.Learn, Record: j, Links: links})
	a.Written(time.Hour + 10*time.Millisecond)
	now := time.Hour + 10*time.Millisecond
	if a.Had(now) != 0 || a.Left(now) != Wait(j) || out.Write.Had != 0 {
		t.Errorf("%v, %v left", a.Had(now), a.Left(now))
	}
	if a.SaveDue(now+Wait(j)/8-1) || !a.SaveDue(now+Wait(j)/8) {
		t.Error("when the time is worth a write")
	}
	saved := a.Save(now + Wait(j)/4)
	if saved.Had != Wait(j)/4 || a.Left(now+Wait(j)/2) != Wait(j)/2 {
		t.Errorf("saved %v, then %v left", saved.Had, a.Left(now+Wait(j)/2))
	}
	// The next run, whose monotonic clock begins anew.
	a = NewAcceptor("test", "a", nil, *saved, 5)
	if a.Left(5) != Wait(j)*3/4 || a.Left(5+Wait(j)*3/4-1) != 1 || a.Left(5+Wait(j)) != 0 {
		t.Errorf("%v left after a restart", a.Left(5))
	}
	if a.Had(0) != Wait(j)/4 {
		t.Errorf("a clock that goes back: %v", a.Had(0))
	}
	ballot := wire.Ballot{N: 1, Run: idOf("run")}
	accept := &wire.Step{Kind: wire.Accept, Epoch: j.Epoch + 1, Ballot: ballot, Record: after(j, j.Next, maxTTL, skew, 5)}
	end := 5 + Wait(j)*3/4
	if out := a.Handle(end-1, Self{Votes: true}, accept); out.Answer.Why != wire.WhyEarly || out.Answer.Left != 1 || out.Write != nil {
		t.Errorf("too early: %+v", out.Answer)
	}
	accept.Record = after(j, j.Nodes, maxTTL, skew, j.Floor)
	if out := a.Handle(end-1, Self{Votes: true}, accept); out.Answer.Why != "" || out.Write == nil {
		t.Errorf("the way back needs no wait: %+v", out.Answer)
	}
	accept.Record = after(j, j.Next, maxTTL, skew, 5)
	if out := a.Handle(end, Self{Votes: true}, accept); out.Answer.Why != wire.WhyInvalid {
		t.Errorf("another record at the same ballot: %+v", out.Answer)
	}
	accept.Ballot.N = 2
	if out := a.Handle(end, Self{Votes: true}, accept); out.Answer.Why != "" {
		t.Errorf("%+v", out.Answer)
	}
}

// What a node refuses to decide, and what it says then.
func TestRefusals(t *testing.T) {
	s, links := simple("a b")
	j := toward(s, "c")
	high, low := wire.Ballot{N: 7, Run: idOf("run")}, wire.Ballot{N: 6, Run: idOf("run")}
	yes := Self{Votes: true}
	prepare := func(epoch uint64, prev string, b wire.Ballot) *wire.Step {
		return &wire.Step{Kind: wire.Prepare, Epoch: epoch, Prev: prev, Ballot: b}
	}
	accept := func(r *Record) *wire.Step {
		return &wire.Step{Kind: wire.Accept, Epoch: r.Epoch, Ballot: high, Record: r}
	}
	jump := *j
	jump.Prev = "00000000000000bb"
	for _, c := range []struct {
		what string
		node string
		has  *Record
		base *wire.Config
		self Self
		step *wire.Step
		why  wire.Why
	}{
		{"a promise", "a", s, nil, yes, prepare(4, s.Digest(), high), ""},
		{"a lower ballot", "a", s, nil, yes, prepare(4, s.Digest(), low), wire.WhyPromised},
		{"an epoch ahead", "a", s, nil, yes, prepare(5, j.Digest(), high), wire.WhyEpoch},
		{"an epoch behind", "a", s, nil, yes, prepare(3, s.Prev, high), wire.WhyEpoch},
		{"another history", "a", s, nil, yes, prepare(4, s.Prev, high), wire.WhyHistory},
		{"no votes", "a", s, nil, Self{}, prepare(4, s.Digest(), high), wire.WhyVotes},
		{"the new list's", "c", j, nil, yes, prepare(5, j.Digest(), high), wire.WhyMember},
		{"nobody's", "d", s, nil, yes, prepare(4, s.Digest(), high), wire.WhyMember},
		{"at epoch 0 without votes", "a", nil, &base, Self{}, prepare(1, base.Digest(), high), ""},
		{"at epoch 0 and not in the list", "d", nil, &base, yes, prepare(1, base.Digest(), high), wire.WhyMember},
		{"who joins has no later epoch", "d", nil, nil, yes, prepare(4, s.Digest(), high), wire.WhyEpoch},
		{"an acceptance", "a", s, nil, yes, accept(j), ""},
		{"what may not follow", "a", s, nil, yes, accept(&jump), wire.WhyInvalid},
		{"no record", "a", s, nil, yes, &wire.Step{Kind: wire.Accept, Epoch: 4, Ballot: high}, wire.WhyInvalid},
		{"a first record that does not name who joins", "d", nil, nil, yes, accept(&Record{Cluster: "test", CID: cid, Epoch: 1, Prev: base.Digest(), Nodes: members("a"), MaxTTL: maxTTL, Skew: skew}), wire.WhyInvalid},
		{"a first record of another cluster", "a", nil, nil, yes, accept(&Record{Cluster: "other", CID: cid, Epoch: 1, Prev: base.Digest(), Nodes: members("a"), MaxTTL: maxTTL, Skew: skew}), wire.WhyInvalid},
		{"a first record", "a", nil, nil, yes, accept(&Record{Cluster: "test", CID: cid, Epoch: 1, Prev: base.Digest(), Nodes: members("a"), MaxTTL: maxTTL, Skew: skew}), ""},
	} {
		a := NewAcceptor("test", c.node, c.base, State{ID: idOf(c.node), Record: c.has, Links: links, Promised: high}, 0)
		out := a.Handle(0, c.self, c.step)
		if out.Answer.Why != c.why || c.why != "" && out.Write != nil || out.Answer.ID != idOf(c.node) || out.Answer.Epoch != a.State().Epoch() {
			t.Errorf("%s: %+v", c.what, out.Answer)
		}
		if c.why == wire.WhyPromised && out.Answer.Ballot != high || c.why == "" && out.Answer.Ballot != high {
			t.Errorf("%s: ballot %+v", c.what, out.Answer.Ballot)
		}
	}
}

// A round takes the proposal of the highest ballot, however its answers come (E8), and
// counts those that may decide, once each.
func TestRound(t *testing.T) {
	s, links := simple("a b c")
	j := toward(s, "d")
	finish, back := after(j, j.Next, maxTTL, skew, 50), after(j, j.Nodes, maxTTL, skew, j.Floor)
	current := &Current{Cluster: "test", Record: j, Links: append(links, wire.Link{Epoch: j.Epoch, Digest: j.Digest()})}
	mine := wire.Ballot{N: 9, Run: idOf("run")}
	promise := func(n uint64, r *Record, floor uint64, left time.Duration) *wire.StepAnswer {
		return &wire.StepAnswer{Kind: wire.Prepare, Epoch: j.Epoch, Ballot: mine, Accepted: wire.Ballot{N: n}, Record: r, Floor: floor, Left: left}
	}
	hear := func(r *Round, node string, a *wire.StepAnswer) {
		b := *a
		b.ID = idOf(node)
		r.Hear(0, node, &b)
	}
	for _, order := range []string{"a b", "b a"} {
		r := NewRound(current, mine)
		for _, node := range strings.Fields(order) {
			if r.Promised() {
				t.Error("one of three is enough")
			}
			hear(r, node, map[string]*wire.StepAnswer{"a": promise(5, finish, 3, 0), "b": promise(7, back, 2, 0)}[node])
			hear(r, node, promise(0, nil, 1, 0)) // its answer to a repetition, from before
		}
		if !r.Promised() || r.Found() != back || r.Floor() != 3 {
			t.Errorf("%s: %v, %s, floor %d", order, r.Promised(), short(r.Found()), r.Floor())
		}
	}

	r := NewRound(current, mine)
	for what, a := range map[string]wire.StepAnswer{
		"another ballot": {Kind: wire.Prepare, Epoch: j.Epoch, Ballot: wire.Ballot{N: 8, Run: mine.Run}, ID: idOf("a")},
		"another epoch":  {Kind: wire.Prepare, Epoch: j.Epoch + 1, Ballot: mine, ID: idOf("a")},
		"another id":     {Kind: wire.Prepare, Epoch: j.Epoch, Ballot: mine, ID: idOf("x")},
		"a refusal":      {Kind: wire.Prepare, Epoch: j.Epoch, Ballot: mine, ID: idOf("a"), Why: wire.WhyVotes},
	} {
		if r.Hear(0, "a", &a); len(r.promises) > 0 {
			t.Errorf("%s counts", what)
		}
	}
	hear(r, "d", promise(0, nil, 0, 0))
	if len(r.promises) > 0 {
		t.Error("a node of the new list decides")
	}
	// Nobody is asked to accept the new list before a majority would (E12).
	hear(r, "a", promise(0, nil, 0, 0))
	hear(r, "b", promise(0, nil, 0, time.Second))
	if steps := r.Propose(0, finish); len(steps) > 0 || r.Left(0) != time.Second {
		t.Errorf("%d steps, %v left", len(steps), r.Left(0))
	}
	if len(NewRound(current, mine).Propose(0, back)) > 0 {
		t.Error("steps for nobody")
	}
	hear(r, "c", promise(0, nil, 0, 100*time.Millisecond)) // after it has proposed: in vain
	if len(r.promises) != 2 {
		t.Error("a promise after the proposal")
	}
	r = NewRound(current, mine)
	for node, left := range map[string]time.Duration{"a": 0, "b": time.Second, "c": 100 * time.Millisecond} {
		hear(r, node, promise(0, nil, 0, left))
	}
	if r.Left(0) != 100*time.Millisecond || r.Left(time.Minute) != 0 {
		t.Errorf("%v left", r.Left(0))
	}
	if steps := r.Propose(0, back); len(steps) != 3 {
		t.Errorf("%d steps on the way back", len(steps))
	}
	steps := r.Propose(100*time.Millisecond, finish)
	if len(steps) != 2 || steps[0].Node != "a" || steps[1].Node != "c" {
		t.Errorf("%+v", steps)
	}
	accepted := &wire.StepAnswer{Kind: wire.Accept, Epoch: j.Epoch, Ballot: mine}
	for range 3 {
		hear(r, "a", accepted)
	}
	if r.Decided() {
		t.Error("one of three decides")
	}
	if hear(r, "c", accepted); !r.Decided() || r.Learn().Record != finish || r.Learn().Links[2].Digest != j.Digest() {
		t.Error("not decided")
	}
}
