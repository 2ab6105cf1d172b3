// Package natsio is what qlock does with a NATS connection besides running its machines. It
// publishes in order and in batches from a goroutine of its own, and detects which
// publishes NATS denied. It protects callers that must not wait from calls on a blocked
// connection. It limits the rate of log lines, times a loop, and explains losses by leaps
// of the wall clock.
//
// Each type has its own lock unless its doc comment says otherwise. The doc comment also
// says which goroutines may call its methods.
package natsio
