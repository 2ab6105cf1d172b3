package members

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/wire"
)

func idOf(name string) uuid.UUID { return uuid.NewSHA1(uuid.Nil, []byte(name)) }

func listOf(names string) (list []wire.Member) {
	for _, n := range strings.Fields(names) {
		list = append(list, wire.Member{Name: n, ID: idOf(n)})
	}
	return list
}

// history returns the configurations of one cluster, from epoch 0 on. Lists are separated by
// commas, two lists of one record by a slash.
func history(cid byte, lists string) []wire.Config {
	var all []wire.Config
	for i, l := range strings.Split(lists, ",") {
		nodes, next, _ := strings.Cut(l, "/")
		if i == 0 {
			all = append(all, config(nodes))
			continue
		}
		before := all[i-1]
		r := &wire.EpochRecord{
			Cluster: "test", CID: uuid.UUID{cid}, Epoch: uint64(i), Prev: before.Digest(), Nodes: listOf(nodes), MaxTTL: maxTTL, Skew: 5 * time.Second, Next: listOf(next),
		}
		if r.Joint() {
			r.NextMaxTTL, r.NextSkew = r.MaxTTL, r.Skew
		}
		links := append(before.Links[:len(before.Links):len(before.Links)], wire.Link{Epoch: r.Epoch, Digest: r.Digest()})
		if i == 1 {
			links = append([]wire.Link{{Epoch: 0, Digest: before.Digest()}}, links...)
		}
		all = append(all, wire.RecordConfig(r, links))
	}
	return all
}

// says is the answer of a node that has a configuration. A name with a prime is a node of that
// name with another id.
func says(nonce, name string, cfg wire.Config) *wire.Answer {
	id := idOf(name)
	name = strings.TrimSuffix(name, "'")
	a := answer(nonce, name, 1, strings.Join(cfg.Nodes, " "))
	a.Digest = cfg.Digest()
	a.Info.Config = &wire.NodeConfig{ID: id, Epoch: cfg.Epoch(), Record: cfg.Record, Links: cfg.Links}
	if cfg.Record != nil {
		a.Info.MaxTTL, a.Info.Skew = cfg.MaxTTL, cfg.Skew
		if !strings.Contains(" "+strings.Join(cfg.Nodes, " ")+" ", " "+name+" ") {
			a.Info.State = wire.Retired
		}
	}
	return a
}

func joins(nonce, name string) *wire.Answer {
	return &wire.Answer{Kind: wire.Informed, Node: name, Incarnation: uuid.UUID{1}, Info: &wire.NodeInfo{
		Nonce: nonce, State: wire.Joining, Now: 1e15, Config: &wire.NodeConfig{ID: idOf(name), Joining: true},
	}}
}

// One cluster goes from a b c to c d e and on to e f; another one has the same names.
var (
	ours   = history(1, "a b c,a b c,a b c/c d e,c d e,c d e/e f,e f")
	theirs = history(2, "a b c,a b c,a b c/x,x,x/a b c,a b c,a b c/y,y,y/a b c,a b c")
	alike  = history(2, "a b d,a b d")
)

// heardBy makes the answers of "name:epoch name:epoch"; an epoch with an x is one of the
// other cluster, j one that waits to join.
func heardBy(nonce, nodes string) (all []*wire.Answer) {
	for _, f := range strings.Fields(nodes) {
		name, of, _ := strings.Cut(f, ":")
		switch {
		case of == "j":
			all = append(all, joins(nonce, name))
		case of == "s":
			all = append(all, says(nonce, name, config(name)))
		case of[0] == 'x':
			all = append(all, says(nonce, name, theirs[of[1]-'0']))
		default:
			all = append(all, says(nonce, name, ours[of[0]-'0']))
		}
	}
	return all
}

