// Package qlock is distributed locks for services that already talk NATS: like
// flock, but for a cluster.
//
// A few nodes (StartNode, or package embedded, which adds a nats-server) listen
// for lock requests. A Locker publishes each request to all of them at once and
// holds the lock when a quorum has given its vote: no master, no log, no disk on
// the way, one round trip. Waiters queue at the nodes, oldest first, and are
// called; nobody polls. A crashed holder's lock is free after its lease; a holder
// that is cut off learns of its loss before anybody else can have the lock, on
// its own clock; every lock has a fencing token.
//
// docs/protocol.md has the rules by number and why they hold, docs/wire.md the
// messages for clients in other languages.
//
// # What is not guaranteed
//
// No lock service can stop a process that was paused, or whose machine was
// frozen with all its clocks, in the moment between a look at the lock and the
// write that follows. Use the token for that: see [Lock.Token].
package qlock
