package qlocktest

import (
	"net"
	"testing"

	"github.com/qlock/qlock/internal/loopback"
)

// FreePort is a port of 127.0.0.1 that is free, for a server that the test starts, and
// perhaps stops and starts again. On Linux nobody else who asks for a free port gets it
// until the test ends. Elsewhere it was free a moment ago.
func FreePort(t testing.TB) int {
	t.Helper()
	p, err := loopback.Reserve()
	if err != nil {
		t.Fatalf("qlocktest: FreePort: %v", err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("qlocktest: FreePort: %v", err)
		}
	})
	if p.Number != 0 {
		return p.Number
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("qlocktest: FreePort: %v", err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}
