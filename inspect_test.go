package qlock_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/qlock/qlock"
)

func inspect(t *testing.T, l *qlock.Locker, name string) *qlock.LockInfo {
	t.Helper()
	info, err := l.Inspect(t.Context(), name)
	if err != nil {
		t.Fatalf("Inspect(%q): %v", name, err)
	}
	return info
}

func clients(claims []qlock.ClaimInfo) string {
	var names []string
	for _, c := range claims {
		names = append(names, c.Client)
	}
	return strings.Join(names, " ")
}

// One lock: who holds it, with what token, and who waits in which order.
func TestInspect(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		ops := w.client("ops")
		if info := inspect(t, ops, "price list"); info.Name != "price list" || info.Holding+info.Waiting != 0 || len(info.Answered) != 3 {
			t.Errorf("of a free lock: %+v", info)
		}
		k := mustLock(t, w.client("a", qlock.WithNote("host7:\tnightly")), "price list")
		time.Sleep(time.Second)
		waitFor(t.Context(), w.client("b").Lock, "price list")
		settle()
		time.Sleep(time.Second)
		c := w.client("c")
		reader := waitFor(qlock.ContextWithNote(t.Context(), "only reads"), c.RLock, "price list")
		settle()

		info := inspect(t, ops, "price list")
		if clients(info.Holders) != "a" || clients(info.Queue) != "b c" || info.Holding != 1 || info.Waiting != 2 || len(info.Silent) != 0 {
			t.Fatalf("%+v", info)
		}
		h := info.Holders[0]
		if !h.Held || h.Shared || h.Token != k.Token() || h.Note != `host7:\tnightly` || h.For != 2*time.Second || h.Lease != testLease-2*time.Second ||
			!slices.Equal(h.Voted, []string{"n1", "n2", "n3"}) || len(h.Queued) != 0 {
			t.Errorf("holder: %+v", h)
		}
		if q := info.Queue[1]; q.Held || !q.Shared || q.Token != 0 || q.Lease != testLease || q.Note != "only reads" || len(q.Queued) != 3 || q.Asked.Before(info.Queue[0].Asked) {
			t.Errorf("reader: %+v", q)
		}
		mustUnlock(t, k)
		settle()
		if info := inspect(t, ops, "price list"); clients(info.Holders) != "b" || clients(info.Queue) != "c" {
			t.Errorf("after the unlock: %+v", info)
		}
		if reader.over() {
			t.Error("the reader passed the writer")
		}
	})
}

// All locks, in pages, by pattern; and the lists end though locks come and go.
func TestLocks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, ops := w.client("a"), w.client("ops")
		const many = 1000
		want := []string{}
		for i := range many {
			name := fmt.Sprintf("orders.%04d", i)
			mustLock(t, a, name)
			want = append(want, name)
		}
		mustRLock(t, a, "Größe.1")
		time.Sleep(time.Millisecond) // who comes later is younger
		mustRLock(t, w.client("b"), "Größe.1")
		names := func(pattern string) []string {
			all, err := ops.Locks(t.Context(), pattern)
			if err != nil {
				t.Fatal(err)
			}
			got := []string{}
			for _, info := range all {
				got = append(got, info.Name)
				if info.Holding == 0 || len(info.Holders[0].Voted) != 3 || info.Waiting != 0 {
					t.Errorf("%+v", info)
				}
			}
			return got
		}
		for pattern, want := range map[string][]string{
			"":                  append([]string{"Größe.1"}, want...),
			"orders.*":          want,
			"orders.0042":       {"orders.0042"},
			"*.1":               {"Größe.1"},
			"Gr%C3%B6%C3%9Fe.>": {"Größe.1"},
			"orders":            {},
			"orders.>.x.>":      nil,
		} {
			if want == nil {
				if _, err := ops.Locks(t.Context(), pattern); !errors.Is(err, qlock.ErrInvalidName) {
					t.Errorf("%s: %v", pattern, err)
				}
				continue
			}
			if got := names(pattern); !slices.Equal(got, want) {
				t.Errorf("%q lists %d locks, want %d", pattern, len(got), len(want))
			}
		}
		all, err := ops.Locks(t.Context(), "*.1")
		if err != nil || len(all) != 1 || all[0].Holding != 2 || clients(all[0].Holders) != "a b" {
			t.Errorf("readers: %+v, %v", all, err)
		}
	})
}

