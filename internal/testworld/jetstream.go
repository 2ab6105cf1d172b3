package testworld

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// StartJetStream starts n servers with JetStream, a cluster if there are several, which
// listen on loopback. It returns their addresses when JetStream can be used, and stops them
// when the test ends. They are apart from all nodes, so that each can fail by itself.
func StartJetStream(t testing.TB, n int) (urls []string) {
	t.Helper()
	dirs := make([]string, n)
	for i := range dirs {
		dirs[i] = t.TempDir() // before the servers, so that they are stopped first
	}
	var routes []string
	var all []*server.Server
	for i := range n {
		o := &server.Options{
			ServerName: fmt.Sprint("s", i), Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true, JetStream: true, StoreDir: dirs[i],
		}
		if n > 1 {
			o.Cluster = server.ClusterOpts{Name: "c", Host: "127.0.0.1", Port: server.RANDOM_PORT, PoolSize: 1}
			o.Routes = server.RoutesFromStr(strings.Join(routes, ","))
		}
		s, err := server.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		if !s.ReadyForConnections(2 * time.Minute) {
			t.Fatal("a server does not start")
		}
		all = append(all, s)
		urls = append(urls, s.ClientURL())
		if n > 1 {
			routes = append(routes, "nats://"+s.ClusterAddr().String())
		}
	}
	leads := func(s *server.Server) bool { return s.JetStreamIsLeader() && len(s.JetStreamClusterPeers()) == n }
	for end := time.Now().Add(2 * time.Minute); n > 1 && !slices.ContainsFunc(all, leads); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the servers elect no leader of JetStream within two minutes")
		}
	}
	return urls
}
