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
	// firstAsks is how many of its own questions a node that may have forgotten votes must
	// hear before its wait begins, so that an earlier node of its name stops voting before
	// that (N9).
	firstAsks = 5

	// A node asks for its own name askEvery times in maxTTL, and askWaiting times while it
	// waits.
	askEvery, askWaiting = 20, 60

	// farewells is how often a node repeats that it gives up its name, since messages may be
	// lost.
	farewells = 10

	// maxRivals bounds the other nodes of this name that are tracked one by one.
	maxRivals = 8
)

// rival is another node of this node's name that is not known to have stopped.
type rival struct {
	incarnation uuid.UUID
	voted       bool          // it gave votes, or may have
	until       time.Duration // this node does not vote before this time
}

func (n *Node) probeDue() time.Duration {
	switch {
	case n.hears && !n.stopped && n.probeEchoed && n.probeAt < n.listenEnd:
		// The question that ends the listening must not come late.
		return min(n.probeAt+n.cfg.ProbeWait, n.listenEnd)
	case n.stopped || !n.probed || !n.probeEchoed || n.asks > 0:
		return n.probeAt + n.cfg.ProbeWait
	case n.inQuarant || len(n.rivals) > 0:
		return n.probeAt + n.pause(n.cfg.MaxTTL)
	}
	return n.probeAt + n.cfg.MaxTTL/askEvery
}

// away returns for how long the node has not heard itself. It may have been paused,
// asleep, or cut off. For N9 it makes no difference which clock shows the gap.
func (n *Node) away(now wire.Now) time.Duration {
	return elapsed(now, n.heardAt, n.heardWall)
}

// elapsed returns the time since a moment, by the clock that advanced more.
func elapsed(now wire.Now, mono time.Duration, wall int64) time.Duration {
	return max(now.Mono-mono, sat.Micros(now.Wall-wall) /*plant:away-wall*/)
}

// limit is the maxTTL by which absence is judged. After a change to a shorter one it is that
// of before, until the node hears a question that it asked since: it had no reason to ask
// more often, so its silence until then is no absence.
func (n *Node) limit() time.Duration {
	return max(n.cfg.MaxTTL, n.longerLimit) /*plant:voter-limit-kept*/
}

// limitHeard notes that the node has heard the question of this time.
func (n *Node) limitHeard(at time.Duration) {
	if at >= n.limitSince {
		n.longerLimit = 0
	}
}

// pause is the time between two questions of a node that waits. It is at least ProbeWait,
// so that the answers can arrive.
func (n *Node) pause(maxTTL time.Duration) time.Duration {
	return max(n.cfg.ProbeWait, maxTTL/askWaiting)
}

// present is the longest time for which a voting node may go without hearing itself. It
// asks every maxTTL/askEvery, and an interruption shorter than three pauses does not
// count as absence (N9).
func (n *Node) present(maxTTL time.Duration) time.Duration {
	return maxTTL/askEvery + 3*n.pause(maxTTL)
}

// checkAlone checks for how long the node has not heard itself (N9). There are two
// limits. After the shorter one, another node may have been started in its place and be
// waiting now: this node listens for that node's questions before it votes again. After
// the longer one (maxTTL), the other may have finished its wait, voted, and gone again.
// Then silence proves nothing, and this node waits as one that forgot.
func (n *Node) checkAlone(now wire.Now, out *Out) {
	if n.asks > 0 {
		return
	}
	limit := n.limit()
	if n.hears && elapsed(now, n.echoAt, n.echoWall) > n.cfg.ProbeWait+n.pause(limit) {
		n.hears = false // it may have missed questions in the gap, so it starts to listen again //plant:listens-anew
	}
	away := n.away(now)
	forgot := away > limit && !n.hears                                     //plant:absence-forgets
	if !forgot && (n.back || away <= n.present(limit) /*plant:present*/) { //plant:heard-itself
		return
	}
	n.back, n.probed = true, false
	// Answers to earlier questions no longer count, and the next one is due at once.
	n.probe++
	n.probeAt, n.probeEchoed = now.Mono-n.cfg.ProbeWait, false
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

// nonce returns the nonce of the current probe. Nobody can guess it without having heard
// the probe. Otherwise a stranger could ask under a name of his own and direct the answer
// to this node's inbox, and this node would take that for proof that its probe was heard.
func (n *Node) nonce() string {
	return fmt.Sprintf("%s/%d/%016x", n.cfg.Incarnation, n.probe, sipHash(n.secret, strconv.Itoa(n.probe)))
}

// HandleAnswer processes an answer to this node's own probe (N9) or to its question to
// other nodes (N11). It appends what is to be sent to out. Answers that do not match are
// ignored.
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
	if a.Info.Nonce == n.surveyNonce() && n.config.serial > 0 {
		n.shown(now, a, out)
		return
	}
	if a.Info.Nonce != n.nonce() { //plant:nonce
		return // an answer to an earlier probe or life: its sender may be long gone
	}
	n.shown(now, a, out)
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
		n.limitHeard(n.probeAt)
	}
	if n.back && !n.hears {
		n.hears = true
		// The other node asks twice in this time, and one of the two questions may be lost.
		n.listenEnd = now.Mono + 2*n.pause(n.longest) //plant:listens
	}
	if n.asks > 0 {
		n.asks--
		n.soughtAt = n.probeAt
		n.quarantine = max(n.quarantine, n.probeAt+n.runOut()) //plant:wait-when-heard
	}
}

