//go:build unix

package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

// locked writes locks in short: "x: a | b c" is x, held by a and waited for by b and c; a
// small s before a name is a shared claim.
func locked(lines ...string) []qlock.LockInfo {
	var out []qlock.LockInfo
	for n, line := range lines {
		name, rest, _ := strings.Cut(line, ": ")
		holders, queue, _ := strings.Cut(rest, "|")
		claims := func(list string) []qlock.ClaimInfo {
			var out []qlock.ClaimInfo
			for i, who := range strings.Fields(list) {
				client, shared := strings.CutPrefix(who, "s")
				out = append(out, qlock.ClaimInfo{Client: client, ID: fmt.Sprintf("id-%s/%d", client, 100*n+i), Shared: shared})
			}
			return out
		}
		info := qlock.LockInfo{Name: name, Holders: claims(holders), Queue: claims(queue)}
		info.Holding, info.Waiting = len(info.Holders), len(info.Queue)
		out = append(out, info)
	}
	return out
}

func TestCircles(t *testing.T) {
	const permit = "qlock.semaphore.r.permit."
	for _, c := range []struct {
		name  string
		locks []string
		want  string
	}{
		{"nothing", nil, ""},
		{"a queue", []string{"x: a | b c d", "y: a |"}, ""},
		{"a chain", []string{"x: a | b", "y: b | c", "z: c | d"}, ""},
		{"two", []string{"x: a | b", "y: b | a"}, "a y b, b x a"},
		{"two, and those who wait for them", []string{"x: a | b c", "y: b | a d", "z: c | e"}, "a y b, b x a"},
		{"three", []string{"x: a | b", "y: b | c", "z: c | a"}, "a z c, c y b, b x a"},
		{"two circles", []string{"x: a | b", "y: b | a", "v: c | d", "w: d | c"}, "a y b, b x a; c w d, d v c"},
		{"readers are not in each other's way", []string{"x: sa | sb", "y: b | a"}, ""},
		{"a reader and a writer", []string{"x: sa | b", "y: b | a"}, "a y b, b x a"},
		{"over one that waits first", []string{"x: sa | b sc", "y: c | a"}, "a y c, c x (b), b x a"},
		{"own goroutines", []string{"x: a | a", "y: b | b"}, ""},
		{"one permit will be free", []string{"qlock.semaphore.r.gate: a | b", permit + "1: b | a", permit + "2: c | a"}, ""},
		{"no permit will be free", []string{"qlock.semaphore.r.gate: a | b c", permit + "1: b | a", permit + "2: c | a"}, "a permit.1 b, b gate a"},
		{"same name, other clients", []string{"x: a | b", "y: b | a2"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var list []string
			found := circles(locked(c.locks...))
			for _, c := range found {
				var steps []string
				for _, w := range c {
					who := w.blocker.Client
					if !w.holds {
						who = "(" + who + ")"
					}
					steps = append(steps, fmt.Sprintf("%s %s %s", w.waiter.Client, strings.TrimPrefix(w.lock, "qlock.semaphore.r."), who))
				}
				list = append(list, strings.Join(steps, ", "))
			}
			if got := strings.Join(list, "; "); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
			if again := circles(locked(c.locks...)); len(again) != len(found) || len(found) > 0 && again[0].key() != found[0].key() {
				t.Error("the same locks have another circle the second time")
			}
		})
	}
}

// Two clients that lock the same names in different orders are found and named. Before
// that, and after one of them was evicted, there is no deadlock.
func TestCheckDeadlock(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	qlockCmd(t, "check", "-s", c.url()).want(t, 0, "no clients wait for each other in a circle")
	ctx, cancel := context.WithCancel(t.Context())
	var waits sync.WaitGroup
	defer waits.Wait()
	defer cancel()
	locker := func(name string) *qlock.Locker {
		nc, err := nats.Connect(c.url())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		l, err := qlock.New(ctx, nc, qlock.WithName(name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	billing, shipping := locker("billing"), locker("shipping")
	hold := func(l *qlock.Locker, name string) {
		if _, err := l.Lock(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	hold(billing, "stock")
	hold(shipping, "price list")
	waits.Go(func() { _, _ = billing.Lock(ctx, "price list") })
	waits.Go(func() { _, _ = shipping.Lock(ctx, "stock") })
	eventually(t, func() error {
		locks, err := billing.Locks(ctx, "")
		if err == nil && len(locks) == 2 && locks[0].Waiting+locks[1].Waiting == 2 {
			return nil
		}
		return fmt.Errorf("%+v, %w", locks, err)
	})
	r := qlockCmd(t, "check", "-s", c.url())
	r.want(t, exitFailed, "deadlock: clients wait for each other in a circle: billing has waited for", "which shipping holds", "shipping has waited for stock for",
		"qlock unlock ", "--force --claim ", "LockAll", "1 problem")
	report := decode[checkReport](t, qlockCmd(t, "check", "-s", c.url(), "--json"))
	i := slices.IndexFunc(report.Findings, func(f finding) bool { return f.About == "deadlock" })
	if i < 0 {
		t.Fatalf("%+v", report)
	}
	// The suggested command helps.
	_, advice, _ := strings.Cut(report.Findings[i].Help, "to end it: ")
	advice, _, _ = strings.Cut(advice, ";")
	p := launchShell(t, `exec "$0" `+strings.TrimPrefix(advice, "qlock ")+` --yes -s `+c.url())
	p.wait().want(t, 0)
	qlockCmd(t, "check", "-s", c.url()).want(t, 0, "no clients wait for each other in a circle")
}
