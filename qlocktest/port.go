package qlocktest

import (
	"net"
	"testing"

	"github.com/qlock/qlock/internal/loopback"
)

// FreePort returns a free port of 127.0.0.1, for a server that the test starts, and
// perhaps stops and restarts. On Linux the port is reserved until the test ends: the system
// gives it to no other program that asks for any free port. Elsewhere it is only free at
// the time of the call.
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
