package qlock_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// The tests of this file have nodes of one name follow one another on several
// machines, as people move, replace and restore them. In each a holds a lock by
// votes that the nodes now running know nothing of, and cannot hear that it is over.

// elsewhere starts a node of the same name on another machine, whose state
// directory is empty.
func (tn *testNode) elsewhere(t *testing.T) *testNode {
	t.Helper()
	r := &testNode{world: tn.world, link: tn.world.connect(), cfg: tn.cfg}
	r.cfg.StateDir = filepath.Join(t.TempDir(), "new-machine")
	r.start()
	t.Cleanup(func() {
		if r.Node != nil {
			r.stop()
		}
	})
	return r
}

func ready(t *testing.T, nodes ...*testNode) {
	t.Helper()
	for _, tn := range nodes {
		if err := tn.WaitReady(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
}

// heldAlone has a take the lock and be cut off, then calls f, after which another
// client asks for the lock. It must not have it while a holds it, and its token must
// be higher.
func heldAlone(t *testing.T, w *world, f func()) {
	t.Helper()
	a, link := w.clientOn("a")
	k := mustLock(t, a, "x")
	link.cut() // its lock stands for 9.8 s
	f()
	if err := k.Context().Err(); err != nil {
		t.Fatalf("the lock was lost too early for this test: %v", err)
	}
	k2 := mustLock(t, w.client("b"), "x")
	settle()
	if k.Context().Err() == nil {
		t.Error("two hold the lock")
	}
	if k2.Token() <= k.Token() {
		t.Errorf("token %d after %d", k2.Token(), k.Token())
	}
}

// A majority of nodes is cut off for longer than the longest lease and replaced. The
// replacements vote, and are gone when the first come back, so nobody says that they
// were there (N9).
func TestReplacementIsGoneAgain(t *testing.T) {
	for _, n := range []int{3, 5} {
		t.Run("", func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, n)
				victims := w.nodes[:n/2+1]
				for _, tn := range victims {
					tn.link.cut()
				}
				time.Sleep(time.Second)
				var replaced []*testNode
				for _, tn := range victims {
					replaced = append(replaced, tn.elsewhere(t))
				}
				ready(t, replaced...)
				heldAlone(t, w, func() {
					for i, r := range replaced {
						r.crash()
						victims[i].link.mend()
					}
				})
			})
		})
	}
}

// Nodes are moved to other machines by the book, and taken back when those fail: the
// state that they left there before is not what they know now (N8).
func TestMovedAndTakenBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		for _, tn := range w.nodes[:2] {
			tn.stop()
			moved := tn.elsewhere(t)
			ready(t, moved)
			defer func() {
				if moved.Node != nil {
					moved.crash()
				}
			}()
			tn.Node, moved.Node = moved.Node, nil // its process, not its place
		}
		heldAlone(t, w, func() {
			for _, tn := range w.nodes[:2] {
				tn.crash()
				tn.start() // on the old machine
			}
		})
	})
}

// A node that was cut off for so long that it may have been replaced leaves no clean
// mark when it is stopped (N8).
func TestReplacedNodeLeavesNoCleanMark(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		for _, tn := range w.nodes[:2] {
			tn.link.cut()
		}
		time.Sleep(time.Second)
		var replaced []*testNode
		for _, tn := range w.nodes[:2] {
			replaced = append(replaced, tn.elsewhere(t))
		}
		ready(t, replaced...)
		time.Sleep(10 * time.Second)
		for _, tn := range w.nodes[:2] {
			tn.stop() // still cut off
		}
		heldAlone(t, w, func() {
			for i, tn := range w.nodes[:2] {
				replaced[i].crash()
				tn.link.mend()
				time.Sleep(2 * reconnectWait)
				tn.start()
			}
		})
	})
}

// A clean mark is good until as much time has passed as another needs to take the
// name and vote, less a margin (N8): 29.4 s since the node last heard itself, which it
// does every 10 s.
func TestMarkGoesStale(t *testing.T) {
	for _, tt := range []struct {
		off  time.Duration
		good bool
	}{{19 * time.Second, true}, {30 * time.Second, false}, {time.Hour, false}} {
		t.Run(tt.off.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, 1)
				tn := w.nodes[0]
				tn.stop()
				time.Sleep(tt.off)
				start := time.Now()
				tn.start()
				if tt.good {
					if !tn.Ready() {
						t.Errorf("stopped for %v the node is %s", tt.off, tn.Stats().State)
					}
					return
				}
				if len(w.log.find("WARN", "it was not heard for longer than the longest lease", "another node may have used its name")) != 1 {
					t.Errorf("nothing of that in the log: %q", w.log.find("WARN"))
				}
				waitsQuarantine(t, tn, start, quarantine)
			})
		})
	}
}

