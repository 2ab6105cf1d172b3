package qlocktest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/qlocktest"
)

// ship is what the examples test: it writes to a store, with the token of the lock.
func ship(ctx context.Context, locker *qlock.Locker, order string, store *Store) error {
	return locker.Do(ctx, order, func(ctx context.Context) error {
		return store.Set(order, "shipped", qlock.Token(ctx))
	})
}

// A test of code that acquires a lock. In your code it is a function
// func TestShip(t *testing.T), with the body that is passed to run here.
func Example() {
	run(func(t testing.TB) {
		c := qlocktest.StartCluster(t, 1)
		store := NewStore()

		if err := ship(t.Context(), c.Locker(t), "orders.42", store); err != nil {
			t.Fatal(err)
		}
		fmt.Println("order 42 is", store.Get("orders.42"))
	})
	// Output: order 42 is shipped
}

// Another client holds the lock. The code waits until its context ends.
func ExampleCluster_Locker() {
	run(func(t testing.TB) {
		c := qlocktest.StartCluster(t, 1, qlocktest.WithLease(10*time.Second))
		other := c.Locker(t, qlock.WithName("packing"))
		if _, err := other.Lock(t.Context(), "orders.42"); err != nil {
			t.Fatal(err)
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := ship(ctx, c.Locker(t), "orders.42", NewStore())
		fmt.Println("held:", errors.Is(err, qlock.ErrHeld))
	})
	// Output: held: true
}

// A holder is cut off. It loses its lock before another client acquires it, and the store
// rejects what it writes late.
func ExampleCluster_Disconnect() {
	run(func(t testing.TB) {
		c := qlocktest.StartCluster(t, 3)
		store := NewStore()
		nc := c.Connect(t)
		late, err := c.LockerOn(t, nc).Lock(t.Context(), "orders.42")
		if err != nil {
			t.Fatal(err)
		}

		c.Disconnect(t, nc)
		if err := ship(t.Context(), c.Locker(t), "orders.42", store); err != nil { // waits for the lease
			t.Fatal(err)
		}
		<-late.Context().Done()
		fmt.Println("the first holder:", context.Cause(late.Context()))
		fmt.Println("its write:", store.Set("orders.42", "packed", late.Token()))
	})
	// Output:
	// the first holder: qlock: lock lost
	// its write: stale token
}

// Locks are unaffected when one node of three dies. They are lost when a second one dies.
func ExampleCluster_Crash() {
	run(func(t testing.TB) {
		c := qlocktest.StartCluster(t, 3, qlocktest.WithLease(4*time.Second))
		lock, err := c.Locker(t).Lock(t.Context(), "orders.42")
		if err != nil {
			t.Fatal(err)
		}

		c.Crash(t, "n1")
		if err := ship(t.Context(), c.Locker(t), "orders.43", NewStore()); err != nil {
			t.Fatal(err)
		}
		fmt.Println("one died:", lock.Context().Err())

		c.Crash(t, "n2")
		<-lock.Context().Done()
		fmt.Println("two died:", context.Cause(lock.Context()))
	})
	// Output:
	// one died: <nil>
	// two died: qlock: lock lost
}

// A node that crashed and was restarted does not vote until its earlier votes have expired.
// WaitVotes waits for that.
func ExampleCluster_WaitVotes() {
	run(func(t testing.TB) {
		c := qlocktest.StartCluster(t, 3)
		c.Crash(t, "n1")
		c.Restart(t, "n1")
		c.WaitVotes(t)
		c.Crash(t, "n2") // n1 and n3 are a quorum

		err := ship(t.Context(), c.Locker(t), "orders.42", NewStore())
		fmt.Println("with n1 and n3:", err)
	})
	// Output: with n1 and n3: <nil>
}

// The clients of an isolated server reach no quorum.
func ExampleCluster_Isolate() {
	run(func(t testing.TB) {
		c := qlocktest.StartCluster(t, 3, qlocktest.WithLinks())
		locker := c.LockerOn(t, c.ConnectTo(t, "n3"))
		c.Isolate(t, "n3")

		_, err := locker.TryLock(t.Context(), "orders.42")
		fmt.Println("isolated: no quorum:", errors.Is(err, qlock.ErrNoQuorum))
		c.Mend(t)
		fmt.Println("mended:", ship(t.Context(), locker, "orders.42", NewStore()))
	})
	// Output:
	// isolated: no quorum: true
	// mended: <nil>
}

// A cluster that speaks TLS.
func ExampleWithTLS() {
	run(func(t testing.TB) {
		ca := qlocktest.NewAuthority(t, "test")
		c := qlocktest.StartCluster(t, 3, qlocktest.WithTLS(ca))
		// For a program that connects by itself:
		files := ca.WriteFiles(t, t.TempDir(), "shipping")
		_, _ = c.URL(), files.CA

		fmt.Println(ship(t.Context(), c.Locker(t), "orders.42", NewStore()))
	})
	// Output: <nil>
}
