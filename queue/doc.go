// Package queue runs work that must not run twice at once. JetStream stores and delivers
// the items; a lock of package qlock guards each key.
//
//	q, err := queue.Open(ctx, js, queue.Config{Name: "mail"})
//	_, err = q.Enqueue(ctx, "customer-42", body, queue.WithID("order-1007"))
//
//	err = q.Work(ctx, locker, func(ctx context.Context, item *queue.Item) error {
//		return send(ctx, item.Key, item.Data, qlock.Token(ctx))
//	}, queue.WithConcurrency(16))
//
// # What is guaranteed
//
//   - At most one handler runs for a key at any moment, on whichever worker. It runs under
//     the lock of the key, and its context ends before another worker can have that lock.
//     The tokens of a key rise.
//   - Items of one key run in the order in which the stream has them: the next begins when
//     the one before is done, or is a dead letter. Items of different keys run in parallel.
//   - An item is done when its handler has returned nil and the stream has confirmed it. An
//     item that was stored is done or becomes a dead letter, as long as any worker works,
//     and the account has room for dead letters.
//   - A worker that dies gives its items back within Config.Lease, which should be that of
//     the Lockers. So does one that reaches JetStream, and too few nodes for a lock.
//   - A handler that fails is called again after a pause. After Config.MaxAttempts, the item
//     becomes a dead letter. An attempt that is interrupted, as its worker stops or dies,
//     counts. An item that only waited at a worker counts none if the worker gives it back,
//     and one at most, however often, if workers die or JetStream does not answer.
//   - Two calls of Enqueue with the same id, within Config.Duplicates, are one item.
//
// # What is not guaranteed
//
//   - An item may run more than once, one run after the other: when a worker dies or is cut
//     off after its handler did the work and before the stream has confirmed it. Handlers
//     should be idempotent, or remember Item.Seq.
//   - A process that is paused may go on when its lock is lost: send qlock.Token(ctx) with
//     each write.
//   - If the account is full, attempts after the first cannot be counted: an item may be tried
//     more often than Config.MaxAttempts. One that fails for good stays in the queue, with
//     those of its key behind it, until there is room for its dead letter.
//   - One key with many items that fail or are slow holds up others, when its items are
//     Config.MaxPending.
//
// # Cost
//
// Beside delivery and acknowledgement, which every consumer has, an item costs one lock and
// one question to the stream, for the first item of the key. Items of a key that one worker
// has one after the other share a lock. Where items need no order and may run twice at
// once, a plain JetStream consumer is simpler and faster.
//
// # What it creates
//
// Streams qlock-queue-NAME (the items: work-queue retention), qlock-dead-NAME (dead letters)
// and qlock-tries-NAME (attempts of items that were delivered more than once). Do not limit
// the size of the first by its configuration: a stream that can delay items cannot refuse what
// is too much, and drops the oldest. Limit the account instead: then Enqueue fails. They are on
// subjects under qlock.queue.NAME, and the consumer "workers". The locks are
// qlock.queue.NAME.KEY.
package queue
