package gateway

import (
	"fmt"
	"os"
	"strings"
	"testing"
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
