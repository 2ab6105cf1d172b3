package subject

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	verbs    = []string{Acquire, Release, Yield, Refresh, Info, List, Inspect, Evict, Config}
	kinds    = []string{Acquired, Released, Lost}
	families = []string{FamilyNode, FamilyAdmin, FamilyEvent, FamilyAPI, FamilyGateway}
)

func readDoc(t *testing.T, name string) string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

// forms are the subjects that the builders make, with placeholders as pages have them.
func forms() []string {
	const cluster, client, resource = "<cluster>", "<client>", "<resource>"
	out := []string{Batch(cluster, client)}
	for _, verb := range verbs {
		s := Request(cluster, verb, client, "")
		if HasResource(verb) {
			s = Request(cluster, verb, client, resource)
		}
		out = append(out, strings.Replace(s, "."+verb+".", ".<verb>.", 1))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// TestWirePage compares the page that clients in other languages are written from: its
// list of subjects, which verbs it has in which family and with a resource, and its
// table of encoded names.
func TestWirePage(t *testing.T) {
	page := readDoc(t, "wire.md")
	_, page, _ = strings.Cut(page, "\n## Subjects\n")
	page, _, _ = strings.Cut(page, "\n## ")

	want := append(forms(), Event("<cluster>", "<"+strings.Join(kinds, "|")+">", "<client>", "<resource>"),
		Family("<cluster>", FamilyAPI), Family("<cluster>", FamilyGateway))
	var got []string
	for _, m := range regexp.MustCompile("(?s)```text\n(.*?)```").FindAllStringSubmatch(page, -1) {
		got = append(got, strings.Fields(m[1])...)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("docs/wire.md has the subjects\n%s\nthe builders make\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	rows := regexp.MustCompile("(?m)^\\| `([a-z]+)` \\| (yes|no) \\|").FindAllStringSubmatchIndex(page, -1)
	second := strings.Index(page, "following are under `lock.<cluster>."+FamilyAdmin+"`")
	if second < 0 {
		t.Error("docs/wire.md does not say which verbs are under " + FamilyAdmin)
	}
	var documented []string
	for _, m := range rows {
		verb, family := page[m[2]:m[3]], FamilyNode
		if m[0] > second {
			family = FamilyAdmin
		}
		documented = append(documented, verb)
		if FamilyOf(verb) != family || HasResource(verb) != (page[m[4]:m[5]] == "yes") {
			t.Errorf("docs/wire.md has %s under %s, with a resource: %s", verb, family, page[m[4]:m[5]])
		}
	}
	if !slices.Equal(documented, verbs) {
		t.Errorf("docs/wire.md has the verbs %v, the package %v", documented, verbs)
	}

	_, table, _ := strings.Cut(page, "| name | encoded |\n")
	names := regexp.MustCompile("(?m)^\\| `([^`]+)` (?:\\(UTF-8\\) )?\\| `([^`]+)` \\|$").FindAllStringSubmatch(table, -1)
	for _, m := range names {
		if enc, err := EncodeName(m[1]); err != nil || enc != m[2] {
			t.Errorf("docs/wire.md has %s as %s, it is %s, %v", m[1], m[2], enc, err)
		}
	}
	if len(names) < 9 {
		t.Errorf("%d names with their encodings were found", len(names))
	}
}

// TestSecurityPage compares the same list where it is repeated.
func TestSecurityPage(t *testing.T) {
	got := regexp.MustCompile(`(?m)^    (lock\.\S+)  `).FindAllStringSubmatch(readDoc(t, "security.md"), -1)
	var list []string
	for _, m := range got {
		list = append(list, m[1])
	}
	slices.Sort(list)
	if want := forms(); !slices.Equal(list, want) {
		t.Errorf("docs/security.md has the subjects\n%s\nthe builders make\n%s", strings.Join(list, "\n"), strings.Join(want, "\n"))
	}
}

// TestPages looks at every subject of every page.
func TestPages(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join("..", "..", "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, path := range append(pages, filepath.Join("..", "..", "README.md")) {
		page, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range regexp.MustCompile("\\block\\.[a-z<*][^\\s`\"',;()]*\\.[^\\s`\"',;()]+").FindAllString(string(page), -1) {
			if strings.HasPrefix(s, "lock.go") {
				continue
			}
			found++
			if part := strings.Split(s, "."); len(part) > 2 && part[2] != Rest && !slices.Contains(families, part[2]) {
				t.Errorf("%s: %s is in no family of subjects", filepath.Base(path), s)
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d subjects were found", found)
	}
}
