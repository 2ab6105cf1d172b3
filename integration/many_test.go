//go:build !race

package integration

// many is how many nodes there may be.
const many = 16
