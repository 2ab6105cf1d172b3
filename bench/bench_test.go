package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStatistics(t *testing.T) {
	if got := jain([]float64{5, 5, 5, 5}); got != 1 {
		t.Errorf("Jain's index of equal shares is %v", got)
	}
	if got := jain([]float64{8, 0, 0, 0}); got != 0.25 {
		t.Errorf("Jain's index where one of four gets all is %v", got)
	}
	if got := jain([]float64{1, 3}); got != 0.8 {
		t.Errorf("Jain's index of 1 and 3 is %v", got)
	}
	if got := jain(nil); !math.IsNaN(got) {
		t.Errorf("Jain's index of nobody is %v", got)
	}
	samples := make([]time.Duration, 100)
	for i := range samples {
		samples[i] = time.Duration(100 - i)
	}
	if p := percentiles(samples, 0, 50, 99, 100); p[0] != 1 || p[1] != 50 || p[2] != 99 || p[3] != 100 {
		t.Errorf("percentiles of 1 to 100: %v", p)
	}
	if p := percentiles(nil, 50); !math.IsNaN(p[0]) {
		t.Errorf("the median of nothing is %v", p[0])
	}
	if s := summarize([]float64{3, 1, 2}); s != (spreadOf{2, 1, 3, 3}) {
		t.Errorf("of three: %+v", s)
	}
	if s := summarize([]float64{4, 1, 2, 3}); s != (spreadOf{2.5, 1, 4, 4}) {
		t.Errorf("of four: %+v", s)
	}
}

func TestFormat(t *testing.T) {
	for _, c := range []struct {
		unit   unit
		values []float64
		want   string
	}{
		{nanoseconds, []float64{54_321}, "54.3 µs"},
		{nanoseconds, []float64{54_321, 50_000, 1_234_567}, "54.3 µs (50–1,235)"},
		{nanoseconds, []float64{2e9}, "2 s"},
		{perSecond, []float64{59_000.4, 61_200}, "60,100 (59,000–61,200)"},
		{fraction, []float64{0.4321}, "0.43"},
		{fraction, []float64{1, 1}, "1"},
		{percent, []float64{0.0312}, "3.12 %"},
		{byteCount, []float64{1893}, "1,893 B"},
		{byteCount, []float64{2.8e6}, "2,800 kB"},
		{count, nil, "–"},
		{count, []float64{-12_345}, "-12,345"},
	} {
		if got := (column{unit: c.unit}).format(summarize(c.values)); got != c.want {
			t.Errorf("%v: %q, want %q", c.values, got, c.want)
		}
	}
}

var example = &workload{
	name: "example", title: "an example", extent: forDuration,
	columns: []column{
		{key: "p50", title: "p50", unit: nanoseconds, ratio: true},
		{key: "in", title: "messages in", unit: count, counted: true},
		{key: "none", title: "what nobody has", unit: count},
	},
}

// made is a report of the example: values by rival and round.
func made(p50 map[string][]float64, in ...float64) *Report {
	r := &Report{Machine: Machine{Cores: 2, System: "linux/amd64", Go: "go1.26"}}
	for _, rival := range []string{"floor", "lock"} {
		for round, v := range p50[rival] {
			c := Cell{Workload: "example", Rival: rival, Transport: "air", Floor: "floor", Round: round, Values: map[string]float64{"p50": v}}
			if rival == "lock" && round < len(in) {
				c.Values["in"] = in[round]
			}
			r.Cells = append(r.Cells, c)
		}
	}
	return r
}

