// Package recipes tests the recipes as their users run them: with processes that are
// killed (SIGKILL) and stopped for longer than the lease (SIGSTOP, SIGCONT), and with
// a replicated JetStream whose servers fail. Nothing in it is for import; the tests
// with processes run on Unix.
//
//	go test ./integration/recipes -v
//	go test ./integration/recipes -run TestProcesses/queue -recipes.for=1m -recipes.seed=7 -v
//
// The same seed gives the same faults at the same times, and not the same run: the
// operating system decides which process runs when.
//
// # What is checked
//
// All processes are on one machine and read its one monotonic clock, so what they say
// can be put in one order. A process says when it has something (a permit, a partition,
// a membership, a leadership, the lock of a key), and every few milliseconds that it still trusts its
// context. It reads the clock before it looks at the context and at the lease clock
// (qlock.Lock.Stands). So it held all the time from the first of these moments to the
// last, whatever happened in between, and however long it was stopped afterwards. A
// process that was killed had it until the last moment that it wrote down.
//
// From these times follow the checks: two of them never overlap for one permit,
// partition, id, key or name; no more permits are held than there are; and tokens rise
// in the order of the times. What leaders and handlers of a queue write goes to a store that
// refuses lower tokens: it refuses what they write that were stopped for longer than the lease
// before they wrote. The order of what it took of a queue is that in which the items were enqueued.
// After the last fault everything works again: each process gets what it asks for.
//
// Elections, semaphores and queues also run inside the test while servers crash, stop and are
// cut off from each other, and porcupine checks what their clients did against a model.
//
//	go test ./integration/recipes -run History -faults.rounds=10 -faults.seed=7 -v
package recipes
