// Package child runs a test's own program again, as a child process that plays a role, and hears
// what it says: lines of JSON, each written at once, so that a judge knows all that a process
// said before it was killed.
package child
