package voter

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/qlock/qlock/internal/sat"
	"github.com/qlock/qlock/internal/wire"
)

const (
	// A node that may have forgotten votes hears itself ask so often before its wait
	// begins, so that an earlier node of its name stops voting before that (N9).
	firstAsks = 5

	// A node asks for its name so many times in maxTTL, and more often while it waits.
	askEvery, askWaiting = 20, 60

	// A node that gives its name up says so as often: a message or two may be lost.
	farewells = 10

	// So many others of one name are told apart.
	maxRivals = 8
)

// rival is another node of this node's name, which is not known to have stopped.
type rival struct {
	incarnation uuid.UUID
	voted       bool          // or it may have
	until       time.Duration // no votes before this moment
}

func (n *Node) probeDue() time.Duration {
	switch {
	case n.hears && !n.stopped && n.probeEchoed && n.probeAt < n.listenEnd:
		return min(n.probeAt+n.cfg.ProbeWait, n.listenEnd) // the question that ends it is not later than it must be
	case n.stopped || !n.probed || !n.probeEchoed || n.asks > 0:
		return n.probeAt + n.cfg.ProbeWait
	case n.inQuarant || len(n.rivals) > 0:
		return n.probeAt + n.pause(n.cfg.MaxTTL)
	}
	return n.probeAt + n.cfg.MaxTTL/askEvery
}

// away is for how long the node has not heard itself. It was paused, asleep, or
// cut off; which of the clocks shows it is the same to us (N9).
func (n *Node) away(now wire.Now) time.Duration {
	return elapsed(now, n.heardAt, n.heardWall)
}

// elapsed is the larger of what the two clocks went on since a moment.
func elapsed(now wire.Now, mono time.Duration, wall int64) time.Duration {
	return max(now.Mono-mono, sat.Micros(now.Wall-wall) /*plant:away-wall*/)
}

// pause is how long a node that waits lets pass between two questions: an answer has
// ProbeWait to come.
func (n *Node) pause(maxTTL time.Duration) time.Duration {
	return max(n.cfg.ProbeWait, maxTTL/askWaiting)
}

// present is for how long a node that votes may not have heard itself: it asks every
// maxTTL/askEvery, and what stands still for less than three pauses was not away (N9).
func (n *Node) present(maxTTL time.Duration) time.Duration {
	return maxTTL/askEvery + 3*n.pause(maxTTL)
}

// checkAlone notices that the node has not heard itself for so long that another
// may have been started in its place, and wait: it listens for that one's questions
// before it votes again. Or for so long that another may have waited as it must, and
// vote, or have voted and be gone again. Then that nobody is heard proves nothing:
// the node waits as one that forgot (N9).
func (n *Node) checkAlone(now wire.Now, out *Out) {
	if n.asks > 0 {
		return
	}
	if n.hears && elapsed(now, n.echoAt, n.echoWall) > n.cfg.ProbeWait+n.pause(n.cfg.MaxTTL) {
		n.hears = false // what was asked meanwhile it may have missed: it listens anew //plant:listens-anew
	}
	away := n.away(now)
	forgot := away > n.cfg.MaxTTL && !n.hears                                     //plant:absence-forgets
	if !forgot && (n.back || away <= n.present(n.cfg.MaxTTL) /*plant:present*/) { //plant:heard-itself
		return
	}
	n.back, n.probed = true, false
	n.probe++                                                  // an answer to what it asked before is none
	n.probeAt, n.probeEchoed = now.Mono-n.cfg.ProbeWait, false // due at once
	if !forgot {
		return
	}
	n.back = false
	n.asks = firstAsks
	n.enterQuarantine(now)
	out.Notes = append(out.Notes, fmt.Sprintf(
		"this node did not hear itself for %v, and another node may have used its name meanwhile: it gives no votes until those of the other have expired", away.Round(time.Millisecond)))
}

// ask sends a probe.
func (n *Node) ask(now wire.Now, out *Out) {
	n.asked = false
	n.probe++
	n.probeAt, n.probeWall, n.probeEchoed = now.Mono, now.Wall, false
	out.Probe = n.probeRequest()
}

