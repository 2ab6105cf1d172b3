// Package rules has no code. Its tests check the rules about which package may import what,
// by reading the source of the whole repository. .golangci.yml has the same rules for
// editors that run golangci-lint.
package rules
