package driver

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/qlock/qlock/internal/epoch"
	"github.com/qlock/qlock/internal/natsio"
	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

// nodeMachine is the node machine with its mutex. It is used in steps. begin locks the mutex and
// reads the clocks, then the step calls the node machine, and end unlocks the mutex. After that,
// the goroutine of the step publishes what the machine wants sent. Steps run on the goroutines of
// the subscriptions and of the loop.
type nodeMachine struct {
	core  *voter.Node
	start time.Time     // zero of the monotonic clock readings
	wake  chan struct{} // makes the loop call the machine now; has room for one
	state atomic.Value  // wire.State; readable without mu

	// keep writes to the node's directory what it must not forget about records, and syncs it.
	keep func(*epoch.State) error

	mu     sync.Mutex // guards core and the fields below; no publishing under it
	closed bool
	broken bool // nobody knows what the directory has
	wakeAt time.Time
	change chan struct{} // closed and replaced when the state changes
}

func newNodeMachine(start time.Time, core *voter.Node) *nodeMachine {
	v := &nodeMachine{core: core, start: start, wake: make(chan struct{}, 1), change: make(chan struct{})}
	v.state.Store(core.State())
	return v
}

func clocks(start, t time.Time) wire.Now {
	return wire.Now{Mono: t.Sub(start), Wall: t.UnixMicro()}
}

func (v *nodeMachine) at(t time.Time) wire.Now { return clocks(v.start, t) }

// nodeStep holds the inputs and results of one step.
type nodeStep struct {
	voter.Out
	t      time.Time
	now    wire.Now
	probed bool // whether the probe was over before the step
	failed error
}

var voterSteps = sync.Pool{New: func() any { return new(nodeStep) }}

// begin locks the machine and reads the clocks. The caller must call end. begin returns nil, and
// locks nothing, if the machine is closed.
func (v *nodeMachine) begin() *nodeStep {
	v.mu.Lock()
	if v.closed || v.broken {
		v.mu.Unlock()
		return nil
	}
	s := voterSteps.Get().(*nodeStep)
	s.t = time.Now()
	s.now, s.probed = v.at(s.t), v.core.Probed()
	return s
}

// end unlocks the machine. It reports whether the node must stop because another node has its name.
// The caller owns the step until it calls free.
func (v *nodeMachine) end(s *nodeStep) (over bool) {
	if s.Write != nil {
		v.write(s)
	}
	state := v.core.State()
	over = v.core.Stopped() && !v.core.Leaving()
	if state != v.state.Load() || v.core.Probed() != s.probed {
		v.state.Store(state)
		close(v.change)
		v.change = make(chan struct{})
	}
	at := s.t.Add(v.wait(s.now))
	wake := at.Before(v.wakeAt)
	if wake {
		v.wakeAt = at
	}
	v.mu.Unlock()
	if wake {
		select {
		case v.wake <- struct{}{}:
		default:
		}
	}
	return over
}

// write has what a step asks for on disk before anything of the step is sent (E10). It holds up
// the node, which happens a few times in a change of the list of nodes. The caller holds v.mu.
func (v *nodeMachine) write(s *nodeStep) {
	if s.failed = v.keep(s.Write); s.failed != nil {
		v.broken = true
		s.Reset()
		return
	}
	v.core.Written(v.at(time.Now()), &s.Out)
}

func (s *nodeStep) free() {
	s.Reset()
	s.failed = nil
	voterSteps.Put(s)
}

// sleep returns how long the loop may sleep from now on.
func (v *nodeMachine) sleep() time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	t := time.Now()
	wait := v.wait(v.at(t))
	v.wakeAt = t.Add(wait)
	return wait
}

// wait returns how long nothing is due. The caller holds v.mu.
func (v *nodeMachine) wait(now wire.Now) time.Duration {
	if v.broken {
		return natsio.Idle
	}
	return min(max(v.core.Deadline()-now.Mono, 0), natsio.Idle)
}

// changed returns a channel that is closed at the next change of the state or the end of the probe.
func (v *nodeMachine) changed() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.change
}

func (v *nodeMachine) probed() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.core.Probed()
}

// close ends the machine and returns what to save. saved is nil if no clean mark may be written. first
// reports whether the machine was not closed before.
func (v *nodeMachine) close(up time.Duration) (saved *voter.Saved, state *epoch.State, first bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil, nil, false
	}
	v.closed = true // no message may be handled after what is saved now
	now := v.at(time.Now())
	now.Boot = up
	if v.broken {
		return nil, nil, true
	}
	saved, _ = v.core.Save(now)
	return saved, v.core.Configuration(now), true
}

func (v *nodeMachine) farewell() *wire.Request {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.core.Farewell()
}

// NodeStats holds the current state and the counters of a node, at one moment.
type NodeStats struct {
	State                               wire.State
	Started                             time.Time
	Recovering                          time.Duration
	Claims, Waiting, Resources, Clients int
	Ahead                               time.Duration // lead of the highest token over the clock
	Counts                              voter.Counts
	Requests, Malformed                 uint64
	Epoch                               uint64        // of its record; 0: it has none
	Changing                            time.Duration // for how long its list has been changing, at least
	Longest                             time.Duration // longest lease that claims may have; 0: it waits to be added
}

func (v *nodeMachine) stats() NodeStats {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := v.at(time.Now())
	s := NodeStats{
		State: v.core.State(), Started: v.start, Recovering: v.core.Recovering(now),
		Claims: v.core.Claims(), Waiting: v.core.Waiting(), Resources: v.core.Resources(), Clients: v.core.Clients(),
		Ahead: v.core.Ahead(now), Counts: v.core.Counts(), Epoch: v.core.Epoch(), Longest: v.core.LongestLease(),
	}
	if had, joint := v.core.Changing(now); joint {
		s.Changing = max(had, 1)
	}
	if v.closed {
		s.State, s.Recovering = wire.Stopped, 0
	}
	return s
}
