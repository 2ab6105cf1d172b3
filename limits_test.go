package qlock_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

// A client name may have so many claims, and a refusal fails a lock at once, since
// no quorum is left (C11).
func TestMaxClaims(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3, setup{node: func(_ int, c *qlock.NodeConfig) { c.MaxClaims = 3 }})
		a, a2, b := w.client("svc-a"), w.client("svc-a"), w.client("svc-b")
		x1, x2 := mustLock(t, a, "x.1"), mustLock(t, a, "x.2")
		next := waitFor(t.Context(), a2.Lock, "x.1")
		for _, lock := range []func(context.Context, string, ...qlock.LockOption) (*qlock.Lock, error){a.Lock, a2.RLock, a.TryLock} {
			start := time.Now()
			_, err := lock(t.Context(), "x.3")
			if d := time.Since(start); d != 0 {
				t.Errorf("refused after %v", d)
			}
			wantIs(t, err, qlock.ErrRefused)
			wantText(t, err, `"x.3": refused: 0 of 3 nodes voted, 2 are needed: n1 `, "refused (client svc-a has 3 claims here, as many as this node allows)")
			var e *qlock.LockError
			if !errors.As(err, &e) || e.Reason != qlock.ErrRefused || e.Cause != nil {
				t.Errorf("LockError %+v", e)
			}
		}
		mustUnlock(t, mustLock(t, b, "x.3"))
		mustUnlock(t, x2)
		settle()
		mustUnlock(t, mustLock(t, a, "x.3"))
		mustUnlock(t, x1)
		mustUnlock(t, next.held(t))
		w.noClaims()
	})
}

// Where a minority of nodes refuses, the others are enough (C11).
func TestRefusalByMinority(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3, setup{node: func(i int, c *qlock.NodeConfig) {
			if i == 0 {
				c.MaxClaims = 1
			}
		}})
		a := w.client("a")
		k1, k2 := mustLock(t, a, "x.1"), mustLock(t, a, "x.2")
		time.Sleep(3 * testLease)
		for _, k := range []*qlock.Lock{k1, k2} {
			if err := context.Cause(k.Context()); err != nil {
				t.Errorf("%q: %v", k.Name(), err)
			}
			mustUnlock(t, k)
		}
		w.noClaims()
	})
}

// So many claims may be on one name beside one that holds it.
func TestMaxQueue(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3, setup{node: func(_ int, c *qlock.NodeConfig) { c.MaxQueue = 2 }})
		a := w.client("a")
		k := mustLock(t, a, "orders 42")
		waiting := []*waiter{waitFor(t.Context(), w.client("c").Lock, "orders 42")}
		time.Sleep(time.Millisecond)
		waiting = append(waiting, waitFor(t.Context(), w.client("d").Lock, "orders 42"))
		_, err := w.client("b").Lock(t.Context(), "orders 42")
		wantIs(t, err, qlock.ErrRefused)
		wantText(t, err, `refused (3 claims hold or wait for "orders 42", as many as this node allows)`)
		mustUnlock(t, k)
		for _, next := range waiting {
			mustUnlock(t, next.held(t))
		}
		w.noClaims()
	})
}

// RWMutex has no error to return: it goes on asking, and logs.
func TestRWMutexOutlastsRefusals(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3, setup{node: func(_ int, c *qlock.NodeConfig) { c.MaxClaims = 1 }})
		a := w.client("a")
		k := mustLock(t, a, "x")
		m := a.RWMutex("y")
		if m.TryLock() || m.TryRLock() {
			t.Error("a lock that the nodes refuse was had")
		}
		time.AfterFunc(time.Minute, func() { mustUnlock(t, k) })
		start := time.Now()
		m.Lock()
		if d := time.Since(start); d < time.Minute || d > time.Minute+testLease {
			t.Errorf("Lock returned after %v", d)
		}
		m.Unlock()
		if len(w.log.find("WARN", "RWMutex cannot be locked, will go on trying", "name=y", "refused")) == 0 {
			t.Errorf("nothing of that in the log: %q", w.log.find("WARN"))
		}

		// Until its Locker is closed.
		mustLock(t, a, "x")
		done := make(chan any)
		go func() {
			defer func() { done <- recover() }()
			m.Lock()
		}()
		time.Sleep(testLease)
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if err, ok := (<-done).(error); !ok || !errors.Is(err, qlock.ErrClosed) {
			t.Errorf("panic with %v, want ErrClosed", err)
		}
		w.noClaims()
	})
}

// A cluster whose longest lease was lowered below a living Locker's refuses it.
func TestLeaseLongerThanTheClusterAllows(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a") // with a lease of 10 s
		mustLock(t, w.client("b", qlock.WithLease(5*time.Second)), "x")
		next := waitFor(t.Context(), a.Lock, "x")
		w.each((*testNode).stop)
		w.each(func(tn *testNode) {
			tn.cfg.MaxLease = 5 * time.Second
			tn.start()
		})
		time.Sleep(testLease)
		if !next.over() {
			t.Fatal("who waits is not refused")
		}
		_, err := a.Lock(t.Context(), "y")
		for _, err := range []error{err, next.err} {
			wantIs(t, err, qlock.ErrRefused)
			wantText(t, err, "refused (lease 10s is longer than the 5s that this cluster allows)")
		}
	})
}

