package driver

import (
	"context"
	"testing"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

func TestReason(t *testing.T) {
	voted, queued, refused, silent := client.NodeReport{Voted: true}, client.NodeReport{Queued: true}, client.NodeReport{Refused: true}, client.NodeReport{}
	clash, other, recovering := client.NodeReport{Clash: true, Voted: true}, client.NodeReport{OtherConfig: true}, client.NodeReport{Recovering: 1}
	blocker, gone := &wire.Blocker{}, context.DeadlineExceeded
	for _, tt := range []struct {
		name    string
		nodes   []client.NodeReport
		blocker *wire.Blocker
		cause   error
		want    error
	}{
		{"a try that another is in the way of", []client.NodeReport{voted, queued, silent}, blocker, nil, ErrHeld},
		{"refused by too many", []client.NodeReport{voted, refused, refused}, blocker, gone, ErrRefused},
		{"refused by one", []client.NodeReport{voted, queued, refused}, blocker, gone, ErrHeld},
		{"nobody known", []client.NodeReport{queued, queued, silent}, nil, gone, ErrNoQuorum},
		{"most are silent", []client.NodeReport{queued, silent, silent}, blocker, gone, ErrNoQuorum},
		{"nobody can vote", []client.NodeReport{recovering, recovering, recovering}, blocker, gone, ErrNoQuorum},
		{"one whose votes do not count was heard", []client.NodeReport{clash, queued, silent}, blocker, gone, ErrHeld},
		{"none that counts", []client.NodeReport{clash, other, silent}, blocker, gone, ErrNoQuorum},
	} {
		r := client.Report{Need: 2, Needs: quorum.Joint{2}, Lists: quorum.Count{len(tt.nodes)}, Nodes: tt.nodes, Blocker: tt.blocker}
		for i := range r.Nodes {
			r.Nodes[i].In = quorum.InNodes
		}
		if got := reasonOf(&r, tt.cause); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
