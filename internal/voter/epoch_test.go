package voter

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/epoch"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

var epochBase = wire.Config{Nodes: []string{"n1", "n2", "n3"}, MaxTTL: 30 * time.Second, Skew: 5 * time.Second}

func epochID(name string) uuid.UUID { return uuid.NewSHA1(uuid.UUID{1}, []byte(name)) }

func epochList(names ...string) (out []wire.Member) {
	for _, n := range names {
		out = append(out, wire.Member{Name: n, ID: epochID(n)})
	}
	return out
}

// history is a cluster's records, from the first one on.
type history struct {
	records []*wire.EpochRecord
	links   []wire.Link
}

func newHistory() *history {
	h := &history{links: []wire.Link{{Epoch: 0, Digest: epochBase.Digest()}}}
	return h.add(&wire.EpochRecord{
		Cluster: "prod", CID: uuid.UUID{7}, Epoch: 1, Prev: epochBase.Digest(), Nodes: epochList(epochBase.Nodes...), MaxTTL: epochBase.MaxTTL, Skew: epochBase.Skew,
	})
}

func (h *history) add(r *wire.EpochRecord) *history {
	if err := r.Check(); err != nil {
		panic(err)
	}
	h.records = append(h.records, r)
	h.links = append(h.links, wire.Link{Epoch: r.Epoch, Digest: r.Digest()})
	return h
}

func (h *history) last() *wire.EpochRecord { return h.records[len(h.records)-1] }

// joint begins a change to a list, and finish ends it.
func (h *history) joint(ttl time.Duration, names ...string) *history {
	r := *h.last()
	r.Epoch, r.Prev, r.Next, r.NextMaxTTL, r.NextSkew = r.Epoch+1, r.Digest(), epochList(names...), ttl, min(r.Skew, ttl)
	return h.add(&r)
}

func (h *history) finish(floor uint64) *history {
	j := h.last()
	return h.add(&wire.EpochRecord{
		Cluster: j.Cluster, CID: j.CID, Epoch: j.Epoch + 1, Prev: j.Digest(), Floor: max(j.Floor, floor), Nodes: j.Next, MaxTTL: j.NextMaxTTL, Skew: j.NextSkew,
	})
}

func (h *history) rollBack() *history {
	j := h.last()
	return h.add(&wire.EpochRecord{
		Cluster: j.Cluster, CID: j.CID, Epoch: j.Epoch + 1, Prev: j.Digest(), Floor: j.Floor, Nodes: j.Nodes, MaxTTL: j.MaxTTL, Skew: j.Skew,
	})
}

func (h *history) learn() *wire.Step {
	return &wire.Step{Kind: wire.Learn, Epoch: h.last().Epoch, Record: h.last(), Links: h.links[:len(h.links)-1]}
}

func (h *history) state(name string) epoch.State {
	return epoch.State{ID: epochID(name), Record: h.last(), Links: h.links}
}

// member is a node with a directory.
type member struct {
	t      *testing.T
	n      *Node
	now    wire.Now
	disk   epoch.State
	writes int
	sent   []Send
	notes  []string
	survey *wire.Request
	seq    uint64
}

func startMember(t *testing.T, name string, base wire.Config, state epoch.State, saved *Saved, fresh bool) *member {
	t.Helper()
	m := &member{t: t, now: wire.Now{Mono: time.Hour, Wall: 1_800_000_000_000_000}, disk: state}
	m.start(name, base, saved, fresh)
	return m
}

func (m *member) start(name string, base wire.Config, saved *Saved, fresh bool) {
	m.n = New(Config{
		Name: name, Config: base, Cluster: "prod", State: m.disk, Fresh: fresh, Incarnation: uuid.New(), ProbeWait: 100 * time.Millisecond, MaxClaims: 100, MaxQueue: 100,
	}, m.now, saved, 0)
	m.run(time.Second)
}

// did does what the node asks for, as its driver does.
func (m *member) did(out *Out) {
	m.t.Helper()
	if out.Write != nil {
		for _, s := range out.Answers {
			if s.Answer.Kind == wire.Configured {
				m.t.Errorf("%+v is answered before it is written", s.Answer.Step)
			}
		}
		m.disk, m.writes = *out.Write, m.writes+1
		m.n.Written(m.now, out)
		if out.Write != nil {
			m.t.Error("a write after the write")
		}
	}
	m.sent = append(m.sent, out.Answers...)
	m.notes = append(m.notes, out.Notes...)
	if out.Survey != nil {
		m.survey = out.Survey
	}
	if q := out.Probe; q != nil {
		var back Out
		m.n.Handle(m.now, q, "probe", &back)
		for i := range back.Answers {
			if back.Answers[i].To == "probe" {
				var out Out
				m.n.HandleAnswer(m.now, &back.Answers[i].Answer, &out)
				m.did(&out)
			}
		}
	}
}

func (m *member) run(d time.Duration) {
	m.t.Helper()
	for end := m.now.Mono + d; m.now.Mono < end; {
		step := min(max(m.n.Deadline()-m.now.Mono, time.Millisecond), end-m.now.Mono)
		pass(&m.now, step)
		var out Out
		m.n.Tick(m.now, &out)
		m.did(&out)
	}
}

