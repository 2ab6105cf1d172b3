package natsio

import (
	"fmt"
	"time"

	"github.com/qlock/qlock/internal/statedir"
	"github.com/qlock/qlock/internal/wire"
)

// Leaps records when the wall clock went ahead of the monotonic clock. That may mean that
// the machine slept, so locks are lost by it (C8), and their holders should learn why.
// Leaps has no lock of its own: its owner's lock guards it.
type Leaps struct {
	known  bool
	offset time.Duration // of the wall clock from the monotonic clock
	by     time.Duration // size of the last leap
	at     time.Duration // when it was seen, by the monotonic clock
	asleep time.Duration // the part of by in which the machine slept, if that is known
	tells  bool
	slept  time.Duration // total time asleep so far, plus a constant, if that is known
}

// leap is the smallest difference that counts as a leap. It is more than clocks are slewed
// by in a second.
const leap = 50 * time.Millisecond

// Read evaluates a reading of the clocks.
func (w *Leaps) Read(now wire.Now) {
	offset := time.Duration(now.Wall)*time.Microsecond - now.Mono
	if ahead := offset - w.offset; !w.known || ahead > leap {
		// Both clocks run evenly, but the monotonic clock stops while the machine sleeps.
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

// Explain returns why locks were lost if a leap within the lease explains it, and otherwise
// "".
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
