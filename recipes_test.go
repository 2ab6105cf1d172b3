package qlock_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every Go block of the page of recipes is part of an example, word for word, so that it is
// compiled and run.
func TestRecipesCode(t *testing.T) {
	files, err := filepath.Glob("*/example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var examples strings.Builder
	for _, file := range append(files, "example_test.go", "lockall_test.go") {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		examples.WriteString(unindented(string(b)))
	}
	_, blocks := readPage(t, "docs/recipes.md")
	n := 0
	for _, b := range blocks {
		if b.lang != "go" {
			continue
		}
		n++
		if !strings.Contains(examples.String(), unindented(b.text)) {
			t.Errorf("no example has this code of docs/recipes.md:\n%s", b.text)
		}
	}
	if n < 3 {
		t.Errorf("docs/recipes.md has %d blocks of Go code: this test reads it wrongly", n)
	}
}
