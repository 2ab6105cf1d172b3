package members_test

import (
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"github.com/qlock/qlock/internal/testworld"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What the tests in virtual time use.
type world = testworld.World

const lease = testworld.Lease

var (
	bubble   = testworld.Run
	settle   = synctest.Wait
	within   = testworld.Within
	wantIs   = testworld.WantIs
	wantText = testworld.WantText
)