// nonce is of the probe that is out. Nobody can guess it before he has heard that: whoever
// asks under a name of his own may have the answer sent here, and what is heard so is no
// sign that the probe was.
func (n *Node) nonce() string {
	return fmt.Sprintf("%s/%d/%016x", n.cfg.Incarnation, n.probe, sipHash(n.secret, strconv.Itoa(n.probe)))
}

// HandleAnswer takes an answer to the node's own probe (N9).
func (n *Node) HandleAnswer(now wire.Now, a *wire.Answer, out *Out) {
	if n.stopped {
		return
	}
	n.checkAlone(now, out)
	if a.Kind == wire.Over {
		n.over(now, a, out)
		return
	}
	if a.Kind != wire.Informed {
		return
	}
	if a.Info.Nonce != n.nonce() { //plant:nonce
		return // of an earlier probe, or of an earlier life: who answered may be long gone
	}
	if a.Node != n.cfg.Name {
		n.longerLease(max(a.Info.MaxTTL, a.Info.Longest), "node "+a.Node, out)
		return
	}
	if a.Incarnation != n.cfg.Incarnation {
		n.clash(now, a, out)
		return
	}
	if n.probeEchoed {
		return
	}
	n.probeEchoed = true
	n.echoAt, n.echoWall = n.probeAt, n.probeWall
	if !n.back { //plant:heard-when-back
		n.heardAt, n.heardWall = n.probeAt, n.probeWall
	}
	if n.back && !n.hears {
		n.hears = true
		n.listenEnd = now.Mono + 2*n.pause(n.longest) // two questions of another: one may be lost //plant:listens
	}
	if n.asks > 0 {
		n.asks--
		n.soughtAt = n.probeAt
		n.quarantine = max(n.quarantine, n.probeAt+n.runOut()) //plant:wait-when-heard
	}
}

// clash settles that another node has this node's name and is alive: the one that
// started later stops (N9).
func (n *Node) clash(now wire.Now, a *wire.Answer, out *Out) {
	later := n.started > a.Info.Started //plant:clash
	if n.started == a.Info.Started {
		later = slices.Compare(n.cfg.Incarnation[:], a.Incarnation[:]) > 0
	}
	if !later || a.Info.State == wire.Stopped {
		n.contest(now, a.Incarnation, a.Info.Voted, a.Info.State == wire.Stopped, out)
		return
	}
	n.stopped = true
	n.farewells = farewells                //plant:farewells
	n.probeAt = now.Mono - n.cfg.ProbeWait // due at once
	out.Notes = append(out.Notes, fmt.Sprintf(
		"another node named %q is running (incarnation %s): this one started later and stops; give each node a name of its own", n.cfg.Name, a.Incarnation))
}

// contest notes a word of another node of this name. This one gives no votes until
// the other says that it has stopped, or has been silent for so long that it has,
// and until the votes that it may have given have run out. The other may not hear
// what this one says, so each further question of it counts anew (N9).
func (n *Node) contest(now wire.Now, other uuid.UUID, voted, stopped bool, out *Out) {
	if slices.Contains(n.gone, other) { //plant:gone
		return // what it asked before it stopped, late
	}
	i := slices.IndexFunc(n.rivals, func(r rival) bool { return r.incarnation == other })
	if stopped {
		if len(n.gone) == maxRivals {
			n.gone = slices.Delete(n.gone, 0, 1)
		}
		n.gone = append(n.gone, other)
		if voted {
			n.setRival(i, rival{other, true, now.Mono + n.runOut()}, now)
			out.Notes = append(out.Notes, fmt.Sprintf(
				"another node named %q (incarnation %s) has given votes and has stopped: this one gives none until they have expired", n.cfg.Name, other))
			return
		}
		if i >= 0 {
			n.rivals = slices.Delete(n.rivals, i, i+1)
			n.noteState(now, out)
		}
		out.Notes = append(out.Notes, fmt.Sprintf(
			"another node named %q (incarnation %s) tried to start and was told to stop", n.cfg.Name, other))
		return
	}
	// It asks often in maxTTL, and may have given votes until it asked again. So
	// twice the time, in which some questions may be lost.
	if i < 0 || voted && !n.rivals[i].voted {
		out.Notes = append(out.Notes, fmt.Sprintf(
			"another node named %q (incarnation %s) is running: this one gives no votes until the other has stopped and its votes have expired", n.cfg.Name, other))
	}
	n.setRival(i, rival{other, voted || i >= 0 && n.rivals[i].voted, now.Mono + 2*n.runOut()}, now) //plant:rival
}

