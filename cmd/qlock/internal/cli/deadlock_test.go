//go:build unix

package cli

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/qlock/qlock"
)

// locked writes locks in short: "x: a | b c" is x, held by a and waited for by b and c; a
// small s before a name is a shared claim. a@x is a claim that the command makes that runs under x.
func locked(lines ...string) []qlock.LockInfo {
	var out []qlock.LockInfo
	for n, line := range lines {
		name, rest, _ := strings.Cut(line, ": ")
		holders, queue, _ := strings.Cut(rest, "|")
		claims := func(list string) []qlock.ClaimInfo {
			var out []qlock.ClaimInfo
			for i, who := range strings.Fields(list) {
				client, shared := strings.CutPrefix(who, "s")
				client, under, nested := strings.Cut(client, "@")
				c := qlock.ClaimInfo{Client: client, ID: fmt.Sprintf("id-%s/%d", client, 100*n+i), Shared: shared, For: busyLasts}
				if nested {
					c.Note = "make, under " + under
				}
				out = append(out, c)
			}
			return out
		}
		info := qlock.LockInfo{Name: name, Holders: claims(holders), Queue: claims(queue)}
		info.Holding, info.Waiting = len(info.Holders), len(info.Queue)
		for h := range info.Holders {
			info.Holders[h].Token = uint64(100 * (n + 1)) // readers have the same
		}
		out = append(out, info)
	}
	for i := range out {
		for _, list := range [][]qlock.ClaimInfo{out[i].Holders, out[i].Queue} {
			for k := range list {
				if _, under, ok := strings.Cut(list[k].Note, "under "); ok {
					list[k].Note += fmt.Sprintf(" %d", 100*(1+slices.IndexFunc(out, func(o qlock.LockInfo) bool {
						u := useOf(o.Name)
						return o.Name == under || u != nil && u.Of == under
					})))
				}
			}
		}
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
		{"a client's own permit", []string{"qlock.semaphore.r.gate: a | b", permit + "1: b | a", permit + "2: a | a"}, "perhaps a permit.1 b, b gate a"},
		{"a client's own permits only", []string{permit + "1: a | a", permit + "2: a | a"}, ""},
		{"a client's own permit, and one that will be free", []string{"qlock.semaphore.r.gate: a | b", permit + "1: b | a", permit + "2: a | a", permit + "3: c | a"}, ""},
		{"a command under a lock", []string{"x: a | c", "y: c | b@x"}, "a [x] b, b y c, c x a"},
		{"the same lock again", []string{"x: a | b@x"}, "a [x] b, b x a"},
		{"three commands, one in the other", []string{"x: a | d", "z: b@x |", "y: d | c@z"}, "a [x] b, b [z] c, c y d, d x a"},
		{"two commands under one lock", []string{"x: a |", "y: b@x | c@x"}, ""},
		{"commands under permits", []string{permit + "1: a | d@q", permit + "2: c | d@q", "y: c@r | b@r", "q: c |"}, "a [permit.1] b, b y c, c [q] d, d permit.1 a"},
		{"commands that want permits under permits", []string{permit + "1: a | b@r", "qlock.semaphore.r.gate: b@r | "}, "a [permit.1] b, b permit.1 a"},
		{"a command under one of two readers", []string{"x: sa sd | c", "y: c | b@x"}, ""},
		{"a command under one reader", []string{"x: sa | c", "y: c | b@x"}, "a [x] b, b y c, c x a"},
		{"same name, other clients", []string{"x: a | b", "y: b | a2"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var list []string
			found := circles(locked(c.locks...))
			for _, c := range found {
				var steps []string
				for _, w := range c.waits {
					who, lock := w.blocker.Client, strings.TrimPrefix(w.lock, "qlock.semaphore.r.")
					switch w.how {
					case first:
						who = "(" + who + ")"
					case within:
						lock = "[" + lock + "]"
					}
					steps = append(steps, fmt.Sprintf("%s %s %s", w.waiter.Client, lock, who))
				}
				text := strings.Join(steps, ", ")
				if c.busy {
					text = "perhaps " + text
				}
				list = append(list, text)
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

// A circle of which busy clients are an explanation is reported when it is old, as a warning.
func TestBusyCircle(t *testing.T) {
	locks := locked("qlock.semaphore.r.gate: a | b", "qlock.semaphore.r.permit.1: b | a", "qlock.semaphore.r.permit.2: a | a")
	found := circles(locks)
	if len(found) != 1 || !found[0].busy || !strings.Contains(found[0].help(), "one call") {
		t.Fatalf("%+v", found)
	}
	locks[0].Queue[0].For = busyLasts - 1
	if found := circles(locks); found != nil {
		t.Errorf("%+v", found)
	}
}

// The note of a program says under which lock it runs, if that fits.
func TestNoteUnderLock(t *testing.T) {
	for _, c := range []struct{ note, name, token, want string }{
		{"make", "", "", "make"},
		{"make", "x", "none", "make"},
		{"make", "x", "0", "make"},
		{"make", "x", "7", "make, under x 7"},
		{"", "price list", "7", "under price list 7"},
		{"make", "a\nb", "7", `make, under a\nb 7`},
		{"make", strings.Repeat("ü", 50), "7", "make, under " + strings.Repeat("ü", 32) + " 7"},
		{strings.Repeat("m", 250), "x", "7", strings.Repeat("m", 250)},
	} {
		t.Setenv("QLOCK_NAME", c.name)
		t.Setenv("QLOCK_TOKEN", c.token)
		if got := withUnder(c.note); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
		locks := []qlock.LockInfo{
			{Name: c.name, Holders: []qlock.ClaimInfo{{ID: "a/1", Token: 7}}},
			{Name: "y", Queue: []qlock.ClaimInfo{{ID: "b/1", Note: withUnder(c.note)}}},
		}
		_, ok := outerOf(locks)["b/1"]
		if want := strings.HasSuffix(c.want, " 7"); ok != want {
			t.Errorf("%q: found is %v", c.want, ok)
		}
	}
}

// Two shell commands that run qlock run within qlock run, with the same two names in different
// orders, are found, and so are two that wait for permits while they hold some.
func TestCheckDeadlockOfCommands(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	watcher := lockerOf(t, c, "watcher")
	waiting := func(n int) {
		eventually(t, func() error {
			locks, err := watcher.Locks(t.Context(), "")
			got := 0
			for _, l := range locks {
				got += l.Waiting
			}
			if err == nil && got != n {
				err = fmt.Errorf("%d claims wait, %d should: %+v", got, n, locks)
			}
			return err
		})
	}
	// It asks for the inner lock when a line comes.
	nested := func(outer, inner string, flags ...string) *process {
		args := append([]string{"run", outer, "-s", c.url(), "-q"}, flags...)
		script := `echo ready; read x; exec "$0" "$@"`
		args = append(args, "--", "sh", "-c", script, self, "run", inner, "-s", c.url(), "-q")
		p := launch(t, append(append(args, flags...), "--", "true")...)
		p.says(p.out, "ready")
		return p
	}
	goOn := func(p *process) {
		if _, err := fmt.Fprintln(p.in); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []struct {
		what    string
		outer   func() []*process
		waiting int
		want    []string
	}{
		{"two names in two orders", func() []*process { return []*process{nested("stock", "prices"), nested("prices", "stock")} }, 2, []string{"holds stock until its command ends, of which ", "holds prices until"}},
		// One has the gate, and waits for both permits; the other waits for the gate.
		{"permits under permits", func() []*process {
			return []*process{nested("render", "render", "--slots", "2"), nested("render", "render", "--slots", "2")}
		}, 3, []string{"qlock.semaphore.render.permit."}},
	} {
		outer := d.outer()
		for _, p := range outer {
			goOn(p)
		}
		waiting(d.waiting)
		r := sees(t, []string{"check", "-s", c.url()}, exitFailed, append(d.want, "deadlock: clients wait for each other in a circle: ", ": true, under ", "1 problem")...)
		// The suggested command helps: the outer command is ended, and the other goes on.
		advice := regexp.MustCompile(`qlock (unlock \S+ --force --claim \S+);`).FindStringSubmatch(strings.Join(strings.Fields(r.out), " "))
		if advice == nil {
			t.Fatalf("%s: no advice in\n%s", d.what, r.out)
		}
		launchShell(t, `exec "$0" `+advice[1]+` --yes --wait `+patience.String()+` -s `+c.url()).wait().want(t, 0)
		for _, p := range outer {
			<-p.done
		}
		waiting(0)
	}
}

// Two clients that lock the same names in different orders are found and named. Before
// that, and after one of them was evicted, there is no deadlock.
func TestCheckDeadlock(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	sees(t, []string{"check", "-s", c.url()}, 0, "no clients wait for each other in a circle")
	ctx, cancel := context.WithCancel(t.Context())
	var waits sync.WaitGroup
	defer waits.Wait()
	defer cancel()
	billing, shipping := lockerOf(t, c, "billing"), lockerOf(t, c, "shipping")
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
	sees(t, []string{"check", "-s", c.url()}, exitFailed, "deadlock: clients wait for each other in a circle: billing has waited for", "which shipping holds", "shipping has waited for stock for",
		"qlock unlock ", "--force --claim ", "LockAll", "1 problem")
	report := decode[checkReport](t, sees(t, []string{"check", "-s", c.url(), "--json"}, exitFailed, `"deadlock"`))
	i := slices.IndexFunc(report.Findings, func(f finding) bool { return f.About == "deadlock" })
	if i < 0 {
		t.Fatalf("%+v", report)
	}
	// The suggested command helps.
	_, advice, _ := strings.Cut(report.Findings[i].Help, "to end it: ")
	advice, _, _ = strings.Cut(advice, ";")
	p := launchShell(t, `exec "$0" `+strings.TrimPrefix(advice, "qlock ")+` --yes --wait `+patience.String()+` -s `+c.url())
	p.wait().want(t, 0)
	sees(t, []string{"check", "-s", c.url()}, 0, "no clients wait for each other in a circle")
}

func lockerOf(t *testing.T, c *nodeCluster, name string) *qlock.Locker {
	t.Helper()
	l, err := qlock.New(patient(t), connect(t, c.url()), qlock.WithName(name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}