// withUsers is a server on which a connection that shows nothing may do anything,
// and svc-a what p says.
func withUsers(p *server.Permissions) setup {
	return setup{server: func(o *server.Options) {
		o.Users = []*server.User{{Username: "all", Password: "all"}, {Username: "svc-a", Password: "secret", Permissions: p}}
		o.NoAuthUser = "all"
	}}
}

func svcA(opts ...nats.Option) []nats.Option {
	return append(opts, nats.UserInfo("svc-a", "secret"), nats.CustomInboxPrefix("_INBOX.svc-a"))
}

// The permissions that the documentation gives to a client are enough for it, and
// keep it from what is another's.
func TestPermissionsOfOneClient(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3, withUsers(&server.Permissions{
			Publish: &server.SubjectPermission{Allow: []string{
				"lock.default.node.*.svc-a", "lock.default.node.*.svc-a.>", "lock.default.event.*.svc-a.>",
			}},
			Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.svc-a.>"}},
		}))
		var told atomic.Int32
		nc := w.connect(svcA(nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) { told.Add(1) }))...)
		a, b := w.locker(nc.Conn, "svc-a"), w.client("b")
		o := w.observe()
		k := mustLock(t, a, "x")
		next := waitFor(t.Context(), b.Lock, "x")
		time.Sleep(3 * testLease)
		mustUnlock(t, k)
		k2 := next.held(t)
		again := waitFor(t.Context(), a.RLock, "x")
		mustUnlock(t, k2)
		mustUnlock(t, again.held(t))
		settle()
		if told.Load() != 0 || len(w.log.find("permission")) != 0 {
			t.Errorf("%d errors were told, logged %q", told.Load(), w.log.find("permission"))
		}
		if got := o.take(); got["acquired"] != 3 || got["released"] != 3 {
			t.Errorf("events %v", got)
		}

		// Under another's name it gets nowhere, and is told so at once.
		start := time.Now()
		_, err := qlock.New(t.Context(), nc.Conn, qlock.WithName("b"))
		wantIs(t, err, qlock.ErrRefused, nats.ErrPermissionViolation)
		wantText(t, err, "the NATS user lacks a permission for lock.default.node.info.b")
		if d := time.Since(start); d > time.Second {
			t.Errorf("told after %v", d)
		}
		if told.Load() == 0 {
			t.Error("the connection's own error handler was not called")
		}
		w.noClaims()
	})
}

// A denied publish is answered by nobody. The call fails soon all the same, and
// says which permission is missing; others are not touched.
func TestDeniedPublishFailsSoon(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3, withUsers(&server.Permissions{
			Publish: &server.SubjectPermission{Allow: []string{
				"lock.default.node.*.svc-a", "lock.default.node.*.svc-a.orders.>", "lock.default.event.>",
			}},
			Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.svc-a.>"}},
		}))
		nc := w.connect(svcA()...)
		a := w.locker(nc.Conn, "svc-a")
		k := mustLock(t, a, "orders.1")
		other := mustLock(t, w.client("b"), "orders.2")
		waiting := waitFor(t.Context(), a.Lock, "orders.2")
		for _, name := range []string{"secret.plans", "secret plans"} {
			for _, lock := range []func(context.Context, string, ...qlock.LockOption) (*qlock.Lock, error){a.Lock, a.RLock, a.TryLock} {
				start := time.Now()
				_, err := lock(timeout(t, time.Minute), name)
				wantIs(t, err, qlock.ErrRefused, nats.ErrPermissionViolation)
				wantText(t, err, fmt.Sprintf("%q: refused", name), "lacks a permission for lock.default.node.acquire.svc-a."+strings.ReplaceAll(name, " ", "%20"))
				if d := time.Since(start); d > testLease/10 {
					t.Errorf("failed after %v", d)
				}
			}
		}
		time.Sleep(3 * testLease)
		if err := context.Cause(k.Context()); err != nil || waiting.over() {
			t.Errorf("locks that are permitted suffered: %v, %v", err, waiting.err)
		}
		mustUnlock(t, k)
		mustUnlock(t, other)
		mustUnlock(t, waiting.held(t))
		mustUnlock(t, mustLock(t, a, "orders.1"))
		w.noClaims()
	})
}

