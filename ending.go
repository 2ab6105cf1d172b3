package qlock

import (
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/qlock/qlock/internal/local"
	"github.com/qlock/qlock/internal/proto"
	"github.com/qlock/qlock/internal/subject"
)

// Wherever a lock is given up, its context ends first, and the nodes are told afterwards
// (C7): else the next holder would work beside what runs under contexts that have not ended yet.
// That takes its time. To end a context is to end, one by one, all that the program has
// derived from it, about a third of a microsecond each, before the call returns. So
//
//   - the one who gives a lock back ends its context on its own goroutine (unlock, Close);
//   - who finds a loss hands the contexts to other goroutines, as the loop must go on
//     looking at its clock: the next lock may be lost while the first one's thousands of
//     contexts end;
//   - nothing is published until they have ended: neither releases nor the refreshes, which
//     would tell the nodes the same.
//
// It runs none of the program's code: functions of context.AfterFunc have goroutines of
// their own, and between the caller's context and that of a lock there is none that it made
// itself (Do).

// endAll ends the contexts of locks, and returns when all have ended. Several goroutines
// do it, so that the locks whose contexts have the most descendants delay only each other.
func endAll(locks []*Lock, cause func(*Lock) error) {
	const fewest = 4 // also on fewer processors: Go divides the time among them
	var next atomic.Int64
	work := func() {
		for i := next.Add(1) - 1; i < int64(len(locks)); i = next.Add(1) - 1 {
			locks[i].cancel(cause(locks[i]))
		}
	}
	var others sync.WaitGroup
	for range min(len(locks), max(runtime.GOMAXPROCS(0), fewest)) - 1 {
		others.Go(work)
	}
	work()
	others.Wait()
}

// endLost ends the contexts of locks that are lost, and then lets the outbox go on, which
// was held when the loss was found.
func (l *Locker) endLost(lost []*Lock) {
	endAll(lost, func(k *Lock) error { return k.lost })
	for _, k := range lost {
		l.event(subject.Lost, k)
	}
	l.out.letGo()
	for _, k := range lost {
		if e, ok := k.lost.(*evictedError); ok {
			l.log.line(slog.LevelError, "lock lost: it was evicted", "name", k.name, "token", k.token, "by", e.By, "why", e.Why)
			continue
		}
		args := []any{"name", k.name, "token", k.token}
		if leapt, ok := k.lost.(*leaptError); ok {
			args = append(args, "why", leapt.why)
		}
		l.log.line(slog.LevelError, "lock lost: too few nodes confirmed it in time", args...)
	}
}

// mostInStep is for how many locks one step does something that many may need at once: as
// long as it takes, the loop cannot look at its clock.
const mostInStep = 256

// inSteps calls f for 0 to n-1, in as many steps as that takes.
func (l *Locker) inSteps(n int, f func(i int, now proto.Now, out *local.Out)) {
	for from := 0; from < n; from += mostInStep {
		l.step(func(now proto.Now, out *local.Out) {
			for i := from; i < min(from+mostInStep, n); i++ {
				f(i, now, out)
			}
		})
	}
}
