package gateway

import (
	"context"
	"time"

	"github.com/qlock/qlock"
)

// Claim is a claim as the nodes have it.
type Claim struct {
	ID          string    `json:"claim"`
	Client      string    `json:"client"`
	Note        string    `json:"note"`
	Mode        string    `json:"mode" enum:"exclusive,shared"`
	Held        bool      `json:"held"`
	MayHold     bool      `json:"may_hold,omitempty" doc:"it may be held with the votes of nodes that do not answer"`
	Token       uint64    `json:"token,omitempty" doc:"held: the fencing token. If the claim is kept, its client passes it on without a message to the nodes: it may be the token of a former holder, and is never above that of the present one"`
	ForMS       int64     `json:"for_ms"`
	LeaseLeftMS int64     `json:"lease_left_ms,omitempty"`
	Asked       time.Time `json:"asked" doc:"by its client's clock"`
	Kept        bool      `json:"kept,omitempty"`
	Evicted     bool      `json:"evicted,omitempty"`
	Voted       []string  `json:"voted"`
	Queued      []string  `json:"queued"`
}

// LockReport is a lock as the nodes have it.
type LockReport struct {
	Name       string   `json:"name,omitempty"`
	Encoded    string   `json:"encoded"`
	Use        *Use     `json:"use,omitempty" doc:"of locks that recipes make"`
	Holding    int      `json:"holding"`
	Waiting    int      `json:"waiting"`
	Holders    []Claim  `json:"holders"`
	Queue      []Claim  `json:"queue"`
	Answered   []string `json:"answered"`
	Recovering []string `json:"recovering"`
	Silent     []string `json:"silent"`
}

// LockList is all locks, or those that match a pattern.
type LockList struct {
	Cluster string       `json:"cluster"`
	Locks   []LockReport `json:"locks"`
}

// Node is a node as it describes itself.
type Node struct {
	Name         string  `json:"name"`
	State        string  `json:"state"`
	Votes        bool    `json:"votes"`
	Reachable    bool    `json:"reachable"`
	Conflict     string  `json:"conflict,omitempty"`
	RecoveringMS int64   `json:"recovering_ms,omitempty"`
	Version      string  `json:"version,omitempty"`
	Claims       int     `json:"claims"`
	RoundTripMS  float64 `json:"round_trip_ms,omitempty"`
}

// NodeList is the nodes of the cluster.
type NodeList struct {
	Cluster    string   `json:"cluster"`
	Voting     int      `json:"voting"`
	Writer     int      `json:"votes_for_a_writer"`
	Reader     int      `json:"votes_for_a_reader"`
	MaxLeaseMS int64    `json:"max_lease_ms"`
	NodeNames  []string `json:"node_names" doc:"the list of nodes; while it changes, the old one"`
	Nodes      []Node   `json:"nodes"`

	Epoch  uint64      `json:"epoch" doc:"counts the decisions about the list of nodes; 0: the nodes go by the list that they were started with"`
	Change *ListChange `json:"change,omitempty" doc:"the change of the list that is under way: a lock needs the votes of both lists"`

	Findings []Finding `json:"findings" doc:"what is wrong, if the gateway checks it"`
}

// ListChange is a change of the list of nodes that is under way.
type ListChange struct {
	NodeNames  []string `json:"node_names" doc:"the new list"`
	MaxLeaseMS int64    `json:"max_lease_ms"`
	ForMS      int64    `json:"for_ms"`
	WaitMS     int64    `json:"wait_ms" doc:"how long it cannot yet be finished"`
}

func claims(list []qlock.ClaimInfo) []Claim {
	out := make([]Claim, len(list))
	for i := range list {
		c := &list[i]
		out[i] = Claim{
			ID: c.ID, Client: c.Client, Note: c.Note, Mode: modeName(c.Shared), Held: c.Held, MayHold: c.MayHold, Token: c.Token,
			ForMS: c.For.Milliseconds(), LeaseLeftMS: c.Lease.Milliseconds(), Asked: c.Asked.UTC(), Kept: c.Kept, Evicted: c.Evicted,
			Voted: append([]string{}, c.Voted...), Queued: append([]string{}, c.Queued...),
		}
	}
	return out
}

func reportOf(i *qlock.LockInfo) LockReport {
	encoded, _ := encodeName(i.Name) // the nodes' names are names
	return LockReport{
		Name: shown(i.Name), Encoded: encoded, Use: useOf(i.Name), Holding: i.Holding, Waiting: i.Waiting, Holders: claims(i.Holders), Queue: claims(i.Queue),
		Answered: append([]string{}, i.Answered...), Recovering: append([]string{}, i.Recovering...), Silent: append([]string{}, i.Silent...),
	}
}

// ListRequest selects locks.
type ListRequest struct {
	Pattern string `json:"pattern,omitempty" doc:"as NATS selects subjects: orders.> or *.42; default: all"`
}

func locksView(pattern string) *view {
	return &view{key: "locks " + pattern, pattern: pattern, look: func(ctx context.Context, locker *qlock.Locker) (any, *Problem) {
		infos, err := locker.Locks(ctx, pattern)
		if err != nil {
			return nil, problemOf(err)
		}
		out := &LockList{Cluster: locker.Cluster(), Locks: make([]LockReport, len(infos))}
		for i := range infos {
			out.Locks[i] = reportOf(&infos[i])
		}
		return out, nil
	}}
}

// LockRequest names a lock.
type LockRequest struct {
	Name    string `json:"name,omitempty"`
	Encoded string `json:"encoded,omitempty"`
}

func (c *call) lockView(in *LockRequest) (*view, *Problem) {
	name, encoded, p := c.nameOf(in.Name, in.Encoded)
	if p != nil {
		return nil, p
	}
	return &view{key: "lock " + encoded, pattern: encoded, look: func(ctx context.Context, locker *qlock.Locker) (any, *Problem) {
		info, err := locker.Inspect(ctx, name)
		if err != nil {
			return nil, problemOf(err)
		}
		out := reportOf(info)
		return &out, nil
	}}, nil
}

func (g *Gateway) nodesView() *view {
	return &view{key: "nodes", quiet: true, look: func(ctx context.Context, locker *qlock.Locker) (any, *Problem) {
		m, err := locker.Members(ctx)
		if err != nil {
			return nil, problemOf(err)
		}
		out := &NodeList{
			Cluster: m.Cluster, Voting: m.Voting(), Writer: m.Config.WriteQuorum(), Reader: m.Config.ReadQuorum(),
			MaxLeaseMS: m.Config.MaxLease.Milliseconds(), NodeNames: append([]string{}, m.Config.Nodes...), Nodes: make([]Node, len(m.Nodes)),
			Findings: g.findings(m), Epoch: m.Config.Epoch,
		}
		if c := m.Change; c != nil {
			out.Change = &ListChange{
				NodeNames: append([]string{}, c.Nodes...), MaxLeaseMS: c.MaxLease.Milliseconds(),
				ForMS: c.For.Milliseconds(), WaitMS: c.Wait.Milliseconds(),
			}
		}
		for i := range m.Nodes {
			n := &m.Nodes[i]
			out.Nodes[i] = Node{
				Name: n.Name, State: string(n.State), Votes: n.Votes(), Reachable: n.Answered, Conflict: string(n.Conflict),
				RecoveringMS: n.Recovering.Milliseconds(), Version: n.Version, Claims: n.Claims, RoundTripMS: float64(n.RoundTrip.Microseconds()) / 1000,
			}
			if !n.Answered {
				out.Nodes[i].State = "unreachable"
			}
		}
		return out, nil
	}}
}
