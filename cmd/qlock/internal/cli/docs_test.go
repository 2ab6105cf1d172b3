//go:build unix

package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const (
	operations = "../../../../docs/operations.md"
	tour       = "../../../../docs/command.md"
	changing   = "../../../../docs/changing-nodes.md"
)

// checkLine returns what is wrong with a command line of qlock after a shell has split it.
func checkLine(t *testing.T, shell, line string) {
	t.Helper()
	words, err := exec.Command(shell, "-c", `printf '%s\n' `+line).Output()
	if err != nil {
		t.Errorf("%s: %v", line, err)
		return
	}
	args := strings.Split(strings.TrimSpace(string(words)), "\n")
	cmd, rest, err := allCommands(t)[0].Find(args)
	if err == nil {
		err = cmd.ParseFlags(rest)
	}
	if err == nil {
		err = cmd.ValidateArgs(cmd.Flags().Args())
	}
	if err != nil {
		t.Errorf("qlock %s: %v", line, err)
	}
}

// qlock accepts the command lines of the pages.
func TestPageCommands(t *testing.T) {
	shell, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash to take the examples apart")
	}
	for page, least := range map[string]int{operations: 5, tour: 10, changing: 8} {
		t.Run(filepath.Base(page), func(t *testing.T) { checkPage(t, shell, page, least) })
	}
}

func checkPage(t *testing.T, shell, file string, least int) {
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		for _, line := range strings.Split(strings.ReplaceAll(block[1], "\\\n", " "), "\n") {
			if _, line, ok := strings.Cut(" "+line, " qlock "); ok && !strings.HasPrefix(strings.TrimSpace(line), "#") {
				line = endOfCommand.Split(line, 2)[0]
				checkLine(t, shell, line)
				seen++
			}
		}
	}
	if seen < least {
		t.Errorf("only %d commands were found", seen)
	}
}

var endOfCommand = regexp.MustCompile(` #| 2?>|; do|; done|\)`)

// The page explains every line that this program logs.
func TestOperationsLogLines(t *testing.T) {
	page, err := os.ReadFile(operations)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`log\.(?:Info|Warn|Error)\("([^"]+)"`).FindAllStringSubmatch(string(text), -1) {
			seen++
			if !strings.Contains(string(page), "`"+m[1]+"`") {
				t.Errorf("%s logs %q, which the page does not explain", f, m[1])
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d lines were found", seen)
	}
}