func TestMembershipByRecords(t *testing.T) {
	for _, c := range []struct {
		name, answers string
		own           string // as in answers; empty: a new client
		gone          bool
		want          string // epoch that is agreed on; empty: none
		conflicts     string
	}{
		{"the first record", "a:1 b:1 c:1", "", false, "1", ""},
		{"the client goes along", "a:1 b:1 c:1", "0", false, "1", ""},
		{"a majority is enough", "a:1 b:1", "0", false, "1", ""},
		{"not all have it", "a:1 b:1 c:0", "0", false, "1", "c earlier record"},
		{"most have not", "a:1 b:0 c:0", "0", false, "0", "a later record"},
		{"and for a new client", "a:1 b:0 c:0", "", false, "0", "a later record"},
		{"joint, when the old list has it", "a:2 b:2 c:1", "1", false, "2", "c earlier record"},
		{"joint, the new list alone", "c:2 d:2 e:2", "1", false, "", ""},
		{"joint, a new client", "a:2 b:2 c:2 d:2 e:2", "", false, "2", ""},
		{"joint, the new nodes have not joined", "a:2 b:2 c:2 d:j e:j", "", false, "2", ""},
		{"the end, when the new list has it", "a:2 b:2 c:3 d:3", "2", false, "3", "a earlier record b earlier record"},
		{"the end, too few of the new list", "a:2 b:2 c:3", "2", false, "2", "c later record"},
		{"a new client between", "a:2 b:2 c:3 d:3", "", false, "3", "a earlier record b earlier record"},
		{"a client that slept", "c:3 d:3 e:3", "1", false, "3", ""},
		{"and longer", "e:5 f:5 a:1 b:1 d:3", "1", false, "5", "a earlier record b earlier record d earlier record"},
		{"and from epoch 0", "e:5 f:5", "0", false, "5", ""},
		{"and most of its own list is what it was", "e:5 a:1 b:1 c:1", "1", false, "1", "e later record"},
		{"those that were left out", "e:5 f:5 c:5 d:5", "4", false, "5", ""},
		{"never back", "c:2 a:2 b:2", "3", false, "", "a"},
		{"never back to epoch 0", "a:0 b:0 c:0", "1", false, "", "a"},
		{"nor when the own nodes are gone", "a:0 b:0 c:0", "3", true, "", "a"},
		{"nor to an earlier record then", "a:2 b:2 c:2", "3", true, "", "a"},
		{"another id is another node", "a':1 b':1 c:1", "0", false, "", "a not in its own list b not in its own list"},
		{"a stray node of another cluster", "a:1 b:1 c:1 x:x7", "", false, "1", "x"},
		{"and its client", "a:1 b:1 c:1 x:x3", "1", false, "1", "x"},
		{"a stray node alone", "x:x3", "1", false, "", ""},
		{"another cluster of the same names", "a:x1 b:x1 c:x1", "1", false, "", ""},
		{"with a higher epoch", "a:x5 b:x5 c:x5", "1", false, "", ""},
		{"when the own one is gone for long", "a:x5 b:x5 c:x5", "1", true, "x5", ""},
		{"and the other one has a lower epoch", "a:x1 b:x1 c:x1", "3", true, "x1", ""},
		{"two clusters as large as each other", "a:x1 b:x1 c:x1 d:3 e:3 f:j", "", false, "x1", "d other configuration e other configuration"},
		{"and even", "a:x1 b:x1 e:5 f:5", "", false, "", "a"},
		{"a node with a list of its own", "a:1 b:1 c:1 s:s", "", false, "1", "s other configuration"},
		{"two nodes of which one has a list of its own", "e:5 f:5 s:s", "5", false, "5", "s other configuration"},
		{"silent nodes do not hold up a change", "c:3 d:3", "1", false, "3", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := NewQuery("q")
			nonce := q.Ask(at(0))
			for _, a := range heardBy(nonce, c.answers) {
				if !q.Hear(at(0), a) {
					t.Fatalf("%+v is not heard", a)
				}
			}
			of := func(epoch string) *wire.Config {
				switch {
				case epoch == "":
					return nil
				case epoch[0] == 'x':
					return &theirs[epoch[1]-'0']
				}
				return &ours[epoch[0]-'0']
			}
			got := q.Membership(at(0), of(c.own), c.gone)
			switch want := of(c.want); {
			case want == nil && got.Agreed:
				t.Errorf("agreed on %v, epoch %d: %s", got.Config.Nodes, got.Config.Epoch(), describe(got))
			case want != nil && (!got.Agreed || got.Digest != want.Digest() || got.Config.Digest() != want.Digest()):
				t.Errorf("want epoch %s: %s", c.want, describe(got))
			}
			var conflicts []string
			for i := range got.Nodes {
				if n := &got.Nodes[i]; n.Conflict != "" {
					conflicts = append(conflicts, n.Name+" "+string(n.Conflict))
				}
			}
			if got := strings.Join(conflicts, " "); strings.Contains(c.conflicts, " ") && got != c.conflicts || c.conflicts == "" && c.want != "" && got != "" {
				t.Errorf("conflicts %q, want %q", got, c.conflicts)
			}
		})
	}
}

