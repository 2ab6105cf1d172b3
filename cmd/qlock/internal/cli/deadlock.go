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
//
// A qlock run within the command of another is a client of its own, and its note says under
// which lock it runs (under.go). The outer one waits for it: it holds its lock until its command
// ends.
//
// A client that holds a permit of a semaphore and waits for another one may wait for itself. As a
// rule it does not: in a busy program some goroutines hold permits and others wait for them. So
// such a circle is only a warning, and only after a while.

const (
	// mostAwaited is how many locks with waiters are examined at most.
	mostAwaited = 1000
	// circleLasts is how long a circle must last, with the same claims, to be reported. The
	// nodes' answers are not of the same moment, and a wait may be about to end.
	circleLasts = time.Second
	// busyLasts is how long the waits of a circle must have lasted that busy clients may explain.
	busyLasts = time.Minute
)

// checkDeadlocks looks for clients that wait for each other in a circle.
func checkDeadlocks(ctx context.Context, locker *qlock.Locker, all []qlock.LockInfo, r *findings) {
	awaited := []string{}
	for i := range all {
		if all[i].Waiting > 0 {
			awaited = append(awaited, all[i].Name)
		}
	}
	if len(awaited) == 0 {
		r.add(fine, "deadlock", "no clients wait for each other in a circle", "")
		return
	}
	skipped := max(len(awaited)-mostAwaited, 0)
	awaited = awaited[:len(awaited)-skipped]
	rest := slices.DeleteFunc(slices.Clone(all), func(i qlock.LockInfo) bool { return i.Waiting > 0 })
	found, err := lookForCircles(ctx, locker, awaited, rest)
	if err == nil && len(found) > 0 {
		select {
		case <-time.After(circleLasts):
		case <-ctx.Done():
		}
		var again []circle
		again, err = lookForCircles(ctx, locker, awaited, rest)
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
		if c.busy {
			r.add(warning, "deadlock", "perhaps a deadlock: clients that hold permits of a semaphore wait for more of them, and for each other: "+c.text(), c.help())
		} else {
			r.add(problem, "deadlock", "deadlock: clients wait for each other in a circle: "+c.text(), c.help())
		}
	}
	if skipped > 0 {
		r.add(warning, "deadlock", fmt.Sprintf("clients wait for %d locks, and %d of these were not looked at: there may be deadlocks", len(awaited)+skipped, skipped), "")
	} else if len(found) == 0 {
		r.add(fine, "deadlock", fmt.Sprintf("no clients wait for each other in a circle (%s with waiters)", several(len(awaited), "lock")), "")
	}
}

// lookForCircles looks at the locks with these names. The rest are locks that nobody waits for.
func lookForCircles(ctx context.Context, locker *qlock.Locker, names []string, rest []qlock.LockInfo) ([]circle, error) {
	infos := slices.Clone(rest)
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
	how     obstacle
}

// obstacle is how a claim is in the way of another.
type obstacle uint8

const (
	holds  obstacle = iota // it holds the lock
	first                  // it waits for the lock as well, and comes first
	within                 // the other holds the lock, until a command ends that has made this claim
)

// circle is a list of waits. Each waits for a claim of the client that waits in the next
// one, and the last waits for the first.
type circle struct {
	waits []wait
	busy  bool // it is none if the clients are merely busy
}

// key returns a text that is equal for circles of the same claims.
func (c circle) key() string {
	parts := make([]string, len(c.waits))
	for i, w := range c.waits {
		parts[i] = fmt.Sprintf("%q %s %s", w.lock, w.waiter.ID, w.blocker.ID)
	}
	slices.Sort(parts) // a circle has no beginning
	return strings.Join(parts, "\n")
}

func (c circle) text() string {
	who := func(c *qlock.ClaimInfo) string {
		if c.Note == "" {
			return printable.Text(c.Client)
		}
		return fmt.Sprintf("%s (%s)", printable.Text(c.Client), printable.Text(c.Note))
	}
	var parts []string
	for _, w := range c.waits {
		waiter, blocker := who(w.waiter), who(w.blocker)
		switch w.how {
		case holds:
			parts = append(parts, fmt.Sprintf("%s has waited for %s for %s, which %s holds", waiter, lockNamed(w.lock), age(w.waiter.For), blocker))
		case first:
			parts = append(parts, fmt.Sprintf("%s has waited for %s for %s, which %s waits for as well, and comes first", waiter, lockNamed(w.lock), age(w.waiter.For), blocker))
		case within:
			parts = append(parts, fmt.Sprintf("%s holds %s until its command ends, of which %s is a part", waiter, lockNamed(w.lock), blocker))
		}
	}
	return strings.Join(parts, "; ")
}

