package security

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/qlock/qlock"
)

// Everybody can do what the role is for: nodes vote as a service, clients lock,
// observers and auditors see it, a monitor gets its answers.
func TestRolesCanDoWhatTheyAreFor(t *testing.T) {
	w := static(t)
	seen := map[string]chan string{}
	for _, user := range []string{"watch", "audit", "monitor"} {
		subjects := make(chan string, 64)
		seen[user] = subjects
		if !w.raw(user).listen("lock.prod.event.>", "", func(m *nats.Msg) { subjects <- m.Subject }) {
			t.Errorf("%s may not see events", user)
		}
	}
	requests := make(chan string, 64)
	if !w.raw("audit").listen("lock.prod.node.>", "", func(m *nats.Msg) { requests <- m.Subject }) {
		t.Error("audit may not see requests")
	}

	a, b := w.locker("svc-a"), w.locker("svc-b")
	k := mustLock(t, a, "orders.1")
	if _, err := b.TryLock(deadline(t), "orders.1"); !errors.Is(err, qlock.ErrHeld) || !strings.Contains(err.Error(), "held by svc-a") {
		t.Errorf("a lock that svc-a holds: %v", err)
	}
	granted := make(chan *qlock.Lock, 1)
	go func() {
		k, err := b.RLock(deadline(t), "orders.1")
		if err != nil {
			t.Error(err)
		}
		granted <- k
	}()
	await(t, "svc-b waits", func() bool { return w.claims() == "[2 2 2]" })
	mustUnlock(t, k)
	r := <-granted
	if r == nil {
		t.FailNow()
	}
	if r.Token() < k.Token() {
		t.Errorf("token %d after %d", r.Token(), k.Token())
	}
	mustUnlock(t, r)
	mustUnlock(t, mustLock(t, b, "any.thing"))
	await(t, "the nodes forget", func() bool { return w.claims() == "[0 0 0]" })

	for user, subjects := range seen {
		for _, want := range []string{"acquired.svc-a.orders.1", "released.svc-a.orders.1", "acquired.svc-b.orders.1", "released.svc-b.orders.1"} {
			select {
			case got := <-subjects:
				if got != "lock.prod.event."+want {
					t.Errorf("%s saw %s, want %s", user, got, want)
				}
			case <-time.After(patience):
				t.Fatalf("%s did not see %s", user, want)
			}
		}
	}
	if len(requests) == 0 {
		t.Error("an auditor sees no requests")
	}

	monitor := w.raw("monitor")
	inbox := monitor.nc.NewInbox()
	answers := make(chan *nats.Msg, 64)
	if !monitor.listen(inbox, "", func(m *nats.Msg) { answers <- m }) {
		t.Fatal("a monitor may not hear answers")
	}
	for _, subject := range []string{"lock.prod.node.info.monitor", "$SRV.PING", "$SRV.INFO.qlock", "$SRV.STATS.qlock"} {
		if !monitor.send(subject, inbox, body{"nonce": "how are you"}) {
			t.Errorf("a monitor may not ask on %s", subject)
		}
		heard := map[string]bool{}
		for len(heard) < 3 {
			select {
			case m := <-answers:
				var a struct{ Node, ID string }
				must(t, json.Unmarshal(m.Data, &a))
				heard[a.Node+a.ID] = true
			case <-time.After(patience):
				t.Fatalf("%d nodes answered on %s", len(heard), subject)
			}
		}
	}
	var stats micro.Stats
	if !monitor.send("$SRV.STATS.qlock", inbox, body{}) {
		t.Error("a monitor may not ask for statistics")
	}
	must(t, json.Unmarshal(next(t, answers).Data, &stats))
	if stats.Name != "qlock" {
		t.Errorf("statistics of %q", stats.Name)
	}
}

