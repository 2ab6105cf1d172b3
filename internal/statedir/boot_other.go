//go:build !linux

package statedir

import "time"

func bootID() string { return "" }

// Uptime returns how long ago the machine was started, including sleep, or 0 if that is not
// known.
func Uptime() time.Duration { return 0 }
