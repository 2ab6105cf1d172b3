package partition_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/qlock/qlock/internal/testworld"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	within = testworld.Within
	wantIs = testworld.WantIs
)
