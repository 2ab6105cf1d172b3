package node

import (
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/qlock/qlock/internal/proto"
)

// A node that was away for so long that another may have taken its place and voted
// asks so often before it votes again, and one that gives way after it has voted
// says so as often: a message or two may be lost.
const manyProbes = 10

func (n *Node) probeDue() time.Duration {
	switch {
	case n.stopped || !n.probed || !n.probeEchoed:
		return n.probeAt + n.cfg.ProbeWait
	case n.inQuarant:
		return n.probeAt + max(n.cfg.ProbeWait, n.cfg.MaxTTL/30)
	}
	return n.probeAt + n.cfg.MaxTTL/3
}

// checkAlone notices that the node has not heard itself for so long that another
// may have been started in its place, have waited as it must, and vote. It was
// paused, asleep, or cut off; which of the clocks shows it is the same to us (N9).
func (n *Node) checkAlone(now proto.Now, out *Out) {
	away := max(now.Mono-n.heardAt, time.Duration(now.Wall-n.heardWall)*time.Microsecond)
	if !n.probed || away <= n.cfg.MaxTTL {
		return
	}
	n.probed, n.missing = false, manyProbes
	n.probeAt, n.probeEchoed = now.Mono-n.cfg.ProbeWait, false // due at once
	out.Notes = append(out.Notes, fmt.Sprintf(
		"this node did not hear itself for %v, and another may have its name by now: it asks before it votes again", away.Round(time.Millisecond)))
}

// ask sends a probe.
func (n *Node) ask(now proto.Now, out *Out) {
	n.asked = false
	n.probe++
	n.probeAt, n.probeWall, n.probeEchoed = now.Mono, now.Wall, false
	out.Probe = n.probeRequest()
}

func (n *Node) nonce() string { return fmt.Sprintf("%s/%d", n.cfg.Incarnation, n.probe) }

// HandleAnswer takes an answer to the node's own probe (N9).
func (n *Node) HandleAnswer(now proto.Now, a *proto.Answer, out *Out) {
	if a.Kind == proto.Over && !n.stopped {
		n.over(now, a, out)
		return
	}
	if n.stopped || a.Kind != proto.Informed || a.Node != n.cfg.Name {
		return
	}
	if a.Info.Nonce != n.nonce() {
		return // of an earlier probe, or of an earlier life: who answered may be long gone
	}
	if a.Incarnation == n.cfg.Incarnation {
		n.probeEchoed = true
		n.heardAt, n.heardWall = n.probeAt, n.probeWall
		return
	}
	n.clash(now, a.Incarnation, a.Info.Started, a.Info.Voted, out)
}

// clash settles that another node has this node's name: the one that started
// later stops. The earlier one gives no votes until those that the other may
// have given under the common name have run out; if the other says that it gave
// none, it goes on undisturbed (N9).
func (n *Node) clash(now proto.Now, other uuid.UUID, started int64, voted bool, out *Out) {
	later := n.started > started
	if n.started == started {
		later = slices.Compare(n.cfg.Incarnation[:], other[:]) > 0
	}
	if later {
		n.stopped = true
		if n.voted {
			n.farewells = manyProbes
			n.probeAt = now.Mono - n.cfg.ProbeWait // due at once
		}
		out.Notes = append(out.Notes, fmt.Sprintf(
			"another node named %q is running (incarnation %s): this one started later and stops; give each node a name of its own", n.cfg.Name, other))
		return
	}
	if voted {
		n.giveWay(now, other, out)
		return
	}
	out.Notes = append(out.Notes, fmt.Sprintf(
		"another node named %q (incarnation %s) tried to start and was told to stop", n.cfg.Name, other))
}

// giveWay waits until the votes of another, which has stopped or will, have run out.
func (n *Node) giveWay(now proto.Now, other uuid.UUID, out *Out) {
	n.told = other
	n.enterQuarantine(now.Mono + n.cfg.MaxTTL + proto.Margin(n.cfg.MaxTTL))
	out.Notes = append(out.Notes, fmt.Sprintf(
		"another node named %q (incarnation %s) has given votes: this one, which is older, gives none until they have run out", n.cfg.Name, other))
}

func (n *Node) info(now proto.Now, r *proto.Request, reply string, out *Out) {
	if len(r.Over) > 0 {
		if !n.stopped {
			n.vouch(r, reply, out)
		}
		return
	}
	if r.Node != "" && (r.Node != n.cfg.Name || r.Client != r.Node) {
		return // who asks in a node's name does so under its name: NATS lets no other
	}
	if reply != "" {
		a := n.answer(proto.Informed)
		a.Recovering = n.recovering(now)
		a.Info = &proto.NodeInfo{
			Nonce: r.Nonce, Nodes: n.cfg.Nodes, MaxTTL: n.cfg.MaxTTL, Skew: n.cfg.Skew,
			State: n.State(), Started: n.started, Now: max(now.Wall, 0), Voted: n.voted, Claims: n.Claims(), Version: n.cfg.Version,
		}
		out.Answers = append(out.Answers, Send{reply, a})
	}
	if n.stopped || r.Node == "" || r.Incarnation == n.cfg.Incarnation {
		return
	}
	// Another node asks after this one's name. It may also be this node's own
	// life before the last restart, in a message that was late; only an answer
	// to a question of one's own shows who is there now (N9).
	n.asked = true
	// But a life before this one did not start after it. And a later one that has
	// voted may be gone before it can be asked, while its votes stand.
	if r.Started > n.started && r.Voted && r.Incarnation != n.told {
		n.giveWay(now, r.Incarnation, out)
	}
	// One question at a time: two nodes that ask each other would never hear an
	// answer in time.
	if now.Mono >= n.probeAt+n.cfg.ProbeWait {
		n.ask(now, out)
		n.asked = true
	}
}

func (n *Node) probeRequest() *proto.Request {
	return &proto.Request{
		Verb: proto.Info, Client: n.cfg.Name, Nonce: n.nonce(),
		Node: n.cfg.Name, Incarnation: n.cfg.Incarnation, Started: n.started, Voted: n.voted,
	}
}
