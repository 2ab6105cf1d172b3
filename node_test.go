package qlock_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/crash"
)

func TestNodeConfigIsChecked(t *testing.T) {
	var many []string
	for i := range 65 {
		many = append(many, fmt.Sprintf("n%d", i))
	}
	tests := []struct {
		name   string
		change func(*qlock.NodeConfig)
		is     error
		want   []string
	}{
		{"cluster", func(c *qlock.NodeConfig) { c.Cluster = "a.b" }, qlock.ErrInvalidName, []string{`cluster name "a.b"`}},
		{"no name", func(c *qlock.NodeConfig) { c.Name = "" }, qlock.ErrInvalidName, []string{`node name "" is empty`}},
		{"name", func(c *qlock.NodeConfig) { c.Name = "n 1" }, qlock.ErrInvalidName, []string{`node name "n 1"`}},
		{"name of another", func(c *qlock.NodeConfig) { c.Nodes[2] = "*" }, qlock.ErrInvalidName, []string{`node name "*"`}},
		{"no nodes", func(c *qlock.NodeConfig) { c.Nodes = nil }, nil, []string{"NodeConfig.Nodes", "empty"}},
		{"many nodes", func(c *qlock.NodeConfig) { c.Nodes = many }, nil, []string{"NodeConfig.Nodes", "65", "64"}},
		{"a node twice", func(c *qlock.NodeConfig) { c.Nodes[2] = "n1" }, nil, []string{"NodeConfig.Nodes", "twice", "[n1 n2 n1]"}},
		{"not among them", func(c *qlock.NodeConfig) { c.Name = "n4" }, nil, []string{"NodeConfig.Name", `"n4"`, "[n1 n2 n3]"}},
		{"short lease", func(c *qlock.NodeConfig) { c.MaxLease, c.MaxSkew = 9*time.Millisecond, time.Millisecond }, nil, []string{"NodeConfig.MaxLease 9ms", "10ms"}},
		{"long lease", func(c *qlock.NodeConfig) { c.MaxLease = 25 * time.Hour }, nil, []string{"NodeConfig.MaxLease 25h0m0s", "24h0m0s"}},
		{"negative lease", func(c *qlock.NodeConfig) { c.MaxLease, c.MaxSkew = -time.Second, time.Millisecond }, nil, []string{"NodeConfig.MaxLease -1s"}},
		{"odd lease", func(c *qlock.NodeConfig) { c.MaxLease = time.Second + 1 }, nil, []string{"NodeConfig.MaxLease 1.000000001s", "whole milliseconds"}},
		{"negative lease of before", func(c *qlock.NodeConfig) { c.PreviousMaxLease = -1 }, nil, []string{"NodeConfig.PreviousMaxLease -1ns"}},
		{"long lease of before", func(c *qlock.NodeConfig) { c.PreviousMaxLease = 25 * time.Hour }, nil, []string{"NodeConfig.PreviousMaxLease 25h0m0s", "24h0m0s"}},
		{"skew above the lease", func(c *qlock.NodeConfig) { c.MaxLease, c.MaxSkew = time.Second, 2*time.Second }, nil, []string{"NodeConfig.MaxSkew 2s", "MaxLease (1s)"}},
		{"negative skew", func(c *qlock.NodeConfig) { c.MaxSkew = -1 }, nil, []string{"NodeConfig.MaxSkew -1ns"}},
		{"odd skew", func(c *qlock.NodeConfig) { c.MaxSkew = time.Second + 1 }, nil, []string{"NodeConfig.MaxSkew 1.000000001s", "whole milliseconds"}},
		{"claims", func(c *qlock.NodeConfig) { c.MaxClaims = -7 }, nil, []string{"NodeConfig.MaxClaims (-7)", "MaxQueue (65536)"}},
		{"queue", func(c *qlock.NodeConfig) { c.MaxQueue = -7 }, nil, []string{"MaxQueue (-7)", "MaxClaims (250000)"}},
		{"probe", func(c *qlock.NodeConfig) { c.ProbeWait = -time.Second }, nil, []string{"NodeConfig.ProbeWait -1s"}},
		{"long probe", func(c *qlock.NodeConfig) {
			c.MaxLease, c.MaxSkew, c.ProbeWait = 300*time.Millisecond, 0, 200*time.Millisecond
		}, nil, []string{"NodeConfig.ProbeWait 200ms", "a third of MaxLease (100ms)"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newServer(t, setup{})
				nc := w.connect()
				dir := filepath.Join(t.TempDir(), "state")
				cfg := qlock.NodeConfig{Name: "n1", Nodes: []string{"n1", "n2", "n3"}, StateDir: dir}
				tt.change(&cfg)
				_, err := qlock.StartNode(t.Context(), nc.Conn, cfg)
				for _, err := range []error{err, qlock.Bootstrap(cfg)} {
					wantText(t, err, append(tt.want, "qlock: ")...)
					if tt.is != nil {
						wantIs(t, err, tt.is)
					}
				}
				if _, err := os.Stat(dir); !os.IsNotExist(err) {
					t.Errorf("a configuration that was refused left a state directory: %v", err)
				}
				if n := nc.NumSubscriptions(); n != 0 {
					t.Errorf("%d subscriptions are left", n)
				}
			})
		})
	}
}

