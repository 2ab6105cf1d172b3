package qlock

import (
	"context"
	"log/slog"
	"os"
	"time"

	"github.com/qlock/qlock/internal/driver"
	"github.com/qlock/qlock/internal/natsio"
	"github.com/qlock/qlock/internal/printable"
	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/version"
	"github.com/qlock/qlock/internal/wire"
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
	events  driver.Events
	batches driver.Batches

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
	return clip(printable.Text(clip(note, wire.MaxNote)), wire.MaxNote)
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
		o.events = driver.WithoutEvents
		return nil
	}
}

// WithoutBatches publishes each request in a message of its own, under its own
// subject, for those who watch the requests by subject. Otherwise what several
// goroutines want at the same moment goes in one message, lock.<cluster>.node.<client>,
// if the NATS user may publish there.
func WithoutBatches() Option {
	return func(o *options) error {
		o.batches = driver.WithoutBatches
		return nil
	}
}

func buildOptions(opts []Option) (options, error) {
	o := options{cluster: DefaultCluster, logger: slog.New(slog.DiscardHandler)}
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

// driver is what the options say to the driver.
func (o *options) driver(log *natsio.Log) driver.Config {
	return driver.Config{
		Cluster: o.cluster, Name: o.name, Log: log,
		Lease: o.lease, DefaultLease: DefaultLease, Retention: o.retention, PassMost: o.passMost, PassWithin: o.passWithin,
		Events: o.events, Batches: o.batches,
	}
}