// do handles a request and returns the answers.
func (m *member) do(r *wire.Request) []Send {
	m.t.Helper()
	m.sent = nil
	var out Out
	m.n.Handle(m.now, r, "ops", &out)
	m.did(&out)
	return m.sent
}

func (m *member) step(s *wire.Step) *wire.StepAnswer {
	m.t.Helper()
	for _, s := range m.do(&wire.Request{Verb: wire.Configure, Client: "ops", Nonce: "n", Step: s}) {
		if s.Answer.Kind == wire.Configured {
			if s.Answer.Digest != m.n.digest || s.Answer.Nonce != "n" {
				m.t.Errorf("%+v", s.Answer)
			}
			return s.Answer.Step
		}
	}
	return nil
}

func (m *member) learn(h *history) {
	m.t.Helper()
	if a := m.step(h.learn()); a == nil || a.Why != wire.WhyNone || a.Epoch != h.last().Epoch {
		m.t.Fatalf("learn: %+v", a)
	}
}

// acquire sends the first message of a new claim, and returns the answer.
func (m *member) acquire(res string, mode quorum.Mode, change func(*wire.Request)) *wire.Answer {
	m.t.Helper()
	m.seq++
	r := &wire.Request{
		Verb: wire.Acquire, Client: fmt.Sprintf("c%d", m.seq), Resource: res, Claim: wire.ClaimID{Instance: uuid.UUID{byte(m.seq)}, Seq: m.seq},
		SentAt: 1, Mode: mode, At: m.now.Wall, TTL: 5 * time.Second, Digest: m.n.digest,
	}
	if change != nil {
		change(r)
	}
	for _, s := range m.do(r) {
		if s.Answer.Claim == r.Claim {
			return &s.Answer
		}
	}
	return &wire.Answer{}
}

// again asks for a claim another time.
func (m *member) again(seq uint64, res string, mode quorum.Mode) *wire.Answer {
	m.t.Helper()
	r := &wire.Request{
		Verb: wire.Acquire, Client: fmt.Sprintf("c%d", seq), Resource: res, Claim: wire.ClaimID{Instance: uuid.UUID{byte(seq)}, Seq: seq},
		SentAt: uint64(m.now.Mono), Mode: mode, At: m.now.Wall, TTL: 5 * time.Second, Digest: "0000000000000000",
	}
	for _, s := range m.do(r) {
		if s.Answer.Claim == r.Claim {
			return &s.Answer
		}
	}
	return &wire.Answer{}
}

// What a node says follows from what is on disk, and it goes by a record from then on: by its
// digest, its list, the shorter lease, and for waits the longer one (E1, E10).
func TestRecordTaken(t *testing.T) {
	h := newHistory()
	m := startMember(t, "n1", epochBase, epoch.State{ID: epochID("n1")}, &Saved{}, false)
	if s := m.n.State(); s != wire.Voting || m.n.Epoch() != 0 || m.n.digest != epochBase.Digest() {
		t.Fatalf("%s, epoch %d, digest %s", s, m.n.Epoch(), m.n.digest)
	}
	m.learn(h)
	if m.writes != 1 || m.disk.Record != h.last() || m.n.digest != h.last().Digest() || m.n.State() != wire.Voting {
		t.Errorf("%d writes, %+v, %s", m.writes, m.disk, m.n.State())
	}
	m.learn(h.joint(10*time.Second, "n1", "n4"))
	if got := m.n.cfg.Config; got.MaxTTL != 10*time.Second || !slices.Equal(got.Nodes, []string{"n1", "n2", "n3", "n4"}) || m.n.longest != 30*time.Second {
		t.Errorf("%+v, longest %v", got, m.n.longest)
	}
	if a := m.acquire("r", quorum.Exclusive, func(r *wire.Request) { r.TTL = 20 * time.Second }); a.Reason != wire.ReasonLease {
		t.Errorf("a lease of the old list: %+v", a)
	}
	if a := m.acquire("r", quorum.Exclusive, func(r *wire.Request) { r.Digest = epochBase.Digest() }); a.Reason != wire.ReasonConfig {
		t.Errorf("a claim of the old list: %+v", a)
	}
	if a := m.acquire("r", quorum.Exclusive, nil); a.Kind != wire.Granted || a.Digest != h.last().Digest() {
		t.Errorf("%+v", a)
	}
	m.n.inQuarant = true
	m.learn(h.finish(0).joint(60*time.Second, "n1"))
	if m.n.longest != 60*time.Second || m.n.quarantine < m.n.waitAt+60*time.Second {
		t.Errorf("a node that waits: longest %v, until %v", m.n.longest, m.n.quarantine-m.n.waitAt)
	}
	// The longest lease is one of two lists, also after a start.
	if again := startMember(t, "n1", epochBase, m.disk, nil, false); again.n.longest != 60*time.Second || again.n.cfg.MaxTTL != 10*time.Second {
		t.Errorf("after a start: %v, %v", again.n.longest, again.n.cfg.MaxTTL)
	}
}

