package qlock_test

import (
	"context"
	"errors"
	"reflect"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

// A connection that is gone and back within the lease costs nothing: held locks
// stay held, and who waited kept its place (C6).
func TestConnectionCutForLessThanTheLease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		holder, held := w.clientOn("holder")
		first, waiting := w.clientOn("first")
		second := w.client("second")
		k := mustLock(t, holder, "x")
		r := mustRLock(t, holder, "y")
		early := waitFor(t.Context(), first.Lock, "x")
		time.Sleep(time.Millisecond)
		late := waitFor(t.Context(), second.Lock, "x")

		for range 5 {
			held.cut()
			waiting.cut()
			time.Sleep(stands(testLease) - testLease/3 - 2*reconnectWait)
			held.mend()
			waiting.mend()
			time.Sleep(testLease / 3)
			if err := context.Cause(k.Context()); err != nil {
				t.Fatalf("lost: %v", err)
			}
			if err := context.Cause(r.Context()); err != nil {
				t.Fatalf("lost: %v", err)
			}
			if early.over() || late.over() {
				t.Fatalf("two holders: %v, %v", early.err, late.err)
			}
		}
		mustUnlock(t, k)
		if late.over() || !early.over() {
			t.Fatal("who was cut off lost its place in the queue")
		}
		mustUnlock(t, early.held(t))
		mustUnlock(t, late.held(t))
		mustUnlock(t, r)
		w.noClaims()
	})
}

// A holder that is cut off for longer learns of its loss by its own clock, before
// another can have the lock.
func TestConnectionCutForLongerThanTheLease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, nc := w.clientOn("a")
		b := w.client("b")
		k := mustLock(t, a, "x")
		time.Sleep(time.Second)
		next := waitFor(t.Context(), b.Lock, "x")
		nc.cut()
		start := time.Now()
		lost, cause := died(t, k.Context())
		if d := lost.Sub(start); cause != qlock.ErrLost || d > stands(testLease) {
			t.Errorf("cause %v after %v without a connection", cause, d)
		}
		if next.over() {
			t.Errorf("another has the lock at the moment of loss: %v", next.err)
		}
		k2 := next.held(t)
		if d := time.Since(lost); d <= 0 || d > testLease/50+testLease/1000 {
			t.Errorf("the next holder came %v after the loss, want the margin for drift, %v", d, testLease/50)
		}
		if k2.Token() <= k.Token() {
			t.Errorf("token %d after %d", k2.Token(), k.Token())
		}

		// What was published meanwhile comes late, and does no harm.
		nc.mend()
		time.Sleep(3 * testLease)
		if err := context.Cause(k2.Context()); err != nil {
			t.Errorf("the next holder lost the lock: %v", err)
		}
		if err := k.Unlock(t.Context()); err != qlock.ErrLost {
			t.Errorf("Unlock of a lost lock: %v", err)
		}
		again := waitFor(t.Context(), a.Lock, "x")
		mustUnlock(t, k2)
		mustUnlock(t, again.held(t))
		w.noClaims()
	})
}

// A lock is asked for while the connection is down, and granted when it is back,
// whether the connection keeps what is published meanwhile or refuses it.
func TestLockAskedForWithoutConnection(t *testing.T) {
	for _, tt := range []struct {
		name string
		opts []nats.Option
	}{{"with a buffer", nil}, {"without a buffer", []nats.Option{nats.ReconnectBufSize(-1)}}} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, 3)
				nc := w.connect(tt.opts...)
				a := w.locker(nc.Conn, "a")
				held := mustLock(t, a, "held")
				nc.cut()
				time.Sleep(time.Second)
				waiting := waitFor(t.Context(), a.Lock, "x")
				_, err := a.TryLock(timeout(t, time.Second), "y")
				wantIs(t, err, qlock.ErrNoQuorum, context.DeadlineExceeded)
				wantText(t, err, "0 of 3 nodes voted, 2 are needed", "n1 silent, n2 silent, n3 silent")
				mustUnlock(t, held)
				time.Sleep(time.Minute)
				if waiting.over() {
					t.Fatalf("an answer without a connection: %v", waiting.err)
				}
				nc.mend()
				back := time.Now()
				mustUnlock(t, waiting.held(t))
				if d := time.Since(back); d > 2*reconnectWait {
					t.Errorf("granted %v after the connection was back", d)
				}
				mustUnlock(t, mustLock(t, a, "held"))
				time.Sleep(testLease)
				w.noClaims()
			})
		})
	}
}

