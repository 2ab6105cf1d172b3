package metrics

import (
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/qlock/qlock"
)

// Events counts the events that clients publish about their locks. Each observer of a
// cluster sees all events. If there are several observers, use one of them, for example
// with max by (cluster), and not their sum.
type Events struct {
	group
	sub *nats.Subscription

	acquired, released, lost *prometheus.CounterVec
	waited, held             *prometheus.HistogramVec
	malformed                prometheus.Counter
}

// buckets are seconds. They range from a free lock on a local network (half a millisecond)
// to a queue behind a batch job (two minutes).
var buckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120}

// NewEvents subscribes to the events of a cluster and counts them until Close. Names of
// clients and locks are not labels, since there may be millions. It returns an error if the
// subscription fails.
func NewEvents(nc *nats.Conn, cluster string) (*Events, error) {
	labels := prometheus.Labels{"cluster": cluster}
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}, []string{"mode"})
	}
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, ConstLabels: labels, Buckets: buckets}, []string{"mode"})
	}
	e := &Events{
		acquired: counter("qlock_locks_acquired_total", "Locks granted."),
		released: counter("qlock_locks_released_total", "Locks released."),
		lost:     counter("qlock_locks_lost_total", "Locks lost."),
		waited:   histogram("qlock_lock_wait_seconds", "Time from requesting a lock to holding it."),
		held:     histogram("qlock_lock_hold_seconds", "Time that locks were held."),
		malformed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "qlock_events_malformed_total", Help: "Events that could not be decoded.", ConstLabels: labels,
		}),
	}
	for _, mode := range []string{"exclusive", "shared"} {
		for _, c := range []*prometheus.CounterVec{e.acquired, e.released, e.lost} {
			c.WithLabelValues(mode)
		}
		e.waited.WithLabelValues(mode)
		e.held.WithLabelValues(mode)
	}
	e.group = group{e.acquired, e.released, e.lost, e.waited, e.held, e.malformed}
	subject, err := qlock.EventSubject(cluster, "")
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	if e.sub, err = nc.Subscribe(subject, func(m *nats.Msg) { e.hear(m.Subject, m.Data) }); err != nil {
		return nil, fmt.Errorf("metrics: listen to the events of cluster %s: %w", cluster, err)
	}
	return e, nil
}

func (e *Events) hear(subject string, body []byte) {
	ev, err := qlock.ParseEvent(subject, body)
	if err != nil {
		e.malformed.Inc()
		return
	}
	switch ev.Kind {
	case qlock.EventAcquired:
		e.acquired.WithLabelValues(ev.Mode).Inc()
		e.waited.WithLabelValues(ev.Mode).Observe(ev.Waited / 1000)
	case qlock.EventReleased:
		e.released.WithLabelValues(ev.Mode).Inc()
		e.held.WithLabelValues(ev.Mode).Observe(ev.Held / 1000)
	case qlock.EventLost:
		e.lost.WithLabelValues(ev.Mode).Inc()
		e.held.WithLabelValues(ev.Mode).Observe(ev.Held / 1000)
	}
}

// Close ends the subscription. The counts stay as they are.
func (e *Events) Close() error {
	if err := e.sub.Unsubscribe(); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}
