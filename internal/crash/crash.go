// Package crash stops nodes and servers as the end of their process would. Only tests
// and demonstrations need that, so it is not in the API of packages qlock and embedded:
// package qlocktest has it, and embedded.Cluster.
package crash

// Node crashes a *qlock.Node: it saves nothing and says no farewell. Package qlock sets
// it, as it cannot be imported here.
var Node func(node any) error

// Server crashes an *embedded.Server with its node. Package embedded sets it.
var Server func(server any) error
