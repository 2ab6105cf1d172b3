// Package qlocktest runs clusters of qlock in tests: tests of your own code, and those of
// qlock itself. A cluster is real. Each of its nodes has a nats-server of its own in the
// test's process, on loopback and a free port, and clients connect over TCP.
//
//	func TestShip(t *testing.T) {
//		c := qlocktest.StartCluster(t, 3)
//		locker := c.Locker(t)
//
//		if err := ship(t.Context(), locker, "orders.42"); err != nil {
//			t.Fatal(err)
//		}
//	}
//
// Everything that this package starts is stopped when the test ends, and its files are
// removed. Functions return no errors: if something fails, the test ends with a message
// that says what failed and why. Each test can have a cluster of its own, and tests can run
// in parallel.
//
// # What to test
//
// Two things happen in production and not in a test like the one above.
//
// The lock is held by another client. Lock the name with a second Locker first.
//
// The lock is lost. Its context is canceled then, and the store must reject a write with
// its token. There are three ways to make a holder lose a lock:
//
//   - [Cluster.Disconnect] breaks the holder's connection. The lock is lost when its
//     lease ends, and then another client can acquire it.
//   - [Cluster.Crash] crashes so many nodes that no quorum is left.
//   - qlock.Locker.Evict ends the lock at once, without waiting for the lease.
//
// A crash of one node of three must not affect your program. The other two are enough.
//
// # Time
//
// Time is real, and leases are short (see [DefaultLease]), so that a test which waits for
// the end of a lease is fast. Wait with a generous timeout for what must happen, and do not
// assert how soon it happens: a busy machine is slow. A machine that stands still for
// longer than the lease loses locks. If a test must not lose any, give it a longer lease
// with [WithLease].
//
// A cluster does not work in a bubble of testing/synctest, because time in a bubble stops
// while a goroutine waits for the network.
//
// # Leaked goroutines
//
// A test that looks for leaked goroutines, for example with go.uber.org/goleak, must look
// after the cluster is stopped: in TestMain, or in a function passed to t.Cleanup before
// the call of StartCluster. A deferred function runs too early.
package qlocktest
