//go:build unix

package cli

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/qlock/qlock/internal/printable"
)

// hostile has names of locks and notes that others may choose.
var hostile = []string{
	"\x1b]0;title\x07\x1b[31mred", "over\rwritten", "two\nlines", "tab\tbed", "back\bspace", "\u009b31m", "\u202etxet", "zero\u200bwidth", "soft\u00adhyphen",
	"\xff\xfe", "ends in half\xe2\x82", "\x7f", "a\u2028b", "it's \\ \"quoted\"", "\U000e0001tag", " blank ", "", "\ufeffmark", "nb\u00a0sp",
}

// harmless reports whether a terminal shows s as it is.
func harmless(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, bad := range "\x1b\a\r\n\t\b\u009b\u202e\u200b\u00ad\x7f\u2028\ufeff\u00a0\U000e0001" {
		if strings.ContainsRune(s, bad) {
			return false
		}
	}
	return true
}

func TestHostileText(t *testing.T) {
	shell, _ := exec.LookPath("bash")
	for _, s := range hostile {
		if p := printable.Text(s); !harmless(p) {
			t.Errorf("%q is shown as %q", s, p)
		}
		name := lockNamed(s)
		if !harmless(name) {
			t.Errorf("a lock named %q is shown as %q", s, name)
		}
		// A displayed name can be typed: a shell converts it to the same bytes.
		if shell != "" && strings.HasPrefix(name, "$") {
			cmd := exec.Command(shell, "-c", "printf %s "+name)
			cmd.Env = []string{"LC_ALL=C.UTF-8"}
			if out, err := cmd.Output(); err != nil || string(out) != s {
				t.Errorf("a shell makes %q of %s: %v", out, name, err)
			}
		}
		b, err := jsonText(map[string]string{"name": s}, "")
		var back map[string]string
		if err != nil || !harmless(strings.TrimSuffix(string(b), "\n")) || json.Unmarshal(b, &back) != nil || back["name"] != strings.ToValidUTF8(s, "\ufffd") && utf8.ValidString(s) {
			t.Errorf("%q becomes %s, and again %q: %v", s, b, back["name"], err)
		}
	}
	for _, s := range []string{"orders.42", "price list", "Größe", "注文", "100%", "it's"} {
		if printable.Text(s) != s || lockNamed(s) != s {
			t.Errorf("%q is shown as %s and %s", s, printable.Text(s), lockNamed(s))
		}
	}
	if got := printableLines("a\nb\x1b"); got != "a\nb\\x1b" {
		t.Errorf("%q", got)
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 40 * time.Millisecond: "0s", 1234 * time.Millisecond: "1.2s", 59600 * time.Millisecond: "1m", 754 * time.Second: "12m34s",
		3*time.Hour + 25*time.Minute + 3*time.Second: "3h25m", 50 * time.Hour: "2d2h", 1000 * time.Hour: "41d16h",
	} {
		if got := age(d); got != want {
			t.Errorf("%v is %s, want %s", d, got, want)
		}
	}
}

// A grid is at most as wide as the terminal, unless its mandatory columns need more. It
// reports the columns that it leaves out.
func TestGrid(t *testing.T) {
	g := &grid{title: "Things", columns: []column{
		{title: "Name", least: 8, end: true}, {title: "Kept"}, {title: "Sometimes", drop: 1}, {title: "Seldom", drop: 2, right: true},
	}, rows: [][]string{{strings.Repeat("long ", 20) + "end", "k", "s1", "123456"}, {"注文注文注文", "k", "\x1b[31ms2\x1b[0m", "7"}}}
	for _, c := range []struct {
		width   int
		without string
	}{{0, ""}, {200, ""}, {80, ""}, {41, ""}, {37, "Seldom"}, {20, "Seldom Sometimes"}, {5, "Seldom Sometimes"}} {
		out, without := g.render(c.width)
		if got := strings.Join(without, " "); got != c.without {
			t.Errorf("at %d without %q, want %q", c.width, got, c.without)
		}
		for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
			if w := text.StringWidthWithoutEscSequences(line); c.width >= 20 && w > c.width {
				t.Errorf("at %d a line of %d: %s", c.width, w, line)
			}
		}
		if !strings.Contains(out, "end ") {
			t.Errorf("at %d the end is missing:\n%s", c.width, out)
		}
		if strings.Contains(out, "…") != (c.width > 0 && c.width < 140) {
			t.Errorf("at %d:\n%s", c.width, out)
		}
	}
}
