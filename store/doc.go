// Package store keeps data that only the holder of a lock can write. It stores values in
// a key-value bucket of NATS JetStream, and lets the server refuse each write whose lock
// has a newer holder.
//
// A lock alone cannot do that. A process that was stopped between checking its lock and
// writing may continue when another client holds the lock. Each lock has a fencing token,
// but the store must compare it. JetStream can: a publish may depend on the last message
// of another subject. Package store keeps one message for each lock, its fence. A holder
// publishes its token there before it reads or writes anything, and each of its writes
// depends on that message. The next holder replaces it, and from then on the server
// refuses the writes of the former holder.
//
//	s, err := store.Open(ctx, js, "orders")
//	err = s.Under(ctx, locker, "orders.42", func(ctx context.Context, v *store.View) error {
//		var last []byte
//		e, err := v.Get(ctx, "orders.42") // at least as new as what the last holder wrote
//		if err == nil {
//			last = e.Value()
//		} else if !errors.Is(err, jetstream.ErrKeyNotFound) { // a new bucket is empty
//			return err
//		}
//		_, err = v.Put(ctx, "orders.42", next(last)) // ErrFenced if this holder's time is over
//		return err
//	})
//
// View.Do and Store.Do run several operations as one transaction: all are done, or none.
// Once makes a transaction safe to repeat.
//
// Values are ordinary entries of the bucket: every key-value client reads and watches
// them. docs/store.md describes the messages, so that programs in other languages can
// take part.
//
// # What is guaranteed
//
// A View reads what every earlier holder of its lock has written, from any replica, and
// its own writes. When the fence has moved, its writes fail with ErrFenced. So do its reads,
// from each replica that has heard of it: until then a read of a former holder may give the
// values of its time.
// A transaction of a Store commits only if nothing that it read has changed, whoever writes
// it. A transaction of a View reads at one moment, and commits only if its lock has no newer
// holder. So transactions of both kinds are serializable together as long as those of a View
// read keys that are written under their lock alone. Unchanged is for other keys.
//
// # What is not guaranteed
//
// Fencing works among those who take part. A program that writes without a fence, such as
// with jetstream.KeyValue.Put, is not refused.
//
// A fence is as durable as its stream. If servers lose the last messages, for example
// because they lose power together before they have synced, or if a bucket is restored
// from a backup or made anew while locks are held, a former holder's writes may pass.
//
// A write whose answer is lost may or may not have been done. The package finds out where
// it can, and returns ErrUnknown where it cannot.
//
// # Rules
//
// The comments in the code cite these rules:
//
//   - S1: a claim moves the fence before its first read or write.
//   - S2: a read counts only from a replica that has the fence's message and the claim's
//     own last write. Only then is the fence compared.
//   - S3: each write depends on the fence's message. "Wrong last sequence" without a number
//     is no answer: the write is repeated.
//   - S4: a transaction reads everything at one moment, and commits in one atomic batch.
//   - S5: after a write without an answer the fence is moved again, to the same token. Then
//     the write has been done or will never be done, and a read tells which. So does a claim
//     that finds its own token in the fence, as the write may be another process's. A claim
//     that had the fence and finds it gone, or with a lower token, is over.
package store
