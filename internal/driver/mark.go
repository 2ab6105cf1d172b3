package driver

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/epoch"
	"github.com/qlock/qlock/internal/sat"
	"github.com/qlock/qlock/internal/statedir"
	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

// A node saves what it must not forget in a mark in its state directory, and restores it at its
// next start. A clean mark serves once (N8).

// bootstrapped is how long the mark of Bootstrap is valid. It must last until all nodes of a new
// cluster have started for the first time. It must not last longer, because it says that no process
// has voted under the node's name.
const bootstrapped = time.Hour

// Bootstrap writes a clean mark into the empty state directory of a node that has never run.
func Bootstrap(cfg NodeConfig) error {
	dir, err := statedir.Open(cfg.StateDir)
	if err != nil {
		return fmt.Errorf("qlock: Bootstrap: %w", err)
	}
	return errors.Join(bootstrap(dir, &cfg), dir.Close())
}

func bootstrap(dir *statedir.Dir, cfg *NodeConfig) error {
	if _, found, _, _ := dir.Read(); found {
		return fmt.Errorf("qlock: Bootstrap: %s already holds the state of a node; a node that has run must not be bootstrapped again", cfg.StateDir)
	}
	return writeMark(dir, cfg, nil, cfg.MaxLease, &epoch.State{ID: uuid.New()}, &voter.Saved{})
}

// manyRuns is how many incarnations of a node its mark lists.
const manyRuns = 8

// writeMark writes a clean mark with saved, or a mark that is not clean if saved is nil. state is
// what the node must not forget about the configuration, in either case (E10).
func writeMark(dir *statedir.Dir, cfg *NodeConfig, runs []uuid.UUID, longest time.Duration, state *epoch.State, saved *voter.Saved) error {
	m := statedir.Mark{
		Clean: saved != nil, Cluster: cfg.Cluster, Name: cfg.Name, Digest: digestOf(cfg, state),
		MaxTTL: longest.Milliseconds(), Written: time.Now().UnixMicro(), ID: state.ID.String(),
	}
	kept, err := state.Encode()
	if err != nil {
		return err
	}
	m.Epoch = kept //plant:epoch-kept
	for _, run := range runs[max(0, len(runs)-manyRuns):] {
		m.Runs = append(m.Runs, run.String())
	}
	if saved != nil {
		if m.Saved, err = json.Marshal(saved); err != nil {
			return err
		}
	}
	return dir.Write(m)
}

// digestOf is the digest of the configuration by which the node votes: the one that it was given,
// until there is a record.
func digestOf(cfg *NodeConfig, state *epoch.State) string {
	if state.Record != nil {
		return state.Record.Digest()
	}
	return cfg.proto().Digest()
}

// leaseOf is the longest lease that may stand under that configuration.
func leaseOf(cfg *NodeConfig, state *epoch.State) time.Duration {
	if state.Record != nil {
		return state.Record.Longest()
	}
	return cfg.MaxLease
}

// takeState returns what the mark m says of the node's part in the configuration. unread is why
// there is no mark, although there is a file. Such a directory is a new node's (E1), and so is one
// that belonged to another node, unless that node has promised or learned something. Then the
// directory is not given to this node: what it remembers would be lost.
func takeState(m statedir.Mark, cfg *NodeConfig, unread error) (epoch.State, error) {
	other := m.Cluster != "" && m.Cluster != cfg.Cluster || m.Name != cfg.Name
	if unread != nil || m.ID == "" || other && len(m.Epoch) == 0 {
		return epoch.State{ID: uuid.New()}, nil
	}
	id, err := uuid.Parse(m.ID)
	var state epoch.State
	if err == nil {
		state, err = epoch.DecodeState(id, m.Epoch)
	}
	switch {
	case err != nil:
		return epoch.State{}, fmt.Errorf("state directory %q cannot be understood, and the node must not start without what it has promised: %w", cfg.StateDir, err)
	case other && len(m.Epoch) > 0: //plant:epoch-other-directory
		return epoch.State{}, fmt.Errorf("state directory %q is that of node %q of cluster %q, which takes part in changes of its list of nodes: give node %q of cluster %q an empty directory", cfg.StateDir, m.Name, m.Cluster, cfg.Name, cfg.Cluster)
	}
	if m.Copied { // it may be used twice: the copy is another node, and has promised nothing (E2)
		return epoch.State{ID: uuid.New(), Record: state.Record, Links: state.Links}, nil
	}
	return state, nil
}

// memory is what a node knows about its earlier incarnations.
type memory struct {
	saved   *voter.Saved  // nil if the node may have forgotten votes
	longest time.Duration // longest lease that forgotten votes can have had
	past    []uuid.UUID   // its earlier incarnations
	state   epoch.State   // what it promised and learned about the configuration
	fresh   bool          // the directory was empty
}

// keep writes what the node promised and learned about the configuration, while it runs. It returns
// nil only if that is on disk for good. Otherwise the node must stop (E10).
func (n *Node) keep(state *epoch.State) error {
	n.state = *state
	if n.dir == nil { // it decides nothing, and has to learn records anew after each start
		return nil
	}
	return writeMark(n.dir, &n.cfg, n.runs, max(n.longest, leaseOf(&n.cfg, state)), state, nil)
}

