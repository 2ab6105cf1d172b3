// Package driver runs the machines of qlock on NATS connections: Client that of a client
// (internal/client and internal/hold), Node that of a node (internal/voter). It decodes,
// steps and publishes. What a message or the time means is for the machines to say, and
// what a connection is like for internal/natsio. Package qlock is the API in front of it.
//
// What holds throughout:
//
//   - Nothing that can block stands between a clock and the end of a lock's context. The
//     loop that reads the clock never touches the connection, and hands contexts of lost
//     locks to other goroutines.
//   - Under a mutex nothing is published, logged or called that is the program's.
//   - The context of a lock ends before anybody else can have the lock (C7): see ending.go.
package driver
