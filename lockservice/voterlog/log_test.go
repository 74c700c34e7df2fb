package voterlog

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"
)

func life(start uint64) Life { return Life{Store: []byte("store"), Start: start, Boot: "boot"} }

func open(t testing.TB, path string, l Life) *Log {
	t.Helper()
	lg, err := Open(path, l)
	if err != nil {
		t.Fatal(err)
	}
	return lg
}

func write(t testing.TB, l *Log, key string, f func(*Batch)) {
	t.Helper()
	var b Batch
	f(&b)
	if err := l.Write(key, &b); err != nil {
		t.Fatal(err)
	}
}

// sample records something of two voters.
func sample(t testing.TB, l *Log) {
	write(t, l, "a", func(b *Batch) { b.Save("gone", nil) })
	write(t, l, "a", func(b *Batch) { b.Void(); b.Save("n", []byte("1")); b.Save("m", []byte("22")); b.Head([]byte("h")) })
	write(t, l, "a", func(b *Batch) { b.Delete("m"); b.Delete("never"); b.Save("n", []byte("333")) })
	write(t, l, "b", func(b *Batch) { b.Save("n", []byte("x")) })
}

func known(l *Log) bool {
	head, names := l.Of("a")
	none, _ := l.Of("b")
	return string(head) == "h" && maps.EqualFunc(names, map[string][]byte{"n": []byte("333")}, bytes.Equal) && none == nil
}

// TestTheNextLifeKnows: what was recorded is there after a kill, and after a close; not after anything else.
func TestTheNextLifeKnows(t *testing.T) {
	t.Parallel()
	reboot := Life{Store: []byte("store"), Start: 2, Boot: "another"}
	unknown := Life{Store: []byte("store"), Start: 2}
	for _, c := range []struct {
		name  string
		close bool
		next  Life
		spoil func(path string) error
		want  bool
	}{
		{name: "killed", next: life(2), want: true},
		{name: "closed", close: true, next: life(2), want: true},
		{name: "closed, rebooted", close: true, next: reboot, want: true},
		{name: "closed, boot unknown", close: true, next: unknown, want: true},
		{name: "power cut", next: reboot},
		{name: "killed, boot unknown", next: unknown},
		{name: "a life between knew nothing of the file", next: life(3)},
		{name: "the same life", next: life(1)},
		{name: "an earlier life", next: life(0)},
		{name: "another store", next: Life{Store: []byte("other"), Start: 2, Boot: "boot"}},
		{name: "cut off", next: life(2), spoil: func(p string) error { return os.Truncate(p, 70) }},
		{name: "emptied", next: life(2), spoil: func(p string) error { return os.Truncate(p, 0) }},
		{name: "gone", next: life(2), spoil: os.Remove},
		{name: "something follows the end", close: true, next: life(2), spoil: func(p string) error {
			b, err := os.ReadFile(p)
			return errors.Join(err, os.WriteFile(p, append(b, b...), 0o600))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "voters")
			l := open(t, path, life(1))
			sample(t, l)
			if !known(l) {
				t.Fatal("it does not know itself what it has recorded")
			}
			if c.close {
				if err := errors.Join(l.Close(), l.Close()); err != nil {
					t.Fatal(err)
				}
				if err := l.Write("a", new(Batch)); !errors.Is(err, ErrFailed) {
					t.Errorf("a write after the end: %v", err)
				}
			}
			if c.spoil != nil {
				if err := c.spoil(path); err != nil {
					t.Fatal(err)
				}
			}
			copied, _ := os.ReadFile(path)
			next := open(t, path, c.next)
			if known(next) != c.want {
				t.Errorf("known is %v", !c.want)
			}
			// A copy of the file that is put back is of a life before the last one.
			if err := os.WriteFile(path, copied, 0o600); err != nil {
				t.Fatal(err)
			}
			after := c.next
			after.Start++
			if known(open(t, path, after)) && c.next.Start == 2 {
				t.Error("an old file is taken up")
			}
		})
	}
}

func TestEveryDamageIsNoticed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "voters")
	sample(t, open(t, path, life(1)))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 0x10
		l := &Log{life: life(2), voters: make(map[string]*voter)}
		if _, err := l.decode(b); err == nil {
			t.Errorf("byte %d is not missed", i)
		}
	}
}

