package members

import (
	"context"
	"iter"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

// Kind is what became of a member.
type Kind string

const (
	Joined Kind = "joined"
	Left   Kind = "left" // it released its lock
	// Lost: its lease ended, or an operator ended it. A member that left while the event
	// of that was lost is reported as lost too.
	Lost    Kind = "lost"
	Changed Kind = "changed" // its metadata
)

// Change is a change of one member. If an id is taken over by another process, this is two
// changes: Left or Lost with the former token, and Joined with the new one.
type Change struct {
	Kind   Kind
	Member Info
}

// Update is what Watch reports: changes, and the members after them.
type Update struct {
	Changes []Change
	Members []Info // sorted by id; the caller's
}

// Watch reports the members, and then all changes, for as long as the loop runs and ctx
// lasts. The first Update has all present members as Joined, and comes also when there are
// none. Changes that come together are one Update.
//
// Tokens of one id rise. With WithEvents, a member that no event told of is reported when two
// questions 50 ms apart have found it with the same token: nodes may show a higher one while its
// client settles on one.
//
//	for update, err := range group.Watch(ctx) {
//		if err != nil {
//			return err // or log it, and go on
//		}
//		…
//	}
//
// An error says that the nodes could not be asked, and comes within 5 s. The loop may go on: Watch asks again
// until ctx ends, and reports what changed meanwhile. After ErrClosed and ErrRefused it
// ends. When ctx ends, Watch ends without an error.
//
// The loop's body runs in the caller's goroutine. While it runs, nothing is missed: events
// are kept, and the nodes are asked afterwards.
func (g *Group) Watch(ctx context.Context) iter.Seq2[Update, error] {
	return func(yield func(Update, error) bool) {
		in := inbox{wake: make(chan struct{}, 1)}
		if g.events != nil {
			unsubscribe, err := g.subscribe(ctx, &in)
			if err != nil {
				yield(Update{}, err)
				return
			}
			defer unsubscribe()
		}
		v := newView(g.name, g.events != nil)
		started := false
		for ctx.Err() == nil {
			asked := time.Now()
			// The deadline of ctx may be far away. That of a question must not be: it would be as
			// long until an outage is told, and until it is noticed that the outage is over.
			ask, cancel := context.WithTimeout(ctx, askFor)
			list, err := g.list(ask)
			cancel()
			pause := g.interval
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				if !yield(Update{}, err) || permanent(err) {
					return
				}
				pause = min(pause, time.Second)
			default:
				v.list(list, asked)
				pause = min(pause, v.nextDeath())
			}
			timer := time.NewTimer(pause)
			for waiting := true; waiting; {
				v.hear(in.take())
				if u, ok := v.update(); v.known && (ok || !started) {
					started = true
					if !yield(u, nil) {
						timer.Stop()
						return
					}
				}
				select {
				case <-in.wake:
				case <-timer.C:
					waiting = false
				case <-ctx.Done():
					timer.Stop()
					return
				}
			}
		}
	}
}

// askFor is how long Watch waits for the nodes before it says that they do not answer.
const askFor = 5 * time.Second

// subscribe collects the events of the group.
func (g *Group) subscribe(ctx context.Context, in *inbox) (unsubscribe func(), err error) {
	subject, err := qlock.EventSubject(g.locker.Cluster(), pattern(g.name))
	if err != nil {
		return nil, err
	}
	sub, err := g.events.Subscribe(subject, func(m *nats.Msg) {
		if e, err := qlock.ParseEvent(m.Subject, m.Data); err == nil {
			in.put(heard{e, time.Now()})
		}
	})
	if err != nil {
		return nil, err
	}
	// What happens between the first question and the server's hearing of the
	// subscription would be reported later. If this fails, that is all.
	flush, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_ = g.events.FlushWithContext(flush)
	return func() { _ = sub.Unsubscribe() }, nil // it fails if the connection is closed
}

type heard struct {
	*qlock.Event
	at time.Time
}

// inbox passes events from the goroutine of a subscription to a loop.
type inbox struct {
	wake chan struct{} // has room for one

	mu     sync.Mutex // guards events
	events []heard
}

// mostEvents bounds the events that a slow loop leaves. The nodes are asked in any case.
const mostEvents = 100_000

func (in *inbox) put(h heard) {
	in.mu.Lock()
	if len(in.events) < mostEvents {
		in.events = append(in.events, h)
	}
	in.mu.Unlock()
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

func (in *inbox) take() []heard {
	in.mu.Lock()
	defer in.mu.Unlock()
	out := in.events
	in.events = nil
	return out
}
