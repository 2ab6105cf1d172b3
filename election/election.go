// Package election elects one leader among the clients that campaign for it.
//
//	e, err := election.New(locker, "scheduler")
//	if err != nil {
//		return err
//	}
//	return e.Run(ctx, "10.0.0.7:8080", func(ctx context.Context) error {
//		// This process is the leader until ctx ends.
//		return schedule(ctx, qlock.Token(ctx))
//	})
//
// # What is guaranteed
//
// Leadership is an exclusive lock of package qlock. So there is one leader at any moment,
// or none. A leader that is cut off from the nodes stops before another begins: its context
// ends first, by its own clock. Each leadership has a term, which is the fencing token of
// the lock and greater than every term before it. Candidates become leader in the order in
// which they began to campaign. When a leader resigns, the next one leads within the time
// of two messages; when it dies, after its lease (qlock.WithLease).
//
// # What is not guaranteed
//
// A leader that is paused, and continues after its lease, acts as leader until it looks at
// its context, or until its next write is rejected for its term: send the term with each
// write.
//
// There may be no leader: for the lease after a death, and as long as no quorum of nodes
// answers.
//
// What [Election.Leader] and [Election.Observe] tell was true a moment ago. Do not decide
// by it who may act.
//
// # Permissions
//
// To campaign takes the permissions of a client. Leader, Candidates and Observe look at the
// claims of others, which is a permission of its own (role inspector of qlock permissions),
// and Observe receives events (role observer) if it is given a connection. The locks are
// named qlock.election.<name>.leader, .value-0, .value-1 and .preferred.
//
// If one of several programs has to do something once, and not all the time, qlock.Locker.Do
// is enough.
package election

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

// What errors.Is finds in the errors of this package, beside those of package qlock.
var (
	// ErrNoLeader: nobody leads at this moment.
	ErrNoLeader = errors.New("election: there is no leader")
	// ErrHandOver is the cause of the end of the context of Run's function when a preferred
	// candidate campaigns: see YieldsToPreferred.
	ErrHandOver = errors.New("election: a preferred candidate campaigns")
	// ErrCampaigning: this Election campaigns already, or leads. Each candidate needs an
	// Election and a qlock.Locker of its own.
	ErrCampaigning = errors.New("election: a candidate campaigns or leads already")
	// ErrInvalidValue: a value that is longer than MaxValue.
	ErrInvalidValue = errors.New("election: invalid value")
)

// MaxValue is the length of the longest value, in bytes. Bytes other than printable ASCII,
// and the percent sign, count three times.
const MaxValue = 200

// Election is an election, as a candidate or an observer sees it. Its methods may be called
// from several goroutines. It starts no goroutine that outlives a call or a leadership, and
// needs no Close.
type Election struct {
	locker   *qlock.Locker
	name     string
	events   *nats.Conn
	interval time.Duration

	preference preference
	wait       []qlock.LockOption

	running atomic.Bool // a campaign or a leadership
}

// preference is what a candidate is to others, where some of them are preferred.
type preference uint8

const (
	none     preference = iota // it knows of no preference
	prefers                    // it leads only while no preferred candidate wants to
	isPrefer                   // it is preferred
)

// Preferred makes this candidate a preferred one, such as the one in the zone of the
// database: it gets leadership before all others that campaign, and leaders whose Election
// has the option YieldsToPreferred hand it over. Among several preferred candidates the order
// is that in which they began to campaign. All candidates of the election need one of the
// two options.
//
// If a preferred candidate dies while it campaigns, nobody may lead until its lease is over.
// A candidate whose turn has come, and that finds a preferred one, holds the lock for a round
// trip before it steps back: Leader and Observe may show it.
func Preferred() Option {
	return func(e *Election) error {
		e.preference = isPrefer
		return nil
	}
}

