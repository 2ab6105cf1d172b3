//go:build unix

package cli

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// A cluster of one node becomes one of two by commands, with a lock held all the time. What
// happens is told by the commands that look.
func TestNodesChange(t *testing.T) {
	c := startCluster(t, 1, "--max-lease", "2s")
	holder := launch(t, "lock", "held", "-s", c.url(), "--lease", "2s")
	holder.says(holder.out, "\n") // the token
	qlockCmd(t, "nodes", "enable", "-s", c.url()).want(t, 0, "epoch 1 is decided: nodes [n1]")
	qlockCmd(t, "nodes", "enable", "-s", c.url()).want(t, 0)
	qlockCmd(t, "nodes", "finish", "-s", c.url()).want(t, 0)

	joined := launch(t, "node", "--name", "n2", "--join", "--state-dir", filepath.Join(t.TempDir(), "n2"), "--server", c.url(), "--max-lease", "2s")
	eventually(t, func() error {
		if r := qlockCmd(t, "nodes", "-s", c.url()); !strings.Contains(r.out, "joining") {
			return fmt.Errorf("no node waits: %s", r.out)
		}
		return nil
	})
	qlockCmd(t, "check", "-s", c.url()).want(t, 0, "node n2 waits until a change of the list adds it", "1 of 1 nodes vote")

	qlockCmd(t, "nodes", "change", "n1", "n2", "--no-wait", "-s", c.url()).want(t, 0, "epoch 2 is decided: nodes [n1] and [n1 n2]")
	qlockCmd(t, "nodes", "-s", c.url()).want(t, 0, "A change of the list of nodes to n1 n2 is under way")
	r := decode[membersReport](t, qlockCmd(t, "nodes", "--json", "-s", c.url()))
	if r.Epoch != 2 || r.Change == nil || fmt.Sprint(r.NodeNames, r.Change.NodeNames) != "[n1] [n1 n2]" || r.Change.MaxLease != 2000 {
		t.Errorf("%+v, change %+v", r, r.Change)
	}
	qlockCmd(t, "check", "-s", c.url()).want(t, 0, "1 of 1 nodes of the old list vote", "2 of 2 nodes of the new list vote", "is under way", "qlock nodes rollback")
	qlockCmd(t, "nodes", "change", "n2", "-s", c.url()).want(t, exitFailed, "a change to [n1 n2] is under way")
	qlockCmd(t, "nodes", "finish", "-s", c.url()).want(t, 0, "epoch 3 is decided: nodes [n1 n2]")

	if r := decode[membersReport](t, qlockCmd(t, "nodes", "--json", "-s", c.url())); r.Epoch != 3 || r.Change != nil || r.Voting != 2 || r.Nodes[0].ID == "" || r.Nodes[0].ID == r.Nodes[1].ID {
		t.Errorf("%+v", r)
	}
	qlockCmd(t, "ls", "-s", c.url()).want(t, 0, "held")
	select {
	case <-holder.done:
		t.Errorf("the lock is lost: %s %s", holder.out, holder.err)
	default:
	}
	joined.kill()
}
