package qlock_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// The tests of this file check what CONTRIBUTING.md says about prose.

const (
	pageWidth   = 100 // columns of a line, outside of tables and code
	readmeLines = 200 // fewer than that
)

// pages are all Markdown files of the repository.
func pages(t *testing.T) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && (d.Name() == "testdata" || d.Name() == ".git") {
			return fs.SkipDir
		}
		if filepath.Ext(path) == ".md" {
			files = append(files, filepath.ToSlash(path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 12 {
		t.Fatalf("only %q were found", files)
	}
	return files
}

// prose returns the lines of a page, those of code, tables and measurements emptied.
func prose(t *testing.T, file string) []string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(b), "\n")
	code, generated := false, false
	for i, line := range lines {
		trimmed := strings.TrimSpace(line)
		fence := strings.HasPrefix(trimmed, "```")
		if fence {
			code = !code
		}
		if strings.HasPrefix(line, "<!--") { // tables and lines that the benchmarks write
			generated = strings.HasPrefix(line, "<!-- bench:")
		}
		if code || fence || generated || strings.HasPrefix(trimmed, "|") || strings.HasPrefix(line, "    ") && i > 0 && lines[i-1] == "" {
			lines[i] = ""
		}
	}
	if code {
		t.Errorf("%s: a code block does not end", file)
	}
	return lines
}

// unwrapped are pages whose lines may be longer, with the reason.
var unwrapped = map[string]string{
	"CHANGELOG.md": "each entry is one line",
}

func TestPageWidth(t *testing.T) {
	for _, file := range pages(t) {
		if unwrapped[file] != "" {
			continue
		}
		for i, line := range prose(t, file) {
			// An address cannot be broken.
			if utf8.RuneCountInString(line) > pageWidth && strings.Contains(strings.TrimSpace(line), " ") {
				t.Errorf("%s:%d: longer than %d columns", file, i+1, pageWidth)
			}
		}
	}
}

func TestReadmeLength(t *testing.T) {
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), "\n"); n >= readmeLines {
		t.Errorf("README.md has %d lines, %d are too many: details belong to a page in docs", n, readmeLines)
	}
	first := strings.Join(strings.SplitN(string(b), "\n", 41)[:40], "\n")
	if !strings.Contains(first, "go get github.com/qlock/qlock\n") {
		t.Error("README.md does not say within its first 40 lines how to add qlock to a module")
	}
}

// riddles are phrases that made readers stumble, with what to write instead.
var riddles = map[string]string{
	`(^|[.:;] )Who (waits|holds|comes|asks|may|has|wants|is|was|looks|can|does|should)\b[^?\n]*[^?]$`: "name the subject: a waiter, a holder, a client that …",
	`\bwhoever holds\b`:                                                                  "name the subject: the holder",
	`\bis another's\b|\bbe another's\b`:                                                  "another client holds it",
	`\b(give|gives|gave|giving) (it|the lock|locks) back\b`:                              "release",
	`\bhave it alone\b`:                                                                  "exclusive",
	`\bstand(s)? (more|two|one) (deaths|failures?)\b`:                                    "tolerate",
	`\bstood where\b|\bstands where a\b`:                                                 "is a drop-in replacement for",
	`\bnobody notices\b|\bgoes unnoticed\b`:                                              "is unaffected",
	`\bwhat it is worth\b|\bwhat that is worth\b`:                                        "what this does and does not protect against",
	`\b(was|were) not had\b`:                                                             "failed",
	`\bgoes ahead of others\b|\bgo ahead of others\b`:                                    "jumps ahead in every queue",
	`\b[Oo]f (this|that|it|them|these|what|all|the network) (nothing|nobody|none|all)\b`: "put the subject before the verb",
	`\bin vain\b`:        "without success; fails",
	`\bnobody minds\b`:   "say when",
	`\bfor ever\b`:       "permanently; indefinitely; without limit",
	`\bgo(es)? by its\b`: "uses; follows",
}

func TestPlainEnglish(t *testing.T) {
	files := append(pages(t), "doc.go")
	if help, err := filepath.Glob("cmd/qlock/internal/cli/testdata/help/*.txt"); err != nil || len(help) == 0 {
		t.Errorf("no help texts were found: %v", err)
	} else {
		files = append(files, help...)
	}
	for _, file := range files {
		if unwrapped[filepath.ToSlash(file)] != "" {
			continue
		}
		// A phrase may be broken across two lines.
		text := strings.ReplaceAll(strings.Join(prose(t, file), "\n"), "\n//", "\n")
		for phrase, better := range riddles {
			re := regexp.MustCompile("(?m)" + strings.ReplaceAll(phrase, " ", `\s+`))
			for _, at := range re.FindAllStringIndex(text, -1) {
				line := 1 + strings.Count(text[:at[0]], "\n")
				t.Errorf("%s:%d: %q: %s", file, line, text[at[0]:at[1]], better)
			}
		}
	}
}

var (
	mdLink    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	mdHeading = regexp.MustCompile(`(?m)^#+ (.*)$`)
)

// anchors are the headings of a page as links name them.
func anchors(t *testing.T, file string) []string {
	t.Helper()
	var list []string
	for _, m := range mdHeading.FindAllStringSubmatch(strings.Join(prose(t, file), "\n"), -1) {
		s := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		list = append(list, strings.ReplaceAll(s, " ", "-"))
	}
	return list
}

// Every link inside the repository leads somewhere.
func TestLinks(t *testing.T) {
	n := 0
	for _, file := range pages(t) {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range mdLink.FindAllStringSubmatch(string(b), -1) {
			path, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(path, ":") {
				continue
			}
			n++
			target := file
			if path != "" {
				target = filepath.Join(filepath.Dir(file), path)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s: %v", file, m[1], err)
			} else if anchor != "" && !slices.Contains(anchors(t, target), anchor) {
				t.Errorf("%s links to %s, which has no such heading", file, m[1])
			}
		}
	}
	if n < 40 {
		t.Errorf("only %d links were found", n)
	}
	b, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`blob/main/(\S+)`).FindAllStringSubmatch(string(b), -1) {
		if _, err := os.Stat(m[1]); err != nil {
			t.Errorf("doc.go links to %s: %v", m[1], err)
		}
	}
}

// The index has every page of docs.
func TestIndex(t *testing.T) {
	b, err := os.ReadFile("docs/README.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if name := filepath.Base(f); name != "README.md" && !strings.Contains(string(b), "]("+name+")") {
			t.Errorf("docs/README.md does not list %s", name)
		}
	}
}
