package gateway

import (
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qlock/qlock/qlocktest"
)

// The page has every kind of problem with its status, every cause, every verb and every field
// of a request.
func TestPage(t *testing.T) {
	b, err := os.ReadFile("../docs/gateway.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	for kind, k := range kinds {
		if !strings.Contains(page, fmt.Sprintf("| `%s` | %d |", kind, k.status)) {
			t.Errorf("the page lacks the problem %s with status %d", kind, k.status)
		}
	}
	for _, word := range causes {
		if !strings.Contains(page, "`"+word+"`") {
			t.Errorf("the page lacks the cause %s", word)
		}
	}
	for _, v := range verbs {
		if !strings.Contains(page, "`"+v.name+"`") {
			t.Errorf("the page lacks the verb %s", v.name)
		}
	}
	for i := range 10 {
		if !strings.Contains(page, fmt.Sprintf("**G%d** ", i+1)) {
			t.Errorf("the page lacks rule G%d", i+1)
		}
	}
}

// The program of the page runs, keeps what it says, and believes no longer than it may.
func TestPythonOfPage(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("there is no python3")
	}
	page, err := os.ReadFile("../docs/gateway.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "```python\n")
	text, _, _ = strings.Cut(text, "```")
	c := qlocktest.StartCluster(t, 1, qlocktest.WithLease(30*time.Second))
	g, err := New(t.Context(), Config{Conn: c.Servers()[0].Conn(), Client: "gateway", Drain: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	srv := httptest.NewServer(g)
	t.Cleanup(srv.Close)
	const address = "http://127.0.0.1:8080"
	if strings.Count(text, address) != 1 {
		t.Fatalf("the program has not one address %s:\n%s", address, text)
	}
	text = strings.Replace(text, address, srv.URL, 1)
	text = `
todo = [1, 2]

def work_left():
    return todo

def work(token):
    todo.pop()
    end = lock.end
    assert lock.renew() == 200 and lock.end > end, (lock.end, end)
    try:
        Lock("nightly", wait="0s")
    except RuntimeError as e:
        assert "problems/held" in str(e), e
    else:
        raise AssertionError("two have it")

` + text + `
assert not todo and not lock.held()
GATEWAYS.insert(0, "http://127.0.0.1:1")  # nobody is there
late = Lock("nightly", lease="25s")
assert late.held() and late.token > lock.token
end = urllib.request.Request(GATEWAYS[0] + "/v1/leases/" + late.id, method="DELETE")
assert urllib.request.urlopen(end).status == 204
assert late.held()  # it has not heard of that
assert late.renew() == 410 and not late.held()
`
	file := filepath.Join(t.TempDir(), "page.py")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), python, file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
