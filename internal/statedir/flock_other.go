//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package statedir

import "os"

// locks reports whether flock excludes others.
const locks = false

// flock does nothing because this system has no flock. The operator must ensure that each
// node has a directory of its own.
func flock(*os.File) error { return nil }

func unflock(*os.File) error { return nil }
