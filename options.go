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

// Version returns the version of qlock that this program was built from, such as 0.2.0, as recorded
// in the build information. Builds of a working copy return 0.0.0-devel. Nodes report it to every
// client that asks.
func Version() string { return version.String() }

const (
	// DefaultCluster is the name of the cluster if none is given.
	DefaultCluster = "default"
	// DefaultLease is the lease of a Locker without WithLease: how long a lock outlives a holder
	// that falls silent. If the cluster allows only a shorter lease, the Locker takes the longest
	// that it allows.
	DefaultLease = 10 * time.Second
	// DefaultMaxLease is the longest lease that a node allows if NodeConfig.MaxLease is 0.
	DefaultMaxLease = 30 * time.Second
)

// Option configures a Locker. New ignores a nil Option and returns the error of an invalid one.
type Option func(*options) error

type options struct {
	cluster string
	name    string
	lease   time.Duration // 0: DefaultLease, or the longest lease of the cluster if that is shorter
	logger  *slog.Logger
	events  driver.Events
	batches driver.Batches

	retention time.Duration

	passMost   int           // from WithPassOn
	passWithin time.Duration // from WithPassOn

	note string
}

// WithCluster sets the name of the cluster whose nodes the Locker asks: 1 to 64 letters, digits, -
// and _. Several clusters can share one NATS. Default: DefaultCluster.
func WithCluster(name string) Option {
	return func(o *options) error {
		o.cluster = name
		return subject.CheckToken("cluster", name)
	}
}

// WithName sets the client's name: 1 to 64 letters, digits, - and _. The name is part of the
// client's subjects and events, and appears in the errors of clients that wait for its locks. NATS
// permissions are granted by this name. Several processes may share a name. Default: a name made
// from the names of the host and the program.
func WithName(name string) Option {
	return func(o *options) error {
		o.name = name
		return subject.CheckToken("client", name)
	}
}

// WithNote describes this client's locks for people. Locks, Inspect and events show the note.
// Characters that a terminal does not print as they are, such as a tab, are escaped as in Go. At
// most 256 bytes are kept. Default: no note. To describe a single lock, use the option Note or
// ContextWithNote.
func WithNote(note string) Option {
	return func(o *options) error {
		o.note = shownNote(note)
		return nil
	}
}

// ContextWithNote returns a context for acquiring locks. Locks that are requested with it have this
// note in place of the Locker's; see WithNote. If goroutines share a claim, the note of the first
// one is shown.
func ContextWithNote(ctx context.Context, note string) context.Context {
	return context.WithValue(ctx, noteKey{}, shownNote(note))
}

type noteKey struct{}

// shownNote returns the part of a note that is kept, without characters that control a terminal.
func shownNote(note string) string {
	return clip(printable.Text(clip(note, wire.MaxNote)), wire.MaxNote)
}

// WithLogger sets the logger for what an operator should know: lost locks, foreign or malformed
// messages, nodes of the same name. A nil logger is ignored. Default: nothing is logged.
//
// The Locker never waits for the logger: lines that it does not accept in time are dropped and
// counted (LockerStats.LogDropped). Only Close waits, for 1 s at most. A logger that blocks forever
// keeps one goroutine forever.
func WithLogger(l *slog.Logger) Option {
	return func(o *options) error {
		if l != nil {
			o.logger = l
		}
		return nil
	}
}

// WithoutEvents turns off the events for observers. This saves one message for each lock acquired
// and one for each lock released.
func WithoutEvents() Option {
	return func(o *options) error {
		o.events = driver.WithoutEvents
		return nil
	}
}

// WithoutBatches makes the Locker publish each request in a message of its own, under its own
// subject, so that observers can select requests by subject. Without this option, requests that
// several goroutines make at the same moment go in one message on lock.<cluster>.node.<client>, if
// the NATS user may publish there.
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

// driver returns the options as the driver's configuration.
func (o *options) driver(log *natsio.Log) driver.Config {
	return driver.Config{
		Cluster: o.cluster, Name: o.name, Log: log,
		Lease: o.lease, DefaultLease: DefaultLease, Retention: o.retention, PassMost: o.passMost, PassWithin: o.passWithin,
		Events: o.events, Batches: o.batches,
	}
}
