package sim

import (
	"math/rand/v2"

	"github.com/qlock/qlock/internal/epoch"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// Some faults need a row of unlikely events before anybody is harmed. In some worlds of epochs
// the events are brought about, by a plot. A plot has random numbers of its own, so that the
// other worlds stay as they are.
type epochPlot int

const (
	noPlot epochPlot = iota
	// shadows: all nodes are replaced at once, again and again. Clients that have moved to the
	// joint record reach the new nodes alone until the change is over, so that their votes there
	// are older than tokens of the old list (E7, E13). A client that holds something is cut off
	// at the moment at which it moves (E17).
	shadows
	// hush: a record is decided, one node learns it and stands still, and the command dies. Then
	// another command wants something else (E4, E8, E10).
	hush
	// staged: acts are played in place of what chance brings: see epochAct.
	staged
)

func newEpochPlot(seed uint64) (epochPlot, *rand.Rand) {
	rng := rand.New(rand.NewPCG(seed, 14))
	switch seed % 5 {
	case 2:
		return staged, rng
	case 3:
		return hush, rng
	case 4:
		return shadows, rng
	}
	return noPlot, rng
}

// movesAlone is called when a client takes a record, before it says anything under it.
func (w *epochWorld) movesAlone(host string, r *epoch.Record) {
	if w.calm || r == nil || !r.Joint() || !w.alone && (w.plot != shadows || w.plots.IntN(4) == 0) {
		return
	}
	until := w.now + 3*epochTTL
	for _, nd := range w.nodes {
		if in := epoch.In(r, nd.name, nd.disk.id); in == quorum.InNodes {
			w.cuts[[2]string{host, nd.name}], w.cuts[[2]string{nd.name, host}] = until, until
		}
	}
}

// movesUnheard is called when a client of production takes a record that continues its own.
func (w *epochWorld) movesUnheard(l *epochLocker) {
	if w.plot == shadows && !w.calm && w.plots.IntN(2) == 0 && l.keepOn(w.now+2*epochTTL) {
		w.cutOff(l.name, w.now+2*epochTTL)
	}
}

// hushed is asked before a command sends steps. It takes the matter into its hands if they tell
// of a record that no node has yet.
func (w *epochWorld) hushed(x *epochCommand, steps []wire.Step) bool {
	if w.staging != nil {
		return w.staging(x, steps)
	}
	if w.plot != hush || w.calm || steps[0].Kind != wire.Learn || w.byEpoch[steps[0].Epoch] != "" || w.plots.IntN(3) == 0 {
		return false
	}
	var ready []*epochNode
	for _, nd := range w.nodes {
		if nd.core != nil && !nd.paused && epoch.In(steps[0].Record, nd.name, nd.disk.id) != 0 {
			ready = append(ready, nd)
		}
	}
	if len(ready) == 0 {
		return false
	}
	nd := ready[w.plots.IntN(len(ready))]
	w.tracef("%s alone learns epoch %d, and all commands die", nd.name, steps[0].Epoch)
	for _, x := range w.ops {
		x.dead = true
	}
	nd.handle(&wire.Request{Verb: wire.Configure, Client: "admin", Nonce: "hush", Step: &steps[0]}, &epochInbox{x.name, func(*wire.Answer) {}})
	nd.pause(3*epochTTL, false)
	again := w.now
	if w.plots.IntN(2) == 0 { // the others crash, and vote again before it goes on
		for _, o := range w.nodes {
			if o != nd {
				o.stop(false)
				w.at(w.between(0, epochTTL/10), o.start)
			}
		}
		again += epochTTL + epochTTL/2
	}
	goals := []epoch.Goal{epoch.Change, epoch.Finish, epoch.RollBack}
	for range 3 {
		wish := epoch.Wish{Goal: goals[w.plots.IntN(3)], Nodes: w.list(), Hurry: true, MostOfNext: true}
		w.at(again-w.now+w.between(0, epochTTL/2), func() {
			if !w.calm {
				w.operate(wish)
			}
		})
	}
	return true
}
