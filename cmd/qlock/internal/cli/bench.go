package cli

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/nats-io/nuid"
	"github.com/spf13/cobra"

	"github.com/qlock/qlock"
)

type benchOptions struct {
	connection
	workloads []string
	length    time.Duration
	clients   int
	shared    bool
	json      bool
	prefix    string
}

var workloads = []string{"alone", "spread", "hot"}

func (a *app) bench() *cobra.Command {
	o := &benchOptions{}
	cmd := &cobra.Command{
		Use:     "bench [WORKLOAD...] [flags]",
		Short:   "Measure how fast locks are acquired and released",
		GroupID: groupSee,
		Long: `Acquire and release locks as fast as the cluster can, and show how long acquiring
them took. This puts load on the cluster that it connects to.

  alone   one client acquires one lock after another; no other client wants them
  spread  --clients clients at once, each with locks of its own
  hot     --clients clients at once, all for the same lock: each waits for the others

Without a WORKLOAD, it runs all of them, one after the other. Each client has a
connection of its own.`,
		Example: `  qlock bench
  qlock bench hot --clients 16 --for 10s
  qlock bench spread --json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, w := range args {
				if !contains(workloads, w) {
					return usage("there is no workload %q, allowed are %s", w, strings.Join(workloads, ", "))
				}
			}
			o.workloads = args
			if len(args) == 0 {
				o.workloads = workloads
			}
			ctx, stop := interrupted(cmd.Context())
			defer stop()
			return a.runBench(ctx, o)
		},
	}
	fs := cmd.Flags()
	durationFlag(fs, &o.length, "for", 5*time.Second, time.Millisecond, "how long each workload runs")
	countFlag(fs, &o.clients, "clients", 8, 1, 10_000, "number of clients of spread and hot")
	fs.BoolVar(&o.shared, "shared", false, "acquire shared locks")
	fs.StringVar(&o.prefix, "prefix", "qlock.bench", "prefix of the names of the locks")
	fs.BoolVarP(&o.json, "json", "j", false, "write JSON")
	o.connection.flags(fs)
	return cmd
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// benchResult is the result of one workload.
type benchResult struct {
	Workload string             `json:"workload"`
	Clients  int                `json:"clients"`
	Seconds  float64            `json:"seconds"`
	Locks    int64              `json:"locks"`
	Failed   int64              `json:"failed"`
	Rate     float64            `json:"locks_per_second"`
	Micros   map[string]float64 `json:"microseconds"` // percentiles of the time to acquire a lock

	hist *hdrhistogram.Histogram
	err  error
}

var percentiles = []struct {
	name string
	q    float64
	drop int // left out of a table that is too wide, the highest first
}{{"min", 0, 4}, {"p50", 50, 0}, {"p90", 90, 3}, {"p99", 99, 0}, {"p99.9", 99.9, 2}, {"max", 100, 1}}

func (a *app) runBench(ctx context.Context, o *benchOptions) error {
	var results []*benchResult
	for _, w := range o.workloads {
		r, err := a.measure(ctx, o, w)
		if err != nil {
			return err
		}
		if r.Locks == 0 && r.err != nil {
			return &statusError{lockStatus(r.err), r.err}
		}
		results = append(results, r)
		if ctx.Err() != nil {
			break
		}
	}
	if o.json {
		return a.json(results)
	}
	g := &grid{title: "Acquiring locks in cluster " + o.cluster, columns: []column{
		{title: "Workload"}, {title: "Clients", right: true}, {title: "Locks", right: true}, {title: "Failed", right: true}, {title: "Per second", right: true},
	}}
	for _, p := range percentiles {
		g.columns = append(g.columns, column{title: p.name, right: true, drop: p.drop})
	}
	for _, r := range results {
		row := []string{r.Workload, fmt.Sprint(r.Clients), fmt.Sprint(r.Locks), fmt.Sprint(r.Failed), fmt.Sprintf("%.0f", r.Rate)}
		for _, p := range percentiles {
			row = append(row, round(time.Duration(r.Micros[p.name]*1000)).String())
		}
		g.rows = append(g.rows, row)
	}
	width, _ := size(a.out)
	table, _ := g.render(width) // --json has all columns
	fmt.Fprint(a.out, table)
	for _, r := range results {
		a.drawHistogram(r)
	}
	return nil
}

// measure runs one workload.
func (a *app) measure(ctx context.Context, o *benchOptions, workload string) (*benchResult, error) {
	clients := o.clients
	if workload == "alone" {
		clients = 1
	}
	run := nuid.Next()
	var lockers []*qlock.Locker
	defer func() {
		for _, l := range lockers {
			_ = l.Close()
		}
	}()
	for range clients {
		l, err := o.connect("bench", qlock.DefaultLease)
		if err != nil {
			return nil, err
		}
		defer l.Close()
		locker, err := l.locker(ctx, 0, slog.New(slog.DiscardHandler))
		if err != nil {
			return nil, &statusError{lockStatus(err), err}
		}
		lockers = append(lockers, locker)
	}
	ctx, cancel := context.WithTimeout(ctx, o.length)
	defer cancel()
	bar := a.bar(workload, o.length)
	defer bar.close()
	r := &benchResult{Workload: workload, Clients: clients, hist: newHistogram()}
	var mu sync.Mutex // guards r
	began := time.Now()
	var all sync.WaitGroup
	for i, locker := range lockers {
		all.Go(func() {
			hist, locks, failed, err := hammer(ctx, locker, o.shared, &bar.locks, func(n int) string {
				if workload == "hot" {
					return o.prefix + "." + run
				}
				return fmt.Sprintf("%s.%s.%d.%d", o.prefix, run, i, n%64)
			})
			mu.Lock()
			defer mu.Unlock()
			r.hist.Merge(hist)
			r.Locks += locks
			r.Failed += failed
			if err != nil {
				r.err = err
			}
		})
	}
	all.Wait()
	r.Seconds = time.Since(began).Seconds()
	r.Rate = float64(r.Locks) / r.Seconds
	r.Micros = map[string]float64{}
	for _, p := range percentiles {
		r.Micros[p.name] = float64(r.hist.ValueAtPercentile(p.q)) / 1000
	}
	if r.Locks > 0 {
		r.Micros["min"] = float64(r.hist.Min()) / 1000
	}
	return r, nil
}

// newHistogram returns a histogram of nanoseconds, up to one hour and with two significant
// digits.
func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, int64(time.Hour), 2) }

// hammer acquires and releases one lock after the other until ctx ends.
func hammer(ctx context.Context, l *qlock.Locker, shared bool, count *atomic.Int64, name func(int) string) (h *hdrhistogram.Histogram, locks, failed int64, err error) {
	h = newHistogram()
	ask := l.Lock
	if shared {
		ask = l.RLock
	}
	for n := 0; ctx.Err() == nil; n++ {
		began := time.Now()
		lock, e := ask(ctx, name(n))
		if e != nil {
			if ctx.Err() == nil {
				failed++
				pause(ctx, 10*time.Millisecond) // do not flood nodes that refuse
			}
			err = e
			continue
		}
		_ = h.RecordValue(max(int64(time.Since(began)), 1)) // always less than an hour, as ctx is
		locks++
		count.Add(1)
		_ = lock.Unlock(ctx) // a loss is not part of what is measured
	}
	return h, locks, failed, err
}

// drawHistogram shows the distribution of the times, with a row for each doubling.
func (a *app) drawHistogram(r *benchResult) {
	if r.Locks == 0 {
		return
	}
	const width = 50
	type row struct {
		from, to int64
		n        int64
	}
	var rows []row
	var most int64
	for from := int64(1); from < int64(time.Hour); from *= 2 {
		n := int64(0)
		for _, b := range r.hist.Distribution() {
			if b.From >= from && b.From < 2*from {
				n += b.Count
			}
		}
		if n > 0 || len(rows) > 0 {
			rows = append(rows, row{from, 2 * from, n})
			most = max(most, n)
		}
	}
	for len(rows) > 0 && rows[len(rows)-1].n == 0 {
		rows = rows[:len(rows)-1]
	}
	fmt.Fprintf(a.out, "\n%s\n", r.Workload)
	for _, w := range rows {
		bar := strings.Repeat("█", int(w.n*width/most))
		if bar == "" && w.n > 0 {
			bar = "▏"
		}
		fmt.Fprintf(a.out, "  %9v to %-9v %9d  %s\n", round(time.Duration(w.from)), round(time.Duration(w.to)), w.n, bar)
	}
}

// progressBar shows the progress of a workload on a terminal.
type progressBar struct {
	locks atomic.Int64
	stop  chan struct{}
	done  sync.WaitGroup
}

func (a *app) bar(what string, length time.Duration) *progressBar {
	b := &progressBar{stop: make(chan struct{})}
	if !terminal(a.err.file) {
		return b
	}
	began := time.Now()
	b.done.Go(func() {
		tick := time.NewTicker(redraw)
		defer tick.Stop()
		for {
			const width = 40
			full := int(min(time.Since(began), length) * width / length)
			fmt.Fprintf(a.err, "\r\x1b[K%-7s %s%s %d locks", what, strings.Repeat("█", full), strings.Repeat("░", width-full), b.locks.Load())
			select {
			case <-b.stop:
				fmt.Fprint(a.err, "\r\x1b[K")
				return
			case <-tick.C:
			}
		}
	})
	return b
}

func (b *progressBar) close() {
	close(b.stop)
	b.done.Wait()
}
