package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"latchkey/lockservice"
	"latchkey/replicagroup/placement"
)

// A daemon whose disk is full stops, says why, and has lost nothing of what it had acknowledged.
func TestFullDiskStopsTheDaemon(t *testing.T) {
	t.Parallel()
	disk := shortDir(t)
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=64m"); err != nil {
		t.Skipf("it mounts a file system, which takes root: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(disk, unix.MNT_DETACH) })
	dir := filepath.Join(disk, "peer")
	initTest(t, dir)
	d, _ := startDaemon(t, dir, nil)
	b := dialed(t, dir)
	kept := take(t, b, "kept", placement.TTLMaxDefault) // on a slow machine the rest takes its time

	// Whatever is left of the disk goes, while the daemon works.
	fill, err := os.Create(filepath.Join(disk, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer fill.Close()
	for block := bytes.Repeat([]byte{'x'}, 1<<20); err == nil; {
		_, err = fill.Write(block)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	var last lockservice.Token
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	defer cancel()
	for {
		g, err := b.Acquire(ctx, lockservice.Request{Name: "rising", TTL: time.Second})
		if err != nil {
			break
		}
		last = g.Token
		if err = b.Release(ctx, g); err != nil {
			break
		}
	}
	if d.wait() != exitFailure {
		t.Errorf("exit %d", d.code)
	}
	says := strings.TrimSpace(d.err.String())
	if line := says[strings.LastIndex(says, "\n")+1:]; !strings.HasPrefix(line, "latchkey: ") || !strings.Contains(line, "the disk is full: free space and start again") {
		t.Errorf("it says %q", says)
	}
	if _, err := os.Lstat(filepath.Join(dir, "api.sock")); err == nil {
		t.Error("the socket is left behind")
	}

	if err := errors.Join(fill.Close(), os.Remove(fill.Name())); err != nil {
		t.Fatal(err)
	}
	startDaemon(t, dir, nil)
	b = dialed(t, dir)
	holds(t, b, kept)
	if g := take(t, b, "rising", time.Second); g.Token <= last {
		t.Errorf("token %v after %v", g.Token, last)
	}
}
