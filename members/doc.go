// Package members tells which members of a group are alive. It is built on the locks of
// package qlock: a member holds a lock of its own name for as long as it lives, so it is
// gone when that lock is released or its lease has ended. There is no other heartbeat.
//
//	group, err := members.New(locker, "workers", members.WithEvents(nc))
//	me, err := group.Join(ctx, "worker-7", "zone=b")
//	defer me.Leave(ctx)
//
//	for update, err := range group.Watch(ctx) { … }
//
// # What is guaranteed
//
//   - An id has one member at a time. [Group.Join] waits while another process holds it.
//   - A member that cannot prove its membership learns of it ([Member.Context] ends) before
//     another process can join under its id.
//   - Each [Info] has a token, which is greater than the tokens of all earlier members of
//     that id.
//   - A member that leaves is gone at once. A member that dies is gone after its lease, 10
//     seconds by default (qlock.WithLease).
//   - [Group.Watch] reports a death within the lease and one round trip, and a join, a leave
//     or new metadata within a message delay. If the event of a change is lost, Watch
//     reports the change when it asks the nodes next, a third of the lease later at the
//     latest.
//
// # What is not guaranteed
//
//   - Two watchers do not see a change at the same moment. A list is what the nodes told one
//     after the other, not a snapshot of one moment. What must not be done twice needs a
//     lock, or package partition, and not a decision that each member makes from its list.
//   - A change that is undone before anybody asks may never be reported.
//   - A member that is listed may be unable to work: a lock shows that its process runs and
//     reaches the nodes, and nothing else.
//
// # Cost
//
// A member costs one lock: a message to acquire it, and one message every third of the
// lease, which is the message that refreshes all locks of its Locker. A thousand members
// with Lockers of their own and a lease of 10 s publish 316 messages a second, and each of
// n nodes receives and answers each of them (go test ./members -run TestCost -v
// -members.cost=1000 counts them). A watcher asks the nodes every third of the
// lease, page by page: one message for forty members, so 25 messages for a thousand, or 8
// messages a second, each answered by each node. It also receives one message for each
// event of the group.
//
// # Permissions
//
// A member needs the permissions of a client for the locks qlock.members.GROUP.>. [Group.List]
// and [Group.Watch] need the permission to list locks, and [WithEvents] that to receive the
// events of these locks. The role member of docs/security.md has all of this for a process that
// joins, the role inspector what is needed for one that only looks.
//
// Use a Locker without qlock.WithRetention: a lock that its client retains shows its member
// as alive for as long.
package members