func TestStartNodeWithoutConnection(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		tn := w.nodes[0]
		if _, err := qlock.StartNode(t.Context(), nil, tn.cfg); err == nil {
			t.Error("no error for a nil connection")
		} else {
			wantText(t, err, "qlock: StartNode", "nil")
		}
		tn.stop()
		closed := w.connect()
		closed.Close()
		_, err := qlock.StartNode(t.Context(), closed.Conn, tn.cfg)
		wantIs(t, err, qlock.ErrClosed)

		// Nor does a node serve that cannot hear itself (N9).
		tn.link.cut()
		_, err = qlock.StartNode(timeout(t, time.Second), tn.link.Conn, tn.cfg)
		wantIs(t, err, context.DeadlineExceeded)
		wantText(t, err, "qlock: StartNode: node n1", "did not hear itself on lock.default.node.>")
		if n := tn.link.NumSubscriptions(); n != 0 {
			t.Errorf("%d subscriptions are left", n)
		}
		tn.link.mend()
		time.Sleep(2 * reconnectWait)

		// None of these gave a vote, so the clean mark was not used up.
		tn.start()
		if !tn.Ready() {
			t.Errorf("after starts that failed the node is %s", tn.Stats().State)
		}
	})
}

func TestBootstrap(t *testing.T) {
	bubble(t, func(t *testing.T) {
		wantText(t, qlock.Bootstrap(qlock.NodeConfig{Name: "n1", Nodes: []string{"n1"}}), "qlock: Bootstrap", "StateDir is empty")

		w := newWorld(t, 1)
		tn := w.nodes[0]
		again := func(when, want string) {
			t.Helper()
			err := qlock.Bootstrap(tn.cfg)
			if err == nil {
				t.Errorf("Bootstrap succeeded %s", when)
			}
			wantText(t, err, "qlock: Bootstrap", tn.cfg.StateDir, want)
		}
		again("while the node runs", "in use by another node")
		tn.stop()
		again("after a clean stop", "already holds the state of a node")
		tn.start()
		tn.crash()
		again("after a crash", "already holds the state of a node")
		if err := os.WriteFile(filepath.Join(tn.cfg.StateDir, "node.json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		again("over a damaged mark", "already holds the state of a node")

		other := tn.cfg
		other.StateDir = filepath.Join(t.TempDir(), "a", "b")
		if err := qlock.Bootstrap(other); err != nil {
			t.Errorf("Bootstrap of a directory to be made: %v", err)
		}
		if err := qlock.Bootstrap(other); err == nil {
			t.Error("Bootstrap succeeded twice")
		}
	})
}

// A new node that was not bootstrapped, and one without a state directory, cannot
// know that they forgot nothing (N8).
func TestNodeWithoutMarkWaits(t *testing.T) {
	for _, tt := range []struct {
		name, why string
		change    func(*qlock.NodeConfig)
	}{
		{"not bootstrapped", "the state directory is empty: see Bootstrap for a new cluster", func(*qlock.NodeConfig) {}},
		{"no state directory", "", func(c *qlock.NodeConfig) { c.StateDir = "" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				start := time.Now()
				w := newWorld(t, 1, setup{fresh: true, node: func(_ int, c *qlock.NodeConfig) { tt.change(c) }})
				tn := w.nodes[0]
				if tt.why != "" && len(w.log.find("WARN", "gives none until they have expired", tt.why, "wait=30s", "node=n1")) != 1 {
					t.Errorf("nothing of that in the log: %q", w.log.find(""))
				}
				waitsQuarantine(t, tn, start, quarantine)

				// A clean stop is remembered only where there is a directory.
				tn.stop()
				tn.start()
				if tn.Ready() != (tn.cfg.StateDir != "") {
					t.Errorf("after a clean stop the node is %s", tn.Stats().State)
				}
			})
		})
	}
}

