//go:build unix

package recipes

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock/qlocktest"
)

// serverOptions are those of a nats-server.
type serverOptions = server.Options

// servers are nats-servers with JetStream, apart from the lock cluster, so that each can
// fail by itself. They keep their ports and directories.
type servers struct {
	t    *testing.T
	opts []*server.Options
	all  []*server.Server
}

func startServers(t *testing.T, n int, change ...func(*serverOptions)) *servers {
	t.Helper()
	s := &servers{t: t, all: make([]*server.Server, n)}
	var routes []string
	for range n {
		s.opts = append(s.opts, &server.Options{Port: qlocktest.FreePort(t), Cluster: server.ClusterOpts{Port: qlocktest.FreePort(t)}})
	}
	for i, o := range s.opts {
		o.ServerName, o.Host, o.NoLog, o.NoSigs = fmt.Sprint("js", i+1), "127.0.0.1", true, true
		o.JetStream, o.StoreDir = true, t.TempDir()
		o.JetStreamMaxMemory, o.JetStreamMaxStore = 256<<20, 256<<20
		for _, f := range change {
			f(o)
		}
		if n == 1 {
			o.Cluster = server.ClusterOpts{}
			continue
		}
		o.Cluster.Name, o.Cluster.Host, o.Cluster.PoolSize = "js", "127.0.0.1", 1
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", o.Cluster.Port))
	}
	t.Cleanup(func() {
		for i := range s.all {
			s.stop(i)
		}
	})
	for i, o := range s.opts {
		o.Routes = server.RoutesFromStr(strings.Join(routes, ","))
		s.start(i)
	}
	if n > 1 {
		s.await("the servers elect a leader", func() bool {
			for _, srv := range s.all {
				if srv.JetStreamIsLeader() && len(srv.JetStreamClusterPeers()) == n {
					return true
				}
			}
			return false
		})
	}
	return s
}

func (s *servers) start(i int) {
	s.t.Helper()
	srv, err := server.NewServer(s.opts[i].Clone())
	if err != nil {
		s.t.Fatal(err)
	}
	srv.Start()
	s.all[i] = srv
	if !srv.ReadyForConnections(2 * time.Minute) {
		s.t.Fatal("a server does not start")
	}
}

// stop stops a server, if it runs.
func (s *servers) stop(i int) {
	if srv := s.all[i]; srv != nil {
		s.all[i] = nil
		srv.Shutdown()
		srv.WaitForShutdown()
	}
}

func (s *servers) urls() string {
	var urls []string
	for _, o := range s.opts {
		urls = append(urls, fmt.Sprintf("nats://127.0.0.1:%d", o.Port))
	}
	return strings.Join(urls, ",")
}

func (s *servers) connect(t *testing.T) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := nats.Connect(s.urls(), nats.Timeout(patience), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.ReconnectJitter(0, 0),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return nc, js
}

func (s *servers) await(what string, ok func() bool) {
	s.t.Helper()
	limit := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(limit) {
			s.t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
