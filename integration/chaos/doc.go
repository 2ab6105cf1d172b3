// Package chaos is a test of the whole under faults: five nodes and seven clients,
// each a process of its own, all links between them led through proxies, and a
// supervisor that kills, stops, wipes, cuts and heals by a schedule that comes from
// one seed. The clients do work on a store that is fenced by the locks' tokens and
// records everything. Afterwards the records are checked. Nothing in it is for
// import; it runs on Unix, where a process can be stopped.
//
//	go test ./integration/chaos -v                                  # a short run
//	go test ./integration/chaos -run TestChaos -chaos.for=2m -v     # a longer one
//	go test ./integration/chaos -run TestChaos -chaos.seed=7 -v     # other faults
//	go test ./integration/chaos -run TestLists -chaos.for=1m -v     # the list of nodes changes
//
// The same seed gives the same schedule, at the same times. It does not give the
// same run: the processes are real, and the operating system decides which of them
// goes on when. A failure may need several runs with its seed to come back, which
// is why the record of a run that failed can be kept (go test -artifacts).
//
// TestLists changes the list of nodes, kills nodes that are replaced by others, clients, and the
// processes that change the list. Its clients each keep one lock all the time. In half of the changes
// links are harmed, and a client is cut off when the change begins. Without -chaos.for it makes one
// change, with links in order.
//
// # What is checked
//
// All processes are on one machine and read its one monotonic clock, so their
// records can be put in one order. A holder holds for certain from when the call
// that granted the lock had returned to when it called Unlock, if Unlock said that
// the lock was not lost: Unlock asks the lease clock, so that answer is exact
// however long the process was stopped before. A holder that was told of its loss,
// or killed, held for certain until then, less the time for which its process did
// not run before that. Each client process measures that itself, by a timer that
// comes late; it notices the supervisor's SIGSTOP and a busy machine alike. On that
// rest these checks:
//
//   - no two holders of one lock for certain at once, unless both are readers: by
//     the clock, and by the order of what the store recorded
//   - no lost update: each write that the store took is the increment of the one
//     before it
//   - what the store refused came from a holder that had been told of its loss, or
//     whose process was not running when it would have been told
//   - tokens are unique among writers and never fall at the store
//   - the whole history is linearizable, by porcupine under the model of a lock for
//     readers and writers with tokens
//   - after the last fault every worker of every client has a lock within a bound,
//     and when the clients are closed the nodes know of no claims
//   - no process died that was not killed
package chaos