// waitsQuarantine checks that the node gives no votes until a time after start,
// and then does.
func waitsQuarantine(t *testing.T, tn *testNode, start time.Time, want time.Duration) {
	t.Helper()
	if tn.Ready() || tn.Stats().State != "recovering" {
		t.Errorf("%s is ready: %v, and %s", tn.Name(), tn.Ready(), tn.Stats().State)
	}
	err := tn.WaitReady(timeout(t, time.Second))
	wantIs(t, err, context.DeadlineExceeded)
	wantText(t, err, "node "+tn.Name()+" is recovering and gives no votes yet")
	time.Sleep(time.Until(start.Add(want - time.Microsecond)))
	settle()
	if tn.Ready() {
		t.Errorf("%s votes before %v have passed", tn.Name(), want)
	}
	if err := tn.WaitReady(t.Context()); err != nil {
		t.Errorf("WaitReady: %v", err)
	}
	if d := time.Since(start); d != want {
		t.Errorf("%s votes after %v, want %v", tn.Name(), d, want)
	}
	if !tn.Ready() || tn.Stats().State != "voting" {
		t.Errorf("%s is ready: %v, and %s", tn.Name(), tn.Ready(), tn.Stats().State)
	}
}

// Nodes that stop cleanly remember their votes and queues: held locks and places
// outlive the restart of all of them, one by one and all at once (N8).
func TestCleanRestartKeepsLocks(t *testing.T) {
	for _, tt := range []struct {
		name    string
		restart func(*world)
	}{
		{"one by one", func(w *world) {
			for _, tn := range w.nodes {
				tn.stop()
				time.Sleep(testLease / 6)
				tn.start()
			}
		}},
		{"all at once", func(w *world) {
			w.each((*testNode).stop)
			time.Sleep(testLease / 3)
			w.each((*testNode).start)
		}},
	} {
		for _, n := range []int{1, 3, 4} {
			t.Run(fmt.Sprintf("%s, %d nodes", tt.name, n), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					w := newWorld(t, n)
					a, b, c := w.client("a"), w.client("b"), w.client("c")
					k, r := mustLock(t, a, "x"), mustRLock(t, a, "y")
					mustUnlock(t, mustLock(t, a, "z"))
					next := waitFor(t.Context(), b.Lock, "x")
					time.Sleep(time.Millisecond)
					last := waitFor(t.Context(), c.Lock, "x")
					for range 3 {
						tt.restart(w)
						for _, tn := range w.nodes {
							if !tn.Ready() {
								t.Fatalf("%s is %s after a clean restart", tn.Name(), tn.Stats().State)
							}
						}
						_, err := c.TryLock(t.Context(), "x")
						wantIs(t, err, qlock.ErrHeld)
						_, err = c.TryLock(t.Context(), "y")
						wantIs(t, err, qlock.ErrHeld)
						time.Sleep(testLease)
					}
					for _, lock := range []*qlock.Lock{k, r} {
						if err := context.Cause(lock.Context()); err != nil {
							t.Fatalf("%q: %v", lock.Name(), err)
						}
					}
					if next.over() || last.over() {
						t.Fatalf("two holders: %v, %v", next.err, last.err)
					}
					mustUnlock(t, k)
					if !next.over() || last.over() {
						t.Fatal("the order of the queue is lost")
					}
					if next.held(t).Token() <= k.Token() {
						t.Errorf("token %d after %d", next.lock.Token(), k.Token())
					}
					mustUnlock(t, next.lock)
					mustUnlock(t, last.held(t))
					mustUnlock(t, r)
					w.noClaims()
				})
			})
		}
	}
}

