package qlock_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/nodes"
)

// add starts a node that is not in the list of the others yet.
func (w *world) add(name string) *testNode {
	w.t.Helper()
	tn := &testNode{world: w, link: w.connect()}
	tn.cfg = w.nodes[0].cfg
	tn.cfg.Name, tn.cfg.StateDir = name, filepath.Join(w.t.TempDir(), name)
	tn.cfg.Nodes, tn.cfg.Join = nil, true
	w.nodes = append(w.nodes, tn)
	w.t.Cleanup(func() {
		if tn.Node != nil {
			tn.stop()
		}
	})
	tn.start()
	return tn
}

func (w *world) enable() {
	w.t.Helper()
	if err := nodes.Enable(timeout(w.t, time.Minute), w.connect().Conn); err != nil {
		w.t.Fatal(err)
	}
}

// Locks outlive the change from epoch 0 to another list, and waiters keep their places. Tokens
// rise throughout, and no lock of before is missing when the old nodes are gone (E15 to E18).
func TestLocksOutliveAChange(t *testing.T) {
	for _, tt := range []struct {
		name string
		from int
		to   []string
		stop []int // nodes that are stopped after it
	}{
		{"replace one", 3, []string{"n2", "n3", "n4"}, []int{0}},
		{"replace all", 1, []string{"n2"}, []int{0}},
		{"grow", 3, []string{"n1", "n2", "n3", "n4", "n5"}, []int{1, 4}},
		{"shrink", 3, []string{"n2"}, []int{0, 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, tt.from)
				a, b := w.client("a"), w.client("b")
				ctx := timeout(t, 10*time.Minute)
				held, err := a.Lock(ctx, "held")
				if err != nil {
					t.Fatal(err)
				}
				reads, err := a.RLock(ctx, "reads")
				if err != nil {
					t.Fatal(err)
				}
				passed, err := a.Lock(ctx, "passed")
				if err != nil {
					t.Fatal(err)
				}
				next, last := make(chan *qlock.Lock, 1), make(chan *qlock.Lock, 1)
				wait := func(l *qlock.Locker, to chan *qlock.Lock) {
					lock, err := l.Lock(ctx, "passed")
					if err != nil {
						t.Error(err)
					}
					to <- lock
				}
				go wait(b, next)
				time.Sleep(time.Second)
				go wait(w.client("c"), last)
				time.Sleep(time.Second)

				w.enable()
				time.Sleep(time.Second)
				if err := held.Context().Err(); err != nil {
					t.Fatal("the lock is lost at the first record:", context.Cause(held.Context()))
				}
				for _, n := range tt.to {
					if int(n[1]-'0') > tt.from {
						w.add(n)
					}
				}
				var said []string
				if err := nodes.Change(ctx, w.connect().Conn, tt.to, nodes.Progress(func(s string) { said = append(said, s) })); err != nil {
					t.Fatal(err)
				}
				wantText(t, errors.New(strings.Join(said, "\n")), "epoch 2 is decided", "waiting for", "epoch 3 is decided: nodes "+fmt.Sprint(tt.to))
				time.Sleep(time.Second)
				for _, i := range tt.stop {
					w.nodes[i].stop()
				}
				time.Sleep(2 * maxLease)

				for _, l := range []*qlock.Lock{held, reads, passed} {
					if err := l.Context().Err(); err != nil {
						t.Log(w.log.find("INFO"), w.log.find("WARN"), w.log.find("ERROR"))
						t.Fatalf("%s is lost: %v", l.Name(), context.Cause(l.Context()))
					}
				}
				if _, err := b.TryLock(ctx, "held"); err == nil {
					t.Error("another client gets the lock that is held")
				}
				if _, err := b.TryLock(ctx, "reads"); err == nil {
					t.Error("a writer gets the lock that a reader holds")
				}
				token := passed.Token()
				for _, c := range []chan *qlock.Lock{next, last} { // in the order in which they came
					select {
					case <-next:
						t.Fatal("a waiter gets the lock that is held")
					case <-last:
						t.Fatal("the last waiter gets the lock before its turn")
					default:
					}
					if err := passed.Unlock(ctx); err != nil {
						t.Error(err)
					}
					if passed = <-c; passed == nil || passed.Token() <= token {
						t.Fatalf("the next one has %+v, the token before was %d", passed, token)
					}
					token = passed.Token()
				}
				if got := len(w.log.find("INFO", "the list of nodes has changed; held locks are kept")); got < 3 {
					t.Errorf("nothing of that in the log, %d lines", got)
				}
			})
		})
	}
}