func (c circle) help() string {
	if c.busy {
		return "if each of these clients waits in a goroutine that holds a permit, it is one: acquire all permits in one call (Acquire); if they are merely busy, ignore this"
	}
	order := "acquire locks in the same order everywhere (LockAll)"
	for _, w := range c.waits {
		if w.how == holds {
			return fmt.Sprintf("to end it: qlock unlock %s --force --claim %s; so that it does not come again, %s; no deadlock if these clients hold and wait in goroutines, or commands, that do not wait for each other", shellWord(w.lock), shortID(w.blocker.ID), order)
		}
	}
	return order
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
	out := circlesOf(waitsOf(locks, false))
	for _, c := range circlesOf(waitsOf(locks, true)) {
		c.busy = true
		known := slices.ContainsFunc(out, func(other circle) bool {
			return slices.ContainsFunc(c.waits, func(w wait) bool {
				return slices.ContainsFunc(other.waits, func(o wait) bool { return party(o.waiter) == party(w.waiter) })
			})
		})
		young := slices.ContainsFunc(c.waits, func(w wait) bool { return w.how != within && w.waiter.For < busyLasts })
		if !known && !young {
			out = append(out, c)
		}
	}
	return out
}

// waits are what is in the way of each waiting client: by what it waits for, and within that by
// lock. One of the permits of a semaphore is enough, so they are one group.
type waits map[string]map[string]map[string][]wait

func circlesOf(waits waits) []circle {
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
				isOwn := func(w wait) bool { return party(w.blocker) == who }
				i := slices.IndexFunc(alternatives, func(w wait) bool { return stuck[party(w.blocker)] && !isOwn(w) })
				switch {
				case i >= 0 && found == nil:
					found = &alternatives[i]
				case i < 0 && !slices.ContainsFunc(alternatives, isOwn):
					free = true // this one will be granted, and one is enough
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
		var way []wait
		var order []string
		for !seen[who] {
			seen[who] = true
			w := next(who)
			way, order = append(way, *w), append(order, who)
			who = party(w.blocker)
		}
		if i := slices.Index(order, who); i >= 0 { // otherwise it leads to a known circle
			out = append(out, circle{waits: way[i:]})
		}
	}
	return out
}

// waitsOf returns what is in the way of each client. With own, a permit that a client holds is in
// its own way.
func waitsOf(locks []qlock.LockInfo, own bool) waits {
	out := waits{}
	add := func(who, group, lock string, list ...wait) {
		if out[who] == nil {
			out[who] = map[string]map[string][]wait{}
		}
		if out[who][group] == nil {
			out[who][group] = map[string][]wait{}
		}
		out[who][group][lock] = append(out[who][group][lock], list...)
	}
	for i := range locks {
		info := &locks[i]
		group, permit := "lock "+info.Name, false
		if u := useOf(info.Name); u != nil && u.Kind == "permit" {
			group, permit = "semaphore "+u.Of, true
		}
		for k := range info.Queue {
			waiter := &info.Queue[k]
			who := party(waiter)
			var list []wait
			blocks := func(c *qlock.ClaimInfo, how obstacle) {
				// A client does not block itself: another of its goroutines holds the lock.
				if c.Shared && waiter.Shared || party(c) == who && !(own && permit && how == holds) {
					return
				}
				list = append(list, wait{info.Name, waiter, c, how})
			}
			for h := range info.Holders {
				blocks(&info.Holders[h], holds)
			}
			for before := range info.Queue[:k] {
				blocks(&info.Queue[before], first)
			}
			add(who, group, info.Name, list...)
		}
	}
	outer := outerOf(locks)
	nested := func(c *qlock.ClaimInfo) {
		if o, ok := outer[c.ID]; ok {
			add(party(o.claim), "command "+party(c), o.lock, wait{o.lock, o.claim, c, within})
		}
	}
	eachClaim(locks, nested)
	return out
}