func TestTheFileIsWrittenAnew(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "voters")
	l := open(t, path, life(1))
	value := bytes.Repeat([]byte("v"), 10_000)
	for i := range 1000 {
		write(t, l, fmt.Sprint("voter", i%7), func(b *Batch) { b.Save(fmt.Sprint(i%50), value); b.Head([]byte{byte(i)}) })
		if i%3 == 0 {
			write(t, l, fmt.Sprint("voter", i%7), func(b *Batch) { b.Void() })
		}
		if info, err := os.Stat(path); err != nil || info.Size() > 2*l.live+fileSlack || info.Size() != l.size {
			t.Fatalf("%d: %d bytes for %d, counted %d: %v", i, info.Size(), l.live, l.size, err)
		}
	}
	live := int64(0)
	for key, v := range l.voters {
		live += int64(len(key) + len(v.head))
		for n, b := range v.names {
			live += int64(len(n) + len(b))
		}
	}
	if live != l.live {
		t.Errorf("%d bytes, counted %d", live, l.live)
	}
	next := open(t, path, life(2))
	for key, v := range l.voters {
		head, names := next.Of(key)
		if !bytes.Equal(head, v.head) || v.head != nil && !maps.EqualFunc(names, v.names, bytes.Equal) {
			t.Errorf("%s: %v, %d names; was %v, %d", key, head, len(names), v.head, len(v.names))
		}
	}
}

// TestADiskThatFails: what could not be recorded is not promised, and the rest is there.
func TestADiskThatFails(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "voters")
	l := open(t, path, life(1))
	sample(t, l)
	if l.Err() != nil {
		t.Fatal(l.Err())
	}
	l.file.Close()
	var b Batch
	b.Void()
	for range 2 {
		if err := l.Write("a", &b); !errors.Is(err, ErrFailed) {
			t.Errorf("%v", err)
		}
	}
	<-l.Failed()
	if !errors.Is(l.Err(), ErrFailed) {
		t.Errorf("%v", l.Err())
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if !known(open(t, path, life(2))) {
		t.Error("what was recorded before is lost")
	}
}

func TestALogInMemory(t *testing.T) {
	t.Parallel()
	l := NewMemory()
	sample(t, l)
	next := l.Detach()
	if !known(next) || known(l) {
		t.Error("the next life does not know, or the former one does")
	}
	if err := l.Write("a", new(Batch)); !errors.Is(err, ErrFailed) {
		t.Errorf("a write of the former life: %v", err)
	}
	if err := errors.Join(l.Close(), next.Close()); err != nil || !known(next) {
		t.Error(err)
	}
}

func TestTooMuchIsNotRecorded(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "voters")
	l := open(t, path, life(1))
	sample(t, l)
	l.live += LiveBytesMax
	write(t, l, "a", func(b *Batch) { b.Save("n", nil) })
	if known(open(t, path, life(2))) {
		t.Error("what lacks the last write is taken up")
	}
	if _, err := Open(path, Life{Store: make([]byte, 256)}); err == nil {
		t.Error("a store id of 256 bytes")
	}
}

// FuzzRead: nothing that a file says is trusted, and what it says is written again as it was.
func FuzzRead(f *testing.F) {
	path := filepath.Join(f.TempDir(), "voters")
	l := open(f, path, life(1))
	sample(f, l)
	killed, _ := os.ReadFile(path)
	f.Add(killed)
	l.Close()
	closed, _ := os.ReadFile(path)
	f.Add(closed)
	f.Fuzz(func(t *testing.T, b []byte) {
		l := &Log{life: life(2), voters: make(map[string]*voter)}
		// Checksums are set right, so that what is behind them is read too.
		for rest := b; len(rest) >= frameHead; {
			n := int(rest[0]) | int(rest[1])<<8 | int(rest[2])<<16
			if rest[3] != 0 || n > len(rest)-frameHead {
				break
			}
			closeFrame(rest[:frameHead+n], 0)
			rest = rest[frameHead+n:]
		}
		if _, err := l.decode(b); err != nil {
			return
		}
		var again bytes.Buffer
		l.life = life(1)
		if _, err := l.dump(&again); err != nil {
			t.Fatal(err)
		}
		k := &Log{life: life(2), voters: make(map[string]*voter)}
		if _, err := k.decode(again.Bytes()); err != nil || k.live != l.live || len(k.voters) != len(l.voters) {
			t.Fatalf("%d bytes of %d voters, was %d of %d: %v", k.live, len(k.voters), l.live, len(l.voters), err)
		}
	})
}

// BenchmarkWrite is what a grant costs a voter beside the messages.
func BenchmarkWrite(b *testing.B) {
	l := open(b, filepath.Join(b.TempDir(), "voters"), life(1))
	var batch Batch
	value := make([]byte, 120)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		batch.Reset()
		batch.Save("some-name", value)
		if err := l.Write("0123456789012345", &batch); err != nil {
			b.Fatal(err)
		}
	}
}
