package members

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/wire"
)

const maxTTL = 30 * time.Second

func config(nodes string) wire.Config {
	return wire.Config{Nodes: strings.Fields(nodes), MaxTTL: maxTTL, Skew: 5 * time.Second}
}

func at(d time.Duration) wire.Now { return wire.Now{Mono: d, Wall: 1e15 + d.Microseconds()} }

// answer is what a node's process with the number life says.
func answer(nonce, name string, life byte, nodes string) *wire.Answer {
	cfg := config(nodes)
	return &wire.Answer{
		Kind: wire.Informed, Node: name, Incarnation: uuid.UUID{life}, Digest: cfg.Digest(),
		Info: &wire.NodeInfo{Nonce: nonce, Nodes: cfg.Nodes, MaxTTL: cfg.MaxTTL, Skew: cfg.Skew, State: wire.Voting, Now: 1e15},
	}
}

// describe returns a membership in one line.
func describe(m Membership) string {
	var parts []string
	for i := range m.Nodes {
		n := &m.Nodes[i]
		s := fmt.Sprintf("%s%d", n.Name, n.Incarnation[0])
		if n.Conflict != "" {
			s += " (" + string(n.Conflict) + ")"
		}
		parts = append(parts, s)
	}
	s := strings.Join(parts, ", ")
	if m.Config != nil {
		s += "; list " + strings.Join(m.Config.Nodes, " ")
	}
	if m.Agreed {
		s += ", agreed"
	}
	if len(m.Missing) > 0 {
		s += "; missing " + strings.Join(m.Missing, " ")
	}
	return s
}

