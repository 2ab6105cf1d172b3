package qlock

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/driver"
)

// A quorum of votes that cannot agree on a token is none, and the error says whose
// clock to look at.
func TestErrorOfVotesThatCannotAgree(t *testing.T) {
	report := client.Report{Need: 2, Nodes: []client.NodeReport{
		{Name: "n1", Voted: true},
		{Name: "n2", Voted: true, Short: 2*time.Hour - 3*time.Second, Highest: "n1"},
		{Name: "n3"},
	}}
	err := newLockError("lock", "orders.42", &driver.Failure{
		Reason: ErrNoQuorum, Cause: context.DeadlineExceeded, Report: report,
	})
	if !errors.Is(err, ErrNoQuorum) {
		t.Errorf("%v is not ErrNoQuorum", err)
	}
	for _, want := range []string{"2 of 3 nodes voted, 2 are needed", "n2 voted (its tokens cannot follow those of n1 for 1h59m57s", "qlock check", "n3 silent"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
}