// A node that is cut off from everybody is like a dead one while it is, and needs
// no restart and no quarantine when it is back: it forgot nothing, and nobody can
// have taken its place, waited as it must, and voted, within less than two thirds of
// the longest lease. (It hears itself every third.)
func TestNodesCutOff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		k := mustLock(t, a, "x")
		next := waitFor(t.Context(), b.Lock, "x")
		for _, tn := range w.nodes { // one after the other nobody notices
			tn.link.cut()
			time.Sleep(2*maxLease/3 - 2*time.Second)
			mustUnlock(t, mustLock(t, b, "y"))
			tn.link.mend()
			time.Sleep(testLease)
		}
		if err := context.Cause(k.Context()); err != nil || next.over() {
			t.Fatalf("with one node at a time cut off: %v, %v", err, next.err)
		}

		w.nodes[0].link.cut()
		w.nodes[1].link.cut()
		start := time.Now()
		lost, cause := died(t, k.Context())
		if d := lost.Sub(start); cause != qlock.ErrLost || d > stands(testLease) {
			t.Errorf("cause %v after %v without a majority", cause, d)
		}
		time.Sleep(testLease)
		if next.over() {
			t.Errorf("a lock without a majority: %v", next.err)
		}
		back := time.Now()
		w.nodes[0].link.mend()
		if next.held(t).Token() <= k.Token() {
			t.Errorf("token %d after %d", next.lock.Token(), k.Token())
		}
		if d := time.Since(back); d > testLease/3+reconnectWait {
			t.Errorf("the next holder came %v after the majority", d)
		}
		w.nodes[1].link.mend()
		mustUnlock(t, next.lock)
		time.Sleep(testLease)
		w.noClaims()
	})
}

// A node that was cut off for longer may have been replaced meanwhile, so it waits as
// one that forgot, while the others carry on (N9).
func TestNodeCutOffForLong(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a")
		k := mustLock(t, a, "x")
		for _, tn := range w.nodes {
			tn.link.cut()
			time.Sleep(maxLease + time.Second)
			mustUnlock(t, mustLock(t, a, "y"))
			tn.link.mend()
			time.Sleep(2 * reconnectWait)
			back := time.Now()
			if s := tn.Stats(); s.State != "recovering" {
				t.Errorf("%s, cut off for longer than the longest lease: %+v", tn.Name(), s)
			}
			if err := tn.WaitReady(timeout(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(back); d < runOut || d > quarantine+probeWait {
				t.Errorf("%s votes again after %v", tn.Name(), d)
			}
		}
		if err := k.Context().Err(); err != nil {
			t.Errorf("with one node at a time cut off: %v", err)
		}
		mustUnlock(t, k)
	})
}

// The connection is the caller's, who may close it at any time. Whatever waits then
// ends with ErrClosed, and what is held is lost at the end of its lease.
func TestConnectionClosedUnderLocker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, nc := w.clientOn("a")
		b := w.client("b")
		k := mustLock(t, a, "held")
		other := mustLock(t, b, "x")
		queued := waitFor(t.Context(), a.Lock, "x")
		reader := waitFor(t.Context(), a.RLock, "x")

		nc.Close()
		for _, waiting := range []*waiter{queued, reader} {
			if !waiting.over() {
				t.Fatal("a call goes on waiting on a closed connection")
			}
			wantIs(t, waiting.err, qlock.ErrClosed, nats.ErrConnectionClosed)
			wantText(t, waiting.err, `lock "x": closed`, "connection closed")
		}
		for _, lock := range []func(context.Context, string, ...qlock.LockOption) (*qlock.Lock, error){a.Lock, a.RLock, a.TryLock, a.TryRLock} {
			start := time.Now()
			_, err := lock(t.Context(), "y")
			wantIs(t, err, qlock.ErrClosed, nats.ErrConnectionClosed)
			if d := time.Since(start); d != 0 {
				t.Errorf("found out that the connection is closed after %v", d)
			}
		}
		wantIs(t, a.Do(t.Context(), "y", func(context.Context) error { return nil }), qlock.ErrClosed)
		// Nor are the nodes asked anything for as long as a context lasts.
		for _, ask := range []func() error{
			func() error { _, err := a.Locks(t.Context(), ""); return err },
			func() error { _, err := a.Inspect(t.Context(), "x"); return err },
			func() error { return a.Flush(t.Context()) },
			func() error {
				return a.Evict(t.Context(), "x", qlock.ClaimInfo{ID: "a6fb4a1b-2b45-4c7e-9d2e-0a4b6b6a4c11/1", Client: "b"}, "")
			},
		} {
			start := time.Now()
			wantIs(t, ask(), qlock.ErrClosed, nats.ErrConnectionClosed)
			if d := time.Since(start); d != 0 {
				t.Errorf("found out that the connection is closed after %v", d)
			}
		}
		if got := w.log.find("ERROR", "the NATS connection is closed permanently", "held=1"); len(got) != 1 {
			t.Errorf("logged %q", got)
		}

		if _, cause := died(t, k.Context()); cause != qlock.ErrLost {
			t.Errorf("the held lock ended with %v", cause)
		}
		if err := k.Unlock(t.Context()); err != qlock.ErrLost {
			t.Errorf("Unlock: %v", err)
		}
		start := time.Now()
		for range 2 {
			if err := a.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("Close took %v on a closed connection", d)
		}
		mustUnlock(t, other)
		time.Sleep(testLease)
		w.noClaims()
	})
}

