package epoch

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var ruled = regexp.MustCompile(`(?m)^- \*\*(E[0-9]+)\b`)

// built are the rules that are in the code by now.
var built = []string{"E1", "E2", "E3", "E4", "E5", "E6", "E7", "E8", "E9", "E10", "E11", "E12", "E13", "E14", "E15", "E16", "E17", "E18"}

// Each rule of docs/protocol.md about changes of the list that is in the code has a planted
// fault that leaves it out.
func TestRulesHaveFaults(t *testing.T) {
	page, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	rules := ruled.FindAllStringSubmatch(string(page), -1)
	if len(rules) != 18 {
		t.Errorf("docs/protocol.md has %d rules, E1 to E18 are 18", len(rules))
	}
	files, err := filepath.Glob("../sim/testdata/faults/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	var faults strings.Builder
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		faults.Write(b)
	}
	for _, r := range rules {
		planted := regexp.MustCompile(`(?m)^# (E[0-9]+, )*` + r[1] + `[:,]`).MatchString(faults.String())
		if want := slices.Contains(built, r[1]); planted != want {
			t.Errorf("rule %s: a planted fault leaves it out: %v, want %v", r[1], planted, want)
		}
	}
}
