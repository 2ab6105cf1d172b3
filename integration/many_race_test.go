//go:build race

package integration

// many is less than there may be: under the race detector, two cores do not give sixteen
// servers the time that their nodes need to hear themselves.
const many = 8
