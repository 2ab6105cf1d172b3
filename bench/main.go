// Bench measures qlock together with the floor of any quorum lock over NATS and with the
// locks of JetStream, etcd and Redis: the same workloads, on this machine, in turns. It
// writes tables to standard output and progress to standard error.
//
//	go run .                                   # everything; an hour and a half
//	go run . -quick                            # the same, small; minutes
//	go run . -workloads alone,hot -rivals floor,qlock
//	go run . -o new.json                       # all figures, for -compare
//	go run . -doc ../docs/performance.md       # the tables of that page
//	go run . -compare base.json new.json       # what changed, in ratios to the floor
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/pprof"
	"slices"
	"strings"
	"time"

	"github.com/qlock/qlock"
)

var allWorkloads = []*workload{alone, spread, own, hot, local, crowd(4), crowd(200), readers, holding, goSync}

// allRivals returns the rivals, newly made for each run.
func allRivals() []*rival {
	return []*rival{
		floorRival(1, inProcess), floorRival(3, inProcess), floorRival(5, inProcess), floorRival(16, inProcess),
		floorRival(1, overTCP), floorRival(3, overTCP),
		qlockRival(1, inProcess, ""), qlockRival(3, inProcess, ""), qlockRival(5, inProcess, ""), qlockRival(16, inProcess, ""),
		qlockRival(3, inProcess, "no events", qlock.WithoutEvents()),
		qlockRival(3, inProcess, "retention", qlock.WithRetention(time.Second)),
		qlockRival(1, overTCP, ""), qlockRival(3, overTCP, ""),
		jetStreamRival(1, inProcess), jetStreamRival(1, overTCP), jetStreamRival(3, overTCP),
		etcdRival(true), etcdRival(false),
		redsyncRival(1), redsyncRival(5),
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := command(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench: error:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	var (
		rivalList    = flags.String("rivals", "", "only these and their floors, by name or first word, such as jetstream,qlock n=3")
		workloadList = flags.String("workloads", "", "only these: "+names(allWorkloads))
		rounds       = flags.Int("rounds", 5, "how often each rival has its turn")
		duration     = flags.Duration("duration", 2*time.Second, "what is measured in each cell")
		limit        = flags.Duration("limit", 30*time.Second, "how long a crowd, or taking all the locks to hold, may take")
		waiters      = flags.Int("waiters", 10_000, "how many come at once in a crowd")
		locks        = flags.Int("locks", 100_000, "how many are held at once")
		quick        = flags.Bool("quick", false, "one short round of everything: to see that it runs")
		out          = flags.String("o", "", "write all figures to this `file`, as JSON")
		from         = flags.String("from", "", "measure nothing, take the figures of this `file`")
		doc          = flags.String("doc", "", "put the tables into this `page`, between their markers")
		cpu          = flags.String("cpuprofile", "", "write a processor profile to this `file`")
		mem          = flags.String("memprofile", "", "write an allocation profile to this `file`")
		compareFlag  = flags.Bool("compare", false, "compare two files of -o: base new")
		tolerance    = flags.Float64("tolerance", 0.1, "with -compare: a smaller part is no change")
		fail         = flags.Bool("fail", false, "with -compare: exit status 1 if something became worse")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *compareFlag {
		return compareFiles(stdout, flags.Args(), *tolerance, *fail)
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unknown argument %q; see -h", flags.Arg(0))
	}
	s := settings{Rounds: *rounds, Duration: *duration, Limit: *limit, Waiters: *waiters, Locks: *locks}
	if *quick {
		s = settings{Rounds: 1, Duration: 300 * time.Millisecond, Limit: 5 * time.Second, Waiters: 500, Locks: 2000}
	}
	if s.Rounds < 1 || s.Duration <= 0 || s.Limit <= 0 || s.Waiters < 1 || s.Locks < 1 {
		return errors.New("-rounds, -duration, -limit, -waiters and -locks must be above zero")
	}
	workloads, err := choose(allWorkloads, *workloadList, func(w *workload) string { return w.name })
	if err != nil {
		return fmt.Errorf("-workloads: %w", err)
	}
	rivals, err := choose(allRivals(), *rivalList, func(r *rival) string { return r.name })
	if err != nil {
		return fmt.Errorf("-rivals: %w", err)
	}
	if *cpu == "" && *mem == "" { // a profile covers only what was asked for
		rivals = withFloors(rivals)
	}

	var report *Report
	if *from != "" {
		if report, err = readReport(*from); err != nil {
			return err
		}
		workloads = measured(report, workloads)
	} else {
		stopProfiles, err := profiles(*cpu, *mem)
		if err != nil {
			return err
		}
		report = run(ctx, s, workloads, rivals, stderr)
		if err := stopProfiles(); err != nil {
			return err
		}
	}
	fmt.Fprint(stdout, report.machineText())
	for _, wl := range workloads {
		fmt.Fprintf(stdout, "\n## %s\n\n", wl.name)
		report.section(stdout, wl)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("interrupted: what was measured is above, and no file was written")
	}
	if *out != "" {
		if err := report.write(*out); err != nil {
			return err
		}
	}
	if *doc != "" {
		if err := writePage(*doc, report, workloads); err != nil {
			return err
		}
	}
	return report.failed()
}

// choose returns the elements that a list names, in the order of all. An empty list means
// all. A name may also be the first words of several names.
func choose[T any](all []T, list string, name func(T) string) ([]T, error) {
	if list == "" {
		return all, nil
	}
	take := make([]bool, len(all))
	for _, wanted := range strings.Split(list, ",") {
		wanted = strings.TrimSpace(wanted)
		found := false
		match := func(same func(name string) bool) {
			for i, x := range all {
				if !found && same(name(x)) {
					take[i] = true
				}
			}
			found = found || slices.ContainsFunc(all, func(x T) bool { return same(name(x)) })
		}
		match(func(name string) bool { return name == wanted })
		match(func(name string) bool { return strings.HasPrefix(name, wanted+" ") })
		if !found {
			return nil, fmt.Errorf("there is no %q", wanted)
		}
	}
	var chosen []T
	for i, x := range all {
		if take[i] {
			chosen = append(chosen, x)
		}
	}
	return chosen, nil
}

// withFloors adds the floors that the ratios of the chosen rivals refer to.
func withFloors(chosen []*rival) (all []*rival) {
	needed := map[string]bool{}
	for _, r := range chosen {
		needed[r.name], needed[r.floor] = true, true
	}
	for _, r := range allRivals() {
		if needed[r.name] {
			all = append(all, r)
		}
	}
	return all
}

// measured returns the workloads that have cells in a report.
func measured(r *Report, workloads []*workload) (found []*workload) {
	for _, wl := range workloads {
		if len(r.rivals(wl.name)) > 0 {
			found = append(found, wl)
		}
	}
	return found
}

func names(workloads []*workload) string {
	var list []string
	for _, w := range workloads {
		list = append(list, w.name)
	}
	return strings.Join(list, ",")
}

func writePage(name string, r *Report, workloads []*workload) error {
	page, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	text, err := r.replaceSections(string(page), workloads)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return os.WriteFile(name, []byte(text), 0o644)
}

// profiles starts the requested profiles and returns a function that ends them.
func profiles(cpu, mem string) (func() error, error) {
	var cpuFile *os.File
	if cpu != "" {
		var err error
		if cpuFile, err = os.Create(cpu); err != nil {
			return nil, err
		}
		if err := pprof.StartCPUProfile(cpuFile); err != nil {
			return nil, errors.Join(err, cpuFile.Close())
		}
	}
	return func() error {
		if cpuFile != nil {
			pprof.StopCPUProfile()
			if err := cpuFile.Close(); err != nil {
				return err
			}
		}
		if mem == "" {
			return nil
		}
		f, err := os.Create(mem)
		if err != nil {
			return err
		}
		return errors.Join(pprof.Lookup("allocs").WriteTo(f, 0), f.Close())
	}, nil
}
