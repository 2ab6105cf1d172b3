package gateway

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"path"
	"regexp"
	"strings"
	"testing"

	"github.com/qlock/qlock"
)

func dashboardFile(t *testing.T, name string) string {
	t.Helper()
	b, err := dashboardFiles.ReadFile("web/ui/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The page comes with a policy that lets it load and run only what this gateway serves.
func TestDashboardIsServed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		g := w.gateway()
		page := ask(t, g, "GET", "/", "")
		if page.status != 200 || page.header.Get("Content-Type") != "text/html; charset=utf-8" {
			t.Fatal(page)
		}
		paths := regexp.MustCompile(`(?:href|src)="(/ui/[^"]*)"`).FindAllStringSubmatch(string(page.body), -1)
		if len(paths) < 3 {
			t.Errorf("the page refers to %v", paths)
		}
		for _, p := range append(paths, []string{"", "/"}, []string{"", "/ui/locks.js"}, []string{"", "/ui/vendor/preact.LICENSE"}) {
			a := ask(t, g, "GET", p[1], "")
			policy := a.header.Get("Content-Security-Policy")
			if a.status != 200 || !strings.Contains(policy, "default-src 'none'; script-src 'self'; style-src 'self'") || strings.Contains(policy, "unsafe") || !strings.Contains(policy, "require-trusted-types-for 'script'") {
				t.Errorf("%s: %d with the policy %q", p[1], a.status, policy)
			}
			if again := ask(t, g, "GET", p[1], "", "If-None-Match", a.header.Get("ETag")); again.status != 304 {
				t.Errorf("%s: %d the second time", p[1], again.status)
			}
		}
		ask(t, g, "GET", "/ui/", "").want(t, 404, "not-found")
		ask(t, g, "GET", "/ui/nothing.js", "").want(t, 404, "not-found")
		ask(t, g, "POST", "/", "").want(t, 405, "method-not-allowed")
	})
}

// What clients name reaches the page as text only. Scripts and styles stand in files, because the
// policy allows no others.
func TestDashboardUsesNoHTML(t *testing.T) {
	sinks := regexp.MustCompile(`(?i)innerHTML|outerHTML|insertAdjacent|document\.write|srcdoc|createContextualFragment|DOMParser|setHTML|\beval\b|new Function|localStorage|sessionStorage|https?://`)
	err := fs.WalkDir(dashboardFiles, "web/ui", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasPrefix(name, "web/ui/vendor/") {
			return err
		}
		text := dashboardFile(t, strings.TrimPrefix(name, "web/ui/"))
		if contentTypes[path.Ext(name)] == "" {
			t.Errorf("%s has no content type", name)
		}
		if path.Ext(name) == ".svg" {
			text = strings.ReplaceAll(text, `xmlns="http://www.w3.org/2000/svg"`, "")
		}
		for i, line := range strings.Split(text, "\n") {
			if found := sinks.FindString(line); found != "" {
				t.Errorf("%s:%d has %s", name, i+1, found)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	page := dashboardFile(t, "index.html")
	if regexp.MustCompile(`<style|style=|\son\w+=|<script[^>]*>[^<]`).MatchString(page) {
		t.Error("index.html has a script or a style of its own")
	}
}

// The vendored files are those of the packages that their README names.
func TestVendoredFiles(t *testing.T) {
	readme := dashboardFile(t, "vendor/README.md")
	for _, f := range []struct{ name, version, digest string }{
		{"preact", "11.2.0", "bdcbd9abdf2c77c5c45326eab42191e949222d479d0d5f69467387a77040cb55"},
		{"htm", "3.1.1", "ab33dd3f38059b9be4d5f5350128eefb2356639c4e0bbe9d9e8b3ba75847e9e4"},
	} {
		sum := sha256.Sum256([]byte(dashboardFile(t, "vendor/"+f.name+".js")))
		if got := hex.EncodeToString(sum[:]); got != f.digest {
			t.Errorf("%s.js has the digest %s", f.name, got)
		}
		if !strings.Contains(readme, "`"+f.name+"` "+f.version) {
			t.Errorf("the README does not name version %s of %s", f.version, f.name)
		}
		if dashboardFile(t, "vendor/"+f.name+".LICENSE") == "" {
			t.Errorf("%s has no licence", f.name)
		}
	}
}

func TestUses(t *testing.T) {
	for name, want := range map[string]Use{
		"qlock.election.scheduler.leader":  {Kind: "leader", Of: "scheduler"},
		"qlock.election.scheduler.value-0": {Kind: "leader-value", Of: "scheduler"},
		"qlock.members.workers.w.7":        {Kind: "member", Of: "workers", Part: "w.7"},
		"qlock.members.workers.@5.1.w":     {Kind: "member-metadata", Of: "workers", Part: "w"},
		"qlock.partition.orders.3":         {Kind: "partition", Of: "orders", Part: "3"},
		"orders.42":                        {},
		"qlock.members.workers.\xff":       {},
	} {
		got := useOf(name)
		if got == nil {
			got = &Use{}
		}
		if *got != want {
			t.Errorf("%q is %+v, not %+v", name, *got, want)
		}
	}
}

// Lists have uses of locks, and findings about nodes.
func TestUsesAndFindings(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		g := w.gateway(func(c *Config) {
			c.Check = func(m *qlock.Members) []Finding {
				return []Finding{{Grade: "warning", About: "test", Text: strings.Join(m.Config.Nodes, " "), Help: "none"}}
			}
		})
		ask(t, g, "POST", "/v1/locks/qlock.semaphore.renders.permit.2", "").want(t, 201, "")
		var locks LockList
		if err := json.Unmarshal(ask(t, g, "GET", "/v1/locks", "").want(t, 200, "").body, &locks); err != nil {
			t.Fatal(err)
		}
		if len(locks.Locks) != 1 || locks.Locks[0].Use == nil || *locks.Locks[0].Use != (Use{Kind: "permit", Of: "renders", Part: "2"}) {
			t.Errorf("%+v", locks)
		}
		var nodes NodeList
		if err := json.Unmarshal(ask(t, g, "GET", "/v1/nodes", "").want(t, 200, "").body, &nodes); err != nil {
			t.Fatal(err)
		}
		if len(nodes.Findings) != 1 || nodes.Findings[0].Text != "n1 n2 n3" {
			t.Errorf("%+v", nodes.Findings)
		}
	})
}