func TestMembership(t *testing.T) {
	const abc = "a b c"
	for _, c := range []struct {
		name    string
		answers string // round, name, process and list of each
		own     string
		gone    bool
		want    string
	}{
		{"nobody", "", "", false, ""},
		{"all", "1 a 1 a b c; 1 b 1 a b c; 1 c 1 a b c", "", false, "a1, b1, c1; list a b c, agreed"},
		{"one is silent", "1 a 1 a b c; 1 c 1 a b c", "", false, "a1, c1; list a b c, agreed; missing b"},
		{"fewer than a quorum", "1 a 1 a b c", "", false, "a1; list a b c; missing b c"},
		{"one told twice is one", "1 a 1 a b c; 1 a 1 a b c; 2 a 1 a b c", "", false, "a1; list a b c; missing b c"},
		{"a list of its own", "1 a 1 a b c; 1 b 1 b; 1 c 1 a b c", "", false, "a1, b1 (other configuration), c1; list a b c, agreed"},
		{"one against one", "1 a 1 a b c; 1 b 1 b", "", false, "a1 (other configuration), b1; list b; missing c"},
		{"half are not more than half", "1 a 1 a b; 1 b 1 a b; 1 c 1 c d; 1 d 1 c d", "", false, "a1, b1, c1 (other configuration), d1 (other configuration); list a b"},
		{"not in its own list", "1 a 1 a b; 1 b 1 a b; 1 x 1 a b", "", false, "a1, b1, x1 (not in its own list); list a b, agreed"},
		{"strangers do not make a quorum", "1 a 1 a b c; 1 x 1 a b c; 1 y 1 a b c", "", false, "a1, x1 (not in its own list), y1 (not in its own list); list a b c; missing b c"},
		{"two of one name that agree", "1 a 1 a b; 1 a 2 a b; 1 b 1 a b", "", false, "a1 (name clash), a2 (name clash), b1; list a b, agreed"},
		{"two of one name that do not", "1 a 1 a b; 1 a 2 a; 1 b 1 a b", "", false, "a1 (name clash), a2 (name clash), b1; list a b"},
		{"a process replaced by another", "1 a 1 a b; 1 b 1 a b; 2 a 2 a b c; 2 b 2 a b c", "", false, "a2, b2; list a b c, agreed; missing c"},
		{"and heard of late", "2 a 2 a b c; 1 a 1 a b", "", false, "a1 (other configuration), a2 (name clash); missing b c"},
		{"a whole cluster renamed, and its client", "1 d 1 d e f; 1 e 1 d e f; 1 f 1 d e f", abc, false, "d1, e1, f1; list d e f; missing a b c"},
		{"whose nodes are gone for long", "1 d 1 d e f; 1 e 1 d e f; 1 f 1 d e f", abc, true, "d1, e1, f1; list d e f, agreed; missing a b c"},
		{"renamed in part", "1 a 1 a b d; 1 b 1 a b d; 1 d 1 a b d", abc, false, "a1, b1, d1; list a b d, agreed; missing c"},
		{"a client is not drawn away by one", "1 b 1 b", abc, false, "b1; list b; missing a c"},
		{"and one that was comes back", "1 a 1 a b c; 1 b 1 b; 1 c 1 a b c", "b", false, "a1, b1 (other configuration), c1; list a b c, agreed"},
		{"its own nodes need no more than a quorum", "1 a 1 a b c; 1 b 1 a b c", abc, false, "a1, b1; list a b c, agreed; missing c"},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := NewQuery("q")
			q.Ask(at(0))
			for _, line := range strings.Split(c.answers, "; ") {
				f := strings.Fields(line)
				if len(f) == 0 {
					continue
				}
				for fmt.Sprint(len(q.asked)) < f[0] {
					q.Ask(at(0))
				}
				if !q.Hear(at(time.Millisecond), answer("q/"+f[0], f[1], f[2][0]-'0', strings.Join(f[3:], " "))) {
					t.Fatalf("%s is not heard", line)
				}
			}
			var own *wire.Config
			if c.own != "" {
				cfg := config(c.own)
				own = &cfg
			}
			got := describe(q.Membership(at(time.Millisecond), own, c.gone))
			// If several lists have equally many nodes, the digest decides which is shown.
			if c.name == "one against one" || c.name == "half are not more than half" {
				if strings.Contains(got, "agreed") {
					t.Error(got)
				}
				return
			}
			if c.name == "and heard of late" {
				if strings.Contains(got, "agreed") || !strings.Contains(got, "a1 (") || !strings.Contains(got, "a2 (") {
					t.Error(got)
				}
				return
			}
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// A node that shows one configuration and the digest of another is broken.
func TestWrongDigest(t *testing.T) {
	q := NewQuery("q")
	nonce := q.Ask(at(0))
	for _, name := range []string{"a", "b"} {
		a := answer(nonce, name, 1, "a b")
		a.Digest = config("a b c").Digest()
		q.Hear(at(0), a)
	}
	if got := describe(q.Membership(at(0), nil, false)); got != "a1 (wrong digest), b1 (wrong digest)" {
		t.Error(got)
	}
}

// Only an answer to the same query counts (M1), and only for a time.
func TestOtherAnswers(t *testing.T) {
	q := NewQuery("q/1")
	q.Ask(at(0))
	for _, nonce := range []string{"", "q", "q/1", "q/1/", "q/1/0", "q/1/2", "q/1/01", "q/1/+1", "q/1/x", "q/2/1", "q/11/1", "other/1/1", "q/1/1/1", "q/1/99999999999999999999"} {
		if q.Hear(at(0), answer(nonce, "a", 1, "a")) {
			t.Errorf("an answer to %q is taken for one to this query", nonce)
		}
	}
	if q.Hear(at(0), &wire.Answer{Kind: wire.Granted, Node: "a"}) {
		t.Error("an answer without information counts")
	}
	if !q.Hear(at(time.Second), answer("q/1/1", "a", 1, "a")) || !q.Membership(at(recentAnswer), nil, false).Agreed {
		t.Error("an answer does not count")
	}
	if m := q.Membership(at(recentAnswer+1), nil, false); len(m.Nodes) > 0 || m.Agreed {
		t.Errorf("counts for ever: %s", describe(m))
	}
	for i := range 10 * mostNodes {
		a := answer("q/1/1", "a", 1, "a")
		a.Incarnation = uuid.UUID{0: byte(i >> 8), 1: byte(i), 15: 1}
		q.Hear(at(0), a)
	}
	if len(q.nodes) > mostNodes {
		t.Errorf("%d processes are remembered", len(q.nodes))
	}
}

// run runs the machine until it finds something, or until the end. say gives the answers
// for each moment. It returns what the machine did.
func run(m *Machine, from, until time.Duration, say func(now time.Duration, nonce string) []*wire.Answer) string {
	var did []string
	var out Out
	nonce := ""
	note := func(now time.Duration) bool {
		if out.Ask != "" {
			nonce = out.Ask
			did = append(did, fmt.Sprintf("%v asks %s", now, nonce))
		}
		if out.Found != nil {
			did = append(did, fmt.Sprintf("%v %s", now, strings.Join(out.Found.Nodes, " ")))
		}
		found := out.Found != nil
		out = Out{}
		return found
	}
	m.Query(at(from), &out)
	note(from)
	due := from
	for now := from; now <= until; now += time.Millisecond {
		for _, a := range say(now, nonce) {
			m.Hear(at(now), a, &out)
			if note(now) {
				return strings.Join(did, "; ")
			}
		}
		if now >= due {
			m.Tick(at(now), &out)
			if note(now) {
				break
			}
		}
		due = 1 << 62
		if d, ok := m.Wait(at(now)); ok {
			due = now + d
		}
	}
	return strings.Join(did, "; ")
}

func TestMachine(t *testing.T) {
	const ms = time.Millisecond
	// every process that answers a question after that time, with its list
	at0 := func(delay time.Duration, nodes ...string) func(time.Duration, string) []*wire.Answer {
		asked := map[string]time.Duration{}
		return func(now time.Duration, nonce string) (all []*wire.Answer) {
			if _, ok := asked[nonce]; !ok {
				asked[nonce] = now
			}
			for n, began := range asked {
				if now == began+delay {
					for _, node := range nodes {
						name, list, _ := strings.Cut(node, ":")
						all = append(all, answer(n, name, 1, list))
					}
				}
			}
			return all
		}
	}
	both := func(a, b func(time.Duration, string) []*wire.Answer) func(time.Duration, string) []*wire.Answer {
		return func(now time.Duration, nonce string) []*wire.Answer {
			return slices.Concat(a(now, nonce), b(now, nonce))
		}
	}
	for _, c := range []struct {
		name string
		say  func(time.Duration, string) []*wire.Answer
		want string
	}{
		{"all are heard at once", at0(1*ms, "a:a b", "b:a b"), "0s asks p/1/1; 11ms a b"},
		{"far away", at0(100*ms, "a:a b", "b:a b"), "0s asks p/1/1; 200ms a b"},
		{"farther", at0(400*ms, "a:a b", "b:a b"), "0s asks p/1/1; 250ms asks p/1/2; 500ms asks p/1/3; 650ms a b"},
		{"one is down", at0(1*ms, "a:a b c", "b:a b c"), "0s asks p/1/1; 250ms a b c"},
		{"a list of its own comes first", both(at0(1*ms, "b:b"), at0(5*ms, "a:a b c", "c:a b c")), "0s asks p/1/1; 15ms a b c"},
		{"too few", at0(1*ms, "a:a b c"), "0s asks p/1/1; 250ms asks p/1/2; 500ms asks p/1/3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := run(New("p"), 0, 700*ms, c.say); !strings.HasPrefix(got, c.want) {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}

	m := New("p")
	run(m, 0, time.Second, at0(1*ms, "a:a b c", "b:a b c", "c:a b c"))
	if m.own == nil {
		t.Fatal("nothing found")
	}
	// One node has a list of its own, and no other is heard: the client does not change.
	if got := run(m, 2*time.Second, 10*time.Second, at0(1*ms, "b:b")); strings.HasSuffix(got, "b") || strings.Count(got, "asks") != 4 || m.query != nil {
		t.Errorf("%s", got)
	}
	// That lasts as long as leases do. After that, there is nobody but that node.
	long := 2*time.Second + maxTTL + wire.Margin(maxTTL)
	if got := run(m, long-2*time.Second, long-ms, at0(1*ms, "b:b")); strings.HasSuffix(got, " b") {
		t.Errorf("%s", got)
	}
	if got := run(m, long, long+2*time.Second, at0(1*ms, "b:b")); got != "32.6s asks p/4/1; 32.85s b" {
		t.Errorf("%s", got)
	}
	// Any node with the client's configuration restarts that time.
	m.own, m.digest, m.gone, m.goneSince = new(wire.Config), "", true, 0
	*m.own, m.digest = config("a b c"), config("a b c").Digest()
	if got := run(m, 2*long, 2*long+2*time.Second, at0(1*ms, "a:a b c", "b:b")); strings.HasSuffix(got, " b") || m.gone {
		t.Errorf("%s", got)
	}
	// A query soon after another does nothing, nor does one while another is under way.
	var out Out
	m.Query(at(2*long+Pause/2), &out)
	if out.Ask != "" {
		t.Error("asked again too soon")
	}
	if _, ok := m.Wait(at(3 * long)); ok {
		t.Error("waits for something, with no query under way")
	}
}

// A query found the client's nodes silent once, for a second. An hour later one node has a
// list of its own, and the others are slow for a moment. They have confirmed the client's
// locks all the time (M5).
func TestSilenceOfLongAgo(t *testing.T) {
	once := func(nodes ...string) func(time.Duration, string) []*wire.Answer {
		asked := ""
		return func(_ time.Duration, nonce string) (all []*wire.Answer) {
			if nonce == asked {
				return nil
			}
			asked = nonce
			for _, node := range nodes {
				name, list, _ := strings.Cut(node, ":")
				all = append(all, answer(nonce, name, 1, list))
			}
			return all
		}
	}
	for _, shown := range []bool{true, false} {
		m := New("p")
		run(m, 0, time.Second, once("a:a b c", "b:a b c", "c:a b c"))
		run(m, 2*time.Second, 4*time.Second, once("b:b"))
		if shown {
			m.Shown()
		}
		run(m, time.Hour, time.Hour+2*time.Second, once("b:b"))
		if stays := m.digest == config("a b c").Digest(); stays != shown {
			t.Errorf("its nodes confirmed its locks: %v; it counts by %v", shown, m.own.Nodes)
		}
	}
}

var ruled = regexp.MustCompile(`(?m)^- \*\*(M[0-9]+)\b`)

// Each rule of docs/protocol.md about the nodes has a planted fault that leaves it out.
func TestRulesHaveFaults(t *testing.T) {
	page, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	rules := ruled.FindAllStringSubmatch(string(page), -1)
	if len(rules) != 5 {
		t.Errorf("docs/protocol.md has %d rules, M1 to M5 are 5", len(rules))
	}
	files, err := filepath.Glob("../sim/testdata/faults/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	var faults strings.Builder
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		faults.Write(b)
	}
	for _, r := range rules {
		if !strings.Contains(faults.String(), "# "+r[1]+":") {
			t.Errorf("no planted fault leaves out %s", r[1])
		}
	}
}