// A holder whose nodes are all away for longer than its lease loses the lock, as
// it would without their state; nobody has it before.
func TestCleanRestartAfterTheLease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		k := mustLock(t, a, "x")
		next := waitFor(t.Context(), b.Lock, "x")
		w.each((*testNode).stop)
		time.Sleep(2 * testLease)
		if cause := context.Cause(k.Context()); cause != qlock.ErrLost {
			t.Errorf("after two leases without nodes: %v", cause)
		}
		back := time.Now()
		w.each((*testNode).start)
		if next.held(t).Token() <= k.Token() {
			t.Errorf("token %d after %d", next.lock.Token(), k.Token())
		}
		// The vote that the nodes restored stands for a lease, unless its client
		// tells them that it is over.
		if d := time.Since(back); d > testLease+time.Second {
			t.Errorf("the next holder came %v after the nodes", d)
		}
		mustUnlock(t, next.lock)
		w.noClaims()
	})
}

// A node that was killed gives no votes until all that it may have forgotten have
// run out; with a majority up nobody notices.
func TestCrashedNodeWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a")
		k := mustLock(t, a, "x")
		tn := w.nodes[0]
		time.Sleep(time.Minute)
		tn.crash()
		start := time.Now()
		tn.start()
		if len(w.log.find("WARN", "it was not stopped cleanly", "node=n1")) != 1 {
			t.Errorf("nothing of that in the log: %q", w.log.find("WARN"))
		}
		mustUnlock(t, mustLock(t, a, "y"))
		waitsQuarantine(t, tn, start, quarantine)
		if err := context.Cause(k.Context()); err != nil {
			t.Errorf("lost: %v", err)
		}
		mustUnlock(t, k)
		w.noClaims()
	})
}

// A quarantine counts from the start, whatever stop cut it short: a node that
// forgot once goes on having forgotten.
func TestStopInQuarantineLeavesNoMark(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		tn := w.nodes[0]
		tn.crash()
		tn.start()
		time.Sleep(quarantine / 2)
		tn.stop()
		start := time.Now()
		tn.start()
		waitsQuarantine(t, tn, start, quarantine)
	})
}

// All nodes are killed at once and start again: what was held is lost, and nobody
// else has it before its lease is over by any clock.
func TestAllNodesCrash(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b", qlock.WithLease(maxLease))
		k := mustLock(t, a, "x")
		next := waitFor(t.Context(), b.Lock, "x")
		time.Sleep(time.Second)
		crashed := time.Now()
		w.each((*testNode).crash)
		w.each((*testNode).start)
		lost, cause := died(t, k.Context())
		if cause != qlock.ErrLost || lost.Sub(crashed) > stands(testLease) {
			t.Errorf("cause %v after %v", cause, lost.Sub(crashed))
		}
		_, err := b.TryLock(timeout(t, time.Second), "y")
		wantIs(t, err, qlock.ErrNoQuorum, context.DeadlineExceeded)
		wantText(t, err, "n1 recovering (votes again in ", "n2 recovering", "n3 recovering")
		if next.held(t).Token() <= k.Token() {
			t.Errorf("token %d after %d", next.lock.Token(), k.Token())
		}
		if d := time.Since(crashed); d < quarantine {
			t.Errorf("the next holder came %v after the crash, want %v", d, quarantine)
		}
		mustUnlock(t, next.lock)
		mustUnlock(t, mustLock(t, a, "x"))
		w.noClaims()
	})
}