func TestTable(t *testing.T) {
	r := made(map[string][]float64{"floor": {50e3, 100e3, 60e3}, "lock": {100e3, 200e3, 180e3}}, 7, 7, 7)
	r.Cells = append(r.Cells, Cell{Workload: "example", Rival: "redsync", Transport: "TCP", Floor: "floor", Skipped: "there is no redis-server"})
	r.Cells = append(r.Cells, Cell{Workload: "example", Rival: "broken", Transport: "TCP", Floor: "floor", Violations: 3, Note: "two writers", Values: map[string]float64{"p50": 1}})
	var out strings.Builder
	r.section(&out, example)
	const want = `An example. Median (least–most) of rounds: 3, 0s each.

|         | transport |              p50 | × floor | messages in | exclusion            |
| ------- | --------- | ---------------: | ------: | ----------: | -------------------- |
| floor   | air       |   60 µs (50–100) |       1 |           – | –                    |
| lock    | air       | 180 µs (100–200) |       2 |           7 | kept                 |
| redsync | TCP       |                – |       – |           – | –                    |
| broken  | TCP       |             1 ns |       0 | –           | **violated 3 times** |

- redsync: there is no redis-server
- broken: two writers
`
	got := out.String()
	if squeeze(got) != squeeze(want) {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	for _, line := range strings.Split(got, "\n") {
		if strings.HasPrefix(line, "|") && len([]rune(line)) != len([]rune(strings.Split(got, "\n")[2])) {
			t.Errorf("the table is not straight:\n%s", got)
			break
		}
	}
	if err := r.failed(); err == nil || !strings.Contains(err.Error(), "exclusion was violated 3 times") {
		t.Errorf("a violation is not told of: %v", err)
	}
}

// squeeze reduces the padding in a table to one blank.
func squeeze(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = strings.Join(strings.Fields(l), " ")
	}
	return strings.ReplaceAll(strings.Join(lines, "\n"), "-", "")
}

type tokenHold uint64

func (h tokenHold) token() uint64                { return uint64(h) }
func (h tokenHold) unlock(context.Context) error { return nil }

// The guard detects each way in which exclusion can fail.
func TestGuard(t *testing.T) {
	for name, c := range map[string]struct {
		visits func(g *guard)
		want   string
	}{
		"in turns": {func(g *guard) {
			g.enter(tokenHold(1), false).leave()
			g.enter(tokenHold(2), false).leave()
			a, b := g.enter(tokenHold(2), true), g.enter(tokenHold(2), true)
			a.leave()
			b.leave()
		}, ""},
		"two writers": {func(g *guard) {
			a, b := g.enter(tokenHold(0), false), g.enter(tokenHold(0), false)
			a.leave()
			b.leave()
		}, "two writers are in at once"},
		"writer beside reader": {func(g *guard) {
			a, b := g.enter(tokenHold(0), true), g.enter(tokenHold(0), false)
			a.leave()
			b.leave()
		}, "a writer came in beside a reader"},
		"reader beside writer": {func(g *guard) {
			a, b := g.enter(tokenHold(0), false), g.enter(tokenHold(0), true)
			a.leave()
			b.leave()
		}, "a reader came in beside a writer"},
		"tokens fall": {func(g *guard) {
			g.enter(tokenHold(5), false).leave()
			g.enter(tokenHold(5), false).leave()
		}, "the token 5 came after 5"},
		"lost increment": {func(g *guard) {
			a := g.enter(tokenHold(0), false)
			g.entered.Add(1)
			a.leave()
		}, "1 increments were lost"},
	} {
		g := &guard{key: "k", excluded: true}
		c.visits(g)
		n, text := g.check()
		if c.want == "" && n != 0 || c.want != "" && (n == 0 || text != "k: "+c.want) {
			t.Errorf("%s: %d violations, %q", name, n, text)
		}
	}
}

// broken grants its lock to every client at once.
type broken struct{}

func (broken) connect(context.Context) (client, error)           { return broken{}, nil }
func (broken) lock(context.Context, string) (hold, error)        { return tokenHold(1), nil }
func (broken) close() error                                      { return nil }
func (broken) rlock(ctx context.Context, k string) (hold, error) { return tokenHold(1), nil }
func brokenRival() *rival {
	return &rival{name: "broken", floor: "broken", start: func(context.Context, setup) (service, error) { return broken{}, nil }}
}

