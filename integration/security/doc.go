// Package security has tests of who may do what, on real servers with the
// configurations of docs/security.md as they are printed there, and tests in which
// a client that is allowed to lock under its own name tries to harm others.
// Nothing in it is for import.
package security