// A clean mark is gone from the disk as soon as its node runs: it serves one start
// only (N8).
func TestCleanMarkServesOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		tn := w.nodes[0]
		clean := func() bool {
			b, err := os.ReadFile(filepath.Join(tn.cfg.StateDir, "node.json"))
			if err != nil {
				t.Fatal(err)
			}
			return strings.Contains(string(b), `"clean": true`)
		}
		for range 3 {
			if clean() {
				t.Error("the clean mark is there while the node runs")
			}
			tn.stop()
			if !clean() {
				t.Error("there is no clean mark after a clean stop")
			}
			tn.start()
			if !tn.Ready() {
				t.Errorf("after a clean stop the node is %s", tn.Stats().State)
			}
		}
		tn.crash()
		if clean() {
			t.Error("there is a clean mark after a crash")
		}
		start := time.Now()
		tn.start()
		waitsQuarantine(t, tn, start, quarantine)
	})
}

const otherConfig = "its configuration is not the one that it stopped or was bootstrapped with"

// A mark that was written under another configuration is void, and the quarantine
// is for the longer of the two longest leases (N8).
func TestChangedConfigurationVoidsTheMark(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*qlock.NodeConfig)
		why    string
		want   time.Duration
	}{
		{"shorter lease", func(c *qlock.NodeConfig) { c.MaxLease = 10 * time.Second }, otherConfig, quarantine},
		{"longer lease", func(c *qlock.NodeConfig) { c.MaxLease = 100 * time.Second }, otherConfig, 100*time.Second/20 + 5*(100*time.Second/60) + 102*time.Second},
		{"longer lease before that", func(c *qlock.NodeConfig) {
			c.MaxLease, c.PreviousMaxLease = 10*time.Second, 100*time.Second
		}, otherConfig, 100*time.Second/20 + 5*(100*time.Second/60) + 102*time.Second},
		{"another skew", func(c *qlock.NodeConfig) { c.MaxSkew = time.Second }, otherConfig, quarantine},
		{"another list", func(c *qlock.NodeConfig) { c.Nodes = []string{"n1", "n2"} }, otherConfig, quarantine},
		{"another name", func(c *qlock.NodeConfig) { c.Name = "n2" }, `the state directory is that of node "n1"`, quarantine},
		{"another cluster", func(c *qlock.NodeConfig) { c.Cluster = "staging" }, `the state directory is that of a node of cluster "default"`, quarantine},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, 3)
				tn := w.nodes[0]
				w.nodes[1].stop()
				tn.stop()
				tt.change(&tn.cfg)
				start := time.Now()
				tn.start()
				if len(w.log.find("WARN", tt.why)) != 1 {
					t.Errorf("nothing of that in the log: %q", w.log.find("WARN"))
				}
				waitsQuarantine(t, tn, start, tt.want)
			})
		})
	}
}

// What the nodes list says does not depend on its order.
func TestOrderOfNodesIsNoConfiguration(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		tn := w.nodes[0]
		tn.stop()
		tn.cfg.Nodes = []string{"n3", "n1", "n2"}
		tn.start()
		if !tn.Ready() {
			t.Errorf("the node is %s", tn.Stats().State)
		}
		w.nodes[1].crash()
		mustUnlock(t, mustLock(t, w.client("a"), "x"))
	})
}