// A client at epoch 0 whose cluster was set up anew with another list, and then got its first
// record, follows by M5: its own nodes show it.
func TestFirstRecordOfAnotherList(t *testing.T) {
	q := NewQuery("q")
	nonce := q.Ask(at(0))
	for _, n := range []string{"a", "b", "d"} {
		q.Hear(at(0), says(nonce, n, alike[1]))
	}
	if got := q.Membership(at(0), &ours[0], false); !got.Agreed || got.Digest != alike[1].Digest() {
		t.Error(describe(got))
	}
}

// A process that is in no list has no part in what its name counts for: it may be a copy of the
// member's directory (E14).
func TestCopyOutsideIsNoClash(t *testing.T) {
	for _, state := range []wire.State{wire.Retired, wire.Joining} {
		for _, run := range []byte{0, 9} { // before and after the member in the list
			q := NewQuery("q")
			nonce := q.Ask(at(0))
			for _, a := range heardBy(nonce, "a:1 b:1") {
				q.Hear(at(0), a)
			}
			other := says(nonce, "a'", ours[1])
			if state == wire.Joining {
				other = joins(nonce, "a")
			}
			other.Incarnation, other.Info.State = uuid.UUID{run}, state
			q.Hear(at(0), other)
			got := q.Membership(at(0), nil, false)
			if !got.Agreed || got.Config.Epoch() != 1 || len(got.Nodes) != 3 || got.Nodes[0].Conflict+got.Nodes[1].Conflict != "" {
				t.Errorf("%s, run %d: %s", state, run, describe(got))
			}
		}
	}
}

// Nodes that left a list are not waited for, those of both lists are.
func TestMissingByRecords(t *testing.T) {
	for _, c := range []struct{ answers, want string }{
		{"a:2 b:2", "[c d e]"},
		{"c:3 d:3 a:2", "[e]"},
		{"e:5 f:5 d:3", "[]"},
		{"e:5 f:5 d:j", "[]"},
	} {
		q := NewQuery("q")
		for _, a := range heardBy(q.Ask(at(0)), c.answers) {
			q.Hear(at(0), a)
		}
		if got := fmt.Sprint(q.Membership(at(0), nil, false).Missing); got != c.want {
			t.Errorf("%s: missing %s, want %s", c.answers, got, c.want)
		}
	}
}

// A client takes the next record with the answer that completes the majority, asks at once
// when a new digest was seen, and then not more often than before (E16).
func TestMachineFollowsAtOnce(t *testing.T) {
	m := New("p")
	var out Out
	m.Query(at(0), &out)
	for _, a := range heardBy(out.Ask, "a:1 b:1 c:1") {
		m.Hear(at(0), a, &out)
	}
	m.Tick(at(time.Second), &out)
	if out.Found == nil || out.Found.Epoch() != 1 {
		t.Fatalf("found %+v", out.Found)
	}

	now := time.Second + 10*time.Millisecond
	out = Out{}
	if m.Query(at(now), &out); out.Ask == "" {
		t.Fatal("it does not ask a second after the last query")
	}
	for i, a := range heardBy(out.Ask, "c:2 d:2 e:2 a:2 b:2") {
		now += time.Millisecond
		m.Hear(at(now), a, &out)
		if got := out.Found != nil; got != (i >= 3) {
			t.Fatalf("after answer %d it has found something: %v", i, got)
		}
		if out.Found != nil {
			break
		}
	}
	if out.Found.Epoch() != 2 || len(out.Found.Links) != 3 {
		t.Errorf("found %+v", out.Found)
	}

	out = Out{}
	if m.Query(at(now), &out); out.Ask != "" {
		t.Error("it asks again within a second")
	}
	m.QueryNow(at(now), &out)
	first := out.Ask
	if first == "" {
		t.Fatal("it does not ask at once")
	}
	m.QueryNow(at(now), &out)
	if out.Ask == first {
		t.Error("a new digest while it asks does not make it ask again")
	}
	for _, a := range heardBy(out.Ask, "c:3 e:3") {
		m.Hear(at(now), a, &out)
	}
	if out.Found == nil || out.Found.Epoch() != 3 {
		t.Errorf("found %+v", out.Found)
	}
}

