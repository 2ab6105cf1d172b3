//go:build unix

package chaos

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qlock/qlock"
)

var (
	runFor     = flag.Duration("chaos.for", 12*time.Second, "how long there are faults")
	seed       = flag.Uint64("chaos.seed", 1, "of the schedule of faults, and of what the clients choose to do")
	reportFile = flag.String("chaos.report", "", "write the figures to this file as well")
)

// roleVariable says what a process is to be. A node or a client is this test's own
// program, run again.
const roleVariable = "QLOCK_CHAOS_ROLE"

// patience bounds every wait for something that must come.
const patience = 2 * time.Minute

func TestMain(m *testing.M) {
	if text := os.Getenv(roleVariable); text != "" {
		os.Exit(run(text))
	}
	goleak.VerifyTestMain(m)
}

// role is what a process is told to be: the one that is not nil.
type role struct {
	Node     *nodeRole     `json:",omitempty"`
	Client   *clientRole   `json:",omitempty"`
	Operator *operatorRole `json:",omitempty"`
}

type nodeRole struct {
	Config qlock.NodeConfig // its Logger is nil
	Routes []string
	Pulse  bool // it says when it did not run
}

type clientRole struct {
	Name     string // of the client; a process that takes another's place has the same
	Process  string // of this process
	URLs     string
	Store    string
	Lease    time.Duration
	Names    []string // of the resources
	Workers  int
	Seed     uint64
	Sequence uint64 // of this process among those that had its place

	Keep       bool // the last worker keeps a lock, and nobody evicts holders
	KeepShared bool // that worker is a reader
}

func run(text string) int {
	var r role
	err := json.Unmarshal([]byte(text), &r)
	switch {
	case err != nil:
	case r.Node != nil:
		err = r.Node.run()
	case r.Client != nil:
		err = r.Client.run()
	case r.Operator != nil:
		err = r.Operator.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
