package qlock

import (
	"errors"

	"github.com/qlock/qlock/internal/driver"
)

// Bootstrap records in the empty state directory of one node of a new cluster that the node has
// no votes to forget, so that the node votes at its first start. Without it, a node has to
// assume that it forgot votes, and gives none for cfg.MaxLease and 16 % more (rule N8).
//
// Start the node within one hour, on this machine and with this directory. The record is void
// after that, and in a copy of the directory. A node whose record is void starts as well, and
// waits.
//
// Call Bootstrap by hand, once for each node in the life of the cluster, for the one directory
// that the node then uses. Never call it in a script that starts nodes: if a node has lost its
// state, the script would let it vote although it forgot votes. The same happens if two
// directories are bootstrapped for one node. Bootstrap fails if the directory already holds the
// state of a node.
func Bootstrap(cfg NodeConfig) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	if cfg.Join {
		return errors.New("qlock: Bootstrap: NodeConfig.Join is set: a node that joins a cluster must not be bootstrapped")
	}
	if cfg.StateDir == "" {
		return errors.New("qlock: Bootstrap: NodeConfig.StateDir is empty: Bootstrap needs a directory to write to")
	}
	return driver.Bootstrap(cfg.driver())
}
