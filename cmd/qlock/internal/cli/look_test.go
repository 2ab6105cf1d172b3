//go:build unix

package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/qlock/qlock"
)

// waitFor starts qlock run for a lock that another holds, and returns when all nodes queue it.
func waitFor(t *testing.T, c *nodeCluster, name string, more ...string) *process {
	t.Helper()
	others := len(infoOf(t, c, name).Queue)
	p := launch(t, append(append([]string{"run", name, "-s", c.url(), "--client", "waiter"}, more...), "--", "echo", "mine")...)
	p.says(p.err, "waiting for")
	eventually(t, func() error {
		q := infoOf(t, c, name).Queue
		if len(q) <= others || slices.ContainsFunc(q, func(r claimReport) bool { return len(r.Queued) != len(c.names) }) {
			return fmt.Errorf("the queue is %+v", q)
		}
		return nil
	})
	return p
}

func infoOf(t *testing.T, c *nodeCluster, name string) infoReport {
	t.Helper()
	var report infoReport
	eventually(t, func() error {
		// A command that looks does not wait for one node that is silent.
		r := qlockCmd(t, "info", name, "-s", c.url(), "--json")
		if r.status != 0 {
			return fmt.Errorf("%s", r.err)
		}
		if report = decode[infoReport](t, r); len(report.Silent)+len(report.Waits) > 0 {
			return fmt.Errorf("not all nodes answer and vote: %+v", report)
		}
		return nil
	})
	return report
}

func TestLs(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	name := lockName(t)
	one, two := name+".a b", name+".readers"
	hold(t, c, one, "--note", "release 4.2")
	waitFor(t, c, one)
	hold(t, c, two, "--shared", "--lease", "50s")
	hold(t, c, two, "--shared", "--client", "other")
	eventually(t, func() error { // each node has heard of each lock
		all := decode[lookReport](t, qlockCmd(t, "ls", name+".*", "-s", c.url(), "--json"))
		voted := 0
		for _, l := range all.Locks {
			for _, h := range l.Holders {
				voted += len(h.Voted)
			}
		}
		if voted != 9 {
			return fmt.Errorf("%d votes of 3 nodes for 3 claims: %+v", voted, all)
		}
		return nil
	})
	r := sees(t, []string{"ls", name + ".>", "-s", c.url()}, 0, "Locks of cluster default", "Lease left", "Votes", one, "exclusive", "release 4.2", two, "shared", "other", "3/3", "qlock lock", "2 locks, 1 claim waits.")
	if strings.Contains(r.out, "\x1b") || strings.Count(r.out, two) != 1 {
		t.Errorf("%q", r.out)
	}
	report := decode[lookReport](t, sees(t, []string{"ls", name + ".*", "-s", c.url(), "--json"}, 0, `"silent": []`))
	if _, err := time.Parse(time.RFC3339, report.Time); err != nil || report.Cluster != "default" || len(report.Locks) != 2 {
		t.Fatalf("%v: %+v", err, report)
	}
	a, b := report.Locks[0], report.Locks[1]
	if a.Name != one || a.Encoded != strings.ReplaceAll(one, " ", "%20") || a.Holding != 1 || a.Waiting != 1 || len(a.Silent) != 0 || len(a.Answered) != 3 {
		t.Errorf("%+v", a)
	}
	if h := a.Holders[0]; h.Client != "holder" || h.Note != "release 4.2" || h.Mode != "exclusive" || !h.Held || h.Token == 0 || h.Lease <= 0 || h.Lease > 60_000 || len(h.Voted) != 3 {
		t.Errorf("%+v", h)
	}
	if b.Holding != 2 || len(b.Holders) != 2 || b.Holders[0].Mode != "shared" || b.Queue == nil || b.Holders[0].Lease > 50_000 {
		t.Errorf("%+v", b)
	}
	qlockCmd(t, "ls", name+".none", "-s", c.url()).want(t, 0, "Cluster default has no locks that are held or waited for.")
	if none := decode[lookReport](t, qlockCmd(t, "ls", name+".none", "-s", c.url(), "--json")); none.Locks == nil {
		t.Error("no list")
	}
	for _, args := range [][]string{{"ls"}, {"info", "x"}, {"unlock", "x", "--force", "--yes"}} {
		inTime(t, "--timeout", append(args, "-s", c.url(), "--cluster", "nobody"), exitNoQuorum, "no quorum", `cluster "nobody"`, "qlock nodes", "qlock check")
	}
	qlockCmd(t, "ls", "-s", "nats://127.0.0.1:1").want(t, exitFailed, "connect to NATS")
}

