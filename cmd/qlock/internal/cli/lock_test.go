//go:build unix

package cli

import (
	"context"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/qlocktest"
)

// Any name can be given, and what programs read has it exactly.
func TestNamesOnTheCommandLine(t *testing.T) {
	t.Parallel()
	u := "nats://" + sharedCluster(t).addr["n1"][0]
	const name = "-name of\xff bytes"
	const exact = "-name%20of%FF%20bytes"
	w := launch(t, "watch", "-s", u, "--json", "--count", "2", "--events", "--", exact+".>")
	w.says(w.err, "Ctrl-C ends it")
	longer := name + "." + lockName(t)
	r := qlockCmd(t, "run", "-s", u, "--", longer, "--", "sh", "-c", `printf %s "$QLOCK_NAME"; echo " $#"`, "--", "a", "--")
	r.want(t, 0, longer+" 2\n")
	for _, line := range strings.Split(strings.TrimSpace(w.wait().out), "\n") {
		if v := decode[map[string]any](t, result{out: line}); !strings.HasPrefix(v["encoded"].(string), exact+".") {
			t.Errorf("watch: %s", line)
		}
	}
	v := decode[map[string]any](t, qlockCmd(t, "lock", "--json", "-s", u, "--", longer))
	if s, _ := v["encoded"].(string); !strings.HasPrefix(s, exact+".") {
		t.Errorf("lock: %v", v)
	}
	qlockCmd(t, "info", "-s", u, "--", longer).want(t, 0, "-name of")
}

func TestLeaseTooLong(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	qlockCmd(t, "run", lockName(t), "-s", c.url(), "--lease", "10m", "--", "true").want(t, exitUsage, "lease of 10m0s is longer than the 2m0s")
	qlockCmd(t, "lock", lockName(t), "-s", c.url(), "--lease", "10m").want(t, exitUsage, "lease of 10m0s is longer than the 2m0s")
	qlockCmd(t, "lock", lockName(t), "-s", c.url(), "--lease", "20000h").want(t, exitUsage, "invalid lease")
	qlockCmd(t, "lock", lockName(t), "-s", c.url(), "--lease", "10500us").want(t, exitUsage, "whole milliseconds")
}

// If the nodes allow only a short lease, the connection is made for that lease.
func TestShortLeases(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, "--max-lease", "2s")
	for _, args := range [][]string{{"run", "x", "--", "true"}, {"lock", "x", "--try"}} {
		r := qlockCmd(t, append([]string{args[0], "-s", c.url()}, args[1:]...)...)
		r.want(t, 0)
		if strings.Contains(r.err, "is not suited for locks") {
			t.Errorf("qlock %s: %s", args[0], r.err)
		}
	}
}

// The limit of a wait also applies to the wait for a server.
func TestWaitForServer(t *testing.T) {
	t.Parallel()
	at := qlocktest.FreePort(t)
	url := "nats://127.0.0.1:" + strconv.Itoa(at)
	waits := launch(t, "run", "x", "-s", url, "--wait", patience.String(), "--", "echo", "ran")
	waits.says(waits.err, "no NATS server can be reached")
	cfg := embedded.Config{Node: qlock.NodeConfig{Name: "n1", Nodes: []string{"n1"}, StateDir: t.TempDir()}, Port: at}
	if err := qlock.Bootstrap(cfg.Node); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := embedded.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	waits.wait().want(t, 0, "ran\n")
}

// The wait has a limit even if a server accepts connections and says nothing. A permanent
// error ends it at once.
func TestWaitForServerEnds(t *testing.T) {
	t.Parallel()
	none := "nats://127.0.0.1:" + strconv.Itoa(qlocktest.FreePort(t))
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	for _, url := range []string{none, "nats://" + silent.Addr().String()} {
		for _, command := range [][]string{{"run", "x", "--", "true"}, {"lock", "x"}} {
			args := append([]string{command[0], "-s", url, "--timeout", "1h"}, command[1:]...)
			inTime(t, "--wait", args, exitSelf, " has passed", "connect to NATS at "+url)
		}
	}
	qlockCmd(t, "lock", "x", "-s", none).want(t, exitSelf, "is a server running there?")
	qlockCmd(t, "lock", "x", "-s", none, "--try").want(t, exitSelf, "is a server running there?")
	s, err := embedded.Start(t.Context(), embedded.Config{Node: qlock.NodeConfig{Name: "n1", Nodes: []string{"n1"}}, Username: "a", Password: "b"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	qlockCmd(t, "lock", "x", "-s", s.ClientURL(), "--wait", "1h").want(t, exitSelf, "Authorization")

	// A signal ends it, whatever the connection does.
	p := launch(t, "run", "x", "-s", "nats://"+silent.Addr().String(), "--timeout", "1h", "--", "true")
	p.says(p.err, "waiting for x")
	p.signal(syscall.SIGTERM)
	p.wait().want(t, exitSignal+int(syscall.SIGTERM))
}

// A script's command in the background has no usable standard input.
func TestLockInScripts(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	held := func(t *testing.T, name string) {
		t.Helper()
		qlockCmd(t, "lock", name, "-s", c.url(), "--try").want(t, exitHeld)
	}
	free := func(t *testing.T, name string) {
		t.Helper()
		qlockCmd(t, "lock", name, "-s", c.url(), "--wait", patience.String()).want(t, 0)
	}
	t.Run("until its input ends", func(t *testing.T) {
		t.Parallel()
		p := launchShell(t, `"$0" "$@" & wait $!`, "lock", lockName(t), "-s", c.url())
		p.wait().want(t, 0, "is released at once, because standard input is /dev/null", "--until parent")
		p = launchShell(t, `"$0" "$@" & wait $!`, "lock", lockName(t), "-s", c.url(), "--quiet")
		if r := p.wait(); r.err != "" {
			t.Error(r.err)
		}
	})
	t.Run("until the script ends", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		p := launchShell(t, `"$0" "$@" & read x`, "lock", name, "-s", c.url(), "--until", "parent")
		p.says(p.out, "\n")
		held(t, name)
		_ = p.in.Close()
		p.wait().want(t, 1)
		free(t, name)
	})
	t.Run("the script ends before it is had", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		h := hold(t, c, name)
		p := launchShell(t, `"$0" "$@" & read x`, "lock", name, "-s", c.url(), "--until", "parent")
		p.says(p.err, "held by holder")
		_ = p.in.Close()
		// The process ends when no other process has its output any more.
		p.wait().want(t, 1, "the process that started this one has ended")
		_ = h.in.Close()
		free(t, name)
	})
	t.Run("until a signal", func(t *testing.T) {
		t.Parallel()
		for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP} {
			name := lockName(t)
			p := launch(t, "lock", name, "-s", c.url(), "--until", "signal")
			_ = p.in.Close()
			p.says(p.out, "\n")
			held(t, name)
			p.signal(s)
			p.wait().want(t, 0)
			free(t, name)
		}
	})
}