// Votes, queues and evictions outlive a change, and the answers about them have the new digest
// (E14).
func TestClaimsOutliveChanges(t *testing.T) {
	h := newHistory()
	m := startMember(t, "n1", epochBase, h.state("n1"), &Saved{}, false)
	m.acquire("r", quorum.Exclusive, nil)
	m.acquire("r", quorum.Exclusive, nil)
	m.do(&wire.Request{Verb: wire.Evict, Client: "ops", Resource: "r", Holder: "c2", Claim: wire.ClaimID{Instance: uuid.UUID{2}, Seq: 2}, Nonce: "e"})
	m.learn(h.joint(30*time.Second, "n1"))
	if a := m.again(1, "r", quorum.Exclusive); a.Kind != wire.Granted || a.Digest != h.last().Digest() {
		t.Errorf("%+v", a)
	}
	if a := m.again(2, "r", quorum.Exclusive); a.Kind != wire.Evicted {
		t.Errorf("%+v", a)
	}
}

// With a record, floors and the fences of standing votes rise to the record's, and spans end
// (E13).
func TestRecordRaisesFloors(t *testing.T) {
	h := newHistory()
	m := startMember(t, "n1", epochBase, h.state("n1"), &Saved{}, false)
	floor := uint64(m.now.Wall) + 1000
	m.acquire("low", quorum.Exclusive, func(r *wire.Request) { r.Keep, r.RangeSize = true, 64 })
	m.acquire("at", quorum.Exclusive, func(r *wire.Request) { r.MinFence = floor })
	m.acquire("above", quorum.Exclusive, func(r *wire.Request) { r.MinFence, r.Keep, r.RangeSize = floor+1, true, 64 })
	m.acquire("shared", quorum.Shared, nil)
	m.acquire("shared above", quorum.Shared, func(r *wire.Request) { r.MinFence = floor + 5 })
	m.learn(h.joint(30*time.Second, "n1").finish(floor))
	for seq, c := range []struct {
		res         string
		mode        quorum.Mode
		fence, span uint64
	}{
		{"low", quorum.Exclusive, floor + 1, 0},
		{"at", quorum.Exclusive, floor + 1, 0},
		{"above", quorum.Exclusive, floor + 1, 64},
		{"shared", quorum.Shared, floor, 0},
		{"shared above", quorum.Shared, floor + 5, 0},
	} {
		if a := m.again(uint64(seq)+1, c.res, c.mode); a.Kind != wire.Granted || a.Fence != c.fence || a.RangeSize != c.span {
			t.Errorf("%s: %s, fence %d with span %d, want %d and %d above a floor of %d", c.res, a.Kind, a.Fence, a.RangeSize, c.fence, c.span, floor)
		}
		m.do(&wire.Request{Verb: wire.Release, Client: fmt.Sprintf("c%d", seq+1), Resource: c.res, Claim: wire.ClaimID{Instance: uuid.UUID{byte(seq + 1)}, Seq: uint64(seq + 1)}})
	}
	for _, res := range []string{"low", "at", "shared", "never seen"} {
		if a := m.acquire(res, quorum.Exclusive, nil); a.Fence <= floor {
			t.Errorf("%s: fence %d is not above the floor %d", res, a.Fence, floor)
		}
	}
	// After a clean stop and after one that was not clean, no floor is below the record's.
	saved, ok := m.n.Save(m.now)
	if !ok {
		t.Fatal("not saved")
	}
	for _, saved := range []*Saved{saved, {}} {
		m.start("n1", epochBase, saved, false)
		if a := m.acquire("after a start", quorum.Exclusive, func(r *wire.Request) { r.At = 1 }); a.Fence <= floor {
			t.Errorf("after a start: fence %d is not above the floor %d", a.Fence, floor)
		}
	}
}

// Where the floor of a record lies ahead of a node's clock, fences may be wanted above it all
// the same, and a node that forgot waits until its clock is above all of them (E13).
func TestFloorAheadOfTheClock(t *testing.T) {
	h := newHistory()
	m := startMember(t, "n1", epochBase, h.state("n1"), &Saved{}, false)
	ahead := 45 * time.Second
	floor := uint64(m.now.Wall + ahead.Microseconds())
	m.learn(h.joint(30*time.Second, "n1").finish(floor))
	m.acquire("r", quorum.Exclusive, func(r *wire.Request) { r.MinFence = floor + 1000 })
	if a := m.again(1, "r", quorum.Exclusive); a.Fence != floor+1000 || a.Most != 0 {
		t.Errorf("fence %d, most %d, wanted %d", a.Fence, a.Most, floor+1000)
	}
	if a := m.acquire("far", quorum.Exclusive, func(r *wire.Request) { r.MinFence = floor + 31_000_000 }); a.Most != floor+30_000_000 {
		t.Errorf("fences up to %d may be wanted, the floor is %d", a.Most, floor)
	}
	m.start("n1", epochBase, nil, false)
	for m.n.State() != wire.Voting {
		if m.run(time.Second); m.now.Wall > int64(floor)+120_000_000 {
			t.Fatal("it does not vote")
		}
	}
	if given := floor + 30_000_000; uint64(m.now.Wall) < given {
		t.Errorf("it votes %v before its clock is above the fences that it may have given", time.Duration(int64(given)-m.now.Wall)*time.Microsecond)
	}
}

