// Package semaphore lets at most n clients of a cluster do something at the same time.
//
//	sem, err := semaphore.New(locker, "renders", 4)
//	if err != nil {
//		return err
//	}
//	permits, err := sem.Acquire(ctx, 1)
//	if err != nil {
//		return err
//	}
//	defer permits.Release(ctx)
//	return render(permits.Context())
//
// # What is guaranteed
//
// Each permit is an exclusive lock of package qlock. So at most n permits are held at any
// moment, a permit that is lost ends its context before another client can have it, and
// the permits of a client that died are free after its lease. Each permit has a number
// from 1 to n, which no other holder has at the same time, and a fencing token, which is
// greater than that of every earlier holder of the same number.
//
// Calls of Acquire are served in the order in which they were made, as the nodes see it:
// a call for many permits is not overtaken by later calls for few. As everywhere in
// package qlock, the order is that of the clients' clocks, and goroutines of one Locker
// hand their turn to each other while no other client waits (or longer: qlock.WithPassOn).
//
// # What is not guaranteed
//
// The nodes do not know n. Clients that have different limits count differently: at most
// as many permits are held as the largest limit allows. See [Semaphore.SetLimit].
//
// A client that holds permits and calls Acquire for more can wait for itself, or for a
// client that does the same. Acquire everything in one call.
//
// If the client whose turn it is dies, the others wait for its lease. A permit does not
// stop a process that was paused and continues after its permit is lost: only the token
// does, if the system that the permit protects checks it.
//
// # What it costs
//
// The locks are named qlock.semaphore.<name>.gate and qlock.semaphore.<name>.permit.<number>.
// A client acquires the gate, which is the queue, and its permits, and releases the gate. It
// asks for the gate and for permits that may be free in one go: this takes one round trip if
// nobody is at the gate and these permits are free, and otherwise two or more. Only the client
// that holds the gate waits for permits, for all n of them: it costs the nodes n waiting
// claims, however many clients wait. If all clients may do something at the same time, or only one, use no lock
// or an ordinary one.
package semaphore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/qlock/qlock"
)

// MaxLimit is the largest number of permits that a semaphore can have.
const MaxLimit = 1024

// ErrLimit is what errors.Is finds if a limit is not within 1 and MaxLimit, or if more
// permits are asked for than there are, or fewer than one.
var ErrLimit = errors.New("semaphore: number of permits out of range")

// Semaphore is n permits under one name. Its methods may be called from several
// goroutines. It starts no goroutine that outlives a call, and needs no Close.
type Semaphore struct {
	locker *qlock.Locker
	name   string
	wait   []qlock.LockOption

	mu       sync.Mutex // guards what follows
	limit    int
	changed  chan struct{} // closed when limit changes
	free     int           // the number of a permit that was released here and not asked for since; or 0
	asking   int           // calls of Acquire that do not have the gate
	cautious int           // for how many more calls not to guess
}

// Option changes how a Semaphore works.
type Option func(*Semaphore) error

// WithWaitFunc has f called while Acquire waits, with what it waits for: see
// qlock.WithWaitFunc. First that is the client whose turn it is, then those that hold the
// permits: several goroutines may call f at the same time then.
func WithWaitFunc(f func(qlock.Waiting)) Option {
	return func(s *Semaphore) error {
		s.wait = []qlock.LockOption{qlock.WithWaitFunc(f)}
		return nil
	}
}

