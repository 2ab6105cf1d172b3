package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
)

func (a *app) demo() *cobra.Command {
	var port, count int
	var traffic bool
	var door string
	cmd := &cobra.Command{
		Use:     "demo [flags]",
		Short:   "Run three nodes and some traffic in this process, to try the other commands",
		GroupID: groupNodes,
		Long: `Start three nodes with nats-servers in this process, on loopback, and show what
happens to the locks there: three simulated services acquire some now and then. To
try the other commands, use another terminal and the NATS_URL that is printed.
Ctrl-C ends the demo and leaves nothing behind.`,
		Example: `  qlock demo
  qlock demo --traffic=false --port 0`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := interrupted(cmd.Context())
			defer stop()
			// A second signal ends a program that is blocked by the reader of its output.
			context.AfterFunc(ctx, stop)
			a.supervise()
			return a.runDemo(ctx, port, traffic, count, door)
		},
	}
	fs := cmd.Flags()
	countFlag(fs, &port, "port", 4222, 0, 65535, "client port of the first node; 0: any free port")
	fs.BoolVar(&traffic, "traffic", true, "let three services acquire locks")
	fs.StringVar(&door, "gateway", "", "address of a gateway to run too, such as 127.0.0.1:8080: locks over HTTP")
	countFlag(fs, &count, "count", 0, 1, 1<<31-1, "exit after this many events; default: no limit")
	return cmd
}

func (a *app) runDemo(ctx context.Context, port int, traffic bool, count int, door string) error {
	d := &httpDoor{addr: door, drain: time.Second, connections: 1_000, perAddress: 1_000, nats: true, auth: "none"}
	if door != "" {
		if err := d.check(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cluster, err := embedded.StartCluster(ctx, 3, func(i int, c *embedded.Config) {
		if i == 0 && port != 0 {
			c.Port = port
		}
	})
	if err != nil {
		if strings.Contains(err.Error(), "address already in use") {
			return fmt.Errorf("port %d is in use, perhaps by another NATS server: choose a port with --port, or use --port 0 for any free port: %w", port, err)
		}
		return err
	}
	defer func() { _ = cluster.Close() }() // the process ends, and nothing else uses its state
	var urls []string
	for _, s := range cluster.Servers() {
		urls = append(urls, s.ClientURL())
	}
	fmt.Fprintf(a.out, "Three nodes vote: n1, n2 and n3. In another terminal:\n\n")
	fmt.Fprintf(a.out, "  %s\n", paint(a.out, "export NATS_URL="+strings.Join(urls, ","), text.Bold))
	fmt.Fprintf(a.out, "  qlock ls --watch\n  qlock run orders.42 -- sleep 5\n  qlock nodes\n\nCtrl-C ends it.\n\n")

	l, err := demoLink(urls, "demo")
	if err != nil {
		return err
	}
	defer l.Close()
	w := newWatcher(a.out, false, qlock.DefaultCluster)
	w.limit, w.enough = count, cancel
	if err := w.listen(l, ">", true); err != nil {
		return err
	}
	var services sync.WaitGroup
	if door != "" {
		g, err := demoLink(urls, "gateway")
		if err != nil {
			return errors.Join(err, w.close())
		}
		defer g.Close()
		failed := make(chan error, 1)
		started := make(chan string, 1)
		services.Go(func() {
			err := d.serve(ctx, g, slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: slog.LevelWarn})), func(url string) { started <- url })
			failed <- err
		})
		select {
		case url := <-started:
			fmt.Fprintf(a.out, "A gateway serves locks over HTTP; %s/ shows them, and %s/docs describes the API:\n\n  curl -X POST %s/v1/locks/nightly\n\n", url, url, url)
		case err := <-failed:
			cancel()
			return errors.Join(err, w.close())
		}
	}
	if traffic {
		for _, name := range []string{"orders", "billing", "mail"} {
			services.Go(func() {
				if err := demoService(ctx, urls, name); err != nil && ctx.Err() == nil {
					slog.New(slog.NewTextHandler(a.err, nil)).Error("a service of the demo ended", "service", name, "error", err)
				}
			})
		}
	}
	select {
	case <-ctx.Done():
	case <-l.closed:
		err = l.lostForEver()
	}
	cancel()
	services.Wait()
	return errors.Join(err, w.close())
}

func demoLink(urls []string, name string) (*link, error) {
	closed := make(chan struct{})
	nc, err := nats.Connect(strings.Join(urls, ","), nats.Name("qlock "+name), nats.MaxReconnects(-1),
		nats.PingInterval(2*time.Second), nats.MaxPingsOutstanding(1), nats.ReconnectWait(500*time.Millisecond),
		nats.ClosedHandler(func(*nats.Conn) { close(closed) }),
		// The default handler writes to standard error, and waits for it.
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		return nil, err
	}
	return &link{Conn: nc, cluster: qlock.DefaultCluster, client: name, timeout: 5 * time.Second, closed: closed}, nil
}

// demoService acquires a lock now and then, at a pace that a person can read.
func demoService(ctx context.Context, urls []string, name string) error {
	l, err := demoLink(urls, name)
	if err != nil {
		return err
	}
	defer l.Close()
	locker, err := l.locker(ctx, 0, slog.New(slog.DiscardHandler), qlock.WithNote("simulated by qlock demo"))
	if err != nil {
		return err
	}
	defer func() { _ = locker.Close() }()
	names := []string{"orders.41", "orders.42", "stock.screws"}
	for {
		ask := locker.Lock
		if rand.IntN(3) == 0 {
			ask = locker.RLock
		}
		lock, err := ask(ctx, names[rand.IntN(len(names))])
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, qlock.ErrClosed) {
			return err
		}
		if err == nil {
			pause(ctx, time.Duration(300+rand.IntN(1200))*time.Millisecond)
			_ = lock.Unlock(ctx) // the traffic shows a lost lock
		}
		pause(ctx, time.Duration(500+rand.IntN(2000))*time.Millisecond)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