// While some nodes have the next record, the client asks so often, and for so long, that it
// follows within a part of its lease, however short that is (E16).
func TestMachineWaitsForTheMajority(t *testing.T) {
	for _, lease := range []time.Duration{100 * time.Millisecond, time.Second, 10 * time.Second} {
		m := New("p")
		m.SetLease(lease)
		own := ours[1]
		m.own, m.digest = &own, own.Digest()
		var out Out
		now := time.Second
		m.Query(at(now), &out)
		moved := now + lease*9/10 // when the others have it
		for end := now + 2*lease; now < end && out.Found == nil; {
			if out.Ask != "" {
				nonce, nodes := out.Ask, "a:2 b:1 c:1"
				if now >= moved {
					nodes = "a:2 b:2 c:2"
				}
				out = Out{}
				for _, a := range heardBy(nonce, nodes) {
					m.Hear(at(now), a, &out)
				}
			}
			wait, ok := m.Wait(at(now))
			if !ok {
				break
			}
			now += max(wait, time.Millisecond)
			m.Tick(at(now), &out)
		}
		if out.Found == nil || now > moved+lease/10+time.Millisecond {
			t.Errorf("with leases of %v it follows at %v, %v after the others", lease, now, now-moved)
		}
	}
}

// Another cluster of the name is taken for a new one only when no node has shown the client's
// own for so long that nothing is held by it any more. A later record of the own one shows it
// as well.
func TestMachineAndAnotherCluster(t *testing.T) {
	for _, c := range []struct {
		what, meanwhile string
		follows         bool
	}{
		{"nothing else is heard", "", true},
		{"one of its nodes is heard", "c:3", false},
		{"one with a later record is heard", "f:5", false},
	} {
		m := New("p")
		own := ours[3]
		m.own, m.digest = &own, own.Digest()
		found := func(now time.Duration, nodes string) bool {
			var out Out
			m.Query(at(now), &out)
			for _, a := range heardBy(out.Ask, nodes) {
				m.Hear(at(now), a, &out)
			}
			m.Tick(at(now+Patience), &out)
			m.Tick(at(now+Pause), &out)
			return out.Found != nil
		}
		const others = "a:x5 b:x5 c:x5"
		if found(Pause, others) || found(10*time.Second, strings.TrimSpace("a:x5 b:x5 "+c.meanwhile)) {
			t.Errorf("%s: it follows at once", c.what)
		}
		if found(maxTTL, others) {
			t.Errorf("%s: it follows too soon", c.what)
		}
		if got := found(Pause+maxTTL+wire.Margin(maxTTL)+time.Millisecond, others); got != c.follows {
			t.Errorf("%s: it follows %v, want %v", c.what, got, c.follows)
		}
	}
}

// A client at epoch 0 that takes a record of another cluster does not come back to its own one
// while that one is at epoch 0 (see Bounds in docs/protocol.md): nodes at epoch 0 may be those of
// a list that the cluster has left. It comes back when its own one has a record.
func TestLedAwayAtEpoch0(t *testing.T) {
	for _, c := range []struct {
		what string
		away wire.Config
	}{
		{"a cluster that began with the same list", theirs[1]},
		{"a cluster with another list", alike[1]},
	} {
		m := New("p")
		own := ours[0]
		m.own, m.digest = &own, own.Digest()
		now := Pause
		follows := func(shown wire.Config) bool {
			for end := now + 3*maxTTL; now < end; now += 2 * Pause {
				var out Out
				m.Query(at(now), &out)
				for _, n := range shown.Nodes {
					m.Hear(at(now), says(out.Ask, n, shown), &out)
				}
				m.Tick(at(now+Patience), &out)
				if out.Found != nil {
					return true
				}
				m.Tick(at(now+Pause), &out)
			}
			return false
		}
		if !follows(c.away) || m.digest != c.away.Digest() {
			t.Errorf("%s: it does not follow", c.what)
		}
		if follows(ours[0]) {
			t.Errorf("%s: it comes back to epoch 0", c.what)
		}
		if !follows(ours[1]) || m.digest != ours[1].Digest() {
			t.Errorf("%s: it does not come back to its own cluster, which has a record now", c.what)
		}
	}
}
