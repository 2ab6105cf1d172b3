package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/gateway"
	"github.com/qlock/qlock/qlocktest"
)

var (
	gatewayRounds = flag.Int("gateway.rounds", 0, "measure locks over HTTP in so many rounds, such as 5; 0: not at all")
	gatewayFor    = flag.Duration("gateway.for", time.Second, "how long each figure of a round takes")
	gatewayPolls  = flag.Int("gateway.polls", 0, "measure the memory of so many long polls, such as 10000; 0: not at all")
)

// gatewayServers is in the environment of a child process that is to serve a gateway on these
// servers.
const gatewayServers = "QLOCK_BENCH_GATEWAY"

// TestGatewayChild is the other process of the measurements: a gateway, and a page with its
// use of memory.
func TestGatewayChild(t *testing.T) {
	servers := os.Getenv(gatewayServers)
	if servers == "" {
		t.Skip("it is a part of other tests")
	}
	nc, err := nats.Connect(servers)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	g, err := gateway.New(t.Context(), gateway.Config{Conn: nc, Client: "gateway", Drain: time.Millisecond, Limits: gateway.Limits{Leases: 1 << 20, WaitingPerLock: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = g.Close() }()
	var addresses []string
	for _, h := range []http.Handler{g, http.HandlerFunc(memory)} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := gateway.NewServer(g)
		s.Handler = h
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = s.Serve(l)
		}()
		defer func() {
			_ = s.Close()
			<-done
		}()
		addresses = append(addresses, l.Addr().String())
	}
	fmt.Printf("serves %s\n", strings.Join(addresses, " "))
	_, _ = io.Copy(io.Discard, os.Stdin) // until the parent ends
}

// memUse is what a process uses.
type memUse struct {
	Heap, Stacks, System, Resident uint64
	Goroutines                     int
}

func memory(w http.ResponseWriter, _ *http.Request) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	u := memUse{Heap: m.HeapAlloc, Stacks: m.StackInuse, System: m.Sys - m.HeapReleased, Goroutines: runtime.NumGoroutine()}
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		var size, resident uint64
		if _, err := fmt.Sscan(string(b), &size, &resident); err == nil {
			u.Resident = resident * uint64(os.Getpagesize())
		}
	}
	_ = json.NewEncoder(w).Encode(u)
}

// gatewayProcess starts the child, and returns the addresses of the gateway and of its page.
func gatewayProcess(t *testing.T, servers string) (address, page string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestGatewayChild$")
	cmd.Env = append(os.Environ(), gatewayServers+"="+servers)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "serves "); ok {
			address, page, _ = strings.Cut(rest, " ")
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return address, page
		}
	}
	t.Fatal("the gateway does not start")
	return "", ""
}

// caller is a connection of a caller that costs little: what is measured is the gateway.
type caller struct {
	c   net.Conn
	in  *bufio.Reader
	buf []byte
}

func dialGateway(address string) (*caller, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	return &caller{c: c, in: bufio.NewReader(c)}, nil
}

