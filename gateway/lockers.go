package gateway

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

// lockers is a NATS connection, whose user the requests act as, and what works on it.
type lockers struct {
	g      *Gateway
	nc     *nats.Conn
	client string // empty: as the library chooses
	stores stores

	mu      sync.Mutex // guards what follows
	short   *qlock.Locker
	long    *qlock.Locker
	making  chan struct{} // closed when the Locker is made that is being made; nil: none is
	tried   time.Time     // when a Locker could last not be made
	asked   time.Time     // when the nodes last said that they do not allow a lease
	longest time.Duration // that they allowed then
	retired []retired
	closed  bool
}

// retired is a Locker that another one has replaced. Leases may have locks of it.
type retired struct {
	locker *qlock.Locker
	at     time.Time
}

const (
	retiredFor = 2 * time.Minute // no request lasts longer that has found the Locker before
	replaceGap = 10 * time.Second
)

// share is the part of a Locker's lease that callers may have: the rest is lost to the margins of
// clocks, once at the nodes and once at the caller.
func share(lease time.Duration) time.Duration { return lease * 96 / 100 }

// mostOf is the longest lease that a caller may have of a Locker.
func mostOf(l *qlock.Locker) time.Duration { return min(l.Lease(), share(l.MaxLease())) }

// isUpToDate reports whether a Locker has the lease that a new one would have. The longest lease
// of the cluster can change. A Locker lowers its own with it, and never raises it.
func isUpToDate(l *qlock.Locker, long bool) bool {
	if long {
		return l.Lease() == l.MaxLease()
	}
	return l.Lease() == min(qlock.DefaultLease, l.MaxLease())
}

// locker is the Locker for leases of that length, 0 for any: one that has the usual lease, or one
// that has the cluster's longest. It makes the Locker at the first call, and replaces one whose
// lease no longer is what the cluster allows.
func (p *lockers) locker(ctx context.Context, length time.Duration) (*qlock.Locker, error) {
	for {
		p.mu.Lock()
		which, long := &p.short, false
		if p.short != nil && length > mostOf(p.short) {
			which, long = &p.long, true
		}
		locker, made, now := *which, p.making, time.Now()
		serves := locker != nil && length <= mostOf(locker)
		switch {
		case p.closed:
			p.mu.Unlock()
			return nil, problem("draining", "the gateway has stopped")
		case serves && (isUpToDate(locker, long) || made != nil || now.Sub(p.tried) < replaceGap):
			old := p.unused(now)
			p.mu.Unlock()
			_ = closeAll(old) // nothing is held by them
			return locker, nil
		case long && !serves && now.Sub(p.asked) < time.Second && length > share(p.longest):
			longest := p.longest
			p.mu.Unlock()
			return nil, tooLong(longest)
		case made == nil:
			made = make(chan struct{})
			p.making = made
			p.mu.Unlock()
			fresh, err := p.make(ctx, which, length)
			if err != nil && serves {
				return locker, nil
			}
			return fresh, err
		}
		p.mu.Unlock()
		select {
		case <-made: // or that failed: then it is this one's turn
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func tooLong(longest time.Duration) *Problem {
	return outOfRange("lease", minLease, share(longest))
}

// make makes a Locker. It asks the nodes, so p.mu is not locked meanwhile.
func (p *lockers) make(ctx context.Context, which **qlock.Locker, length time.Duration) (*qlock.Locker, error) {
	opts := []qlock.Option{qlock.WithCluster(p.g.cfg.Cluster), qlock.WithLogger(p.g.log)}
	if p.client != "" {
		opts = append(opts, qlock.WithName(p.client))
	}
	var locker *qlock.Locker
	var longest time.Duration
	var err error
	if which == &p.long {
		longest, err = p.askLongest(ctx)
		if err == nil && length > share(longest) {
			err = tooLong(longest)
		}
		opts = append(opts, qlock.WithLease(longest))
	}
	if err == nil {
		locker, err = qlock.New(ctx, p.nc, opts...)
	}
	if errors.Is(err, qlock.ErrInvalidLease) {
		err = problem("refused", "the longest lease of the cluster is being changed: repeat the request")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.making)
	p.making = nil
	now := time.Now()
	switch {
	case err == nil:
		if *which != nil {
			p.retired = append(p.retired, retired{*which, now})
		}
		*which = locker
	case longest > 0 && length > share(longest):
		p.asked, p.longest = now, longest
	default:
		p.tried = now
	}
	return locker, err
}

// askLongest asks the nodes for the longest lease: a Locker that is idle does not hear of a change.
func (p *lockers) askLongest(ctx context.Context) (time.Duration, error) {
	p.mu.Lock()
	short := p.short
	p.mu.Unlock()
	members, err := short.Members(ctx)
	if err != nil {
		return 0, err
	}
	if members.Config.MaxLease == 0 {
		return short.MaxLease(), nil
	}
	return members.Config.MaxLease, nil
}

// unused takes the Lockers out of the retired ones that nobody uses any more. p.mu is locked.
func (p *lockers) unused(now time.Time) (out []*qlock.Locker) {
	if len(p.retired) == 0 || now.Sub(p.retired[0].at) < retiredFor {
		return nil
	}
	var left []retired
	for _, r := range p.retired {
		if s := r.locker.Stats(); now.Sub(r.at) < retiredFor || s.Claims+s.Held+s.Waiting > 0 {
			left = append(left, r)
			continue
		}
		out = append(out, r.locker)
	}
	p.retired = left
	return out
}

func closeAll(all []*qlock.Locker) error {
	var errs []error
	for _, l := range all {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

// close closes the Lockers. Call it when no lease is left and no new one is admitted.
func (p *lockers) close() error {
	p.mu.Lock()
	p.closed = true
	made := p.making
	p.mu.Unlock()
	if made != nil {
		<-made // for the five seconds of qlock.New at most
	}
	p.mu.Lock()
	all := []*qlock.Locker{p.short, p.long}
	for _, r := range p.retired {
		all = append(all, r.locker)
	}
	p.mu.Unlock()
	return closeAll(all)
}
