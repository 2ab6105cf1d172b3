//go:build unix

package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/qlock/qlock"
)

// A cluster of one node becomes one of two by commands, with a lock held all the time. What
// happens is told by the commands that look.
func TestNodesChange(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, "--max-lease", "12s")
	holder := launch(t, "lock", "held", "-s", c.url(), "--lease", "12s")
	holder.says(holder.out, "\n") // the token
	for _, end := range []string{"finish", "rollback"} {
		qlockCmd(t, "nodes", end, "-s", c.url()).want(t, 0, "no change of the list of nodes is under way: nothing to do")
		qlockCmd(t, "nodes", end, "-s", c.url(), "--cluster", "other").want(t, exitFailed, `no node of cluster "other" answered`)
	}
	qlockCmd(t, "nodes", "enable", "-s", c.url()).want(t, 0, "epoch 1 is decided: nodes [n1]")
	qlockCmd(t, "nodes", "enable", "-s", c.url()).want(t, 0)
	qlockCmd(t, "nodes", "finish", "-s", c.url()).want(t, 0)

	joined := launch(t, "node", "--name", "n2", "--join", "--state-dir", filepath.Join(t.TempDir(), "n2"), "--server", c.url(), "--max-lease", "12s")
	eventually(t, func() error {
		if r := qlockCmd(t, "nodes", "-s", c.url()); !strings.Contains(r.out, "joining") {
			return fmt.Errorf("no node waits: %s", r.out)
		}
		return nil
	})
	sees(t, []string{"check", "-s", c.url()}, 0, "node n2 waits until a change of the list adds it", "1 of 1 nodes vote")

	qlockCmd(t, "nodes", "change", "n1", "n2", "--no-wait", "-s", c.url()).want(t, 0, "epoch 2 is decided: nodes [n1] and [n1 n2]")
	sees(t, []string{"nodes", "-s", c.url()}, 0, "A change of the list of nodes to n1 n2 is under way", "qlock nodes finish",
		"1 of 1 nodes of the old list vote; a writer needs 1 votes, a reader 1.", "2 of 2 nodes of the new list vote; a writer needs 2 votes, a reader 1.", "Epoch 2.")
	r := decode[membersReport](t, sees(t, []string{"nodes", "--json", "-s", c.url()}, 0, `"voting": 2`))
	if r.Epoch != 2 || r.Change == nil || fmt.Sprint(r.NodeNames, r.Change.NodeNames) != "[n1] [n1 n2]" || r.Change.MaxLease != 12000 ||
		r.Voting != 1 || r.Change.Voting != 2 || r.Change.Writer != 2 {
		t.Errorf("%+v, change %+v", r, r.Change)
	}
	sees(t, []string{"check", "-s", c.url()}, 0, "1 of 1 nodes of the old list vote", "2 of 2 nodes of the new list vote", "is under way", "qlock nodes rollback")
	// The holder has the vote of the new node soon, not at once.
	sees(t, []string{"info", "held", "-s", c.url()}, 0, "1 of 1 nodes of the old list, 2 of 2 of the new list: the list is being changed")
	sees(t, []string{"ls", "-s", c.url()}, 0, "The list of nodes is being changed from n1 to n1 n2")
	qlockCmd(t, "nodes", "change", "n2", "-s", c.url()).want(t, exitFailed, "a change to [n1 n2] is under way")
	qlockCmd(t, "nodes", "finish", "-s", c.url()).want(t, 0, "epoch 3 is decided: nodes [n1 n2]")

	if r := decode[membersReport](t, sees(t, []string{"nodes", "--json", "-s", c.url()}, 0, `"voting": 2`)); r.Epoch != 3 || r.Change != nil || r.Voting != 2 || r.Nodes[0].ID == "" || r.Nodes[0].ID == r.Nodes[1].ID {
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

// A command that is interrupted says that what was decided stays. One for a cluster whose nodes
// all wait to be added to a list says that they have none.
func TestNodesChangeInterrupted(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, "--max-lease", "6s")
	p := launch(t, "nodes", "change", "n1", "n2", "-s", c.url())
	p.says(p.err, "waiting for node n2, which is new")
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	p.wait().want(t, exitFailed, "interrupted; what the nodes have decided stays, and the same command goes on from there")

	for _, name := range []string{"a", "b"} {
		launch(t, "node", "--name", name, "--cluster", "new", "--join", "--state-dir", filepath.Join(t.TempDir(), name), "--server", c.url())
	}
	sees(t, []string{"nodes", "--cluster", "new", "-s", c.url()}, 0, "a ", "b ", "joining", "No node that answered has a list of nodes. Start the nodes of a new cluster with --nodes")
	sees(t, []string{"nodes", "--cluster", "new", "--json", "-s", c.url()}, 0, `"joining"`, `"node_names": []`)
	sees(t, []string{"check", "--cluster", "new", "-s", c.url()}, exitFailed, "no node that answered has a list of nodes", "node b waits until a change of the list adds it")
	p = launch(t, "nodes", "change", "a", "b", "--cluster", "new", "-s", c.url())
	p.says(p.err, "waiting for nodes that have a list: [a b] answer, but only wait to be added to one")
	p.kill()
}