// A node that does not answer is named, and a quorum is enough; less is not.
func TestInspectWithoutNodes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		ops := w.client("ops")
		mustLock(t, ops, "x")
		w.nodes[2].stop()
		info := inspect(t, ops, "x")
		if !slices.Equal(info.Answered, []string{"n1", "n2"}) || !slices.Equal(info.Silent, []string{"n3"}) ||
			info.Holding != 1 || !slices.Equal(info.Holders[0].Voted, []string{"n1", "n2"}) {
			t.Errorf("%+v", info)
		}
		// A deadline that is near does not make less of what was heard.
		if info, err := ops.Inspect(timeout(t, 10*time.Millisecond), "x"); err != nil || info.Holding != 1 || len(info.Silent) != 1 {
			t.Errorf("%+v, %v", info, err)
		}
		w.nodes[1].stop()
		start := time.Now()
		_, err := ops.Locks(t.Context(), "")
		wantIs(t, err, qlock.ErrNoQuorum, context.DeadlineExceeded)
		wantText(t, err, "1 of 3", "n2 n3")
		if d := time.Since(start); d != 5*time.Second {
			t.Errorf("it took %v", d)
		}
		w.nodes[1].start()
	})
}

// Who holds is told at once, and the next one has the lock.
func TestEvict(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		o := w.observe()
		a, ops := w.client("a"), w.client("ops")
		k := mustLock(t, a, "x")
		next := waitFor(t.Context(), w.client("b").Lock, "x")
		settle()
		info := inspect(t, ops, "x")
		start := time.Now()
		if err := ops.Evict(t.Context(), "x", info.Holders[0], "its disk is full"); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > 10*time.Millisecond {
			t.Errorf("it took %v", d)
		}
		settle()
		cause := context.Cause(k.Context())
		wantIs(t, cause, qlock.ErrLost, qlock.ErrEvicted)
		wantText(t, cause, "by ops", "its disk is full")
		wantIs(t, k.Unlock(t.Context()), qlock.ErrLost, qlock.ErrEvicted)
		if b := next.held(t); b.Token() <= k.Token() {
			t.Errorf("token %d after %d", b.Token(), k.Token())
		}
		if len(w.log.find("it was evicted", "ops", "disk")) == 0 {
			t.Error("the log does not say it")
		}
		var e qlock.Event
		if m := o.messages("lock.default.event.lost.a"); len(m) != 1 || json.Unmarshal(m[0].Data, &e) != nil || e.EvictedBy != "ops" {
			t.Errorf("events: %v, %+v", m, e)
		}
		// It may lock again: who may lock at all is a matter of permissions.
		again := waitFor(t.Context(), a.Lock, "x")
		settle()
		if err := ops.Evict(t.Context(), "x", inspect(t, ops, "x").Holders[0], ""); err != nil {
			t.Fatal(err)
		}
		mustUnlock(t, again.held(t))
		w.noClaims()
	})
}

// Who waits can be evicted too, and whoever waits behind it does not notice.
func TestEvictWhoWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		ops := w.client("ops")
		k := mustLock(t, w.client("a"), "x")
		b := waitFor(t.Context(), w.client("b").Lock, "x")
		time.Sleep(time.Millisecond) // who comes later is younger
		c := waitFor(t.Context(), w.client("c").Lock, "x")
		settle()
		if err := ops.Evict(t.Context(), "x", inspect(t, ops, "x").Queue[0], "no\x1b[2J"); err != nil {
			t.Fatal(err)
		}
		settle()
		if !b.over() || c.over() {
			t.Fatalf("b is over: %v, c is over: %v", b.over(), c.over())
		}
		wantIs(t, b.err, qlock.ErrEvicted)
		wantText(t, b.err, `lock "x"`, "by ops", `no\x1b[2J`)
		mustUnlock(t, k)
		mustUnlock(t, c.held(t))
		w.noClaims()
	})
}

