package partition

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/members"
)

// Assignment is a partition that this process owns.
type Assignment struct {
	Partition int
	Token     uint64 // the fencing token of the ownership
	// Moving is closed when the next owner waits for the partition. The handler then has the
	// drain time to finish what it began and to return; the next owner waits for that.
	Moving <-chan struct{}
}

// Handler works on a partition while this process owns it. ctx ends when the lock is lost
// (cause qlock.ErrLost) and when the handler has not returned within the drain time (cause
// ErrMoved). qlock.Token and qlock.Held work with it.
//
// Handlers of different partitions run at the same time. The partition is handed over when
// its handler has returned, so a handler that ignores Moving and ctx keeps its partition. If
// it returns before Moving is closed, it is called again after a pause, which doubles from
// 100 ms to 10 s while it keeps returning sooner than that.
type Handler func(ctx context.Context, a Assignment)

// Worker is a member that owns partitions. Its methods may be called from several
// goroutines.
type Worker struct {
	group  *Group
	id     string
	meta   string
	handle Handler

	ctx     context.Context // ends when the worker is to stop
	end     context.CancelCauseFunc
	stopped chan struct{} // closed when all its goroutines have ended

	mu    sync.Mutex // guards what follows
	parts map[int]*part
	owned map[int]*qlock.Lock
	all   sync.WaitGroup // of parts; Add only while mu is held and ctx lasts
}

// part is a partition that this worker should own, or owns yet.
type part struct {
	number   int
	wanted   bool
	unwanted chan struct{} // closed when it is not wanted any more
}

// Join makes this process a worker of the group. It joins the group of members under the
// id, with metadata that others see behind the number of partitions (members.Group.Join:
// 256 bytes together), and then acquires the partitions that are its own. It returns when
// it has joined. ctx bounds this, and not the work.
//
// If the membership is lost, the worker joins again. Partitions whose locks it holds stay
// its own until another worker is to have them.
//
// Errors are ErrInvalid, ErrMismatch, and those of members.Group.Join and List.
func (g *Group) Join(ctx context.Context, id, meta string, handle Handler) (*Worker, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	if handle == nil {
		return nil, fmt.Errorf("%w: Join: the handler is nil", ErrInvalid)
	}
	w := &Worker{
		group: g, id: id, meta: metaOf(g.partitions, meta), handle: handle,
		stopped: make(chan struct{}), parts: map[int]*part{}, owned: map[int]*qlock.Lock{},
	}
	m, err := g.members.Join(ctx, id, w.meta)
	if err != nil {
		return nil, err
	}
	// It is a member before it asks: of two that join at once, one at least sees the other.
	list, err := g.members.List(ctx)
	if err == nil {
		err = g.mismatch(id, list)
	}
	if err != nil {
		_ = m.Leave(ctx)
		return nil, err
	}
	w.ctx, w.end = context.WithCancelCause(context.WithoutCancel(ctx))
	var loops sync.WaitGroup
	loops.Go(func() { w.stayMember(m) })
	loops.Go(w.follow)
	go func() {
		defer close(w.stopped)
		loops.Wait()
		w.all.Wait()
	}()
	return w, nil
}

func (g *Group) mismatch(id string, list []members.Info) error {
	for _, other := range list {
		if n := countIn(other.Meta); n != 0 && n != g.partitions && other.ID != id {
			return fmt.Errorf("%w: %q has %d, and this worker %d: to change the number, stop all workers of group %s first",
				ErrMismatch, other.ID, n, g.partitions, g.name)
		}
	}
	return nil
}

// ID is the worker's id.
func (w *Worker) ID() string { return w.id }

// Context ends when the worker stops: with cause ErrLeft after Leave, and with the error
// if it cannot go on, such as qlock.ErrClosed. Handlers may run for the drain time after
// that.
func (w *Worker) Context() context.Context { return w.ctx }

