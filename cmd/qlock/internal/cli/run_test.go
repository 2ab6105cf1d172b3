//go:build unix

package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// hold takes a lock in another process, until the test or the caller ends it.
func hold(t *testing.T, c *nodeCluster, name string, more ...string) *process {
	t.Helper()
	p := launch(t, append([]string{"lock", name, "-s", c.url(), "--client", "holder"}, more...)...)
	p.says(p.out, "\n")
	return p
}

func TestRun(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	t.Run("environment and status", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		r := qlockCmd(t, "run", name, "-s", c.url(), "--", "sh", "-c", `echo "$QLOCK_NAME $QLOCK_TOKEN"; cat; exit 7`)
		r.want(t, 7)
		words := strings.Fields(r.out)
		if len(words) != 2 || words[0] != name {
			t.Fatalf("the command saw %q", r.out)
		}
		if token, err := strconv.ParseUint(words[1], 10, 64); err != nil || token == 0 {
			t.Errorf("token %q: %v", words[1], err)
		}
		for line := range strings.Lines(r.err) {
			if !strings.HasPrefix(line, "qlock: waiting for "+name) { // which it says if nodes are slow
				t.Errorf("it said: %s", line)
			}
		}
	})
	t.Run("success", func(t *testing.T) {
		t.Parallel()
		qlockCmd(t, "run", lockName(t), "-s", c.url(), "--", "true").want(t, 0)
	})
	t.Run("killed command", func(t *testing.T) {
		t.Parallel()
		qlockCmd(t, "run", lockName(t), "-s", c.url(), "--", "sh", "-c", "kill -9 $$").want(t, 137)
	})
	t.Run("no such command", func(t *testing.T) {
		t.Parallel()
		qlockCmd(t, "run", "x", "-s", c.url(), "--", "no-such-command-here").want(t, exitNotFound, "no-such-command-here")
		qlockCmd(t, "run", "x", "-s", c.url(), "--", "/no/such/command").want(t, exitNotFound, "/no/such/command")
	})
	t.Run("not executable", func(t *testing.T) {
		t.Parallel()
		file := filepath.Join(t.TempDir(), "plain")
		if err := os.WriteFile(file, []byte("#!/no/such/shell\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		qlockCmd(t, "run", "x", "-s", c.url(), "--", file).want(t, exitCannotRun, file)
	})
	t.Run("held by another", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		h := hold(t, c, name)
		qlockCmd(t, "run", name, "-s", c.url(), "--try", "--", "true").want(t, exitHeld, "held by holder (exclusively)")
		r := inTime(t, "--wait", []string{"run", name, "-s", c.url(), "--", "true"}, exitHeld, "held by holder", " has passed", "qlock: waiting for "+name)
		// Not on a terminal, so a line at a low rate.
		if n := strings.Count(r.err, "qlock: waiting for "+name); n != 1 {
			t.Errorf("%d lines of progress:\n%s", n, r.err)
		}
		waits := launch(t, "run", name, "-s", c.url(), "--", "echo", "mine")
		waits.says(waits.err, "held by holder")
		_ = h.in.Close()
		h.wait().want(t, 0)
		waits.wait().want(t, 0, "mine")
	})
	t.Run("quiet", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		hold(t, c, name)
		r := inTime(t, "--wait", []string{"run", name, "-q", "-s", c.url(), "--", "true"}, exitHeld)
		if strings.Contains(r.err, "waiting") {
			t.Error(r.err)
		}
	})
	t.Run("shared", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		hold(t, c, name, "--shared")
		qlockCmd(t, "run", name, "-s", c.url(), "--shared", "--try", "--", "true").want(t, 0)
		qlockCmd(t, "run", name, "-s", c.url(), "--try", "--", "true").want(t, exitHeld, "held by holder (shared)")
	})
	t.Run("signals are passed on", func(t *testing.T) {
		t.Parallel()
		p := launch(t, "run", lockName(t), "-s", c.url(), "--", "sh", "-c",
			`trap 'echo usr' USR1; trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 0.02; done`)
		p.says(p.out, "ready")
		p.signal(syscall.SIGUSR1)
		p.says(p.out, "usr")
		p.signal(syscall.SIGTERM)
		p.wait().want(t, 5, "term")
	})
	t.Run("ignored signals stay ignored", func(t *testing.T) {
		t.Parallel()
		p := launchShell(t, `trap '' HUP; exec "$0" "$@"`, "run", lockName(t), "-s", c.url(), "--", "sh", "-c", "kill -HUP $$; echo lives; kill -HUP $PPID; sleep 0.1; echo on")
		p.wait().want(t, 0, "lives", "on")
	})
	t.Run("signal during the wait", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		hold(t, c, name)
		p := launch(t, "run", name, "-s", c.url(), "--", "echo", "must not run")
		p.says(p.err, "waiting for")
		p.signal(syscall.SIGTERM)
		r := p.wait()
		r.want(t, exitSignal+int(syscall.SIGTERM), "ended by a signal")
		if r.out != "" {
			t.Errorf("the command ran: %s", r.out)
		}
	})
	t.Run("no quorum", func(t *testing.T) {
		t.Parallel()
		inTime(t, "--timeout", []string{"run", "x", "-s", c.url(), "--cluster", "nobody", "--", "true"}, exitNoQuorum, "no quorum", `cluster "nobody"`, "no node answers")
	})
	t.Run("no connection", func(t *testing.T) {
		t.Parallel()
		qlockCmd(t, "run", "x", "-s", "nats://127.0.0.1:1", "--", "true").want(t, exitSelf, "nats://127.0.0.1:1", "NATS_URL")
	})
	t.Run("bad name", func(t *testing.T) {
		t.Parallel()
		qlockCmd(t, "run", strings.Repeat("x", 2000), "-s", c.url(), "--", "true").want(t, exitUsage, "1024")
	})
}