var small = settings{Rounds: 1, Duration: 50 * time.Millisecond, Limit: 2 * time.Minute, Waiters: 12, Locks: 40}

// Every workload detects a lock that does not exclude.
func TestBrokenMutexIsCaught(t *testing.T) {
	s := small
	s.Duration = 3 * writeEvery // there must be writers among readers
	for _, wl := range []*workload{alone, spread, own, hot, local, crowd(4), readers} {
		cell := runCell(t.Context(), s, wl, brokenRival(), 0)
		if cell.Error != "" {
			t.Errorf("%s: %s", wl.name, cell.Error)
		}
		if cell.Violations == 0 {
			t.Errorf("%s did not see it", wl.name)
		}
		if err := (&Report{Cells: []Cell{cell}}).failed(); err == nil {
			t.Errorf("%s: the run does not fail", wl.name)
		}
	}
}

// A load that hangs or fails ends the cell with an error, and soon.
func TestFailingRival(t *testing.T) {
	down := errors.New("down")
	for name, f := range map[string]func(ctx context.Context) error{
		"fails": func(context.Context) error { return down },
		"hangs": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		s := small
		if name == "hangs" {
			s.Limit = 50 * time.Millisecond
		}
		r := &rival{name: name, floor: name, start: func(context.Context, setup) (service, error) { return failing(f), nil }}
		for _, wl := range []*workload{alone, hot, crowd(4), readers} {
			cell := runCell(t.Context(), s, wl, r, 0)
			// A crowd that is not served in time is a result, and not a failure of the run.
			unserved := name == "hangs" && cell.Note != "" && cell.Values["waiters"] > 0 && cell.Values["served"] == 0
			if cell.Error == "" && !unserved {
				t.Errorf("%s, %s: no error: %+v", name, wl.name, cell)
			}
		}
	}
}

type failing func(context.Context) error

func (f failing) connect(context.Context) (client, error)          { return f, nil }
func (f failing) lock(ctx context.Context, _ string) (hold, error) { return nil, f(ctx) }
func (f failing) close() error                                     { return nil }

// Each rival that can run here keeps its locks apart, in each way to run it.
func TestRivals(t *testing.T) {
	goroutines := runtime.NumGoroutine()
	defer func() { quiet(t.Context(), goroutines) }()
	for _, name := range []string{
		"etcd no fsync", // first: what it leaves takes five seconds to end, and the others can run meanwhile
		"floor n=3", "floor n=3 TCP", "qlock n=3", "qlock n=1 TCP", "qlock n=3 TCP", "jetstream R1", "jetstream R1 TCP", "jetstream R3", "redsync n=1",
	} {
		t.Run(name, func(t *testing.T) {
			i := slices.IndexFunc(allRivals(), func(r *rival) bool { return r.name == name })
			if i < 0 {
				t.Fatal("there is none")
			}
			r := allRivals()[i]
			cell := runCell(t.Context(), small, smoke, r, 0)
			if cell.Skipped != "" {
				t.Skip(cell.Skipped)
			}
			if cell.Error != "" || cell.Violations != 0 || cell.Values["rate"] == 0 {
				t.Errorf("%+v", cell)
			}
		})
	}
}

// smoke is several workloads on one start of a rival: starting takes longest.
var smoke = &workload{
	name: "smoke", turns: true,
	run: func(ctx context.Context, c *cell) error {
		if err := runCrowd(ctx, c, 3); err != nil {
			return err
		}
		if _, ok := c.clients[0].(sharer); ok {
			if err := runReaders(ctx, c); err != nil {
				return err
			}
		}
		if err := spread.run(ctx, c); err != nil {
			return err
		}
		return own.run(ctx, c)
	},
}

