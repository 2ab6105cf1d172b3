package qlock_test

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

// The tests of this file keep the README and the guide true.

type block struct{ lang, text string }

// readPage returns a page and its code blocks.
func readPage(t *testing.T, file string) (text string, blocks []block) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text = string(b)
	for _, m := range regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$").FindAllStringSubmatch(text, -1) {
		blocks = append(blocks, block{m[1], m[2]})
	}
	if len(blocks) < 5 {
		t.Fatalf("%s has %d blocks: this test reads it wrongly", file, len(blocks))
	}
	return text, blocks
}

func TestReadmeBeginsWithTwoCommands(t *testing.T) {
	_, blocks := readPage(t, "README.md")
	for i, want := range []string{"go run ./examples/quickstart\n", "go test work\n"} {
		if blocks[i].text != want {
			t.Errorf("block %d is %q, not %q", i+1, blocks[i].text, want)
		}
	}
}

// The picture is one that GitHub draws: each message goes between participants, and no
// text has a character that ends it.
func TestReadmePicture(t *testing.T) {
	_, blocks := readPage(t, "README.md")
	i := slices.IndexFunc(blocks, func(b block) bool { return b.lang == "mermaid" })
	if i < 0 {
		t.Fatal("README.md has no picture")
	}
	lines := strings.Split(strings.TrimSpace(blocks[i].text), "\n")
	if lines[0] != "sequenceDiagram" {
		t.Errorf("the picture begins with %q", lines[0])
	}
	who, loops := []string{}, 0
	for _, line := range lines[1:] {
		line = strings.TrimSpace(line)
		if m := regexp.MustCompile(`^participant (\w+) as [\w ]+$`).FindStringSubmatch(line); m != nil {
			who = append(who, m[1])
			continue
		}
		var names []string
		if m := regexp.MustCompile(`^(\w+)-?->>(\w+): [^;#]+$`).FindStringSubmatch(line); m != nil {
			names = m[1:]
		} else if m := regexp.MustCompile(`^Note over ([\w,]+): [^;#]+$`).FindStringSubmatch(line); m != nil {
			names = strings.Split(m[1], ",")
		} else if strings.HasPrefix(line, "loop ") {
			loops++
		} else if line == "end" {
			loops--
		} else {
			t.Errorf("the picture has a line that this test does not know: %s", line)
		}
		for _, n := range names {
			if !slices.Contains(who, n) {
				t.Errorf("the picture names %s, which is not a participant: %s", n, line)
			}
		}
	}
	if len(who) < 3 || loops != 0 {
		t.Errorf("the picture has participants %v, and %d loops that do not end", who, loops)
	}
}

// Every Go block of these pages is part of an example, word for word, and examples are
// compiled.
func TestPageCode(t *testing.T) {
	var examples strings.Builder
	for _, file := range []string{"example_test.go", "embedded/example_test.go", "qlocktest/example_test.go"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		examples.WriteString(unindented(string(b)))
	}
	for file, want := range map[string]int{"README.md": 1, "docs/guide.md": 6} {
		_, blocks := readPage(t, file)
		n := 0
		for _, b := range blocks {
			if b.lang != "go" {
				continue
			}
			n++
			if !strings.Contains(examples.String(), unindented(b.text)) {
				t.Errorf("no example has this code of %s:\n%s", file, b.text)
			}
		}
		if n != want {
			t.Errorf("%s has %d blocks of Go code, not %d", file, n, want)
		}
	}
}

func unindented(s string) string { return regexp.MustCompile(`(?m)^\t+`).ReplaceAllString(s, "") }

// The map of the tree names only what exists.
func TestTree(t *testing.T) {
	text, err := os.ReadFile("docs/development.md")
	if err != nil {
		t.Fatal(err)
	}
	_, tree, ok := strings.Cut(string(text), "## The tree")
	if !ok {
		t.Fatal("docs/development.md has no map of the tree")
	}
	n := 0
	for line := range strings.Lines(tree) {
		cell, _, _ := strings.Cut(strings.TrimPrefix(line, "|"), "|")
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cell, -1) {
			n++
			if _, err := os.Stat(m[1]); err != nil {
				t.Errorf("the map of the tree names %s: %v", m[1], err)
			}
		}
	}
	if n < 20 {
		t.Errorf("the map of the tree names %d paths: this test reads it wrongly", n)
	}
}

// The figures of the README's comparison are those of docs/performance.md.
func TestReadmeFigures(t *testing.T) {
	text, _ := readPage(t, "README.md")
	b, err := os.ReadFile("docs/performance.md")
	if err != nil {
		t.Fatal(err)
	}
	// figure is a median in a table of the page: by mark, row and column.
	figure := func(mark, row string, column int) string {
		_, table, _ := strings.Cut(string(b), "<!-- bench:"+mark+" -->")
		table, _, _ = strings.Cut(table, "<!-- /bench:"+mark+" -->")
		for line := range strings.Lines(table) {
			cells := strings.Split(line, "|")
			if len(cells) > column && strings.TrimSpace(cells[1]) == row {
				median, _, _ := strings.Cut(cells[column], " (")
				return strings.TrimSpace(median)
			}
		}
		t.Errorf("docs/performance.md has no row %q in the table %q", row, mark)
		return ""
	}
	_, table, ok := strings.Cut(text, "## Comparison\n")
	if !ok {
		t.Fatal("README.md has no comparison")
	}
	table, below, _ := strings.Cut(strings.TrimSpace(table), "\n\n")
	below = strings.Join(strings.Fields(below), " ") // a figure may be broken across lines
	rows := strings.Split(table, "\n")[2:]
	if len(rows) < 4 {
		t.Fatalf("README.md compares %d locks: this test reads it wrongly", len(rows))
	}
	for _, line := range rows {
		cells := strings.Split(line, "|")
		name := strings.TrimSpace(cells[1])
		for i, want := range map[int]string{2: figure("alone", name, 3), 3: figure("spread", name, 3)} {
			if got := strings.TrimSpace(cells[i]); got != want {
				t.Errorf("README.md says %s for %s, docs/performance.md %s", got, name, want)
			}
		}
	}
	for _, row := range []string{"qlock n=3", "jetstream R1"} {
		if want := figure("alone", row, 3); !strings.Contains(below, want) {
			t.Errorf("README.md does not say %s of %s alone", want, row)
		}
	}
}

// The permissions that the guide shows are sufficient, and keep a client from acting for
// another.
func TestGuidePermissions(t *testing.T) {
	_, blocks := readPage(t, "docs/guide.md")
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
	if !s.ReadyForConnections(2 * time.Minute) {
		t.Fatal("the server does not start")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
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
