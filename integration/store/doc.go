// Package store has tests of package store that take long, need other modules, or kill
// processes.
package store