// Text from others does not reach a terminal unescaped, and the output fits the terminal.
func TestHostileLocks(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	name := lockName(t) + ".\x1b[31mred"
	pattern := strings.TrimSuffix(name, "\x1b[31mred") + ">"
	hold(t, c, name, "--note", "a \u202etxet\x1b[5m note that is quite long, far longer than there is room for on a terminal of 80 columns")
	// Else two nodes that answer may know of one vote only.
	sees(t, []string{"info", name, "-s", c.url()}, 0, "3 of 3")
	for _, args := range [][]string{{"ls", pattern}, {"ls", pattern, "--json"}, {"info", name}, {"info", name, "--json"}} {
		out := onTerminalOf(t, 80, append(args, "-s", c.url())...).wait().out
		out = strings.NewReplacer("\x1b[1m", "", "\x1b[2m", "", "\x1b[33m", "", "\x1b[0m", "", "\r\n", " ").Replace(out)
		if !harmless(out) || !strings.Contains(out, "red") || !strings.Contains(out, `\u202etxet`) {
			t.Errorf("%q shows %q", args, out)
		}
	}
	// Anyone can publish an event with any content.
	p := launch(t, "watch", "x.>", "-s", "nats://"+c.addr["n1"][0], "--count", "1")
	p.says(p.err, "Ctrl-C ends it")
	nc := connect(t, "nats://"+c.addr["n1"][0])
	if err := nc.Publish("lock.default.event.\x1b[2Jlost.\x1b]0;x\x07.x.\x1bc", []byte(`{"mode":"\u001b[5m","evicted_by":"\u009b5m","note":"\u202e"}`)); err != nil {
		t.Fatal(err)
	}
	if out := strings.TrimSuffix(p.wait().out, "\n"); !harmless(out) || !strings.Contains(out, "lost") {
		t.Errorf("%q", out)
	}
}

func TestLsWatch(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	t.Run("terminal", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		s := onTerminal(t, "ls", name+".>", "-s", c.url(), "--watch", "--interval", "100ms")
		s.says(s.out, "every 100ms, Ctrl-C ends it")
		s.says(s.out, "has no locks that are held")
		hold(t, c, name+".x", "--note", "seen at once")
		s.says(s.out, "seen at once")
		if out := s.out.String(); !strings.HasPrefix(out, "\x1b[H") || !strings.HasSuffix(strings.Split(out, "Cluster default has no locks")[0], "\x1b[K\r\n") {
			t.Errorf("%q", out)
		}
		s.key("\x03")
		s.wait().want(t, 0)
	})
	t.Run("json", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		hold(t, c, name)
		p := launch(t, "ls", name, "-s", c.url(), "--watch", "--interval", "100ms", "--json")
		p.says(p.out, "\n{")
		p.signal(syscall.SIGINT)
		r := p.wait()
		r.want(t, 0)
		for line := range strings.Lines(r.out) {
			var v lookReport
			if err := json.Unmarshal([]byte(line), &v); err != nil || len(v.Locks) != 1 {
				t.Errorf("%v: %s", err, line)
			}
		}
	})
	t.Run("not a terminal", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		p := launch(t, "info", name, "-s", c.url(), "--watch", "--interval", "100ms")
		p.says(p.out, "no waiters.\n\nLock ")
		p.signal(syscall.SIGTERM)
		p.wait().want(t, 0)
	})
}

