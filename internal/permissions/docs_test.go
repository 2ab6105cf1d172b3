package permissions

import (
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what the generator says into docs/security.md")

const page = "../../docs/security.md"

// printed are the configurations of docs/security.md. The tests of
// integration/security read them from there, and run servers with them.
func printed(t *testing.T) map[string]string {
	t.Helper()
	made := func(u User, err error) User {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	text := func(s string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	nodes := []User{made(NewNode("prod", "n1")), made(NewNode("prod", "n2")), made(NewNode("prod", "n3"))}
	others := []User{made(NewObserver("prod", "watch")), made(NewAuditor("prod", "audit")), made(NewMonitor("prod", "monitor")),
		made(NewInspector("prod", "look")), made(NewOperator("prod", "ops")), made(NewOperator("prod", "ops-orders", "orders.>")),
		made(NewAdministrator("prod", "admin"))}
	worker := made(NewMember("prod", "worker", "qlock.members.workers.>", "qlock.partition.workers.*"))
	a, b := made(NewClient("prod", "svc-a", "orders.>")), made(NewClient("prod", "svc-b"))

	users := append([]User{a, b, worker}, others...)
	files := Files{Cert: "tls/server.pem", Key: "tls/server-key.pem", CA: "tls/ca.pem"}
	return map[string]string{
		"users": text(Users(append(users, nodes...)...)),
		"certificates": text(UsersByCertificate(files,
			append([]User{a, b}, nodes...)...)),
		"routes": text(Routes("prod", "0.0.0.0:6222", files,
			"nats-route://n1.example:6222", "nats-route://n2.example:6222", "nats-route://n3.example:6222")),
		"accounts": text(Accounts("LOCKS", append(nodes, others...),
			Account{Name: "ORDERS", Users: []User{a}}, Account{Name: "BILLING", Users: []User{b}})),
		"signing-keys": text(SigningKeys("LOCKS",
			made(NewClient("prod", Template)), made(NewMember("prod", Template)), made(NewObserver("prod", Template)), made(NewAuditor("prod", Template)),
			made(NewMonitor("prod", Template)), made(NewInspector("prod", Template)), made(NewOperator("prod", Template)),
			made(NewAdministrator("prod", Template)), made(NewNode("prod", Template)))),
	}
}

// The page shows what the generator writes, and all of it.
func TestPageShowsWhatIsGenerated(t *testing.T) {
	before, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	want := printed(t)
	var out strings.Builder
	rest := string(before)
	for {
		head, tail, ok := strings.Cut(rest, "<!-- generated: ")
		out.WriteString(head)
		if !ok {
			break
		}
		name, tail, ok := strings.Cut(tail, " -->\n")
		if !ok {
			t.Fatalf("%s: a mark that does not end", page)
		}
		text, found := want[name]
		if !found {
			t.Fatalf("%s shows %q, which is not generated", page, name)
		}
		delete(want, name)
		fence, tail, ok := strings.Cut(tail, "\n")
		if !ok || !strings.HasPrefix(fence, "```") {
			t.Fatalf("%s: no fence after the mark %q", page, name)
		}
		_, tail, ok = strings.Cut("\n"+tail, "\n```\n")
		if !ok {
			t.Fatalf("%s: the fence of %q does not end", page, name)
		}
		out.WriteString("<!-- generated: " + name + " -->\n" + fence + "\n" + text + "```\n")
		rest = tail
	}
	for name := range want {
		t.Errorf("%s does not show %q", page, name)
	}
	if out.String() == string(before) {
		return
	}
	if *update {
		if err := os.WriteFile(page, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("%s is not what the generator writes: go test ./internal/permissions -update", page)
}
