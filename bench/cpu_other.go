//go:build !unix

package main

import "time"

// processCPU reports false because this system does not provide the value.
func processCPU() (time.Duration, bool) { return 0, false }

func familyCPU() (time.Duration, bool) { return 0, false }
