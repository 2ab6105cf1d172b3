package election_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/qlock/qlock/internal/testworld"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What the tests in virtual time use.
type (
	world = testworld.World
	link  = testworld.Link
)

const lease = testworld.Lease

var (
	bubble    = testworld.Run
	within    = testworld.Within
	wantError = testworld.WantError
)
