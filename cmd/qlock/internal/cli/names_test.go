package cli

import (
	"testing"

	"github.com/nats-io/nats.go"
)

// The command and the library have the same rules for a client's name, so that permissions
// of a user fit the name that the command uses.
func TestNamesThatTheLibraryTakes(t *testing.T) {
	for _, user := range []string{"svc-a", "svc-", "-a", "_", "a--b"} {
		c := &connection{cluster: "default", client: user}
		if err := c.check(); err != nil {
			t.Errorf("--client %s: %v", user, err)
		}
		c = &connection{}
		if got := c.name(&nats.Options{User: user, Password: "secret"}); got != user {
			t.Errorf("the user %s is client %s", user, got)
		}
	}
	for _, user := range []string{"svc.a", "größe", "a b"} {
		if err := (&connection{cluster: "default", client: user}).check(); err == nil {
			t.Errorf("--client %s is taken", user)
		}
	}
}
