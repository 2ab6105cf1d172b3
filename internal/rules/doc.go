// Package rules has no code. Its tests are the rules about what may import what: they
// read the source of the whole repository. .golangci.yml has the same rules for those
// whose editor runs golangci-lint.
package rules