// The mark of Bootstrap is good for an hour.
func TestBootstrapGoesStale(t *testing.T) {
	for _, tt := range []struct {
		off  time.Duration
		good bool
	}{{59 * time.Minute, true}, {61 * time.Minute, false}} {
		t.Run(tt.off.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newServer(t, setup{})
				tn := &testNode{world: w, link: w.connect(), cfg: qlock.NodeConfig{
					Name: "n1", Nodes: []string{"n1"}, StateDir: t.TempDir(), MaxLease: maxLease, NoService: true,
				}}
				if err := qlock.Bootstrap(tn.cfg); err != nil {
					t.Fatal(err)
				}
				time.Sleep(tt.off)
				tn.start()
				defer tn.stop()
				if tn.Ready() != tt.good {
					t.Errorf("bootstrapped %v before, the node is %s", tt.off, tn.Stats().State)
				}
			})
		})
	}
}

// The state directory of a node of the same name in another cluster is that of
// another node (N8).
func TestMarkOfAnotherCluster(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		n := w.nodes[0]
		other := n.cfg
		other.Cluster, other.StateDir = "staging", filepath.Join(t.TempDir(), "staging")
		heldAlone(t, w, func() {
			n.crash()
			if err := qlock.Bootstrap(other); err != nil {
				t.Fatal(err)
			}
			o, err := qlock.StartNode(t.Context(), w.connect().Conn, other)
			if err != nil {
				t.Fatal(err)
			}
			if err := o.Close(); err != nil {
				t.Fatal(err)
			}
			n.cfg.StateDir = other.StateDir
			n.start()
		})
	})
}

// A state directory that was copied, or is restored from a copy, is no clean mark,
// however short a time ago the copy was made (N8).
func TestCopiedStateDirectory(t *testing.T) {
	for _, tt := range []struct {
		name string
		back func(t *testing.T, dir, backup string) (use string)
	}{
		{"copied back and forth", func(_ *testing.T, _, backup string) string { return backup }},
		{"restored over", func(t *testing.T, dir, backup string) string {
			b, err := os.ReadFile(filepath.Join(backup, "node.json"))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, "node.json"), b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			return dir
		}},
		{"restored after it was removed", func(t *testing.T, dir, backup string) string {
			err := os.RemoveAll(dir)
			if err == nil {
				err = os.CopyFS(dir, os.DirFS(backup))
			}
			if err != nil {
				t.Fatal(err)
			}
			return dir
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, 1)
				n := w.nodes[0]
				n.stop()
				backup := filepath.Join(t.TempDir(), "backup")
				if err := os.CopyFS(backup, os.DirFS(n.cfg.StateDir)); err != nil {
					t.Fatal(err)
				}
				n.start() // it may: nobody knows of the copy
				heldAlone(t, w, func() {
					n.crash()
					n.cfg.StateDir = tt.back(t, n.cfg.StateDir, backup)
					n.start()
					if len(w.log.find("WARN", "was copied, moved or restored")) != 1 {
						t.Errorf("nothing of that in the log: %q", w.log.find("WARN"))
					}
				})
			})
		})
	}
}

// A node that was started on a copy waits, even if it is the first that uses it.
func TestStartOnCopyWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		n := w.nodes[0]
		n.stop()
		to := filepath.Join(t.TempDir(), "new-machine")
		if err := os.CopyFS(to, os.DirFS(n.cfg.StateDir)); err != nil {
			t.Fatal(err)
		}
		n.cfg.StateDir = to
		start := time.Now()
		n.start()
		waitsQuarantine(t, n, start, quarantine)
	})
}

