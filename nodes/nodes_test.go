package nodes_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/testworld"
	"github.com/qlock/qlock/nodes"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// join starts a node that waits to be added.
func join(t *testing.T, w *testworld.World, name string) *qlock.Node {
	t.Helper()
	n, err := qlock.StartNode(testworld.Within(t, 5*time.Second), w.Connect().Conn, qlock.NodeConfig{Name: name, Join: true, StateDir: t.TempDir(), NoService: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// said collects what a function of the package tells.
func said(to *[]string) nodes.Option {
	return nodes.Progress(func(s string) { *to = append(*to, s) })
}

// wantSaid checks that texts were said in this order, perhaps with others in between.
func wantSaid(t *testing.T, got []string, want ...string) {
	t.Helper()
	rest := got
	for _, text := range want {
		i := slices.IndexFunc(rest, func(s string) bool { return strings.Contains(s, text) })
		if i < 0 {
			t.Errorf("nothing says %q in its place: %q", text, got)
			return
		}
		rest = rest[i+1:]
	}
}

// wantNodes checks the list that the nodes have.
func wantNodes(t *testing.T, w *testworld.World, epoch uint64, want string) {
	t.Helper()
	synctest.Wait()
	m, err := qlock.QueryMembers(testworld.Within(t, 5*time.Second), w.Connect().Conn, qlock.WithName("ops"))
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(m.Config.Nodes, " ")
	if m.Change != nil {
		got += " to " + strings.Join(m.Change.Nodes, " ")
	}
	if got != want || m.Config.Epoch != epoch {
		t.Errorf("the list is %q of epoch %d, want %q of %d", got, m.Config.Epoch, want, epoch)
	}
}

// One node replaces another while a lock is held, and it is told who may be stopped.
func TestChange(t *testing.T) {
	testworld.Run(t, func(t *testing.T, w *testworld.World) {
		a, _ := w.Client("a")
		held, err := a.Lock(t.Context(), "held")
		if err != nil {
			t.Fatal(err)
		}
		n4 := join(t, w, "n4")
		var got []string
		ctx, began := testworld.Within(t, 5*time.Minute), time.Now()
		if err := nodes.Change(ctx, w.Connect().Conn, []string{"n4", "n1", "n2"}, said(&got), nil); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 102*qlock.DefaultMaxLease/100 || took > 110*qlock.DefaultMaxLease/100 {
			t.Errorf("it took %v, and the longest lease is %v", took, qlock.DefaultMaxLease)
		}
		wantSaid(t, got, "epoch 1 is decided: nodes [n1 n2 n3]", "epoch 2 is decided: nodes [n1 n2 n3] and [n1 n2 n4]",
			"waiting for 31s: locks that were taken before", "epoch 3 is decided: nodes [n1 n2 n4]", "done: [n3] may be stopped")
		wantNodes(t, w, 3, "n1 n2 n4")
		if s := w.Nodes[2].Stats(); s.State != qlock.NodeRetired || s.Epoch != 3 || s.Changing != 0 {
			t.Errorf("n3: %+v", s)
		}
		if s := n4.Stats(); s.State != qlock.NodeVoting || s.Epoch != 3 || s.LongestLease != qlock.DefaultMaxLease {
			t.Errorf("n4: %+v", s)
		}
		if err := held.Unlock(t.Context()); err != nil {
			t.Error("the lock is lost:", err)
		}
	})
}

// Where there is nothing to do, that is no error, and it is said: also where the list was never
// changed.
func TestNothingToDo(t *testing.T) {
	testworld.Run(t, func(t *testing.T, w *testworld.World) {
		nc, ctx := w.Connect().Conn, testworld.Within(t, time.Minute)
		for _, enabled := range []bool{false, true} {
			var got []string
			if err := nodes.Finish(ctx, nc, said(&got)); err != nil {
				t.Error("Finish:", err)
			}
			if err := nodes.RollBack(ctx, nc, said(&got)); err != nil {
				t.Error("RollBack:", err)
			}
			const want = "no change of the list of nodes is under way: nothing to do"
			wantSaid(t, got, want, want)
			if enabled {
				break
			}
			wantNodes(t, w, 0, "n1 n2 n3")
			if err := nodes.Enable(ctx, nc); err != nil {
				t.Fatal(err)
			}
		}
		var got []string
		if err := nodes.Enable(ctx, nc, said(&got)); err != nil {
			t.Error("Enable:", err)
		}
		if err := nodes.Change(ctx, nc, []string{"n3", "n1", "n2"}, said(&got)); err != nil {
			t.Error("Change:", err)
		}
		wantSaid(t, got, "the nodes have ids already", "the nodes are [n1 n2 n3] already")
		wantNodes(t, w, 1, "n1 n2 n3")
	})
}

// While a change is under way, an error of a lock tells of both lists. If the new nodes are gone, it
// can be rolled back.
func TestJoint(t *testing.T) {
	testworld.Run(t, func(t *testing.T, w *testworld.World) {
		nc, ctx := w.Connect().Conn, testworld.Within(t, 10*time.Minute)
		a, _ := w.Client("a")
		n4, n5 := join(t, w, "n4"), join(t, w, "n5")
		if err := nodes.Change(ctx, nc, []string{"n3", "n4", "n5"}, nodes.StayJoint()); err != nil {
			t.Fatal(err)
		}
		wantNodes(t, w, 2, "n1 n2 n3 to n3 n4 n5")
		time.Sleep(time.Second)
		if s := n4.Stats(); s.State != qlock.NodeVoting || s.Changing < time.Second || s.Changing > 2*time.Second || s.Epoch != 2 {
			t.Errorf("n4: %+v", s)
		}
		other := nodes.Change(ctx, nc, []string{"n1"})
		testworld.WantText(t, other, "a change to [n3 n4 n5] is under way: finish it or roll it back first")
		for _, n := range []*qlock.Node{n4, n5} {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		}
		_, err := a.Lock(testworld.Within(t, 2*time.Second), "r")
		testworld.WantError(t, err, qlock.ErrNoQuorum, "the list of nodes is being changed: 3 of 3 nodes of the old list (n1 n2 n3) voted, 2 are needed; 1 of 3 nodes of the new list (n3 n4 n5) voted, 2 are needed")
		var e *qlock.LockError
		if !errors.As(err, &e) || len(e.Lists) != 2 || e.Lists[0].Votes != 3 || e.Lists[1].Votes != 1 || e.Lists[1].Need != 2 {
			t.Errorf("%+v", e)
		}
		_, err = a.Locks(testworld.Within(t, 2*time.Second), "")
		testworld.WantError(t, err, qlock.ErrNoQuorum, "3 of 3 nodes of the old list answered, 2 are needed; 1 of 3 of the new list, 2 are needed")

		err = nodes.Finish(testworld.Within(t, time.Minute), nc)
		testworld.WantError(t, err, context.DeadlineExceeded, "waiting for the new nodes [n4 n5] to vote")
		var got []string
		if err := nodes.RollBack(ctx, nc, said(&got)); err != nil {
			t.Fatal(err)
		}
		wantSaid(t, got, "epoch 3 is decided: nodes [n1 n2 n3]", "done: [n4 n5] may be stopped")
		lock, err := a.Lock(testworld.Within(t, 5*time.Second), "r")
		if err != nil {
			t.Fatal(err)
		}
		if err := lock.Unlock(ctx); err != nil {
			t.Error(err)
		}
	})
}

// A node that lost its state directory is another node: it is changed out of the list, and then in.
func TestLostDirectory(t *testing.T) {
	testworld.Run(t, func(t *testing.T, w *testworld.World) {
		nc, ctx := w.Connect().Conn, testworld.Within(t, 10*time.Minute)
		if err := nodes.Enable(ctx, nc); err != nil {
			t.Fatal(err)
		}
		if err := w.Nodes[2].Close(); err != nil {
			t.Fatal(err)
		}
		n3 := join(t, w, "n3")
		time.Sleep(time.Second)
		if s := n3.Stats().State; s != qlock.NodeJoining {
			t.Errorf("it is %s", s)
		}
		all := []string{"n1", "n2", "n3"}
		testworld.WantText(t, nodes.Change(ctx, nc, all), "node n3 has lost its state directory", "change it out of the list and then in again")
		testworld.WantText(t, nodes.Change(ctx, nc, append(all, "n4")), "node n3 has lost its state directory")
		// It answers as a node that waits to be added, so that the change does not wait for the one of before.
		for _, list := range [][]string{{"n1", "n2"}, all} {
			if err := nodes.Change(ctx, nc, list); err != nil {
				t.Fatal(err)
			}
		}
		wantNodes(t, w, 5, "n1 n2 n3")
		if s := n3.Stats().State; s != qlock.NodeVoting {
			t.Errorf("in the list again, it is %s", s)
		}
	})
}

// A command that was interrupted is carried on by the same call, by Finish or by RollBack.
func TestInterrupted(t *testing.T) {
	for _, at := range []string{"epoch 1", "epoch 2", "waiting for 15s"} {
		for _, then := range []string{"change", "finish", "roll back"} {
			if at == "epoch 1" && then != "change" {
				continue // there is no change to end
			}
			t.Run(at+", "+then, func(t *testing.T) {
				testworld.Run(t, func(t *testing.T, w *testworld.World) {
					nc := w.Connect().Conn
					join(t, w, "n4")
					to := []string{"n2", "n3", "n4"}
					ctx, stop := context.WithCancel(t.Context())
					defer stop()
					err := nodes.Change(ctx, nc, to, nodes.Progress(func(s string) {
						if strings.HasPrefix(s, at) {
							stop()
						}
					}))
					testworld.WantError(t, err, context.Canceled, "is not done")
					ctx, want := testworld.Within(t, 5*time.Minute), "n2 n3 n4"
					switch then {
					case "change":
						err = nodes.Change(ctx, nc, to)
					case "finish":
						err = nodes.Finish(ctx, nc, nodes.Majority())
					default:
						err, want = nodes.RollBack(ctx, nc), "n1 n2 n3"
					}
					if err != nil {
						t.Fatal(err)
					}
					wantNodes(t, w, 3, want)
				})
			})
		}
	}
}

// Of two commands at the same time one has its way, and the other says why it has not.
func TestTwoAtOnce(t *testing.T) {
	testworld.Run(t, func(t *testing.T, w *testworld.World) {
		ctx := testworld.Within(t, 10*time.Minute)
		if err := nodes.Enable(ctx, w.Connect().Conn); err != nil {
			t.Fatal(err)
		}
		lists := [][]string{{"n1", "n2"}, {"n2", "n3"}}
		errs := make([]error, len(lists))
		done := make(chan int)
		for i, to := range lists {
			nc := w.Connect().Conn
			go func() {
				errs[i] = nodes.Change(ctx, nc, to)
				done <- i
			}()
		}
		<-done
		<-done
		winner := slices.Index(errs, nil)
		if winner < 0 || errs[1-winner] == nil {
			t.Fatalf("errors %v", errs)
		}
		testworld.WantText(t, errs[1-winner], fmt.Sprintf("a change to %v is under way", lists[winner]))
		// Whether the loser's proposal was decided first, and rolled back, is a matter of luck.
		m, err := qlock.QueryMembers(ctx, w.Connect().Conn, qlock.WithName("ops"))
		if err != nil || m.Change != nil || !slices.Equal(m.Config.Nodes, lists[winner]) {
			t.Errorf("%v, %+v", err, m)
		}
	})
}

// Input that cannot be is refused before anything is asked.
func TestInvalid(t *testing.T) {
	testworld.Run(t, func(t *testing.T, w *testworld.World) {
		nc := w.Connect().Conn
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // so that nothing can be asked
		many := make([]string, 65)
		for i := range many {
			many[i] = fmt.Sprint("n", i)
		}
		list := []string{"n1"}
		for _, tt := range []struct {
			want string
			err  error
		}{
			{"Finish: the connection is nil", nodes.Finish(ctx, nil)},
			{"the list of nodes is empty", nodes.Change(ctx, nc, nil)},
			{"the list has a name twice: n1", nodes.Change(ctx, nc, []string{"n1", "n2", "n1"})},
			{"65 nodes, at most 64", nodes.Change(ctx, nc, many)},
			{`"n.1"`, nodes.Change(ctx, nc, []string{"n.1"})},
			{`"a b"`, nodes.Change(ctx, nc, list, nodes.Cluster("a b"))},
			{`"*"`, nodes.Enable(ctx, nc, nodes.Name("*"))},
			{"MaxLease 1ns", nodes.Change(ctx, nc, list, nodes.MaxLease(1))},
			{"MaxSkew 0s", nodes.Change(ctx, nc, list, nodes.MaxSkew(0))},
		} {
			if errors.Is(tt.err, context.Canceled) {
				t.Errorf("%v, want %s", tt.err, tt.want)
			}
			testworld.WantText(t, tt.err, tt.want)
		}
	})
}
