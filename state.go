package qlock

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/qlock/qlock/internal/node"
	"github.com/qlock/qlock/internal/statedir"
)

// Bootstrap writes a clean mark into the empty state directory of one node of a
// new cluster, so that the node votes at its first start. Without it a node has
// to assume that it forgot votes, and gives none for cfg.MaxLease and a little
// more (rule N8).
//
// It is an act of its own, to be done for each node once in a cluster's life, and
// never by a script that starts nodes: in front of a start whose state was lost
// it would be the permission to forget votes. It fails if the directory already
// holds a node's state.
func Bootstrap(cfg NodeConfig) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	if cfg.StateDir == "" {
		return errors.New("qlock: Bootstrap: NodeConfig.StateDir is empty: there is nowhere to write the mark")
	}
	dir, err := statedir.Open(cfg.StateDir)
	if err != nil {
		return fmt.Errorf("qlock: Bootstrap: %w", err)
	}
	err = bootstrap(dir, cfg)
	return errors.Join(err, dir.Close())
}

func bootstrap(dir *statedir.Dir, cfg NodeConfig) error {
	if _, found, _ := dir.Read(); found {
		return fmt.Errorf("qlock: Bootstrap: %s already holds the state of a node; a node that has run must not be bootstrapped again", cfg.StateDir)
	}
	return writeMark(dir, cfg, true, cfg.MaxLease, &node.Saved{})
}

func writeMark(dir *statedir.Dir, cfg NodeConfig, clean bool, longest time.Duration, saved *node.Saved) error {
	m := statedir.Mark{Clean: clean, Name: cfg.Name, Digest: cfg.proto().Digest(), MaxTTL: longest.Milliseconds()}
	if saved != nil {
		var err error
		if m.Saved, err = json.Marshal(saved); err != nil {
			return err
		}
	}
	return dir.Write(m)
}

// takeMark reads what the node left and makes the mark unclean, on disk, before
// anything else happens: a clean mark serves once (N8). It returns nil if the
// node may have forgotten votes, with the longest lease that they can have had
// and the reason.
func takeMark(dir *statedir.Dir, cfg NodeConfig, log *slog.Logger) (*node.Saved, time.Duration, error) {
	m, found, err := dir.Read()
	longest := max(cfg.MaxLease, time.Duration(m.MaxTTL)*time.Millisecond)
	var saved *node.Saved
	why := ""
	switch {
	case err != nil:
		why = err.Error()
	case !found:
		why = "the state directory is empty: see Bootstrap for a new cluster"
	case !m.Clean:
		why = "it was not stopped cleanly"
	case m.Name != cfg.Name || m.Digest != cfg.proto().Digest() || m.MaxTTL != cfg.MaxLease.Milliseconds():
		why = "its configuration is not the one that it stopped with"
	default:
		saved = new(node.Saved)
		if err := json.Unmarshal(m.Saved, saved); err != nil {
			saved, why = nil, err.Error()
		}
	}
	if err := writeMark(dir, cfg, false, longest, nil); err != nil {
		return nil, 0, err
	}
	if saved == nil {
		log.Warn("this node may have forgotten votes and gives none until they have run out", "why", why, "wait", longest)
	}
	return saved, longest, nil
}

// newFloorKey is secret, not only unlike all others: see node.Config.
func newFloorKey() (key [16]byte) {
	_, _ = rand.Read(key[:]) // it never fails
	return key
}
