package subject

import (
	"fmt"
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// spelled matches what only this package may write: the first token of a subject followed
// by something, or a family between dots at the start.
var spelled = regexp.MustCompile(`^lock\.|\block\.([%<*{]|\w+\.)|^\.(` + FamilyNode + `|` + FamilyAdmin + `|` + FamilyEvent + `|` + FamilyAPI + `|` + FamilyGateway + `)\.`)

// findSpelled returns the string constants of a Go file that spell a subject, each with its
// line.
func findSpelled(src []byte) []string {
	var out []string
	var s scanner.Scanner
	files := token.NewFileSet()
	s.Init(files.AddFile("", -1, len(src)), src, nil, 0)
	for {
		pos, tok, lit := s.Scan()
		if tok == token.EOF {
			return out
		}
		if tok != token.STRING {
			continue
		}
		if text, err := strconv.Unquote(lit); err == nil && spelled.MatchString(text) {
			out = append(out, fmt.Sprintf("%d: %s", files.Position(pos).Line, lit))
		}
	}
}

// TestNobodyElseSpellsSubjects searches all Go code of the repository, in all modules.
func TestNobodyElseSpellsSubjects(t *testing.T) {
	top := filepath.Join("..", "..")
	files := 0
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(top, path)
		if d.IsDir() {
			if strings.HasPrefix(d.Name(), ".") && rel != "." || d.Name() == "testdata" || rel == filepath.Join("internal", "subject") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		for _, found := range findSpelled(src) {
			t.Errorf("%s:%s: let package internal/subject build and parse subjects", rel, found)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Errorf("only %d files were found: is this the repository?", files)
	}
}

func TestFindSpelled(t *testing.T) {
	const src = "package x\n" +
		`var _ = "lock." + c + ".node." + n` + "\n" + // both
		"var _ = `lock.prod.x`\n" +
		`var _ = fmt.Sprintf("neither under lock.%s.node nor", c)` + "\n" +
		`var _ = "see lock.prod.event.>"` + "\n" +
		`// lock.prod.node.x` + "\n" +
		`var _ = "the lock. Others"; var _ = "qlock.Lock"; var _ = "github.com/qlock/qlock"; var _ = "flock.go"; var _ = "node.go"; var _ = "unlock.x.y"` + "\n"
	got := findSpelled([]byte(src))
	want := []string{`2: "lock."`, `2: ".node."`, "3: `lock.prod.x`", `4: "neither under lock.%s.node nor"`, `5: "see lock.prod.event.>"`}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
