package sim

import (
	"slices"
	"time"

	"github.com/qlock/qlock/internal/epoch"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// epochAct is what a staged world does again and again: a row of events after which a certain kind
// of fault does harm. Lists, times and who is who are drawn by lot. Clients lock all the time, and
// nothing else happens.
type epochAct int

const (
	// actLoss: a record is decided, one node alone learns it, and the others crash (E4, E8, E10).
	actLoss epochAct = iota
	// actAhead: the old list gives tokens far ahead of the clocks of the new one, and no token is
	// given while joint. The old nodes may crash before the end (E6, E7, E13).
	actAhead
	epochActs
)

// In actAhead, the clocks of the first nodes are ahead of the others, by more time than passes in a
// change: a longest lease, a recovery after a crash, and a few round trips.
const (
	farNodes  = 3
	farSpread = 3 * epochTTL
)

// offsetOf is the clock of a node in a staged world.
func (w *epochWorld) offsetOf(i int, offset time.Duration) time.Duration {
	if w.act == actAhead {
		offset = min(offset, 100*time.Millisecond)
		if i < farNodes {
			offset += farSpread
		}
	}
	return offset
}

// playActs plays acts until a moment.
func (w *epochWorld) playActs(end time.Duration) {
	for w.now < end && w.err == nil {
		w.tracef("an act begins")
		switch w.act {
		case actLoss:
			w.playLoss()
		case actAhead:
			w.playAhead()
		}
		w.staging = nil
	}
}

// compose has the list be these nodes, and all of them be well.
func (w *epochWorld) compose(list []string) bool {
	for _, x := range w.ops {
		x.dead = true
	}
	clear(w.cuts)
	for _, nd := range w.nodes {
		nd.resume()
		nd.start()
	}
	// Roll back looks for what an earlier act left undone.
	return w.run(epoch.Wish{Goal: epoch.RollBack}) && w.run(epoch.Wish{Goal: epoch.Change, Nodes: list, Hurry: true})
}

// run runs a command to its end.
func (w *epochWorld) run(wish epoch.Wish) bool {
	x := w.operate(wish)
	return w.await(10*time.Second, x.o.Ended) && x.err == nil && w.err == nil
}

// some draws names from a part of the nodes.
func (w *epochWorld) some(from []*epochNode, n int) (names []string) {
	for _, i := range w.plots.Perm(len(from))[:n] {
		names = append(names, from[i].name)
	}
	slices.Sort(names)
	return names
}

// playLoss: a majority accepts a record, one node learns it and is not heard any more, and the
// command dies. The others crash, and when they vote again, somebody wants something else. They
// must have kept what they accepted.
func (w *epochWorld) playLoss() {
	a := w.some(w.nodes, 1+2*w.plots.IntN(2))
	first := epoch.Wish{Goal: epoch.Change, Nodes: w.some(w.nodes, 1+w.plots.IntN(2)), Hurry: true, StayJoint: true}
	other := epoch.Wish{Goal: epoch.Change, Nodes: w.some(w.nodes, 1+w.plots.IntN(2)), Hurry: true, StayJoint: true}
	if !w.compose(a) || slices.Equal(a, first.Nodes) {
		return
	}
	if w.plots.IntN(2) == 0 {
		if !w.run(first) {
			return
		}
		first, other = epoch.Wish{Goal: epoch.Finish, MostOfNext: true}, epoch.Wish{Goal: epoch.RollBack}
		if w.plots.IntN(2) == 0 {
			first, other = other, first
		}
	}
	var alone *epochNode
	w.staging = func(x *epochCommand, steps []wire.Step) bool {
		if steps[0].Kind != wire.Learn || w.byEpoch[steps[0].Epoch] != "" {
			return false
		}
		before := w.records[steps[0].Record.Prev]
		var able []*epochNode
		for _, nd := range w.nodes {
			// Without it the others can still decide.
			left := len(before.Nodes)
			if epoch.In(before, nd.name, nd.disk.id)&quorum.InNodes != 0 {
				left--
			}
			if nd.core != nil && epoch.In(steps[0].Record, nd.name, nd.disk.id) != 0 && left >= quorum.Size(len(before.Nodes), quorum.Exclusive) {
				able = append(able, nd)
			}
		}
		x.dead = true
		if len(able) > 0 {
			alone = able[w.plots.IntN(len(able))]
			w.tracef("%s alone learns epoch %d, and the command dies", alone.name, steps[0].Epoch)
			alone.handle(&wire.Request{Verb: wire.Configure, Client: "admin", Nonce: "staged", Step: &steps[0]}, &epochInbox{x.name, func(*wire.Answer) {}})
			alone.pause(time.Hour, false)
		}
		return true
	}
	x := w.operate(first)
	if w.await(10*time.Second, func() bool { return x.dead }); alone == nil {
		return
	}
	w.staging = nil
	for _, nd := range w.nodes {
		if nd != alone && w.plots.IntN(6) > 0 {
			nd.stop(false)
			w.at(time.Duration(w.plots.Int64N(int64(epochTTL/10))), nd.start)
		}
	}
	w.until(w.now + epochTTL/10)
	if w.await(4*epochTTL, func() bool { return w.recovered(alone) }) {
		x = w.operate(other)
		w.await(8*time.Second, x.o.Ended)
	}
	alone.resume()
	w.until(w.now + time.Second)
}

// recovered reports whether no node but one may have forgotten votes.
func (w *epochWorld) recovered(but *epochNode) bool {
	return !slices.ContainsFunc(w.nodes, func(nd *epochNode) bool {
		return nd != but && (nd.core == nil || nd.core.State() == wire.Recovering)
	})
}

// playAhead: all nodes are replaced by such whose clocks are far behind, and clients have tokens
// that are ahead of these clocks. While joint the clients reach the new nodes alone, so that
// nothing but the record brings the floor of the old ones. The old ones crash at the end of their
// wait, or do not.
func (w *epochWorld) playAhead() {
	a, b := w.some(w.nodes[:farNodes], 1+w.plots.IntN(farNodes)), w.some(w.nodes[farNodes:], 1+w.plots.IntN(2))
	if !w.compose(a) {
		return
	}
	w.far = true
	for _, c := range w.clients {
		if k := c.claim; k != nil {
			k.until = 0 // it makes another one
		}
	}
	ahead := uint64(epochWall + (w.now + farSpread).Microseconds())
	given := w.await(2*epochTTL, func() bool {
		return slices.ContainsFunc(w.names, func(name string) bool { return w.tokens[name].any > ahead })
	})
	if w.far = false; !given {
		return
	}
	w.alone = true
	x := w.operate(epoch.Wish{Goal: epoch.Change, Nodes: b, Hurry: true, MostOfNext: true})
	joint := func() bool { return w.last().Joint() }
	if w.await(5*time.Second, joint) && w.plots.IntN(2) == 0 {
		// A node writes its wait down by eighths: it may lose one, and still be in doubt for a
		// whole one when the wait is over.
		wait := epoch.Wait(w.last())
		w.until(w.now + wait - wait/16 - time.Duration(w.plots.Int64N(int64(wait/8))))
		for _, nd := range w.nodes[:farNodes] {
			nd.stop(false)
			nd.start()
		}
	}
	w.await(10*time.Second, x.o.Ended)
	w.until(w.now + epochTTL)
	w.alone = false
}
