package statedir

import "testing"

// The clock is read under the mutex of a Locker, before the contexts of lost locks end,
// and so is not to come from a file: in some containers /proc/uptime is served by a
// program, and blocks when that does. A file has hundredths of a second.
func TestUptimeIsNoFile(t *testing.T) {
	for range 3 {
		if first, then := Uptime(), Uptime(); first == then {
			t.Fatal("two readings are the same: the clock is that of /proc/uptime")
		}
	}
}