func (c *caller) send(method, path, header, body string) error {
	c.buf = fmt.Appendf(c.buf[:0], "%s %s HTTP/1.1\r\nHost: localhost\r\n%s", method, path, header)
	if body != "" {
		c.buf = fmt.Appendf(c.buf, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	c.buf = append(append(c.buf, "\r\n"...), body...)
	_, err := c.c.Write(c.buf)
	return err
}

// answer reads an answer: its status and where its lease is.
func (c *caller) answer() (status int, location string, err error) {
	size := 0
	for first := true; ; first = false {
		line, err := c.in.ReadString('\n')
		if err != nil {
			return 0, "", err
		}
		line = strings.TrimRight(line, "\r\n")
		switch key, value, _ := strings.Cut(line, ": "); {
		case first:
			if _, err := fmt.Sscanf(line, "HTTP/1.1 %d", &status); err != nil {
				return 0, "", err
			}
		case line == "":
			_, err := c.in.Discard(size)
			return status, location, err
		case key == "Content-Length":
			if _, err := fmt.Sscan(value, &size); err != nil {
				return 0, "", err
			}
		case key == "Location":
			location = value
		}
	}
}

func (c *caller) cycle(name string) error {
	if err := c.send("POST", "/v1/locks/"+name, "Prefer: wait=30\r\n", ""); err != nil {
		return err
	}
	status, location, err := c.answer()
	if err != nil || status != 201 {
		return fmt.Errorf("acquire: %d %v", status, err)
	}
	if err := c.send("DELETE", location, "", ""); err != nil {
		return err
	}
	if status, _, err = c.answer(); err != nil || status != 204 {
		return fmt.Errorf("release: %d %v", status, err)
	}
	return nil
}

// many lets n workers work for a time, and returns how many cycles they made a second.
func many(t *testing.T, n int, d time.Duration, work func(worker int) error) float64 {
	var all sync.WaitGroup
	var done atomic.Int64
	began := time.Now()
	for w := range n {
		all.Go(func() {
			for time.Since(began) < d {
				if err := work(w); err != nil {
					t.Error(err)
					return
				}
				done.Add(1)
			}
		})
	}
	all.Wait()
	return float64(done.Load()) / time.Since(began).Seconds()
}

// TestGatewayFigures compares locks over HTTP with those of the library on the same three
// nodes. The gateway is a process of its own; nodes, callers and the Locker are in this one.
//
//	go test . -run TestGatewayFigures -gateway.rounds 5 -v -timeout 20m
func TestGatewayFigures(t *testing.T) {
	if *gatewayRounds == 0 {
		t.Skip("-gateway.rounds 5 measures")
	}
	c := qlocktest.StartCluster(t, 3, qlocktest.WithLease(30*time.Second))
	url := c.Servers()[0].ClientURL()
	address, _ := gatewayProcess(t, url)
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	locker, err := qlock.New(t.Context(), nc, qlock.WithName("library"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = locker.Close() })
	var callers []*caller
	for range 400 {
		k, err := dialGateway(address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = k.c.Close() })
		if err := k.cycle("first"); err != nil { // the server closes connections that say nothing
			t.Fatal(err)
		}
		callers = append(callers, k)
	}
	library := func(name string) error {
		k, err := locker.Lock(context.Background(), name)
		if err != nil {
			return err
		}
		return k.Unlock(context.Background())
	}
	for _, c := range []struct {
		name    string
		workers int
		lock    func(worker int) string
	}{
		{"alone", 1, func(int) string { return "alone" }},
		{"spread", 64, func(w int) string { return fmt.Sprint("spread.", w) }},
		{"spread", 400, func(w int) string { return fmt.Sprint("spread.", w) }},
		{"one name", 64, func(int) string { return "one" }},
	} {
		var http, lib, ratio []float64
		for range *gatewayRounds {
			x := many(t, c.workers, *gatewayFor, func(w int) error { return callers[w].cycle(c.lock(w)) })
			y := many(t, c.workers, *gatewayFor, func(w int) error { return library(c.lock(w)) })
			http, lib, ratio = append(http, x), append(lib, y), append(ratio, x/y)
		}
		t.Logf("%s, %d callers: %.0f locks/s over HTTP, %.0f with the library, ratio %.2f", c.name, c.workers, middle(http), middle(lib), middle(ratio))
	}
}

// TestLongPolls measures the memory of a gateway in which many callers wait for a lock, each
// on a connection of its own.
//
//	go test . -run TestLongPolls -gateway.polls 10000 -v
func TestLongPolls(t *testing.T) {
	if *gatewayPolls == 0 {
		t.Skip("-gateway.polls 10000 measures")
	}
	c := qlocktest.StartCluster(t, 3, qlocktest.WithLease(30*time.Second))
	address, page := gatewayProcess(t, c.Servers()[0].ClientURL())
	ask := func() (u memUse) {
		t.Helper()
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		a, err := client.Get("http://" + page)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = a.Body.Close() }()
		if err := json.NewDecoder(a.Body).Decode(&u); err != nil {
			t.Fatal(err)
		}
		return u
	}
	first, err := dialGateway(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = first.c.Close() })
	if err := first.send("POST", "/v1/locks/x", "", `{"lease":"28s"}`); err != nil {
		t.Fatal(err)
	}
	status, location, err := first.answer()
	if err != nil || status != 201 {
		t.Fatal(status, err)
	}
	before := ask()
	began := time.Now()
	waits := make([]*caller, *gatewayPolls)
	for i := range waits {
		if waits[i], err = dialGateway(address); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = waits[i].c.Close() })
		if err := waits[i].send("POST", "/v1/locks/x", "Prefer: wait=55\r\n", `{"wait":"10m"}`); err != nil {
			t.Fatal(err)
		}
	}
	var after memUse
	for after = ask(); after.Goroutines < before.Goroutines+*gatewayPolls; after = ask() {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("%d goroutines, %d polls", after.Goroutines, *gatewayPolls)
		}
		time.Sleep(100 * time.Millisecond)
	}
	made := time.Since(began)
	messages := func() (n int64) {
		for _, s := range c.Servers() {
			v, err := s.NATS().Varz(nil)
			if err != nil {
				t.Fatal(err)
			}
			n += v.InMsgs
		}
		return n
	}
	in := messages()
	time.Sleep(10 * time.Second)
	in = messages() - in
	each := func(a, b uint64) float64 { return (float64(a) - float64(b)) / 1024 / float64(*gatewayPolls) }
	t.Logf("%d long polls, made in %v: %.1f KiB of heap, %.1f of stacks, %.1f of resident memory and %.1f goroutines each; %d MiB resident, %d messages in 10 s",
		*gatewayPolls, made.Round(time.Millisecond), each(after.Heap, before.Heap), each(after.Stacks, before.Stacks), each(after.Resident, before.Resident),
		float64(after.Goroutines-before.Goroutines)/float64(*gatewayPolls), after.Resident>>20, in)
	// The one that is first gets it as soon as it is free.
	if err := first.send("DELETE", location, "", ""); err != nil {
		t.Fatal(err)
	}
	if status, _, err := first.answer(); err != nil || status != 204 {
		t.Fatal(status, err)
	}
	if status, _, err := waits[0].answer(); err != nil || status != 201 {
		t.Errorf("%d %v", status, err)
	}
}
