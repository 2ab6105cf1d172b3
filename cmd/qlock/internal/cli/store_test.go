//go:build unix

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock/store"
)

// jetStream is the address of a nats-server with JetStream.
func jetStream(t *testing.T) string { t.Helper(); return startJetStream(t).ClientURL() }

func startJetStream(t *testing.T) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, JetStream: true, StoreDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(patience) {
		t.Fatal("the server does not start")
	}
	servers.Store(s.Addr().String(), false)
	return s
}

func TestStore(t *testing.T) {
	url := jetStream(t)
	st := func(args ...string) result {
		t.Helper()
		return call(t, append([]string{"store", args[0], "-s", url}, args[1:]...)...)
	}
	st("check", "b").want(t, exitFailed, "bucket not found")
	st("create", "b", "--memory").want(t, 0, "made, with fences")
	st("check", "b").want(t, 0, "has fences")
	st("check", "b", "-j").want(t, 0, `"prepared":true`)
	st("prepare", "b").want(t, 0)
	st("get", "b", "k").want(t, exitNoKey, "not found")
	st("put", "b", "k", "v1").want(t, 0)
	st("get", "b", "k").want(t, 0, "v1")
	st("get", "b", "k", "-j").want(t, 0, `"value":"v1"`, `"operation":"put"`)
	st("put", "b", "k", "v2", "--create").want(t, exitConflict, "exists")
	st("put", "b", "k", "v2", "--revision", "1000").want(t, exitConflict)
	st("put", "b", "k", "v2", "--lock", "l", "--fence", "20", "-j").want(t, 0, `"revision"`)
	st("put", "b", "k", "stale", "--lock", "l", "--fence", "19").want(t, exitLost, "newer holder with token 20")
	st("get", "b", "k", "--lock", "l", "--fence", "20").want(t, 0, "v2")
	st("txn", "b", "once", "pay-7", "1h", "add", "n", "2", "get", "k", "insert", "order", "paid").want(t, 0, `"numbers":{"n":2}`, `"duplicate":false`, `"value":"v2"`)
	st("txn", "b", "once", "pay-7", "1h", "add", "n", "2", "get", "k").want(t, 0, `"numbers":{"n":2}`, `"duplicate":true`, `"value":"v2"`)
	st("txn", "b", "add", "n", "-5", "get", "n", "-j").want(t, 0, `"numbers":{"n":-3}`)
	st("txn", "-j", "b", "add", "n", "-2", "unchanged", "k", "put", "neg", "-7").want(t, 0, `"numbers":{"n":-5}`, `"value":"v2"`)
	st("get", "b", "neg").want(t, 0, "-7")
	st("txn", "b", "--", "add", "n", "-1").want(t, 0, `"numbers":{"n":-6}`)
	st("txn", "b", "-x").want(t, exitUsage, "-x")
	// A reader's token may be that of the last writer.
	st("put", "b", "k", "v2", "--lock", "l", "--fence", "20", "--shared").want(t, exitFailed, "shared")
	st("get", "b", "k", "--lock", "other", "--fence", "20", "--shared").want(t, 0, "v2")
	st("get", "b", "k", "--shared").want(t, exitUsage, "--lock")
	st("txn", "b", "add", "n", "x").want(t, exitUsage)
	st("txn", "b", "frob", "n").want(t, exitUsage)
	st("txn", "b", "put", "n").want(t, exitUsage)
	st("ls", "b").want(t, 0, "order", "n", "k")
	st("rm", "b", "order").want(t, 0)
	st("unfence", "b", "l").want(t, exitUsage, "--yes")
	st("unfence", "b", "l", "--yes").want(t, 0, "token 20")
	st("put", "b", "k", "v3", "--lock", "l", "--fence", "19").want(t, 0)
	st("put", "b", "a b", "v").want(t, exitUsage)
	st("put", "b", "k", "v", "--lock", "l").want(t, exitUsage)
	// What an empty variable of a script gives does not mean: without any condition.
	st("put", "b", "k", "v", "--lock", "", "--fence", "0").want(t, exitUsage, "--unfenced")
	st("txn", "b", "put", "k", "v", "--fence", "0").want(t, exitUsage, "--unfenced")
	st("put", "b", "k", "v", "--revision", "0").want(t, exitUsage, "--create")
	st("get", "b", "k").want(t, 0, "v3")
	st("put", "b", "k", "-x").want(t, exitUsage, "goes after --")
	st("put", "b", "k", "--", "-x").want(t, 0)
	st("get", "b", "k").want(t, 0, "-x")
	st("rm", "b", "k", "-j").want(t, 0, `"operation":"delete"`)
}

