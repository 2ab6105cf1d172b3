package natsio

import (
	"fmt"
	"time"

	"github.com/qlock/qlock/internal/statedir"
	"github.com/qlock/qlock/internal/wire"
)

// Leaps notes when the wall clock went ahead of the monotonic one. Locks are lost by that
// (C8), since it may mean that the machine slept; whoever lost one should know. It has no
// lock of its own: its owner's guards it.
type Leaps struct {
	known  bool
	offset time.Duration // of the wall clock from the monotonic one
	by     time.Duration // the last leap
	at     time.Duration // when it was seen, by the monotonic clock
	asleep time.Duration // of that, asleep, if the machine tells
	tells  bool
	slept  time.Duration // until now, but for a constant, if it tells
}

// leap is more than clocks are slewed by in a second.
const leap = 50 * time.Millisecond

// Read takes a reading of the clocks.
func (w *Leaps) Read(now wire.Now) {
	offset := time.Duration(now.Wall)*time.Microsecond - now.Mono
	if ahead := offset - w.offset; !w.known || ahead > leap {
		// Both go on evenly, but that one stands still while the machine sleeps.
		up := statedir.Uptime()
		slept, tells := up-now.Mono, up > 0
		if w.known {
			w.by, w.at = ahead, now.Mono
			w.asleep, w.tells = slept-w.slept, tells
		}
		w.known, w.slept = true, slept
	}
	w.offset = offset
}

// Explain says why locks were lost, if a leap within the lease explains it; else "".
func (w *Leaps) Explain(now wire.Now, lease time.Duration) string {
	by := w.by.Round(time.Millisecond)
	switch {
	case w.by < lease/2 || now.Mono-w.at > lease:
		return "" // a refresh would have been in time
	case !w.tells:
		return fmt.Sprintf("this machine's wall clock went ahead by %v: it was set, or the machine slept", by)
	case w.asleep > w.by/2:
		return fmt.Sprintf("this machine slept for %v", w.asleep.Round(time.Millisecond))
	}
	return fmt.Sprintf("this machine's wall clock was set ahead by %v", by)
}
