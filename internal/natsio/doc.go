// Package natsio is what qlock does with a NATS connection beside running its
// machines: it publishes in order and in batches from a goroutine of its own, learns
// which publishes NATS denied, keeps calls on a connection that stands still from
// holding up who must not wait, limits the rate of log lines, times a loop, and
// explains losses by leaps of the wall clock.
//
// Each type owns its lock, and its doc comment says which goroutines call what.
package natsio