// A holder that is cut off keeps the lock until its lease is over, as it believes
// that it has it; but its refreshes count no more, should it come back.
func TestEvictWhoIsCutOff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		ops := w.client("ops")
		a, link := w.clientOn("a")
		k := mustLock(t, a, "x")
		link.cut()
		next := waitFor(t.Context(), w.client("b").Lock, "x")
		settle()
		start := time.Now()
		ctx := timeout(t, time.Second)
		err := ops.Evict(ctx, "x", inspect(t, ops, "x").Holders[0], "")
		wantIs(t, err, qlock.ErrHeld, context.DeadlineExceeded)
		wantText(t, err, "a was told", "has not done so yet, according to n")
		if k.Context().Err() != nil || next.over() {
			t.Fatal("the lock was taken away from one who does not know")
		}
		if err := ops.Evict(t.Context(), "x", inspect(t, ops, "x").Holders[0], ""); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d < testLease-time.Second || d > testLease+time.Second {
			t.Errorf("it took %v, the lease is %v", d, testLease)
		}
		wantIs(t, context.Cause(k.Context()), qlock.ErrLost)
		mustUnlock(t, next.held(t))
	})
}

// A node that was stopped cleanly still knows whom it is to extend no more.
func TestEvictionOutlivesARestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		ops := w.client("ops")
		a, link := w.clientOn("a")
		k := mustLock(t, a, "x")
		link.cut()
		_ = ops.Evict(timeout(t, time.Second), "x", inspect(t, ops, "x").Holders[0], "")
		w.nodes[0].stop()
		link.mend()
		time.Sleep(time.Second)
		if k.Context().Err() != nil {
			t.Fatal("nobody can have told it")
		}
		w.nodes[0].start()
		time.Sleep(testLease / 2) // a refresh
		wantIs(t, context.Cause(k.Context()), qlock.ErrEvicted)
		w.noClaims()
	})
}

// seenAsHeld looks from outside at a lock that is held: it is shown as held, with its token,
// or at least as one that may be. It reports which.
func seenAsHeld(t *testing.T, ops *qlock.Locker, k *qlock.Lock) bool {
	t.Helper()
	info := inspect(t, ops, k.Name())
	all, err := ops.Locks(t.Context(), "")
	if k.Context().Err() != nil {
		t.Fatal("the lock is lost: this tests nothing")
	}
	// Locks, which qlock ls shows, says the same as Inspect, which info and unlock go by.
	// Where a node is silent they are of different moments.
	if len(info.Silent) == 0 && (err != nil || len(all) != 1 || len(all[0].Holders) != len(info.Holders) || len(info.Holders) > 0 && all[0].Holders[0].Token != info.Holders[0].Token) {
		t.Errorf("%v, Locks has %+v, Inspect %+v", err, all, info)
	}
	if clients(info.Holders) == "a" && info.Holding == 1 && info.Waiting == 0 {
		if h := info.Holders[0]; !h.Held || h.MayHold || h.Token != k.Token() {
			t.Errorf("%+v, want token %d", h, k.Token())
		}
		return true
	}
	if clients(info.Queue) != "a" || info.Queue[0].Held || !info.Queue[0].MayHold || len(info.Silent)+len(info.Recovering) == 0 {
		t.Errorf("it is held, and seen as %+v", info)
	}
	return false
}

// Nodes that lose their state, one after the other, give the holder's claim votes that do
// not agree, or none for a while. It is held all the same, is seen so, and can be evicted.
func TestHeldWhileNodesComeAndGo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, ops := w.client("a"), w.client("ops")
		k := mustLock(t, a, "x")
		held, may := 0, 0
		for _, tn := range slices.Concat(w.nodes, w.nodes[:2]) {
			tn.crash()
			tn.start()
			for range 80 {
				time.Sleep(quarantine / 60)
				if seenAsHeld(t, ops, k) {
					held++
				} else {
					may++
				}
			}
		}
		if may > 0 {
			t.Errorf("seen as held %d times, and %d times as what may be held, though its votes are all at nodes that answer", held, may)
		}
		// Two at once: it stands by the votes from before for a while.
		time.Sleep(testLease)
		for _, tn := range w.nodes[:2] {
			tn.crash()
			tn.start()
		}
		seenAsHeld(t, ops, k)
		time.Sleep(testLease / 2)
		if !seenAsHeld(t, ops, k) {
			t.Fatal("its client has said that it holds, and it is not seen")
		}
		if err := ops.Evict(t.Context(), "x", inspect(t, ops, "x").Holders[0], ""); err != nil {
			t.Fatal(err)
		}
		wantIs(t, context.Cause(k.Context()), qlock.ErrEvicted)
		w.noClaims()
	})
}

