package security

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/qlocktest"
)

// handover is what every configuration must let two clients do: svc-a holds, svc-b
// is told so, waits, and is called.
func handover(t *testing.T, w *world) {
	t.Helper()
	a, b := w.locker("svc-a"), w.locker("svc-b")
	k := mustLock(t, a, "orders.1")
	if _, err := b.TryLock(deadline(t), "orders.1"); !errors.Is(err, qlock.ErrHeld) {
		t.Errorf("svc-b: %v, want ErrHeld", err)
	}
	got := make(chan *qlock.Lock, 1)
	go func() {
		k, err := b.Lock(deadline(t), "orders.1")
		if err != nil {
			t.Error(err)
		}
		got <- k
	}()
	await(t, "svc-b waits", func() bool { return w.claims() == "[2 2 2]" })
	mustUnlock(t, k)
	if k2 := <-got; k2 != nil {
		if k2.Token() <= k.Token() {
			t.Errorf("token %d after %d", k2.Token(), k.Token())
		}
		mustUnlock(t, k2)
	}
	await(t, "the nodes forget", func() bool { return w.claims() == "[0 0 0]" })
}

// limits is what svc-a must not be able to do in any configuration: lock what is
// not under orders, be svc-b, or be a node.
func limits(t *testing.T, w *world, client *raw) {
	t.Helper()
	for _, s := range []string{
		"lock.prod.node.acquire.svc-b.orders.1", "lock.prod.node.release.svc-b.orders.1", "lock.prod.node.refresh.svc-b",
		"lock.prod.node.svc-b",
		"lock.prod.node.info.n1", "_INBOX.svc-b.x", "lock.prod.event.lost.svc-b.orders.1",
	} {
		if client.send(s, "", body{}) {
			t.Errorf("svc-a may publish to %s", s)
		}
	}
	for _, s := range []string{"lock.prod.node.>", "_INBOX.svc-b.>", "_INBOX.>", ">"} {
		if client.listen(s, "", func(*nats.Msg) {}) {
			t.Errorf("svc-a may subscribe to %s", s)
		}
	}
}

func TestAccounts(t *testing.T) {
	srv := run(t, options(t, printed(t, "accounts")))
	w := start(t, func(user string) *nats.Conn { return dial(t, srv.ClientURL(), user) })
	events := make(chan string, 64)
	w.raw("watch").listen("lock.prod.event.>", "", func(m *nats.Msg) { events <- m.Subject })
	handover(t, w)
	limits(t, w, w.raw("svc-a"))
	if w.raw("svc-a").send("lock.prod.node.svc-a", "", []body{}) {
		t.Error("svc-a, who is limited to some resources, may send batches")
	}
	for _, want := range []string{"acquired.svc-a", "released.svc-a", "acquired.svc-b", "released.svc-b"} {
		select {
		case got := <-events:
			if got != "lock.prod.event."+want+".orders.1" {
				t.Errorf("an observer in another account saw %s, want %s", got, want)
			}
		case <-time.After(patience):
			t.Fatalf("an observer in another account does not see %s", want)
		}
	}
	_, err := w.locker("svc-a").Lock(deadline(t), "billing.1")
	wantRefused(t, "another resource", err, "lock.prod.node.acquire.svc-a.billing.1")
}

