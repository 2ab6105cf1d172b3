// Package permissions writes NATS configuration that limits a user to what its role allows.
// The NATS server then enforces who may lock what under which name, before a message
// reaches a node.
//
// docs/security.md shows what this package writes, and explains it. The tests of
// integration/security run real servers with it.
package permissions

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/qlock/qlock/internal/subject"
)

// Template is the placeholder of a user's name in the permissions of a scoped signing key.
// The server replaces it by the name of the user that connects, in operator mode (JWT)
// only.
const Template = "{{name()}}"

// Role is the role of a user, which determines its permissions.
type Role string

const (
	RoleClient    Role = "client"    // locks under its own name
	RoleMember    Role = "member"    // locks under its own name, lists locks, sees events
	RoleObserver  Role = "observer"  // sees events
	RoleAuditor   Role = "auditor"   // sees events and requests
	RoleMonitor   Role = "monitor"   // asks nodes for their state
	RoleInspector Role = "inspector" // asks nodes which locks are held and by whom
	RoleOperator  Role = "operator"  // does what an inspector does, and evicts
	RoleNode      Role = "node"      // votes

	RoleAdministrator Role = "administrator" // changes the list of nodes
)

// User is a NATS user and its permissions. What is not listed is not allowed.
type User struct {
	Role    Role
	Cluster string
	Name    string

	// Password is the user's password, or the bcrypt hash of one. If it is empty, the
	// configuration refers to the variable QLOCK_<NAME>, which the server takes from its
	// environment.
	Password string

	// Publish and Subscribe are the subjects that the user may publish and subscribe to.
	Publish, Subscribe []string
}

// The verbs that roles may use.
var (
	clientVerbs    = verbs{subject.Acquire, subject.Release, subject.Yield, subject.Refresh, subject.Info}
	memberVerbs    = append(clientVerbs[:len(clientVerbs):len(clientVerbs)], subject.Inspect, subject.List)
	inspectorVerbs = verbs{subject.Inspect, subject.List, subject.Info}
	operatorVerbs  = verbs{subject.Inspect, subject.Evict, subject.List, subject.Info}
	monitorVerbs   = verbs{subject.Info}

	administratorVerbs = verbs{subject.Config, subject.Info}
)

type verbs []string

// subjects returns the subjects of the client name's requests for these resources.
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

// NewClient returns a user that may lock as the client of its name, and as no other.
// resources limit what it may lock: patterns such as orders.>, in the encoding of subjects
// (a byte that subjects cannot have is %XX, as docs/wire.md says). Without resources it may
// lock everything, and send several requests in one message. With resources it may not send
// such messages, since NATS does not see the resources in them.
//
// A refresh names no resource. It needs no limit, because it creates no claims.
func NewClient(cluster, name string, resources ...string) (User, error) {
	return newLocking(RoleClient, clientVerbs, cluster, name, resources)
}

// NewMember returns a client that may also list locks, and sees events: what packages members
// and partition need. resources limit what it may lock, which locks it may ask about one by
// one, and of which it sees events. They do not limit the list, which has all locks, since
// its subject names none.
func NewMember(cluster, name string, resources ...string) (User, error) {
	u, err := newLocking(RoleMember, memberVerbs, cluster, name, resources)
	if err != nil {
		return User{}, err
	}
	if len(resources) == 0 {
		u.Subscribe = append(u.Subscribe, subject.Family(cluster, subject.FamilyEvent))
	}
	for _, r := range resources {
		u.Subscribe = append(u.Subscribe, subject.Event(cluster, subject.Any, subject.Any, r))
	}
	return u, nil
}

func newLocking(role Role, v verbs, cluster, name string, resources []string) (User, error) {
	u, resources, err := newLimited(role, v, cluster, name, resources)
	if err == nil && slices.Contains(resources, ">") {
		u.Publish = append(u.Publish, subject.Batch(cluster, name))
	}
	for _, r := range resources {
		u.Publish = append(u.Publish, subject.Event(cluster, subject.Any, name, r))
	}
	return u, err
}

// newLimited returns a user that may send requests for the resources that the patterns
// match, or for all if there are none.
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