// A value that is read from standard input has an end: that of the input, of the command, or of
// what the server takes.
func TestStoreReadsAValue(t *testing.T) {
	t.Parallel()
	s := startJetStream(t)
	url := s.ClientURL()
	call(t, "store", "create", "b", "--memory", "-s", url).want(t, 0)
	connections := func(n int) {
		t.Helper()
		for end := time.Now().Add(patience); s.NumClients() != n; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d connections, want %d", s.NumClients(), n)
			}
		}
	}
	put := func() *process {
		t.Helper()
		connections(0) // those of the commands before are gone
		p := launch(t, "store", "put", "b", "k", "-s", url)
		connections(1) // from now on it does not die of a signal
		return p
	}
	p := put()
	if _, err := io.WriteString(p.in, "v"); err != nil {
		t.Fatal(err)
	}
	_ = p.in.Close()
	p.wait().want(t, 0)
	call(t, "store", "get", "b", "k", "-s", url).want(t, 0, "v")

	p = put()
	p.signal(syscall.SIGTERM)
	p.wait().want(t, exitFailed, "terminated")

	p = put()
	// It does not read all of this: then writing fails.
	for block := make([]byte, 1<<20); ; {
		if _, err := p.in.Write(block); err != nil {
			break
		}
	}
	p.wait().want(t, exitFailed, "max_payload")
	call(t, "store", "get", "b", "k", "-s", url).want(t, 0, "v")
}