func TestDamagedMark(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func([]byte) []byte
	}{
		{"empty", func([]byte) []byte { return nil }},
		{"cut short", func(b []byte) []byte { return b[:len(b)/2] }},
		{"no JSON", func([]byte) []byte { return []byte("damaged") }},
		{"a changed number", func(b []byte) []byte { return []byte(strings.Replace(string(b), "30000", "30001", 1)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, 1)
				tn := w.nodes[0]
				tn.stop()
				file := filepath.Join(tn.cfg.StateDir, "node.json")
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, tt.damage(b), 0o600); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				tn.start()
				if len(w.log.find("WARN", "node.json is damaged", "node=n1")) != 1 {
					t.Errorf("nothing of that in the log: %q", w.log.find(""))
				}
				waitsQuarantine(t, tn, start, quarantine)
				tn.stop() // and the damage is mended
				tn.start()
				if !tn.Ready() {
					t.Errorf("the node is %s", tn.Stats().State)
				}
			})
		})
	}
}

func TestStateDirServesOneNode(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 2)
		w.nodes[1].stop()
		w.nodes[1].cfg.StateDir = w.nodes[0].cfg.StateDir
		err := w.nodes[1].tryStart()
		wantText(t, err, "qlock: StartNode", w.nodes[0].cfg.StateDir, "in use by another node")
		if !w.nodes[0].Ready() {
			t.Error("the first node is not ready any more")
		}
		w.nodes[0].stop() // its mark is its own
		w.nodes[0].start()
		if !w.nodes[0].Ready() {
			t.Errorf("the first node is %s after a clean restart", w.nodes[0].Stats().State)
		}
	})
}

// A second node of one name is told to go, and the first goes on as if nothing had
// been, whatever the second's state directory allows it (N9).
func TestSecondNodeOfOneName(t *testing.T) {
	for _, bootstrapped := range []bool{true, false} {
		t.Run(fmt.Sprintf("bootstrapped %v", bootstrapped), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, 1) // every vote counts
				a := w.client("a")
				k := mustLock(t, a, "x")
				next := waitFor(t.Context(), a.Lock, "x")
				time.Sleep(time.Second)
				second := &testNode{world: w, link: w.connect(), cfg: w.nodes[0].cfg}
				second.cfg.StateDir = t.TempDir()
				if bootstrapped {
					if err := qlock.Bootstrap(second.cfg); err != nil {
						t.Fatal(err)
					}
				}
				start := time.Now()
				err := second.tryStart()
				wantText(t, err, `another node named "n1" already runs in cluster "default"`, "give each node a name of its own")
				// It finds out at once, and says ten times that it gives the name up.
				if d := time.Since(start); d > 9*probeWait {
					t.Errorf("found out after %v", d)
				}
				if n := second.link.NumSubscriptions(); n != 0 {
					t.Errorf("the second node left %d subscriptions", n)
				}
				settle()
				if len(w.log.find("WARN", `another node named "n1" is running`, "this one started later and stops")) != 1 {
					t.Errorf("nothing of that in the log: %q", w.log.find("WARN"))
				}
				if !w.nodes[0].Ready() {
					t.Errorf("the first node is %s", w.nodes[0].Stats().State)
				}
				time.Sleep(3 * testLease)
				if err := context.Cause(k.Context()); err != nil || next.over() {
					t.Fatalf("the lock is lost: %v, %v", err, next.err)
				}
				mustUnlock(t, k)
				if !next.over() {
					t.Error("the first node does not vote")
				}
				mustUnlock(t, next.held(t))
				w.noClaims()
			})
		})
	}
}

// Two nodes of one name start in the same moment: one of them stays.
func TestTwoNodesOfOneNameAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.nodes[0].stop()
		second := &testNode{world: w, link: w.connect(), cfg: w.nodes[0].cfg}
		second.cfg.StateDir = t.TempDir()
		if err := qlock.Bootstrap(second.cfg); err != nil {
			t.Fatal(err)
		}
		both := []*testNode{w.nodes[0], second}
		errs := make([]error, 2)
		var wg sync.WaitGroup
		for i, tn := range both {
			wg.Go(func() { errs[i] = tn.tryStart() })
		}
		wg.Wait()
		settle()
		running := 0
		for i, tn := range both {
			if errs[i] != nil {
				wantText(t, errs[i], `another node named "n1" already runs`)
				continue
			}
			running++
			if err := tn.WaitReady(t.Context()); err != nil {
				t.Error(err)
			}
			defer tn.stop()
		}
		if running != 1 {
			t.Fatalf("%d nodes of one name run, want one: %v", running, errs)
		}
		w.nodes = nil
		mustUnlock(t, mustLock(t, w.client("a"), "x"))
	})
}

