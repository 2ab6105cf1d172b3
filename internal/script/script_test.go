package script

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

var rewrite = flag.Bool("rewrite", false, "write what comes out into the stories; then read them again, each line")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func stories(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	return files
}

func TestStories(t *testing.T) {
	for _, file := range stories(t) {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(string(b))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(b) {
				t.Errorf("%s goes another way:\n%s", file, difference(string(b), got))
			}
		})
	}
}

// play runs a story and returns it with the actual effects of each step.
func play(story string) string {
	w := newWorld()
	var out strings.Builder
	lines := strings.Split(strings.TrimSuffix(story, "\n"), "\n")
	for i := 0; i < len(lines); {
		if lines[i] == "" || strings.HasPrefix(lines[i], "#") {
			out.WriteString(lines[i] + "\n")
			i++
			continue
		}
		w.out.Reset()
		for ; i < len(lines) && lines[i] != "" && lines[i] != "----"; i++ {
			out.WriteString(lines[i] + "\n")
			if !strings.HasPrefix(lines[i], "#") {
				step(w, lines[i])
			}
		}
		for ; i < len(lines) && lines[i] != ""; i++ { // the expected effects
		}
		if w.out.Len() > 0 {
			out.WriteString("----\n" + w.out.String())
		}
	}
	return out.String()
}

// step runs one command. An error is one of its effects, so that a story with a mistake
// fails where the mistake is.
func step(w *world, line string) {
	defer func() {
		if p := recover(); p != nil {
			if b, ok := p.(broken); ok {
				w.printf("BROKEN PROMISE: %v", b.error)
				return
			}
			panic(p)
		}
	}()
	if err := w.command(line); err != nil {
		w.printf("error: %v", err)
	}
}

func difference(want, got string) string {
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	i := 0
	for i < len(a) && i < len(b) && a[i] == b[i] {
		i++
	}
	context := func(l []string) string {
		return strings.Join(l[max(0, i-6):min(len(l), i+8)], "\n")
	}
	return fmt.Sprintf("from line %d, expected\n\n%s\n\nbut got\n\n%s", i+1, context(a), context(b))
}

var (
	cited = regexp.MustCompile(`\b([NCE][0-9]+)\b`)
	ruled = regexp.MustCompile(`(?m)^- \*\*([NCE][0-9]+)\b`)
)

// operators are the rules about the order in which the operator's command does things. A story
// sends the steps itself. Package epoch and the simulator test the command.
var operators = []string{"E11", "E12"}

// Every other rule of docs/protocol.md has a story that shows its purpose, and every story
// names existing rules.
func TestRulesHaveStories(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "protocol.md"))
	if err != nil {
		t.Fatal(err)
	}
	told := map[string][]string{}
	for _, m := range ruled.FindAllStringSubmatch(string(page), -1) {
		told[m[1]] = nil
	}
	if len(told) != 45 {
		t.Errorf("docs/protocol.md has %d rules, N1 to N12, C1 to C15 and E1 to E18 are 45", len(told))
	}
	for _, file := range stories(t) {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "error: ") || strings.Contains(string(b), "BROKEN PROMISE") {
			t.Errorf("%s ends in an error", file)
		}
		head, _, _ := strings.Cut(string(b), "\n\n")
		rules := cited.FindAllString(head, -1)
		if len(rules) == 0 {
			t.Errorf("%s does not say at its head which rules it is about", file)
		}
		for _, r := range cited.FindAllString(string(b), -1) {
			if _, ok := told[r]; !ok {
				t.Errorf("%s names the rule %s, which docs/protocol.md does not have", file, r)
			}
		}
		for _, r := range rules {
			if !slices.Contains(told[r], file) {
				told[r] = append(told[r], file)
			}
		}
	}
	for r, files := range told {
		if len(files) == 0 && !slices.Contains(operators, r) {
			t.Errorf("no story is about rule %s", r)
		}
	}
}