// Whoever publishes or listens where the table of docs/security.md does not allow
// it is told by the server, and nothing is changed.
func TestNobodyCanDoMore(t *testing.T) {
	w := static(t)
	b := w.locker("svc-b")
	var held *qlock.Lock
	c := w.overheard("lock.prod.node.acquire.svc-b.>", func() { held = mustLock(t, b, "orders.1") })
	const x = "orders.1"

	publish := map[string][]string{ // to be tried by each of these users
		"svc-a watch audit monitor look ops n1": {
			"lock.prod.node.acquire.svc-b." + x, "lock.prod.node.release.svc-b." + x, "lock.prod.node.yield.svc-b." + x,
			"lock.prod.node.refresh.svc-b", "lock.prod.node.info.svc-b", "lock.prod.node.svc-b", "lock.prod.node.n2", "lock.prod.node",
			"lock.prod.node.acquire.svc-b.svc-a." + x, "lock.prod.node.acquire.*.orders.1", "lock.prod.node.acquire.>",
			"lock.prod.event.acquired.svc-b." + x, "lock.prod.event.lost.svc-b." + x,
			"lock.prod.node.info.n2", "lock.prod.node.info.n3",
			"lock.other.node.acquire.svc-a." + x, "lock.prod.node.verb.svc-a." + x,
			"$SYS.REQ.SERVER.PING", "$JS.API.INFO", "_R_.x.y", "other",
			"lock.prod.admin.list.svc-b", "lock.prod.admin.inspect.svc-b." + x, "lock.prod.admin.evict.svc-b." + x,
			"lock.prod.admin.list.svc-a", "lock.prod.admin.inspect.svc-a." + x, "lock.prod.admin.evict.svc-a." + x,
		},
		"svc-b":      {"lock.prod.admin.list.svc-b", "lock.prod.admin.inspect.svc-b." + x, "lock.prod.admin.evict.svc-b." + x},
		"look":       {"lock.prod.admin.evict.look." + x, "lock.prod.admin.evict.ops." + x, "lock.prod.admin.list.ops"},
		"ops-orders": {"lock.prod.admin.evict.ops-orders.billing.1", "lock.prod.admin.inspect.ops-orders.billing.1", "lock.prod.admin.evict.ops-orders.>", "lock.prod.admin.evict.ops.orders.1"},
		"svc-a watch audit monitor look ops": {
			c.reply, "_INBOX.svc-b.x", "_INBOX.n1.x", "_INBOX.x", "lock.prod.node.info.n1",
		},
		"svc-a svc-b watch audit look ops n1": {"$SRV.PING", "$SRV.STATS.qlock"},
		"watch audit monitor look ops n1":     {"lock.prod.node.acquire.svc-a." + x, "lock.prod.node.refresh.svc-a", "lock.prod.node.svc-a", "lock.prod.node.look", "lock.prod.node.n1"},
		"watch audit n1":                      {"lock.prod.node.info.watch", "lock.prod.node.info.audit"},
		"look ops":                            {"lock.prod.node.acquire.look." + x, "lock.prod.node.acquire.ops." + x, "lock.prod.node.release.ops." + x, "lock.prod.node.refresh.ops", "lock.prod.event.acquired.ops." + x},
		"monitor watch n1":                    {"lock.prod.node.acquire.monitor." + x, "lock.prod.node.acquire.n1." + x, "lock.prod.event.acquired.monitor." + x},
		"svc-a":                               {"lock.prod.node.svc-a", "lock.prod.node.acquire.svc-a.billing.1", "lock.prod.node.release.svc-a.billing.1", "lock.prod.node.yield.svc-a.billing.1", "lock.prod.event.acquired.svc-a.billing.1", "lock.prod.node.acquire.svc-a.orders", "lock.prod.node.acquire.svc-a.>", "lock.prod.node.acquire.svc-a.*.1"},
	}
	listen := map[string][]string{
		"svc-a svc-b watch monitor look ops": {
			"lock.prod.node.>", "lock.prod.node.acquire.svc-b.>", "lock.prod.node.info.n1", "lock.prod.node.*.*", "lock.prod.node.*", "lock.prod.node.svc-b", "lock.>",
		},
		"svc-a svc-b": {"lock.prod.event.>", "lock.prod.event.acquired.svc-a.>"},
		"svc-a svc-b watch audit monitor look ops n1": {
			">", "_INBOX.>", "*.svc-b.>", "_INBOX.*.*", "_INBOX.n2.>", "$SYS.>", "_R_.>", "lock.other.node.>",
		},
		"svc-a watch audit monitor look ops n1": {c.reply, "_INBOX.svc-b.>", "_INBOX.svc-b.*"},
		"svc-a svc-b watch audit":               {"$SRV.PING", "$SRV.>"},
	}
	users := map[string]*raw{}
	for _, user := range []string{"svc-a", "svc-b", "watch", "audit", "monitor", "look", "ops", "ops-orders", "n1"} {
		users[user] = w.raw(user)
	}
	for who, subjects := range publish {
		for _, user := range strings.Fields(who) {
			for _, s := range subjects {
				if users[user].send(s, "_INBOX."+user+".x", c.acquire(c.Beat+1)) {
					t.Errorf("%s may publish to %s", user, s)
				}
			}
		}
	}
	for who, subjects := range listen {
		for _, user := range strings.Fields(who) {
			for _, s := range subjects {
				for _, queue := range []string{"", "q"} {
					if users[user].listen(s, queue, func(*nats.Msg) {}) {
						t.Errorf("%s may subscribe to %s, queue %q", user, s, queue)
					}
				}
			}
		}
	}
	if err := held.Context().Err(); err != nil {
		t.Errorf("the lock is gone: %v", err)
	}
	if got := w.claims(); got != "[1 1 1]" {
		t.Errorf("claims %s, want the one of svc-b at each node", got)
	}
	mustUnlock(t, held)
}

