// Package partition spreads partitions over the members of a group, so that each has one
// owner at a time. It is built on packages qlock and members.
//
//	group, err := partition.New(locker, "orders", 256, partition.WithEvents(nc))
//	worker, err := group.Join(ctx, "worker-7", "", func(ctx context.Context, a partition.Assignment) {
//		// This process owns a.Partition until ctx ends.
//	})
//	defer worker.Leave(ctx)
//
// The members of the group are those of package members. Each computes from their ids who
// should own which partition ([Assign]), and acquires the locks of its own. The lock
// decides: members that see different lists never own a partition together.
//
// # What is guaranteed
//
//   - A partition has at most one owner, which holds its lock. The context of an owner ends
//     before another can own the partition. The token of each owner is greater than those of
//     all owners of that partition before.
//   - A partition is handed over only when its handler has returned, except if its lock was
//     lost.
//   - While any member lives and reaches a quorum of the nodes, each partition gets an
//     owner: that of a member that leaves when its handlers have returned, that of a member
//     that dies when its lease has ended (10 s by default).
//   - When all members see the same list, they own P/n partitions each, rounded up or down.
//   - When a member joins or leaves, about P/n partitions move. While there are 16 or more
//     partitions for each member, at most 1.7 times as many move on average.
//
// # What is not guaranteed
//
//   - A partition may have no owner for a while: between two owners, and for the lease of
//     one that died.
//   - A process that is paused may act as an owner after its lock is lost: send the token
//     with each write (qlock.Token).
//   - All members must use the same number of partitions. [Group.Join] fails if a member has
//     another. To change the number, stop all members first.
//
// # Cost
//
// A partition costs its owner one lock, which is refreshed together with all other locks of
// its Locker. All members need the role member of docs/security.md for the locks
// qlock.members.GROUP.> and qlock.partition.GROUP.*.
//
// Use one Locker for each worker, without qlock.WithRetention.
package partition
