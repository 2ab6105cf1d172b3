//go:build !linux

package statedir

import "time"

func bootID() string { return "" }

// Uptime is how long ago the machine was started, with the time in which it slept;
// 0 where that is not known.
func Uptime() time.Duration { return 0 }
