// Observe prints the requests and events of locks in a readable form: what clients ask
// the nodes, and which locks are acquired, released and lost.
//
//	go run ./examples/observe -server nats://localhost:4222
//
// shows the traffic of a NATS system (NATS_URL and -creds work too) until Ctrl-C. With
// -events it shows only the events, with -cluster one of several clusters. "nats sub
// 'lock.>'" shows the raw messages. Resource names are printed as in subjects, with
// special characters encoded.
//
//	go run ./examples/observe
//
// without a server starts one with some traffic (demo.go), and exits. It prints:
//
//	Neither -server nor NATS_URL is given: NATS with three nodes starts in this process,
//	with some traffic. Requests to the nodes are in lower case, EVENTS in capitals.
//
//	TIME          CLIENT      WHAT      RESOURCE      DETAILS
//	08:08:16.319  orders      info                    who are the nodes?
//	08:08:16.323  billing     info                    who are the nodes?
//	08:08:16.324  mail        info                    who are the nodes?
//	08:08:16.324  orders      acquire   orders.42     exclusive, lease 2s
//	08:08:16.324  billing     acquire   orders.42     exclusive, lease 2s
//	08:08:16.324  orders      ACQUIRED  orders.42     exclusive, token 1795248496324432, 2 of 3 votes, waited 190µs
//	08:08:16.425  mail        acquire   orders.42     exclusive, lease 2s
//	08:08:16.425  mail        release   orders.42
//	08:08:16.428  mail        refresh                 has 0 claims, held or waiting
//	08:08:16.527  orders      release   orders.42
//	08:08:16.527  orders      RELEASED  orders.42     held 202ms, token 1795248496324432
//	08:08:16.527  billing     ACQUIRED  orders.42     exclusive, token 1795248496526556, 2 of 3 votes, waited 203ms
//	08:08:16.628  billing     release   orders.42
//	08:08:16.629  billing     RELEASED  orders.42     held 101ms, token 1795248496526556
//	08:08:16.629  orders      acquire   price%20list  shared, lease 2s
//	08:08:16.629  mail        acquire   price%20list  shared, lease 2s
//	08:08:16.629  orders      ACQUIRED  price%20list  shared, token 1795248496628264, 2 of 3 votes, waited 840µs
//	08:08:16.629  mail        ACQUIRED  price%20list  shared, token 1795248496629127, 2 of 3 votes, waited 420µs
//	08:08:16.996  orders      refresh                 has 1 claims, held or waiting
//	08:08:16.996  billing     refresh                 has 0 claims, held or waiting
//	08:08:17.092  mail        refresh                 has 1 claims, held or waiting
//	08:08:17.433  orders      release   price%20list
//	08:08:17.433  orders      RELEASED  price%20list  held 804ms, token 1795248496628264
//	08:08:17.433  mail        release   price%20list
//	08:08:17.433  mail        RELEASED  price%20list  held 804ms, token 1795248496629127
//	08:08:17.433  billing     acquire   orders.42     exclusive, lease 2s
//	08:08:17.434  billing     ACQUIRED  orders.42     exclusive, token 1795248497433206, 2 of 3 votes, waited 870µs
//	              n2 and n3 die now: a lock needs two votes, so this lock will be lost
//	08:08:17.663  orders      refresh                 has 0 claims, held or waiting
//	08:08:17.760  mail        refresh                 has 0 claims, held or waiting
//	08:08:18.100  billing     refresh                 has 1 claims, held or waiting
//	08:08:18.394  billing     refresh                 has 1 claims, held or waiting
//	08:08:18.562  billing     refresh                 has 1 claims, held or waiting
//	08:08:18.730  billing     refresh                 has 1 claims, held or waiting
//	08:08:18.899  billing     refresh                 has 1 claims, held or waiting
//	08:08:19.065  billing     refresh                 has 1 claims, held or waiting
//	08:08:19.233  billing     refresh                 has 1 claims, held or waiting
//	08:08:19.394  billing     release   orders.42
//	08:08:19.394  billing     LOST      orders.42     held 1.96s, token 1795248497433206
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

func main() {
	server := flag.String("server", os.Getenv("NATS_URL"), "NATS servers to watch; empty: start one, with some traffic")
	creds := flag.String("creds", "", "credentials file for -server")
	cluster := flag.String("cluster", "*", "qlock cluster to watch; *: all")
	events := flag.Bool("events", false, "show only events, no requests")
	flag.Parse()

	subject, err := qlock.ClusterSubject(*cluster)
	if *events {
		subject, err = qlock.EventSubject(*cluster, "")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "observe:", err)
		os.Exit(2)
	}
	var opts []nats.Option
	if *creds != "" {
		opts = append(opts, nats.UserCredentials(*creds))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *server == "" {
		err = demonstrate(ctx, subject)
	} else {
		err = observe(ctx, *server, subject, opts...)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "observe:", err)
		os.Exit(1)
	}
}

