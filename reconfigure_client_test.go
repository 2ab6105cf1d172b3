package qlock_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/epoch"
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
	if err := w.change(epoch.Wish{Goal: epoch.Enable, CID: uuid.New()}); err != nil {
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
				if err := w.change(epoch.Wish{Goal: epoch.Change, Nodes: tt.to}); err != nil {
					t.Fatal(err)
				}
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