// All nodes are stopped and start with another list, as a change of configuration
// wants it. Locks held by votes of the old list are lost, who waits goes on
// waiting, and the same Locker goes on working.
func TestConfigurationChangesUnderLocker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		k := mustLock(t, a, "x")
		next := waitFor(t.Context(), b.Lock, "x")
		time.Sleep(time.Second)

		w.each((*testNode).stop)
		list := []string{"n1", "n2", "n3", "n4", "n5"}
		for _, name := range list[3:] {
			tn := &testNode{world: w, link: w.connect(), cfg: w.nodes[0].cfg}
			tn.cfg.Name, tn.cfg.StateDir = name, t.TempDir()
			w.nodes = append(w.nodes, tn)
		}
		start := time.Now()
		w.each(func(tn *testNode) {
			tn.cfg.Nodes = list
			tn.start()
		})
		defer w.each((*testNode).stop)

		lost, cause := died(t, k.Context())
		if d := lost.Sub(start); cause != qlock.ErrLost || d > testLease/3 {
			t.Errorf("cause %v %v after the change, want ErrLost at the next refresh", cause, d)
		}
		if len(w.log.find("ERROR", "the configuration of the nodes has changed")) == 0 {
			t.Errorf("nothing of that in the log: %q", w.log.find("ERROR"))
		}
		for _, l := range []*qlock.Locker{a, b} {
			time.Sleep(testLease / 3)
			if got := fmt.Sprint(l.Nodes()); got != "[n1 n2 n3 n4 n5]" {
				t.Errorf("%s knows the nodes %s", l.Name(), got)
			}
		}
		if next.over() {
			t.Fatalf("who waited has an answer while no node votes: %v", next.err)
		}
		if next.held(t).Token() <= k.Token() {
			t.Errorf("token %d after %d", next.lock.Token(), k.Token())
		}
		if d := time.Since(start); d != quarantine {
			t.Errorf("the lock was had %v after the change, want when the nodes vote again, %v", d, quarantine)
		}
		mustUnlock(t, next.lock)
		w.nodes[0].crash()
		w.nodes[1].crash()
		mustUnlock(t, mustLock(t, a, "y")) // with three of five
		_, err := a.Lock(endedContext(t), "y")
		wantIs(t, err, context.Canceled)
		w.nodes[0].start()
		w.nodes[1].start()
		w.noClaims()
	})
}

// endedContext is a context that has ended.
func endedContext(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// A node may be closed and crashed in any order, often, and together.
func TestNodeCloseAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		tn := w.nodes[0]
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				stop := tn.Close
				if i%2 == 1 {
					stop = func() error { return crash.Node(tn.Node) }
				}
				if err := stop(); err != nil {
					t.Errorf("closing: %v", err)
				}
			})
		}
		waiting := make(chan error, 1)
		wg.Wait()
		go func() { waiting <- tn.WaitReady(t.Context()) }()
		if err := <-waiting; !errors.Is(err, qlock.ErrClosed) {
			t.Errorf("WaitReady after Close: %v", err)
		}
		tn.Node = nil
	})
}

// Who waits for a node's votes learns that it was closed.
func TestWaitReadyEndsWithClose(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1, setup{fresh: true})
		tn := w.nodes[0]
		waiting := make(chan error, 1)
		go func() { waiting <- tn.WaitReady(t.Context()) }()
		time.Sleep(time.Second)
		tn.stop()
		if err := <-waiting; !errors.Is(err, qlock.ErrClosed) {
			t.Errorf("WaitReady of a node that was closed: %v", err)
		}
	})
}
