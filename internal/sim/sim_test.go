package sim

import (
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

var (
	seeds = flag.Int("sim.seeds", 300, "how many seeds TestSeeds runs")
	first = flag.Uint64("sim.first", 1, "the first of them")
	one   = flag.Uint64("sim.seed", 0, "run this seed alone, with a trace")
	kind  = flag.String("sim.kind", "", "run the seeds of one kind of world alone: names, foreign, onelink or members")
)

func TestSeeds(t *testing.T) {
	if *one > 0 {
		res, err := Run(Options{Seed: *one, Trace: os.Stdout, Members: *kind == "members", Owners: *kind == "owners"})
		fmt.Printf("%+v\n", res)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	// The garbage of a seed goes with the seed, so collect it rarely.
	defer debug.SetGCPercent(debug.SetGCPercent(1000))
	var list []uint64
	if *kind == "" && *first == 1 {
		list = keptSeeds(t)
	}
	for seed := range uint64(*seeds) {
		list = append(list, *first+seed)
	}
	var next atomic.Int64
	var mu sync.Mutex
	var sum Result
	var failed atomic.Bool
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for !failed.Load() {
				k := next.Add(1) - 1
				if k >= int64(len(list)) {
					return
				}
				seed := list[k]
				switch *kind {
				case "names":
					seed = 4*seed + 3
				case "foreign":
					seed = 16*seed + 8
				case "onelink":
					seed = 20*seed + 14
				}
				res, err := Run(Options{Seed: seed, Members: *kind == "members", Owners: *kind == "owners"})
				if err != nil {
					failed.Store(true)
					t.Errorf("seed %d: %v\nreplay: go test ./internal/sim -run TestSeeds -sim.seed=%d -sim.kind=%s", seed, err, seed, *kind)
				}
				mu.Lock()
				sum.add(res)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("%d seeds: %+v", *seeds, sum)
	idle := sum.Held < 10*(*seeds) || sum.Lost == 0 || sum.Crashes == 0 || sum.TryFailed == 0 || sum.TriedFree == 0 || sum.PassedOn == 0
	if !failed.Load() && *kind == "" && *seeds >= 100 && idle {
		t.Errorf("the runs did too little to prove anything: %+v", sum)
	}
}

// keptSeeds are seeds that found a fault once.
func keptSeeds(t *testing.T) (list []uint64) {
	text, err := os.ReadFile("testdata/seeds.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		word, why, _ := strings.Cut(strings.TrimSpace(line), " ")
		seed, err := strconv.ParseUint(word, 10, 64)
		if err != nil || why == "" {
			t.Fatalf("testdata/seeds.txt: %q is not a seed and what it found", line)
		}
		list = append(list, seed)
	}
	return list
}

// A client's snapshot that comes to life within its lease is noticed, and soon after the
// lease has passed all promises hold (C15).
func TestCopyWithinLease(t *testing.T) {
	var sum Result
	from, to, opt := uint64(1), uint64(*seeds)/3, Options{Copy: true}
	if *one > 0 {
		from, to, opt.Trace = *one, *one, os.Stdout
	}
	for seed := from; seed <= to; seed++ {
		opt.Seed = seed
		res, err := Run(opt)
		if err != nil {
			t.Fatalf("seed %d: %v\nreplay: go test ./internal/sim -run TestCopyWithinLease -sim.seed=%[1]d", seed, err)
		}
		sum.add(res)
	}
	t.Logf("%+v", sum)
}

// Jobs watch what they wait for, are told when others want their lock, bound how long they
// hold, and release what they lost themselves. Clocks leap, and in some worlds the nodes
// change.
func TestOwners(t *testing.T) {
	var sum Result
	for seed := range uint64(max(*seeds/3, 1)) {
		seed = 5*seed + 2 // an operator evicts in these
		res, err := Run(Options{Seed: seed, Owners: true})
		if err != nil {
			t.Fatalf("seed %d: %v\nreplay: go test ./internal/sim -run TestSeeds -sim.kind=owners -sim.seed=%[1]d", seed, err)
		}
		sum.add(res)
	}
	t.Logf("%+v", sum)
	if *seeds >= 100 && (sum.Held < *seeds || sum.Wanted < *seeds/10 || sum.EvictedLate < *seeds/10 ||
		sum.Left-sum.EvictedLate < *seeds/50 || sum.Kept < *seeds || sum.Expired < *seeds/2 || sum.Leaps < *seeds || sum.Moved < *seeds/10) {
		t.Errorf("the runs did too little to prove anything: %+v", sum)
	}
}

// Clients learn the list of nodes from the nodes, and no minority changes it for them (M1
// to M5).
func TestMembers(t *testing.T) {
	var sum Result
	for seed := range uint64(max(*seeds/3, 1)) {
		res, err := Run(Options{Seed: seed + 1, Members: true})
		if err != nil {
			t.Fatalf("seed %d: %v\nreplay: go test ./internal/sim -run TestSeeds -sim.kind=members -sim.seed=%[1]d", seed+1, err)
		}
		sum.add(res)
	}
	t.Logf("%+v", sum)
	if *seeds >= 100 && (sum.Held < 10*(*seeds) || sum.Found == 0 || sum.Moved == 0 || sum.WrongConfig == 0) {
		t.Errorf("the runs did too little to prove anything: %+v", sum)
	}
}
