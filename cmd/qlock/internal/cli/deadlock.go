package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/printable"
)

// The nodes know which clients hold and which wait for each lock. Clients that wait for
// each other in a circle are deadlocked. Here a client is a Locker: the nodes cannot
// distinguish what its goroutines hold and wait for, so a circle need not be a deadlock.

const (
	// mostAwaited is how many locks with waiters are examined at most.
	mostAwaited = 1000
	// circleLasts is how long a circle must last, with the same claims, to be reported. The
	// nodes' answers are not of the same moment, and a wait may be about to end.
	circleLasts = time.Second
)

// checkDeadlocks looks for clients that wait for each other in a circle.
func checkDeadlocks(ctx context.Context, locker *qlock.Locker, all []qlock.LockInfo, r *findings) {
	awaited := []string{}
	for i := range all {
		if all[i].Waiting > 0 {
			awaited = append(awaited, all[i].Name)
		}
	}
	if len(awaited) < 2 {
		r.add(fine, "deadlock", "no clients wait for each other in a circle", "")
		return
	}
	skipped := max(len(awaited)-mostAwaited, 0)
	awaited = awaited[:len(awaited)-skipped]
	found, err := lookForCircles(ctx, locker, awaited)
	if err == nil && len(found) > 0 {
		select {
		case <-time.After(circleLasts):
		case <-ctx.Done():
		}
		var again []circle
		again, err = lookForCircles(ctx, locker, awaited)
		still := map[string]bool{}
		for _, c := range again {
			still[c.key()] = true
		}
		found = slices.DeleteFunc(found, func(c circle) bool { return !still[c.key()] })
	}
	switch {
	case errors.Is(err, qlock.ErrRefused):
		r.add(fine, "deadlock", "this user may not inspect locks: whether clients wait for each other in a circle is unknown", "")
		return
	case err != nil:
		r.add(warning, "deadlock", "whether clients wait for each other in a circle is unknown: "+plain(err), "--timeout waits longer")
		return
	}
	for _, c := range found {
		r.add(problem, "deadlock", c.text(), c.help())
	}
	if skipped > 0 {
		r.add(warning, "deadlock", fmt.Sprintf("clients wait for %d locks, and %d of these were not looked at: there may be deadlocks", len(awaited)+skipped, skipped), "")
	} else if len(found) == 0 {
		r.add(fine, "deadlock", fmt.Sprintf("no clients wait for each other in a circle (%s with waiters)", several(len(awaited), "lock")), "")
	}
}

func lookForCircles(ctx context.Context, locker *qlock.Locker, names []string) ([]circle, error) {
	infos := make([]qlock.LockInfo, 0, len(names))
	for _, name := range names {
		info, err := locker.Inspect(ctx, name)
		if err != nil {
			return nil, err
		}
		infos = append(infos, *info)
	}
	return circles(infos), nil
}

// wait is a claim that waits, and a claim that blocks it.
type wait struct {
	lock    string
	waiter  *qlock.ClaimInfo
	blocker *qlock.ClaimInfo
	holds   bool // the blocker holds the lock, and does not itself wait for it
}

// circle is a list of waits. Each waits for a claim of the client that waits in the next
// one, and the last waits for the first.
type circle []wait

// key returns a text that is equal for circles of the same claims.
func (c circle) key() string {
	parts := make([]string, len(c))
	for i, w := range c {
		parts[i] = fmt.Sprintf("%q %s %s", w.lock, w.waiter.ID, w.blocker.ID)
	}
	slices.Sort(parts) // a circle has no beginning
	return strings.Join(parts, "\n")
}

func (c circle) text() string {
	var parts []string
	for _, w := range c {
		how := "holds"
		if !w.holds {
			how = "waits for as well, and comes first"
		}
		parts = append(parts, fmt.Sprintf("%s has waited for %s for %s, which %s %s", printable.Text(w.waiter.Client), lockNamed(w.lock), age(w.waiter.For), printable.Text(w.blocker.Client), how))
	}
	return "deadlock: clients wait for each other in a circle: " + strings.Join(parts, "; ")
}