func TestInfo(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	name := lockName(t)
	sees(t, []string{"info", name, "-s", c.url()}, 0, "Lock "+name+" of cluster default", "It has no holder and no waiters.")
	hold(t, c, name, "--note", "release 4.2")
	waitFor(t, c, name, "--note", "the next one")
	waitFor(t, c, name, "--shared")
	report := infoOf(t, c, name)
	if report.Name != name || len(report.Holders) != 1 || len(report.Queue) != 2 || report.Waiting != 2 || report.Queue[0].Note != "the next one" ||
		report.Queue[1].Mode != "shared" || len(report.Queue[1].Queued) != 3 || report.Queue[0].Held || report.Queue[0].Token != 0 {
		t.Errorf("%+v", report)
	}
	r := sees(t, []string{"info", name, "-s", c.url()}, 0, "   Holder  holder\n", "     Note  release 4.2\n", fmt.Sprintf("    Token  %d\n", report.Holders[0].Token), "    Votes  3 of 3\n",
		"Waiting, the next one first", "the next one", "waiter", "View of each node", "holder "+shortID(report.Holders[0].ID), shortID(report.Queue[1].ID))
	if strings.Contains(r.out, "disagree") {
		t.Error(r.out)
	}
}

// The text output for nodes that disagree, or do not answer.
func TestDisagreement(t *testing.T) {
	a := newApp(os.Stdin, os.Stdout, os.Stderr)
	claim := func(client string, voted, queued string) qlock.ClaimInfo {
		return qlock.ClaimInfo{ID: "0f2a91c7-0000-4000-8000-000000000000/" + fmt.Sprint(len(client)), Client: client, Voted: strings.Fields(voted), Queued: strings.Fields(queued)}
	}
	held := claim("billing", "n1 n2", "")
	held.Held, held.Token, held.Evicted = true, 7, true
	split := qlock.LockInfo{Name: "split", Queue: []qlock.ClaimInfo{claim("mail", "n1", "n2"), claim("stock", "n2", "n1")}, Waiting: 2, Answered: []string{"n1", "n2"}, Silent: []string{"n3"}}
	evicted := qlock.LockInfo{Name: "evicted", Holders: []qlock.ClaimInfo{held}, Holding: 1, Answered: []string{"n1", "n2"}, Silent: []string{"n3"}}
	crowd := qlock.LockInfo{Name: "crowd", Holders: []qlock.ClaimInfo{held}, Holding: 9, Answered: []string{"n1", "n2"}, Silent: []string{"n3"}}
	may := claim("billing", "n1", "")
	may.MayHold = true
	maybe := qlock.LockInfo{Name: "maybe", Queue: []qlock.ClaimInfo{may}, Waiting: 1, Answered: []string{"n1", "n2"}, Recovering: []string{"n2"}, Silent: []string{"n3"}}
	for _, c := range []struct {
		name, got string
		want      []string
	}{
		{"ls", a.listing("prod", []qlock.LockInfo{crowd, evicted, split}, 80), []string{
			"nobody", "1/3", "billing evicted", "2/3", "and 8 more", "3 locks, 2 claims wait.", "Not held: 1.", "The nodes disagree on 1", "No answer from n3"}},
		{"info of a split lock", a.renderInfo("prod", &split, 80), []string{
			"It has no holder: no claim has enough votes.", "mail 0f2a91c7/4", "stock 0f2a91c7/5", "no answer", "The nodes disagree."}},
		{"info of one that was evicted", a.renderInfo("prod", &evicted, 80), []string{"billing evicted", "not extended any more", "2 of 3"}},
		{"info of silence", a.renderInfo("prod", &qlock.LockInfo{Name: "x", Answered: []string{"n1", "n2"}, Silent: []string{"n3"}}, 80), []string{
			"No node that answered knows of a holder", "no answer"}},
		{"ls of one that may be held", a.listing("prod", []qlock.LockInfo{maybe}, 80), []string{
			"not known", "1/3", "1 lock, 1 claim waits.", "Unknown whether held: 1.", "n2 gives no votes yet: what it may have forgotten is missing."}},
		{"info of one that may be held", a.renderInfo("prod", &maybe, 80), []string{
			"Unknown whether it is held: billing 0f2a91c7/7 may hold it; no answer from n3; n2 gives no votes yet, and may have forgotten."}},
		{"info of amnesia", a.renderInfo("prod", &qlock.LockInfo{Name: "x", Answered: []string{"n1", "n2", "n3"}, Recovering: []string{"n1", "n2"}}, 80), []string{
			"Unknown whether it is held: n1, n2 give no votes yet, and may have forgotten."}},
		{"unlock of one that may be held", wrapped(notKnown("maybe", &maybe, unclear(&maybe)).Error(), 80), []string{
			"no claim was evicted", "billing 0f2a91c7/7 may hold it", "--claim 0f2a91c7/7 evicts it in any case"}},
	} {
		text80 := strings.ReplaceAll(c.got, "\n", " ")
		for _, w := range c.want {
			if !strings.Contains(text80, w) {
				t.Errorf("%s does not say %q:\n%s", c.name, w, c.got)
			}
		}
		for line := range strings.Lines(c.got) {
			if w := text.StringWidthWithoutEscSequences(strings.TrimSuffix(line, "\n")); w > 80 {
				t.Errorf("%s: a line of %d: %s", c.name, w, line)
			}
		}
	}
}