// Members of either list vote. Others do not, whatever their name, drop their claims, and
// answer only what this takes (E14).
func TestWhoVotes(t *testing.T) {
	h := newHistory().joint(30*time.Second, "n1", "n4")
	joint, left := h.state("n1"), 0
	h.finish(5)
	for _, c := range []struct {
		name  string
		state epoch.State
		want  wire.State
	}{
		{"n1", joint, wire.Voting}, {"n2", joint, wire.Voting}, {"n4", joint, wire.Voting}, {"n5", joint, wire.Retired},
		{"n1", h.state("n1"), wire.Voting}, {"n2", h.state("n2"), wire.Retired}, {"n4", h.state("n1"), wire.Retired},
	} {
		c.state.ID = epochID(c.name)
		if c.want == wire.Retired && c.name == "n4" {
			c.state.ID = uuid.New() // it lost its directory
		}
		m := startMember(t, c.name, epochBase, c.state, &Saved{}, false)
		if got := m.n.State(); got != c.want {
			t.Errorf("%s under epoch %d is %s, want %s", c.name, c.state.Epoch(), got, c.want)
		}
		if c.want == wire.Voting {
			continue
		}
		left++
		if a := m.acquire("r", quorum.Exclusive, nil); a.Kind != "" || m.n.Claims() != 0 {
			t.Errorf("%s, which is retired, answers %+v", c.name, a)
		}
		for _, verb := range []wire.Verb{wire.List, wire.Inspect, wire.Evict, wire.Refresh} {
			if got := m.do(&wire.Request{Verb: verb, Client: "c1", Resource: "r", Holder: "c1", Claim: wire.ClaimID{Instance: uuid.UUID{1}, Seq: 1}, SentAt: 9, Lo: 1, Hi: 1}); len(got) > 0 {
				t.Errorf("%s, which is retired, answers %s with %+v", c.name, verb, got)
			}
		}
		if got := m.do(&wire.Request{Verb: wire.Info, Client: "c1", Nonce: "x"}); len(got) != 1 || got[0].Answer.Info.State != wire.Retired {
			t.Errorf("info: %+v", got)
		}
		if a := m.step(&wire.Step{Kind: wire.Prepare, Epoch: c.state.Epoch() + 1, Prev: m.n.digest, Ballot: wire.Ballot{N: 1, Run: uuid.UUID{1}}}); a == nil || a.Why != wire.WhyMember {
			t.Errorf("prepare: %+v", a)
		}
	}
	if left < 3 {
		t.Error("too few are retired")
	}
}

// A node that leaves the list drops what it has. Named again, it votes at once, with nothing.
func TestLeavesAndReturns(t *testing.T) {
	h := newHistory().joint(30*time.Second, "n1", "n2")
	m := startMember(t, "n3", epochBase, h.state("n3"), &Saved{}, false)
	m.acquire("r", quorum.Exclusive, nil)
	m.acquire("r", quorum.Exclusive, nil)
	m.acquire("s", quorum.Shared, nil)
	fence := m.again(3, "s", quorum.Shared).Fence
	if m.learn(h.finish(1)); m.n.State() != wire.Retired || m.n.Claims() != 0 || m.n.Resources() != 0 || m.n.Clients() != 0 || m.n.Waiting() != 0 {
		t.Errorf("%s, %d claims on %d names", m.n.State(), m.n.Claims(), m.n.Resources())
	}
	if last := m.notes[len(m.notes)-1]; !strings.Contains(last, "can be stopped") {
		t.Errorf("it says %q", last)
	}
	m.run(time.Minute)
	m.learn(h.joint(30*time.Second, "n1", "n3"))
	if a := m.acquire("r", quorum.Exclusive, nil); m.n.State() != wire.Voting || a.Kind != wire.Granted {
		t.Errorf("named again: %s, %+v", m.n.State(), a)
	}
	if a := m.acquire("s", quorum.Exclusive, func(r *wire.Request) { r.At = 1 }); a.Fence <= fence {
		t.Errorf("a fence of %d after one of %d", a.Fence, fence)
	}
}

