//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package statedir

import "os"

// locks reports whether flock keeps others out.
const locks = false

// flock does nothing where there is no flock: that each node has a directory of
// its own is then for the operator to see to.
func flock(*os.File) error { return nil }

func unflock(*os.File) error { return nil }