// clash handles an answer from another live node of this name: the node that started
// later stops (N9).
func (n *Node) clash(now wire.Now, a *wire.Answer, out *Out) {
	if a.Info.State == wire.Retired { //plant:voter-retired-name
		return // it is in no list, and does not contest the name (E14)
	}
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

// contest records a message from another node of this name. This node does not vote until
// the other says that it has stopped, or has been silent long enough to be taken as
// stopped, and the votes that the other may have given have expired. The other may not
// hear this node, so each further question restarts the wait (N9).
func (n *Node) contest(now wire.Now, other uuid.UUID, voted, stopped bool, out *Out) {
	if slices.Contains(n.gone, other) { //plant:gone
		return // a late message, from before the other stopped
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
	// The other asks many times in maxTTL, and may have voted until it last asked. Twice the
	// time that its votes can stand allows for some lost questions.
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
	default: // more rivals than are tracked: one entry stands for the rest
		n.rivals[maxRivals-1].voted = true
		n.rivals[maxRivals-1].until = max(n.rivals[maxRivals-1].until, r.until)
	}
}

// checkRivals drops the rivals whose votes have expired by now.
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
		return // only nodes can publish under a node's name: NATS permissions
	}
	mine := r.Node == n.cfg.Name
	if r.Node != "" && !mine && r.Voted {
		return // a starting node asks others only for their longest lease (N8)
	}
	if reply != "" {
		a := n.answer(wire.Informed)
		a.Recovering = n.recovering(now)
		a.Info = &wire.NodeInfo{
			Nonce: r.Nonce, Nodes: n.cfg.Nodes, MaxTTL: n.cfg.MaxTTL, Skew: n.cfg.Skew,
			State: n.State(), Started: n.started, Now: max(now.Wall, 0), Voted: n.voted, Claims: n.Claims(), Version: n.cfg.Version,
			Ahead: n.Ahead(now),
		}
		if a.Info.State == wire.Joining {
			a.Info.MaxTTL, a.Info.Skew = 0, 0 // what it was started with does not count
		}
		if n.longest > n.cfg.MaxTTL {
			a.Info.Longest = n.longest
		}
		n.showConfig(now, r, a.Info)
		out.Answers = append(out.Answers, Send{reply, a})
	}
	if n.stopped || n.config.outside == wire.Retired || !mine || r.Incarnation == n.cfg.Incarnation || slices.Contains(n.cfg.Past, r.Incarnation) /*plant:past-life*/ {
		return
	}
	// Another incarnation asks for this node's name. If the node has no state directory, it
	// may also be this node's own earlier life, in a late message. So a question alone does
	// not make the node stop. It gives no votes meanwhile, since the other may not hear its
	// answers (N9).
	n.asked = true //plant:namesake-asks
	n.contest(now, r.Incarnation, r.Voted, r.Stopped, out)
	// The node asks at most once per ProbeWait. If two nodes answered each question with a
	// new one, neither would wait for the answer to any.
	if !r.Stopped && now.Mono >= n.probeAt+n.cfg.ProbeWait {
		n.ask(now, out)
		n.asked = true
	}
}

// Farewell returns the message that a cleanly stopped node sends last. It tells the next
// node of its name that questions of this one that are still under way are no sign of
// life (N9).
func (n *Node) Farewell() *wire.Request {
	r := n.probeRequest()
	r.Stopped = true
	return r
}

func (n *Node) probeRequest() *wire.Request {
	name := n.cfg.Name
	if n.config.outside == wire.Retired { // it asks like anybody, and does not contest its name (E14)
		name = "" //plant:voter-retired-asks
	}
	return &wire.Request{
		Verb: wire.Info, Client: n.cfg.Name, Nonce: n.nonce(),
		Node: name, Incarnation: n.cfg.Incarnation, Started: n.started, Voted: n.voted, Stopped: n.stopped,
		// All nodes answer one that has not voted, and one that starts or joins may have missed
		// records.
		ShowConfig: n.config.acceptor != nil && !n.voted /*plant:voter-probe-asks*/, Epoch: n.Epoch(),
	}
}