// The floor's bodies are as long as qlock's, and the claim in them can be read.
func TestFloorSaysWhatALockSays(t *testing.T) {
	c := floorClaim{uuid.MustParse("0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11"), 7}
	for golden, rest := range map[string]string{
		"acquire-quiet": floorRequest, "granted": floorAnswer, "release": floorRelease,
	} {
		text, err := os.ReadFile("../internal/wire/testdata/golden/" + golden + ".json")
		if err != nil {
			t.Fatal(err)
		}
		var want bytes.Buffer
		if err := json.Compact(&want, text); err != nil {
			t.Fatal(err)
		}
		body := floorBody(c, rest)
		if n := len(body); n < want.Len()*9/10 || n > want.Len()*11/10+seqLen {
			t.Errorf("%s has %d bytes, the floor's %d: %s", golden, want.Len(), n, body)
		}
		if !strings.HasPrefix(string(body), `{"instance":"0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11","seq":0000000000000007,"`) {
			t.Errorf("the claim is not there: %s", body)
		}
		if got, ok := readClaim(body); !ok || got != c {
			t.Errorf("read %v from %s", got, body)
		}
		for n := range claimLen {
			if _, ok := readClaim(body[:n]); ok {
				t.Errorf("a claim was read from %q", body[:n])
			}
		}
	}
}

// A client that waited for a key ends its subscription some time later. It keeps it
// while it waits again and again, and a key that it ended can be waited for again.
func TestJetStreamEndsItsSubscriptions(t *testing.T) {
	ctx := t.Context()
	svc, err := jetStreamRival(1, inProcess).start(ctx, setup{})
	if err != nil {
		t.Fatal(err)
	}
	c := &cell{svc: svc}
	defer func() {
		if err := errors.Join(c.close(), svc.close()); err != nil {
			t.Error(err)
		}
	}()
	cs, err := c.connect(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	waiter := cs[1].(*jsClient)
	subscriptions := func() (topics, atServer int) {
		waiter.mu.Lock()
		defer waiter.mu.Unlock()
		return len(waiter.topics), waiter.nc.NumSubscriptions()
	}
	_, idle := subscriptions()
	for range 2 {
		held, err := cs[0].lock(ctx, "k")
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan hold, 1)
		go func() {
			h, err := waiter.lock(ctx, "k")
			if err != nil {
				t.Error(err)
			}
			got <- h
		}()
		if err := poll(ctx, "nobody waits", func() (bool, error) { n, _ := subscriptions(); return n == 1, nil }); err != nil {
			t.Fatal(err)
		}
		if err := held.unlock(ctx); err != nil {
			t.Fatal(err)
		}
		h := <-got
		if h == nil {
			return
		}
		if err := h.unlock(ctx); err != nil {
			t.Fatal(err)
		}
		limited, cancel := context.WithTimeout(ctx, 2*time.Minute)
		err = poll(limited, "the client listens for ever", func() (bool, error) {
			n, _ := subscriptions()
			return n == 0, nil
		})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		// One more than before the first request: that of the answers.
		if _, n := subscriptions(); n > idle+1 {
			t.Errorf("%d subscriptions, %d before", n, idle)
		}
	}
}

// The load of other processes is reported as such.
func TestMachineIsShared(t *testing.T) {
	before, ok := machineUsage()
	if !ok {
		t.Skip("this system does not tell")
	}
	before.all-- // a second ago, since when others used all processor time
	before.busy--
	var m Machine
	m.shared(before)
	if m.Others == nil || *m.Others < 0 || *m.Others > 1 || m.Stolen == nil {
		t.Fatalf("%+v", m)
	}
	r := &Report{Machine: m}
	if text := r.machineText(); !strings.Contains(text, "other processes used") {
		t.Errorf("the page does not say it: %s", text)
	}
}

