//go:build unix

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/wire"
	"github.com/qlock/qlock/qlocktest"
)

// screen is a terminal with a program on it.
type screen struct {
	*process
	tty *os.File
}

// onTerminal starts qlock on a terminal of its own, as the shell does.
func onTerminal(t *testing.T, args ...string) *screen {
	t.Helper()
	return onTerminalOf(t, 120, args...)
}

func onTerminalOf(t *testing.T, columns uint16, args ...string) *screen {
	t.Helper()
	return onTerminalCmd(t, columns, command(args...))
}

// onTerminalCmd starts any program on a terminal of its own.
func onTerminalCmd(t *testing.T, columns uint16, cmd *exec.Cmd) *screen {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Skip("no pseudo-terminals: ", err)
	}
	if err := pty.Setsize(master, &pty.Winsize{Rows: 40, Cols: columns}); err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: cmd, out: newOutput(), err: newOutput(), done: make(chan struct{}), in: master}
	p.cmd.Env = append(p.cmd.Env, "TERM=xterm-256color", "NO_COLOR=")
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = slave, slave, slave
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	dieWithParent(p.cmd.SysProcAttr)
	started, drawn := make(chan error), make(chan struct{})
	go func() {
		lockThread()
		err := p.cmd.Start()
		_ = slave.Close() // the program has its own
		started <- err
		if err != nil {
			return
		}
		err = p.cmd.Wait()
		<-drawn // all that it wrote
		p.status = exitStatus(err)
		close(p.done)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(drawn)
		// This ends with an error when no process has the other side.
		_, _ = io.Copy(p.out, master)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("terminal of %s: status %d\n%q", strings.Join(cmd.Args, " "), p.status, p.out)
		}
	})
	return &screen{p, master}
}

func (s *screen) key(k string) {
	s.t.Helper()
	if _, err := s.tty.WriteString(k); err != nil {
		s.t.Fatal(err)
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	// One server for all: it knows of a subscription as soon as watch says so. Other servers
	// know of it a little later.
	u := "nats://" + sharedCluster(t).addr["n1"][0]
	t.Run("json", func(t *testing.T) {
		t.Parallel()
		name := lockName(t) + ".price list"
		pattern := strings.TrimSuffix(name, "price list") + ">"
		p := launch(t, "watch", pattern, "-s", u, "--json", "--count", "4")
		p.says(p.err, "Ctrl-C ends it")
		qlockCmd(t, "run", "elsewhere."+name, "-s", u, "--", "true").want(t, 0)
		h := launch(t, "lock", name, "-s", u, "--client", "holder")
		h.says(h.out, "\n")
		p.says(p.out, `"acquired"`) // events come a little later than what they are about
		waits := launch(t, "run", name, "-s", u, "--client", "waiter", "--", "true")
		p.says(p.out, `"waiting"`)
		_ = h.in.Close()
		waits.wait().want(t, 0)
		r := p.wait()
		r.want(t, 0)
		var got []string
		for _, line := range strings.Split(strings.TrimSpace(r.out), "\n") {
			var s entry
			if err := json.Unmarshal([]byte(line), &s); err != nil {
				t.Fatal(err)
			}
			if s.Name != name || s.Cluster != "default" || s.Mode != "exclusive" || (s.Token == 0) != (s.What == "waiting") {
				t.Errorf("%+v", s)
			}
			got = append(got, s.Client+" "+s.What)
		}
		// The two ends of one handover come from two programs, by two ways.
		all := strings.Join(got, ", ")
		if all != "holder acquired, waiter waiting, holder released, waiter acquired" && all != "holder acquired, waiter waiting, waiter acquired, holder released" {
			t.Error(all)
		}
	})
	t.Run("all clusters", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		p := launch(t, "watch", name, "-s", u, "--cluster", "*", "--count", "1", "--events")
		p.says(p.err, "Ctrl-C ends it")
		qlockCmd(t, "run", name, "-s", u, "--client", "svc", "--", "true").want(t, 0)
		p.wait().want(t, 0, "default/svc", "acquired")
	})
	t.Run("notes and evictions", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		p, j := launch(t, "watch", name, "-s", u, "--events", "--count", "2"), launch(t, "watch", name, "-s", u, "--events", "--count", "2", "--json")
		for _, w := range []*process{p, j} {
			w.says(w.err, "Ctrl-C ends it")
		}
		h := launch(t, "lock", name, "-s", u, "--note", "release 4.2")
		h.says(h.out, "\n")
		qlockCmd(t, "unlock", name, "-s", u, "--client", "ops", "--force", "--yes", "--wait", patience.String()).want(t, 0)
		p.wait().want(t, 0, ": release 4.2", "evicted by ops")
		j.wait().want(t, 0, `"note":"release 4.2"`, `"evicted_by":"ops"`)
	})
	t.Run("terminal", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		s := onTerminal(t, "watch", name, "-s", u)
		s.says(s.out, "Ctrl-C ends it")
		qlockCmd(t, "run", name, "-s", u, "--client", "svc", "--", "true").want(t, 0)
		s.says(s.out, "released")
		if out := s.out.String(); !strings.Contains(out, "\x1b[32macquired\x1b[0m") || !strings.Contains(out, "svc") {
			t.Errorf("%q", out)
		}
		s.key("\x03")
		s.wait().want(t, 0)
	})
}

