//go:build unix

package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qlock/qlock/internal/subject"
)

// There are several candidates. One leads, the next one leads when that one's command has
// ended, and every client can see the leader.
func TestElect(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	name := lockName(t)
	qlockCmd(t, "leader", name, "-s", c.url()).want(t, exitFailed, "there is no leader")
	elect := func(client string, args ...string) *process {
		return launch(t, append([]string{"elect", name, "-s", c.url(), "--client", client}, args...)...)
	}
	one := elect("one", "--value", "10.0.0.1:80 ü", "--", "sh", "-c", `echo "$QLOCK_NAME $QLOCK_TOKEN"; read x; exit 7`)
	words := strings.Fields(one.says(one.out, "\n"))
	if len(words) != 2 || words[0] != name {
		t.Fatalf("the command saw %q", words)
	}
	two := elect("two", "--", "echo", "two leads")
	two.says(two.err, "waiting for "+name)
	sees(t, []string{"leader", name, "-s", c.url()}, 0, "Election "+name, "one", "10.0.0.1:80 ü", words[1], "Candidates  two", ": echo")
	report := decode[leaderReport](t, sees(t, []string{"leader", name, "-s", c.url(), "--json"}, 0, `"two"`, `"10.0.0.1:80 ü"`))
	if l := report.Leader; l == nil || l.Client != "one" || l.Value != "10.0.0.1:80 ü" || fmt.Sprint(l.Term) != words[1] || l.Claim == "" ||
		len(report.Candidates) != 1 || report.Candidates[0].Client != "two" || report.Election != name || report.Cluster != "default" {
		t.Errorf("%+v", report)
	}
	if r := sees(t, []string{"leader", name, "-s", c.url(), "--value"}, 0, "10"); r.out != "10.0.0.1:80 ü\n" {
		t.Errorf("%q", r.out)
	}
	watch := launch(t, "leader", name, "-s", c.url(), "--watch", "--json", "--interval", "100ms")
	watch.says(watch.out, "10.0.0.1:80")
	qlockCmd(t, "ls", "-s", c.url()).want(t, 0, "Use", "leader", "qlock.election."+name+".leader")
	_ = one.in.Close()
	one.wait().want(t, 7)
	two.wait().want(t, 0, "two leads")
	watch.says(watch.out, `"leader":null`)
	watch.signal(syscall.SIGINT)
	watch.wait().want(t, 0)
	if r := decode[leaderReport](t, sees(t, []string{"leader", name, "-s", c.url(), "--json"}, 0, `"leader": null`)); r.Leader != nil || r.Candidates == nil {
		t.Errorf("%+v", r)
	}
}

// A leader that loses its leadership ends its command and campaigns again. It exits with
// --once, and after a signal.
func TestElectAgain(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	name := lockName(t)
	evict := func() {
		t.Helper()
		qlockCmd(t, "unlock", "qlock.election."+name+".leader", "--force", "--yes", "--wait", patience.String(), "-s", c.url()).want(t, 0)
	}
	script := `trap 'echo ended; exit 0' TERM; echo "term $QLOCK_TOKEN"; while :; do sleep 0.02; done`
	p := launch(t, "elect", name, "-s", c.url(), "--", "sh", "-c", script)
	p.says(p.out, "term")
	evict()
	p.says(p.err, "campaigning again")
	out := p.says(p.out, "ended\nterm ")
	var terms []uint64
	for _, w := range strings.Fields(out) {
		if n, err := strconv.ParseUint(w, 10, 64); err == nil {
			terms = append(terms, n)
		}
	}
	if len(terms) != 2 || terms[0] >= terms[1] {
		t.Errorf("terms %v in %q", terms, out)
	}
	if s := p.err.String(); !strings.Contains(s, fmt.Sprintf("leadership in %q is lost", name)) || !strings.Contains(s, "gets SIGTERM") {
		t.Errorf("%q", s)
	}
	p.signal(syscall.SIGTERM)
	p.wait().want(t, 0, "ended")

	p = launch(t, "elect", name, "--once", "-s", c.url(), "--on-loss", "kill", "--", "sh", "-c", script)
	p.says(p.out, "term")
	evict()
	p.wait().want(t, exitLost, "is killed", "leadership in")
}