// observe prints until ctx ends.
func observe(ctx context.Context, server, subject string, opts ...nats.Option) error {
	closed := make(chan struct{})
	nc, err := nats.Connect(server, append(opts, nats.Name("observe"), nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(),
		nats.ClosedHandler(func(*nats.Conn) { close(closed) }))...)
	if err != nil {
		return fmt.Errorf("connect to NATS: %w", err)
	}
	defer nc.Close()
	fmt.Printf("%s on %s: Ctrl-C ends it.\n\n", subject, nc.ConnectedAddr())
	if _, err := watch(nc, subject); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case <-closed: // permanently, by the client library
		return fmt.Errorf("the connection is closed: %w", cmp.Or(nc.LastError(), nats.ErrConnectionClosed))
	}
}

// printer counts what it printed, by the verb or the kind of event.
type printer struct {
	mu   sync.Mutex
	seen map[string]int
}

func watch(nc *nats.Conn, subject string) (*printer, error) {
	p := &printer{seen: map[string]int{}}
	fmt.Printf("%-12s  %-10s  %-8s  %-12s  %s\n", "TIME", "CLIENT", "WHAT", "RESOURCE", "DETAILS")
	_, err := nc.Subscribe(subject, func(m *nats.Msg) { p.print(m.Subject, m.Data) })
	if err != nil {
		return nil, err
	}
	return p, nc.FlushTimeout(5 * time.Second) // the subscription is active now
}

func (p *printer) count(what string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[what]
}

// print writes one message. Events are in capitals.
func (p *printer) print(subject string, body []byte) {
	s, err := qlock.ParseSubject(subject)
	switch {
	case err != nil: // not a subject of qlock
	case s.Verb == "":
		p.printBatch(s, body)
	default:
		p.printOne(s, body)
	}
}

func (p *printer) printOne(s qlock.Subject, body []byte) {
	what, client := s.Verb, s.Client
	details, err := "", error(nil)
	if s.Family == "event" {
		details, err = eventDetails(what, body)
	} else {
		details, err = requestDetails(what, body)
	}
	if err != nil {
		details = fmt.Sprintf("%q (%v)", body, err)
	}
	p.mu.Lock()
	p.seen[what]++
	p.mu.Unlock()
	if s.Family == "event" {
		what = strings.ToUpper(what)
	}
	if s.Cluster != qlock.DefaultCluster {
		client = s.Cluster + "/" + client
	}
	line := fmt.Sprintf("%s  %-10s  %-8s  %-12s  %s", time.Now().Format("15:04:05.000"), client, what, s.Encoded, details)
	fmt.Println(strings.TrimRight(line, " "))
}

// printBatch writes several requests that came in one message. The body is a list, in which
// each request has its verb and name; the name is encoded as in subjects.
func (p *printer) printBatch(s qlock.Subject, body []byte) {
	var list []json.RawMessage
	_ = json.Unmarshal(body, &list) // a body that is not a list is not shown
	for _, one := range list {
		var r struct{ Verb, Name string }
		if json.Unmarshal(one, &r) == nil && r.Verb != "" {
			s.Verb, s.Encoded = r.Verb, r.Name
			p.printOne(s, one)
		}
	}
}

func eventDetails(kind string, body []byte) (string, error) {
	var e qlock.Event
	if err := json.Unmarshal(body, &e); err != nil {
		return "", err
	}
	if kind == "acquired" {
		return fmt.Sprintf("%s, token %d, %d of %d votes, waited %v", e.Mode, e.Token, e.Votes, e.Nodes, duration(e.Waited)), nil
	}
	return fmt.Sprintf("held %v, token %d", duration(e.Held), e.Token), nil
}

// requestDetails describes what a request asks of the nodes. Their answers go to the
// client's inbox and are not visible here.
func requestDetails(verb string, body []byte) (string, error) {
	var r struct {
		Mode string      `json:"mode"`
		At   int64       `json:"at"`
		TTL  float64     `json:"ttl_ms"`
		Want uint64      `json:"want"`
		Held bool        `json:"held"`
		Node string      `json:"node"`
		Live [][2]uint64 `json:"live"`
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return "", err
	}
	switch verb {
	case "acquire":
		s := fmt.Sprintf("%s, lease %v", r.Mode, duration(r.TTL))
		if age := time.Since(time.UnixMicro(r.At)); age > 50*time.Millisecond && !r.Held {
			s += fmt.Sprintf(", repeated after %v", age.Round(time.Millisecond))
		}
		if r.Held {
			s += ", held"
		}
		if r.Want > 0 {
			s += fmt.Sprintf(", wants token %d", r.Want)
		}
		if r.Node != "" {
			s += ", from " + r.Node
		}
		return s, nil
	case "yield":
		return "returns the vote of " + r.Node + " to an older request", nil
	case "refresh":
		n := uint64(0)
		for _, run := range r.Live {
			n += run[1] - run[0] + 1
		}
		return fmt.Sprintf("has %d claims, held or waiting", n), nil
	case "info":
		if r.Node != "" {
			return "is there another " + r.Node + "?", nil
		}
		return "who are the nodes?", nil
	}
	return "", nil
}

// duration rounds a duration for a person to read.
func duration(ms float64) time.Duration {
	d := time.Duration(ms * float64(time.Millisecond))
	if d < 10*time.Millisecond {
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(time.Millisecond)
}