// A closed connection can take no release along, but Unlock and Close succeed: the
// lease ends what they could not.
func TestUnlockAndCloseOnClosedConnection(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, nc := w.clientOn("a")
		k, k2 := mustLock(t, a, "x"), mustLock(t, a, "y")
		nc.Close()
		if err := k.Unlock(t.Context()); err != nil {
			t.Errorf("Unlock: %v", err)
		}
		if err := a.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if cause := context.Cause(k2.Context()); cause != qlock.ErrUnlocked {
			t.Errorf("cause %v, want ErrUnlocked", cause)
		}
		next := waitFor(t.Context(), w.client("b").Lock, "x")
		mustUnlock(t, next.held(t))
		if next.waited == 0 || next.waited > testLease {
			t.Errorf("the next waited %v, want what is left of the lease of %v", next.waited, testLease)
		}
		time.Sleep(testLease)
		w.noClaims()
	})
}

// Close gives back what is held, ends what waits, and leaves nothing of its own.
func TestClose(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		nc := w.connect()
		a, b := w.locker(nc.Conn, "a"), w.client("b")
		k, r := mustLock(t, a, "held"), mustRLock(t, a, "read")
		k2 := mustLock(t, b, "x")
		queued := waitFor(t.Context(), a.Lock, "x")
		reader := waitFor(t.Context(), a.RLock, "x")
		next := waitFor(t.Context(), b.Lock, "held")
		o := w.observe()

		start := time.Now()
		if err := a.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		for _, waiting := range []*waiter{queued, reader} {
			if !waiting.over() {
				t.Fatal("Close does not end a wait")
			}
			wantIs(t, waiting.err, qlock.ErrClosed)
		}
		wantText(t, queued.err, `qlock: lock "x": closed`)
		wantText(t, reader.err, `qlock: rlock "x": closed`)
		for _, lock := range []*qlock.Lock{k, r} {
			if cause := context.Cause(lock.Context()); cause != qlock.ErrUnlocked {
				t.Errorf("after Close the context of %q ends with %v, want ErrUnlocked", lock.Name(), cause)
			}
			if err := lock.Unlock(t.Context()); err != nil {
				t.Errorf("Unlock after Close: %v", err)
			}
		}
		if !next.over() {
			t.Error("the lock that Close gave back is not had by who waited for it")
		}
		mustUnlock(t, next.held(t))
		if got := o.take(); got["release"] != 4 || got["released"] != 3 {
			t.Errorf("Close published %v, want a release for each of 3 claims (those that wait share one) and an event for each of 2 locks held, and the next holder's", got)
		}

		for _, lock := range []func(context.Context, string, ...qlock.LockOption) (*qlock.Lock, error){a.Lock, a.RLock, a.TryLock, a.TryRLock} {
			_, err := lock(t.Context(), "y")
			wantIs(t, err, qlock.ErrClosed)
			wantText(t, err, `"y": closed`)
		}
		called := false
		wantIs(t, a.Do(t.Context(), "y", func(context.Context) error { called = true; return nil }), qlock.ErrClosed)
		if called {
			t.Error("Do called its function after Close")
		}
		if a.Name() != "a" || a.Cluster() != "default" || len(a.Nodes()) != 3 {
			t.Errorf("after Close: name %q, cluster %q, nodes %v", a.Name(), a.Cluster(), a.Nodes())
		}
		if err := a.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("Close and what came after it took %v", d)
		}
		mustUnlock(t, k2)
		w.noClaims()
		if n := nc.NumSubscriptions(); n != 0 {
			t.Errorf("%d subscriptions are left", n)
		}
		o.take()
		time.Sleep(10 * testLease)
		got := o.messages("lock.default.node.refresh.a")
		if len(got) != 0 {
			t.Errorf("a closed Locker published %d refreshes", len(got))
		}
	})
}

