package sim

import (
	"os"
	"testing"
)

// The list of nodes changes again and again while clients lock, and everything fails in
// between (E1 to E18).
func TestEpochs(t *testing.T) {
	if *one > 0 && *kind == "epochs" {
		res, err := RunEpochs(*one, os.Stdout)
		if t.Logf("%+v", res); err != nil {
			t.Fatal(err)
		}
		return
	}
	var sum EpochResult
	count := max(*seeds/8, 1)
	if *kind == "epochs" {
		count = *seeds
	}
	for seed := *first; seed < *first+uint64(count); seed++ {
		res, err := RunEpochs(seed, nil)
		if err != nil {
			t.Fatalf("seed %d: %v\nreplay: go test ./internal/sim -run TestEpochs -sim.kind=epochs -sim.seed=%[1]d", seed, err)
		}
		sum.add(res)
	}
	t.Logf("%d worlds: %+v", count, sum)
}