// family starts a command with a child of its own under a lock, and gives the ids of
// both.
func family(t *testing.T, p *process) []int {
	t.Helper()
	var pids []int
	for _, w := range strings.Fields(p.says(p.out, "ready")) {
		if pid, err := strconv.Atoi(w); err == nil {
			pids = append(pids, pid)
		}
	}
	if len(pids) != 2 {
		t.Fatalf("the command says %q", p.out)
	}
	t.Cleanup(func() {
		for _, pid := range pids {
			if alive(pid) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
	return pids
}

// Both ignore SIGTERM.
const stubborn = `trap '' TERM; sleep 1000 & echo $$ $! ready; wait; wait; sleep 1000`

func alive(pid int) bool {
	if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
		return false
	}
	// The process may be dead without having been waited for: in a container there may be no
	// process that does so.
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return !os.IsNotExist(err) && err != nil || !isProc()
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

func isProc() bool {
	_, err := os.Stat("/proc/self/stat")
	return err == nil
}

// gone waits until none of these processes lives.
func gone(t *testing.T, pids ...int) {
	t.Helper()
	eventually(t, func() error {
		for _, pid := range pids {
			if alive(pid) {
				return fmt.Errorf("process %d lives", pid)
			}
		}
		return nil
	})
}

// When qlock run is killed with SIGKILL, the command does not outlive it, nor does
// what the command started; the lock is free when the lease ends.
func TestRunKilled(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	name := lockName(t)
	p := launch(t, "run", name, "-s", c.url(), "--lease", "8s", "--client", "dead", "--", "sh", "-c", stubborn)
	pids := family(t, p)
	_ = p.cmd.Process.Kill()
	next := launch(t, "run", name, "-s", c.url(), "--", "sh", "-c", isDead(pids[0])+" && "+isDead(pids[1])+" && echo mine")
	gone(t, pids...)
	next.wait().want(t, 0, "mine")
}

// isDead is a shell command that succeeds if a process is dead. It may not have been waited for.
func isDead(pid int) string {
	return fmt.Sprintf(`{ ! test -d /proc/%d || grep -q '^State:.Z' /proc/%d/status; }`, pid, pid)
}

// A suspended qlock run cannot notice that its lock is lost. The guard does not wait for
// it.
func TestRunStopped(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	for _, more := range [][]string{{"--on-loss", "kill"}, {"--grace", "200ms"}} {
		t.Run(strings.Join(more, " "), func(t *testing.T) {
			t.Parallel()
			name := lockName(t)
			args := append([]string{"run", name, "-s", c.url(), "--lease", "8s"}, more...)
			p := launch(t, append(args, "--", "sh", "-c", stubborn)...)
			pids := family(t, p)
			p.signal(syscall.SIGSTOP)
			// No other client gets the lock before the command is dead.
			qlockCmd(t, "run", name, "-s", c.url(), "--wait", patience.String(), "--", "sh", "-c", isDead(pids[0])).want(t, 0)
			gone(t, pids...)
			p.signal(syscall.SIGCONT)
			if r := p.wait(); r.status != exitLost && r.status != exitSignal+int(syscall.SIGKILL) {
				t.Errorf("exit status %d", r.status)
			}
		})
	}
}

// While qlock lives, the guard does nothing to the command, however long it runs.
func TestRunLong(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	qlockCmd(t, "run", lockName(t), "-s", c.url(), "--lease", "8s", "--", "sh", "-c", "sleep 17; echo done").want(t, 0, "done")
}

// A command that ignores SIGTERM is left alone when its user sends that: the lock
// is kept as long as it runs.
func TestRunStubborn(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	name := lockName(t)
	p := launch(t, "run", name, "-s", c.url(), "--", "sh", "-c", stubborn)
	pids := family(t, p)
	p.signal(syscall.SIGTERM)
	qlockCmd(t, "run", name, "-s", c.url(), "--try", "--", "true").want(t, exitHeld)
	if !alive(pids[0]) {
		t.Error("the command is dead")
	}
	// It ignores the next signal, being in the background, and has our pipes.
	_ = syscall.Kill(pids[1], syscall.SIGKILL)
	p.signal(syscall.SIGQUIT)
	if r := p.wait(); r.status != exitSignal+int(syscall.SIGQUIT) && r.status != exitSignal+int(syscall.SIGTERM) {
		t.Errorf("exit status %d", r.status)
	}
	gone(t, pids[0])
}

// Two of three nodes crash: locks are lost, --on-loss determines what happens to commands,
// and nodes and check report the fault. The nodes start again, and wait.
func TestDeadNodes(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, "--max-lease", "10s")
	live := "nats://" + c.addr["n1"][0]
	run := func(name string, more ...string) *process {
		args := append([]string{"run", name, "-s", live, "--lease", "10s"}, more...)
		return launch(t, append(args, "--", "sh", "-c", stubborn)...)
	}
	term, kill, ignore := run("a.term", "--grace", "300ms"), run("a.kill", "--on-loss", "kill", "--grace", "1h"), run("a.ignore", "--on-loss", "ignore")
	termPids, killPids, ignorePids := family(t, term), family(t, kill), family(t, ignore)
	held := launch(t, "lock", "a.lock", "-s", live, "--lease", "10s")
	held.says(held.out, "\n")

	// Locks are unaffected by one crashed node.
	c.proc(t, "n3").kill()
	qlockCmd(t, "run", "b", "-s", live, "--", "true").want(t, 0)
	sees(t, []string{"nodes", "-s", live, "--timeout", "700ms"}, 0, "n3", "unreachable", "2 of 3 nodes vote")
	sees(t, []string{"check", "-s", live, "--timeout", "700ms"}, 0, "node n3 does not answer", "no further node may fail", "0 problems, 2 warnings")
	qlockCmd(t, "check", "--strict", "-s", live, "--timeout", "700ms").want(t, exitFailed)
	sees(t, []string{"ls", "-s", live}, 0, "a.term", "2/3", "No answer from n3")
	sees(t, []string{"info", "a.term", "-s", live}, 0, "2 of 3", "no answer")
	looks := launch(t, "ls", "-s", live, "--watch", "--interval", "100ms", "--timeout", "10s")
	looks.says(looks.out, "a.term")

	c.proc(t, "n2").kill()
	term.wait().want(t, exitLost, "gets SIGTERM, and SIGKILL after 300ms", "did not end within 300ms", `lock "a.term": lock lost while the command ran`)
	gone(t, termPids...)
	kill.wait().want(t, exitLost, "the command is killed")
	gone(t, killPids...)
	held.wait().want(t, exitLost, "lock lost")
	ignore.says(ignore.err, "continues without it")
	if !alive(ignorePids[0]) {
		t.Error("the command whose loss is ignored is dead")
	}
	// A child in the background ignores the signal, and has our pipes.
	_ = syscall.Kill(ignorePids[1], syscall.SIGKILL)
	ignore.signal(syscall.SIGQUIT)
	ignore.wait()

	inTime(t, "--timeout", []string{"check", "-s", live}, exitFailed, "1 of 3 nodes vote, 2 are needed: no lock can be acquired")
	looks.says(looks.err, "no quorum: asked the nodes on lock.default.admin.list.")
	inTime(t, "--timeout", []string{"ls", "-s", live}, exitNoQuorum, "qlock nodes", "qlock check")
	inTime(t, "--wait", []string{"run", "b", "-s", live, "--", "true"}, exitNoQuorum, "no quorum", "1 node answers, too few")

	// They crashed, and give no votes until those have run out.
	for _, n := range []string{"n2", "n3"} {
		if err := c.launch(n); err != nil {
			t.Fatal(err)
		}
	}
	qlockCmd(t, "run", "b", "-s", live, "--wait", patience.String(), "--", "true").want(t, 0)
	if err := c.ready(c.names...); err != nil {
		t.Fatal(err)
	}
	sees(t, []string{"check", "-s", live}, 0, "3 of 3 nodes vote", "No problems found")
	looks.says(looks.out, "has no locks that are held") // it went on
	looks.signal(syscall.SIGINT)
	looks.wait().want(t, 0)
	for _, n := range []string{"n2", "n3"} {
		if log := c.proc(t, n).err.String(); !strings.Contains(log, "may have forgotten votes") {
			t.Errorf("%s does not say why it waits:\n%s", n, log)
		}
	}
}

func TestLock(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	t.Run("input closes", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		p := hold(t, c, name)
		qlockCmd(t, "lock", name, "-s", c.url(), "--try").want(t, exitHeld, "held by holder")
		_ = p.in.Close()
		r := p.wait()
		r.want(t, 0)
		if _, err := strconv.ParseUint(strings.TrimSpace(r.out), 10, 64); err != nil {
			t.Errorf("it wrote %q, not a token", r.out)
		}
		qlockCmd(t, "lock", name, "-s", c.url(), "--wait", patience.String()).want(t, 0)
	})
	t.Run("signal", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		p := hold(t, c, name)
		p.signal(syscall.SIGTERM)
		p.wait().want(t, 0)
		qlockCmd(t, "lock", name, "-s", c.url(), "--wait", patience.String()).want(t, 0)
	})
	t.Run("json", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		v := decode[map[string]any](t, qlockCmd(t, "lock", name, "-s", c.url(), "--shared", "--json"))
		if v["name"] != name || v["shared"] != true || v["token"].(float64) == 0 {
			t.Error(v)
		}
	})
}
