package subject

import (
	"errors"
	"strings"
	"testing"

	"github.com/qlock/qlock/internal/printable"
)

func TestCheckToken(t *testing.T) {
	for _, s := range []string{"a", "svc-a", "Node_1", "-", "_", "0", strings.Repeat("x", MaxToken)} {
		if err := CheckToken("node", s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"", "a.b", "a b", "*", ">", "%", "gr\u00fcn", "a\x00", "a\n", "a/b", strings.Repeat("x", MaxToken+1)} {
		err := CheckToken("cluster", s)
		if !errors.Is(err, ErrInvalidName) {
			t.Errorf("%q: %v, want ErrInvalidName", s, err)
			continue
		}
		for _, part := range []string{"cluster", printable.Quote(s), "A-Z a-z 0-9 _ -", "64"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("error does not say %s: %v", part, err)
			}
		}
	}
}

func TestTokenFrom(t *testing.T) {
	tests := []struct{ s, want string }{
		{"svc-a", "svc-a"},
		{"web-1.example.org", "web-1-example-org"},
		{"my program (2)", "my-program-2"},
		{"grün", "gr-n"},
		{"...a...b...", "a-b"},
		{"", "client"},
		{"-", "client"},
		{"\x00\xff*>", "client"},
		{strings.Repeat("x", 100), strings.Repeat("x", MaxToken)},
		{strings.Repeat("x", 63) + ".y", strings.Repeat("x", 63)},
		{strings.Repeat(".", 100) + "y", "y"},
	}
	for _, tt := range tests {
		if got := TokenFrom(tt.s); got != tt.want {
			t.Errorf("TokenFrom(%q) = %q, want %q", tt.s, got, tt.want)
		}
	}
}

func FuzzTokenFrom(f *testing.F) {
	for _, s := range []string{"", "a", "-", "a.b", strings.Repeat("x", 63) + ".y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		token := TokenFrom(s)
		if err := CheckToken("client", token); err != nil {
			t.Fatalf("TokenFrom(%q): %v", s, err)
		}
		if again := TokenFrom(token); again != token {
			t.Fatalf("TokenFrom(%q) = %q, and of that %q", s, token, again)
		}
	})
}

func TestClientName(t *testing.T) {
	for _, tt := range []struct{ host, program, want string }{
		{"web-1.example.org", "/usr/local/bin/billing", "web-1-example-org-billing"},
		{"a..b", "x y", "a-b-x-y"},
		{"", "prog", "host-prog"},
		{"-", "-", "client"},
		{strings.Repeat("h", 63), "prog", strings.Repeat("h", 63)},
	} {
		if got := ClientName(tt.host, tt.program); got != tt.want {
			t.Errorf("ClientName(%q, %q) = %q, want %q", tt.host, tt.program, got, tt.want)
		}
	}
}
