//go:build unix

package cli

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/qlock/qlock/internal/loopback"
)

// natsServer is an external NATS server whose users can be changed.
type natsServer struct {
	*server.Server
	opts *server.Options
}

func startNATS(t *testing.T, change ...func(*server.Options)) *natsServer {
	t.Helper()
	// Reserved, because another process could get the port while the server restarts.
	port, err := loopback.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	s := &natsServer{opts: &server.Options{Host: "127.0.0.1", Port: freePort(port), NoLog: true, NoSigs: true}}
	for _, f := range change {
		f(s.opts)
	}
	if s.Server, err = server.NewServer(s.opts.Clone()); err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
		_ = port.Close()
	})
	if !s.ReadyForConnections(patience) {
		t.Fatal("the server is not ready")
	}
	servers.Store(s.Addr().String(), false)
	return s
}

// bootstrapped gives a node that args start a state directory with which it votes at once.
func bootstrapped(t *testing.T, args ...string) []string {
	t.Helper()
	args = append(args, "--state-dir", t.TempDir())
	qlockCmd(t, append(slices.Clone(args), "--bootstrap")...).want(t, 0)
	return args
}

// users replaces the users. The server disconnects those whose password is different now.
func (s *natsServer) users(t *testing.T, users ...*server.User) {
	t.Helper()
	opts := s.opts.Clone()
	opts.Port = s.Addr().(*net.TCPAddr).Port
	opts.Users = users
	if err := s.ReloadOptions(opts); err != nil {
		t.Fatal(err)
	}
}

// restart restarts the server at the same address with these users. Do not call users while
// clients are being rejected: in nats-server 2.15 a reload then races with the rejection.
func (s *natsServer) restart(t *testing.T, users ...*server.User) {
	t.Helper()
	opts := s.opts.Clone()
	opts.Port = s.Addr().(*net.TCPAddr).Port
	s.Shutdown()
	s.WaitForShutdown()
	// A process that another test started meanwhile has the listener as well, until it executes its
	// program, and the server would not listen a second time. This waits for such processes.
	syscall.ForkLock.RLock()
	opts.Users = users
	syscall.ForkLock.RUnlock()
	var err error
	if s.Server, err = server.NewServer(opts); err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(patience) {
		t.Fatal("the server is not ready again")
	}
}

// Credentials that are changed at the server first are rejected for a while, and more than
// twice. No program ends because of that: the node votes again, and commands that wait for
// a lock or watch continue.
func TestCredentialsChange(t *testing.T) {
	t.Parallel()
	node := func(password string) *server.User { return &server.User{Username: "node", Password: password} }
	user := func(password string) *server.User { return &server.User{Username: "cli", Password: password} }
	s := startNATS(t, func(o *server.Options) { o.Users = []*server.User{node("right"), user("right")} })
	addr := freeAddress(t)
	n := launch(t, bootstrapped(t, "node", "--server", s.ClientURL(), "--user", "node", "--password", "right", "--name", "n1", "--nodes", "n1", "--max-lease", "10s", "--http", addr)...)
	n.says(n.err, "ready: this node votes")
	as := []string{"-s", s.ClientURL(), "--user", "cli", "--password", "right"}
	h := launch(t, append([]string{"lock", "x"}, as...)...)
	h.says(h.out, "\n")
	waits := launch(t, append([]string{"run", "x"}, append(as, "--", "true")...)...)
	waits.says(waits.err, "waiting for x")
	watches := launch(t, append([]string{"watch"}, as...)...)
	watches.says(watches.err, "Ctrl-C ends it")
	looks := launch(t, append([]string{"ls", "--watch", "--json", "--interval", "100ms"}, as...)...)
	looks.says(looks.out, `"name":"x"`)

	began := time.Now()
	s.users(t, node("wrong"), user("wrong"))
	for _, p := range []*process{n, waits, watches} {
		p.says(p.err, "authorization violation")
	}
	eventually(t, func() error { // several attempts were refused
		v, err := s.Varz(nil)
		if err == nil && v.TotalConnections < 30 {
			err = fmt.Errorf("%d connections until now", v.TotalConnections)
		}
		return err
	})
	for what, p := range map[string]*process{"the node": n, "who waits": waits, "who watches": watches, "who looks": looks} {
		select {
		case <-p.done:
			t.Errorf("%s ended with %d\n%s", what, p.status, p.err)
		default:
		}
	}
	if status, body := mustGet(t, "http://"+addr+"/readyz"); status != 503 {
		t.Errorf("readyz of a node that NATS refuses: %d %s", status, body)
	}
	s.restart(t, node("right"), user("right"))
	_ = h.in.Close() // it releases the lock, if its lease has not ended
	waits.wait().want(t, 0, "NATS connection lost")
	eventually(t, func() error {
		status, body := mustGet(t, "http://"+addr+"/readyz")
		if status != 200 {
			return fmt.Errorf("readyz: %d %s", status, body)
		}
		return nil
	})
	watches.says(watches.err, "NATS connection restored")
	qlockCmd(t, append([]string{"run", "y"}, append(as, "--", "true")...)...).want(t, 0)
	watches.says(watches.out, " y ")
	// Of an error that stays the same it says so once a minute.
	if lines := strings.Count(n.err.String(), "authorization violation"); lines > 3+int(time.Since(began)/time.Minute) {
		t.Errorf("the node said %d times that it was refused:\n%s", lines, n.err)
	}
}

