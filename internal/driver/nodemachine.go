package driver

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/qlock/qlock/internal/natsio"
	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

// nodeMachine is the node machine and its lock. Whoever has something for it takes a step: begin
// locks it and reads the clocks, then the machine is told, and end unlocks it. What the
// machine wants sent is sent after that, by the goroutine that took the step. The goroutines
// of the subscriptions, the loop, and those that ask how the node is take steps.
type nodeMachine struct {
	core  *voter.Node
	start time.Time     // zero of the monotonic clock readings
	wake  chan struct{} // tells the loop to look at the machine now; has room for one
	state atomic.Value  // proto.State, to be read without mu

	mu     sync.Mutex // guards core and what follows; nothing is published under it
	closed bool
	wakeAt time.Time
	change chan struct{} // closed and made anew when the state changes
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

// nodeStep is what a step works with.
type nodeStep struct {
	voter.Out
	t      time.Time
	now    wire.Now
	probed bool // before it
}

var voterSteps = sync.Pool{New: func() any { return new(nodeStep) }}

// begin locks the machine and reads the clocks; end must follow. It returns nil if the
// machine is closed.
func (v *nodeMachine) begin() *nodeStep {
	v.mu.Lock()
	if v.closed {
		v.mu.Unlock()
		return nil
	}
	s := voterSteps.Get().(*nodeStep)
	s.t = time.Now()
	s.now, s.probed = v.at(s.t), v.core.Probed()
	return s
}

// end unlocks the machine. It reports whether the node is to stop, because another has its
// name. The step is the caller's until it calls free.
func (v *nodeMachine) end(s *nodeStep) (over bool) {
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

func (s *nodeStep) free() {
	s.Reset()
	voterSteps.Put(s)
}

// sleep is how long the loop may sleep from now on.
func (v *nodeMachine) sleep() time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	t := time.Now()
	wait := v.wait(v.at(t))
	v.wakeAt = t.Add(wait)
	return wait
}

// wait is how long there is nothing to do. Call with v.mu held.
func (v *nodeMachine) wait(now wire.Now) time.Duration {
	return min(max(v.core.Deadline()-now.Mono, 0), natsio.Idle)
}

// changed returns a channel that is closed when the state changes from what it is now.
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

// close ends the machine, and gives what is to be saved; clean is false if nothing may be.
// It reports whether it was not closed before.
func (v *nodeMachine) close(up time.Duration) (saved *voter.Saved, clean, first bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil, false, false
	}
	v.closed = true // no message is handled after what is saved now
	now := v.at(time.Now())
	now.Boot = up
	saved, clean = v.core.Save(now)
	return saved, clean, true
}

func (v *nodeMachine) farewell() *wire.Request {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.core.Farewell()
}

// NodeStats is what a node has and counted, at one moment.
type NodeStats struct {
	State                               wire.State
	Started                             time.Time
	Recovering                          time.Duration
	Claims, Waiting, Resources, Clients int
	Ahead                               time.Duration // of the highest token
	Counts                              voter.Counts
	Requests, Malformed                 uint64
}

func (v *nodeMachine) stats() NodeStats {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := v.at(time.Now())
	s := NodeStats{
		State: v.core.State(), Started: v.start, Recovering: v.core.Recovering(now),
		Claims: v.core.Claims(), Waiting: v.core.Waiting(), Resources: v.core.Resources(), Clients: v.core.Clients(),
		Ahead: v.core.Ahead(now), Counts: v.core.Counts(),
	}
	if v.closed {
		s.State, s.Recovering = wire.Stopped, 0
	}
	return s
}
