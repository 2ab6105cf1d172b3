package integration

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/qlocktest"
)

// gather publishes a question and collects answers until enough services have answered. It asks
// again now and then: servers that are slow give up routes, and questions are lost with them.
func gather(t *testing.T, nc *nats.Conn, subject string, enough int) []*nats.Msg {
	t.Helper()
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	must(t, err)
	defer func() { _ = sub.Unsubscribe() }()
	var out []*nats.Msg
	seen := map[string]bool{}
	for deadline := time.Now().Add(patience); len(out) < enough; {
		must(t, nc.PublishRequest(subject, inbox, nil))
		for len(out) < enough {
			m, err := sub.NextMsg(10 * time.Second)
			if errors.Is(err, nats.ErrTimeout) && time.Now().Before(deadline) {
				break
			} else if err != nil {
				t.Fatalf("%s: %d of %d answers, then %v", subject, len(out), enough, err)
			}
			var who struct{ ID string }
			must(t, json.Unmarshal(m.Data, &who))
			if !seen[who.ID] {
				seen[who.ID] = true
				out = append(out, m)
			}
		}
	}
	return out
}

// `nats micro ls | info | stats | ping` finds the nodes: these are the questions
// that it asks.
func TestMicroDiscovery(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	nc := connect(t, urls(c.Servers()[0]))
	a := newLocker(t, nc, qlock.WithName("a"))
	k := lock(t, a, "name")
	await(t, "all nodes know the lock", func() bool { return claims(c.Servers()) == 3 })

	type service struct {
		Type, Name, ID, Version, Description string
		Metadata                             map[string]string
		Endpoints                            []struct {
			Name, Subject string
			QueueGroup    string          `json:"queue_group"`
			Requests      int             `json:"num_requests"`
			Errors        int             `json:"num_errors"`
			Data          qlock.NodeStats `json:"data"`
		}
	}
	ask := func(what string) map[string]service {
		t.Helper()
		out := map[string]service{}
		for _, subject := range []string{"$SRV." + what, "$SRV." + what + ".qlock"} {
			for _, m := range gather(t, nc, subject, 3) {
				var s service
				must(t, json.Unmarshal(m.Data, &s))
				node := s.Metadata["node"]
				if s.Name != "qlock" || s.Version != qlock.Version() || s.ID == "" || s.Metadata["cluster"] != "default" || s.Metadata["nodes"] != "n1 n2 n3" {
					t.Errorf("%s: %s", subject, m.Data)
				}
				if want := "io.nats.micro.v1." + strings.ToLower(what) + "_response"; s.Type != want {
					t.Errorf("%s: the type is %s", subject, s.Type)
				}
				out[node] = s
			}
		}
		if len(out) != 3 {
			t.Errorf("%s: answers of %d nodes", what, len(out))
		}
		return out
	}

	ids := map[string]string{}
	for node, s := range ask("PING") {
		ids[node] = s.ID
	}
	for node, s := range ask("INFO") {
		if s.ID != ids[node] || s.Description == "" || len(s.Endpoints) != 1 {
			t.Fatalf("%s: %+v", node, s)
		}
		// Without a queue group, so that each hears all.
		if e := s.Endpoints[0]; e.Subject != "lock.default.node.>" || e.QueueGroup != "" {
			t.Errorf("%s: %+v", node, e)
		}
		if got := gather(t, nc, "$SRV.INFO.qlock."+s.ID, 1); !strings.Contains(string(got[0].Data), s.ID) {
			t.Errorf("%s answers by its id with %s", node, got[0].Data)
		}
	}
	for node, s := range ask("STATS") {
		if len(s.Endpoints) != 1 {
			t.Fatalf("%s: %+v", node, s)
		}
		e := s.Endpoints[0]
		if e.Requests == 0 || e.Errors != 0 || e.Data.State != "voting" || e.Data.Claims != 1 || e.Data.Resources != 1 || e.Data.Requests == 0 || e.Data.Malformed != 0 {
			t.Errorf("%s: %+v", node, e)
		}
	}
	// Held by another is an answer like any other, not an error of the service.
	if _, err := newLocker(t, nc).TryLock(testContext(t), "name"); !errors.Is(err, qlock.ErrHeld) {
		t.Errorf("TryLock of a held lock: %v", err)
	}
	for node, s := range ask("STATS") {
		if e := s.Endpoints[0]; e.Errors != 0 {
			t.Errorf("%s: %+v", node, e)
		}
	}
	unlock(t, k)
}

// overheard is what somebody sees with `nats sub 'lock.>'`.
type overheard struct {
	mu   sync.Mutex
	msgs []*nats.Msg
}

func (o *overheard) find(subject string) []*nats.Msg {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []*nats.Msg
	for _, m := range o.msgs {
		if m.Subject == subject {
			out = append(out, m)
		}
	}
	return out
}

func (o *overheard) await(t *testing.T, subject string) *nats.Msg {
	t.Helper()
	await(t, "seen: "+subject, func() bool { return len(o.find(subject)) > 0 })
	return o.find(subject)[0]
}

