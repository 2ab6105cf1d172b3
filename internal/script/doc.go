// Package script contains the stories of the protocol. A story is a text file in testdata
// that runs the machines of packages voter and client, the same code as in production,
// and states the expected result. It reads like a transcript. The package has no code but
// tests. The idea comes from the data-driven tests of etcd-io/raft.
//
// A story is made of steps, with an empty line after each:
//
//	acquire a r exclusive
//	----
//	a -> n1 n2 n3: acquire a1 r exclusive @0s
//
// Commands are above the line, and their effects, in order, below it. A step without a
// line has no effects. Lines that begin with # are comments.
//
// The effects are every message when it is sent, with its sender and receivers, and what
// happens to claims. The first claim of client a is a1. A time after @ is the message's
// beat: the time when the client sent it, by its lease clock. For an answer it tells
// which message of the client it answers. A fence is a number in microseconds, because it
// starts from wall clocks: 3000000 is 3s.
//
// When a story begins, the clocks are at 0s. The nodes have a clean mark each, know
// nothing, and vote. Leases last 12s unless the story says otherwise. So a vote stands
// for 11.76s from sending (C1), a refresh is due every 4s (C6), and what a node may have
// forgotten has expired after 12.24s. A node asks for its name every 0.6s, and every 0.2s
// while it waits (N9). So a node without a clean mark waits for 13.84s: for 1.6s it
// listens for another node that does not hear it, and 12.24s follow (N8).
//
// Messages stay under way until they are delivered:
//
//	nodes NAME... [max-ttl=12s] [skew=5s] [max-claims=N] [max-queue=N] [epoch=1]
//	                           makes the cluster, which votes from now on; epoch=1: it has
//	                           its first record
//	client NAME... [ttl=12s] [clock=+1s] [nodes=n1,n2] [max-ttl=12s] [of=CLIENT]
//	               [record=EPOCH] [learns=yes]
//	                           makes clients; nodes and max-ttl: another configuration; of:
//	                           a copy of that client, from before its first claim; record: it
//	                           counts by that record, not by the last; learns: it learns the
//	                           list from the nodes (E16)
//	acquire CLIENT RESOURCE exclusive|shared [try]
//	release CLAIM              releases it, or gives up waiting
//	deliver                    delivers all messages, and those they cause, oldest first
//	deliver WHICH              delivers only those messages
//	drop WHICH                 loses them
//	hold-back WHICH            delays them: they are kept aside until let go
//	copy WHICH                 repeats them: a copy is kept aside
//	let-go WHICH               what was kept aside is under way again
//	cut LINK... | mend LINK... loses all that is sent there from now on | no longer
//	advance TIME               time passes without deliveries
//	run TIME                   time passes, and messages are delivered when they are sent
//	crash NODE | stop NODE     ends it without | with a clean mark
//	start NODE [max-ttl=T] [nodes=n1,n2] [as=HOST] [directory=new|bootstrapped] [join=yes]
//	                           starts it, from its mark if there is one, it is not too old
//	                           and nothing in it differs; as: a second node of that
//	                           name, called HOST; directory=new: nothing is left of its
//	                           earlier lives, not even their names; bootstrapped: the
//	                           same, but it is told that there were none; join: it waits
//	                           to be added to the list
//	pause X | resume X         stops a client's or node's process; its clocks go on
//	suspend CLIENT             its machine sleeps: its monotonic clock stands still too
//	clock X +2s                sets X's wall clock to that distance from the others
//	reconnect CLIENT           its NATS connection came back
//	reconfigure CLIENT [nodes=n1,n2] [max-ttl=12s] [record=EPOCH]
//	                           the client has learned this configuration
//	join NODE...               starts new nodes, which wait to be added to the list
//	record joint NODE... [max-ttl=12s] [skew=5s] | record finish | record back
//	                           makes the record that is to follow the last decided one. The
//	                           floor of a finish is that of the promises to the last prepare
//	prepare BALLOT [NODE...] | accept BALLOT [NODE...]
//	                           the host ops, an operator's command, sends this step to nodes,
//	                           or to all: accept is about the record made last
//	learn [NODE...]            it tells them that record, which is decided from now on
//	probes shown|hidden        shows the nodes' probes of their own names (N9) as messages
//	show X                     shows what a node or a client knows
//	show network               shows what is under way, and what is kept aside
//
// WHICH is any combination of a link a->n1, with * for either end; a kind of message such
// as acquire or granted; and a claim. A message must match all of them. It is an error if
// none matches.
//
// After every event, the runner also checks that no two conflicting claims are held, and
// that tokens rise.
package script
