//go:build unix

package cli

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/qlocktest"
)

const secret = "S3cret"

// connecting are commands that need a connection, to be run without a server.
var connecting = []string{
	"nodes", "check", "check --json", "run job -- true", "lock job --try", "ls", "ls --watch", "info job", "watch",
	"unlock job --force --yes", "bench", "node --name n1 --nodes n1",
}

func noSecret(t *testing.T, what string, r result) {
	t.Helper()
	for _, s := range []string{secret, "billing@", "billing:"} {
		if strings.Contains(r.out+r.err, s) {
			t.Errorf("%s prints %q of the address:\n%s%s", what, s, r.out, r.err)
		}
	}
}

// No command prints the part of an address before the @, wherever the address comes from,
// and however invalid it is.
func TestSecretsOfAddresses(t *testing.T) {
	where := net.JoinHostPort("127.0.0.1", strconv.Itoa(qlocktest.FreePort(t)))
	for _, url := range []string{
		"nats://billing:" + secret + "@" + where,
		"nats://" + secret + "@" + where,
		"billing:" + secret + "@" + where,
		"nats://" + where + ",nats://billing:" + secret + "@" + where,
		"nats://billing:" + secret + "/@" + where,
		"nats://billing:" + secret + "%zz@" + where,
		"nats://billing:" + secret + ",@" + where,
		"nats://billing:x@" + secret + "#x@" + where,
		"nats://billing:x@" + secret + "/x@" + where,
		"nats://billing:12?" + secret + "@" + where,
	} {
		for _, c := range connecting {
			if strings.HasPrefix(c, "node ") {
				t.Setenv("QLOCK_NATS_URL", url)
			} else {
				t.Setenv("NATS_URL", url)
			}
			r := call(t, append(strings.Fields(c), "--timeout", "1s")...)
			if r.status == 0 {
				t.Errorf("%s: there is a server", c)
			}
			noSecret(t, c+" on "+url, r)
			_ = os.Unsetenv("QLOCK_NATS_URL")
			_ = os.Unsetenv("NATS_URL")
		}
		noSecret(t, "--server", call(t, "nodes", "--server", url))
		file := filepath.Join(t.TempDir(), "context.json")
		if err := os.WriteFile(file, []byte(`{"url": "`+url+`"}`), 0o600); err != nil {
			t.Fatal(err)
		}
		r := call(t, "nodes", "--context", file)
		r.want(t, exitFailed, "context")
		noSecret(t, "a context", r)
	}
}

// Routes have passwords as well.
func TestSecretsOfRoutes(t *testing.T) {
	for _, route := range []string{
		"billing:" + secret + "@n2:6222", "nats://billing:" + secret + "@", "nats://billing:" + secret + "/x@n2:6222", `nats://billing:` + secret + `"@n2:6222`, "nats://billing:x@" + secret + "#x@n2:6222",
	} {
		args := []string{"node", "--name", "n1", "--nodes", "n1,n2", "--cluster-listen", "127.0.0.1:0"}
		r := call(t, append(args, "--routes", route)...)
		r.want(t, exitUsage, "--routes")
		noSecret(t, "--routes "+route, r)
		t.Setenv("QLOCK_ROUTES", route)
		r = call(t, args...)
		r.want(t, exitUsage, "--routes")
		noSecret(t, "QLOCK_ROUTES="+route, r)
		_ = os.Unsetenv("QLOCK_ROUTES")
	}
}

// An invalid file is not quoted, because it may contain passwords.
func TestSecretsOfConfigFile(t *testing.T) {
	for _, text := range []string{
		"name: n1\npassword: " + secret + "\n nodes: n1\n",
		"name: n1\ntoken: [" + secret + "]\n",
		"name: n1\nnodes: [n1, n2]\nroutes: ['nats://billing:" + secret + "@n2:x']\n",
		"name: n1\nserver: nats://billing:" + secret + "/@n2:4222\nnodes: n1\n",
		"name: n1\nroute-password: " + secret + "\nroute-password: " + secret + "\n",
	} {
		file := filepath.Join(t.TempDir(), "node.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r := call(t, "node", "--config", file)
		if r.status == 0 {
			t.Errorf("it is taken: %s", text)
		}
		noSecret(t, text, r)
	}
}

// Messages about an established connection contain no token either. A user in the address
// is the client's name.
func TestUserOfAddress(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, user, password, token string
	}{
		{"user", "billing", secret, ""},
		{"token", "", "", secret},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg := embedded.Config{Node: qlock.NodeConfig{Name: "n1", Nodes: []string{"n1"}, StateDir: t.TempDir()}, Username: c.user, Password: c.password, Token: c.token}
			if err := qlock.Bootstrap(cfg.Node); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			s, err := embedded.Start(ctx, cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			userinfo, as := c.token, "as client "+hostAndProgram()
			if c.user != "" {
				userinfo, as = c.user+":"+c.password, "as client billing,"
			}
			where := strings.TrimPrefix(s.ClientURL(), "nats://")
			url := "nats://" + userinfo + "@" + where
			r := sees(t, []string{"check", "--server", url}, 0, "nats://"+where+" "+as)
			noSecret(t, "check", r)
			r = qlockCmd(t, "nodes", "--server", url, "--cluster", "other", "--timeout", "100ms")
			r.want(t, exitFailed, "nats://"+where)
			noSecret(t, "nodes", r)
			p := launch(t, "watch", "--server", url)
			p.says(p.err, "nats://"+where)
			p.signal(syscall.SIGTERM)
			noSecret(t, "watch", p.wait())
			p = launch(t, "node", "--name", "n2", "--nodes", "n2", "--cluster", "other", "--server", url)
			p.says(p.err, "node serves")
			p.signal(syscall.SIGTERM)
			noSecret(t, "node", p.wait())

			// The user of a context is also the client's name.
			if c.user == "" {
				return
			}
			file := filepath.Join(t.TempDir(), "context.json")
			if err := os.WriteFile(file, []byte(`{"url": "`+s.ClientURL()+`", "user": "billing", "password": "`+secret+`"}`), 0o600); err != nil {
				t.Fatal(err)
			}
			r = sees(t, []string{"check", "--context", file}, 0, as)
			noSecret(t, "check", r)
		})
	}
}