// A request may arrive after the event that ends it, and repeatedly. It still counts as
// ended.
func TestWatchOutOfOrder(t *testing.T) {
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	claim := func(seq uint64) string {
		r := wire.Request{Verb: wire.Acquire, Claim: wire.ClaimID{Instance: uuid.UUID{1}, Seq: seq}, SentAt: 1, At: time.Now().UnixMicro(), TTL: time.Second, Digest: "0123456789abcdef"}
		return string(wire.AppendRequest(nil, &r))
	}
	const request, event, release = "lock.default.node.acquire.svc.x", "lock.default.event.acquired.svc.x", "lock.default.node.release.svc.x"
	given := string(wire.AppendRequest(nil, &wire.Request{Verb: wire.Release, Claim: wire.ClaimID{Instance: uuid.UUID{1}, Seq: 1}, Now: 1}))
	const batch = "lock.default.node.svc"
	together := func(parts ...string) string {
		b := []byte{'['}
		for i := 0; i < len(parts); i += 2 {
			if i > 0 {
				b = append(b, ',')
			}
			b = wire.AppendToBatch(b, wire.Verb(parts[i]), "x", []byte(parts[i+1]))
		}
		return string(append(b, ']'))
	}
	for name, messages := range map[string][][2]string{
		"in a batch":         {{batch, together("acquire", claim(1), "acquire", claim(2))}, {event, "{}"}, {event, "{}"}},
		"released in one":    {{request, claim(1)}, {batch, together("release", given)}},
		"both in one":        {{batch, together("acquire", claim(1), "release", given)}},
		"what is no batch":   {{batch, "{}"}, {batch, "[7]"}, {batch, "["}, {batch, ""}},
		"event before batch": {{event, "{}"}, {batch, together("acquire", claim(1))}},
		"event first":        {{event, "{}"}, {request, claim(1)}, {request, claim(1)}},
		"request again":      {{request, claim(1)}, {event, "{}"}, {request, claim(1)}},
		"released before":    {{release, given}, {request, claim(1)}},
		"one of two":         {{request, claim(1)}, {request, claim(2)}, {event, "{}"}, {event, "{}"}},
	} {
		w := newWatcher(out, false, "default")
		for _, m := range messages {
			w.hear(m[0], []byte(m[1]))
		}
		w.mu.Lock()
		if len(w.asks) != 0 {
			t.Errorf("%s: %d requests are left to be told of as waiting", name, len(w.asks))
		}
		w.mu.Unlock()
		if err := w.close(); err != nil {
			t.Error(err)
		}
	}
	w := newWatcher(out, false, "default")
	w.hear(request, []byte(claim(1)))
	w.mu.Lock()
	if len(w.asks) != 1 {
		t.Error("no request is left where none was granted: this test shows nothing")
	}
	w.mu.Unlock()
	_ = w.close()

	for pattern, want := range map[string]int{"x": 1, "y": 0, ">": 1, "x.>": 0} {
		w := newWatcher(out, false, "default")
		w.pattern = pattern
		w.hear(batch, []byte(together("acquire", claim(1))))
		w.mu.Lock()
		if len(w.asks) != want {
			t.Errorf("watching %s, %d requests of a batch for x are seen, want %d", pattern, len(w.asks), want)
		}
		w.mu.Unlock()
		_ = w.close()
	}
}

