// Package permissions writes NATS configuration in which a user can do with
// locks what its role allows, and nothing else: who may lock under which name,
// and what, is enforced by the NATS server, before a message reaches a node.
//
// docs/security.md has what it writes, and why. The tests of integration/security
// run real servers with it.
package permissions

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/qlock/qlock/internal/subject"
)

// Template stands for a user's name in the permissions of a scoped signing key:
// the server puts in the name of the user that connects. It knows it in operator
// mode (JWT) only.
const Template = "{{name()}}"

// Role is what a user is.
type Role string

const (
	RoleClient    Role = "client"    // takes locks under its own name
	RoleObserver  Role = "observer"  // sees events
	RoleAuditor   Role = "auditor"   // sees events and requests
	RoleMonitor   Role = "monitor"   // asks nodes how they are
	RoleInspector Role = "inspector" // asks nodes who holds what
	RoleOperator  Role = "operator"  // the same, and evicts
	RoleNode      Role = "node"      // votes
)

// User is a NATS user and what it may do. Nothing is allowed that is not listed.
type User struct {
	Role    Role
	Cluster string
	Name    string

	// Password is its password, or the bcrypt hash of one. Empty: the variable
	// QLOCK_<NAME>, which the server takes from its environment.
	Password string

	Publish, Subscribe []string
}

// What roles ask for.
var (
	clientVerbs    = verbs{subject.Acquire, subject.Release, subject.Yield, subject.Refresh, subject.Info}
	inspectorVerbs = verbs{subject.Inspect, subject.List, subject.Info}
	operatorVerbs  = verbs{subject.Inspect, subject.Evict, subject.List, subject.Info}
	monitorVerbs   = verbs{subject.Info}
)

type verbs []string

// subjects are where the client name asks, for these resources.
func (v verbs) subjects(cluster, name string, resources ...string) []string {
	var out []string
	for _, verb := range v {
		if !subject.HasResource(verb) {
			out = append(out, subject.Request(cluster, verb, name, ""))
			continue
		}
		for _, r := range resources {
			out = append(out, subject.Request(cluster, verb, name, r))
		}
	}
	return out
}

// NewClient is a user that takes locks as the client of its name, and as no
// other. resources limit what it may lock: patterns such as orders.>, written as
// in subjects (a byte that subjects cannot have is %XX, as docs/wire.md says).
// Without any it may lock everything, and send several requests in one message; with
// some it may not, since NATS does not see the resources in there.
//
// A refresh names no resource, and needs no limit: it creates no claims.
func NewClient(cluster, name string, resources ...string) (User, error) {
	u, resources, err := newLimited(RoleClient, clientVerbs, cluster, name, resources)
	if err == nil && slices.Contains(resources, ">") {
		u.Publish = append(u.Publish, subject.Batch(cluster, name))
	}
	for _, r := range resources {
		u.Publish = append(u.Publish, subject.Event(cluster, subject.Any, name, r))
	}
	return u, err
}

// newLimited is a user that asks for resources: those that the patterns have, or all.
func newLimited(role Role, v verbs, cluster, name string, resources []string) (User, []string, error) {
	u, err := newUser(role, cluster, name)
	if err != nil {
		return User{}, nil, err
	}
	if len(resources) == 0 {
		resources = []string{">"}
	}
	for _, r := range resources {
		if err := checkPattern(r); err != nil {
			return User{}, nil, err
		}
	}
	u.Publish = v.subjects(cluster, name, resources...)
	u.Subscribe = []string{u.inbox() + ".>"}
	return u, resources, nil
}

// NewObserver is a user that sees what is locked and unlocked, by whom, and with
// which tokens. It can publish nothing.
func NewObserver(cluster, name string) (User, error) {
	u, err := newUser(RoleObserver, cluster, name)
	u.Subscribe = []string{subject.Family(cluster, subject.FamilyEvent)}
	return u, err
}

// NewAuditor is an observer that also sees the requests: who waits for what. It
// cannot see the answers.
func NewAuditor(cluster, name string) (User, error) {
	u, err := newUser(RoleAuditor, cluster, name)
	u.Subscribe = []string{subject.Family(cluster, subject.FamilyEvent), subject.Family(cluster, subject.FamilyNode), subject.Family(cluster, subject.FamilyAdmin)}
	return u, err
}

// NewMonitor is a user that sees events and asks nodes how they are: `nats micro`
// with --inbox-prefix, and the request info. It cannot take locks.
func NewMonitor(cluster, name string) (User, error) {
	u, err := newUser(RoleMonitor, cluster, name)
	u.Publish = append(monitorVerbs.subjects(cluster, name), service...)
	u.Subscribe = []string{u.inbox() + ".>", subject.Family(cluster, subject.FamilyEvent)}
	return u, err
}