// YieldsToPreferred lets this candidate step back for a preferred one: see Preferred. When it
// leads, and a preferred candidate begins to campaign, Leadership.HandOver is closed, and the
// context of Run's function ends with the cause ErrHandOver. A campaign costs one round trip
// more, and one shared lock while it leads.
func YieldsToPreferred() Option {
	return func(e *Election) error {
		e.preference = prefers
		return nil
	}
}

// Option changes how an Election works.
type Option func(*Election) error

// WithEvents lets Observe learn of changes at once, from the events that leaders publish,
// unless their Locker has the option qlock.WithoutEvents: it subscribes on nc, which may be
// the Locker's connection. Otherwise, and if events are lost, it learns of them when it asks
// the nodes again.
func WithEvents(nc *nats.Conn) Option {
	return func(e *Election) error {
		if nc == nil {
			return errors.New("election: WithEvents: the connection is nil")
		}
		e.events = nc
		return nil
	}
}

// WithInterval sets how often Observe asks the nodes when no event comes. Default: a third
// of the Locker's lease. Each time costs the nodes about as much as three locks do. At least
// a millisecond.
func WithInterval(d time.Duration) Option {
	return func(e *Election) error {
		if d < time.Millisecond {
			return fmt.Errorf("election: WithInterval: %v is less than 1ms", d)
		}
		e.interval = d
		return nil
	}
}

// WithWaitFunc has f called while Campaign waits, with what it waits for: see
// qlock.WithWaitFunc.
func WithWaitFunc(f func(qlock.Waiting)) Option {
	return func(e *Election) error {
		e.wait = []qlock.LockOption{qlock.WithWaitFunc(f)}
		return nil
	}
}