// New returns a semaphore with limit permits. All clients that share it must give the same
// name and the same limit. It sends no message.
//
// Errors: qlock.ErrInvalidName if the name cannot be the name of a lock, or is longer than
// 900 bytes; ErrLimit.
func New(l *qlock.Locker, name string, limit int, opts ...Option) (*Semaphore, error) {
	if l == nil {
		return nil, errors.New("semaphore: New: the Locker is nil")
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	if err := checkLimit(limit); err != nil {
		return nil, err
	}
	s := &Semaphore{locker: l, name: name, limit: limit, changed: make(chan struct{})}
	for _, opt := range opts {
		if opt == nil {
			continue
		}
		if err := opt(s); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// maxName leaves room for what the names of the locks have beside the semaphore's.
const maxName = 900

func checkName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("semaphore: %w: the name of a semaphore is empty", qlock.ErrInvalidName)
	case len(name) > maxName:
		return fmt.Errorf("semaphore: %w: the name of a semaphore has %d bytes, at most %d are allowed", qlock.ErrInvalidName, len(name), maxName)
	}
	return nil
}

func checkLimit(limit int) error {
	if limit < 1 || limit > MaxLimit {
		return fmt.Errorf("%w: the limit %d is not within 1 and %d", ErrLimit, limit, MaxLimit)
	}
	return nil
}

// Name is the name of the semaphore.
func (s *Semaphore) Name() string { return s.name }

// Limit is the number of permits, as New or SetLimit set it here.
func (s *Semaphore) Limit() int {
	limit, _ := s.current()
	return limit
}

func (s *Semaphore) current() (limit int, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.limit, s.changed
}

// SetLimit changes the number of permits for this Semaphore; calls that wait take it into
// account at once, without losing their turn. Nobody tells the other clients: change the
// limit at each of them. Until all have the new one, the largest limit is in force, for
// clients with a smaller limit use only the permits with the lower numbers. Permits above
// a lower limit are held until they are released.
//
// The error is ErrLimit, and nothing has changed then.
func (s *Semaphore) SetLimit(limit int) error {
	if err := checkLimit(limit); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if limit != s.limit {
		s.limit = limit
		close(s.changed)
		s.changed = make(chan struct{})
	}
	return nil
}

const (
	prefix     = "qlock.semaphore."
	gateSuffix = ".gate"
	permitPart = ".permit."
)

func (s *Semaphore) gate() string { return prefix + s.name + gateSuffix }

func (s *Semaphore) permit(number int) string {
	return prefix + s.name + permitPart + strconv.Itoa(number)
}

// ParseName takes the name of a lock apart that a semaphore uses, for those who show
// locks. The permit is 0 for the gate, whose holder is the client that is served next. ok
// is false if the lock belongs to no semaphore.
func ParseName(lock string) (semaphore string, permit int, ok bool) {
	rest, ok := strings.CutPrefix(lock, prefix)
	if !ok {
		return "", 0, false
	}
	if name, ok := strings.CutSuffix(rest, gateSuffix); ok && name != "" {
		return name, 0, true
	}
	i := strings.LastIndex(rest, permitPart)
	if i < 1 {
		return "", 0, false
	}
	permit, err := strconv.Atoi(rest[i+len(permitPart):])
	if err != nil || permit < 1 || permit > MaxLimit || strconv.Itoa(permit) != rest[i+len(permitPart):] {
		return "", 0, false
	}
	return rest[:i], permit, true
}

// Acquire waits until it has k permits, or ctx ends. The permits do not end with ctx.
//
// Errors: ErrLimit if k is more than the limit, also when the limit becomes less than k
// during the wait; otherwise those of qlock.Locker.Lock, as *qlock.LockError: qlock.ErrHeld
// or qlock.ErrNoQuorum joined with the context's error, qlock.ErrRefused, qlock.ErrEvicted,
// qlock.ErrClosed. Nothing is held then.
func (s *Semaphore) Acquire(ctx context.Context, k int) (*Permits, error) {
	for {
		limit, _, err := s.check(k)
		if err != nil {
			return nil, err
		}
		gate, got, err := s.pass(ctx, limit, k)
		if err != nil {
			return nil, fmt.Errorf("semaphore %q: it is not this call's turn: %w", s.name, err)
		}
		p, err := s.underGate(ctx, gate, k, got)
		_ = gate.Unlock(ctx) // a gate that was lost matters for the order only
		if p != nil || err != nil {
			return p, err
		}
	}
}

// check returns the limit if it allows k permits.
func (s *Semaphore) check(k int) (limit int, changed <-chan struct{}, err error) {
	limit, changed = s.current()
	if k < 1 || k > limit {
		err = fmt.Errorf("%w: semaphore %q: %d permits are wanted, it must be within 1 and the limit %d", ErrLimit, s.name, k, limit)
	}
	return limit, changed, err
}

// What ends one attempt to collect permits, and is no failure.
var (
	errChanged  = errors.New("semaphore: the limit changed")
	errGateLost = errors.New("semaphore: the gate was lost")
	errLost     = errors.New("semaphore: a permit was lost during the wait for the others")
)

// guessCaution is for how many calls not to guess after a guess was of no use, since others
// were at the gate.
const guessCaution = 15

// pass waits for the gate. Together with it, it asks for k permits that may be free, so that
// all comes in one round trip if nobody is at the gate. It returns those that it got. They
// count only with the gate: if that is not granted by the time when the permits are decided,
// others are before this call, and the permits go back at once.
func (s *Semaphore) pass(ctx context.Context, limit, k int) (gate *qlock.Lock, got []*held, err error) {
	s.mu.Lock()
	s.asking++
	guess := s.asking == 1 && s.cautious == 0 && s.wait == nil
	if s.cautious > 0 {
		s.cautious--
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.asking--
		s.mu.Unlock()
	}()
	if !guess {
		gate, err = s.locker.Lock(ctx, s.gate(), s.wait...)
		return gate, nil, err
	}
	// The gate first: each node answers in this order. So whoever has the answers for the
	// permits has those for the gate.
	asked := s.locker.Start(ctx, s.gate())
	numbers := s.order(limit)[:k]
	permits := make([]*qlock.Pending, k)
	for i, n := range numbers {
		permits[i] = s.locker.Start(ctx, s.permit(n), qlock.Try())
	}
	undecided := permits
	for len(undecided) > 0 {
		select {
		case <-undecided[0].Done():
			undecided = undecided[1:]
			continue
		case <-asked.Done():
		}
		break
	}
	select {
	case <-asked.Done():
	default: // it is somebody else's turn
		cancel(permits)
		s.mu.Lock()
		s.cautious = guessCaution
		s.mu.Unlock()
		permits = nil
	}
	<-asked.Done() // or ctx ends
	if gate, err = asked.Lock(); err != nil {
		cancel(permits)
		return nil, nil, err
	}
	for i, p := range permits {
		<-p.Done()
		if l, err := p.Lock(); err == nil { // an error comes again when the permits are collected
			got = append(got, &held{l, numbers[i]})
		}
	}
	return gate, got, nil
}

func cancel(all []*qlock.Pending) {
	for _, p := range all {
		p.Cancel()
	}
}

// order returns the numbers of the permits in the order in which to try them. It begins with
// one that was released here. Otherwise it begins at a random one, so that clients that try
// at the same time seldom meet.
func (s *Semaphore) order(limit int) []int {
	s.mu.Lock()
	first := s.free - 1
	s.free = 0
	s.mu.Unlock()
	if first < 0 || first >= limit {
		first = rand.IntN(limit)
	}
	numbers := make([]int, limit)
	for i := range numbers {
		numbers[i] = (first+i)%limit + 1
	}
	return numbers
}

// underGate collects the permits, beside those that it has got. It returns neither permits
// nor an error if the gate was lost: then others may be before this call.
func (s *Semaphore) underGate(ctx context.Context, gate *qlock.Lock, k int, got []*held) (*Permits, error) {
	for {
		limit, changed, err := s.check(k)
		// The limit may be less than when they were asked for.
		got = slices.DeleteFunc(got, func(h *held) bool {
			if err != nil || h.number > limit {
				_ = h.Unlock(ctx)
				return true
			}
			return false
		})
		if err != nil {
			return nil, err
		}
		if len(got) == k {
			return s.permits(got), nil
		}
		attempt, cancel := context.WithCancelCause(ctx)
		unwatch := context.AfterFunc(gate.Context(), func() { cancel(errGateLost) })
		over := make(chan struct{})
		var watch sync.WaitGroup
		watch.Go(func() {
			select {
			case <-changed:
				cancel(errChanged)
			case <-over:
			}
		})
		got, err = s.collect(attempt, cancel, got, limit, k)
		unwatch()
		close(over)
		watch.Wait()
		cancel(nil)
		if err == nil {
			return s.permits(got), nil
		}
		had := len(got)
		release(ctx, got)
		got = nil
		switch cause := context.Cause(attempt); {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("semaphore %q: %d of the %d permits that are wanted were free, of %d: %w", s.name, had, k, limit, err)
		case cause == errGateLost && errors.Is(context.Cause(gate.Context()), qlock.ErrEvicted):
			return nil, fmt.Errorf("semaphore %q: %w", s.name, context.Cause(gate.Context()))
		case cause == errGateLost:
			return nil, nil // if the Locker is closed, it says so when it is asked for the gate
		case cause == errChanged || cause == errLost:
		default:
			return nil, fmt.Errorf("semaphore %q: %w", s.name, err)
		}
	}
}

// collect acquires k of the permits from 1 to limit, of which it has got some. If it fails
// it returns those that it has, for the caller to release.
func (s *Semaphore) collect(ctx context.Context, cancel context.CancelCauseFunc, got []*held, limit, k int) ([]*held, error) {
	got, rest, err := s.try(ctx, got, limit, k)
	if len(got) == k || !errors.Is(err, qlock.ErrHeld) && !errors.Is(err, qlock.ErrNoQuorum) {
		return got, err // an error that waiting does not mend
	}
	// What is lost from now on begins the attempt anew.
	watch := func(h *held) (stop func() bool) {
		return context.AfterFunc(h.Context(), func() { cancel(errLost) })
	}
	for _, h := range got {
		defer watch(h)()
	}
	// Wait at all that are left. Whatever is granted beyond those that are needed goes
	// back at once.
	waits, enough := context.WithCancel(ctx)
	defer enough()
	type result struct {
		*held
		err error
	}
	results := make(chan result, len(rest))
	for _, number := range rest {
		go func() {
			h, err := s.waitFor(waits, number)
			results <- result{h, err}
		}()
	}
	var failure error
	for range rest {
		r := <-results
		switch {
		case r.err == nil && len(got) < k && failure == nil:
			got = append(got, r.held)
			defer watch(r.held)()
			if len(got) == k {
				enough()
			}
		case r.err == nil:
			_ = r.Unlock(ctx)
		case len(got) < k:
			// When ctx has ended all fail, and one may say more than the first: who holds its
			// permit. Else the first failed by itself, and the others because enough ended them.
			if failure == nil || errors.Is(failure, ctx.Err()) && !errors.Is(failure, qlock.ErrHeld) {
				failure = r.err
			}
			enough() // one that cannot be waited for: nobody is to wait for the others
		}
	}
	if len(got) == k {
		failure = ctx.Err() // if one was lost meanwhile, or the gate
	}
	return got, failure
}

// held is the lock of a permit.
type held struct {
	*qlock.Lock
	number int
}

func (s *Semaphore) waitFor(ctx context.Context, number int) (*held, error) {
	k, err := s.locker.Lock(ctx, s.permit(number), s.wait...)
	if err != nil {
		return nil, err
	}
	return &held{k, number}, nil
}

func (s *Semaphore) tryOne(ctx context.Context, number int) (*held, error) {
	k, err := s.locker.TryLock(ctx, s.permit(number))
	if err != nil {
		return nil, err
	}
	return &held{k, number}, nil
}

// try acquires up to k of the permits from 1 to limit without waiting for others, of which it
// has got some, and returns the numbers of those that it does not have. It tries twice as
// many at once in each round. The error is that of the last permit that was not to be had.
func (s *Semaphore) try(ctx context.Context, got []*held, limit, k int) (_ []*held, rest []int, err error) {
	rest = slices.DeleteFunc(s.order(limit), func(n int) bool {
		return slices.ContainsFunc(got, func(h *held) bool { return h.number == n })
	})
	var occupied []int
	for round := k; len(got) < k && len(rest) > 0; round *= 2 {
		now := rest[:min(round, len(rest))]
		rest = rest[len(now):]
		locks, errs := make([]*held, len(now)), make([]error, len(now))
		one := func(i int) { locks[i], errs[i] = s.tryOne(ctx, now[i]) }
		if len(now) == 1 {
			one(0)
		} else {
			var all sync.WaitGroup
			for i := range now {
				all.Go(func() { one(i) })
			}
			all.Wait()
		}
		fatal := false
		for i, h := range locks {
			switch {
			case h == nil:
				occupied = append(occupied, now[i])
				if err == nil || !errors.Is(errs[i], qlock.ErrHeld) {
					err = errs[i]
				}
				fatal = fatal || !errors.Is(errs[i], qlock.ErrHeld)
			case len(got) < k:
				got = append(got, h)
			default:
				_ = h.Unlock(ctx)
				occupied = append(occupied, now[i])
			}
		}
		if fatal {
			break // the others would say the same
		}
	}
	rest = append(occupied, rest...)
	if len(got) == k {
		err = nil
	}
	return got, rest, err
}

// TryAcquire acquires k permits if they are free, and fails with qlock.ErrHeld as soon as
// it is known that they are not. Permits that another client waits for in Acquire are not
// free. It does not queue, and costs one round trip for each permit that it finds held, or
// less: so it may overtake a call of Acquire whose turn begins at the same moment. Of
// several calls for more than one permit all may fail. It is bounded by ctx, and by the
// lease if ctx has no deadline. Other errors are those of Acquire.
func (s *Semaphore) TryAcquire(ctx context.Context, k int) (*Permits, error) {
	limit, _, err := s.check(k)
	if err != nil {
		return nil, err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.locker.Lease())
		defer cancel()
	}
	got, _, err := s.try(ctx, nil, limit, k)
	if err != nil {
		release(ctx, got)
		return nil, fmt.Errorf("semaphore %q: %d of the %d permits that are wanted were free, of %d: %w", s.name, len(got), k, limit, err)
	}
	return s.permits(got), nil
}