// Close is called while calls go on all around it.
func TestCloseAmongCalls(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		for range 10 {
			a := w.client("a")
			done := make(chan struct{})
			const callers = 8
			for i := range callers {
				go func() {
					defer func() { done <- struct{}{} }()
					for {
						k, err := a.Lock(t.Context(), "x")
						if err != nil {
							wantIs(t, err, qlock.ErrClosed)
							return
						}
						if i%2 == 0 {
							_ = k.Unlock(t.Context())
						} else if _, cause := died(t, k.Context()); cause != qlock.ErrUnlocked {
							t.Errorf("cause %v", cause)
						}
					}
				}()
			}
			time.Sleep(time.Millisecond)
			go func() { _ = a.Close() }()
			if err := a.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			for range callers {
				<-done
			}
			w.noClaims()
		}
	})
}

// Close does not wait for ever for a server that does not answer.
func TestCloseWithoutConnection(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, nc := w.clientOn("a")
		k := mustLock(t, a, "x")
		nc.cut()
		settle()
		start := time.Now()
		if err := a.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("Close took %v without a connection", d)
		}
		if cause := context.Cause(k.Context()); cause != qlock.ErrUnlocked {
			t.Errorf("cause %v", cause)
		}
		if len(w.log.find("WARN", "the last releases may not have reached the nodes")) != 1 {
			t.Errorf("nothing of that in the log: %q", w.log.find(""))
		}
		// The connection brings the release after all when it is back, though later
		// than that.
		nc.mend()
		time.Sleep(2 * reconnectWait)
		w.noClaims()
	})
}

// A connection is lent: its handlers are the caller's and work. That for errors is
// wrapped while there are Lockers, and given back by the last.
func TestConnectionIsLent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		var errs, disconnects, reconnects, closes atomic.Int32
		nc := w.connect(
			nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) { errs.Add(1) }),
			nats.DisconnectErrHandler(func(*nats.Conn, error) { disconnects.Add(1) }),
			nats.ReconnectHandler(func(*nats.Conn) { reconnects.Add(1) }),
			nats.ClosedHandler(func(*nats.Conn) { closes.Add(1) }),
		)
		of := func(f any) uintptr { return reflect.ValueOf(f).Pointer() }
		handlers := func() [3]uintptr {
			return [3]uintptr{of(nc.DisconnectErrHandler()), of(nc.ReconnectHandler()), of(nc.ClosedHandler())}
		}
		before, errorHandler := handlers(), of(nc.ErrorHandler())
		for range 3 {
			if err := w.locker(nc.Conn, "before").Close(); err != nil {
				t.Error(err)
			}
			if of(nc.ErrorHandler()) != errorHandler {
				t.Error("Close left another error handler on the connection")
			}
		}
		a := w.locker(nc.Conn, "a")
		k := mustLock(t, a, "x")
		if handlers() != before {
			t.Error("a Locker changed the handlers of its connection")
		}
		nc.cut()
		time.Sleep(time.Second)
		nc.mend()
		time.Sleep(time.Second)
		mustUnlock(t, k)
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if handlers() != before || of(nc.ErrorHandler()) != errorHandler {
			t.Error("Close left other handlers on the connection")
		}
		if nc.IsClosed() || nc.NumSubscriptions() != 0 {
			t.Errorf("after Close the connection is %v with %d subscriptions", nc.Status(), nc.NumSubscriptions())
		}
		second, already := w.locker(nc.Conn, "second"), errs.Load()
		nc.ErrorHandler()(nc.Conn, nil, nats.ErrPermissionViolation)
		if err := second.Close(); err != nil {
			t.Error(err)
		}
		if got := errs.Load() - already; got != 1 {
			t.Errorf("the caller's error handler heard of one error %d times", got)
		}
		if disconnects.Load() != 1 || reconnects.Load() != 1 || closes.Load() != 0 {
			t.Errorf("%d disconnects, %d reconnects, %d closes were told", disconnects.Load(), reconnects.Load(), closes.Load())
		}

		// It still serves its owner, and a second Locker.
		sub, err := nc.SubscribeSync("mine")
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.Publish("mine", []byte("hello")); err != nil {
			t.Fatal(err)
		}
		if m, err := sub.NextMsgWithContext(timeout(t, time.Second)); err != nil || string(m.Data) != "hello" {
			t.Errorf("message %v, %v", m, err)
		}
		mustUnlock(t, mustLock(t, w.locker(nc.Conn, "a2"), "x"))
		w.noClaims()
	})
}

