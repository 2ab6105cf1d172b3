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
		answer(w, http.StatusServiceUnavailable, r, plain(r.node.Err()))
	default:
		answer(w, http.StatusOK, r, "")
	}
}

// readyz fails while the node gives no votes, or is not connected to NATS.
func (s *nodeServer) readyz(w http.ResponseWriter, _ *http.Request) {
	r := s.started.Load()
	switch {
	case r == nil || !r.node.Ready():
		answer(w, http.StatusServiceUnavailable, r, whyNot(r))
	case !r.nc.IsConnected():
		answer(w, http.StatusServiceUnavailable, r, "the NATS connection is "+r.nc.Status().String())
	default:
		answer(w, http.StatusOK, r, "")
	}
}

func done(r *running) <-chan struct{} {
	if r == nil {
		return nil
	}
	return r.node.Done()
}

// whyNot says why a node gives no votes.
func whyNot(r *running) string {
	if r != nil {
		switch r.node.Stats().State {
		case qlock.NodeJoining:
			return "the node waits until qlock nodes change adds it"
		case qlock.NodeRetired:
			return "no list of nodes has this node any more, so it can be stopped; or the list has a node of this name with another state directory (qlock check)"
		}
	}
	return "the node gives no votes"
}

// answer writes what the node is. While the list of nodes changes, it says for how long.
func answer(w http.ResponseWriter, status int, r *running, why string) {
	body := struct {
		State    string  `json:"state"`
		Why      string  `json:"why,omitempty"`
		Epoch    uint64  `json:"epoch,omitempty"`
		Changing float64 `json:"list_change_ms,omitempty"`
	}{State: "starting", Why: why}
	if r != nil {
		s := r.node.Stats()
		body.State, body.Epoch, body.Changing = string(s.State), s.Epoch, ms(s.Changing)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client may be gone
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
	return peersOf(m, s.o.node.Name, s.o.node.Nodes)
}

// peersOf returns the nodes of the lists by which the node of this name goes, as they are in m:
// of the cluster's list, and while it changes of the new one as well. started is the list that the
// node was started with, in case that it does not hear its own answer.
func peersOf(m *qlock.Members, name string, started []string) []metrics.Peer {
	old, next := m.Config.Nodes, []string(nil)
	if m.Change != nil {
		next = m.Change.Nodes
	}
	digest, moving := m.Config.Digest, false
	// A node that contradicts the others goes by its own list.
	if i := slices.IndexFunc(m.Nodes, func(n qlock.Member) bool { return n.Name == name && n.Answered }); i >= 0 && len(m.Nodes[i].Config.Nodes) > 0 {
		n := &m.Nodes[i]
		moving = n.Conflict == qlock.ConflictBehind || n.Conflict == qlock.ConflictAhead
		if digest = n.Config.Digest; digest != m.Config.Digest && !moving {
			old, next = n.Config.Nodes, nil
		}
	}
	if len(old) == 0 {
		old = slices.Sorted(slices.Values(started))
	}
	all := slices.Concat(old, next)
	slices.Sort(all)
	all = slices.Compact(all)
	out := make([]metrics.Peer, 0, len(all))
	for _, name := range all {
		p := metrics.Peer{Name: name}
		for i := range m.Nodes {
			n := &m.Nodes[i]
			if n.Name != name || !n.Answered {
				continue
			}
			p.Heard, p.RoundTrip = true, n.RoundTrip
			p.Clash = n.Conflict == qlock.ConflictName
			// One that is about to learn what the others have decided has no other configuration.
			behind := moving || n.Conflict == qlock.ConflictBehind || n.Conflict == qlock.ConflictAhead
			p.OtherConfig = n.Config.Digest != digest && !behind && n.State != qlock.NodeJoining && n.State != qlock.NodeRetired
			p.Votes = !p.Clash && !p.OtherConfig && n.Conflict != qlock.ConflictBehind && n.State == qlock.NodeVoting
		}
		if slices.Contains(old, name) {
			p.Lists = append(p.Lists, metrics.OldList)
		}
		if slices.Contains(next, name) {
			p.Lists = append(p.Lists, metrics.NewList)
		}
		out = append(out, p)
	}
	return out
}
