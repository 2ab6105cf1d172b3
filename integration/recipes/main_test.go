//go:build unix

package recipes

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

var (
	runFor = flag.Duration("recipes.for", 3*time.Second, "how long processes are killed and stopped")
	long   = flag.Bool("recipes.long", false, "also lose more servers of a replicated JetStream, which takes a minute")
	seed   = flag.Uint64("recipes.seed", 14, "of the faults, and of what the processes choose to do")
)

// roleVariable says what a process is to be. A worker is this test's own program, run
// again.
const roleVariable = "QLOCK_RECIPES_ROLE"

// patience bounds every wait for something that must come.
const patience = 2 * time.Minute

func TestMain(m *testing.M) {
	if text := os.Getenv(roleVariable); text != "" {
		var r role
		err := json.Unmarshal([]byte(text), &r)
		if err == nil {
			err = r.run()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// These tests wait more than they compute. With more of them at the same time, a busy machine does
	// not keep their leases of a second.
	flag.Parse()
	parallel := "4"
	flag.Visit(func(f *flag.Flag) {
		if f.Name == "test.parallel" {
			parallel = f.Value.String()
		}
	})
	if err := flag.Set("test.parallel", parallel); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}
