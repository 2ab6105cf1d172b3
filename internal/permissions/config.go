package permissions

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/qlock/qlock/internal/subject"
)

// Users returns a server's authorization block for users with passwords.
func Users(users ...User) (string, error) {
	if err := checkUsers(users); err != nil {
		return "", err
	}
	var w writer
	w.open("authorization {")
	w.users(users, true)
	w.close("}")
	return w.String(), nil
}

// Files holds the paths of a server's certificate, its key, and the authority that issues
// certificates, as the server reads them.
type Files struct{ Cert, Key, CA string }

// UsersByCertificate returns the blocks tls and authorization for users who present a
// certificate instead of a password. The server takes a client for the user whose name the
// client's certificate contains as a DNS name or as an e-mail address. The connection is
// encrypted, and both ends authenticate each other.
func UsersByCertificate(f Files, users ...User) (string, error) {
	if err := checkUsers(users); err != nil {
		return "", err
	}
	var w writer
	w.tls(f, "verify_and_map: true")
	w.open("authorization {")
	w.users(users, false)
	w.close("}")
	return w.String(), nil
}

// Routes returns the block cluster for a server of a mesh whose servers authenticate each
// other by certificates. The certificate must be valid for both ends of a connection. List
// all servers of the mesh; the server's own address may be among them.
func Routes(cluster, listen string, f Files, routes ...string) (string, error) {
	if err := checkToken("cluster", cluster); err != nil {
		return "", err
	}
	var w writer
	w.open("cluster {")
	w.line("name: %s", quoted("qlock-"+cluster))
	w.line("listen: %s", quoted(listen))
	w.line("ping_interval: %s, ping_max: 2 # a route that is half open is found within seconds", quoted("1s"))
	w.line("pool_size: 1, compression: off # small messages")
	w.tls(f, "verify: true")
	w.list("routes", routes)
	w.close("}")
	return w.String(), nil
}

// Account is a NATS account that uses the lock service of another account.
type Account struct {
	Name  string
	Users []User
}

// Accounts returns the block accounts: the account name with the nodes, and the accounts
// that use its lock service. Each of these may send requests only under the names of the
// users that are listed for it here, and only those that their roles allow, whatever users
// it gets later. The events of these users reach the observers of the first account, and no
// other events do.
//
// One request has several answers, so the export must be a stream of them. The server keeps
// a record of every request across accounts for as long as its answers may come, for which
// the configuration sets a limit of one minute. That is longer than any wait for an answer
// unless leases are longer than three minutes, since a waiting client repeats its request
// every third of its lease.
func Accounts(name string, users []User, others ...Account) (string, error) {
	all := append([]User(nil), users...)
	names := map[string]bool{name: true}
	if err := checkToken("account", name); err != nil {
		return "", err
	}
	for _, a := range others {
		if err := checkToken("account", a.Name); err != nil {
			return "", err
		}
		if names[a.Name] {
			return "", fmt.Errorf("permissions: two accounts are named %q", a.Name)
		}
		names[a.Name] = true
		for _, u := range a.Users {
			if u.Role == RoleNode {
				return "", fmt.Errorf("permissions: node %q is in account %s, but nodes must be in %s", u.Name, a.Name, name)
			}
		}
		all = append(all, a.Users...)
	}
	if err := checkUsers(all); err != nil {
		return "", err
	}
	cluster := all[0].Cluster
	for _, u := range all {
		if u.Cluster != cluster {
			return "", fmt.Errorf("permissions: users of the clusters %s and %s: write one configuration for each", cluster, u.Cluster)
		}
	}

	var w writer
	w.open("accounts {")
	w.open("%s {", name)
	w.users(acrossAccounts(users), true)
	w.open("exports: [")
	for _, a := range others {
		for _, s := range a.services() {
			w.line("{ service: %s, response_type: stream, response_threshold: %s, accounts: [%s] }", quoted(s), quoted("1m"), a.Name)
		}
	}
	w.close("]")
	w.open("imports: [")
	for _, a := range others {
		for _, s := range a.events() {
			w.line("{ stream: { account: %s, subject: %s } }", a.Name, quoted(s))
		}
	}
	w.close("]")
	w.close("}")
	for _, a := range others {
		w.open("%s {", a.Name)
		w.users(a.Users, true)
		w.open("imports: [")
		for _, s := range a.services() {
			w.line("{ service: { account: %s, subject: %s } }", name, quoted(s))
		}
		w.close("]")
		w.open("exports: [")
		for _, s := range a.events() {
			w.line("{ stream: %s, accounts: [%s] }", quoted(s), name)
		}
		w.close("]")
		w.close("}")
	}
	w.close("}")
	return w.String(), nil
}