func TestUnlock(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	unlock := func(name string, more ...string) []string {
		return append([]string{"unlock", name, "-s", c.url(), "--client", "ops", "--force"}, more...)
	}
	t.Run("a holder", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		h := hold(t, c, name)
		next := waitFor(t, c, name)
		qlockCmd(t, unlock(name, "--yes", "--reason", "its disk\tis full", "--wait", patience.String())...).want(t, 0, "holder ", "is evicted: no node has its claim on "+name)
		h.wait().want(t, exitLost, "lock lost: evicted by ops: its disk")
		next.wait().want(t, 0, "mine")
		// Nodes may hear of the end of the next one's claim later than of this question.
		sees(t, unlock(name, "--yes", "--wait", patience.String()), 0, "No client holds "+name)
	})
	t.Run("a command", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		p := launch(t, "run", name, "-s", c.url(), "--", "sh", "-c", `trap 'echo told; exit 0' TERM; echo ready; while :; do sleep 0.02; done`)
		p.says(p.out, "ready")
		qlockCmd(t, unlock(name, "--yes", "--reason", "no", "--wait", patience.String())...).want(t, 0)
		p.wait().want(t, exitLost, "told", "is lost (evicted by ops: no), the command gets SIGTERM", fmt.Sprintf("lock %q: lock lost: evicted by ops: no", name))
	})
	t.Run("who waits", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		hold(t, c, name)
		waits := waitFor(t, c, name)
		id := infoOf(t, c, name).Queue[0].ID
		qlockCmd(t, unlock(name, "--yes", "--claim", shortID(id), "--reason", "no", "--wait", patience.String())...).want(t, 0, "waiter "+shortID(id))
		waits.wait().want(t, exitRefused, "evicted", "by ops: no")
		// A node may hear of the end of that claim later than of this question.
		sees(t, unlock(name, "--yes", "--claim", id, "--wait", patience.String()), exitFailed, "no claim on "+name, "qlock info "+name)
		if got := infoOf(t, c, name); got.Holding != 1 {
			t.Errorf("%+v", got)
		}
	})
	t.Run("readers", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		a, b := hold(t, c, name, "--shared"), hold(t, c, name, "--shared", "--client", "other")
		d := hold(t, c, name, "--shared", "--client", "third")
		eventually(t, func() error {
			if got := infoOf(t, c, name); got.Holding != 3 {
				return fmt.Errorf("%d readers: %+v", got.Holding, got)
			}
			return nil
		})
		qlockCmd(t, unlock(name, "--yes", "--holder", "nobody")...).want(t, exitFailed, "not held by nobody")
		qlockCmd(t, unlock(name, "--yes", "--holder", "other", "--wait", patience.String())...).want(t, 0, "other ")
		b.wait().want(t, exitLost)
		eventually(t, func() error { // one node of three may have that one's vote a little longer
			if got := infoOf(t, c, name); got.Holding != 2 {
				return fmt.Errorf("%d readers are left: %+v", got.Holding, got)
			}
			return nil
		})
		qlockCmd(t, unlock(name, "--yes", "--wait", patience.String())...).want(t, 0, "holder ", "third ")
		a.wait().want(t, exitLost)
		d.wait().want(t, exitLost)
	})
	t.Run("one that stands still", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		h := hold(t, c, name, "--lease", testMaxLease)
		h.signal(syscall.SIGSTOP)
		inTime(t, "--wait", unlock(name, "--yes"), exitHeld, "has not released "+name+" yet", "Its lease ends in ", "until then no other client has the lock")
		sees(t, []string{"ls", name, "-s", c.url()}, 0, "holder evicted")
		h.signal(syscall.SIGCONT)
		h.wait().want(t, exitLost, "evicted by ops")
	})
	t.Run("asked", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		h := hold(t, c, name, "--note", "ask \x1bAda")
		for _, answer := range []string{"\n", "n\n", "nonsense\n"} {
			s := onTerminal(t, unlock(name)...)
			out := s.says(s.out, "Continue? [y/N]")
			if !strings.Contains(out, "These claims on "+name+" will be evicted:") || !strings.Contains(out, "holder ") || !strings.Contains(out, `: ask \x1bAda`) {
				t.Errorf("%q", out)
			}
			s.key(answer)
			s.wait().want(t, exitFailed, "no claim was evicted")
		}
		s := onTerminal(t, unlock(name)...)
		s.says(s.out, "Continue?")
		s.key("\x03")
		s.wait().want(t, -int(syscall.SIGINT))
		if got := infoOf(t, c, name); got.Holding != 1 || got.Holders[0].Evicted {
			t.Errorf("%+v", got)
		}
		s = onTerminal(t, unlock(name, "--wait", patience.String())...)
		s.says(s.out, "Continue?")
		s.key("y\n")
		s.wait().want(t, 0, "is evicted")
		h.wait().want(t, exitLost)
	})
}

