//go:build unix

package recipes

import (
	"syscall"

	"github.com/qlock/qlock/integration/internal/child"
)

// line is what a process tells the judge, as JSON on its standard output. It is written
// at once: what was in the pipe when a process was killed is read. All times are
// readings of the machine's monotonic clock.
type line struct {
	Kind  string
	At    int64    `json:",omitempty"` // when the clock was read, before whatever it says was looked at
	ID    uint64   `json:",omitempty"` // of a claim, in its process
	Name  string   `json:",omitempty"` // of what is claimed
	Token uint64   `json:",omitempty"`
	IDs   []uint64 `json:",omitempty"` // still: of the claims that are trusted
	Text  string   `json:",omitempty"`
}

const (
	claimed = "claimed" // it has something
	still   = "still"   // and trusts that it has
	ended   = "ended"   // its context ended before it gave it back
	failed  = "failed"  // a call failed for a reason that faults explain
	broken  = "broken"  // something happened that no fault explains
	working = "working" // a handler has begun, and waits
	effect  = "effect"  // what the store said to it
)

// now is the clock of all that the processes say.
var now = child.Now

// launch starts a worker. What it says goes to hear, in order.
func launch(dir string, r role, hear func(line)) (*child.Process, error) {
	return child.Launch(dir, r.Process, roleVariable, r, hear, func(why string) { hear(line{Kind: broken, Text: why}) })
}

// stop and resume fail for a process that is dead, which is reported when its end is heard.
func stop(p *child.Process)   { _ = p.Signal(syscall.SIGSTOP) }
func resume(p *child.Process) { _ = p.Signal(syscall.SIGCONT) }