// Owned lists the partitions that the worker owns at this moment, in their order. One whose lock
// was lost is not among them, though its handler may not have returned yet.
func (w *Worker) Owned() []int {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]int, 0, len(w.owned))
	for p, lock := range w.owned {
		if lock.Context().Err() == nil {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}

// Leave leaves the group: others take over the partitions, each when its handler has
// returned, for which it has the drain time. Leave returns when all handlers have returned
// and the locks are released, with nil. If ctx ends before, it returns an error that wraps
// its cause, and the rest goes on. Calling it again waits again.
//
// If the worker had stopped by itself, the error is why. Call qlock.Locker.Close before the
// program ends, as after qlock.Lock.Unlock.
func (w *Worker) Leave(ctx context.Context) error {
	w.end(ErrLeft)
	select {
	case <-w.stopped:
	case <-ctx.Done():
		w.mu.Lock()
		rest := len(w.owned)
		w.mu.Unlock()
		return fmt.Errorf("partition: worker %q of group %s still hands over %d partitions: %w", w.id, w.group.name, rest, context.Cause(ctx))
	}
	if cause := context.Cause(w.ctx); !errors.Is(cause, ErrLeft) {
		return cause
	}
	return nil
}

// stayMember keeps the worker a member until it stops.
func (w *Worker) stayMember(m *members.Member) {
	for {
		select {
		case <-w.ctx.Done():
			_ = m.Leave(w.ctx) // if it is lost it has left
			return
		case <-m.Context().Done():
		}
		for {
			var err error
			if m, err = w.group.members.Join(w.ctx, w.id, w.meta); err == nil {
				break
			}
			if !w.goOn(err, retry) {
				return
			}
		}
	}
}

// retry is the pause after what failed and may work the next time.
const retry = 200 * time.Millisecond

// goOn waits before something is tried again. It reports false if the worker stops, and
// stops it if trying again cannot help.
func (w *Worker) goOn(err error, pause time.Duration) bool {
	if errors.Is(err, qlock.ErrClosed) || errors.Is(err, qlock.ErrRefused) {
		w.end(fmt.Errorf("partition: worker %q of group %s: %w", w.id, w.group.name, err))
	}
	select {
	case <-time.After(pause):
	case <-w.ctx.Done():
	}
	return w.ctx.Err() == nil
}

// follow gives the worker the partitions that the list of members says.
func (w *Worker) follow() {
	var last []string
	for w.ctx.Err() == nil {
		for u, err := range w.group.members.Watch(w.ctx) {
			if err != nil {
				if !w.goOn(err, 0) {
					return
				}
				continue
			}
			ids := w.group.workers(u.Members)
			if last == nil || !slices.Equal(ids, last) {
				last = ids
				w.want(Assign(ids, w.group.partitions))
			}
		}
		if !w.goOn(nil, retry) { // it could not subscribe
			return
		}
	}
}

// workers are the ids of the members that partitions are spread over, sorted.
func (g *Group) workers(list []members.Info) []string {
	ids := make([]string, 0, len(list))
	for _, m := range list {
		if countIn(m.Meta) == g.partitions {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

// want starts what this worker is to own, and tells what it is not.
func (w *Worker) want(owners []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ctx.Err() != nil {
		return
	}
	for n, owner := range owners {
		p := w.parts[n]
		switch {
		case owner == w.id && p == nil:
			p = &part{number: n, wanted: true, unwanted: make(chan struct{})}
			w.parts[n] = p
			w.all.Go(func() { w.serve(p) })
		case owner == w.id && !p.wanted:
			p.wanted, p.unwanted = true, make(chan struct{})
		case owner != w.id && p != nil && p.wanted:
			p.wanted = false
			close(p.unwanted)
		}
	}
}

// serve acquires and works on a partition for as long as it is wanted.
func (w *Worker) serve(p *part) {
	for {
		w.mu.Lock()
		unwanted := p.unwanted
		if !p.wanted || w.ctx.Err() != nil {
			delete(w.parts, p.number)
			w.mu.Unlock()
			return
		}
		w.mu.Unlock()

		ask, cancel := context.WithCancel(w.ctx)
		given := make(chan struct{})
		var waiting sync.WaitGroup
		waiting.Go(func() {
			select {
			case <-unwanted:
				cancel()
			case <-given:
			}
		})
		lock, err := w.group.locker.Lock(qlock.ContextWithNote(ask, w.id), w.group.lock(p.number))
		close(given)
		waiting.Wait()
		interrupted := ask.Err() != nil
		cancel()
		switch {
		case err == nil:
			w.own(p, lock, unwanted)
		case !interrupted:
			w.goOn(err, retry)
		}
	}
}

// own runs the handler of a partition until its lock is given back.
func (w *Worker) own(p *part, lock *qlock.Lock, unwanted <-chan struct{}) {
	// A detached lock has the values of the context that it was asked with, and ends for
	// reasons of its own.
	ctx, cancel := context.WithCancelCause(lock.Context())
	defer cancel(nil)
	moving, done := make(chan struct{}), make(chan struct{})
	w.mu.Lock()
	w.owned[p.number] = lock
	w.mu.Unlock()
	go func() {
		defer close(done)
		w.run(ctx, Assignment{p.number, lock.Token(), moving})
	}()

	w.keep(p, lock, unwanted)
	close(moving)
	drain := time.NewTimer(w.group.drain)
	defer drain.Stop()
	select {
	case <-done:
	case <-ctx.Done(): // lost
	case <-drain.C:
		cancel(ErrMoved)
	}
	// Were the lock released while the handler runs, the next owner would work beside it.
	<-done
	w.mu.Lock()
	delete(w.owned, p.number)
	w.mu.Unlock()
	_ = lock.Unlock(ctx) // if it is lost, the handler's context said so
}

// keep waits until the partition is to be handed over, or is lost. One that this worker
// should not own is kept until its next owner waits for it, so that it has an owner
// meanwhile, and also if that one never comes.
func (w *Worker) keep(p *part, lock *qlock.Lock, unwanted <-chan struct{}) {
	for {
		select {
		case <-unwanted:
		case <-lock.Context().Done():
			return
		case <-w.ctx.Done():
			return
		}
		select {
		case <-lock.Wanted():
		case <-lock.Context().Done():
			return
		case <-w.ctx.Done():
			return
		}
		w.mu.Lock()
		if !p.wanted {
			w.mu.Unlock()
			return
		}
		unwanted = p.unwanted // it is wanted again: who waits has another list yet
		w.mu.Unlock()
	}
}

// run calls the handler until the partition moves.
func (w *Worker) run(ctx context.Context, a Assignment) {
	const least, most = 100 * time.Millisecond, 10 * time.Second
	for pause := least; ; pause = min(2*pause, most) {
		start := time.Now()
		// In a goroutine of its own, which the handler may end (runtime.Goexit): it has returned then.
		returned := make(chan struct{})
		go func() {
			defer close(returned)
			w.handle(ctx, a)
		}()
		<-returned
		if time.Since(start) > most {
			pause = least
		}
		select {
		case <-a.Moving:
			return
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}