// The longest lease is lowered, and the nodes have no state directory that would
// tell them of the leases of before. What tells them is PreviousMaxLease, or other
// nodes that still allow them (N8).
func TestLowerMaxLeaseWithoutState(t *testing.T) {
	const before = 5 * time.Minute
	const lowered = 30 * time.Second
	begin := func(t *testing.T, n int, before time.Duration) (*world, *qlock.Lock, *link) {
		w := newWorld(t, n, setup{fresh: true, node: func(_ int, c *qlock.NodeConfig) { c.StateDir, c.MaxLease = "", before }})
		for _, tn := range w.nodes {
			if err := tn.WaitReady(timeout(t, 2*before)); err != nil {
				t.Fatal(err)
			}
		}
		a, link := w.clientOn("a", qlock.WithLease(before))
		k := mustLock(t, a, "x")
		time.Sleep(time.Second)
		return w, k, link
	}
	lower := func(tn *testNode) {
		tn.stop()
		tn.cfg.MaxLease = lowered
		tn.start()
	}
	end := func(t *testing.T, w *world, k *qlock.Lock) {
		t.Helper()
		for _, tn := range w.nodes {
			if err := tn.WaitReady(timeout(t, 2*before)); err != nil {
				t.Fatal(err)
			}
		}
		mustLock(t, w.client("b"), "x")
		settle()
		if k.Context().Err() == nil {
			t.Error("two hold the lock")
		}
	}
	t.Run("PreviousMaxLease", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			w, k, link := begin(t, 3, before)
			link.cut()
			for _, tn := range w.nodes {
				tn.cfg.PreviousMaxLease = before
			}
			start := time.Now()
			w.each(lower)
			time.Sleep(lowered + lowered/50 + listening)
			end(t, w, k)
			if d, want := time.Since(start), before/10+before/30+before+before/50; d < want || d > want+time.Second {
				t.Errorf("the nodes waited %v, want %v", d, want)
			}
		})
	})
	t.Run("other nodes show it", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			w, k, link := begin(t, 3, before)
			link.cut()
			for _, tn := range w.nodes { // one after the other
				lower(tn)
				time.Sleep(time.Second)
			}
			if len(w.log.find("has, or allows, leases of 5m0s")) == 0 {
				t.Errorf("nothing of that in the log: %q", w.log.find("WARN"))
			}
			// The last one hears of it from those that heard of it before.
			for _, tn := range w.nodes {
				if tn.Ready() {
					t.Errorf("%s votes, and was told of longer leases", tn.cfg.Name)
				}
			}
			end(t, w, k)
		})
	})
	// Nobody tells the nodes if all restart together. A client asks every third of its
	// lease. If that is within their wait it learns of the other configuration, by
	// which its lock is lost, before anybody else has it; a longer lease needs
	// PreviousMaxLease.
	t.Run("a client asks in time", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			w, k, _ := begin(t, 3, 2*lowered)
			w.each((*testNode).stop)
			for _, tn := range w.nodes {
				tn.cfg.MaxLease = lowered
			}
			w.each((*testNode).start)
			lost, cause := died(t, k.Context())
			mustLock(t, w.client("b"), "x")
			if cause != qlock.ErrLost || !lost.Before(time.Now()) {
				t.Errorf("lost at %v by %v, and b has it at %v", lost, cause, time.Now())
			}
		})
	})
}

// A client can delay the first vote of a node that may have forgotten, by saying
// that it holds a lock with a long lease; by an hour at most, and only before that
// vote.
func TestClaimedLeaseIsBelievedForAnHour(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		tn, liar := w.nodes[0], w.connect()
		lie := func(seq uint64) {
			t.Helper()
			r := wire.Request{
				Verb: wire.Acquire, Client: "liar", Resource: "x", Digest: "another",
				Claim: wire.ClaimID{Instance: uuid.New(), Seq: seq}, Mode: quorum.Exclusive,
				At: time.Now().UnixMicro(), TTL: wire.MaxLease, SentAt: seq, Held: true, MinFence: 1,
			}
			if err := liar.PublishRequest("lock.default.node.acquire.liar.x", liar.NewInbox(), wire.AppendRequest(nil, &r)); err != nil {
				t.Fatal(err)
			}
			settle()
		}
		lie(1)
		if !tn.Ready() {
			t.Errorf("a word about leases made a node %s that forgot nothing", tn.Stats().State)
		}
		tn.crash()
		start := time.Now()
		tn.start()
		lie(2)
		waitsQuarantine(t, tn, start, time.Hour/10+time.Hour/30+time.Hour+time.Hour/50)
		if len(w.log.find("WARN", "client liar has, or allows, leases of 1h0m0s")) != 1 {
			t.Errorf("nothing of that in the log: %q", w.log.find("WARN"))
		}
	})
}