// A node that joins has no configuration, shows its id, learns the record that names it, also
// by its own question, and votes at once (E9, E14).
func TestJoins(t *testing.T) {
	join := wire.Config{MaxTTL: 30 * time.Second, Skew: 5 * time.Second}
	h := newHistory()
	m := startMember(t, "n4", join, epoch.State{ID: epochID("n4")}, nil, true)
	if s := m.n.State(); s != wire.Joining {
		t.Fatalf("%s", s)
	}
	got := m.do(&wire.Request{Verb: wire.Info, Client: "ops", Nonce: "x", ShowConfig: true})
	if i := got[0].Answer.Info; i.State != wire.Joining || i.Config.ID != epochID("n4") || !i.Config.Joining || i.MaxTTL != 0 || len(i.Nodes) != 0 {
		t.Errorf("%+v, %+v", i, i.Config)
	}
	if _, err := wire.DecodeAnswer(wire.AppendAnswer(nil, &got[0].Answer)); err != nil {
		t.Error(err)
	}
	if a := m.step(h.learn()); a.Why != wire.WhyHistory || m.n.State() != wire.Joining {
		t.Errorf("a record that does not name it: %+v", a)
	}
	// The digest of a claim tells it that there is a record.
	if a := m.acquire("r", quorum.Exclusive, func(r *wire.Request) { r.Digest = h.last().Digest() }); a.Kind != "" {
		t.Errorf("it answers %+v", a)
	}
	if m.survey == nil {
		t.Fatal("it does not ask")
	}
	// Until a record names it, others show it records that do not, and nothing is wrong.
	shows := func() wire.Answer {
		return wire.Answer{Kind: wire.Informed, Node: "n1", Digest: h.last().Digest(), Info: &wire.NodeInfo{
			Nonce: m.survey.Nonce, Nodes: []string{"n1", "n2", "n3"}, MaxTTL: 30 * time.Second, State: wire.Voting,
			Config: &wire.NodeConfig{ID: epochID("n1"), Epoch: h.last().Epoch, Record: h.last(), Links: h.links},
		}}
	}
	var early Out
	before := shows()
	if m.n.HandleAnswer(m.now, &before, &early); len(early.Notes) > 0 || early.Write != nil || m.n.State() != wire.Joining {
		t.Errorf("shown a record that does not name it, it is %s and says %q", m.n.State(), early.Notes)
	}
	h.joint(30*time.Second, "n1", "n4")
	a := shows()
	wrong := a
	info := *a.Info
	wrong.Info, info.Nonce = &info, "other"
	var out Out
	if m.n.HandleAnswer(m.now, &wrong, &out); out.Write != nil {
		t.Error("an answer to another question counts")
	}
	m.n.HandleAnswer(m.now, &a, &out)
	m.did(&out)
	if m.n.State() != wire.Voting || m.disk.Record != h.last() || m.n.digest != h.last().Digest() {
		t.Errorf("%s, %+v", m.n.State(), m.disk)
	}
	if a := m.acquire("r", quorum.Exclusive, nil); a.Kind != wire.Granted {
		t.Errorf("%+v", a)
	}
	// It voted now: after a stop that is not clean it waits.
	if m.start("n4", join, nil, false); m.n.State() != wire.Recovering {
		t.Errorf("after an unclean stop it is %s", m.n.State())
	}
}

// A node that waits to be added sees records that do not name it. That is no alarm, unless they name
// another node of its name.
func TestJoiningSeesRecords(t *testing.T) {
	h := newHistory()
	for _, tt := range []struct {
		name string
		want string
	}{{"n4", ""}, {"n2", "start it under another name"}} {
		m := startMember(t, tt.name, wire.Config{MaxTTL: 30 * time.Second, Skew: 5 * time.Second}, epoch.State{ID: uuid.New()}, nil, true)
		for range 2 {
			var out Out
			m.n.HandleAnswer(m.now, &wire.Answer{Kind: wire.Informed, Node: "n1", Digest: h.last().Digest(), Info: &wire.NodeInfo{
				Nonce: m.n.probeRequest().Nonce, Nodes: []string{"n1", "n2", "n3"}, MaxTTL: 30 * time.Second, State: wire.Voting,
				Config: &wire.NodeConfig{ID: epochID("n1"), Epoch: 1, Record: h.last(), Links: h.links},
			}}, &out)
			m.did(&out)
		}
		if got := strings.Join(m.notes, "; "); m.n.State() != wire.Joining || (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) || len(m.notes) > 1 {
			t.Errorf("%s is %s, and says %q", tt.name, m.n.State(), m.notes)
		}
	}
}

// A node says that it votes when it begins to, and not with each record.
func TestReadyIsSaidOnce(t *testing.T) {
	h := newHistory()
	old := startMember(t, "n1", epochBase, h.state("n1"), &Saved{Wall: 1_799_999_999_000_000}, false)
	next := startMember(t, "n4", wire.Config{MaxTTL: 30 * time.Second, Skew: 5 * time.Second}, epoch.State{ID: epochID("n4")}, nil, true)
	h.joint(30*time.Second, "n1", "n4")
	for m, want := range map[*member]bool{old: false, next: true} {
		var out Out
		m.n.Handle(m.now, &wire.Request{Verb: wire.Configure, Client: "ops", Step: h.learn()}, "x", &out)
		m.did(&out)
		if out.Ready != want || m.n.State() != wire.Voting {
			t.Errorf("%s, ready %v, want %v", m.n.State(), out.Ready, want)
		}
	}
}

// A directory that was used before is not taken for one that never voted.
func TestJoinsWithAnOldDirectory(t *testing.T) {
	join := wire.Config{MaxTTL: 30 * time.Second, Skew: 5 * time.Second}
	m := startMember(t, "n4", join, epoch.State{ID: epochID("n4")}, nil, false)
	h := newHistory()
	if m.learn(h.joint(30*time.Second, "n1", "n4")); m.n.State() != wire.Recovering {
		t.Errorf("it is %s", m.n.State())
	}
}

