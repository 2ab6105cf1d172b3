package metrics_test

import (
	"os/exec"
	"strings"
	"testing"
)

// A program that exports metrics of its Locker must not carry a NATS server, which
// is larger than all the rest together.
func TestLinksNoServer(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("go list -deps: %v\n%s", err, out)
	}
	deps := strings.Fields(string(out))
	client := false
	for _, d := range deps {
		client = client || d == "github.com/nats-io/nats.go"
		if strings.HasPrefix(d, "github.com/nats-io/nats-server/") || d == "github.com/qlock/qlock/embedded" {
			t.Errorf("package metrics links %s", d)
		}
	}
	if !client {
		t.Errorf("the list of packages lacks the NATS client, so this test reads it wrongly:\n%s", out)
	}
}