// takeMark reads the node's mark, and makes it unclean on disk before the node does anything else:
// a clean mark serves once (N8).
func takeMark(dir *statedir.Dir, cfg *NodeConfig, now wire.Now, run uuid.UUID) (memory, error) {
	m, found, here, err := dir.Read()
	if errors.Is(err, statedir.ErrNewer) {
		return memory{}, err
	}
	mem := memory{longest: max(cfg.MaxLease, cfg.PreviousMaxLease, sat.Mul(time.Duration(m.MaxTTL), time.Millisecond))}
	state, errState := takeState(m, cfg, err)
	if errState != nil {
		return memory{}, errState
	}
	mem.state, mem.fresh = state, !found
	lease := leaseOf(cfg, &state)
	mem.longest = max(mem.longest, lease)
	why := ""
	switch {
	case err != nil:
		why = err.Error()
	case !found:
		why = "the state directory is empty: see Bootstrap for a new cluster"
	case m.Cluster != "" && m.Cluster != cfg.Cluster:
		why = fmt.Sprintf("the state directory is that of a node of cluster %q", m.Cluster)
	case m.Name != cfg.Name:
		why = fmt.Sprintf("the state directory is that of node %q", m.Name)
	case !m.Clean:
		why = "it was not stopped cleanly, or was stopped before it voted"
	case m.Digest != digestOf(cfg, &state) || m.MaxTTL != lease.Milliseconds():
		why = "its configuration is not the one that it stopped or was bootstrapped with"
	case !here:
		why = "the state directory was copied, moved or restored, or the machine was started again, since the node stopped"
	default:
		saved := new(voter.Saved)
		if err := json.Unmarshal(m.Saved, saved); err != nil {
			why = err.Error()
			break
		}
		if stopped := sat.Micros(now.Wall - m.Written); saved.Wall == 0 && (stopped < 0 || stopped > bootstrapped) {
			why = fmt.Sprintf("it was bootstrapped %v ago, which counts for %v", stopped.Round(time.Second), bootstrapped)
			break
		}
		if saved.Stale(now, lease) {
			why = fmt.Sprintf("it was not heard for longer than the longest lease, %v, and another node may have used its name", lease)
			break
		}
		mem.saved = saved
	}
	// If the directory is not a copy, the processes that used it have ended, because the directory
	// is locked.
	if here && m.Cluster == cfg.Cluster && m.Name == cfg.Name {
		for _, s := range m.Runs {
			if id, err := uuid.Parse(s); err == nil {
				mem.past = append(mem.past, id)
			}
		}
	}
	if err := writeMark(dir, cfg, append(mem.past[:len(mem.past):len(mem.past)], run), mem.longest, &mem.state, nil); err != nil {
		return memory{}, err
	}
	logRecord(cfg, &mem.state)
	switch {
	case mem.fresh && len(cfg.Nodes) == 0:
		cfg.Log.Logger().Info("this node waits until a change of the list of nodes adds it")
	case mem.saved == nil:
		cfg.Log.Logger().Warn("this node may have forgotten votes and gives none until they have expired", "why", why, "wait", mem.longest)
	}
	return mem, nil
}

// logRecord tells by which list a node goes that has a record, since the one that it was started with
// does not matter then.
func logRecord(cfg *NodeConfig, state *epoch.State) {
	r := state.Record
	if r == nil {
		return
	}
	names := func(list []wire.Member) (out []string) {
		for _, m := range list {
			out = append(out, m.Name)
		}
		return out
	}
	args := []any{"epoch", r.Epoch, "nodes", names(r.Nodes)}
	if r.Joint() {
		args = append(args, "changing_to", names(r.Next))
	}
	text := "this node goes by the list of nodes that its cluster has decided on"
	if own := cfg.proto(); len(own.Nodes) > 0 && (!slices.Equal(own.Nodes, names(r.Nodes)) || own.MaxTTL != r.MaxTTL || own.Skew != r.Skew) {
		text += ", and not by what it was started with"
		args = append(args, "started_with", own.Nodes, "max_lease", own.MaxTTL, "max_skew", own.Skew)
	}
	cfg.Log.Logger().Info(text, args...)
	named := func(m wire.Member) bool { return m.Name == cfg.Name }
	if slices.ContainsFunc(slices.Concat(r.Nodes, r.Next), named) && epoch.In(r, cfg.Name, state.ID) == 0 {
		cfg.Log.Logger().Warn(fmt.Sprintf("the list of nodes has a node named %s with another state directory: this one was copied or restored, and the node gives no votes; start the node in its own directory, or change %s out of the list and then in again", cfg.Name, cfg.Name))
	}
}

// newFloorKey returns a key that is secret, and not merely unique: see FloorKey in voter.Config.
func newFloorKey() (key [16]byte) {
	_, _ = rand.Read(key[:]) // it never fails
	return key
}
