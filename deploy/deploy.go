// Package deploy has no code: it is the files around it, for containers, systemd and
// Kubernetes, and the tests that hold them against what they are for.
package deploy
