package qlock

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/qlock/qlock/internal/printable"
	"github.com/qlock/qlock/internal/proto"
	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/version"
)

// Version is the version of qlock that this program was built from, such as 0.2.0,
// as build information has it. It is 0.0.0-devel in builds of a working copy. Nodes
// tell it to whoever asks.
func Version() string { return version.String() }

const (
	// DefaultCluster is the cluster's name where none is given.
	DefaultCluster = "default"
	// DefaultLease is how long a lock outlives its silent holder where nothing
	// else is given, unless the cluster's longest lease is shorter.
	DefaultLease = 10 * time.Second
	// DefaultMaxLease is the longest lease that a node grants where none is given.
	DefaultMaxLease = 30 * time.Second
)

// Option changes how a Locker works.
type Option func(*options) error

type options struct {
	cluster string
	name    string
	lease   time.Duration // 0: the default, or the cluster's longest if that is shorter
	logger  *slog.Logger
	events  bool
	batches bool

	retention time.Duration

	passMost   int           // WithPassOn
	passWithin time.Duration // as well

	note string
}

// WithCluster names the cluster of nodes to ask: 1 to 64 letters, digits, - and
// _. Several may share one NATS. Default: "default".
func WithCluster(name string) Option {
	return func(o *options) error {
		o.cluster = name
		return subject.CheckToken("cluster", name)
	}
}

// WithName names this client in subjects, events, and the errors of those who
// wait for it: 1 to 64 letters, digits, - and _. Several processes may share a
// name. NATS permissions are given by it. Default: made from the names of host
// and program.
func WithName(name string) Option {
	return func(o *options) error {
		o.name = name
		return subject.CheckToken("client", name)
	}
}

// WithLease sets how long locks outlive a holder that falls silent: a crashed
// holder blocks others for that long at most, and a holder that is cut off from
// the nodes learns of its loss after a little less. It is refreshed every third
// of it. At least 10 ms, at most the cluster's longest lease; whole milliseconds.
// Below a second, ordinary pauses of a busy machine begin to cost locks.
func WithLease(d time.Duration) Option {
	return func(o *options) error {
		if d < proto.MinLease || d > proto.MaxLease {
			return fmt.Errorf("%w: %v: it must be within %v and %v", ErrInvalidLease, d, proto.MinLease, proto.MaxLease)
		}
		if d%time.Millisecond != 0 {
			return fmt.Errorf("%w: %v is not in whole milliseconds", ErrInvalidLease, d)
		}
		o.lease = d
		return nil
	}
}

// WithRetention lets the Locker keep a lock for up to d after its last holder here
// has unlocked it, or until another client waits for it: who locks it again
// meanwhile has it without asking the nodes, in about a microsecond. Others get it
// within the time of two more messages than without. From the outside the lock
// looks held meanwhile: TryLock elsewhere may fail, and a crash leaves it held for
// the lease. Default: 0, nothing is kept.
//
// With or without it, goroutines that wait here for a lock that is held here get it
// from one another.
func WithRetention(d time.Duration) Option {
	return func(o *options) error {
		if d < 0 {
			return fmt.Errorf("qlock: retention %v is negative", d)
		}
		o.retention = d
		return nil
	}
}

// WithPassOn lets the Locker go on passing a lock among its own goroutines when other
// clients wait for it: to at most holders more of them, and to none that would begin
// later than within after the Locker heard that others wait. Zero sets no bound of that
// kind; one of the two must be above zero. Then, as without the option, the lock goes to
// whoever has waited longest anywhere. The next time that this Locker's turn comes, the
// bounds begin anew.
//
// Between goroutines of one Locker a lock passes in about a microsecond, between clients
// in the time of two messages. A crowd of goroutines in several clients that want the
// same name for moments is served many times faster with a bound of some tens of holders.
// The price is the order: a goroutine here may go before others elsewhere that have waited
// longer. Nobody starves, but each claim before a waiter may take the time of so many
// holders more, or so much time and one holder. Readers that join others count as
// holders. Default: off, which keeps the order of age among all clients.
func WithPassOn(holders int, within time.Duration) Option {
	return func(o *options) error {
		if holders < 0 || within < 0 || holders == 0 && within == 0 {
			return fmt.Errorf("qlock: WithPassOn(%d, %v): neither may be negative, and one must be above zero", holders, within)
		}
		o.passMost, o.passWithin = holders, within
		return nil
	}
}

// WithNote says something of this client's locks, for people: it stands beside them
// in Locks and Inspect, and in events. What a terminal would not show as it is, such as
// a tab, is escaped as in Go; at most 256 bytes are kept. Default: none.
// ContextWithNote is for a single lock.
func WithNote(note string) Option {
	return func(o *options) error {
		o.note = shownNote(note)
		return nil
	}
}

// ContextWithNote gives locks that are asked for with the context a note of their
// own, in place of the Locker's; see WithNote. Of goroutines that share a claim, the
// first one's is shown.
func ContextWithNote(ctx context.Context, note string) context.Context {
	return context.WithValue(ctx, noteKey{}, shownNote(note))
}

type noteKey struct{}

// shownNote is as much of a note as is kept, with nothing in it that a terminal would obey.
func shownNote(note string) string {
	return clip(printable.Text(clip(note, proto.MaxNote)), proto.MaxNote)
}

// WithLogger lets the Locker say what an operator should know: lost locks,
// foreign or malformed messages, nodes of the same name. Default: silent.
//
// The Locker never waits for the logger: lines that it does not take in time are
// dropped and counted (LockerStats.LogDropped). Only Close waits, for a second at
// most. A logger that blocks for ever keeps one goroutine for ever.
func WithLogger(l *slog.Logger) Option {
	return func(o *options) error {
		if l != nil {
			o.logger = l
		}
		return nil
	}
}

// WithoutEvents publishes no events for observers: one message less for each
// lock taken and one for each given back.
func WithoutEvents() Option {
	return func(o *options) error {
		o.events = false
		return nil
	}
}

// WithoutBatches publishes each request in a message of its own, under its own
// subject, for those who watch the requests by subject. Otherwise what several
// goroutines want at the same moment goes in one message, lock.<cluster>.node.<client>,
// if the NATS user may publish there.
func WithoutBatches() Option {
	return func(o *options) error {
		o.batches = false
		return nil
	}
}

func buildOptions(opts []Option) (options, error) {
	o := options{cluster: DefaultCluster, logger: slog.New(slog.DiscardHandler), events: true, batches: true}
	for _, opt := range opts {
		if opt == nil {
			continue
		}
		if err := opt(&o); err != nil {
			return o, err
		}
	}
	if o.name == "" {
		host, _ := os.Hostname()
		o.name = subject.ClientName(host, os.Args[0])
	}
	return o, nil
}