// Of the two nodes whose votes agree one goes away: the holder has two votes that do not.
func TestHeldByVotesThatDoNotAgree(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, ops := w.client("a"), w.client("ops")
		w.nodes[0].crash()
		w.nodes[0].start()
		k := mustLock(t, a, "x") // with the votes of n2 and n3
		time.Sleep(quarantine + testLease)
		if !seenAsHeld(t, ops, k) {
			t.Error("held by three votes, and not seen so")
		}
		w.nodes[1].stop()
		for range 3 * testLease / time.Second {
			seenAsHeld(t, ops, k)
			time.Sleep(time.Second)
		}
		if !seenAsHeld(t, ops, k) {
			t.Fatal("held by two votes, and not seen so after three leases")
		}
		info := inspect(t, ops, "x")
		if err := ops.Evict(t.Context(), "x", info.Holders[0], ""); err != nil {
			t.Fatal(err)
		}
		wantIs(t, context.Cause(k.Context()), qlock.ErrEvicted)
		w.nodes[1].start()
		w.noClaims()
	})
}

// A node that came back without its state does not know the claim, and its word does not
// count: its vote from before may stand (N10).
func TestEvictNeedsNodesThatVote(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		ops := w.client("ops")
		a, link := w.clientOn("a")
		k := mustLock(t, a, "x")
		claim := inspect(t, ops, "x").Holders[0]
		link.cut()
		for _, tn := range w.nodes[:2] {
			tn.crash()
			tn.start()
		}
		evict := func(d time.Duration) (time.Duration, error) {
			start := time.Now()
			err := ops.Evict(timeout(t, d), "x", claim, "")
			return time.Since(start), err
		}
		_, err := evict(time.Second)
		wantIs(t, err, qlock.ErrHeld, context.DeadlineExceeded)
		wantText(t, err, "according to n3")
		if k.Context().Err() != nil {
			t.Fatal("it is not held: this tests nothing")
		}
		w.nodes[2].crash()
		w.nodes[2].start()
		_, err = evict(time.Second)
		wantIs(t, err, qlock.ErrNoQuorum, context.DeadlineExceeded)
		wantText(t, err, "unknown whether a has released", "n1 n2 n3 may have forgotten the claim")
		if k.Context().Err() != nil {
			t.Fatal("it is not held: this tests nothing")
		}
		w.nodes[2].stop()
		_, err = evict(3 * time.Second)
		wantIs(t, err, qlock.ErrNoQuorum, context.DeadlineExceeded)
		wantText(t, err, "n1 n2 may have forgotten", "no answer from n3")
		d, err := evict(time.Minute)
		if err != nil || d < quarantine-10*time.Second || d > quarantine {
			t.Errorf("%v after %v, want when a quorum votes again", err, d)
		}
		if k.Context().Err() == nil {
			t.Error("evicted, and held")
		}
		w.nodes[2].start()
	})
}

