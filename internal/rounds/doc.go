// Package rounds measures how often clients have to ask for a lock that nobody else
// wants: once is what a lock should cost (C3). It runs the machines of packages node,
// client and local in virtual time, with clocks that differ and messages that take
// their time, which one machine cannot show. It has no code but tests.
package rounds
