package qlock_test

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

// The tests of this file keep the README true.

type block struct{ lang, text string }

func readme(t *testing.T) (text string, blocks []block) {
	t.Helper()
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	text = string(b)
	for _, m := range regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$").FindAllStringSubmatch(text, -1) {
		blocks = append(blocks, block{m[1], m[2]})
	}
	if len(blocks) < 5 {
		t.Fatalf("README.md has %d blocks: this test reads it wrongly", len(blocks))
	}
	return text, blocks
}

func TestReadmeBeginsWithTwoCommands(t *testing.T) {
	_, blocks := readme(t)
	for i, want := range []string{"go run ./examples/quickstart\n", "go test work\n"} {
		if blocks[i].text != want {
			t.Errorf("block %d is %q, not %q", i+1, blocks[i].text, want)
		}
	}
}

// Every Go block stands in an example, which is compiled, and word for word.
func TestReadmeCode(t *testing.T) {
	var examples strings.Builder
	for _, file := range []string{"example_test.go", "embedded/example_test.go"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		examples.WriteString(unindented(string(b)))
	}
	_, blocks := readme(t)
	n := 0
	for _, b := range blocks {
		if b.lang != "go" {
			continue
		}
		n++
		if !strings.Contains(examples.String(), unindented(b.text)) {
			t.Errorf("no example has this code:\n%s", b.text)
		}
	}
	if n == 0 {
		t.Error("README.md has no Go code")
	}
}

func unindented(s string) string { return regexp.MustCompile(`(?m)^\t+`).ReplaceAllString(s, "") }

// What the README names in the tree is there.
func TestReadmePaths(t *testing.T) {
	text, _ := readme(t)
	var paths []string
	for _, m := range regexp.MustCompile(`\]\(([^)#:]+)\)`).FindAllStringSubmatch(text, -1) {
		paths = append(paths, m[1])
	}
	_, tree, ok := strings.Cut(text, "## The tree")
	if !ok {
		t.Fatal("README.md has no map of the tree")
	}
	for line := range strings.Lines(tree) {
		cell, _, _ := strings.Cut(strings.TrimPrefix(line, "|"), "|")
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cell, -1) {
			paths = append(paths, m[1])
		}
	}
	if len(paths) < 20 {
		t.Errorf("README.md names only %q: this test reads it wrongly", paths)
	}
	for _, p := range paths {
		if _, err := os.Stat(p); err != nil {
			t.Errorf("README.md names %s: %v", p, err)
		}
	}
}

// The permissions that the README shows are enough, and keep a client from acting
// for another.
func TestReadmePermissions(t *testing.T) {
	_, blocks := readme(t)
	conf := ""
	for _, b := range blocks {
		if b.lang == "conf" {
			conf = b.text
		}
	}
	file := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("N1_PASSWORD", "one")
	t.Setenv("BILLING_PASSWORD", "two")
	o, err := server.ProcessConfigFile(file)
	if err != nil {
		t.Fatal(err)
	}
	o.DontListen, o.NoLog, o.NoSigs = true, true, true
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not start")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	connect := func(user, password string, opts ...nats.Option) *nats.Conn {
		opts = append(opts, nats.InProcessServer(s), nats.UserInfo(user, password),
			nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { t.Logf("%s: %v", user, err) }))
		nc, err := nats.Connect("", opts...)
		if err != nil {
			t.Fatal(err)
		}
		return nc
	}

	nodeNC := connect("n1", "one", nats.CustomInboxPrefix("_INBOX.n1"))
	defer nodeNC.Close()
	cfg := qlock.NodeConfig{Cluster: "prod", Name: "n1", Nodes: []string{"n1"}, StateDir: t.TempDir()}
	if err := qlock.Bootstrap(cfg); err != nil {
		t.Fatal(err)
	}
	node, err := qlock.StartNode(ctx, nodeNC, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()

	nc := connect("billing", "two", nats.CustomInboxPrefix("_INBOX.billing"))
	defer nc.Close()
	billing, err := qlock.New(ctx, nc, qlock.WithCluster("prod"), qlock.WithName("billing"))
	if err != nil {
		t.Fatal(err)
	}
	defer billing.Close()
	if err := billing.Do(ctx, "orders.42", func(context.Context) error { return nil }); err != nil {
		t.Error(err)
	}
	for _, c := range []*nats.Conn{nodeNC, nc} { // a server's error comes before its answer to this
		if err := c.FlushWithContext(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := nodeNC.LastError(); err != nil {
		t.Errorf("the node lacks a permission: %v", err)
	}
	if err := nc.LastError(); err != nil {
		t.Errorf("billing lacks a permission: %v", err)
	}
	if mail, err := qlock.New(ctx, nc, qlock.WithCluster("prod"), qlock.WithName("mail")); err == nil {
		_ = mail.Close()
		t.Error("billing could act as mail")
	}
}