// What several goroutines want at once goes in one message across accounts too, for
// whom that is permitted, and for others one by one.
func TestBatchesAcrossAccounts(t *testing.T) {
	srv := run(t, options(t, printed(t, "accounts")))
	w := start(t, func(user string) *nats.Conn { return dial(t, srv.ClientURL(), user) })
	var batches atomic.Int32
	w.raw("audit").listen("lock.prod.node.*", "", func(m *nats.Msg) {
		if m.Subject != "lock.prod.node.svc-b" {
			t.Errorf("a batch on %s", m.Subject)
		}
		batches.Add(1)
	})
	a, b := w.locker("svc-a"), w.locker("svc-b")
	crowd := func(l *qlock.Locker) {
		t.Helper()
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				k, err := l.Lock(deadline(t), fmt.Sprint("orders.", i))
				if err != nil {
					t.Error(err)
					return
				}
				if err := k.Unlock(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	await(t, "batches are sent", func() bool {
		crowd(a)
		crowd(b)
		return t.Failed() || batches.Load() > 3 // the first is a question
	})
	await(t, "the nodes forget", func() bool { return w.claims() == "[0 0 0]" })
	if s := a.Stats(); s.Failed.Refused != 0 {
		t.Errorf("%+v", s)
	}
}

// An account may ask only under the names that it was given, whatever its users may
// publish: here one of ORDERS may publish everything.
func TestAccountsAreConfined(t *testing.T) {
	text := strings.Replace(printed(t, "accounts"), "  ORDERS {\n    users: [\n", "  ORDERS {\n    users: [\n      { user: root, password: root }\n", 1)
	srv := run(t, options(t, text))
	w := start(t, func(user string) *nats.Conn { return dial(t, srv.ClientURL(), user) })
	// An auditor of the nodes' account hears what they hear. Their own questions have
	// other nonces.
	const nonce = "of the account ORDERS"
	heard := make(chan string, 16)
	audit := w.raw("audit")
	for _, subject := range []string{"lock.prod.node.>", "lock.prod.event.>"} {
		if !audit.listen(subject, "", func(m *nats.Msg) {
			if strings.Contains(string(m.Data), nonce) {
				heard <- m.Subject
			}
		}) {
			t.Fatalf("an auditor may not listen to %s", subject)
		}
	}
	root := w.raw("root")
	for _, s := range []string{"acquire.svc-b.orders.1", "refresh.svc-b", "svc-b", "root", "info.n1", "info.root", "acquire.root.orders.1",
		"list.svc-a", "inspect.svc-a.orders.1", "evict.svc-a.orders.1", "list.ops", "evict.ops.orders.1"} {
		if !root.send("lock.prod.node."+s, root.nc.NewInbox(), body{"nonce": nonce}) {
			t.Errorf("%s: the server complains, so this shows nothing", s)
		}
	}
	root.send("lock.prod.event.lost.svc-b.orders.1", "", body{"nonce": nonce})
	// What does come through comes in order.
	const allowed = "lock.prod.node.info.svc-a"
	answers := make(chan *nats.Msg, 8)
	inbox := root.nc.NewInbox()
	root.listen(inbox, "", func(m *nats.Msg) { answers <- m })
	root.send(allowed, inbox, body{"nonce": nonce})
	for range nodeNames {
		next(t, answers)
	}
	select {
	case s := <-heard:
		if s != allowed {
			t.Errorf("the nodes heard %s of the account ORDERS, which is not its own name's", s)
		}
	case <-time.After(patience):
		t.Error("the auditor did not hear what the nodes answered: this shows nothing")
	}
}

// files are certificates for the server and the users, as the configurations name
// them, in a directory that becomes the current one.
func files(t *testing.T) *qlocktest.Authority {
	t.Helper()
	a := qlocktest.NewAuthority(t, "authority")
	t.Chdir(t.TempDir())
	must(t, os.Mkdir("tls", 0o700))
	f := a.WriteFiles(t, "tls", "server")
	must(t, os.Rename(f.Cert, filepath.Join("tls", "server.pem")))
	must(t, os.Rename(f.Key, filepath.Join("tls", "server-key.pem")))
	return a
}

// secure connects with a certificate for a user, and without a password.
func secure(t *testing.T, a *qlocktest.Authority, url, user string) *nats.Conn {
	t.Helper()
	return dial(t, url, user, nats.UserInfo("", ""), nats.Secure(a.Config(t, user)))
}

// A user is who its certificate says, and no password is needed or helps.
func TestCertificates(t *testing.T) {
	a := files(t)
	srv := run(t, options(t, printed(t, "certificates")))
	w := start(t, func(user string) *nats.Conn { return secure(t, a, srv.ClientURL(), user) })
	handover(t, w)
	limits(t, w, w.raw("svc-a"))

	refused := func(what string, opts ...nats.Option) {
		t.Helper()
		nc, err := nats.Connect(srv.ClientURL(), append(opts, nats.NoReconnect())...)
		if err == nil {
			nc.Close()
			t.Errorf("%s: connected", what)
		}
	}
	other := qlocktest.NewAuthority(t, "another")
	with := func(certs ...tls.Certificate) nats.Option {
		return nats.Secure(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: a.Pool(), Certificates: certs})
	}
	refused("no TLS", nats.UserInfo("svc-a", "svc-a"))
	refused("no certificate", with(), nats.UserInfo("svc-a", "svc-a"))
	refused("a certificate of another authority", with(other.Certificate(t, "svc-a")))
	refused("a certificate for a user who does not exist", with(a.Certificate(t, "svc-z")))
	refused("a server of another authority", nats.Secure(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: other.Pool(), Certificates: []tls.Certificate{a.Certificate(t, "svc-a")}}))
}

// Three servers, their routes and their users with certificates; a server of another
// authority does not get in.
func TestRoutesWithCertificates(t *testing.T) {
	a := files(t)
	text := printed(t, "certificates") + printed(t, "routes")
	var servers []*server.Server
	mesh := func(text string, name string) *server.Server {
		opts := options(t, text)
		opts.ServerName = name
		opts.Cluster.Host, opts.Cluster.Port = "127.0.0.1", -1
		opts.Routes = nil
		for _, s := range servers {
			opts.Routes = append(opts.Routes, &url.URL{Scheme: "nats-route", Host: s.ClusterAddr().String()})
		}
		return run(t, opts)
	}
	for _, name := range nodeNames {
		servers = append(servers, mesh(text, name))
	}
	await(t, "the mesh forms", func() bool {
		for _, s := range servers {
			if s.NumRemotes() < 2 {
				return false
			}
		}
		return true
	})
	at := map[string]int{"n2": 1, "n3": 2, "svc-b": 1}
	w := start(t, func(user string) *nats.Conn { return secure(t, a, servers[at[user]].ClientURL(), user) })
	handover(t, w)

	plain := strings.Replace(printed(t, "routes"), "  tls {\n    cert_file: \"tls/server.pem\"\n    key_file: \"tls/server-key.pem\"\n    ca_file: \"tls/ca.pem\"\n    verify: true\n  }\n", "", 1)
	if plain == printed(t, "routes") {
		t.Fatal("the routes have no TLS")
	}
	stranger := mesh(printed(t, "certificates")+plain, "stranger")
	time.Sleep(quiet)
	// Servers, not connections: of these there are several to each, and they come one by one.
	if got, others := stranger.NumRemotes(), servers[0].NumRemotes(); got != 0 || others != 2 {
		t.Errorf("a server that shows no certificate has routes to %d others, and the first of the three to %d", got, others)
	}
}