// A question that is under way when the connection closes ends with it.
func TestConnectionClosedUnderQuestion(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, nc := w.clientOn("a")
		for _, tn := range w.nodes {
			tn.crash() // nobody answers
		}
		time.AfterFunc(time.Second, nc.Close)
		start := time.Now()
		_, err := a.Locks(timeout(t, time.Minute), "")
		wantIs(t, err, qlock.ErrClosed, nats.ErrConnectionClosed)
		if d := time.Since(start); d != time.Second {
			t.Errorf("it ended after %v, the connection was closed after 1s", d)
		}
	})
}

// A node whose connection is closed for ever serves no more, and says so wherever one
// may look. What it knows it saves all the same when it is closed soon, and votes at once
// when it starts again.
func TestNodeEndsWithItsConnection(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		tn := w.nodes[0]
		select {
		case <-tn.Done():
			t.Fatal("Done is closed while the node serves")
		default:
		}
		if err := tn.Err(); err != nil {
			t.Errorf("Err of a node that serves: %v", err)
		}
		k := mustLock(t, w.client("a"), "x")
		tn.link.Close()
		settle()
		select {
		case <-tn.Done():
		default:
			t.Error("Done is not closed")
		}
		wantIs(t, tn.Err(), qlock.ErrClosed, nats.ErrConnectionClosed)
		wantIs(t, tn.WaitReady(t.Context()), qlock.ErrClosed, nats.ErrConnectionClosed)
		if tn.Ready() || tn.Stats().State != "stopped" {
			t.Errorf("a node without a connection is ready: %v, and %s", tn.Ready(), tn.Stats().State)
		}
		time.Sleep(time.Hour)
		if got := w.log.find("node=n1"); len(w.log.find("ERROR", "this node has stopped serving", "connection closed")) != 1 || len(w.log.find("node=n1", "not sent")) > 0 {
			t.Errorf("logged in an hour: %q", got)
		}
		tn.stop()

		// One that is closed soon after has been away for no time.
		tn = w.nodes[1]
		tn.link.Close()
		settle()
		tn.stop()
		tn.link = w.connect()
		tn.start()
		if !tn.Ready() {
			t.Errorf("the node is %s after a clean stop", tn.Stats().State)
		}
		if err := context.Cause(k.Context()); err != nil {
			t.Errorf("the lock is lost: %v", err)
		}
		mustUnlock(t, k)
		w.noClaims()
	})
}

// A node's connection is lent as well.
func TestNodeLeavesItsConnection(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		tn := w.nodes[0]
		done := tn.Done()
		tn.stop()
		if tn.link.IsClosed() || tn.link.NumSubscriptions() != 0 {
			t.Errorf("after Close the connection is %v with %d subscriptions", tn.link.Status(), tn.link.NumSubscriptions())
		}
		select {
		case <-done:
		default:
			t.Error("Done is not closed after Close")
		}
		tn.start()
		tn.crash()
		if tn.link.IsClosed() || tn.link.NumSubscriptions() != 0 {
			t.Errorf("after Abort the connection is %v with %d subscriptions", tn.link.Status(), tn.link.NumSubscriptions())
		}

		// And may be closed under the node.
		other := w.nodes[1]
		other.link.Close()
		if err := other.Close(); err != nil {
			t.Errorf("Close of a node whose connection is closed: %v", err)
		}
		if err := other.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		if other.Ready() || other.Stats().State != "stopped" {
			t.Errorf("a closed node is ready: %v, and %s", other.Ready(), other.Stats().State)
		}
		if err := other.WaitReady(t.Context()); err == nil || !errors.Is(err, qlock.ErrClosed) {
			t.Errorf("WaitReady of a closed node: %v, want ErrClosed", err)
		}
	})
}