func (n *Node) setRival(i int, r rival, now wire.Now) {
	switch {
	case i >= 0:
		n.rivals[i] = r
	case len(n.rivals) < maxRivals:
		n.rivals = append(n.rivals, r)
	default: // somebody plays with the name: one wait for all
		n.rivals[maxRivals-1].voted = true
		n.rivals[maxRivals-1].until = max(n.rivals[maxRivals-1].until, r.until)
	}
}

// checkRivals ends the wait for others whose votes have run out by now.
func (n *Node) checkRivals(now wire.Now, out *Out) {
	before := len(n.rivals)
	n.rivals = slices.DeleteFunc(n.rivals, func(r rival) bool { return r.until <= now.Mono })
	if len(n.rivals) < before {
		n.raiseFloors(now)
		n.noteState(now, out)
	}
}

func (n *Node) info(now wire.Now, r *wire.Request, reply string, out *Out) {
	if len(r.Over)+len(r.Recalled) > 0 {
		if !n.stopped {
			n.vouch(r, reply, out)
		}
		return
	}
	if r.Node != "" && r.Client != r.Node {
		return // who asks in a node's name does so under its name: NATS lets no other
	}
	mine := r.Node == n.cfg.Name
	if r.Node != "" && !mine && r.Voted {
		return // of others, who has just started learns how long leases may be (N8)
	}
	if reply != "" {
		a := n.answer(wire.Informed)
		a.Recovering = n.recovering(now)
		a.Info = &wire.NodeInfo{
			Nonce: r.Nonce, Nodes: n.cfg.Nodes, MaxTTL: n.cfg.MaxTTL, Skew: n.cfg.Skew,
			State: n.State(), Started: n.started, Now: max(now.Wall, 0), Voted: n.voted, Claims: n.Claims(), Version: n.cfg.Version,
			Ahead: n.Ahead(now),
		}
		if n.longest > n.cfg.MaxTTL {
			a.Info.Longest = n.longest
		}
		out.Answers = append(out.Answers, Send{reply, a})
	}
	if n.stopped || !mine || r.Incarnation == n.cfg.Incarnation || slices.Contains(n.cfg.Past, r.Incarnation) /*plant:past-life*/ {
		return
	}
	// Another node asks after this one's name. Where nothing was kept of it, it may
	// also be this node's own life before the last restart, in a message that was
	// late: so this alone does not make it stop. But it gives no votes meanwhile,
	// since the other may not hear its answers (N9).
	n.asked = true //plant:namesake-asks
	n.contest(now, r.Incarnation, r.Voted, r.Stopped, out)
	// One question at a time: two nodes that ask each other would never hear an
	// answer in time.
	if !r.Stopped && now.Mono >= n.probeAt+n.cfg.ProbeWait {
		n.ask(now, out)
		n.asked = true
	}
}

// Farewell is what a node says when it is stopped, to whoever bears its name next: that
// its last question, which may still be on its way, is no sign of life (N9).
func (n *Node) Farewell() *wire.Request {
	r := n.probeRequest()
	r.Stopped = true
	return r
}

func (n *Node) probeRequest() *wire.Request {
	return &wire.Request{
		Verb: wire.Info, Client: n.cfg.Name, Nonce: n.nonce(),
		Node: n.cfg.Name, Incarnation: n.cfg.Incarnation, Started: n.started, Voted: n.voted, Stopped: n.stopped,
	}
}