// In operator mode a scoped signing key per role, with {{name()}} in its
// permissions, is all that is needed for any number of users.
func TestSigningKeys(t *testing.T) {
	operator, system, locks := newKey(t, nkeys.CreateOperator), newKey(t, nkeys.CreateAccount), newKey(t, nkeys.CreateAccount)
	account := jwt.NewAccountClaims(public(t, locks))
	account.Name = "LOCKS"
	roles := map[string]nkeys.KeyPair{}
	for _, command := range strings.Split(strings.TrimSpace(printed(t, "signing-keys")), "\nnsc ") {
		scope := jwt.NewUserScope()
		words := strings.Fields(strings.ReplaceAll(command, "\\\n", ""))
		for i, word := range words[:len(words)-1] {
			value := strings.Trim(words[i+1], "'")
			switch word {
			case "--role":
				scope.Role = value
			case "--account":
				if value != account.Name {
					t.Errorf("a key for the account %s", value)
				}
			case "--allow-pub":
				scope.Template.Pub.Allow.Add(value)
			case "--deny-pub":
				scope.Template.Pub.Deny.Add(value)
			case "--allow-sub":
				scope.Template.Sub.Allow.Add(value)
			case "--deny-sub":
				scope.Template.Sub.Deny.Add(value)
			default:
				if strings.HasPrefix(word, "--") && word != "--sk" {
					t.Errorf("option %s", word)
				}
			}
		}
		key := newKey(t, nkeys.CreateAccount)
		roles[scope.Role] = key
		scope.Key = public(t, key)
		account.SigningKeys.AddScopedSigner(scope)
	}
	sys := jwt.NewAccountClaims(public(t, system))
	op := jwt.NewOperatorClaims(public(t, operator))
	op.SystemAccount = public(t, system)
	encode := func(c jwt.Claims, by nkeys.KeyPair) string {
		s, err := c.Encode(by)
		must(t, err)
		return s
	}
	text := fmt.Sprintf("operator: %s\nresolver: MEMORY\nresolver_preload: {\n  %s: %s\n  %s: %s\n}\n",
		encode(op, operator), public(t, locks), encode(account, operator), public(t, system), encode(sys, operator))
	srv := run(t, options(t, text))

	roleOf := map[string]string{"n1": "node", "n2": "node", "n3": "node", "watch": "observer", "audit": "auditor", "monitor": "monitor", "look": "inspector", "ops": "operator", "admin": "administrator"}
	w := start(t, func(user string) *nats.Conn {
		role := roleOf[user]
		if role == "" {
			role = "client"
		}
		if roles[role] == nil {
			t.Fatalf("no key for the role %s", role)
		}
		key := newKey(t, nkeys.CreateUser)
		c := jwt.NewUserClaims(public(t, key))
		c.Name, c.IssuerAccount = user, public(t, locks)
		c.SetScoped(true)
		token := encode(c, roles[role])
		return dial(t, srv.ClientURL(), user, nats.UserJWT(func() (string, error) { return token, nil }, key.Sign))
	})
	events := make(chan string, 64)
	w.raw("watch").listen("lock.prod.event.>", "", func(m *nats.Msg) { events <- m.Subject })
	handover(t, w)
	if len(events) == 0 {
		t.Error("an observer sees nothing")
	}
	limits(t, w, w.raw("svc-a"))
	limits(t, w, w.raw("svc-c"))
	evicts(t, w, "ops")
	_, err := w.locker("svc-b").Locks(deadline(t), "")
	wantRefused(t, "a list for a client", err, "lock.prod.admin.list.svc-b")
	_, err = w.locker("look").Locks(deadline(t), "")
	must(t, err)
	nc := w.dial("svc-a")
	_, err = qlock.New(deadline(t), nc, qlock.WithCluster("prod"), qlock.WithName("svc-b"))
	wantRefused(t, "another's name", err, "lock.prod.node.info.svc-b")
	if w.raw("watch").send("lock.prod.node.acquire.watch.x", "", body{}) || w.raw("monitor").send("lock.prod.node.acquire.monitor.x", "", body{}) {
		t.Error("an observer or a monitor may lock")
	}
}

func newKey(t *testing.T, create func() (nkeys.KeyPair, error)) nkeys.KeyPair {
	t.Helper()
	key, err := create()
	must(t, err)
	return key
}

func public(t *testing.T, key nkeys.KeyPair) string {
	t.Helper()
	s, err := key.PublicKey()
	must(t, err)
	return s
}
