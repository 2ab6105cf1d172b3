// Package script holds the stories of the protocol: text files in testdata that
// run the machines of packages node and client, the very ones that production
// runs, and say what must come of it. They are read like a transcript. It has no
// code but tests. After the data-driven tests of etcd-io/raft.
//
// A story is made of steps, with an empty line after each:
//
//	acquire a r exclusive
//	----
//	a -> n1 n2 n3: acquire a1 r exclusive @0s
//
// Above the line stand commands, below it what they bring about, in order; a
// step without a line brings about nothing. Lines that begin with # explain.
//
// What is seen: every message when it is sent, with its sender and receivers, and
// what becomes of claims. The first claim of client a is a1. A time after @ is
// the message's beat: when the client sent it, by its lease clock, or of an
// answer, which message of the client it answers. A fence is a number in
// microseconds because it starts from wall clocks: 3000000 is 3s.
//
// The clocks stand at 0s when a story begins, the nodes have a clean mark each,
// know of nothing, and vote. Leases last 12s unless said otherwise, so a vote
// stands for 11.76s from sending (C1), a refresh is due every 4s (C6), and what a
// node may have forgotten has run out after 12.24s. A node asks for its name every
// 0.6s, and every 0.2s while it waits (N9). So one without a clean mark waits for
// 13.84s: for 1.6s it listens for another that does not hear it, and 12.24s follow
// (N8).
//
// Messages stay under way until they are delivered:
//
//	nodes NAME... [max-ttl=12s] [skew=5s] [max-claims=N] [max-queue=N]
//	                           the cluster, from now on voting
//	client NAME... [ttl=12s] [clock=+1s] [nodes=n1,n2] [max-ttl=12s] [of=CLIENT]
//	                           clients; nodes and max-ttl: another configuration; of: it
//	                           is a copy of that one, from before its first claim
//	acquire CLIENT RESOURCE exclusive|shared [try]
//	release CLAIM              give back, or give up waiting
//	deliver                    all messages, and those that they cause, oldest first
//	deliver WHICH              those messages only
//	drop WHICH                 lose them
//	hold-back WHICH            they are late: kept aside until let go
//	copy WHICH                 they come again: a copy is kept aside
//	let-go WHICH               what was kept aside is under way again
//	cut LINK... | mend LINK... all that is sent there from now on is lost | no more
//	advance TIME               time passes, deliveries wait
//	run TIME                   time passes, and all is delivered as soon as it is sent
//	crash NODE | stop NODE     ends without | with a clean mark
//	start NODE [max-ttl=T] [nodes=n1,n2] [as=HOST] [directory=new|bootstrapped]
//	                           starts, from the mark if there is one, it is not too old
//	                           and nothing in it differs; as: a second node of that
//	                           name, called HOST; directory=new: nothing is left of its
//	                           earlier lives, not even what they were called; bootstrapped:
//	                           nor is it, but it is told that there were none
//	pause X | resume X         a client's or node's process stands still, its clocks go on
//	suspend CLIENT             its machine sleeps: its monotonic clock stands still too
//	clock X +2s                X's wall clock is set to so much from the others
//	reconnect CLIENT           its NATS connection came back
//	reconfigure CLIENT [nodes=n1,n2] [max-ttl=12s]
//	                           the client has learned this configuration
//	probes shown|hidden        the nodes' probes of their own names (N9) are messages too
//	show X                     what a node or a client knows
//	show network               what is under way, and what is kept aside
//
// WHICH is any of: a link a->n1, with * for any end; a kind of message such as
// acquire or granted; a claim. A message meets it if it meets all that is said.
// To name messages that are not there is an error.
//
// Beside what a story expects, the runner checks after every event that no two
// claims that conflict are held, and that tokens rise.
package script