// NewObserver returns a user that sees what is locked and unlocked, by which client, and
// with which tokens. It can publish nothing.
func NewObserver(cluster, name string) (User, error) {
	u, err := newUser(RoleObserver, cluster, name)
	u.Subscribe = []string{subject.Family(cluster, subject.FamilyEvent)}
	return u, err
}

// NewAuditor returns an observer that also sees the requests, and so which client waits for
// what. It cannot see the answers.
func NewAuditor(cluster, name string) (User, error) {
	u, err := newUser(RoleAuditor, cluster, name)
	u.Subscribe = []string{subject.Family(cluster, subject.FamilyEvent), subject.Family(cluster, subject.FamilyNode), subject.Family(cluster, subject.FamilyAdmin)}
	return u, err
}

// NewMonitor returns a user that sees events and asks nodes for their state: with `nats
// micro` and --inbox-prefix, and with the request info. It cannot acquire locks.
func NewMonitor(cluster, name string) (User, error) {
	u, err := newUser(RoleMonitor, cluster, name)
	u.Publish = append(monitorVerbs.subjects(cluster, name), service...)
	u.Subscribe = []string{u.inbox() + ".>", subject.Family(cluster, subject.FamilyEvent)}
	return u, err
}

// NewInspector returns a user that asks nodes which claims hold locks and which wait, and
// that sees events. It cannot acquire locks. resources limit which locks it may ask about
// one by one. They do not limit the list, which has all locks, since its subject names
// none.
func NewInspector(cluster, name string, resources ...string) (User, error) {
	return newInspector(RoleInspector, inspectorVerbs, cluster, name, resources)
}

// NewOperator returns an inspector that may also evict: end claims of others that hold or
// wait. It cannot acquire locks. resources limit what it may evict, and which locks it may
// ask about one by one.
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

// NewAdministrator returns a user that changes the list of nodes of the cluster, and can do
// nothing else. It is a role of its own because whoever decides which nodes there are decides
// about all locks.
func NewAdministrator(cluster, name string) (User, error) {
	u, err := newUser(RoleAdministrator, cluster, name)
	u.Publish = administratorVerbs.subjects(cluster, name)
	u.Subscribe = []string{u.inbox() + ".>"}
	return u, err
}

// service has the subjects of NATS services that qlock's nodes answer on: the verbs PING,
// INFO and STATS for all services, for those named qlock, and for one of these.
var service = []string{"$SRV.*", "$SRV.*.qlock", "$SRV.*.qlock.*"}

// NewNode returns a user that votes as the node of its name. It may publish to every inbox,
// and probe its own name (rule N9).
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

// InboxPrefix returns what the user's connections must set as nats.CustomInboxPrefix. The
// inboxes under this prefix belong to the user, and it can subscribe to no others.
func (u User) InboxPrefix() string { return u.inbox() }

func (u User) inbox() string { return subject.InboxPrefix(u.Name) }

// Permissions returns the permissions in the form that an embedded server takes. An empty
// list allows nothing.
func (u User) Permissions() *server.Permissions {
	list := func(allow []string) *server.SubjectPermission {
		if len(allow) == 0 {
			return &server.SubjectPermission{Deny: []string{">"}}
		}
		return &server.SubjectPermission{Allow: append([]string(nil), allow...)}
	}
	return &server.Permissions{Publish: list(u.Publish), Subscribe: list(u.Subscribe)}
}

// checkToken makes the same demands on a name as package qlock.
func checkToken(kind, s string) error {
	if err := subject.CheckToken(kind, s); err != nil {
		return fmt.Errorf("permissions: %w", err)
	}
	return nil
}

// checkPattern accepts a pattern that can end a subject in a permission and be quoted in a
// configuration file.
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

// checkUsers rejects users that NATS would accept but that are always a mistake. Two users
// of one name have one identity, and a client with the name of a node could send requests
// in the node's name.
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

// variable returns the name of the variable that contains the user's password.
func (u User) variable() string {
	return "QLOCK_" + strings.ToUpper(strings.ReplaceAll(u.Name, "-", "_"))
}
