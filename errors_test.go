package qlock

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/driver"
	"github.com/qlock/qlock/internal/quorum"
)

// While the list of nodes changes, an error and a waiting request tell how near the lock came to a
// quorum of each list.
func TestErrorOfTwoLists(t *testing.T) {
	const both = quorum.InNodes | quorum.InNext
	report := client.Report{Need: 3, Needs: quorum.Joint{2, 3}, Lists: quorum.Count{3, 4}, Nodes: []client.NodeReport{
		{Name: "n1", Voted: true, In: both}, {Name: "n2", Voted: true, In: both}, {Name: "n3", In: quorum.InNodes},
		{Name: "n4", In: quorum.InNext}, {Name: "n5", Recovering: time.Second, In: quorum.InNext},
	}}
	e := newLockError("lock", "orders.42", &driver.Failure{Reason: ErrNoQuorum, Cause: context.DeadlineExceeded, Report: report})
	want := "the list of nodes is being changed: 2 of 3 nodes of the old list (n1 n2 n3) voted, 2 are needed; 2 of 4 nodes of the new list (n1 n2 n4 n5) voted, 3 are needed"
	if !strings.Contains(e.Error(), want+": n1 voted, ") {
		t.Errorf("%v\nwants %s", e, want)
	}
	w := Waiting{Name: "orders.42", Need: e.Need, Nodes: e.Nodes, Lists: e.Lists}
	if !strings.Contains(w.String(), want) {
		t.Errorf("%v\nwants %s", w, want)
	}
	report.Lists[1] = 0
	if e := newLockError("lock", "orders.42", &driver.Failure{Reason: ErrNoQuorum, Report: report}); e.Lists != nil || !strings.Contains(e.Error(), "2 of 5 nodes voted, 3 are needed") {
		t.Errorf("%v", e)
	}
}

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