func TestPick(t *testing.T) {
	claim := func(id, client string) qlock.ClaimInfo { return qlock.ClaimInfo{ID: id, Client: client} }
	info := &qlock.LockInfo{Name: "x",
		Holders: []qlock.ClaimInfo{claim("aaaa1111-b/1", "a"), claim("aaaa1111-b/12", "a"), claim("aaaa2222-b/1", "b")},
		Queue:   []qlock.ClaimInfo{claim("cccc1111-b/1", "a")},
	}
	for _, c := range []struct {
		id, client string
		want       string
	}{
		{"", "", "aaaa1111-b/1 aaaa1111-b/12 aaaa2222-b/1"},
		{"", "a", "aaaa1111-b/1 aaaa1111-b/12"},
		{"", "c", "not held by c"},
		{"cccc", "", "cccc1111-b/1"},
		{"aaaa1111/1", "", "aaaa1111-b/1"},
		{"aaaa1111-b/12", "", "aaaa1111-b/12"},
		{"aaaa1111", "", "2 claims on x"},
		{"aaaa/1", "", "2 claims on x"},
		{"/1", "", "no claim on x"},
		{"dddd", "", "no claim on x"},
	} {
		found, err := pick(info, c.id, c.client)
		var ids []string
		for _, f := range found {
			ids = append(ids, f.ID)
		}
		if err != nil {
			ids = []string{err.Error()}
		}
		if got := strings.Join(ids, " "); !strings.HasPrefix(got, c.want) && !(err != nil && strings.Contains(got, c.want)) {
			t.Errorf("--claim %q --holder %q: %s, want %s", c.id, c.client, got, c.want)
		}
	}
}

// A note tells which process it is, and no secrets.
func TestNotes(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	host, err := os.Hostname()
	if err != nil {
		t.Skip(err)
	}
	note := func(args ...string) string {
		name := lockName(t)
		p := launch(t, append([]string{"run", name, "-s", c.url()}, args...)...)
		p.says(p.out, "ready")
		return strings.Replace(infoOf(t, c, name).Holders[0].Note, fmt.Sprint(p.cmd.Process.Pid), "PID", 1)
	}
	command := []string{"--", "/bin/sh", "-c", "echo ready; read secret"}
	if got := note(command...); !strings.HasSuffix(got, host+" PID: sh") {
		t.Errorf("%q", got)
	}
	if got := note(append([]string{"--note", "mine"}, command...)...); got != "mine" {
		t.Errorf("%q", got)
	}
	if got := note(append([]string{"--note", ""}, command...)...); got != "" {
		t.Errorf("%q", got)
	}
	p := launchWith(t, []string{"QLOCK_NOTE=of the environment"}, "lock", "noted."+lockName(t), "-s", c.url())
	p.says(p.out, "\n")
	if got := infoOf(t, c, p.cmd.Args[2]).Holders[0].Note; got != "of the environment" {
		t.Errorf("%q", got)
	}
}
