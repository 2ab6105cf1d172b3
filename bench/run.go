package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"runtime/debug"
	"slices"
	"time"
)

// run measures every workload on every rival. In each round each rival has one turn, and
// each round begins with another rival. So other load on the machine affects all rivals,
// and a rival does not always follow the same one.
func run(ctx context.Context, s settings, workloads []*workload, rivals []*rival, progress io.Writer) *Report {
	report := &Report{Machine: thisMachine(), Settings: s}
	if before, ok := machineUsage(); ok {
		defer func() { report.Machine.shared(before) }()
	}
	goroutines := runtime.NumGoroutine()
	for _, wl := range workloads {
		var mine []*rival
		for _, r := range rivals {
			if wl.only == nil || wl.only(r) {
				mine = append(mine, r)
			}
		}
		var cells []Cell
		for round := range s.Rounds {
			for i := range mine {
				if ctx.Err() != nil {
					break
				}
				r := mine[(i+round)%len(mine)]
				if wl.quiet {
					quiet(ctx, goroutines)
				}
				start := time.Now()
				cell := runCell(ctx, s, wl, r, round)
				cells = append(cells, cell)
				fmt.Fprintf(progress, "%-9s round %d of %d  %-20s %s (%.1f s)\n",
					wl.name, round+1, s.Rounds, r.name, cell.summary(wl), time.Since(start).Seconds())
			}
		}
		// In the order of the rivals and not of their turns.
		for _, r := range mine {
			for _, c := range cells {
				if c.Rival == r.name {
					report.Cells = append(report.Cells, c)
				}
			}
		}
	}
	return report
}

func (c *Cell) summary(wl *workload) string {
	switch {
	case c.Violations > 0:
		return "EXCLUSION VIOLATED"
	case c.Error != "":
		return "failed: " + c.Error
	case c.Skipped != "":
		return "skipped: " + c.Skipped
	}
	for _, col := range wl.columns {
		if v, ok := c.Values[col.key]; ok && (col.ratio || !slices.ContainsFunc(wl.columns, func(c column) bool { return c.ratio })) {
			return col.title + " " + col.format(summarize([]float64{v}))
		}
	}
	return ""
}

// quiet waits until at most goroutines goroutines are left. Connections between etcd's
// members outlive them by five seconds, and keep memory that would falsify the measurement
// of the next rival. quiet gives up after a while; the tests show goroutines that never
// end.
func quiet(ctx context.Context, goroutines int) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_ = poll(ctx, "", func() (bool, error) { return runtime.NumGoroutine() <= goroutines, nil })
}

// startLimit is how long a rival may take to start, and its clients to connect.
const startLimit = time.Minute

func runCell(ctx context.Context, s settings, wl *workload, r *rival, round int) Cell {
	out := Cell{Workload: wl.name, Rival: r.name, Transport: r.transport, Floor: r.floor, Round: round}
	if r.absent != nil {
		if out.Skipped = r.absent(); out.Skipped != "" {
			return out
		}
	}
	// The previous rival must leave nothing to be collected during this measurement.
	debug.FreeOSMemory()
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit+3*s.Duration+3*s.Limit,
		fmt.Errorf("%s on %s took too long", wl.name, r.name))
	defer cancel()
	c := &cell{settings: s, rival: r, values: map[string]float64{}}
	err := func() (err error) {
		if c.svc, err = r.start(ctx, setup{turns: wl.turns}); err != nil {
			return fmt.Errorf("start: %w", err)
		}
		defer func() {
			if closeErr := errors.Join(c.close(), c.svc.close()); closeErr != nil {
				err = errors.Join(err, fmt.Errorf("close: %w", closeErr))
			}
		}()
		return wl.run(ctx, c)
	}()
	out.Note = c.note
	for _, g := range c.guards {
		n, example := g.check()
		if out.Violations += n; n > 0 {
			out.Note = example
		}
	}
	if err != nil {
		out.Error = err.Error()
		return out
	}
	for key, v := range c.values {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			delete(c.values, key) // JSON and tables cannot represent it
		}
	}
	out.Values = c.values
	return out
}