func (c circle) help() string {
	for _, w := range c {
		if w.holds {
			return fmt.Sprintf("to end it: qlock unlock %s --force --claim %s; so that it does not come again, acquire locks in the same order everywhere (LockAll); no deadlock if these clients hold and wait in goroutines that do not wait for each other", shellWord(w.lock), shortID(w.blocker.ID))
		}
	}
	return "acquire locks in the same order everywhere (LockAll)"
}

// shellWord returns a name as a word for a shell.
func shellWord(name string) string {
	if strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == "" && !strings.HasPrefix(name, "-") {
		return name
	}
	return "'" + strings.ReplaceAll(printable.Text(name), "'", `'\''`) + "'"
}

// party identifies the Locker of a claim, because several Lockers may have the same client
// name.
func party(c *qlock.ClaimInfo) string {
	instance, _, _ := strings.Cut(c.ID, "/")
	return c.Client + "/" + instance
}

// circles returns circles of clients that wait for each other. Each client is in one circle
// at most.
func circles(locks []qlock.LockInfo) []circle {
	waits := waitsOf(locks)
	// A waiter counts as stuck until something in its way proves not to be stuck. The rest then
	// contains a circle.
	stuck := map[string]bool{}
	for who := range waits {
		stuck[who] = true
	}
	next := func(who string) *wait {
		for _, group := range slices.Sorted(maps.Keys(waits[who])) {
			var found *wait
			free := false
			for _, lock := range slices.Sorted(maps.Keys(waits[who][group])) {
				alternatives := waits[who][group][lock]
				i := slices.IndexFunc(alternatives, func(w wait) bool { return stuck[party(w.blocker)] })
				if i < 0 {
					free = true // this one will be granted, and one is enough
				} else if found == nil {
					found = &alternatives[i]
				}
			}
			if found != nil && !free {
				return found
			}
		}
		return nil
	}
	for changed := true; changed; {
		changed = false
		for who := range stuck {
			if next(who) == nil {
				delete(stuck, who)
				changed = true
			}
		}
	}
	var out []circle
	seen := map[string]bool{}
	for _, who := range slices.Sorted(maps.Keys(stuck)) {
		var way circle
		var order []string
		for !seen[who] {
			seen[who] = true
			w := next(who)
			way, order = append(way, *w), append(order, who)
			who = party(w.blocker)
		}
		if i := slices.Index(order, who); i >= 0 { // otherwise it leads to a known circle
			out = append(out, way[i:])
		}
	}
	return out
}

// waitsOf returns what is in the way of each waiting client: by what it waits for, and
// within that by lock. One of the permits of a semaphore is enough, so they are one group.
func waitsOf(locks []qlock.LockInfo) map[string]map[string]map[string][]wait {
	out := map[string]map[string]map[string][]wait{}
	for i := range locks {
		info := &locks[i]
		group := "lock " + info.Name
		if u := useOf(info.Name); u != nil && u.Kind == "permit" {
			group = "semaphore " + u.Of
		}
		for k := range info.Queue {
			waiter := &info.Queue[k]
			who := party(waiter)
			var list []wait
			add := func(c *qlock.ClaimInfo, holds bool) {
				// A client does not block itself: another of its goroutines holds the lock.
				if party(c) != who && !(c.Shared && waiter.Shared) {
					list = append(list, wait{info.Name, waiter, c, holds})
				}
			}
			for h := range info.Holders {
				add(&info.Holders[h], true)
			}
			for before := range info.Queue[:k] {
				add(&info.Queue[before], false)
			}
			if out[who] == nil {
				out[who] = map[string]map[string][]wait{}
			}
			if out[who][group] == nil {
				out[who][group] = map[string][]wait{}
			}
			out[who][group][info.Name] = append(out[who][group][info.Name], list...)
		}
	}
	return out
}
