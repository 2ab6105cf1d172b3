package qlock

import (
	"errors"

	"github.com/qlock/qlock/internal/driver"
)

// Bootstrap writes a clean mark into the empty state directory of one node of a
// new cluster, so that the node votes at its first start. Without it a node has
// to assume that it forgot votes, and gives none for cfg.MaxLease and a little
// more (rule N8).
//
// Start the node within one hour, on this machine and with this directory: the
// mark is void after that, and in a copy of the directory. A node whose mark is
// void starts all the same, and waits.
//
// It is an act of its own, to be done for each node once in a cluster's life, in the one
// directory that the node then uses: a second one would let it forget votes, and
// never by a script that starts nodes: in front of a start whose state was lost
// it would be the permission to forget votes. It fails if the directory already
// holds a node's state.
func Bootstrap(cfg NodeConfig) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	if cfg.StateDir == "" {
		return errors.New("qlock: Bootstrap: NodeConfig.StateDir is empty: Bootstrap needs a directory to write to")
	}
	return driver.Bootstrap(cfg.driver())
}