// Several that are denied together fail together, each with its own subject, also
// when the caller sets an error handler only now: then they do one after another.
func TestManyDeniedPublishesFailSoon(t *testing.T) {
	const many = 8
	for _, replaced := range []bool{false, true} {
		t.Run(fmt.Sprintf("replaced=%v", replaced), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, 3, withUsers(&server.Permissions{
					Publish: &server.SubjectPermission{Deny: []string{"lock.default.node.acquire.svc-a.secret.>"}},
				}))
				nc := w.connect(svcA()...)
				a := w.locker(nc.Conn, "svc-a")
				wait := testLease / 100
				if replaced {
					nc.SetErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})
					wait = 6 * many * testLease
				}
				var calls []*waiter
				for i := range many {
					calls = append(calls, waitFor(t.Context(), a.Lock, fmt.Sprintf("secret.%d", i)))
				}
				time.Sleep(wait)
				for i, c := range calls {
					if !c.over() {
						t.Errorf("secret.%d still waits after %v", i, wait)
						continue
					}
					wantIs(t, c.err, qlock.ErrRefused, nats.ErrPermissionViolation)
					wantText(t, c.err, fmt.Sprintf("acquire.svc-a.secret.%d", i))
				}
				w.noClaims()
			})
		})
	}
}

// Nor can New hear answers that it may not subscribe to.
func TestDeniedInboxFailsSoon(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3, withUsers(&server.Permissions{
			Publish:   &server.SubjectPermission{Allow: []string{"lock.>"}},
			Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.svc-a.>"}},
		}))
		start := time.Now()
		_, err := qlock.New(t.Context(), w.connect(nats.UserInfo("svc-a", "secret")).Conn, qlock.WithName("svc-a"))
		wantIs(t, err, qlock.ErrRefused, nats.ErrPermissionViolation)
		wantText(t, err, "lacks a permission for _INBOX.")
		if d := time.Since(start); d > time.Second {
			t.Errorf("told after %v", d)
		}
		l, err := qlock.New(t.Context(), w.connect(svcA()...).Conn, qlock.WithName("svc-a"))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

// The connection is not the Locker's alone: what else is denied on it is no matter
// of locks.
func TestDeniedPublishOfOthersIsNoMatter(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3, withUsers(&server.Permissions{
			Publish: &server.SubjectPermission{Allow: []string{"lock.default.>"}},
		}))
		nc := w.connect(svcA()...)
		a := w.locker(nc.Conn, "svc-a")
		k := mustLock(t, a, "x")
		for _, subject := range []string{"orders.new", "lock.prod.node.acquire.svc-a.x"} {
			if err := nc.Publish(subject, nil); err != nil {
				t.Fatal(err)
			}
			settle()
			wantIs(t, nc.LastError(), nats.ErrPermissionViolation)
			time.Sleep(3 * testLease)
		}
		mustUnlock(t, k)
		mustUnlock(t, mustLock(t, a, "x"))
		if lines := w.log.find("permission"); len(lines) != 0 {
			t.Errorf("logged: %q", lines)
		}
	})
}

// What is missing is logged once, not for as long as the connection remembers it.
func TestDeniedPublishIsLoggedOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3, withUsers(&server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"lock.default.event.>"}},
		}))
		a := w.locker(w.connect(svcA()...).Conn, "svc-a")
		k := mustLock(t, a, "x")
		time.Sleep(10 * testLease)
		mustUnlock(t, k)
		lines := w.log.find("ERROR", "NATS permissions are missing", "subject=lock.default.event.acquired.svc-a.x")
		if len(lines) != 1 {
			t.Errorf("%d lines of one denied event: %q", len(lines), lines)
		}
	})
}

// What the connection remembers of a permission that was missing once says nothing
// of a lock that is asked for when it is there.
func TestPermissionGrantedLater(t *testing.T) {
	bubble(t, func(t *testing.T) {
		permissions := func(deny ...string) setup {
			return withUsers(&server.Permissions{Publish: &server.SubjectPermission{Deny: deny}})
		}
		w := newWorld(t, 3, permissions("lock.default.node.info.svc-a", "lock.default.node.acquire.svc-a.x"))
		nc := w.connect(svcA()...)
		_, err := qlock.New(t.Context(), nc.Conn, qlock.WithName("svc-a"))
		wantIs(t, err, qlock.ErrRefused)
		allow := func(deny ...string) {
			t.Helper()
			if err := w.srv.ReloadOptions(permissions(deny...).options()); err != nil {
				t.Fatal(err)
			}
			settle()
			if !nc.IsConnected() || nc.LastError() == nil {
				t.Fatalf("the connection is %v and remembers %v: this tests nothing", nc.Status(), nc.LastError())
			}
		}
		allow("lock.default.node.acquire.svc-a.x")
		w.nodes[0].stop()
		w.nodes[1].stop()
		started := make(chan struct{})
		time.AfterFunc(time.Second, func() {
			w.nodes[0].start()
			w.nodes[1].start()
			close(started)
		})
		a := w.locker(nc.Conn, "svc-a") // which takes a second
		<-started
		_, err = a.Lock(t.Context(), "x")
		wantIs(t, err, qlock.ErrRefused)

		allow()
		k := mustLock(t, w.client("b"), "x")
		a2 := w.locker(nc.Conn, "svc-a")
		waiting := []*waiter{waitFor(t.Context(), a.RLock, "x"), waitFor(t.Context(), a2.RLock, "x")}
		time.Sleep(testLease)
		mustUnlock(t, k)
		for _, next := range waiting {
			mustUnlock(t, next.held(t))
		}
		w.noClaims()
	})
}