// svc-a knows everything of the claims of svc-b that there is to know, and speaks
// of them under its own name: to the nodes these are other claims.
func TestClaimsBelongToTheNameInTheSubject(t *testing.T) {
	w := static(t)
	b := w.locker("svc-b")
	var held *qlock.Lock
	c := w.overheard("lock.prod.node.acquire.svc-b.>", func() { held = mustLock(t, b, "orders.1") })
	r := w.raw("svc-a")
	inbox := r.nc.NewInbox()
	answers := make(chan *nats.Msg, 64)
	r.listen(inbox, "", func(m *nats.Msg) { answers <- m })

	beat := c.Beat + 1e6
	for _, m := range []struct {
		subject string
		body    body
	}{
		{"release.svc-a.orders.1", body{"instance": c.Instance, "seq": c.Seq, "now": c.At}},
		{"yield.svc-a.orders.1", body{"instance": c.Instance, "seq": c.Seq, "beat": beat, "node": "n1"}},
		{"refresh.svc-a", body{"instance": c.Instance, "beat": beat, "lo": 1, "hi": c.Seq + 10, "live": [][2]uint64{}}},
	} {
		if !r.send("lock.prod.node."+m.subject, inbox, m.body) {
			t.Fatalf("svc-a may not publish to %s", m.subject)
		}
	}
	for range 3 { // the nodes answer the refresh, the last of the three
		next(t, answers)
	}
	if got := w.claims(); got != "[1 1 1]" {
		t.Errorf("claims %s after a release, a yield and an empty refresh by another", got)
	}

	// An acquire of the same id does not extend, raise or answer for the claim.
	if !r.send("lock.prod.node.acquire.svc-a.orders.1", inbox, c.acquire(beat).with("want", held.Token()+1000)) {
		t.Fatal("svc-a may not acquire")
	}
	for range 3 {
		var a struct {
			Answer  string
			Blocker struct{ Client string }
		}
		must(t, json.Unmarshal(next(t, answers).Data, &a))
		if a.Answer != "queued" || a.Blocker.Client != "svc-b" {
			t.Errorf("answer %q, blocked by %q", a.Answer, a.Blocker.Client)
		}
	}
	r.send("lock.prod.node.release.svc-a.orders.1", "", body{"instance": c.Instance, "seq": c.Seq, "now": c.At})
	await(t, "the nodes forget", func() bool { return w.claims() == "[1 1 1]" })
	token := held.Token()
	mustUnlock(t, held)
	next := mustLock(t, b, "orders.1")
	if next.Token() <= token {
		t.Errorf("token %d after %d", next.Token(), token)
	}
	mustUnlock(t, next)
}

// svc-a may lock under orders only, also by way of a refresh.
func TestResourcesAreLimited(t *testing.T) {
	w := static(t)
	a := w.locker("svc-a")
	mustUnlock(t, mustLock(t, a, "orders.1"))
	mustUnlock(t, mustLock(t, a, "orders.with blank"))

	r := w.raw("svc-a")
	var c claim
	b := w.locker("svc-b")
	c = w.overheard("lock.prod.node.acquire.svc-b.>", func() { mustUnlock(t, mustLock(t, b, "billing.1")) })
	await(t, "the nodes forget", func() bool { return w.claims() == "[0 0 0]" })

	inbox := r.nc.NewInbox()
	answers := make(chan *nats.Msg, 64)
	r.listen(inbox, "", func(m *nats.Msg) { answers <- m })
	// A refresh names claims by number; as nobody knows them they come to nothing,
	// also with the fields that a list of claims with resources might have.
	refresh := body{
		"instance": c.Instance, "beat": 7, "lo": 1, "hi": 9, "live": [][2]uint64{{1, 9}},
		"list":     []body{{"seq": 1, "resource": "billing.1", "mode": "exclusive", "at": c.At, "held": true, "fence": c.At}},
		"resource": "billing.1", "mode": "exclusive", "at": c.At, "ttl_ms": 10_000, "digest": c.Digest, "seq": 1, "held": true,
	}
	if !r.send("lock.prod.node.refresh.svc-a", inbox, refresh) {
		t.Fatal("svc-a may not refresh")
	}
	for range 3 {
		var a struct{ Unknown [][2]uint64 }
		must(t, json.Unmarshal(next(t, answers).Data, &a))
		if fmt.Sprint(a.Unknown) != "[[1 9]]" {
			t.Errorf("unknown %v, want all", a.Unknown)
		}
	}
	if got := w.claims(); got != "[0 0 0]" {
		t.Errorf("claims %s", got)
	}
	// What it has under orders it cannot carry elsewhere: the subject says where.
	acquire := c.acquire(1).with("resource", "billing.1")
	if !r.send("lock.prod.node.acquire.svc-a.orders.1", inbox, acquire) {
		t.Fatal("svc-a may not acquire orders.1")
	}
	for range 3 {
		next(t, answers)
	}
	for _, s := range w.stats() {
		if s.Claims != 1 || s.Resources != 1 {
			t.Errorf("%d claims on %d resources", s.Claims, s.Resources)
		}
	}
	k, err := b.TryLock(deadline(t), "billing.1")
	must(t, err)
	mustUnlock(t, k)
	if _, err := b.TryLock(deadline(t), "orders.1"); !errors.Is(err, qlock.ErrHeld) {
		t.Errorf("orders.1: %v", err)
	}
	r.send("lock.prod.node.release.svc-a.orders.1", "", body{"instance": c.Instance, "seq": c.Seq, "now": c.At})
}

