package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock/store"
)

// runServer is a nats-server in a process of its own.
func runServer() {
	args := strings.Split(os.Getenv("STORE_TEST_ARGS"), " ") // name, port, route port, routes, directory
	port, _ := strconv.Atoi(args[1])
	routePort, _ := strconv.Atoi(args[2])
	s, err := server.NewServer(&server.Options{
		ServerName: args[0], Host: "127.0.0.1", Port: port, NoLog: true, NoSigs: true, JetStream: true, StoreDir: args[4],
		Cluster: server.ClusterOpts{Name: "c", Host: "127.0.0.1", Port: routePort, PoolSize: 1}, Routes: server.RoutesFromStr(args[3]),
	})
	if err != nil {
		panic(err)
	}
	s.Start()
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n') // ends with the test
	os.Exit(0)
}

// runWorker moves units between accounts under a lock whose token it is given, until it is
// killed. It prints a line for each transaction that was done.
func runWorker() {
	args := strings.Split(os.Getenv("STORE_TEST_ARGS"), " ") // URLs, token
	token, _ := strconv.ParseUint(args[1], 10, 64)
	nc, err := nats.Connect(args[0], nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.RetryOnFailedConnect(true))
	if err != nil {
		panic(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	var s *store.Store
	for {
		if s, err = store.Open(ctx, js, "b", store.WithAnswerTimeout(500*time.Millisecond)); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	go func() {
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n') // ends with the test
		os.Exit(0)
	}()
	v := s.With(lock{"l", token})
	for i := 0; ; i++ {
		id := fmt.Sprint(token, ".", i)
		_, err := v.Do(ctx, store.Once(id, 0), store.Add("a", -1), store.Add("b", 1), store.Put("last", []byte(id)))
		switch {
		case err == nil || errors.Is(err, store.ErrDuplicate):
			fmt.Println(id)
		case errors.Is(err, store.ErrFenced):
			fmt.Println("fenced")
			os.Exit(0)
		}
	}
}

type process struct {
	cmd   *exec.Cmd
	mu    sync.Mutex
	lines []string
}

func start(t *testing.T, role, args string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), "STORE_TEST_ROLE="+role, "STORE_TEST_ARGS="+args)
	p.cmd.Stderr = os.Stderr
	if _, err := p.cmd.StdinPipe(); err != nil { // closed when this process ends
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for in := bufio.NewScanner(out); in.Scan(); {
			p.mu.Lock()
			p.lines = append(p.lines, in.Text())
			p.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		p.kill()
		<-read
	})
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	_ = p.cmd.Wait()
}

func (p *process) said() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.lines...)
}

func ports(t *testing.T, n int) (out []int) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		out = append(out, l.Addr().(*net.TCPAddr).Port)
	}
	return out
}