// services returns the subjects on which the account may send requests. They follow from
// the roles of its users and include all resources: limiting its users to some resources is
// up to their account. The subjects name each verb. With a wildcard in place of the verb,
// the administrator of the account could let a client evict others.
func (a Account) services() []string {
	var out []string
	for _, u := range a.Users {
		switch u.Role {
		case RoleClient:
			out = append(append(out, clientVerbs.subjects(u.Cluster, u.Name, ">")...), subject.Batch(u.Cluster, u.Name))
		case RoleMember:
			out = append(append(out, memberVerbs.subjects(u.Cluster, u.Name, ">")...), subject.Batch(u.Cluster, u.Name))
		case RoleInspector:
			out = append(out, inspectorVerbs.subjects(u.Cluster, u.Name, ">")...)
		case RoleOperator:
			out = append(out, operatorVerbs.subjects(u.Cluster, u.Name, ">")...)
		case RoleMonitor:
			out = append(out, monitorVerbs.subjects(u.Cluster, u.Name)...)
		case RoleAdministrator:
			out = append(out, administratorVerbs.subjects(u.Cluster, u.Name)...)
		}
	}
	return out
}

// events returns the subjects on which the account's clients publish events.
func (a Account) events() []string {
	var out []string
	for _, u := range a.Users {
		if u.Role == RoleClient || u.Role == RoleMember {
			out = append(out, subject.Event(u.Cluster, subject.Any, u.Name, subject.Rest))
		}
	}
	return out
}

// acrossAccounts lets nodes answer requests of other accounts: the server replaces the
// inbox by a reply subject of its own under _R_.
func acrossAccounts(users []User) []User {
	out := append([]User(nil), users...)
	for i := range out {
		if out[i].Role == RoleNode {
			out[i].Publish = append(append([]string(nil), out[i].Publish...), "_R_.>")
		}
	}
	return out
}

// SigningKeys returns commands of the tool nsc that create, for an account in operator
// mode, a scoped signing key for each of the users, whose names must be Template. A user
// that is issued with such a key has the permissions of its role, under its own name. The
// owner of only that key can issue no other users.
func SigningKeys(account string, users ...User) (string, error) {
	if err := checkToken("account", account); err != nil {
		return "", err
	}
	if len(users) == 0 {
		return "", errors.New("permissions: no users")
	}
	var b strings.Builder
	for _, u := range users {
		if u.Name != Template {
			return "", fmt.Errorf("permissions: the %s of a signing key is named %q, it must be %s", u.Role, u.Name, Template)
		}
		fmt.Fprintf(&b, "nsc edit signing-key --account %s --role %s --sk generate", account, u.Role)
		p := u.Permissions()
		for _, l := range []struct {
			flag string
			list []string
		}{
			{"--allow-pub", p.Publish.Allow}, {"--deny-pub", p.Publish.Deny},
			{"--allow-sub", p.Subscribe.Allow}, {"--deny-sub", p.Subscribe.Deny},
		} {
			for _, s := range l.list {
				fmt.Fprintf(&b, " \\\n  %s '%s'", l.flag, s)
			}
		}
		b.WriteString("\n")
	}
	return b.String(), nil
}

// writer indents the text between braces.
type writer struct {
	strings.Builder
	depth int
}

func (w *writer) line(format string, args ...any) {
	w.WriteString(strings.Repeat("  ", w.depth))
	fmt.Fprintf(w, format, args...)
	w.WriteByte('\n')
}

func (w *writer) open(format string, args ...any) {
	w.line(format, args...)
	w.depth++
}

func (w *writer) close(s string) {
	w.depth--
	w.line("%s", s)
}

func (w *writer) list(key string, values []string) {
	w.open("%s: [", key)
	for _, v := range values {
		w.line("%s", quoted(v))
	}
	w.close("]")
}

func (w *writer) tls(f Files, verify string) {
	w.open("tls {")
	w.line("cert_file: %s", quoted(f.Cert))
	w.line("key_file: %s", quoted(f.Key))
	w.line("ca_file: %s", quoted(f.CA))
	w.line("%s", verify)
	w.close("}")
}

func (w *writer) users(users []User, passwords bool) {
	w.open("users: [")
	for _, u := range users {
		w.open("{ # %s", u.Role)
		w.line("user: %s", quoted(u.Name))
		switch {
		case !passwords:
		case u.Password != "":
			w.line("password: %s", quoted(u.Password))
		default:
			w.line("password: $%s", u.variable())
		}
		w.open("permissions: {")
		for _, l := range []struct {
			key  string
			list []string
		}{{"publish", u.Publish}, {"subscribe", u.Subscribe}} {
			if len(l.list) == 0 {
				w.line("%s: { deny: %s }", l.key, quoted(">"))
			} else {
				w.list(l.key, l.list)
			}
		}
		w.close("}")
		w.close("}")
	}
	w.close("]")
}

// quoted returns s as a string of a configuration file. NATS understands those escapes of
// Go that can occur here.
func quoted(s string) string { return strconv.Quote(s) }
