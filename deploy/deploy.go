// Package deploy has no code. It consists of the files around it, for containers, systemd
// and Kubernetes, and of tests that check that these files fulfil their purpose.
package deploy