func TestBadInspection(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		ops := w.client("ops")
		k := mustLock(t, ops, "x")
		good := inspect(t, ops, "x").Holders[0]
		if _, err := ops.Inspect(t.Context(), ""); !errors.Is(err, qlock.ErrInvalidName) {
			t.Error(err)
		}
		for _, change := range []func(*qlock.ClaimInfo){
			func(c *qlock.ClaimInfo) { c.ID = "" },
			func(c *qlock.ClaimInfo) { c.ID += "0000000000000000000" },
			func(c *qlock.ClaimInfo) { c.ID = strings.ToUpper(c.ID) },
			func(c *qlock.ClaimInfo) { c.Client = "a.b" },
		} {
			bad := good
			change(&bad)
			if !reflect.DeepEqual(bad, good) && ops.Evict(t.Context(), "x", bad, "") == nil {
				t.Errorf("no error for %+v", bad)
			}
		}
		// Of another lock, or of nobody: it is over already.
		if err := ops.Evict(t.Context(), "y", good, ""); err != nil {
			t.Error(err)
		}
		mustUnlock(t, k)
		closed := w.client("closed")
		if err := closed.Close(); err != nil {
			t.Fatal(err)
		}
		_, err := closed.Locks(t.Context(), "")
		wantIs(t, err, qlock.ErrClosed)
	})
}

// After Flush the nodes have heard the release: a try elsewhere never fails for a lock
// that was given back.
func TestFlush(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		for range 200 {
			k := mustLock(t, a, "x")
			mustUnlock(t, k)
			if err := a.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			try, err := b.TryLock(t.Context(), "x")
			if err != nil {
				t.Fatal(err)
			}
			mustUnlock(t, try)
			if err := b.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		w.nodes[0].stop()
		if err := a.Flush(t.Context()); err != nil {
			t.Errorf("with two of three nodes: %v", err)
		}
		w.nodes[1].stop()
		err := a.Flush(timeout(t, time.Second))
		wantIs(t, err, qlock.ErrNoQuorum, context.DeadlineExceeded)
		wantText(t, err, "1 of 3 answered", "n1 n2")
		w.nodes[1].start()
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		wantIs(t, a.Flush(t.Context()), qlock.ErrClosed)
	})
}

// The token that lists show of a kept claim is its holder's: not the one that the client has set
// aside for the next holder. When the claim is passed on, the nodes hear no message, and lists show
// a former holder's token until the client next says that it holds the claim. It is never above
// that of the holder, so nobody who goes by it refuses what the holder writes.
func TestListedTokenOfAKeptClaim(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, watch := w.client("a"), w.client("watch")
		ctx := timeout(t, 10*time.Minute)
		listed := func() qlock.ClaimInfo {
			t.Helper()
			info, err := watch.Inspect(ctx, "x")
			if err != nil || len(info.Holders) != 1 {
				t.Fatalf("%+v, %v", info, err)
			}
			return info.Holders[0]
		}
		first, err := a.Lock(ctx, "x")
		if err != nil {
			t.Fatal(err)
		}
		if got := listed(); got.Token != first.Token() || got.Kept {
			t.Errorf("before another waits: %+v, the holder has %d", got, first.Token())
		}
		next := make(chan *qlock.Lock, 100)
		for range 100 { // they use up what is set aside, so that the client asks for more
			go func() {
				lock, err := a.Lock(ctx, "x")
				if err != nil {
					t.Error(err)
				}
				next <- lock
			}()
		}
		settle()
		if got := listed(); got.Token != first.Token() || !got.Kept {
			t.Errorf("while others wait: %+v, the holder has %d", got, first.Token())
		}
		holder := first
		check := func(when string, exact bool) {
			t.Helper()
			if got := listed(); got.Token > holder.Token() || exact && got.Token != holder.Token() {
				t.Errorf("%s: token %d, the holder has %d", when, got.Token, holder.Token())
			}
		}
		for i := range 100 {
			if err := holder.Unlock(ctx); err != nil {
				t.Fatal(err)
			}
			if holder = <-next; holder == nil {
				t.FailNow()
			}
			settle()
			check(fmt.Sprintf("after it was passed on %d times", i+1), false)
			if i == 70 {
				// Two nodes forget the claim one after the other, and it is acquired again there.
				for _, n := range w.nodes[:2] {
					n.crash()
					time.Sleep(2 * time.Second)
					n.start()
					time.Sleep(2 * runOut)
				}
				check("after two nodes have forgotten it", true)
			}
		}
		if err := holder.Unlock(ctx); err != nil {
			t.Fatal(err)
		}
	})
}
