//go:build unix

package loopback

import (
	"fmt"
	"net"
	"runtime"
	"syscall"
	"testing"
)

func reserve(t *testing.T) *Port {
	t.Helper()
	p, err := Reserve()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return p
}

// A server can listen on the port, repeatedly. In between, connections are refused.
func TestReserved(t *testing.T) {
	p := reserve(t)
	addr := fmt.Sprintf("127.0.0.1:%d", p.Number)
	for range 3 {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if p.Number == 0 {
			_ = l.Close()
			t.Skip("ports cannot be kept on ", runtime.GOOS)
		}
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Error(err)
		} else {
			_ = c.Close()
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if c, err := net.Dial("tcp", addr); err == nil {
			_ = c.Close()
			t.Errorf("somebody listens at %s", addr)
		}
	}
}

// A program that asks for any free port does not get a reserved one, even if most ports are
// taken.
func TestNobodyElseGetsIt(t *testing.T) {
	kept := map[int]bool{}
	for range 50 {
		p := reserve(t)
		if p.Number == 0 {
			t.Skip("ports cannot be kept on ", runtime.GOOS)
		}
		if kept[p.Number] {
			t.Errorf("port %d is kept twice", p.Number)
		}
		kept[p.Number] = true
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	for range min(2000, limit.Cur/2) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		if port := l.Addr().(*net.TCPAddr).Port; kept[port] {
			t.Fatalf("port %d was kept and is another's", port)
		}
	}
}