// An observer reads in the subjects who does what to which name, in the bodies
// JSON, and in events what became of it; and sees no answers, which go to
// inboxes.
func TestObserver(t *testing.T) {
	t.Parallel()
	const lease = 10 * time.Second
	c := startCluster(t, 3, maxLease(lease))
	servers := c.Servers()
	// The observer is on another server than the clients.
	nc := connect(t, urls(servers[2]))
	var seen overheard
	_, err := nc.Subscribe("lock.>", func(m *nats.Msg) {
		seen.mu.Lock()
		defer seen.mu.Unlock()
		seen.msgs = append(seen.msgs, m)
	})
	must(t, err)
	must(t, nc.Flush())

	// On a slow machine requests gather, and would go in batches, whose subjects have no names.
	a := client(t, "svc-a", urls(servers[0]), qlock.WithoutBatches())
	b := client(t, "svc-b", urls(servers[0]), qlock.WithoutBatches())
	seen.await(t, "lock.default.node.info.svc-a") // it is heard from here
	k := lock(t, a, "orders.42")
	waits := start(t, testContext(t), b.Lock, "orders.42")
	await(t, "b waits", func() bool { return claims(servers) == 2*3 })
	waiting := time.Now()
	seen.await(t, "lock.default.node.refresh.svc-a")
	waited := time.Since(waiting)
	unlock(t, k)
	next := waits.wait(t)
	unlock(t, next)
	r := rlock(t, a, "a name with *")
	unlock(t, r)

	type body struct {
		Claim  json.RawMessage
		Mode   string
		Token  uint64
		Votes  int
		Nodes  int
		Waited *float64 `json:"waited_ms"`
		Held   *float64 `json:"held_ms"`
	}
	event := func(kind, client, resource string) body {
		t.Helper()
		m := seen.await(t, "lock.default.event."+kind+"."+client+"."+resource)
		var b body
		must(t, json.Unmarshal(m.Data, &b))
		return b
	}
	for _, c := range []struct {
		lock             *qlock.Lock
		client, resource string
		mode             string
		waited           time.Duration
	}{
		{k, "svc-a", "orders.42", "exclusive", 0},
		{next, "svc-b", "orders.42", "exclusive", waited}, // until svc-a had refreshed
		{r, "svc-a", "a%20name%20with%20%2A", "shared", 0},
	} {
		e := event("acquired", c.client, c.resource)
		if e.Mode != c.mode || e.Token != c.lock.Token() || e.Votes < 2 || e.Nodes != 3 || e.Waited == nil || *e.Waited < float64(c.waited/time.Millisecond) {
			t.Errorf("acquired by %s: %+v", c.client, e)
		}
		e = event("released", c.client, c.resource)
		if e.Mode != c.mode || e.Token != c.lock.Token() || e.Held == nil || *e.Held <= 0 {
			t.Errorf("released by %s: %+v", c.client, e)
		}
		seen.await(t, "lock.default.node.acquire."+c.client+"."+c.resource)
		seen.await(t, "lock.default.node.release."+c.client+"."+c.resource)
	}

	// A loss is an event as well.
	lost := lock(t, a, "lost")
	qlocktest.CrashServer(t, servers[1])
	qlocktest.CrashNode(t, servers[2].Node()) // its server stays, for the observer
	lostBy(t, lost, time.Now().Add(lease))
	if e := event("lost", "svc-a", "lost"); e.Token != lost.Token() || e.Held == nil || *e.Held <= 0 {
		t.Errorf("lost: %+v", e)
	}

	// All of it is under the promised subjects, and is JSON.
	verbs := map[string][]string{
		"node":  {"acquire", "release", "yield", "refresh", "info"},
		"event": {"acquired", "released", "lost"},
	}
	seen.mu.Lock()
	defer seen.mu.Unlock()
	for _, m := range seen.msgs {
		part := strings.SplitN(m.Subject, ".", 6)
		if len(part) < 5 || part[1] != "default" || !slices.Contains(verbs[part[2]], part[3]) {
			t.Errorf("seen: %s", m.Subject)
			continue
		}
		if !slices.Contains([]string{"svc-a", "svc-b", "n1", "n2", "n3"}, part[4]) && !strings.HasPrefix(part[4], "test") {
			t.Errorf("seen: %s, from nobody", m.Subject)
		}
		if withResource := part[3] != "refresh" && part[3] != "info"; withResource != (len(part) == 6) {
			t.Errorf("seen: %s", m.Subject)
		}
		var object map[string]any
		if err := json.Unmarshal(m.Data, &object); err != nil {
			t.Errorf("seen: %s with the body %q: %v", m.Subject, m.Data, err)
		}
	}
}

// An observer who reads nothing does not hold up those it observes for long: the
// server drops it.
func TestStuckObserver(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	s := c.Servers()[0]
	u, err := url.Parse(s.ClientURL())
	must(t, err)
	stuck, err := net.Dial("tcp", u.Host)
	must(t, err)
	t.Cleanup(func() { _ = stuck.Close() })
	must(t, stuck.(*net.TCPConn).SetReadBuffer(4<<10))
	_, err = io.WriteString(stuck, "CONNECT {\"verbose\":false}\r\nSUB lock.> 1\r\nPING\r\n")
	must(t, err)
	in := bufio.NewReader(stuck)
	for line := ""; !strings.HasPrefix(line, "PONG"); {
		line, err = in.ReadString('\n')
		must(t, err)
	}
	a, flood := client(t, "a", urls(s)), connect(t, urls(s))
	clients := s.NATS().NumClients()
	held := lock(t, a, "held")
	for range 16 { // more than the buffers between them hold
		must(t, flood.Publish("lock.default.event.flood.a.name", make([]byte, 1<<19)))
	}
	from, longest, n := time.Now(), time.Duration(0), 0
	for deadline := time.Now().Add(patience); s.NATS().NumClients() == clients; n++ {
		began := time.Now()
		if began.After(deadline) {
			t.Fatal("the server keeps an observer that does not read")
		}
		unlock(t, lock(t, a, "name"))
		longest = max(longest, time.Since(began))
		time.Sleep(time.Millisecond)
	}
	t.Logf("%d locks before the observer was dropped, the longest took %v", n, longest)
	if longest > 2*time.Second+slack(from) { // what the server gives a write to take
		t.Errorf("a lock took %v", longest)
	}
	stays(t, held, 0)
	unlock(t, held)
}