// The Go benchmarks for mutexes run on a mutex of this kind, and holding many
// locks ends.
func TestSyncAndHold(t *testing.T) {
	r := qlockRival(1, inProcess, "")
	s := small
	s.Duration = 10 * time.Millisecond
	done := runCell(t.Context(), s, goSync, r, 0)
	if done.Error != "" || done.Violations != 0 || len(done.Values) != len(syncVariants) {
		t.Errorf("sync: %+v", done)
	}
	ctx, cancel := context.WithCancel(t.Context())
	svc, err := r.start(ctx, setup{})
	if err != nil {
		t.Fatal(err)
	}
	c := &cell{settings: s, svc: svc, rival: r, values: map[string]float64{}}
	defer func() {
		cancel()
		if err := errors.Join(c.close(), svc.close()); err != nil {
			t.Error(err)
		}
	}()
	cs, err := c.connect(ctx, holdClients)
	if err != nil {
		t.Fatal(err)
	}
	var h heldLocks
	if err := takeMany(ctx, c, cs, &h); err != nil || len(h.locks) != s.Locks {
		t.Fatalf("%d locks, %v", len(h.locks), err)
	}
	checkHeld(ctx, c, cs, &h)
	if n, text := c.guards[0].check(); n != 0 {
		t.Errorf("held locks: %s", text)
	}
	checkHeld(ctx, c, []client{broken{}, broken{}}, &h)
	if n, _ := c.guards[1].check(); n == 0 {
		t.Error("a lock that is given twice is not seen")
	}
	u, err := c.watch(ctx, 0, 10*time.Millisecond)
	if err != nil || u.took == 0 {
		t.Errorf("%+v, %v", u, err)
	}
}