// release gives back what is of no use alone.
func release(ctx context.Context, got []*held) {
	for _, h := range got {
		_ = h.Unlock(ctx)
	}
}

// Permits are permits that are, or were, held. Its methods may be called from several
// goroutines.
type Permits struct {
	name string
	of   *Semaphore
	held []*held // by number
	ctx  context.Context
	end  context.CancelCauseFunc // nil if there is one permit
}

func (s *Semaphore) permits(got []*held) *Permits {
	slices.SortFunc(got, func(a, b *held) int { return a.number - b.number })
	p := &Permits{name: s.name, of: s, held: got, ctx: got[0].Context()}
	if len(got) == 1 {
		return p
	}
	p.ctx, p.end = context.WithCancelCause(p.ctx)
	for _, h := range got[1:] {
		context.AfterFunc(h.Context(), func() { p.end(context.Cause(h.Context())) })
	}
	return p
}

// Name is the name of the semaphore.
func (p *Permits) Name() string { return p.name }

// Numbers are the numbers of the permits, in order. They tell what each holder may use, if
// there are as many of it as there are permits: ports, devices, accounts.
func (p *Permits) Numbers() []int {
	numbers := make([]int, len(p.held))
	for i, h := range p.held {
		numbers[i] = h.number
	}
	return numbers
}

