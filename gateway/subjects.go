package gateway

import (
	"strings"

	"github.com/qlock/qlock"
)

// The families of subjects that docs/wire.md reserves for gateways.
const (
	familyAPI = "api"
	familyGW  = "gw"
)

// family returns what the subjects of a family begin with, the last dot included. The
// cluster's name was valid when its Locker was made.
func (g *Gateway) family(name string) string {
	all, err := qlock.ClusterSubject(g.cfg.Cluster)
	if err != nil {
		panic(err)
	}
	return strings.TrimSuffix(all, ">") + name + "."
}

// isInbox reports whether an answer may be sent to a subject: it is there, and is neither
// one of qlock nor of NATS itself.
func isInbox(reply string) bool {
	clusters, err := qlock.ClusterSubject("*")
	if err != nil {
		panic(err)
	}
	root, _, _ := strings.Cut(clusters, "*")
	return reply != "" && !strings.HasPrefix(reply, root) && !strings.HasPrefix(reply, "$")
}