func TestElectBadInput(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	qlockCmd(t, "elect", "x", "--value", strings.Repeat("y", 201), "-s", c.url(), "--", "true").want(t, exitUsage, "201 bytes", "at most 200")
	qlockCmd(t, "elect", strings.Repeat("y", 901), "-s", c.url(), "--", "true").want(t, exitUsage, "901 bytes")
	qlockCmd(t, "leader", strings.Repeat("y", 901), "-s", c.url()).want(t, exitUsage, "901 bytes")
	qlockCmd(t, "run", strings.Repeat("y", 901), "--slots", "2", "-s", c.url(), "--", "true").want(t, exitUsage, "901 bytes")
	qlockCmd(t, "elect", "x", "-s", c.url(), "--", "no-such-command-here").want(t, exitNotFound, "no-such-command-here")
}

// As many commands run as there are slots, and the next one when one of them has ended.
func TestRunSlots(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	name := lockName(t)
	dir := t.TempDir()
	run := func(args ...string) *process {
		args = append([]string{"run", name, "--slots", "2", "-s", c.url(), "--client", "renderer"}, args...)
		return launch(t, append(args, "--", "sh", "-c", `echo "permit $QLOCK_PERMIT $QLOCK_TOKEN"; touch "$0/$QLOCK_PERMIT"; read x; rm "$0/$QLOCK_PERMIT"`, dir)...)
	}
	one, two := run(), run()
	one.says(one.out, "permit ")
	two.says(two.out, "permit ")
	for _, n := range []string{"1", "2"} {
		if _, err := os.Stat(filepath.Join(dir, n)); err != nil && one.out.String() == two.out.String() {
			t.Error(err)
		}
	}
	qlockCmd(t, "run", name, "--slots", "2", "--try", "-s", c.url(), "--", "true").want(t, exitHeld, "held by renderer", "0 of the 1 permits")
	inTime(t, "--wait", []string{"run", name, "--slots", "2", "-s", c.url(), "--", "true"}, exitHeld, " has passed", "waiting for "+name)
	three := run()
	three.says(three.err, "waiting for "+name)
	sees(t, []string{"ls", "qlock.semaphore." + name + ".>", "-s", c.url()}, 0, "permit 1", "permit 2", "semaphore, queue")
	report := decode[lookReport](t, qlockCmd(t, "ls", "qlock.semaphore."+subject.Any+"."+subject.Any+"."+subject.Any+".permit.1", "-s", c.url(), "--json"))
	if len(report.Locks) != 1 || report.Locks[0].Use == nil || report.Locks[0].Use.Kind != "permit" || report.Locks[0].Use.Of != name {
		t.Errorf("%+v", report.Locks)
	}
	_ = one.in.Close()
	one.wait().want(t, 0)
	three.says(three.out, "permit ")
	_, _ = two.in.Close(), three.in.Close()
	two.wait().want(t, 0)
	three.wait().want(t, 0)
	// A loss is reported by the kind of thing that was lost.
	p := run()
	p.says(p.out, "permit ")
	permit := strings.Fields(p.out.String())[1]
	qlockCmd(t, "unlock", "qlock.semaphore."+name+".permit."+permit, "--force", "--yes", "--wait", patience.String(), "-s", c.url()).want(t, 0)
	p.wait().want(t, exitLost, "the permit of semaphore", "is lost")
}

// A leader whose only server goes away, for longer than its lease, leads again when the
// server is back.
func TestElectServerAway(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, "--max-lease", "1s")
	p := launch(t, "elect", "scheduler", "-s", c.url(), "--lease", "1s", "--", "sh", "-c", `echo "term $QLOCK_TOKEN"; while :; do sleep 0.02; done`)
	p.says(p.out, "term")
	c.proc(t, "n1").kill()
	p.says(p.err, "campaigning again")
	p.says(p.err, "no NATS server can be reached")
	first := p.out.String()
	if err := c.launch("n1"); err != nil {
		t.Fatal(err)
	}
	p.says(p.out, first+"term")
}

// A leader that is killed is followed by the next candidate when its lease is over.
func TestElectKilled(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	name := lockName(t)
	one := launch(t, "elect", name, "-s", c.url(), "--lease", "8s", "--", "sh", "-c", "echo leads; while :; do sleep 0.02; done")
	one.says(one.out, "leads")
	two := launch(t, "elect", name, "-s", c.url(), "--", "echo", "two leads")
	two.says(two.err, "waiting for")
	began := time.Now()
	one.kill()
	two.wait().want(t, 0, "two leads")
	t.Logf("the next one led after %v, the lease was 8s", time.Since(began).Round(time.Millisecond))
}
