// Package driver runs the machines of qlock on NATS connections. Client runs the machine of a
// client (internal/client and internal/hold), and Node that of a node (internal/voter). The driver
// decodes messages, steps the machines and publishes what they want sent. The machines decide what
// messages and times mean. internal/natsio knows how connections behave. Package qlock is the API
// in front of the driver.
//
// These rules hold throughout:
//
//   - No blocking call stands between a clock and the end of a lock's context. The loop that reads
//     the clock never touches the connection, and leaves the contexts of lost locks to other
//     goroutines.
//   - No goroutine publishes, logs or calls the program's code while it holds a mutex.
//   - The context of a lock ends before anybody else can hold the lock (C7): see ending.go.
package driver