// A node decides only while it votes, with a floor above all fences that it may have given,
// and those that it forgot (E6, E7).
func TestDecidesWhileItVotes(t *testing.T) {
	h := newHistory()
	prepare := &wire.Step{Kind: wire.Prepare, Epoch: 2, Prev: h.last().Digest(), Ballot: wire.Ballot{N: 1, Run: uuid.UUID{1}}}
	m := startMember(t, "n1", epochBase, h.state("n1"), nil, false)
	if a := m.step(prepare); a.Why != wire.WhyVotes || m.writes > 0 {
		t.Errorf("a node that forgot: %+v", a)
	}
	m.run(2 * time.Minute)
	a := m.step(prepare)
	if a.Why != wire.WhyNone || m.writes != 1 || m.disk.Promised != prepare.Ballot {
		t.Fatalf("%+v, %+v", a, m.disk)
	}
	if a.Floor < uint64(m.now.Wall)-90_000_000 {
		t.Errorf("floor %d: what it forgot is up to %d", a.Floor, m.now.Wall-90_000_000)
	}
	b := m.acquire("r", quorum.Exclusive, func(r *wire.Request) { r.Keep, r.RangeSize = true, 64 })
	if a := m.step(prepare); a.Floor < b.Fence+63 {
		t.Errorf("floor %d: the span ends at %d", a.Floor, b.Fence+63)
	}
	// Only the node that is named does it.
	prepare.Node = "n2"
	if a := m.step(prepare); a != nil {
		t.Errorf("%+v", a)
	}
}

// A node without a directory has no id, and decides nothing.
func TestDecidesWithADirectory(t *testing.T) {
	h := newHistory()
	m := startMember(t, "n1", epochBase, epoch.State{}, &Saved{}, true)
	for _, s := range []*wire.Step{
		{Kind: wire.Prepare, Epoch: 1, Prev: epochBase.Digest(), Ballot: wire.Ballot{N: 1, Run: uuid.UUID{1}}},
		{Kind: wire.Accept, Epoch: 1, Ballot: wire.Ballot{N: 1, Run: uuid.UUID{1}}, Record: h.last()},
	} {
		if a := m.step(s); a.Why != wire.WhyNoID || m.writes > 0 {
			t.Errorf("%s: %+v", s.Kind, a)
		}
	}
	if m.learn(h); m.n.State() != wire.Retired {
		t.Errorf("its cluster has ids, and it is %s", m.n.State())
	}
}

// The time under a joint record is written now and then, and at a stop (E5).
func TestTimeIsWritten(t *testing.T) {
	h := newHistory().joint(30*time.Second, "n1", "n4")
	m := startMember(t, "n1", epochBase, h.state("n1"), &Saved{}, false)
	m.run(4 * time.Second)
	if m.writes != 1 || m.disk.Had < 3*time.Second {
		t.Errorf("%d writes, %v", m.writes, m.disk.Had)
	}
	m.disk = *m.n.Configuration(m.now)
	if m.disk.Had != 5*time.Second {
		t.Errorf("%v are written at a stop", m.disk.Had)
	}
	saved, _ := m.n.Save(m.now)
	m.start("n1", epochBase, saved, false)
	if m.run(40 * time.Second); m.disk.Had < epoch.Wait(h.last()) || m.writes > 12 {
		t.Errorf("%d writes, %v", m.writes, m.disk.Had)
	}
	before := m.writes
	if m.run(time.Minute); m.writes > before {
		t.Error("it goes on writing when the wait is over")
	}
}

// A node warns of a change that nobody ends: when it takes twice as long as the longest lease, then
// once an hour, and when the node starts again. It does not when it is in none of the lists.
func TestWarnsOfChangeNotEnded(t *testing.T) {
	h := newHistory()
	m := startMember(t, "n1", epochBase, h.state("n1"), &Saved{}, false)
	h.joint(40*time.Second, "n1", "n4")
	m.learn(h)
	count := func(what string, want int) {
		t.Helper()
		n := 0
		for _, note := range m.notes {
			if strings.Contains(note, "to [n1 n4] has not been ended for ") && strings.Contains(note, "qlock nodes finish") {
				n++
			}
		}
		if n != want {
			t.Errorf("%s: %d warnings, want %d: %q", what, n, want, m.notes)
		}
		m.notes = nil
	}
	m.run(79 * time.Second)
	count("before twice the longer lease", 0)
	m.run(2 * time.Second)
	count("after it", 1)
	m.run(59 * time.Minute)
	count("in the next hour", 0)
	m.run(2 * time.Minute)
	count("after an hour", 1)
	m.disk.Had = m.n.config.acceptor.Had(m.now.Mono)
	m.start("n1", epochBase, nil, false)
	count("after a restart", 1)
	h.finish(0)
	m.learn(h)
	m.run(2 * time.Hour)
	count("when it is ended", 0)

	h = newHistory()
	h.joint(30*time.Second, "n1", "n4")
	m = startMember(t, "n5", epochBase, h.state("n5"), nil, false)
	m.run(5 * time.Minute)
	count("of a node in no list", 0)
}