// Token is the fencing token of the permit with the number, or 0 if it is not one of
// Numbers. It is greater than that of every earlier holder of the same number. Tokens of
// different numbers cannot be compared.
func (p *Permits) Token(number int) uint64 {
	for _, h := range p.held {
		if h.number == number {
			return h.Token()
		}
	}
	return 0
}

// Context ends when any of the permits is no longer held: with a cause that is
// qlock.ErrLost if one was lost, and with qlock.ErrUnlocked after Release. It carries the
// values of the context that Acquire was called with. A single permit's ends before another
// client can have it. Of several, if another than the first is lost, it ends as soon as
// the scheduler runs a goroutine. qlock.Token of it is the token of the first permit.
func (p *Permits) Context() context.Context { return p.ctx }

// Release ends the context and gives the permits back. It returns nil if all of them were
// held until now, and otherwise an error that is qlock.ErrLost and names those that were
// lost; also when it is called again. It does not wait for the nodes: see
// qlock.Lock.Unlock. An ended ctx does not keep it from its work.
func (p *Permits) Release(ctx context.Context) error {
	if p.end != nil {
		cause := qlock.ErrUnlocked
		for _, h := range p.held {
			if lost := h.Context().Err(); lost != nil {
				cause = context.Cause(h.Context())
				break
			}
		}
		p.end(cause)
	}
	var lost []error
	for _, h := range p.held {
		if err := h.Unlock(ctx); err != nil {
			lost = append(lost, fmt.Errorf("semaphore %q: permit %d: %w", p.name, h.number, err))
		}
	}
	p.of.released(p.held[0].number)
	return errors.Join(lost...)
}

// released notes the number of a permit that is likely to be free.
func (s *Semaphore) released(number int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = number
}
