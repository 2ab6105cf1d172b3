package qlock_test

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/epoch"
	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/wire"
)

// change runs the operator's command until it ends.
func (w *world) change(wish epoch.Wish) error {
	w.t.Helper()
	nc := w.connect().Conn
	inbox := nc.NewInbox()
	answers := make(chan *nats.Msg, 1000)
	sub, err := nc.ChanSubscribe(inbox, answers)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	publish := func(r wire.Request) {
		r.Client = "admin"
		if err := nc.PublishRequest(subject.Request("default", string(r.Verb), r.Client, ""), inbox, wire.AppendRequest(nil, &r)); err != nil {
			w.t.Error(err)
		}
	}
	op, start := epoch.NewOperator("default", wish, uuid.New()), time.Now()
	for end := start.Add(5 * time.Minute); ; {
		var want epoch.Want
		now := func() time.Duration { return time.Since(start) }
		if time.Now().After(end) {
			w.t.Fatal("the command does not end")
		}
		timer := time.NewTimer(max(op.Deadline()-now(), 0))
		select {
		case <-timer.C:
			op.Tick(now(), &want)
		case m := <-answers:
			timer.Stop()
			a, err := wire.DecodeAnswer(m.Data)
			switch {
			case err != nil:
				w.t.Error(err)
			case a.Kind == wire.Configured:
				op.Hear(now(), a.Node, a.Step, &want)
			case a.Info.Config != nil:
				c := a.Info.Config
				op.Show(now(), a.Info.Nonce, epoch.Shown{
					Node: a.Node, ID: c.ID, Record: c.Record, Links: c.Links, Joining: c.Joining, Had: c.Had, Votes: a.Info.State == wire.Voting, Recovering: a.Recovering,
					Base: wire.Config{Nodes: a.Info.Nodes, MaxTTL: a.Info.MaxTTL, Skew: a.Info.Skew},
				}, &want)
			}
		}
		for ; ; want.Steps = want.Steps[1:] {
			if want.Ask != "" {
				publish(wire.Request{Verb: wire.Info, Nonce: want.Ask, ShowConfig: true})
				want.Ask = ""
			}
			if len(want.Steps) == 0 {
				break
			}
			publish(wire.Request{Verb: wire.Configure, Step: &want.Steps[0]})
		}
		if want.Done {
			return want.Err
		}
	}
}

// show asks all nodes what they have.
func (w *world) show() map[string]*wire.Answer {
	w.t.Helper()
	nc := w.connect().Conn
	inbox, out := nc.NewInbox(), map[string]*wire.Answer{}
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		w.t.Fatal(err)
	}
	r := wire.Request{Verb: wire.Info, Client: "admin", ShowConfig: true}
	if err := nc.PublishRequest(subject.Request("default", "info", "admin", ""), inbox, wire.AppendRequest(nil, &r)); err != nil {
		w.t.Fatal(err)
	}
	for {
		m, err := sub.NextMsg(time.Second)
		if err != nil {
			return out
		}
		a, err := wire.DecodeAnswer(m.Data)
		if err != nil {
			w.t.Fatal(err)
		}
		out[a.Node] = a
	}
}

// All nodes of a cluster get ids by one command. What they promised and learned is there after a
// crash of all of them (E10), and they go by the record whatever list they are started with.
func TestEpochOne(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		if err := w.change(epoch.Wish{Goal: epoch.Enable, CID: uuid.New()}); err != nil {
			t.Fatal(err)
		}
		check := func(when string) (digest string) {
			shown := w.show()
			for _, tn := range w.nodes {
				a := shown[tn.cfg.Name]
				if a == nil || a.Info.Config == nil || a.Info.Config.Epoch != 1 || a.Info.Config.Record == nil || a.Digest != a.Info.Config.Record.Digest() {
					t.Fatalf("%s: %s shows %+v", when, tn.cfg.Name, a)
				}
				if !slices.ContainsFunc(a.Info.Config.Record.Nodes, func(m wire.Member) bool { return m == wire.Member{Name: tn.cfg.Name, ID: a.Info.Config.ID} }) {
					t.Errorf("%s: %s is not in its record: %+v", when, tn.cfg.Name, a.Info.Config)
				}
				if digest = a.Digest; digest != shown["n1"].Digest {
					t.Errorf("%s: %s has another record than n1", when, tn.cfg.Name)
				}
			}
			return digest
		}
		before := check("after the change")
		w.each(func(tn *testNode) { tn.crash() })
		w.each(func(tn *testNode) {
			tn.cfg.Nodes = []string{"n1", "n2", "n3", "n4"}
			tn.start()
		})
		if after := check("after crashes"); after != before {
			t.Errorf("the digest was %s and is %s", before, after)
		}
		w.each(func(tn *testNode) { tn.stop() })
		w.each(func(tn *testNode) { tn.start() })
		check("after a stop")
	})
}

// An operator left a change half-way. Each node of both lists says so in its log when it has taken
// twice as long as the longest lease, and not again so soon.
func TestChangeLeftHalfWay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		if err := w.change(epoch.Wish{Goal: epoch.Change, CID: uuid.New(), Nodes: []string{"n2", "n3"}, StayJoint: true}); err != nil {
			t.Fatal(err)
		}
		const warning = "WARN the change of the list of nodes to [n2 n3] has not been ended for "
		time.Sleep(2*maxLease - 5*time.Second)
		if got := w.log.find(warning); len(got) > 0 {
			t.Errorf("too early: %q", got)
		}
		time.Sleep(10 * time.Second)
		for range 2 {
			if got := w.log.find(warning, "qlock nodes finish", "qlock nodes rollback"); len(got) != 3 {
				t.Errorf("%d warnings: %q", len(got), got)
			}
			time.Sleep(10 * time.Minute)
		}
	})
}

// A node that cannot write what it must not forget stops, and says nothing (E10).
func TestDirectoryThatCannotBeWritten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		tn := w.nodes[0]
		if err := os.RemoveAll(tn.cfg.StateDir); err != nil {
			t.Fatal(err)
		}
		nc := w.connect().Conn
		sub, err := nc.SubscribeSync("inbox")
		if err != nil {
			t.Fatal(err)
		}
		base := wire.Config{Nodes: []string{"n1"}, MaxTTL: maxLease, Skew: w.show()["n1"].Info.Skew}
		r := wire.Request{Verb: wire.Configure, Client: "admin", Step: &wire.Step{
			Kind: wire.Prepare, Epoch: 1, Prev: base.Digest(), Ballot: wire.Ballot{N: 1, Run: uuid.New()},
		}}
		if err := nc.PublishRequest(subject.Request("default", "config", "admin", ""), "inbox", wire.AppendRequest(nil, &r)); err != nil {
			t.Fatal(err)
		}
		<-tn.Done()
		wantText(t, tn.Err(), "n1 has stopped", "cannot write")
		if s := tn.Stats().State; s != qlock.NodeStopped {
			t.Errorf("it is %v", s)
		}
		if m, err := sub.NextMsg(time.Second); err == nil {
			t.Errorf("it answers %s", m.Data)
		}
		if err := tn.Close(); err != nil {
			t.Error(err)
		}
		tn.Node = nil
	})
}