// A node that starts asks for a newer record with its first questions, which all nodes answer,
// and once under its old record even if it need not ask (E9).
func TestAsksAtTheStart(t *testing.T) {
	h := newHistory()
	m := startMember(t, "n1", epochBase, h.state("n1"), &Saved{}, false)
	if q := m.n.probeRequest(); !q.ShowConfig || q.Epoch != 1 {
		t.Errorf("%+v", q)
	}
	m.acquire("r", quorum.Exclusive, nil)
	if q := m.n.probeRequest(); q.ShowConfig {
		t.Errorf("nobody else answers it any more: %+v", q)
	}
	if m.survey == nil || m.survey.Epoch != 1 {
		t.Errorf("%+v", m.survey)
	}
}

// An unknown digest of a claim makes a node ask for a newer record, once a second at most.
func TestAsksForNewerRecord(t *testing.T) {
	h := newHistory()
	m := startMember(t, "n1", epochBase, h.state("n1"), &Saved{}, false)
	m.run(5 * time.Second)
	asked := 0
	for range 30 {
		m.survey = nil
		m.acquire("r", quorum.Exclusive, func(r *wire.Request) { r.Digest = "0123456789abcdef" })
		if m.run(100 * time.Millisecond); m.survey != nil {
			asked++
			if m.survey.Epoch != 1 || !m.survey.ShowConfig || m.survey.Node != "" {
				t.Errorf("%+v", m.survey)
			}
		}
	}
	if asked < 3 || asked > 4 {
		t.Errorf("asked %d times in 3 s", asked)
	}
}

// The digest of a claim that it knows does so too: a client that has moved takes its claims
// along, and the node may have missed the change.
func TestKnownClaimAsksForNewerRecord(t *testing.T) {
	h := newHistory()
	m := startMember(t, "n1", epochBase, h.state("n1"), &Saved{}, false)
	m.acquire("r", quorum.Exclusive, nil)
	m.run(5 * time.Second)
	m.survey = nil
	m.do(&wire.Request{
		Verb: wire.Acquire, Client: "c1", Resource: "r", Claim: wire.ClaimID{Instance: uuid.UUID{1}, Seq: 1},
		SentAt: 2, Mode: quorum.Exclusive, At: m.now.Wall, TTL: 5 * time.Second, Digest: m.n.digest,
	})
	if m.survey != nil {
		t.Error("asked because of its own digest")
	}
	if a := m.again(1, "r", quorum.Exclusive); a.Kind != wire.Granted || m.survey == nil {
		t.Errorf("%s, asked: %v", a.Kind, m.survey != nil)
	}
}

// A node that was started with a list from before the history that others show, and cannot
// know better, gives no votes. One that has been in that list says what it sees.
func TestListOfBefore(t *testing.T) {
	h := newHistory()
	for range 40 {
		h.joint(30*time.Second, "n1", "n4").finish(0).joint(30*time.Second, "n1", "n2", "n3").finish(0)
	}
	h.links = h.links[len(h.links)-wire.MaxLinks:]
	for _, fresh := range []bool{true, false} {
		m := startMember(t, "n2", epochBase, epoch.State{ID: uuid.New()}, &Saved{Wall: 1_799_999_999_000_000}, fresh)
		m.acquire("r", quorum.Exclusive, nil)
		var out Out
		q := m.n.probeRequest()
		m.n.HandleAnswer(m.now, &wire.Answer{Kind: wire.Informed, Node: "n1", Digest: h.last().Digest(), Info: &wire.NodeInfo{
			Nonce: q.Nonce, Nodes: []string{"n1", "n2", "n3"}, MaxTTL: 30 * time.Second, State: wire.Voting,
			Config: &wire.NodeConfig{ID: epochID("n1"), Epoch: h.last().Epoch, Record: h.last(), Links: h.links},
		}}, &out)
		m.did(&out)
		want := map[bool]wire.State{true: wire.Joining, false: wire.Voting}[fresh]
		if m.n.State() != want || len(m.notes) == 0 || (m.n.Claims() == 0) != fresh {
			t.Errorf("fresh %v: it is %s with %d claims, and says %q", fresh, m.n.State(), m.n.Claims(), m.notes)
		}
	}
}

// The directory of such a node never voted: added to the list, it votes at once (E14).
func TestDisownedNodeDoesNotWait(t *testing.T) {
	h := newHistory()
	for range 80 {
		h.joint(30*time.Second, "n1").finish(0).joint(30*time.Second, "n1", "n2", "n3").finish(0)
	}
	h.links = h.links[len(h.links)-wire.MaxLinks:]
	m := startMember(t, "n2", epochBase, epoch.State{ID: epochID("n2 again")}, nil, true)
	var out Out
	m.n.HandleAnswer(m.now, &wire.Answer{Kind: wire.Informed, Node: "n1", Digest: h.last().Digest(), Info: &wire.NodeInfo{
		Nonce: m.n.probeRequest().Nonce, Nodes: []string{"n1", "n2", "n3"}, MaxTTL: 30 * time.Second, State: wire.Voting,
		Config: &wire.NodeConfig{ID: epochID("n1"), Epoch: h.last().Epoch, Record: h.last(), Links: h.links},
	}}, &out)
	m.did(&out)
	m.run(time.Second)
	if m.n.State() != wire.Joining || m.n.Recovering(m.now) > 0 {
		t.Errorf("it is %s, and gives no votes for %v", m.n.State(), m.n.Recovering(m.now))
	}
}