// NewInspector is a user that asks nodes who holds what and who waits, and sees
// events. It cannot take locks. resources limit what it may ask about one by one;
// the list is of all locks, since its subject names none.
func NewInspector(cluster, name string, resources ...string) (User, error) {
	return newInspector(RoleInspector, inspectorVerbs, cluster, name, resources)
}

// NewOperator is an inspector that may also evict: end what others hold or wait for.
// It cannot take locks. resources limit what it may evict, and ask about one by one.
func NewOperator(cluster, name string, resources ...string) (User, error) {
	return newInspector(RoleOperator, operatorVerbs, cluster, name, resources)
}

func newInspector(role Role, v verbs, cluster, name string, resources []string) (User, error) {
	u, _, err := newLimited(role, v, cluster, name, resources)
	if err == nil {
		u.Subscribe = append(u.Subscribe, subject.Family(cluster, subject.FamilyEvent))
	}
	return u, err
}

// service are the subjects of NATS services that qlock's nodes answer on: the
// verbs PING, INFO and STATS for all services, for those named qlock, and for one
// of these.
var service = []string{"$SRV.*", "$SRV.*.qlock", "$SRV.*.qlock.*"}

// NewNode is a user that votes as the node of its name. It may answer in every
// inbox, and ask after its own name (rule N9).
func NewNode(cluster, name string) (User, error) {
	u, err := newUser(RoleNode, cluster, name)
	u.Publish = []string{subject.AllInboxes, subject.Request(cluster, subject.Info, name, "")}
	u.Subscribe = append([]string{subject.Family(cluster, subject.FamilyNode), subject.Family(cluster, subject.FamilyAdmin), u.inbox() + ".>"}, service...)
	return u, err
}

func newUser(role Role, cluster, name string) (User, error) {
	if err := checkToken("cluster", cluster); err != nil {
		return User{}, err
	}
	if name != Template {
		if err := checkToken(string(role), name); err != nil {
			return User{}, err
		}
	}
	return User{Role: role, Cluster: cluster, Name: name}, nil
}

// InboxPrefix is what the user's connections need as nats.CustomInboxPrefix: the
// inboxes under it are its own, and it can listen on no other.
func (u User) InboxPrefix() string { return u.inbox() }

func (u User) inbox() string { return subject.InboxPrefix(u.Name) }

// Permissions is what a server embedded in a program takes. A list that is empty
// allows nothing.
func (u User) Permissions() *server.Permissions {
	list := func(allow []string) *server.SubjectPermission {
		if len(allow) == 0 {
			return &server.SubjectPermission{Deny: []string{">"}}
		}
		return &server.SubjectPermission{Allow: append([]string(nil), allow...)}
	}
	return &server.Permissions{Publish: list(u.Publish), Subscribe: list(u.Subscribe)}
}

// checkToken is what package qlock demands of these names.
func checkToken(kind, s string) error {
	if err := subject.CheckToken(kind, s); err != nil {
		return fmt.Errorf("permissions: %w", err)
	}
	return nil
}

// checkPattern takes what can be the end of a subject in a permission, and be
// written between quotes in a configuration file.
func checkPattern(p string) error {
	tokens := strings.Split(p, ".")
	for i, token := range tokens {
		why := ""
		switch {
		case token == "":
			why = "it has an empty token: an empty token of a name is written %"
		case token == ">" && i < len(tokens)-1:
			why = "> stands for all that follows, and must be last"
		case token == ">", token == "*":
		case strings.ContainsAny(token, "*>"):
			why = "* and > stand for whole tokens: in a name they are written %2A and %3E"
		case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("\"'`\\", r) }):
			why = "it has a character that is written %XX in subjects"
		}
		if why != "" {
			return fmt.Errorf("permissions: the resources %.100q: %s", p, why)
		}
	}
	return nil
}

// checkUsers refuses what NATS would take and nobody can want: two users of one
// name have one identity, and a client with the name of a node could ask in the
// node's name.
func checkUsers(users []User) error {
	if len(users) == 0 {
		return errors.New("permissions: no users")
	}
	names, variables := map[string]bool{}, map[string]string{}
	for _, u := range users {
		if u.Name == Template || checkToken("user", u.Name) != nil {
			return fmt.Errorf("permissions: %.100q is not a valid user name in a configuration file", u.Name)
		}
		if names[u.Name] {
			return fmt.Errorf("permissions: two users are named %q", u.Name)
		}
		names[u.Name] = true
		if u.Password != "" {
			continue
		}
		v := u.variable()
		if other, taken := variables[v]; taken {
			return fmt.Errorf("permissions: the passwords of %q and %q would both be $%s: set User.Password", other, u.Name, v)
		}
		variables[v] = u.Name
	}
	return nil
}

// variable is what holds the user's password.
func (u User) variable() string {
	return "QLOCK_" + strings.ToUpper(strings.ReplaceAll(u.Name, "-", "_"))
}