// Whoever lacks a permission is told so, with the subject, long before the
// deadline.
func TestMissingPermissionsAreTold(t *testing.T) {
	w := static(t)
	a := w.locker("svc-a")
	soon := patience / 2 // a busy machine may need some of it; what is not told comes at the deadline, which is later
	for name, lock := range map[string]func() (*qlock.Lock, error){
		"lock":      func() (*qlock.Lock, error) { return a.Lock(deadline(t), "billing.1") },
		"rlock":     func() (*qlock.Lock, error) { return a.RLock(deadline(t), "billing.1") },
		"try-lock":  func() (*qlock.Lock, error) { return a.TryLock(deadline(t), "billing.1") },
		"try-rlock": func() (*qlock.Lock, error) { return a.TryRLock(deadline(t), "billing.1") },
	} {
		start := time.Now()
		_, err := lock()
		wantRefused(t, name, err, "lock.prod.node.acquire.svc-a.billing.1", `"billing.1"`)
		if d := time.Since(start); d > soon {
			t.Errorf("%s: told after %v", name, d)
		}
	}
	// Also when several ask at once, of which the connection remembers one.
	many := make(chan error, 2)
	for i := range cap(many) {
		go func() {
			_, err := a.Lock(deadline(t), fmt.Sprintf("billing.%d", i))
			many <- err
		}()
	}
	start := time.Now()
	for range cap(many) {
		wantRefused(t, "one of many", <-many, "lock.prod.node.acquire.svc-a.billing.")
	}
	t.Logf("%d that asked at once were told after %v", cap(many), time.Since(start))

	// It is none the worse for it.
	mustUnlock(t, mustLock(t, a, "orders.1"))

	for what, tt := range map[string]struct {
		nc      *nats.Conn
		client  string
		subject string
	}{
		"another's name":  {w.dial("svc-a"), "svc-b", "lock.prod.node.info.svc-b"},
		"no inbox prefix": {w.dial2("svc-a", nats.CustomInboxPrefix("_INBOX")), "svc-a", "_INBOX."},
		"another's inbox": {w.dial2("svc-a", nats.CustomInboxPrefix("_INBOX.svc-b")), "svc-a", "_INBOX.svc-b."},
		"observer":        {w.dial("watch"), "watch", "watch"},
	} {
		start := time.Now()
		l, err := qlock.New(deadline(t), tt.nc, qlock.WithCluster("prod"), qlock.WithName(tt.client))
		if l != nil {
			t.Errorf("New with %s works", what)
			must(t, l.Close())
			continue
		}
		wantRefused(t, what, err, tt.subject)
		if d := time.Since(start); d > soon {
			t.Errorf("New with %s: told after %v", what, d)
		}
	}
}

func wantRefused(t *testing.T, what string, err error, words ...string) {
	t.Helper()
	if !errors.Is(err, qlock.ErrRefused) || !errors.Is(err, nats.ErrPermissionViolation) {
		t.Errorf("%s: %v, want ErrRefused and nats.ErrPermissionViolation", what, err)
		return
	}
	for _, word := range append(words, "permission") {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%s: the error does not say %q: %v", what, word, err)
		}
	}
}

// A node that lacks a permission does not start, and says what it needs.
func TestNodeWithoutPermissions(t *testing.T) {
	w := static(t)
	// It asks until its context ends, because the permission may yet be given.
	var all sync.WaitGroup
	for _, user := range []string{"svc-b", "watch", "n2"} {
		nc := w.dial(user)
		all.Go(func() {
			n, err := qlock.StartNode(within(t, 3*time.Second), nc, qlock.NodeConfig{Cluster: "prod", Name: "n1", Nodes: nodeNames, ProbeWait: time.Millisecond, NoService: true})
			if n != nil {
				t.Errorf("%s is a node", user)
				if err := n.Close(); err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), "lock.prod.node.") {
				t.Errorf("%s as a node: %v", user, err)
			}
		})
	}
	all.Wait()
}
