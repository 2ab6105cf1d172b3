package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/metrics"
)

// web is the HTTP server of a node; nil means none.
type web struct {
	server   *http.Server
	registry *prometheus.Registry
	done     chan struct{}
}

// serveHTTP listens before the node starts, so that a supervisor can see that it is
// starting.
func serveHTTP(addr string, s *nodeServer, log *slog.Logger) (*web, error) {
	if addr == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--http: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("GET /readyz", s.readyz)
	reg := registry()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}))
	w := &web{
		registry: reg,
		server:   &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)},
		done:     make(chan struct{}),
	}
	go func() {
		defer close(w.done)
		if err := w.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("HTTP", "error", err)
		}
	}()
	log.Info("HTTP", "address", l.Addr().String())
	return w, nil
}

func (w *web) close() {
	if w == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if w.server.Shutdown(ctx) != nil {
		_ = w.server.Close() // a client reads slowly, and the process ends now
	}
	<-w.done
}

// healthz fails if a restart would help: the node has stopped although its process lives,
// because another node has its name or its connection is closed permanently. A node that
// waits, or that reconnects, recovers by itself.
func (s *nodeServer) healthz(w http.ResponseWriter, _ *http.Request) {
	r := s.started.Load()
	select {
	case <-done(r):
		answer(w, http.StatusServiceUnavailable, "stopped", plain(r.node.Err()))
	default:
		answer(w, http.StatusOK, state(r), "")
	}
}

// readyz fails while the node gives no votes, or is not connected to NATS.
func (s *nodeServer) readyz(w http.ResponseWriter, _ *http.Request) {
	r := s.started.Load()
	switch {
	case r == nil || !r.node.Ready():
		answer(w, http.StatusServiceUnavailable, state(r), "the node gives no votes")
	case !r.nc.IsConnected():
		answer(w, http.StatusServiceUnavailable, state(r), "the NATS connection is "+r.nc.Status().String())
	default:
		answer(w, http.StatusOK, state(r), "")
	}
}

func done(r *running) <-chan struct{} {
	if r == nil {
		return nil
	}
	return r.node.Done()
}

func state(r *running) string {
	if r == nil {
		return "starting"
	}
	return string(r.node.Stats().State)
}

func answer(w http.ResponseWriter, status int, state, why string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(struct { // the client may be gone
		State string `json:"state"`
		Why   string `json:"why,omitempty"`
	}{state, why})
}

// registry returns a registry with the metrics of the process. The node's metrics are added
// when it has started.
func registry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// enter adds the node's metrics.
func (s *nodeServer) enter(reg *prometheus.Registry) {
	o, r := s.o, s.started.Load()
	reg.MustRegister(
		metrics.NewNode(r.node, o.node.Cluster),
		metrics.NewConnection(r.nc),
		metrics.NewPeers(func() []metrics.Peer { return s.peers(r) }),
	)
	if r.server != nil {
		reg.MustRegister(metrics.NewServer(r.server.NATS()))
	}
	if !o.observe {
		return
	}
	events, err := metrics.NewEvents(r.nc, o.node.Cluster)
	if err != nil {
		s.log.Warn("events are not counted", "error", err)
		return
	}
	reg.MustRegister(events)
}

// peers queries all nodes including this one. It uses this node's name, for which the
// permissions allow the query.
func (s *nodeServer) peers(r *running) []metrics.Peer {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	m, err := qlock.QueryMembers(ctx, r.nc, qlock.WithCluster(s.o.node.Cluster), qlock.WithName(s.o.node.Name))
	if errors.Is(err, qlock.ErrNoQuorum) {
		m, err = &qlock.Members{}, nil // no node answered
	}
	if err != nil {
		return nil
	}
	byName := map[string]*metrics.Peer{}
	for _, n := range s.o.node.Nodes {
		byName[n] = &metrics.Peer{Name: n}
	}
	for i := range m.Nodes {
		n := &m.Nodes[i]
		if p := byName[n.Name]; p != nil && n.Answered {
			p.Heard, p.RoundTrip = true, n.RoundTrip
			p.Clash, p.OtherConfig = n.Conflict == qlock.ConflictName, !s.isOurs(n.Config)
			p.Votes = !p.Clash && !p.OtherConfig && n.State == qlock.NodeVoting
		}
	}
	out := make([]metrics.Peer, 0, len(byName))
	for _, n := range s.o.node.Nodes {
		out = append(out, *byName[n])
	}
	return out
}

// isOurs reports whether a configuration is this node's.
func (s *nodeServer) isOurs(c qlock.ClusterConfig) bool {
	return slices.Equal(c.Nodes, slices.Sorted(slices.Values(s.o.node.Nodes))) && c.MaxLease == s.o.node.MaxLease && c.MaxSkew == s.skew()
}

// skew returns the configured value, or the default of package qlock.
func (s *nodeServer) skew() time.Duration {
	if s.o.node.MaxSkew != 0 {
		return s.o.node.MaxSkew
	}
	return min(5*time.Second, s.o.node.MaxLease/2)
}
