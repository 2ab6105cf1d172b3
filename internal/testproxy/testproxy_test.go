package testproxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo is a server that answers with what it gets.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		work.Wait()
	})
	return l.Addr().String()
}

func proxy(t *testing.T, target string) *Proxy {
	t.Helper()
	p, err := New(target, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if err := p.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
	return p
}

func dial(t *testing.T, p *Proxy) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func send(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := c.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
}

// read reads n bytes, or what comes until the deadline.
func read(t *testing.T, c net.Conn, n int, deadline time.Duration) string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(deadline)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, n)
	got, _ := io.ReadFull(c, b)
	return string(b[:got])
}

func TestForwards(t *testing.T) {
	p := proxy(t, echo(t))
	c := dial(t, p)
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
	var work sync.WaitGroup
	work.Go(func() { _, _ = c.Write(want) })
	if got := read(t, c, len(want), 2*time.Minute); got != string(want) {
		t.Errorf("%d bytes came back and differ from the %d sent", len(got), len(want))
	}
	work.Wait()
}

// Bytes that were sent into a black hole arrive late, and in order.
func TestBlockAndHeal(t *testing.T) {
	for name, d := range map[string]Direction{"out": Out, "back": Back, "both": Both} {
		t.Run(name, func(t *testing.T) {
			p := proxy(t, echo(t))
			c := dial(t, p)
			send(t, c, "a")
			if got := read(t, c, 1, 2*time.Minute); got != "a" {
				t.Fatalf("before the fault: %q", got)
			}
			p.Block(d)
			send(t, c, "b")
			if got := read(t, c, 1, 50*time.Millisecond); got != "" {
				t.Fatalf("%q came through a black hole", got)
			}
			fresh := dial(t, p) // faults affect new connections as well
			send(t, fresh, "x")
			if got := read(t, fresh, 1, 50*time.Millisecond); got != "" {
				t.Fatalf("%q came through a black hole", got)
			}
			send(t, c, "c")
			p.Heal()
			if got := read(t, c, 2, 2*time.Minute); got != "bc" {
				t.Errorf("after healing came %q", got)
			}
			if got := read(t, fresh, 1, 2*time.Minute); got != "x" {
				t.Errorf("after healing came %q", got)
			}
		})
	}
}

// What was written just before an orderly end arrives, and so does the end.
func TestEnd(t *testing.T) {
	p := proxy(t, echo(t))
	c := dial(t, p)
	send(t, c, "last words")
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if string(got) != "last words" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestDelay(t *testing.T) {
	p := proxy(t, echo(t))
	c := dial(t, p)
	const delay = 60 * time.Millisecond
	p.Delay(Both, delay, 20*time.Millisecond)
	start := time.Now()
	send(t, c, "a")
	if got := read(t, c, 1, 2*time.Minute); got != "a" {
		t.Fatalf("got %q", got)
	}
	if d := time.Since(start); d < 2*delay {
		t.Errorf("there and back took %v, less than twice %v", d, delay)
	}
}

func isReset(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Minute))
	_, err := c.Read(make([]byte, 1))
	var timeout net.Error
	return err != nil && !(errors.As(err, &timeout) && timeout.Timeout())
}

func TestResetAndCut(t *testing.T) {
	p := proxy(t, echo(t))
	c := dial(t, p)
	send(t, c, "a")
	if got := read(t, c, 1, 2*time.Minute); got != "a" {
		t.Fatalf("got %q", got)
	}
	p.Block(Out)
	send(t, c, "lost")
	p.Reset()
	if !isReset(c) {
		t.Error("the connection survived Reset")
	}
	p.Heal()
	c = dial(t, p)
	send(t, c, "b")
	if got := read(t, c, 1, 2*time.Minute); got != "b" {
		t.Errorf("after Reset a new connection gave %q", got)
	}
	p.Cut()
	if !isReset(c) {
		t.Error("the connection survived Cut")
	}
	// The dial may succeed, or be reset before it has.
	if c, err := net.Dial("tcp", p.Addr()); err == nil {
		if !isReset(c) {
			t.Error("a connection came through a cut")
		}
		_ = c.Close()
	}
	p.Heal()
	c = dial(t, p)
	send(t, c, "c")
	if got := read(t, c, 1, 2*time.Minute); got != "c" {
		t.Errorf("after healing: %q", got)
	}
}

func TestTarget(t *testing.T) {
	p := proxy(t, "")
	if c, err := net.Dial("tcp", p.Addr()); err == nil {
		if !isReset(c) {
			t.Error("a proxy without a target keeps a connection")
		}
		_ = c.Close()
	}
	p.SetTarget(echo(t))
	c := dial(t, p)
	send(t, c, "a")
	if got := read(t, c, 1, 2*time.Minute); got != "a" {
		t.Errorf("got %q", got)
	}
	if n := p.Conns(); n != 1 {
		t.Errorf("%d connections stand, not 1", n)
	}
}
