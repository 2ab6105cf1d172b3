package permissions

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"go.uber.org/goleak"

	"github.com/qlock/qlock/internal/subject"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// allows reports which subjects a server allows for a list of subjects.
func allows(t *testing.T, p *server.SubjectPermission, subject string) bool {
	t.Helper()
	match := func(list []string) bool {
		return slices.ContainsFunc(list, func(pattern string) bool { return server.SubjectsCollide(pattern, subject) })
	}
	return !match(p.Deny) && (p.Allow == nil || match(p.Allow))
}

func mustUser(t *testing.T) func(User, error) User {
	return func(u User, err error) User {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
}

func TestRoles(t *testing.T) {
	made := mustUser(t)
	users := map[string]User{
		"all":      made(NewClient("prod", "svc-a")),
		"orders":   made(NewClient("prod", "svc-a", "orders.>", "stock.*.count", "exact")),
		"observer": made(NewObserver("prod", "svc-a")),
		"auditor":  made(NewAuditor("prod", "svc-a")),
		"monitor":  made(NewMonitor("prod", "svc-a")),
		"node":     made(NewNode("prod", "svc-a")),
		"looks":    made(NewInspector("prod", "svc-a")),
		"looks-on": made(NewInspector("prod", "svc-a", "orders.>")),
		"evicts":   made(NewOperator("prod", "svc-a")),
		"joins":    made(NewMember("prod", "svc-a")),
		"joins-in": made(NewMember("prod", "svc-a", "orders.>")),
		"ends":     made(NewOperator("prod", "svc-a", "orders.>", "exact")),
		"admin":    made(NewAdministrator("prod", "svc-a")),
	}
	for _, tt := range []struct {
		subject   string
		publish   string // the users that may
		subscribe string
	}{
		{"lock.prod.node.acquire.svc-a.orders.1", "all orders joins joins-in", "auditor node"},
		{"lock.prod.node.release.svc-a.orders.1", "all orders joins joins-in", "auditor node"},
		{"lock.prod.node.yield.svc-a.orders.1.2", "all orders joins joins-in", "auditor node"},
		{"lock.prod.node.acquire.svc-a.orders", "all joins", "auditor node"},
		{"lock.prod.node.acquire.svc-a.ordersx.1", "all joins", "auditor node"},
		{"lock.prod.node.acquire.svc-a.stock.7.count", "all orders joins", "auditor node"},
		{"lock.prod.node.acquire.svc-a.stock.7.x", "all joins", "auditor node"},
		{"lock.prod.node.acquire.svc-a.exact", "all orders joins", "auditor node"},
		{"lock.prod.node.acquire.svc-a.exact.1", "all joins", "auditor node"},
		{"lock.prod.node.acquire.svc-a.billing.1", "all joins", "auditor node"},
		{"lock.prod.node.refresh.svc-a", "all orders joins joins-in", "auditor node"},
		{"lock.prod.node.refresh.svc-a.orders.1", "", "auditor node"},
		{"lock.prod.node.info.svc-a", "all orders monitor node looks looks-on evicts ends joins joins-in admin", "auditor node"},
		{"lock.prod.admin.list.svc-a", "looks looks-on evicts ends joins joins-in", "auditor node"},
		{"lock.prod.admin.list.svc-a.orders.1", "", "auditor node"},
		{"lock.prod.admin.inspect.svc-a.orders.1", "looks looks-on evicts ends joins joins-in", "auditor node"},
		{"lock.prod.admin.inspect.svc-a.exact", "looks evicts ends joins", "auditor node"},
		{"lock.prod.admin.inspect.svc-a.billing.1", "looks evicts joins", "auditor node"},
		{"lock.prod.admin.evict.svc-a.orders.1", "evicts ends", "auditor node"},
		{"lock.prod.admin.evict.svc-a.exact", "evicts ends", "auditor node"},
		{"lock.prod.admin.evict.svc-a.billing.1", "evicts", "auditor node"},
		{"lock.prod.admin.config.svc-a", "admin", "auditor node"},
		{"lock.prod.admin.config.svc-b", "", "auditor node"},
		{"lock.prod.admin.list.svc-b", "", "auditor node"},
		{"lock.prod.admin.inspect.svc-b.orders.1", "", "auditor node"},
		{"lock.prod.admin.evict.svc-b.orders.1", "", "auditor node"},
		{"lock.prod.node.other.svc-a.orders.1", "", "auditor node"},
		{"lock.prod.node.acquire.svc-b.orders.1", "", "auditor node"},
		{"lock.prod.node.acquire.svc-b.svc-a.orders.1", "", "auditor node"},
		{"lock.prod.node.release.svc-b.orders.1", "", "auditor node"},
		{"lock.prod.node.refresh.svc-b", "", "auditor node"},
		{"lock.prod.node.info.svc-b", "", "auditor node"},
		{"lock.other.node.acquire.svc-a.orders.1", "", ""},
		{"lock.prod.event.acquired.svc-a.orders.1", "all orders joins joins-in", "observer auditor monitor looks looks-on evicts ends joins joins-in"},
		{"lock.prod.event.lost.svc-a.billing.1", "all joins", "observer auditor monitor looks looks-on evicts ends joins"},
		{"lock.prod.event.acquired.svc-b.orders.1", "", "observer auditor monitor looks looks-on evicts ends joins joins-in"},
		{"_INBOX.svc-a.x", "node", "all orders monitor node looks looks-on evicts ends joins joins-in admin"},
		{"_INBOX.svc-b.x", "node", ""},
		{"_INBOX.x", "node", ""},
		{"$SRV.PING", "monitor", "node"},
		{"$SRV.STATS.qlock.id", "monitor", "node"},
		{"$SRV.STATS.other.id", "", ""},
		{"$SYS.REQ.SERVER.PING", "", ""},
		{"$JS.API.INFO", "", ""},
		{"anything", "", ""},
	} {
		for name, u := range users {
			p := u.Permissions()
			if got, want := allows(t, p.Publish, tt.subject), slices.Contains(strings.Fields(tt.publish), name); got != want {
				t.Errorf("%s may publish to %s: %v", name, tt.subject, got)
			}
			if got, want := allows(t, p.Subscribe, tt.subject), slices.Contains(strings.Fields(tt.subscribe), name); got != want {
				t.Errorf("%s may subscribe to %s: %v", name, tt.subject, got)
			}
		}
	}
}

func TestNamesThatPermissionsCannotHave(t *testing.T) {
	for _, name := range []string{"", ">", "*", "a.b", "a b", "a\"b", "{{name()}}x", strings.Repeat("x", 65)} {
		for role, make := range map[string]func(string, string) (User, error){
			"client":    func(c, n string) (User, error) { return NewClient(c, n) },
			"member":    func(c, n string) (User, error) { return NewMember(c, n) },
			"inspector": func(c, n string) (User, error) { return NewInspector(c, n) },
			"operator":  func(c, n string) (User, error) { return NewOperator(c, n) },
			"observer":  NewObserver, "auditor": NewAuditor, "monitor": NewMonitor, "node": NewNode, "administrator": NewAdministrator,
		} {
			if _, err := make("prod", name); err == nil {
				t.Errorf("%s may be named %q", role, name)
			}
			if _, err := make(name, "svc-a"); err == nil {
				t.Errorf("the cluster of a %s may be named %q", role, name)
			}
		}
	}
	for _, pattern := range []string{"", ".", "a.", ".a", "a..b", ">.a", "a.>.b", "a*", "a.b>", "a b", "a\nb", "a\"b", "a\\b", "ä"} {
		for _, limited := range []func(string, string, ...string) (User, error){NewClient, NewMember, NewInspector, NewOperator} {
			if _, err := limited("prod", "svc-a", pattern); err == nil {
				t.Errorf("the resources may be %q", pattern)
			}
		}
	}
	for _, pattern := range []string{">", "*", "a.*.b", "a.>", "%20.%", "a"} {
		if _, err := NewClient("prod", "svc-a", pattern); err != nil {
			t.Error(err)
		}
	}
}

func TestUsersThatDoNotGoTogether(t *testing.T) {
	made := mustUser(t)
	a, node := made(NewClient("prod", "svc-a")), made(NewNode("prod", "n1"))
	template := made(NewClient("prod", Template))
	for what, f := range map[string]func() (string, error){
		"no users":              func() (string, error) { return Users() },
		"a name twice":          func() (string, error) { return Users(a, node, a) },
		"a node's name":         func() (string, error) { return Users(made(NewClient("prod", "n1")), node) },
		"a variable twice":      func() (string, error) { return Users(a, made(NewClient("prod", "SVC_A"))) },
		"a template for a user": func() (string, error) { return Users(template) },
		"a user for a template": func() (string, error) { return SigningKeys("LOCKS", a) },
		"keys for nobody":       func() (string, error) { return SigningKeys("LOCKS") },
		"no account":            func() (string, error) { return Accounts("", []User{node}) },
		"accounts of one name":  func() (string, error) { return Accounts("A", []User{node}, Account{"A", []User{a}}) },
		"a node elsewhere":      func() (string, error) { return Accounts("A", []User{a}, Account{"B", []User{node}}) },
		"two clusters": func() (string, error) {
			return Accounts("A", []User{node}, Account{"B", []User{made(NewClient("x", "y"))}})
		},
		"an account's name":             func() (string, error) { return Accounts("A", []User{node}, Account{"B }", []User{a}}) },
		"a key's account":               func() (string, error) { return SigningKeys("A'", template) },
		"a name in two accounts":        func() (string, error) { return Accounts("A", []User{node, a}, Account{"B", []User{a}}) },
		"certificates for a name twice": func() (string, error) { return UsersByCertificate(Files{}, a, a) },
		"a cluster's name":              func() (string, error) { return Routes("a b", ":1", Files{}) },
	} {
		if text, err := f(); err == nil {
			t.Errorf("%s: no error but\n%s", what, text)
		}
	}
}

// A server understands the written configuration as Permissions has it, whatever the
// password.
func TestTextMeansTheSame(t *testing.T) {
	made := mustUser(t)
	users := []User{
		made(NewClient("prod", "svc-a", "orders.>", "%20x.*")), made(NewObserver("prod", "watch")),
		made(NewMonitor("prod", "monitor")), made(NewNode("prod", "n1")),
	}
	passwords := []string{"plain", `with "quotes" \ and $dollar # {`, "$2a$11$W2zko751KUvVy59mUTWmpOdWjpEm5qhcCZRd05GjI/sSOT.xtiHyG", "ünicode ☃"}
	for i := range users {
		users[i].Password = passwords[i]
	}
	text, err := Users(users...)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	opts, err := server.ProcessConfigFile(path)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if len(opts.Users) != len(users) {
		t.Fatalf("%d users, want %d", len(opts.Users), len(users))
	}
	for i, got := range opts.Users {
		if got.Username != users[i].Name || got.Password != passwords[i] {
			t.Errorf("user %q with password %q", got.Username, got.Password)
		}
		want := users[i].Permissions()
		for _, l := range []struct{ got, want *server.SubjectPermission }{
			{got.Permissions.Publish, want.Publish}, {got.Permissions.Subscribe, want.Subscribe},
		} {
			if !slices.Equal(l.got.Allow, l.want.Allow) || !slices.Equal(l.got.Deny, l.want.Deny) {
				t.Errorf("%s: %v, want %v", got.Username, l.got, l.want)
			}
		}
	}
}

// No role includes the families of subjects that are reserved for services.
func TestReservedFamiliesAreNobodys(t *testing.T) {
	user := mustUser(t)
	for _, u := range []User{
		user(NewClient("prod", "a")), user(NewClient("prod", "api", "api.>")), user(NewMember("prod", "a")), user(NewObserver("prod", "a")), user(NewAuditor("prod", "a")),
		user(NewMonitor("prod", "a")), user(NewInspector("prod", "a")), user(NewOperator("prod", "a")), user(NewNode("prod", "a")),
	} {
		for _, family := range []string{subject.FamilyAPI, subject.FamilyGateway} {
			for _, allowed := range slices.Concat(u.Publish, u.Subscribe) {
				if server.SubjectsCollide(allowed, subject.Family("prod", family)) {
					t.Errorf("the %s may use %s, which has subjects of %s", u.Role, allowed, family)
				}
			}
		}
	}
}