func TestCompare(t *testing.T) {
	base := made(map[string][]float64{"floor": {50, 50, 50}, "lock": {100, 102, 104}}, 7, 7, 7)
	workloads := []*workload{example}
	for name, c := range map[string]struct {
		now  *Report
		want []string // figure and verdict
	}{
		"the same": {base, nil},
		// Floor and lock are both slower: that is due to the machine.
		"slower machine":   {made(map[string][]float64{"floor": {500, 500, 500}, "lock": {1000, 1020, 1040}}, 7, 7, 7), nil},
		"within spread":    {made(map[string][]float64{"floor": {50, 50, 50}, "lock": {103, 150, 160}}, 7, 7, 7), nil},
		"within tolerance": {made(map[string][]float64{"floor": {50, 50, 50}, "lock": {105, 106, 107}}, 7, 7, 7), nil},
		"slower":           {made(map[string][]float64{"floor": {50, 50, 50}, "lock": {150, 151, 152}}, 7, 7, 7), []string{"p50 × floor worse"}},
		"faster":           {made(map[string][]float64{"floor": {50, 50, 50}, "lock": {60, 61, 62}}, 7, 7, 7), []string{"p50 × floor better"}},
		"more messages":    {made(map[string][]float64{"floor": {50, 50, 50}, "lock": {100, 102, 104}}, 9, 9, 9), []string{"messages in worse"}},
	} {
		changes, compared := compare(base, c.now, workloads, 0.1)
		if compared != 2 {
			t.Errorf("%s: %d figures compared, want 2", name, compared)
		}
		var got []string
		for _, ch := range changes {
			verdict := " better"
			if ch.worse {
				verdict = " worse"
			}
			got = append(got, ch.figure+verdict)
		}
		if strings.Join(got, ";") != strings.Join(c.want, ";") {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// A change for the worse is reported. It is a failure only if that was asked for.
func TestCompareFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, lock float64) string {
		r := made(map[string][]float64{"floor": {50}, "lock": {lock}})
		for i := range r.Cells {
			r.Cells[i].Workload = alone.name
		}
		path := filepath.Join(dir, name)
		if err := r.write(path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	base, now := write("base.json", 100), write("new.json", 200)
	var out bytes.Buffer
	if err := command(t.Context(), []string{"-compare", base, now}, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "1 for the worse") || !strings.Contains(out.String(), "+100 %") {
		t.Errorf("the report is:\n%s", &out)
	}
	if err := command(t.Context(), []string{"-compare", "-fail", base, now}, io.Discard, io.Discard); err == nil {
		t.Error("-fail does not fail")
	}
	if err := command(t.Context(), []string{"-compare", "-fail", now, base}, io.Discard, io.Discard); err != nil {
		t.Error("an improvement fails: ", err)
	}
	for _, args := range [][]string{{"-compare", base}, {"-compare", base, filepath.Join(dir, "none.json")}, {"-rounds", "0"}, {"-rivals", "nobody"}, {"-workloads", "alone,none"}, {"what"}} {
		if err := command(t.Context(), args, io.Discard, io.Discard); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}

// One command measures, writes its figures, and the page.
func TestCommand(t *testing.T) {
	dir := t.TempDir()
	figures, page := filepath.Join(dir, "figures.json"), filepath.Join(dir, "page.md")
	const text = "# Before\n<!-- bench:machine -->\nold\n<!-- /bench:machine -->\nbetween\n<!-- bench:alone --><!-- /bench:alone -->\nafter\n"
	if err := os.WriteFile(page, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, progress bytes.Buffer
	args := []string{"-quick", "-workloads", "alone", "-rivals", "qlock n=1", "-o", figures, "-doc", page}
	if err := command(t.Context(), args, &out, &progress); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"## alone", "| floor n=1 ", "| qlock n=1 ", "kept"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, &out)
		}
	}
	if n := strings.Count(progress.String(), "\n"); n != 2 {
		t.Errorf("%d lines of progress:\n%s", n, &progress)
	}
	first, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if s := string(first); !strings.HasPrefix(s, "# Before\n") || !strings.Contains(s, "\nbetween\n") || !strings.HasSuffix(s, "\nafter\n") ||
		strings.Contains(s, "old") || !strings.Contains(s, "| qlock n=1 ") {
		t.Errorf("the page is:\n%s", first)
	}
	// The same figures make the same page again.
	var again bytes.Buffer
	if err := command(t.Context(), []string{"-from", figures, "-doc", page}, &again, io.Discard); err != nil {
		t.Fatal(err)
	}
	if again.String() != out.String() {
		t.Errorf("from the file:\n%s\nmeasured:\n%s", &again, &out)
	}
	if second, err := os.ReadFile(page); err != nil || string(second) != string(first) {
		t.Errorf("%v, the page is now:\n%s", err, second)
	}
}

// The page of the results has a place for every workload.
func TestPageHasAllMarkers(t *testing.T) {
	page, err := os.ReadFile("../docs/performance.md")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (&Report{}).replaceSections(string(page), allWorkloads); err != nil {
		t.Error(err)
	}
}

// A lock that its holder fails to extend ends the keeping; others go on.
func TestKeep(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	h := &heldLocks{}
	h.add(1, extending(func() error { cancel(); return nil }), time.Now())
	if err := h.keep(ctx); err != nil {
		t.Errorf("stopped, and yet: %v", err)
	}
	h = &heldLocks{}
	h.add(1, extending(func() error { return errors.New("gone") }), time.Now())
	if err := h.keep(t.Context()); !errors.Is(err, errLockLost) {
		t.Errorf("not told that a lock was lost: %v", err)
	}
	h = &heldLocks{}
	h.add(1, extending(func() error { t.Error("a lock that ran out is extended"); return nil }), time.Now().Add(-lease))
	if err := h.keep(t.Context()); !errors.Is(err, errLockLost) {
		t.Errorf("not told that an extension came too late: %v", err)
	}
}

type extending func() error

func (extending) token() uint64                  { return 0 }
func (extending) unlock(context.Context) error   { return nil }
func (e extending) extend(context.Context) error { return e() }

func TestTurns(t *testing.T) {
	var q turns
	ctx := t.Context()
	if err := q.take(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := q.take(gone, "k"); err == nil {
		t.Error("two have a turn at once")
	}
	q.give("k")
	if err := q.take(ctx, "k"); err != nil {
		t.Error(err)
	}
	q.give("k")
	if len(q.keys) != 0 {
		t.Errorf("%d keys are left", len(q.keys))
	}
}