// New returns the election with that name. It sends no message. A candidate needs a Locker
// of its own, one that does not retain locks (qlock.WithRetention): a lock that goes from
// hand to hand within a Locker still shows the value of the first.
//
// Errors: qlock.ErrInvalidName if the name is empty or longer than 900 bytes.
func New(l *qlock.Locker, name string, opts ...Option) (*Election, error) {
	if l == nil {
		return nil, errors.New("election: New: the Locker is nil")
	}
	switch {
	case name == "":
		return nil, fmt.Errorf("election: %w: the name of an election is empty", qlock.ErrInvalidName)
	case len(name) > maxName:
		return nil, fmt.Errorf("election: %w: the name of an election has %d bytes, at most %d are allowed", qlock.ErrInvalidName, len(name), maxName)
	}
	e := &Election{locker: l, name: name, interval: max(l.Lease()/3, time.Millisecond)}
	for _, opt := range opts {
		if opt == nil {
			continue
		}
		if err := opt(e); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// maxName leaves room for what the names of the locks have beside the election's.
const maxName = 900

// Name is the name of the election.
func (e *Election) Name() string { return e.name }

const prefix = "qlock.election."

// The locks of an election: part is what follows its name.
const (
	partLeader = "leader"
	partValue0 = "value-0"
	partValue1 = "value-1"
	// partPreferred is held by a preferred candidate, exclusively, from when it begins to
	// campaign until it leads no longer. Others that lead hold it shared. So they hear of a
	// preferred one that begins to wait, and cannot acquire it while one is there.
	partPreferred = "preferred"
)

func (e *Election) lock(part string) string { return prefix + e.name + "." + part }

// ParseName takes the name of a lock apart that an election uses, for those who show locks.
// leader is whether it is the one whose holder leads; the others have what leaders
// proclaimed, or are for candidates that are preferred. ok is false if the lock belongs to no election.
func ParseName(lock string) (election string, leader, ok bool) {
	rest, ok := strings.CutPrefix(lock, prefix)
	i := strings.LastIndexByte(rest, '.')
	if !ok || i < 1 {
		return "", false, false
	}
	switch rest[i+1:] {
	case partLeader:
		return rest[:i], true, true
	case partValue0, partValue1, partPreferred:
		return rest[:i], false, true
	}
	return "", false, false
}

// Campaign waits until this candidate is the leader, or ctx ends. The leadership does not
// end with ctx. Value is what others see of the leader, such as its address: see MaxValue.
//
// Errors are those of qlock.Locker.Lock, as *qlock.LockError; ErrCampaigning;
// ErrInvalidValue.
func (e *Election) Campaign(ctx context.Context, value string) (*Leadership, error) {
	note, err := encode(value)
	if err != nil {
		return nil, err
	}
	if !e.running.CompareAndSwap(false, true) {
		return nil, fmt.Errorf("%w: election %q", ErrCampaigning, e.name)
	}
	lock, preferred, err := e.campaign(qlock.ContextWithNote(ctx, note))
	if err != nil {
		e.running.Store(false)
		return nil, fmt.Errorf("election %q: not elected: %w", e.name, err)
	}
	return newLeadership(e, lock, preferred, value), nil
}

// campaign acquires the lock that is the leadership, and that for preferred candidates if
// there are any.
func (e *Election) campaign(ctx context.Context) (lock, preferred *qlock.Lock, err error) {
	if e.preference == isPrefer {
		if preferred, err = e.locker.Lock(ctx, e.lock(partPreferred), e.wait...); err != nil {
			return nil, nil, err
		}
		if lock, err = e.locker.Lock(ctx, e.lock(partLeader), e.wait...); err != nil {
			_ = preferred.Unlock(ctx)
		}
		return lock, preferred, err
	}
	for {
		if lock, err = e.locker.Lock(ctx, e.lock(partLeader), e.wait...); err != nil || e.preference == none {
			return lock, nil, err
		}
		if preferred, err = e.locker.TryRLock(ctx, e.lock(partPreferred)); err == nil {
			return lock, preferred, nil
		}
		_ = lock.Unlock(ctx)
		switch {
		case ctx.Err() != nil, !errors.Is(err, qlock.ErrHeld) && !errors.Is(err, qlock.ErrNoQuorum):
			return nil, nil, err
		}
		// It is the turn of a preferred candidate. Until that has led, or is gone, there is
		// nothing to campaign for.
		if preferred, err = e.locker.RLock(ctx, e.lock(partPreferred), e.wait...); err != nil {
			return nil, nil, err
		}
		_ = preferred.Unlock(ctx)
	}
}

// Run campaigns, and calls lead when this candidate is the leader. The context of lead ends
// when the leadership is lost and when ctx ends; qlock.Token of it is the term. When the
// leadership is lost, Run waits for lead to return, whatever its error, and campaigns again.
//
// Run returns what lead returns, nil included, if lead returns while it leads, or after ctx
// has ended. It resigns in each case, also if lead panics. It returns the errors of Campaign
// as well, but for qlock.ErrEvicted, after which it campaigns again.
func (e *Election) Run(ctx context.Context, value string, lead func(ctx context.Context) error) error {
	if lead == nil {
		return errors.New("election: Run: the function is nil")
	}
	for {
		l, err := e.Campaign(ctx, value)
		switch {
		case errors.Is(err, qlock.ErrEvicted) && ctx.Err() == nil:
			continue // it has lost its place in the queue, which is what was wanted
		case err != nil:
			return err
		}
		if again, err := l.run(ctx, lead); !again {
			return err
		}
	}
}

// run calls lead. again says that the leadership was lost.
func (l *Leadership) run(ctx context.Context, lead func(ctx context.Context) error) (again bool, err error) {
	leading, cancel := context.WithCancelCause(l.Context())
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })()
	defer func() {
		over := l.Context().Err() != nil // lost, or the Locker is closed, as Campaign will say
		lost := l.Resign(ctx)            // also if lead panics
		again = (over || lost != nil || context.Cause(leading) == ErrHandOver) && ctx.Err() == nil
	}()
	if yields := l.HandOver(); yields != nil {
		var watch sync.WaitGroup
		defer watch.Wait()
		defer cancel(nil)
		watch.Go(func() {
			select {
			case <-yields:
				cancel(ErrHandOver)
			case <-leading.Done():
			}
		})
	}
	return false, lead(leading)
}
