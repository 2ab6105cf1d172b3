//go:build unix

package cli

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// unread is a pipe for standard error that nobody reads: broken, or full.
func unread(t *testing.T, full bool) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = w.Close(), r.Close() })
	if !full {
		_ = r.Close()
		return w
	}
	fill(t, w)
	return w
}

func fill(t *testing.T, w *os.File) {
	t.Helper()
	c, err := w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{4096, 1} {
		if err := c.Write(func(fd uintptr) bool {
			for err == nil {
				_, err = syscall.Write(int(fd), make([]byte, n))
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
		if !errors.Is(err, syscall.EAGAIN) {
			t.Fatal(err)
		}
		err = nil
	}
	// A program that inherits the full pipe blocks, as usual.
	if err := syscall.SetNonblock(int(w.Fd()), false); err != nil {
		t.Fatal(err)
	}
}

func launchWithStderr(t *testing.T, errs *os.File, args ...string) *process {
	t.Helper()
	cmd := command(args...)
	cmd.Stderr = errs
	p, err := launchCmd(t, cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

// Nothing depends on a reader of standard error. Nodes continue, a wait for a lock ends
// with a running command, and commands whose lock is lost are ended on purpose.
func TestStderrNotRead(t *testing.T) {
	t.Parallel()
	for _, full := range []bool{false, true} {
		t.Run(map[bool]string{false: "broken", true: "full"}[full], func(t *testing.T) {
			t.Parallel()
			c := sharedCluster(t)
			evict := func(name string) {
				t.Helper()
				qlockCmd(t, "unlock", name, "-s", c.url(), "--force", "--yes", "--wait", patience.String()).want(t, 0)
			}
			t.Run("node", func(t *testing.T) {
				t.Parallel()
				n := newCluster(t.TempDir(), 1, "--max-lease", "300ms")
				t.Cleanup(n.stop)
				p := launchWithStderr(t, unread(t, full), n.args("n1")...)
				votes := func() {
					t.Helper()
					eventually(t, func() error {
						if r := qlockCmd(t, "nodes", "-s", n.url()); !strings.Contains(r.out, "1 of 1 nodes vote") {
							return fmt.Errorf("%s%s", r.out, r.err)
						}
						return nil
					})
				}
				votes()
				for range 3 { // of each a line is logged
					p.signal(syscall.SIGHUP)
					votes()
				}
				p.signal(syscall.SIGTERM)
				p.wait().want(t, 0)
			})
			for _, how := range []string{onLossTerm, onLossKill} {
				t.Run(how, func(t *testing.T) {
					t.Parallel()
					name := lockName(t)
					p := launchWithStderr(t, unread(t, full), "run", name, "-s", c.url(), "--on-loss", how, "--grace", "200ms", "--", "sh", "-c", stubborn)
					pids := family(t, p)
					evict(name)
					gone(t, pids...)
					p.wait().want(t, exitLost)
				})
			}
			t.Run(onLossIgnore, func(t *testing.T) {
				t.Parallel()
				name := lockName(t)
				p := launchWithStderr(t, unread(t, full), "run", name, "-s", c.url(), "--on-loss", "ignore", "--", "sh", "-c",
					`exec 2>/dev/null; trap 'exec echo finished' USR1; echo started; while :; do sleep 0.02; done`)
				p.says(p.out, "started")
				evict(name)
				p.signal(syscall.SIGUSR1)
				p.wait().want(t, 0, "finished")
			})
			t.Run("wait", func(t *testing.T) {
				t.Parallel()
				name := lockName(t)
				h := hold(t, c, name)
				p := launchWithStderr(t, unread(t, full), "run", name, "-s", c.url(), "--", "echo", "mine")
				waiting(t, c, name)
				time.Sleep(2 * waitNotice) // until it would say so
				_ = h.in.Close()
				p.wait().want(t, 0, "mine")
			})
			t.Run("watch", func(t *testing.T) {
				t.Parallel()
				name := lockName(t)
				p := launchWithStderr(t, unread(t, full), "watch", name, "--events", "-s", "nats://"+c.addr["n1"][0], "--count", "1")
				eventually(t, func() error {
					qlockCmd(t, "run", name, "-s", c.url(), "--", "true").want(t, 0)
					if !strings.Contains(p.out.String(), name) {
						return fmt.Errorf("nothing is seen: %s", p.out)
					}
					return nil
				})
				p.wait().want(t, 0)
			})
			t.Run("bad flags", func(t *testing.T) {
				t.Parallel()
				launchWithStderr(t, unread(t, full), "run").wait().want(t, exitUsage)
			})
		})
	}
}

// waiting waits until a client waits for a lock.
func waiting(t *testing.T, c *nodeCluster, name string) {
	t.Helper()
	eventually(t, func() error {
		if r := qlockCmd(t, "info", name, "-s", c.url()); !strings.Contains(r.out, "Waiting") {
			return fmt.Errorf("%s%s", r.out, r.err)
		}
		return nil
	})
}

// A command has the same handling of SIGPIPE as without qlock.
func TestRunLeavesSigpipeToCommand(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	qlockCmd(t, "run", lockName(t), "-s", c.url(), "--", "sh", "-c", "kill -PIPE $$; echo lives").want(t, exitSignal+int(syscall.SIGPIPE))
}

// If nobody reads the token, the lock is released.
func TestLockTokenNotRead(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	name := lockName(t)
	cmd := command("lock", name, "-s", c.url())
	cmd.Stdout = unread(t, false)
	p, err := launchCmd(t, cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	p.wait().want(t, exitSelf, "broken pipe")
	qlockCmd(t, "run", name, "-s", c.url(), "--wait", patience.String(), "--", "true").want(t, 0)
}

// A command that is blocked by its reader can be ended.
func TestWatchOutputNotRead(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	name := lockName(t)
	cmd := command("watch", name, "--events", "-s", "nats://"+c.addr["n1"][0])
	cmd.Stdout = unread(t, true)
	p, err := launchCmd(t, cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	p.says(p.err, "Ctrl-C ends it")
	qlockCmd(t, "run", name, "-s", c.url(), "--", "true").want(t, 0)
	eventually(t, func() error { // the first of them is not enough
		select {
		case <-p.done:
			return nil
		default:
		}
		_ = p.cmd.Process.Signal(syscall.SIGINT) // it may end now
		return fmt.Errorf("watch runs still")
	})
}

// gate is a reader of standard error that begins late.
type gate struct {
	begun, open chan struct{}
	b           bytes.Buffer
}

func (g *gate) Write(p []byte) (int, error) {
	select {
	case <-g.begun:
	default:
		close(g.begun)
	}
	<-g.open
	return g.b.Write(p)
}

// Lines are written in order, without waiting. Lines that cannot be written in time are
// counted.
func TestDiagnostics(t *testing.T) {
	g := &gate{begun: make(chan struct{}), open: make(chan struct{})}
	d := &diagnostics{linger: time.Millisecond, to: g, close: func() { t.Error("it is closed") }}
	line := strings.Repeat("x", 127) + "\n"
	fmt.Fprint(d, line)
	<-g.begun // so that this line is out of memory
	const room, more = maxPending / 128, 5
	for range room + more {
		if n, err := d.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	fmt.Fprintln(d, "short, but not out of its turn")
	if !d.busy() || d.flush(0) {
		t.Error("all is said to be written")
	}
	d.end() // is not kept by a reader
	close(g.open)
	if !d.flush(patience) {
		t.Fatal("it is not written")
	}
	d.close = func() {}
	fmt.Fprintln(d, "last")
	d.linger = patience
	d.end()
	want := strings.Repeat(line, 1+room) + fmt.Sprintf("qlock: %d lines were dropped here, because standard error was not read\nlast\n", more+1)
	if got := g.b.String(); got != want {
		t.Errorf("%d bytes, want %d: …%q", len(got), len(want), got[max(0, len(got)-200):])
	}
}
