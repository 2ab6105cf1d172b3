// Package qlock provides distributed locks over NATS: exclusive and shared locks with a
// fair queue and a fencing token. It is like flock, but for a cluster.
//
// # How it works
//
// A lock cluster has a fixed list of nodes, usually three or five. A [Locker] publishes
// each request to all nodes at once. It holds the lock when a quorum of them has granted
// it: there is no leader and no replicated log, and acquiring a lock takes one round
// trip and no disk write. Waiters are queued at the nodes, oldest first, and the nodes
// call them; no client polls.
//
// A client refreshes what it holds with one message every third of its lease. When a
// holder crashes, its lock is free after the lease. A holder that is cut off learns that
// its lock is lost before another client can acquire it, by its own clock.
//
// # Acquiring a lock
//
// Create one Locker when the program starts, on the connection that the program already
// has, and close it before the connection. It learns the list of nodes from the nodes:
//
//	locker, err := qlock.New(ctx, nc, qlock.WithName("billing"))
//	if err != nil {
//		return err
//	}
//	defer locker.Close()
//
// [Locker.Do] acquires a lock, calls a function, and releases the lock in every case.
// The function's context is canceled if the lock is lost:
//
//	err = locker.Do(ctx, "orders.42", func(ctx context.Context) error {
//		return orders.SetStatus(42, "shipped", qlock.Token(ctx))
//	})
//
// [Locker.Lock] and [Locker.RLock] return an exclusive or a shared [Lock], which
// [Lock.Unlock] releases. Their context limits the time to wait; the lock lasts until it is
// released or lost. [Locker.TryLock] and [Locker.TryRLock] fail with [ErrHeld] instead
// of waiting for another holder. [RWMutex] is a drop-in replacement for sync.RWMutex.
//
// Locks are not reentrant: locking a name twice deadlocks. They are advisory: they stop
// only clients that ask for them.
//
// A [LockOption] changes a single call: [Note], [HoldAtLeast] and [HoldAtMost],
// [WithWaitFunc] to show what the call waits for. [Lock.Wanted] tells a holder that
// somebody else waits. [Held] asserts that code runs under a lock. [Locker.Start] requests
// a lock without waiting for it, for programs that wait for many.
//
// # Losing a lock
//
// A lock is lost when too few nodes confirm it within the lease, for example because the
// network is cut. Its context ([Lock.Context]) ends, and [context.Cause] of it is
// [ErrLost]. Work under that context, and check the error of [Lock.Unlock] or Do: it
// reports whether the lock was lost while the work was done.
//
// No lock service can stop a process that was paused, or whose machine was frozen with
// all its clocks, between checking the lock and the write that follows. Send the fencing
// token ([Lock.Token], or [Token] of the context) with each write, and let the store
// reject a token that is lower than the highest it has seen. The token of each exclusive
// holder is greater than the tokens of all exclusive holders of that name before it.
//
// # Errors
//
// A [LockError] describes why acquiring a lock failed: how many votes were granted and
// needed, which nodes refused or did not answer, and who holds the lock. Its reason is
// one of [ErrHeld], [ErrNoQuorum], [ErrRefused], [ErrClosed] and [ErrEvicted], for use
// with [errors.Is].
//
// # Running nodes
//
// [StartNode] runs a node on a NATS connection. Package
// [github.com/qlock/qlock/embedded] runs a nats-server and a node in one process. Package
// [github.com/qlock/qlock/qlocktest] runs clusters in tests. A node that may have forgotten
// votes gives none until they have expired. A node with an empty state directory therefore
// waits before its first vote, unless [Bootstrap] was called, once, for a new cluster.
//
// [Locker.Members] lists the nodes and their states.
//
// # Observing locks
//
// [Locker.Locks] and [Locker.Inspect] list holders and waiters, and [Locker.Evict] ends
// the claim of a holder that is stuck. [EventSubject] and [ParseEvent] read the events that
// Lockers publish. [Locker.Stats] and [Node.Stats] have counters, which package
// [github.com/qlock/qlock/metrics] exports to Prometheus.
//
// # More documentation
//
//   - [Guide]: the library, nodes, permissions, what happens when something fails
//   - [Guarantees]: guarantees, assumptions and limits in full
//   - [Operations] and [Security]: for those who run nodes
//   - [Protocol]: the rules by number, and why they hold
//   - [Wire format]: each message, for clients in other languages
//
// [Guide]: https://github.com/qlock/qlock/blob/main/docs/guide.md
// [Guarantees]: https://github.com/qlock/qlock/blob/main/docs/guarantees.md
// [Operations]: https://github.com/qlock/qlock/blob/main/docs/operations.md
// [Security]: https://github.com/qlock/qlock/blob/main/docs/security.md
// [Protocol]: https://github.com/qlock/qlock/blob/main/docs/protocol.md
// [Wire format]: https://github.com/qlock/qlock/blob/main/docs/wire.md
package qlock
