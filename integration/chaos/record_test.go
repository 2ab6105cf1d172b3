//go:build unix

package chaos

import (
	"slices"
	"time"
)

// line is what a process tells the supervisor, as JSON on its standard output. It
// is written at once: what was in the pipe when a process was killed is read. All
// times are readings of the machine's monotonic clock.
type line struct {
	Kind string `json:"kind"`
	At   int64  `json:"at"`

	// Of a node.
	Client string `json:"client,omitempty"` // serving: where clients connect
	Route  string `json:"route,omitempty"`  // serving: where the other servers do
	Claims int    `json:"claims,omitempty"` // claims

	// Of a client.
	Holder string `json:"holder,omitempty"`
	Worker int    `json:"worker,omitempty"`
	Name   string `json:"name,omitempty"` // of the resource
	Shared bool   `json:"shared,omitempty"`
	Rude   bool   `json:"rude,omitempty"`
	Token  uint64 `json:"token,omitempty"`
	Called int64  `json:"called,omitempty"` // granted: when the lock was asked for
	From   int64  `json:"from,omitempty"`   // late: when the process last ran before
	Lost   bool   `json:"lost,omitempty"`   // released: what Unlock said
	Wrote  int    `json:"wrote,omitempty"`  // released: the value that the store took
	Text   string `json:"text,omitempty"`
}

const (
	// A node's.
	serving = "serving"
	voting  = "voting"
	claims  = "claims" // the answer to the question of that name

	// A client's. A holder says that it is about to unlock before it does: were it
	// killed after it had unlocked and before it had said so, it would seem to hold
	// beside the next.
	granted   = "granted"
	told      = "told" // its context ended by loss
	releasing = "releasing"
	released  = "released"
	failed    = "failed"  // not granted, for a reason that faults explain
	evicted   = "evicted" // somebody's claim, by an operator
	alive     = "alive"
	late      = "late"

	// Anybody's.
	broken = "broken" // something happened that no fault explains
)

// record is what is checked: what the clients said, what the store saw, and what
// the supervisor did.
type record struct {
	zero     int64 // when the schedule began
	holdings []*holding
	lives    map[string]*life // of client processes
	accesses []access         // in the store's order
}

// holding is one lock from its grant to its end.
type holding struct {
	id      string
	process string
	slot    int // of the worker among all workers
	name    string
	shared  bool
	rude    bool // does not look at the lock's context
	token   uint64

	called, returned int64 // of Lock and its like
	releasing        int64 // when Unlock was called, or 0
	released         int64 // when it returned, or 0
	lost             bool  // Unlock said so
	told             int64 // when the context ended by loss, or 0
	wrote            int   // what the store took from it, or 0
}

// span is from one moment to another.
type span struct{ from, to int64 }

// life is what is known of a client process.
type life struct {
	gaps   []span // in which it did not run, measured by itself
	stops  []span // from before SIGSTOP to after SIGCONT
	alive  int64  // the last sign of life
	killed span   // before and after SIGKILL; 0 if it was not killed
}

// access is one request to the store.
type access struct {
	at      int64
	name    string
	holder  string
	token   uint64
	shared  bool
	write   bool
	value   int // written, or read
	refused bool
}

const (
	// beat is the period of the timer by which a process measures whether it runs.
	beat = 5 * time.Millisecond

	// tardy is how late that timer must be for the process to say so.
	tardy = 10 * time.Millisecond

	// slop is how late a process that runs may notice something without being tardy:
	// its timer, its goroutines and its record each take a little.
	slop = 25 * time.Millisecond
)

// unheard is from when on a process may have missed what it only noticed at the
// end: it goes back over the times in which the process did not run, for as long as
// it ran no longer than slop in between.
func (l *life) unheard(end int64) int64 {
	gaps := slices.Clone(l.gaps)
	if l.killed.from != 0 {
		gaps = append(gaps, span{l.alive, l.killed.from})
	}
	slices.SortFunc(gaps, func(a, b span) int { return int(b.to - a.to) })
	at := end - slop.Nanoseconds()
	for _, g := range gaps {
		if g.from < end && g.to >= at {
			at = min(at, g.from-slop.Nanoseconds())
		}
	}
	return at
}

// stopped reports whether the supervisor had stopped the process in this time.
func (l *life) stopped(from, to int64) bool {
	return slices.ContainsFunc(l.stops, func(s span) bool { return s.from < to && from < s.to })
}

// ending is when a holding may have ended: not before from, for certain, and at to
// its holder knew or was dead. ok is false if its end is not recorded.
func (r *record) ending(h *holding) (s span, ok bool) {
	l := r.lives[h.process]
	switch {
	case h.released != 0 && !h.lost:
		return span{h.releasing, h.released}, true
	case h.told != 0 || h.lost:
		at := h.released
		if at == 0 || h.told != 0 && h.told < at {
			at = h.told
		}
		return span{max(l.unheard(at), h.called), at}, true
	case l.killed.from == 0:
		return span{}, false
	case h.releasing != 0: // killed while it unlocked
		return span{min(h.releasing, max(l.unheard(l.killed.from), h.called)), l.killed.to}, true
	}
	return span{max(l.unheard(l.killed.from), h.called), l.killed.to}, true
}
