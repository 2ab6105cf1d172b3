// Package rounds measures how many round trips an uncontended lock takes, which should be
// one (C3). It runs the machines of packages voter, client and hold in virtual time, with
// clocks that differ and messages that take time, which cannot be seen on one machine. It
// has no code but tests.
package rounds
