//go:build unix

package wire

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

func TestCutEndsADialUnderWay(t *testing.T) {
	w := New()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	// A listener whose backlog is full lets a further dial hang without leaving this machine.
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Skip(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Skip(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Skip(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Skip(err)
	}
	addr := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: sa.(*syscall.SockaddrInet4).Port}
	results := make(chan error, 16)
	for range cap(results) {
		go func() {
			_, err := w.Dial(ctx, "tcp", addr.String())
			results <- err
		}()
	}
	for open := 0; open == 0; open = w.Conns() {
		time.Sleep(time.Millisecond)
	}
	w.Cut()
	hung := 0
	for range cap(results) {
		switch err := <-results; {
		case errors.Is(err, ErrCut):
			hung++
		case err != nil:
			t.Errorf("dial ended by the cut: %v", err)
		}
	}
	if hung == 0 {
		t.Skip("no dial was still under way")
	}
	if ctx.Err() != nil {
		t.Error("dials ended by their own deadline, not by the cut")
	}
}

// silentAddress returns an address whose kernel answers no further connect: its queue is full.
func silentAddress(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*syscall.SockaddrInet4).Port)).String()
	for range 64 {
		c, err := net.DialTimeout("tcp", addr, 50*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Skip("this system's queues have no end")
	return ""
}