// What is told of a change says when it can be finished, and not that it can be while a new node is
// down.
func TestChangeText(t *testing.T) {
	voting := func(names ...string) (out []qlock.Member) {
		for _, n := range names {
			out = append(out, qlock.Member{Name: n, Answered: true, State: qlock.NodeVoting})
		}
		return out
	}
	for _, tt := range []struct {
		nodes []qlock.Member
		wait  time.Duration
		want  string
	}{
		{voting("n1", "n2", "n3", "n4"), 0, "finished now (qlock nodes finish), and rolled back now (qlock nodes rollback)."},
		{voting("n1", "n2"), 0, "finished when 2 of the old nodes vote (qlock nodes finish), and rolled back when 2 of the old nodes vote (qlock"},
		{voting("n1", "n2", "n3"), 0, "It can be finished now (qlock nodes finish), and"},
		{voting("n1", "n2", "n3"), 1500 * time.Millisecond, "It can be finished in 2s (qlock nodes finish), and"},
		{voting("n1", "n3"), 0, "It can be finished when n2 votes (qlock"},
		{voting("n3", "n4"), time.Minute, "It can be finished in 1m0s, and when n1 n2 vote (qlock"},
	} {
		m := &qlock.Members{Nodes: tt.nodes, Config: qlock.ClusterConfig{Nodes: []string{"n1", "n3", "n4"}}, Change: &qlock.NodesChange{Nodes: []string{"n1", "n2"}, For: 3 * time.Second, Wait: tt.wait}}
		if got := changeText(m); !strings.Contains(got, "to n1 n2 is under way for 3s. ") || !strings.Contains(got, tt.want) {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
	m := &qlock.Members{Nodes: voting("n1"), Config: qlock.ClusterConfig{Nodes: []string{"n1"}, MaxLease: time.Second, MaxSkew: time.Second},
		Change: &qlock.NodesChange{Nodes: []string{"n1"}, MaxLease: time.Second, MaxSkew: 500 * time.Millisecond}}
	if got := changeText(m); !strings.HasPrefix(got, "A change to a longest lease of 1s and an allowed skew of 500ms is under way. It can be finished now") {
		t.Error(got)
	}
	// Clocks are compared by the limits of the new list.
	m.Nodes = append(m.Nodes, qlock.Member{Name: "n2", Answered: true, ClockOffset: time.Millisecond})
	r := &findings{}
	if checkClocks(m, r); r.count(problem) > 0 {
		t.Errorf("%+v", r.list)
	}
}

// A change that takes longer than twice the longest lease of both lists is a warning.
func TestChangeNotEnded(t *testing.T) {
	for _, tt := range []struct {
		length time.Duration
		grade  grade
	}{{2 * time.Minute, fine}, {2*time.Minute + 1, warning}} {
		m := &qlock.Members{
			Config: qlock.ClusterConfig{Nodes: []string{"n1"}, MaxLease: 30 * time.Second},
			Change: &qlock.NodesChange{Nodes: []string{"n2"}, MaxLease: time.Minute, For: tt.length},
		}
		var r findings
		checkMembers(m, &r)
		i := slices.IndexFunc(r.list, func(f finding) bool { return f.About == "change" })
		if i < 0 || r.list[i].Grade != tt.grade {
			t.Errorf("after %v: %+v", tt.length, r.list)
		}
	}
}

// A node that lost its state directory, or has a copy of it, waits to be added though the list has its name, which needs to
// be told.
func TestLostDirectory(t *testing.T) {
	for _, tt := range []struct {
		epoch uint64
		name  string
		state qlock.NodeState
		want  string
	}{
		{1, "n2", qlock.NodeJoining, "node n2 has another state directory"},
		{1, "n3", qlock.NodeJoining, "node n3 waits until a change of the list adds it"},
		{0, "n2", qlock.NodeJoining, "node n2 waits until a change of the list adds it"},
		{3, "n2", qlock.NodeRetired, "node n2 has another state directory"},
		{3, "n3", qlock.NodeRetired, "node n3 is in no list any more"},
	} {
		m := &qlock.Members{Config: qlock.ClusterConfig{Nodes: []string{"n1", "n2"}, Epoch: tt.epoch}, Nodes: []qlock.Member{
			{Name: "n1", Answered: true, State: qlock.NodeVoting}, {Name: tt.name, Answered: true, State: tt.state},
		}}
		var r findings
		checkMembers(m, &r)
		if text := fmt.Sprint(r.list); !strings.Contains(text, tt.want) {
			t.Errorf("%+v: %s", tt, text)
		}
	}
}

// While it is waited for a time that runs down, that is told every few seconds.
func TestChangeProgress(t *testing.T) {
	var out strings.Builder
	say := changeProgress(&out)
	for _, s := range []string{
		"epoch 2 is decided: nodes [n1]", "waiting for 11s: locks have to run out", "waiting for 10s: locks have to run out",
		"waiting for node n1: before", "waiting for node n2: before", "waiting for 9s: locks have to run out",
	} {
		say(s)
	}
	const want = "epoch 2 is decided: nodes [n1]\nwaiting for 11s: locks have to run out\nwaiting for node n1: before\nwaiting for node n2: before\nwaiting for 9s: locks have to run out\n"
	if out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}
