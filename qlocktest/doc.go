// Package qlocktest runs clusters of qlock in tests: of your own code, and of qlock
// itself. A cluster is real. Each of its nodes has a nats-server of its own, in the
// test's process, on loopback and free ports; clients connect over TCP.
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
// All that a test starts is gone when it ends, with its files and its goroutines:
// nothing needs to be closed. Whatever does not succeed ends the test with a text that
// says why, so functions return no errors. Each test may have a cluster of its own, and
// tests may run in parallel.
//
// # What to test
//
// Code that runs under a lock has two cases that a test without failures never sees. It
// waits while somebody else has the lock: take the lock with a second Locker first. And
// it loses the lock: the lock's context ends, and a write with its token must be refused
// by the store. These make a holder lose a lock:
//
//   - [Cluster.Disconnect]: the holder's connection breaks. The holder knows that its
//     lock is over when its lease is, and then another client gets it.
//   - [Cluster.Crash] of so many nodes that no quorum is left.
//   - qlock.Locker.Evict: at once, without waiting for a lease.
//
// Crash of one node of three should do nothing to your program: that is what the other
// two are for.
//
// # Time
//
// The time is real, and leases are short: [DefaultLease], so that a test which waits for
// the end of one does not take long. A test must not fail because its machine was busy.
// Wait for what must come (a lock's context, an answer) with a deadline of many seconds,
// and do not assert how soon it comes. If a machine may stand still for a second, as
// small ones do under the race detector, take a longer lease with [WithLease] in tests
// in which no lock may be lost.
//
// A cluster does not work in a bubble of testing/synctest: a bubble's time goes on only
// while nobody waits for a network connection.
//
// # Finding leaked goroutines
//
// If a test looks for goroutines that are left, by go.uber.org/goleak for one, it must
// do so when the cluster is gone: in TestMain, or in a function that is given to
// t.Cleanup before the cluster starts. A deferred function is too early.
package qlocktest
