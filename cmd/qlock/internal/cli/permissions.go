package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/permissions"
)

var roles = []string{"client", "member", "observer", "auditor", "monitor", "inspector", "operator", "administrator", "node"}

func (a *app) permissions() *cobra.Command {
	var cluster, format, account string
	var cert, key, ca string
	cmd := &cobra.Command{
		Use:     "permissions ROLE:NAME[=PATTERN,...]... [flags]",
		Short:   "Write NATS permissions",
		GroupID: groupNodes,
		Long: `Write NATS configuration for users. Each user may do with locks what its role
allows, and nothing else. docs/security.md explains what this does and does not
protect against.

  client:NAME             acquires locks, under this name only
  client:NAME=PATTERN,…   acquires these locks only: orders.>, stock.*.count
  member:NAME=PATTERN,…   the same; lists locks, and receives events of these: programs
                          that use packages members and partition
  observer:NAME           receives events: enough for qlock watch --events
  auditor:NAME            receives events and requests: qlock watch
  monitor:NAME            queries the state of nodes: qlock nodes, nats micro
  inspector:NAME          lists locks, and receives events: qlock ls, qlock info
  operator:NAME           the same, and evicts: qlock unlock --force
  operator:NAME=PATTERN,… evicts from these locks only, and sees of others what ls shows;
                          inspector:NAME=PATTERN,… sees the same
  administrator:NAME      changes the list of nodes
  node:NAME               votes

Formats: users (an authorization block, with passwords from variables of the
server's environment), certificates (the server identifies users by their
certificates), signing-keys (nsc commands; write ROLE alone, without a name), json.`,
		Example: `  qlock permissions node:n1 node:n2 node:n3 'client:billing=orders.>,stock.*' observer:watch
  qlock permissions inspector:support 'operator:ops=orders.>'
  qlock permissions --format certificates client:billing node:n1
  qlock permissions --format signing-keys --account LOCKS client node`,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage("no users: name some, such as client:billing or node:n1; the roles are %s", strings.Join(roles, ", "))
			}
			var users []permissions.User
			for _, arg := range args {
				u, err := parseUser(cluster, arg, format == "signing-keys")
				if err != nil {
					return usage("%q: %w", arg, err)
				}
				users = append(users, u)
			}
			var out string
			var err error
			switch format {
			case "users":
				out, err = permissions.Users(users...)
			case "certificates":
				out, err = permissions.UsersByCertificate(permissions.Files{Cert: cert, Key: key, CA: ca}, users...)
			case "signing-keys":
				out, err = permissions.SigningKeys(account, users...)
			case "json":
				return a.json(jsonUsers(users))
			}
			if err != nil {
				return usage("%s", plain(err))
			}
			_, err = fmt.Fprint(a.out, out)
			return err
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&cluster, "cluster", qlock.DefaultCluster, "name of the lock cluster")
	env(fs, "cluster", "QLOCK_CLUSTER")
	choiceFlag(fs, &format, "format", "users", []string{"users", "certificates", "signing-keys", "json"}, "format to write")
	fs.StringVar(&account, "account", "LOCKS", "account of the signing keys")
	fs.StringVar(&cert, "tlscert", "tls/server.pem", "certificates: path of the server's certificate, as the server reads it")
	fs.StringVar(&key, "tlskey", "tls/server-key.pem", "certificates: path of its key")
	fs.StringVar(&ca, "tlsca", "tls/ca.pem", "certificates: path of the CA certificates of the clients")
	return cmd
}

func parseUser(cluster, arg string, template bool) (permissions.User, error) {
	arg, patterns, limited := strings.Cut(arg, "=")
	role, name, named := strings.Cut(arg, ":")
	switch {
	case template && named:
		return permissions.User{}, fmt.Errorf("a signing key is for a role, not for one name: write %s", role)
	case template:
		name = permissions.Template
	case !named:
		return permissions.User{}, fmt.Errorf("write ROLE:NAME; the roles are %s", strings.Join(roles, ", "))
	}
	var resources []string
	if limited {
		resources = strings.Split(patterns, ",")
	}
	switch permissions.Role(role) {
	case permissions.RoleClient:
		return permissions.NewClient(cluster, name, resources...)
	case permissions.RoleMember:
		return permissions.NewMember(cluster, name, resources...)
	case permissions.RoleInspector:
		return permissions.NewInspector(cluster, name, resources...)
	case permissions.RoleOperator:
		return permissions.NewOperator(cluster, name, resources...)
	}
	if limited {
		return permissions.User{}, errors.New("only clients, members, inspectors and operators can be limited to some locks")
	}
	switch permissions.Role(role) {
	case permissions.RoleObserver:
		return permissions.NewObserver(cluster, name)
	case permissions.RoleAuditor:
		return permissions.NewAuditor(cluster, name)
	case permissions.RoleMonitor:
		return permissions.NewMonitor(cluster, name)
	case permissions.RoleAdministrator:
		return permissions.NewAdministrator(cluster, name)
	case permissions.RoleNode:
		return permissions.NewNode(cluster, name)
	}
	return permissions.User{}, fmt.Errorf("there is no role %q, the roles are %s", role, strings.Join(roles, ", "))
}

type jsonUser struct {
	Role        string   `json:"role"`
	Name        string   `json:"name"`
	InboxPrefix string   `json:"inbox_prefix"`
	Publish     []string `json:"publish"`
	Subscribe   []string `json:"subscribe"`
}

func jsonUsers(users []permissions.User) []jsonUser {
	var out []jsonUser
	for _, u := range users {
		out = append(out, jsonUser{string(u.Role), u.Name, u.InboxPrefix(), append([]string{}, u.Publish...), append([]string{}, u.Subscribe...)})
	}
	return out
}