// A change can be left half-way, and ended by anybody in either way. Locks are taken by both
// lists meanwhile.
func TestChangeInSteps(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		ctx := timeout(t, 20*time.Minute)
		nc := w.connect().Conn
		l := w.client("a")
		held, err := l.Lock(ctx, "held")
		if err != nil {
			t.Fatal(err)
		}
		if err := nodes.Enable(ctx, nc); err != nil {
			t.Fatal(err)
		}
		if err := nodes.Enable(ctx, nc); err != nil {
			t.Error("a second time:", err)
		}
		for _, f := range []func(context.Context, *nats.Conn, ...nodes.Option) error{nodes.Finish, nodes.RollBack} {
			if err := f(ctx, nc); err != nil {
				t.Error("without a change:", err)
			}
		}
		if err := nodes.Change(ctx, nc, []string{"n3", "n2", "n1"}); err != nil {
			t.Error("to the list that there is:", err)
		}
		w.add("n4")
		to := []string{"n4", "n1", "n2"}
		if err := nodes.Change(ctx, nc, to, nodes.StayJoint()); err != nil {
			t.Fatal(err)
		}
		wantText(t, nodes.Change(ctx, nc, []string{"n1"}), "qlock: a change to [n1 n2 n4] is under way")

		// Both lists are needed: without n1 and n2 no lock is granted, without one of them it is.
		w.nodes[1].stop()
		other, err := l.Lock(ctx, "other")
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(l.Nodes()); got != "[n1 n2 n3 n4]" {
			t.Errorf("nodes %s", got)
		}
		if err := nodes.RollBack(ctx, nc); err != nil {
			t.Fatal(err)
		}
		w.nodes[1].start()
		time.Sleep(10 * time.Second)
		if got := fmt.Sprint(l.Nodes()); got != "[n1 n2 n3]" {
			t.Errorf("after the way back: nodes %s", got)
		}
		var said []string
		progress := nodes.Progress(func(s string) { said = append(said, s) })
		if err := nodes.Change(ctx, nc, to, nodes.MaxLease(20*time.Second), nodes.MaxSkew(4*time.Second), nodes.StayJoint(), progress); err != nil {
			t.Fatal(err)
		}
		if err := nodes.Finish(ctx, nc, progress); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if got := fmt.Sprint(l.Nodes()); got != "[n1 n2 n4]" {
			t.Errorf("at the end: nodes %s", got)
		}
		for _, lock := range []*qlock.Lock{held, other} {
			if err := lock.Context().Err(); err != nil {
				t.Errorf("%s is lost: %v", lock.Name(), context.Cause(lock.Context()))
			}
		}
		wantText(t, errors.New(strings.Join(said, "\n")), "clients have to follow the last change", "epoch 4 is decided", "locks that were taken before the change have to run out", "epoch 5 is decided")
	})
}

// A Locker tells the longest lease that the cluster allows, and its own lease, as they are after
// each change. It lowers its lease with the first record of a change, and never raises it (E18).
func TestLeaseFollowsTheCluster(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		l, nc, ctx := w.client("a"), w.connect().Conn, timeout(t, 30*time.Minute)
		names := []string{"n1", "n2", "n3"}
		held, err := l.Lock(ctx, "held")
		if err != nil {
			t.Fatal(err)
		}
		want := func(when string, longest, lease time.Duration) {
			t.Helper()
			time.Sleep(10 * time.Second) // in which it refreshes, and hears of the last record
			if l.MaxLease() != longest || l.Lease() != lease {
				t.Errorf("%s: longest lease %v, want %v; lease %v, want %v", when, l.MaxLease(), longest, l.Lease(), lease)
			}
		}
		change := func(d time.Duration, opts ...nodes.Option) {
			t.Helper()
			if err := nodes.Change(ctx, nc, names, append(opts, nodes.MaxLease(d))...); err != nil {
				t.Fatal(err)
			}
		}
		want("at first", maxLease, 10*time.Second)
		change(time.Minute, nodes.StayJoint())
		want("while it is being raised", maxLease, 10*time.Second)
		if err := nodes.Finish(ctx, nc); err != nil {
			t.Fatal(err)
		}
		want("raised", time.Minute, 10*time.Second)
		change(4*time.Second, nodes.StayJoint())
		want("while it is being lowered", 4*time.Second, 4*time.Second)
		if err := nodes.Finish(ctx, nc); err != nil {
			t.Fatal(err)
		}
		want("lowered", 4*time.Second, 4*time.Second)
		change(maxLease)
		want("raised again", maxLease, 4*time.Second)
		if err := held.Context().Err(); err != nil {
			t.Error("the lock is lost:", context.Cause(held.Context()))
		}
		if d := held.Stands(); d > 4*time.Second {
			t.Errorf("the lock stands for %v", d)
		}
	})
}

// A change that cannot come about says why, and ends with its context.
func TestChangeThatCannotBe(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		nc := w.connect().Conn
		short := func() context.Context { return timeout(t, 10*time.Second) }
		wantText(t, nodes.Change(short(), nil, []string{"n1"}), "nodes: Change: the connection is nil")
		for _, names := range [][]string{nil, {"a", "b", "a"}, {"a.b"}, make([]string, 65)} {
			if err := nodes.Change(short(), nc, names); err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("to %v: %v", names, err)
			}
		}
		for _, opt := range []nodes.Option{nodes.Cluster("a.b"), nodes.Name("a b"), nodes.MaxLease(time.Microsecond), nodes.MaxSkew(-1)} {
			if err := nodes.Change(short(), nc, []string{"n1"}, opt, nil); err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Error("an invalid option is taken:", err)
			}
		}
		err := nodes.Change(short(), nc, []string{"n1"}, nodes.Cluster("nobody"))
		wantIs(t, err, qlock.ErrNoQuorum)
		wantIs(t, err, context.DeadlineExceeded)
		wantText(t, err, `the change of cluster "nobody" is not done: no node answered`)

		err = nodes.Change(short(), nc, []string{"n1", "n2", "n9"})
		wantIs(t, err, context.DeadlineExceeded)
		wantText(t, err, "waiting for node n9, which is new: start it so that it joins, or check its name")

		w.nodes[0].stop()
		w.nodes[1].stop()
		err = nodes.Change(short(), nc, []string{"n1", "n3"})
		wantIs(t, err, context.DeadlineExceeded)
		wantText(t, err, "waiting for nodes")
		closed := w.connect().Conn
		closed.Close()
		wantIs(t, nodes.Finish(short(), closed), qlock.ErrClosed)
	})
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1, setup{fresh: true, node: func(_ int, c *qlock.NodeConfig) { c.StateDir = "" }})
		wantText(t, nodes.Enable(timeout(t, time.Minute), w.connect().Conn), "node n1 has no state directory")
	})
}
