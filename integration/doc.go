// Package integration has tests of the whole, with real servers, connections and
// processes on loopback. Nothing in it is for import.
//
// A test that must show that something does not happen says how long it looked;
// all others wait for what must come, with a deadline. Leases are of one to three
// seconds, so that a lock is lost, and a quarantine over, within a test: short
// ones where a loss is wanted, longer ones where a busy machine must not cause
// one.
package integration
