package members

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

// Group is a group of members. It holds no resources: there is nothing to close. Its
// methods may be called from several goroutines.
type Group struct {
	locker   *qlock.Locker
	name     string
	events   *nats.Conn
	interval time.Duration
}

// Option changes how a Group watches.
type Option func(*Group) error

// WithEvents makes Watch learn of changes from the events that Lockers publish. The
// connection may be that of the Locker. It stays the caller's. Without events, Watch
// reports all changes when it asks the nodes.
func WithEvents(nc *nats.Conn) Option {
	return func(g *Group) error {
		if nc == nil {
			return fmt.Errorf("%w: WithEvents: the connection is nil", ErrInvalid)
		}
		g.events = nc
		return nil
	}
}

// WithInterval sets how often Watch asks the nodes for the members. The default is a third
// of the Locker's lease. A longer interval saves messages, and Watch then takes longer to
// report a change whose event was lost.
func WithInterval(d time.Duration) Option {
	return func(g *Group) error {
		if d < 10*time.Millisecond {
			return fmt.Errorf("%w: WithInterval: %v, the minimum is 10ms", ErrInvalid, d)
		}
		g.interval = d
		return nil
	}
}

// New makes a Group. It sends nothing. The name has 1 to 64 letters, digits, _ and -.
// Errors are ErrInvalid.
func New(l *qlock.Locker, group string, opts ...Option) (*Group, error) {
	if l == nil {
		return nil, fmt.Errorf("%w: New: the Locker is nil", ErrInvalid)
	}
	if err := checkGroup(group); err != nil {
		return nil, err
	}
	g := &Group{locker: l, name: group, interval: max(l.Lease()/3, 10*time.Millisecond)}
	for _, o := range opts {
		if o == nil {
			continue
		}
		if err := o(g); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// Name is the name of the group.
func (g *Group) Name() string { return g.name }

// Info is a member as the nodes know it.
type Info struct {
	ID     string
	Client string        // the name of its Locker
	Meta   string        // what it said last, in Join or SetMeta
	Token  uint64        // the fencing token of its membership
	For    time.Duration // since it joined; 0 if this comes from an event
	Lease  time.Duration // how long it would outlive its process; 0 if this comes from an event

	// Uncertain: fewer nodes answered than could tell whether the member still has its
	// lock. Token may be 0.
	Uncertain bool
}

// List asks the nodes for the members of the group, sorted by id. It takes a round trip,
// and half a second while a node does not answer. Without a deadline in ctx it gives up
// after 5 s.
//
// Errors are those of qlock.Locker.Locks: ErrNoQuorum, ErrRefused, ErrClosed.
func (g *Group) List(ctx context.Context) ([]Info, error) {
	found, err := g.list(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Info, len(found))
	for i := range found {
		out[i] = found[i].Info
	}
	return out, nil
}

// member is an Info with the number of its metadata.
type member struct {
	Info
	n uint64
}

func (g *Group) list(ctx context.Context) ([]member, error) {
	locks, err := g.locker.Locks(ctx, pattern(g.name))
	if err != nil {
		return nil, fmt.Errorf("members: list group %s: %w", g.name, err)
	}
	return fromLocks(g.name, locks), nil
}

// fromLocks reads the members from the locks of a group.
func fromLocks(group string, locks []qlock.LockInfo) []member {
	var out []member
	type metaKey struct {
		id    string
		token uint64
	}
	metas := map[metaKey]member{}
	for i := range locks {
		l := &locks[i]
		p, ok := parse(l.Name)
		if !ok || p.group != group {
			continue
		}
		holder, uncertain := holderOf(l)
		if holder == nil || holder.Shared {
			continue // it waits, or somebody does strange things with this lock
		}
		m := member{Info{
			ID: p.id, Client: holder.Client, Meta: holder.Note, Token: holder.Token, For: holder.For, Lease: holder.Lease, Uncertain: uncertain,
		}, p.n}
		if p.n == 0 {
			out = append(out, m)
		} else if k := (metaKey{p.id, p.token}); m.n > metas[k].n {
			metas[k] = m
		}
	}
	for i := range out {
		m := &out[i]
		if last, ok := metas[metaKey{m.ID, m.Token}]; ok && last.Client == m.Client {
			m.Meta, m.n = last.Meta, last.n
		}
	}
	slices.SortFunc(out, func(a, b member) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

func holderOf(l *qlock.LockInfo) (holder *qlock.ClaimInfo, uncertain bool) {
	if len(l.Holders) > 0 {
		return &l.Holders[0], false
	}
	for i := range l.Queue {
		if l.Queue[i].MayHold {
			return &l.Queue[i], true
		}
	}
	return nil, false
}

// WaitFor waits until the group has at least n members, and returns them sorted by id. An
// error wraps the cause of the context's end, and says how many there were. Other errors are
// those of List that do not pass: ErrRefused and ErrClosed.
func (g *Group) WaitFor(ctx context.Context, n int) ([]Info, error) {
	if n < 1 {
		return nil, fmt.Errorf("%w: WaitFor: %d members, the minimum is 1", ErrInvalid, n)
	}
	seen, last := 0, error(nil)
	for u, err := range g.Watch(ctx) {
		if permanent(err) {
			return nil, err
		}
		if last = err; err != nil {
			continue
		}
		if seen = len(u.Members); seen >= n {
			return u.Members, nil
		}
	}
	err := fmt.Errorf("members: group %s has %d members, waited for %d: %w", g.name, seen, n, context.Cause(ctx))
	if last != nil {
		err = fmt.Errorf("%w: %w", err, last)
	}
	return nil, err
}

// permanent reports whether asking again cannot help.
func permanent(err error) bool {
	return errors.Is(err, qlock.ErrClosed) || errors.Is(err, qlock.ErrRefused) || errors.Is(err, qlock.ErrInvalidName) || errors.Is(err, ErrInvalid)
}
