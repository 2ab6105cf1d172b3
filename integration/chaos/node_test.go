//go:build unix

package chaos

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/integration/internal/child"
)

// What the supervisor may tell a process, a line each on its standard input.
const (
	wordEnd    = "end"    // end cleanly
	wordClaims = "claims" // how many claims has the node?
)

var errOrphan = errors.New("standard input ended without the word to end: the supervisor is dead")

// run is a node's process: a nats-server with a node in it, on ports that it finds
// free. The proxies are told where it is.
func (r *nodeRole) run() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out := child.NewJournal(os.Stdout)
	s, err := embedded.Start(ctx, embedded.Config{
		Node: r.Config, RoutePort: -1, Routes: r.Routes,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Options: func(o *server.Options) {
			// Gossip must not lead around the proxies: what it tells is a dead end.
			o.Cluster.Advertise = "127.0.0.1:1"
			o.ClientAdvertise = "127.0.0.1:1"
		},
	})
	if err != nil {
		return err
	}
	out.Write(line{Kind: serving, At: now(), Client: s.ClientURL(), Route: s.RouteURL()})
	ready, stop := context.WithCancel(context.Background())
	var waited sync.WaitGroup
	if r.Pulse {
		// A node that waits for its disk does not answer. The server forgets its node when it closes,
		// while the pulse may still beat.
		node := s.Node()
		waited.Go(func() { pulse(ready, out, func() { node.Stats() }) })
	}
	waited.Go(func() {
		if s.Node().WaitReady(ready) == nil {
			out.Write(line{Kind: voting, At: now()})
		}
	})
	err = errOrphan
	words := bufio.NewScanner(os.Stdin)
	for errors.Is(err, errOrphan) && words.Scan() {
		switch words.Text() {
		case wordClaims:
			out.Write(line{Kind: claims, At: now(), Claims: s.Node().Stats().Claims})
		case wordEnd:
			err = nil
		}
	}
	stop()
	waited.Wait()
	if err != nil {
		return err
	}
	return s.Close()
}