// The end of a command is not that of the lock under which it works.
func TestInterruptedCommandIsNotFenced(t *testing.T) {
	t.Parallel()
	nc, s := openStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o := &storeOptions{lock: "l", fence: 5, given: true}
	v, err := o.view(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Get(ctx, "k"); errors.Is(err, store.ErrFenced) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	nc.Close()
}

// A list of keys that ends too early is an error.
func TestListOfKeysIsWhole(t *testing.T) {
	t.Parallel()
	nc, s := openStore(t)
	for i := range 1000 { // more than are on their way at once
		if _, err := s.KeyValue().PutString(t.Context(), fmt.Sprint("k", i), "v"); err != nil {
			t.Fatal(err)
		}
	}
	o := &storeOptions{connection: connection{timeout: patience}}
	n := 0
	if err := o.eachKey(t.Context(), nc, s, func(string) error { n++; return nil }); err != nil || n != 1000 {
		t.Errorf("%d keys: %v", n, err)
	}
	err := o.eachKey(t.Context(), nc, s, func(string) error { nc.Close(); return nil })
	if err == nil || !strings.Contains(err.Error(), "not complete") {
		t.Error(err)
	}
}

func openStore(t *testing.T) (*nats.Conn, *store.Store) {
	t.Helper()
	nc := connect(t, startJetStream(t).ClientURL())
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Create(t.Context(), js, jetstream.KeyValueConfig{Bucket: "b", Storage: jetstream.MemoryStorage})
	if err != nil {
		t.Fatal(err)
	}
	return nc, s
}

// A value cannot command a terminal. A pipe gets its bytes.
func TestStoreGetOnATerminal(t *testing.T) {
	t.Parallel()
	url := jetStream(t)
	call(t, "store", "create", "b", "--memory", "-s", url).want(t, 0)
	call(t, "store", "put", "b", "k", "\x1b[2Jx\ny", "-s", url).want(t, 0)
	call(t, "store", "get", "b", "k", "-s", url).want(t, 0, "\x1b[2Jx\ny")
	s := onTerminal(t, "store", "get", "b", "k", "-s", url)
	if out := s.wait().out; !strings.Contains(out, `\x1b[2Jx`+"\r\ny\r\n") || strings.Contains(out, "\x1b[2J") {
		t.Errorf("%q", out)
	}
}

// Inside qlock run --store the commands are fenced by its lock.
func TestStoreInRun(t *testing.T) {
	url := jetStream(t)
	call(t, "store", "create", "b", "-s", url).want(t, 0)
	put := func() result { t.Helper(); return call(t, "store", "put", "b", "k", "v", "-s", url) }
	t.Setenv(storeVariable, "b")
	t.Setenv(clusterVariable, "c1")
	put().want(t, exitUsage, "QLOCK_TOKEN")
	t.Setenv("QLOCK_NAME", "nightly")
	t.Setenv("QLOCK_TOKEN", "100")
	put().want(t, 0)
	t.Setenv("QLOCK_TOKEN", "99")
	put().want(t, exitLost, "nightly")
	call(t, "store", "put", "b", "k", "v", "-s", url, "--unfenced").want(t, 0)
	t.Setenv("QLOCK_TOKEN", "101")
	t.Setenv(sharedVariable, "1")
	put().want(t, exitFailed, "shared")
	call(t, "store", "get", "b", "k", "-s", url).want(t, 0, "v")
	// The token says nothing about the locks of another cluster.
	call(t, "store", "get", "b", "k", "-s", url, "--cluster", "c2").want(t, exitUsage, "c1", "c2")
	call(t, "store", "get", "b", "k", "-s", url, "--cluster", "c2", "--unfenced").want(t, 0, "v")
	call(t, "store", "get", "b", "k", "-s", url, "--cluster", "c2", "--lock", "l", "--fence", "1").want(t, 0, "v")
	t.Setenv(storeVariable, "other")
	put().want(t, exitUsage, "other")
}

// qlock run looks at the bucket before its command starts.
func TestRunChecksTheStore(t *testing.T) {
	t.Parallel()
	s := startJetStream(t)
	run := func(bucket string) *process {
		return launch(t, "run", "x", "-s", s.ClientURL(), "--wait", patience.String(), "--timeout", patience.String(), "--store", bucket, "--", "echo", "started")
	}
	// There are no nodes, so that nobody gets a lock.
	run("nosuch").wait().want(t, exitSelf, "--store nosuch", "bucket not found")
	run("a b").wait().want(t, exitSelf, "letters")
	call(t, "store", "create", "b", "--memory", "-s", s.ClientURL()).want(t, 0)
	waits := run("b")
	waits.says(waits.err, "no node answers")
}

// A qlock run within another one gives its command nothing of the outer lock.
func TestStoreInNestedRuns(t *testing.T) {
	t.Parallel()
	url := jetStream(t)
	call(t, "store", "create", "b", "--memory", "-s", url).want(t, 0)
	c := sharedCluster(t)
	run := func(name string, flags ...string) string {
		return fmt.Sprintf(`"$0" run %s -s %s %s -- `, name, c.url(), strings.Join(flags, " "))
	}
	store := func(command string) string { return fmt.Sprintf(`"$0" store %s -s %s `, command, url) }
	const show = `sh -c 'echo "store=$QLOCK_STORE shared=$QLOCK_SHARED permit=$QLOCK_PERMIT name=$QLOCK_NAME cluster=$QLOCK_CLUSTER"'`
	a, b := lockName(t)+"-a", lockName(t)+"-b"
	for _, x := range []struct {
		name, script string
		status       int
		words        []string
	}{
		{"exclusive in shared", run(a, "--store b", "--shared") + run(b, "--store b") + store("put b k1 v"), 0, nil},
		{"shared in exclusive", run(a, "--store b") + run(b, "--store b", "--shared") + store("put b k2 v"), exitFailed, []string{"shared"}},
		{"no store in shared", run(a, "--store b", "--shared") + run(b) + store("put b k3 v"), exitUsage, []string{"--store b", "--unfenced"}},
		{"shared without a store", run(a, "--store b") + run(b, "--shared") + store("put b k4 v"), exitUsage, []string{"--store b", "--unfenced"}},
		{"permit", run(a, "--store b") + run(b, "--slots 2") + store("put b k5 v"), exitUsage, []string{"--store b", "--unfenced"}},
		{"permit, unfenced", run(a, "--store b") + run(b, "--slots 2") + store("put b k6 v --unfenced"), 0, nil},
		{"in a permit", run(a, "--slots 2") + run(b, "--store b") + show, 0, []string{"store=b shared= permit= name=" + b + " cluster=default"}},
		{"three deep", run(a, "--store b", "--shared") + run(b) + run(b+"c") + store("put b k7 v"), exitUsage, []string{"--unfenced"}},
		{"without any", run(a, "--shared") + run(b) + show, 0, []string{"store= shared= permit= name=" + b}},
	} {
		t.Run(x.name, func(t *testing.T) {
			p := launchShell(t, x.script)
			_ = p.in.Close()
			p.wait().want(t, x.status, x.words...)
		})
	}
}