// A retired node does not contest its name: the node that has it now goes on (E14).
func TestRetiredNameIsFree(t *testing.T) {
	h := newHistory().joint(30*time.Second, "n1", "n4").finish(0)
	old := startMember(t, "n2", epochBase, h.state("n2"), &Saved{}, false)
	next := startMember(t, "n2", wire.Config{MaxTTL: 30 * time.Second, Skew: time.Second}, epoch.State{ID: uuid.New()}, nil, true)
	next.now.Wall += 1000
	var out, back Out
	q := next.n.probeRequest()
	old.n.Handle(old.now, q, "x", &out)
	for i := range out.Answers {
		next.n.HandleAnswer(next.now, &out.Answers[i].Answer, &back)
	}
	if len(out.Answers) == 0 || old.n.State() != wire.Retired || next.n.Stopped() || len(next.n.rivals) > 0 || len(old.n.rivals) > 0 {
		t.Errorf("%d answers, %s; %s with %d rivals", len(out.Answers), old.n.State(), next.n.State(), len(next.n.rivals))
	}
	// Nor do its questions, such as those of a copy of a member's directory that was started first.
	member := startMember(t, "n1", epochBase, h.state("n1"), &Saved{}, false)
	copied := h.state("n1")
	copied.ID = uuid.New()
	other := startMember(t, "n1", epochBase, copied, nil, false)
	before := other.n.echoAt
	for range 5 {
		other.run(2 * time.Second)
		q := other.n.probeRequest()
		member.do(q)
		if member.n.State() != wire.Voting || len(member.n.rivals) > 0 {
			t.Fatalf("%s with %d rivals after %+v", member.n.State(), len(member.n.rivals), q)
		}
	}
	if other.n.State() != wire.Retired || other.n.echoAt == before {
		t.Errorf("%s, and it last heard itself at %v", other.n.State(), other.n.echoAt)
	}
}

// A node that knows nothing about records, such as one of a test, ignores what concerns them.
func TestWithoutRecords(t *testing.T) {
	n, now := ready(t)
	var out Out
	n.Handle(*now, &wire.Request{Verb: wire.Configure, Client: "ops", Step: newHistory().learn()}, "x", &out)
	if n.Configuration(*now) != nil || n.Epoch() != 0 || len(out.Answers) > 0 || out.Write != nil {
		t.Errorf("%+v", out)
	}
}

// A change to a much shorter longest lease comes while the node's last question is older than
// that. The node was not away, so it votes on (N9). From then on it asks often enough for the
// shorter one, with a shorter wait for the answers too.
func TestShorterLeaseIsNoAbsence(t *testing.T) {
	for _, shorter := range []time.Duration{10 * time.Millisecond, 200 * time.Millisecond, time.Second, 3 * time.Second} {
		h := newHistory()
		m := startMember(t, "n1", epochBase, h.state("n1"), &Saved{}, false)
		m.run(epochBase.MaxTTL - epochBase.MaxTTL/askEvery/50)
		m.acquire("r", quorum.Exclusive, nil)
		if pass(&m.now, m.n.Deadline()-m.now.Mono-time.Millisecond); m.n.away(m.now) < time.Second {
			t.Fatalf("it heard itself %v ago", m.n.away(m.now))
		}
		m.notes = nil
		m.learn(h.joint(shorter, "n1", "n2", "n3"))
		if m.n.State() != wire.Voting || len(m.notes) != 1 {
			t.Errorf("%v: %s after the change: %q", shorter, m.n.State(), m.notes)
		}
		m.run(min(20*shorter, epochBase.MaxTTL)) // a change is warned of after twice the longer lease
		if m.n.State() != wire.Voting || len(m.notes) != 1 {
			t.Errorf("%v: %s later: %q", shorter, m.n.State(), m.notes)
		}
		if got := m.n.cfg.ProbeWait; got > shorter/3 {
			t.Errorf("%v: it waits %v for answers", shorter, got)
		}
		// An absence counts by the shorter lease.
		pass(&m.now, shorter+shorter/10)
		var out Out
		if m.n.Tick(m.now, &out); m.n.State() == wire.Voting {
			t.Errorf("%v: it votes after an absence of %v", shorter, shorter+shorter/10)
		}
		// The longer one is back with its own pauses.
		m.learn(h.rollBack())
		if m.n.cfg.ProbeWait != 100*time.Millisecond {
			t.Errorf("%v: it waits %v for answers after the way back", shorter, m.n.cfg.ProbeWait)
		}
	}
}

// A node that does not hear itself after a change to a shorter lease is away by the lease of
// before: whoever has its name then has waited that long.
func TestAbsenceBeforeAShorterLease(t *testing.T) {
	h := newHistory()
	m := startMember(t, "n1", epochBase, h.state("n1"), &Saved{}, false)
	m.learn(h.joint(time.Second, "n1", "n2", "n3"))
	pass(&m.now, 4*time.Second)
	var out Out
	m.n.Tick(m.now, &out)
	if m.n.State() == wire.Voting {
		t.Error("it votes though it has not heard itself for 4 s")
	}
}