// What a request waits for is told in a few words.
func TestWaitsFor(t *testing.T) {
	holder := &qlock.Holder{Client: "svc\x1b[2J", Held: true, For: time.Minute}
	reader := &qlock.Holder{Client: "svc", Shared: true, For: 1234 * time.Millisecond}
	voted := qlock.NodeAnswer{Node: "n1", Answer: qlock.AnswerVoted}
	recovering := qlock.NodeAnswer{Node: "n2", Answer: qlock.AnswerRecovering, Waiting: 2 * time.Second}
	for want, w := range map[string]qlock.Waiting{
		`held by svc\x1b[2J for 1m0s, first in the queue`:    {Holder: holder, Queued: true},
		"behind svc (shared) for 1.2s, 3 ahead in the queue": {Holder: reader, Queued: true, Ahead: 3},
		"nodes that restarted give no votes for another 2s":  {Nodes: []qlock.NodeAnswer{voted, recovering}},
		"1 node has voted for it, which is too few":          {Nodes: []qlock.NodeAnswer{voted}},
		"2 nodes have voted for it, which is too few":        {Nodes: []qlock.NodeAnswer{voted, voted}},
		"no node answers": {},
	} {
		if got := waitsFor(w); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestNodes(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	r := sees(t, []string{"nodes", "-s", c.url()}, 0, "╭", "╰", "Nodes of cluster default", "Round trip", "voting", "3 of 3 nodes vote; a writer needs 2 votes, a reader 2. Longest lease 2m, allowed skew 5s.")
	if strings.Contains(r.out, "\x1b") {
		t.Errorf("colours, but no terminal: %q", r.out)
	}
	report := decode[membersReport](t, sees(t, []string{"nodes", "-s", c.url(), "--json"}, 0, `"voting": 3`))
	if report.Voting != 3 || len(report.Nodes) != 3 || report.Nodes[0].Name != "n1" || report.Nodes[2].State != "voting" || report.Nodes[1].RoundTrip <= 0 {
		t.Errorf("%+v", report)
	}
	inTime(t, "--timeout", []string{"nodes", "-s", c.url(), "--cluster", "nobody"}, exitFailed, `no node of cluster "nobody" answered`, "--cluster")
	eventually(t, func() error { // all of them may be slow, once
		s := onTerminal(t, "nodes", "-s", c.url())
		if r := s.wait(); r.status != 0 || !strings.Contains(r.out, "\x1b[32mvoting\x1b[0m") {
			return fmt.Errorf("status %d: %q", r.status, r.out)
		}
		return nil
	})
}

// memberOf is a node that has these nodes in its list.
func memberOf(name, nodes string, change func(*qlock.Member)) qlock.Member {
	m := qlock.Member{
		Name: name, Answered: true, State: qlock.NodeVoting, Version: qlock.Version(),
		Config: qlock.ClusterConfig{Nodes: strings.Fields(nodes), MaxLease: 30 * time.Second, MaxSkew: 5 * time.Second, Digest: "one"},
	}
	if change != nil {
		change(&m)
	}
	return m
}

// membersOf is a cluster whose configuration is that of the first node.
func membersOf(nodes ...qlock.Member) *qlock.Members {
	return &qlock.Members{Cluster: "test", Nodes: nodes, Config: nodes[0].Config, Agreed: true}
}

func TestVersionFindings(t *testing.T) {
	for _, c := range []struct{ node, program, want string }{
		{"0.2.0", "0.2.0", "ok version all nodes run version 0.2.0"},
		{"0.0.0-devel", "0.0.0-devel", "ok version all nodes run version 0.0.0-devel"},
		{"0.1.0", "0.2.0", "warning version a runs version 0.1.0, this program is 0.2.0"},
		{"v9.0.0-rc.1", "0.2.0", "warning version a runs version v9.0.0-rc.1, this program is only 0.2.0"},
		{"0.2.1-0.20261126235538-d8df91212345+dirty", "0.2.0", "warning version a runs version 0.2.1-0.20261126235538-d8df91212345+dirty, this program is only 0.2.0"},
		{"0.2.0+dirty", "0.2.0", "ok version all nodes run version 0.2.0"},
		{"0.1.0", "0.0.0-devel", "warning version a runs version 0.1.0, this program is 0.0.0-devel; which of them is newer cannot be told"},
		{"0.0.0-20261126235538-d8df91212345", "0.2.0", "warning version a runs version 0.0.0-20261126235538-d8df91212345, this program is 0.2.0; which of them is newer cannot be told"},
	} {
		r := &findings{}
		checkVersions(map[string][]string{c.node: {"a"}}, c.program, r)
		if len(r.list) != 1 {
			t.Errorf("node %s, program %s: %+v", c.node, c.program, r.list)
		} else if f := r.list[0]; !strings.HasPrefix(string(f.Grade)+" "+f.About+" "+f.Text, c.want) {
			t.Errorf("node %s, program %s: %s %s %s", c.node, c.program, f.Grade, f.About, f.Text)
		}
	}
}

// The output of check for answers of nodes that a test cannot provoke.
func TestFindings(t *testing.T) {
	clash := func(m *qlock.Member) { m.Conflict = qlock.ConflictName }
	for _, c := range []struct {
		name  string
		nodes []qlock.Member
		want  []string
	}{
		{"clash", []qlock.Member{memberOf("a", "a b c", nil), memberOf("b", "a b c", clash), memberOf("b", "a b c", clash), memberOf("c", "a b c", nil)},
			[]string{"warning quorum 2 of 3 nodes vote, 2 are needed: no further node may fail", "problem name-clash two nodes answer as b"}},
		{"recovering", []qlock.Member{
			memberOf("a", "a b", func(m *qlock.Member) { m.State, m.Recovering = qlock.NodeRecovering, 9180*time.Millisecond }), memberOf("b", "a b", nil)},
			[]string{"problem quorum 1 of 2 nodes vote, 2 are needed", "warning recovering node a may have forgotten votes, and gives none for 9.2s"}},
		{"stopped", []qlock.Member{memberOf("a", "a", func(m *qlock.Member) { m.State = qlock.NodeStopped })}, []string{"warning state node a is stopped"}},
		{"leases", []qlock.Member{memberOf("a", "a b c", nil), memberOf("b", "a b c", nil), memberOf("c", "a b c", func(m *qlock.Member) { m.Config.MaxLease, m.Conflict = time.Minute, qlock.ConflictConfig })},
			[]string{"problem configuration node c has nodes a b c, longest lease 1m and skew 5s; most have a b c, 30s and 5s"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &findings{}
			checkMembers(membersOf(c.nodes...), r)
			var lines []string
			for _, f := range r.list {
				lines = append(lines, fmt.Sprintf("%s %s %s", f.Grade, f.About, f.Text))
			}
			all := strings.Join(lines, "\n")
			for _, w := range c.want {
				if !strings.Contains(all, w) {
					t.Errorf("no %q in\n%s", w, all)
				}
			}
		})
	}
}

func TestClockFindings(t *testing.T) {
	const s = time.Second
	for _, c := range []struct {
		name string
		off  map[string]time.Duration
		want string
	}{
		{"together", map[string]time.Duration{"a": 0, "b": time.Millisecond}, "ok clocks agree within 1ms"},
		{"we are ahead", map[string]time.Duration{"a": -6 * s, "b": -6 * s}, "problem the clock of this machine is 6s ahead of node a, 5s is allowed"},
		{"a little", map[string]time.Duration{"a": -3 * s}, "warning the clocks of this machine and of node a differ by 3s"},
		{"we are behind", map[string]time.Duration{"a": 7 * s}, "warning the clocks of this machine and of node a differ by 7s"},
		{"nodes", map[string]time.Duration{"a": -4 * s, "b": 23 * s}, "problem the clocks of nodes a and b differ by 27s, 25s is allowed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &findings{}
			checkOffsets(c.off, 30*s, 5*s, r)
			all := ""
			for _, f := range r.list {
				all += string(f.Grade) + " " + f.Text + "\n"
			}
			if !strings.Contains(all, c.want) {
				t.Errorf("no %q in\n%s", c.want, all)
			}
		})
	}
}

// A node whose clock was ahead when it gave votes is named. The other nodes determine how
// severe that is.
func TestTokensAhead(t *testing.T) {
	ahead := func(name string, d time.Duration) qlock.Member {
		return memberOf(name, "a b c", func(m *qlock.Member) { m.TokensAhead = d })
	}
	const far = 2 * time.Hour
	for _, c := range []struct {
		nodes []qlock.Member
		want  string
	}{
		{[]qlock.Member{ahead("a", 0), ahead("b", 30*time.Second), ahead("c", 0)}, ""},
		{[]qlock.Member{ahead("a", far), ahead("b", 0), ahead("c", 0)}, "warning node a gave tokens up to 2h0m0s ahead of its clock"},
		{[]qlock.Member{ahead("a", far), ahead("b", 0)}, "problem node a gave tokens up to 2h0m0s ahead of its clock, which was set back since; only 1 of the other nodes vote, 2 are needed"},
		{[]qlock.Member{ahead("a", 0), ahead("b", far), ahead("c", far)}, "problem node c gave tokens"},
	} {
		found := membersOf(c.nodes...)
		r := &findings{}
		checkAhead(found, r)
		all := ""
		for _, f := range r.list {
			all += string(f.Grade) + " " + f.Text + "\n"
		}
		if !strings.Contains(all, c.want) || c.want == "" && all != "" {
			t.Errorf("no %q in\n%s", c.want, all)
		}
		path := filepath.Join(t.TempDir(), "out")
		out, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		(&app{out: out}).showNodes(found)
		shown, err := os.ReadFile(path)
		if err := errors.Join(err, out.Close()); err != nil {
			t.Fatal(err)
		}
		if told := strings.Contains(string(shown), "ahead of its clock"); told != (c.want != "") {
			t.Errorf("nodes shows\n%s", shown)
		}
		for _, m := range membersReportOf(found).Nodes {
			if m.Name == "b" && m.Ahead != ms(c.nodes[1].TokensAhead) {
				t.Errorf("JSON has %v for b", m.Ahead)
			}
		}
	}
}

// A node's metrics about the others go by the list that the cluster has, and not by the one that the
// node was started with.
func TestPeers(t *testing.T) {
	list := func(names string, epoch uint64, digest string) qlock.ClusterConfig {
		return qlock.ClusterConfig{Nodes: strings.Fields(names), Epoch: epoch, Digest: digest}
	}
	first, joint, last := list("n1 n2 n3", 0, "0"), list("n1 n2 n3", 2, "2"), list("n1 n2 n4", 3, "3")
	node := func(name string, c qlock.ClusterConfig, edit ...func(*qlock.Member)) qlock.Member {
		m := qlock.Member{Name: name, Answered: true, State: qlock.NodeVoting, Config: c}
		for _, e := range edit {
			e(&m)
		}
		return m
	}
	in := func(s qlock.NodeState) func(*qlock.Member) { return func(m *qlock.Member) { m.State = s } }
	conflict := func(c qlock.Conflict) func(*qlock.Member) { return func(m *qlock.Member) { m.Conflict = c } }
	joining := node("n4", qlock.ClusterConfig{}, in(qlock.NodeJoining))
	toN4 := &qlock.NodesChange{Nodes: []string{"n1", "n2", "n4"}}
	for _, tt := range []struct {
		name, of string
		m        qlock.Members
		want     string // name, lists, and what is not in order
	}{
		{"at epoch 0", "n1", qlock.Members{Config: first, Nodes: []qlock.Member{node("n1", first), node("n2", first), {Name: "n3"}, joining}},
			"n1 old, n2 old, n3 old silent"},
		{"while the list changes", "n1", qlock.Members{Config: joint, Change: toN4, Nodes: []qlock.Member{node("n1", joint), node("n2", joint), node("n3", joint), node("n4", joint, in(qlock.NodeRecovering))}},
			"n1 old new, n2 old new, n3 old, n4 new waits"},
		{"after a change", "n1", qlock.Members{Config: last, Nodes: []qlock.Member{node("n1", last), node("n2", last), node("n3", last, in(qlock.NodeRetired)), node("n4", last)}},
			"n1 old, n2 old, n4 old"},
		{"seen by a node that waits to be added", "n4", qlock.Members{Config: first, Nodes: []qlock.Member{node("n1", first), node("n2", first), node("n3", first), joining}},
			"n1 old, n2 old, n3 old"},
		{"one has not learned yet", "n1", qlock.Members{Config: last, Nodes: []qlock.Member{node("n1", last), node("n2", joint, conflict(qlock.ConflictBehind)), node("n4", last)}},
			"n1 old, n2 old waits, n4 old"},
		{"this one has not learned yet", "n2", qlock.Members{Config: last, Nodes: []qlock.Member{node("n1", last), node("n2", joint, conflict(qlock.ConflictBehind)), node("n4", last)}},
			"n1 old, n2 old waits, n4 old"},
		{"started with another list", "n1", qlock.Members{Config: first, Nodes: []qlock.Member{node("n1", first), node("n2", first), node("n3", list("n3", 0, "x"), conflict(qlock.ConflictConfig))}},
			"n1 old, n2 old, n3 old other waits"},
		{"this one was started with another list", "n3", qlock.Members{Config: first, Nodes: []qlock.Member{node("n1", first), node("n3", list("n1 n3", 0, "x"), conflict(qlock.ConflictConfig))}},
			"n1 old other waits, n3 old"},
		{"two of one name", "n1", qlock.Members{Config: last, Nodes: []qlock.Member{node("n1", last), node("n2", last, conflict(qlock.ConflictName)), node("n2", last, conflict(qlock.ConflictName)), node("n4", last)}},
			"n1 old, n2 old clash waits, n4 old"},
		{"nobody answers", "n1", qlock.Members{}, "n1 old silent, n3 old silent"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, p := range peersOf(&tt.m, tt.of, []string{"n3", "n1"}) {
				text := p.Name + " " + strings.Join(p.Lists, " ")
				for _, flag := range []struct {
					on   bool
					word string
				}{{!p.Heard, "silent"}, {p.Clash, "clash"}, {p.OtherConfig, "other"}, {p.Heard && !p.Votes, "waits"}} {
					if flag.on {
						text += " " + flag.word
					}
				}
				got = append(got, text)
			}
			if got := strings.Join(got, ", "); got != tt.want {
				t.Errorf("%s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestMembersReport(t *testing.T) {
	m := membersOf(memberOf("a", "a b c", nil), qlock.Member{Name: "b"}, memberOf("c", "a b c", func(m *qlock.Member) { m.Conflict = qlock.ConflictConfig }))
	r := membersReportOf(m)
	if r.Voting != 1 || r.Writer != 2 || len(r.Nodes) != 3 || r.Nodes[1].State != "unreachable" || r.Nodes[1].Started != "" || !r.Nodes[2].Other || r.Nodes[2].Clash {
		t.Errorf("%+v", r)
	}
	for i, want := range []string{"voting", "unreachable", "other configuration"} {
		if got := stateOf(&m.Nodes[i]); got != want {
			t.Errorf("state %q, want %q", got, want)
		}
	}
	if r := membersReportOf(&qlock.Members{}); r.Nodes == nil || r.NodeNames == nil || r.Writer != 0 || r.Reader != 0 {
		t.Errorf("%+v", r)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	sees(t, []string{"check", "-s", c.url()}, 0, "connected to NATS at nats://", "3 of 3 nodes vote, 2 are needed", "all nodes run version", "clocks agree within", " shown in ", "a lock was acquired in", "No problems found.")
	report := decode[checkReport](t, sees(t, []string{"check", "-s", c.url(), "--json"}, 0, `"problems": 0`, `"warnings": 0`))
	if report.Problems != 0 || report.Warnings != 0 || len(report.Findings) != 7 {
		t.Errorf("%+v", report)
	}
	inTime(t, "--timeout", []string{"check", "-s", c.url(), "--cluster", "nobody"}, exitFailed, "problem", `no node of cluster "nobody" answered`)
	qlockCmd(t, "check", "-s", "nats://127.0.0.1:1").want(t, exitFailed, "problem", "nats://127.0.0.1:1")
	qlockCmd(t, "check", "-s", c.url(), "--password", "x").want(t, exitUsage, "--user")
	name := lockName(t)
	hold(t, c, name)
	sees(t, []string{"check", "-s", c.url(), "--lock", name}, 0, "is held by another client, so locks can be acquired")
}

// restricted is a NATS server with the users that qlock permissions writes, and a
// node on it.
func restricted(t *testing.T, specs ...string) string {
	t.Helper()
	r := call(t, append([]string{"permissions"}, specs...)...)
	r.want(t, 0)
	text := r.out
	for _, s := range specs {
		_, name, _ := strings.Cut(s, ":")
		name, _, _ = strings.Cut(name, "=")
		text = strings.ReplaceAll(text, "$QLOCK_"+strings.ToUpper(name), strconv.Quote(name+"-password"))
	}
	file := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := server.ProcessConfigFile(file)
	if err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
	o.Host, o.Port, o.NoLog, o.NoSigs = "127.0.0.1", server.RANDOM_PORT, true, true
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(patience) {
		t.Fatal("the server is not ready")
	}
	servers.Store(s.Addr().String(), true)
	p := launch(t, bootstrapped(t, "node", "--name", "n1", "--nodes", "n1", "--server", s.ClientURL(), "--user", "n1", "--password", "n1-password", "--max-lease", testMaxLease)...)
	p.says(p.err, "ready: this node votes")
	return s.ClientURL()
}

// All commands work with the permissions that qlock permissions writes, and say
// which is missing otherwise.
func TestPermissions(t *testing.T) {
	t.Parallel()
	u := restricted(t, "node:n1", "client:svc", "client:part=orders.>", "observer:eye", "auditor:ear", "monitor:mon", "inspector:look", "operator:ops=orders.>")
	as := func(user string, args ...string) []string {
		return append(args, "-s", u, "--user", user, "--password", user+"-password")
	}
	run := func(user string, name string) []string {
		return append(as(user, "run", name, "--lease", testLease), "--", "true")
	}
	qlockCmd(t, run("svc", "any")...).want(t, 0)
	qlockCmd(t, run("part", "orders.1")...).want(t, 0)
	qlockCmd(t, run("part", "any")...).want(t, exitRefused, "lock.default.node.acquire.part.any")
	sees(t, as("svc", "check"), 0, "No problems found.", "as client svc")
	sees(t, as("part", "check"), exitFailed, "clocks agree within", "lock.default.node.acquire.part.qlock.check", "qlock permissions client:part")
	sees(t, as("part", "check", "--lock", "orders.check"), 0, "a lock was acquired in")
	sees(t, as("mon", "nodes"), 0, "1 of 1 nodes vote")
	sees(t, as("eye", "nodes"), exitFailed, "lacks a permission for lock.default.node.info.eye")
	qlockCmd(t, as("svc", "watch")...).want(t, exitFailed, "may not receive events", "observer:NAME")
	qlockCmd(t, append(as("svc", "run", "x", "--client", "part"), "--", "true")...).want(t, exitRefused, "lock.default.node.info.part")
	qlockCmd(t, "nodes", "-s", u, "--user", "svc", "--password", "wrong").want(t, exitFailed, "Authorization Violation", "--password")
	for _, args := range [][]string{{"ls"}, {"info", "any"}, {"unlock", "any", "--force", "--yes"}} {
		qlockCmd(t, as("svc", args...)...).want(t, exitRefused, "lock.default.admin.", "permission", "inspector:NAME or operator:NAME")
	}
	evicted := func(name string) *process {
		p := launch(t, as("svc", "lock", name, "--lease", testLease)...)
		p.says(p.out, "\n")
		return p
	}
	order, other := evicted("orders.3"), evicted("any")
	for _, user := range []string{"look", "ops"} {
		qlockCmd(t, as(user, "ls")...).want(t, 0, "orders.3", "any", "svc")
		qlockCmd(t, run(user, "orders.4")...).want(t, exitRefused, "lock.default.node.acquire."+user)
	}
	qlockCmd(t, as("look", "unlock", "any", "--force", "--yes", "--wait", patience.String())...).want(t, exitRefused, "lock.default.admin.evict.look.any")
	qlockCmd(t, as("ops", "unlock", "any", "--force", "--yes", "--wait", patience.String())...).want(t, exitRefused, "lock.default.admin.inspect.ops.any")
	qlockCmd(t, as("ops", "unlock", "orders.3", "--force", "--yes", "--wait", patience.String())...).want(t, 0, "is evicted")
	order.wait().want(t, exitLost, "evicted by ops")
	_ = other.in.Close()
	other.wait().want(t, 0)
	for _, watcher := range []string{"eye", "ear", "look"} {
		p := launch(t, as(watcher, "watch", "--count", "2", "orders.>")...)
		p.says(p.err, "Ctrl-C ends it")
		qlockCmd(t, run("svc", "orders.2")...).want(t, 0)
		p.wait().want(t, 0, "orders.2", "svc", "acquired", "released")
	}
}

func TestPermissionFormats(t *testing.T) {
	call(t, "permissions", "--cluster", "prod", "client:a=x.>,y").want(t, 0, "lock.prod.node.acquire.a.x.>", "lock.prod.node.yield.a.y", "$QLOCK_A")
	call(t, "permissions", "--format", "certificates", "--tlscert", "/c.pem", "client:a").want(t, 0, "verify_and_map: true", `cert_file: "/c.pem"`)
	call(t, "permissions", "--format", "signing-keys", "--account", "X", "client", "node").want(t, 0, "nsc edit signing-key --account X --role client", "{{name()}}")
	users := decode[[]jsonUser](t, call(t, "permissions", "--format", "json", "node:n1", "observer:o"))
	if len(users) != 2 || users[0].Role != "node" || users[0].InboxPrefix != "_INBOX.n1" || users[1].Publish == nil || len(users[1].Publish) != 0 {
		t.Errorf("%+v", users)
	}
}

func TestBench(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	results := decode[[]benchResult](t, qlockCmd(t, "bench", "-s", c.url(), "--for", "1s", "--clients", "3", "--json", "--timeout", patience.String()))
	if len(results) != 3 {
		t.Fatalf("%+v", results)
	}
	for i, r := range results {
		if r.Workload != workloads[i] || r.Locks == 0 || r.Failed != 0 || r.Micros["p50"] <= 0 || r.Micros["max"] < r.Micros["p50"] || r.Micros["p50"] < r.Micros["min"] {
			t.Errorf("%+v", r)
		}
	}
	qlockCmd(t, "bench", "-s", c.url(), "alone", "--shared", "--for", "2s", "--timeout", patience.String()).want(t, 0, "Acquiring locks in cluster default", "p99.9", "█")
	inTime(t, "--timeout", []string{"bench", "-s", c.url(), "--cluster", "nobody"}, exitNoQuorum, "no quorum")
	s := onTerminal(t, "bench", "hot", "-s", c.url(), "--for", "2s", "--clients", "2", "--timeout", patience.String())
	s.wait().want(t, 0, "hot     ░", " locks", "Per second")
}

func TestDemo(t *testing.T) {
	t.Parallel()
	p := launch(t, "demo", "--port", "0")
	out := p.says(p.out, "acquired")
	m := regexp.MustCompile(`export NATS_URL=(\S+)`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no address in\n%s", out)
	}
	for _, u := range strings.Split(m[1], ",") {
		if parsed, err := url.Parse(u); err != nil || parsed.Hostname() != "127.0.0.1" {
			t.Errorf("%s: %v", u, err)
		}
	}
	sees(t, []string{"nodes", "-s", m[1]}, 0, "3 of 3 nodes vote")
	p.signal(syscall.SIGINT)
	p.wait().want(t, 0)
	first, _, _ := strings.Cut(m[1], ",")
	_, taken, _ := strings.Cut(sharedCluster(t).addr["n1"][0], ":")
	qlockCmd(t, "demo", "--port", taken).want(t, exitFailed, "port "+taken+" is in use", "--port 0")
	qlockCmd(t, "nodes", "-s", first).want(t, exitFailed, "connect to NATS")
}

// A context of the nats command sets the server, and flags take precedence.
func TestContext(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	home := t.TempDir()
	dir := filepath.Join(home, "nats", "context")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "prod.json"), []byte(`{"url":"`+c.url()+`","inbox_prefix":"_INBOX.mine"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(env string, args ...string) result {
		p := launchWith(t, []string{"XDG_CONFIG_HOME=" + home, env}, args...)
		_ = p.in.Close()
		return p.wait()
	}
	sees := func(env string, args ...string) {
		t.Helper()
		eventually(t, func() error { // a node that is silent for a second is not waited for
			if r := run(env, args...); r.status != 0 || !strings.Contains(r.out, "3 of 3") {
				return fmt.Errorf("status %d: %s%s", r.status, r.out, r.err)
			}
			return nil
		})
	}
	sees("", "nodes", "--context", "prod")
	sees("NATS_CONTEXT=prod", "nodes")
	run("", "nodes", "--context", "test").want(t, exitFailed, `unknown context "test"`)
	run("", "nodes", "--context", "prod", "-s", "nats://127.0.0.1:1").want(t, exitFailed, "connect to NATS")
	if err := os.WriteFile(filepath.Join(home, "nats", "context.txt"), []byte("prod"), 0o600); err != nil {
		t.Fatal(err)
	}
	sees("", "nodes")
	sees("NATS_URL="+c.url(), "nodes")
}

// On a terminal a long wait is one line that changes, and the command has the
// terminal: what is typed, and Ctrl-C, reach it.
func TestRunOnTerminal(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	name := lockName(t)
	h := hold(t, c, name)
	s := onTerminal(t, "run", name, "-s", c.url(), "--", "sh", "-c", `echo started; read line; echo "got $line"; exec sleep 1000`)
	s.says(s.out, "held by holder for")
	drawn := s.out.String()
	s.says(s.out, drawn+"\r\x1b[K") // in the same line
	_ = h.in.Close()
	h.wait().want(t, 0)
	out := s.says(s.out, "started")
	if strings.Contains(out, "\n"+"\x1b[2mwaiting") || !strings.Contains(out, "\r\x1b[Kstarted") {
		t.Errorf("the line of progress is left: %q", out)
	}
	s.key("hello\n")
	s.says(s.out, "got hello")
	s.key("\x03")
	s.wait().want(t, exitSignal+int(syscall.SIGINT))
}

// SIGHUP reloads the server's certificate.
func TestCertificates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := qlocktest.NewAuthority(t, "test authority")
	files := ca.WriteFiles(t, dir, "first")
	c := newCluster(t.TempDir(), 1, "--max-lease", "500ms", "--tlscert", files.Cert, "--tlskey", files.Key)
	t.Cleanup(c.stop)
	p := launch(t, c.args("n1")...)
	p.says(p.err, "ready: this node votes")
	seen := func() string {
		nc := connect(t, "tls://"+c.addr["n1"][0], nats.RootCAs(files.CA))
		defer nc.Close()
		state, err := nc.TLSConnectionState()
		if err != nil {
			t.Fatal(err)
		}
		return state.PeerCertificates[0].Subject.CommonName
	}
	if got := seen(); got != "first" {
		t.Errorf("certificate of %s", got)
	}
	qlockCmd(t, "nodes", "-s", "tls://"+c.addr["n1"][0]).want(t, exitFailed, "certificate", "--tlsca")
	sees(t, []string{"nodes", "-s", "tls://" + c.addr["n1"][0], "--tlsca", files.CA}, 0, "1 of 1")
	ca.WriteFiles(t, dir, "second")
	p.signal(syscall.SIGHUP)
	p.says(p.err, "reloaded")
	if got := seen(); got != "second" {
		t.Errorf("certificate of %s after the reload", got)
	}
	if err := os.WriteFile(files.Cert, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGHUP)
	p.says(p.err, "certificates are unchanged")
	if got := seen(); got != "second" {
		t.Errorf("certificate of %s after a failed reload", got)
	}
	qlockCmd(t, c.args("n1")...).want(t, exitUsage, "--tlscert")
}

// Servers authenticate each other by certificates and a password, and clients by a
// password.
func TestSecured(t *testing.T) {
	t.Parallel()
	ca := qlocktest.NewAuthority(t, "test authority")
	files := ca.WriteFiles(t, t.TempDir(), "server")
	dir := t.TempDir()
	c := newCluster(dir, 2, "--user", "svc", "--password", "secret", "--route-user", "route", "--route-password", "other",
		"--route-tlscert", files.Cert, "--route-tlskey", files.Key, "--route-tlsca", files.CA)
	t.Cleanup(c.stop)
	for _, n := range c.names {
		qlockCmd(t, append(c.args(n), "--bootstrap")...).want(t, 0)
		p := launch(t, c.args(n)...)
		p.says(p.err, "ready: this node votes")
	}
	as := []string{"-s", "nats://" + c.addr["n1"][0], "--user", "svc", "--password", "secret"}
	inTime(t, "--timeout", []string{"nodes", "-s", c.url()}, exitFailed, "Authorization Violation")
	// Both votes are needed, so they have crossed the route.
	qlockCmd(t, append(append([]string{"run", "x", "--wait", patience.String()}, as...), "--", "true")...).want(t, 0)
	sees(t, append([]string{"nodes"}, as...), 0, "2 of 2 nodes vote")
}