// Holders and servers are killed and stopped in the middle of transactions. The whole stream is read
// afterwards: no transaction was done in part or twice, none that was answered is missing,
// and none was done under a fence that had moved.
func TestKilledProcesses(t *testing.T) {
	if !*long {
		t.Skip("takes half a minute: run it with -store.long")
	}
	p := ports(t, 6)
	var routes, urls []string
	for i := range 3 {
		urls = append(urls, fmt.Sprintf("nats://127.0.0.1:%d", p[i]))
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", p[3+i]))
	}
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	servers := make([]*process, 3)
	serve := func(i int) {
		servers[i] = start(t, "server", fmt.Sprintf("s%d %d %d %s %s", i, p[i], p[3+i], strings.Join(routes, ","), dirs[i]))
	}
	for i := range servers {
		serve(i)
	}
	all := strings.Join(urls, ",")
	var js jetstream.JetStream
	eventually(t, "a server listens", func() bool {
		nc, err := nats.Connect(all, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
		if err != nil {
			return false
		}
		t.Cleanup(nc.Close)
		js, err = jetstream.New(nc)
		return err == nil
	})
	s := create(t, js, jetstream.KeyValueConfig{Bucket: "b", Replicas: 3}, store.WithTimeout(30*time.Second))
	stream, err := js.Stream(t.Context(), "KV_b")
	if err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	cfg.MaxMsgsPerSubject = 1 << 30
	if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	// A holder works, and is killed, goes on, or is stopped while the next one takes the lock.
	var workers []*process
	for i := range 6 {
		w := start(t, "worker", fmt.Sprintf("%s %d", all, i+1))
		workers = append(workers, w)
		eventually(t, fmt.Sprintf("worker %d works", i), func() bool { return len(w.said()) > 5 })
		for _, stopped := range workers[:i] {
			stopped.resume()
		}
		switch i % 3 {
		case 0:
			w.kill()
		case 1:
			w.stop()
		}
		if i == 2 {
			servers[i].kill()
			serve(i)
		}
	}
	final := s.With(lock{"l", 1000})
	if _, err := final.Get(t.Context(), "a"); err != nil { // shuts all of them out
		t.Fatal(err)
	}
	for _, w := range workers {
		w.resume()
	}
	res, err := s.Do(t.Context(), store.Get("a"), store.Get("b"))
	if err != nil {
		t.Fatal(err)
	}
	for i, w := range workers {
		if i%3 != 0 {
			eventually(t, "a worker hears that it is fenced off", func() bool {
				lines := w.said()
				return lines[len(lines)-1] == "fenced"
			})
		}
	}
	answered := map[string]bool{}
	for _, w := range workers {
		for _, line := range w.said() {
			if line != "fenced" {
				answered[line] = true
			}
		}
	}

	nc2, js2 := connect(t, urls[0])
	defer nc2.Close()
	var msgs jetstream.MessagesContext
	var info *jetstream.StreamInfo
	eventually(t, "the stream can be read", func() bool { // the server that was killed may still catch up
		var cons jetstream.Consumer
		if cons, err = js2.OrderedConsumer(t.Context(), "KV_b", jetstream.OrderedConsumerConfig{}); err != nil {
			return false
		}
		if info, err = stream.Info(t.Context()); err != nil {
			return false
		}
		msgs, err = cons.Messages()
		return err == nil
	})
	defer msgs.Stop()
	var token uint64
	var a, b, done int64
	once := map[string]int{}
	for {
		m, err := msgs.Next()
		if err != nil {
			t.Fatal(err)
		}
		meta, err := m.Metadata()
		if err != nil {
			t.Fatal(err)
		}
		subject, body := m.Subject(), string(m.Data())
		n, _ := strconv.ParseInt(body, 10, 64)
		switch {
		case strings.HasPrefix(subject, "$KV.b-qlock.fence."):
			if uint64(n) < token {
				t.Errorf("the fence fell from %d to %d", token, n)
			}
			token = uint64(n)
		case strings.HasPrefix(subject, "$KV.b-qlock.once."):
			if a != -b || b != done {
				t.Errorf("at %d: a is %d and b is %d after %d transactions", meta.Sequence.Stream, a, b, done)
			}
			done++
			id := strings.TrimPrefix(subject, "$KV.b-qlock.once.")
			if once[id]++; once[id] > 1 {
				t.Errorf("%s was done twice", id)
			}
			if by, _, _ := strings.Cut(id, "."); by != fmt.Sprint(token) {
				t.Errorf("%s was done under the fence of %d", id, token)
			}
		case subject == "$KV.b.a":
			a = n
		case subject == "$KV.b.b":
			b = n
		}
		if meta.Sequence.Stream >= info.State.LastSeq {
			break
		}
	}
	for id := range answered {
		if once[id] == 0 {
			t.Errorf("%s was answered, and is missing", id)
		}
	}
	if e, err := res.Get("b"); err != nil || string(e.Value()) != fmt.Sprint(done) {
		t.Errorf("b is %+v (%v) after %d transactions", e, err, done)
	}
	t.Logf("%d transactions, %d answered, 2 holders and a server killed, 2 holders stopped", done, len(answered))
}