// injector is a proxy to a server that can insert lines which the server never sends.
type injector struct {
	net.Listener
	mu    sync.Mutex // guards what follows
	conns []*injected
}

// injected is a connection; its lock is held while something is written to the client.
type injected struct {
	sync.Mutex
	client net.Conn
}

func newInjector(t *testing.T, to string) *injector {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	i := &injector{Listener: l}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				_ = client.Close()
				continue
			}
			c := &injected{client: client}
			i.mu.Lock()
			i.conns = append(i.conns, c)
			i.mu.Unlock()
			all.Go(func() {
				_, _ = io.Copy(server, client)
				_ = server.Close()
			})
			all.Go(func() {
				c.copy(server)
				_ = client.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		i.mu.Lock()
		for _, c := range i.conns {
			_ = c.client.Close()
		}
		i.mu.Unlock()
		all.Wait()
	})
	return i
}

// copy forwards whole lines only, so that lines can be inserted between them.
func (c *injected) copy(from io.Reader) {
	buf, have := make([]byte, 64<<10), 0
	for {
		n, err := from.Read(buf[have:])
		have += n
		if end := strings.LastIndex(string(buf[:have]), "\r\n") + 2; end > 1 {
			c.Lock()
			_, _ = c.client.Write(buf[:end])
			c.Unlock()
			have = copy(buf, buf[end:have])
		}
		if err != nil || have == len(buf) {
			return
		}
	}
}

// say makes the server say a line on all connections.
func (i *injector) say(line string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, c := range i.conns {
		c.Lock()
		_, _ = c.client.Write([]byte(line + "\r\n"))
		c.Unlock()
	}
}

// An error that the client library does not know closes a connection permanently. Every
// program that uses it ends with an error, so that a supervisor restarts it. No process
// continues as if it still served.
func TestConnectionClosedForEver(t *testing.T) {
	t.Parallel()
	s := startNATS(t)
	own := launch(t, bootstrapped(t, "node", "--server", s.ClientURL(), "--name", "n1", "--nodes", "n1", "--max-lease", testMaxLease)...)
	own.says(own.err, "node serves")
	eventually(t, func() error {
		if r := qlockCmd(t, "check", "-s", s.ClientURL()); !strings.Contains(r.out, "1 of 1 nodes vote") {
			return fmt.Errorf("%s", r.out)
		}
		return nil
	})
	i := newInjector(t, s.Addr().String())
	at := []string{"-s", "nats://" + i.Addr().String()}
	addr := freeAddress(t)
	n := launch(t, append([]string{"node", "--name", "a", "--nodes", "a", "--cluster", "other", "--max-lease", "300ms", "--http", addr, "--log-format", "json"}, at...)...)
	n.says(n.err, "node serves")
	h := launch(t, "lock", "x", "-s", s.ClientURL(), "--lease", testLease)
	h.says(h.out, "\n")
	waits := launch(t, append([]string{"run", "x"}, append(at, "--", "true")...)...)
	waits.says(waits.err, "waiting for x")
	watches := launch(t, append([]string{"watch"}, at...)...)
	watches.says(watches.err, "Ctrl-C ends it")
	looks := launch(t, append([]string{"ls", "--watch", "--json", "--interval", "100ms"}, at...)...)
	looks.says(looks.out, `"name":"x"`)
	informs := launch(t, append([]string{"info", "x", "--watch", "--json", "--interval", "100ms"}, at...)...)
	informs.says(informs.out, `"name":"x"`)

	i.say("-ERR 'Nobody Knows This'")
	n.wait().want(t, exitFailed, "Nobody Knows This", "connection closed", "this node has stopped serving")
	waits.wait().want(t, exitSelf, "Nobody Knows This", "closed")
	watches.wait().want(t, exitSelf, "Nobody Knows This", "closed")
	looks.wait().want(t, exitFailed, "Nobody Knows This", "closed")
	informs.wait().want(t, exitFailed, "Nobody Knows This", "closed")
	own.signal(syscall.SIGTERM)
	own.wait().want(t, 0)
}

// freeAddress returns an address that was free a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// check detects faults that would make other commands fail.
func TestCheckLooks(t *testing.T) {
	t.Parallel()
	s := startNATS(t, func(o *server.Options) { o.MaxPayload = 4 << 10 })
	n := launch(t, bootstrapped(t, "node", "--server", s.ClientURL(), "--name", "n1", "--nodes", "n1", "--max-lease", testMaxLease)...)
	n.says(n.err, "ready: this node votes")
	n.says(n.err, "the NATS connection is not suited for locks")
	note := strings.Repeat("<", 256)
	for i := range 5 {
		h := launch(t, "lock", fmt.Sprint("x.", i), "--lease", testLease, "-s", s.ClientURL(), "--note", note)
		h.says(h.out, "\n")
	}
	sees(t, []string{"check", "-s", s.ClientURL()}, 0, "accepts messages of 4096 bytes", "6 locks shown", "a lock was acquired")
	ls := sees(t, []string{"ls", "--json", "-s", s.ClientURL()}, 0)
	if r := decode[lookReport](t, ls); len(r.Locks) != 5 || r.Locks[0].Holders[0].Note != note {
		t.Errorf("%s", ls.out)
	}
}
