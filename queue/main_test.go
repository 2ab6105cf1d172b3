package queue_test

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

// jetStream starts a server with JetStream, apart from the lock cluster.
func jetStream(t testing.TB) (url string) { return testworld.StartJetStream(t, 1)[0] }
