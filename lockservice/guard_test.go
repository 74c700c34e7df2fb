package lockservice

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

func TestGuardRefusesLowerTokensOnly(t *testing.T) {
	var g Guard
	for _, step := range []struct {
		token   Token
		refused bool
		highest Token
	}{
		{0, true, 0}, {5, false, 5}, {5, false, 5}, {4, true, 5}, {1 << 63, false, 1 << 63}, {6, true, 1 << 63},
	} {
		if err := g.Check(step.token); errors.Is(err, ErrStaleToken) != step.refused {
			t.Errorf("token %v: %v", step.token, err)
		}
		if got := g.Highest(); got != step.highest {
			t.Errorf("after %v the highest is %v, want %v", step.token, got, step.highest)
		}
	}
}

func TestGuardRunsOneEffectAtATimeInTokenOrder(t *testing.T) {
	var g Guard
	var wg sync.WaitGroup
	var effects []Token // written under the guard alone: the race detector watches
	for i := range 100 {
		wg.Go(func() {
			g.Do(Token(i+1), func() error { effects = append(effects, Token(i+1)); return nil })
		})
	}
	wg.Wait()
	for i := 1; i < len(effects); i++ {
		if effects[i] <= effects[i-1] {
			t.Errorf("effect of %v after that of %v", effects[i], effects[i-1])
		}
	}
	if len(effects) == 0 || effects[len(effects)-1] != 100 {
		t.Errorf("the highest token had no effect: %v", effects)
	}
}

func TestGuardCountsATokenWhoseEffectFailed(t *testing.T) {
	var g Guard
	boom := errors.New("boom")
	if err := g.Do(7, func() error { return boom }); err != boom {
		t.Errorf("got %v", err)
	}
	if err := g.Do(6, func() error { t.Error("effect of a stale token"); return nil }); !errors.Is(err, ErrStaleToken) {
		t.Errorf("got %v", err)
	}
}

func tempGuard(t *testing.T) (*FileGuard, string) {
	path := filepath.Join(t.TempDir(), "counter")
	return NewFileGuard(path), path
}

func mustRead(t *testing.T, g *FileGuard, token Token, data string) {
	t.Helper()
	if tok, d, err := g.Read(); tok != token || string(d) != data || err != nil {
		t.Errorf("read token %v, %q, %v; want %v, %q", tok, d, err, token, data)
	}
}

func TestFileGuardKeepsTokenAndDataTogether(t *testing.T) {
	g, path := tempGuard(t)
	mustRead(t, g, 0, "")
	if err := g.Write(3, []byte("three\n")); err != nil {
		t.Fatal(err)
	}
	mustRead(t, NewFileGuard(path), 3, "three\n") // another process's view
	if err := g.Write(2, []byte("late")); !errors.Is(err, ErrStaleToken) {
		t.Errorf("stale write: %v", err)
	}
	if err := g.Write(0, []byte("none")); !errors.Is(err, ErrStaleToken) {
		t.Errorf("write without a token: %v", err)
	}
	mustRead(t, g, 3, "three\n")
	if err := g.Write(3, nil); err != nil {
		t.Errorf("second write of one holder: %v", err)
	}
	mustRead(t, g, 3, "")
	boom := errors.New("boom")
	if err := g.Update(9, func([]byte) ([]byte, error) { return nil, boom }); !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	mustRead(t, g, 3, "")
}

// A former holder's write that was held up at the disk lands after its successor has read: a plain read would let it, and the
// successor's write would undo it.
func TestClaimShutsOutLateWrites(t *testing.T) {
	g, _ := tempGuard(t)
	if data, err := g.Claim(3); err != nil || data != nil {
		t.Fatalf("claim of a missing file: %q, %v", data, err)
	}
	if err := g.Write(3, []byte("three")); err != nil {
		t.Fatal(err)
	}
	data, err := g.Claim(5)
	if err != nil || string(data) != "three" {
		t.Fatalf("claim: %q, %v", data, err)
	}
	if err := g.Write(3, []byte("late")); !errors.Is(err, ErrStaleToken) {
		t.Errorf("late write: %v", err)
	}
	if _, err := g.Claim(4); !errors.Is(err, ErrStaleToken) {
		t.Errorf("late claim: %v", err)
	}
	mustRead(t, g, 5, "three")
	if data, err = g.Claim(5); err != nil || string(data) != "three" {
		t.Errorf("second claim of one holder: %q, %v", data, err)
	}
}

func TestFileGuardKeepsTheModeOfTheFile(t *testing.T) {
	g, path := tempGuard(t)
	if err := g.Write(1, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := g.Write(2, nil); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

// A crash between the writing of the pending file and the rename leaves the pending file. It must neither be read nor be in
// the way.
func TestFileGuardSurvivesAnInterruptedWrite(t *testing.T) {
	g, path := tempGuard(t)
	if err := g.Write(1, []byte("old")); err != nil {
		t.Fatal(err)
	}
	torn := encodeGuardFile(2, []byte("never finished"))
	if err := os.WriteFile(path+guardPendingSuffix, torn[:len(torn)-3], 0o600); err != nil {
		t.Fatal(err)
	}
	mustRead(t, g, 1, "old")
	if err := g.Write(2, []byte("new")); err != nil {
		t.Fatal(err)
	}
	mustRead(t, g, 2, "new")
	if _, err := os.Stat(path + guardPendingSuffix); !os.IsNotExist(err) {
		t.Errorf("the pending file is still there: %v", err)
	}
}

func TestFileGuardNeverOverwritesWhatItCannotRead(t *testing.T) {
	good := string(encodeGuardFile(17, []byte("hello")))
	for name, content := range map[string]string{
		"empty":            "",
		"foreign":          "400\n",
		"foreign, long":    strings.Repeat("x", 1000),
		"other version":    strings.Replace(good, "guard 1 ", "guard 2 ", 1),
		"truncated data":   good[:len(good)-1],
		"appended data":    good + "!",
		"changed data":     strings.Replace(good, "hello", "hallo", 1),
		"truncated header": good[:30],
		"token zero":       strings.Replace(good, "token=17", "token=0", 1),
		"token negative":   strings.Replace(good, "token=17", "token=-1", 1),
		"token padded":     strings.Replace(good, "token=17", "token=017", 1),
		"token too large":  strings.Replace(good, "token=17", "token=18446744073709551616", 1),
		"size absurd":      strings.Replace(good, "bytes=5", "bytes=9999999999", 1),
		"size wrong":       strings.Replace(good, "bytes=5", "bytes=6", 1),
		"field missing":    strings.Replace(good, "bytes=5 ", "", 1),
		"field twice":      strings.Replace(good, "bytes=5 ", "bytes=5 bytes=5 ", 1),
	} {
		t.Run(name, func(t *testing.T) {
			g, path := tempGuard(t)
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, _, err := g.Read(); !errors.Is(err, ErrGuardFile) || !strings.Contains(err.Error(), path) {
				t.Errorf("read: %v", err)
			}
			if err := g.Write(1<<40, []byte("mine")); !errors.Is(err, ErrGuardFile) {
				t.Errorf("write: %v", err)
			}
			if b, err := os.ReadFile(path); err != nil || string(b) != content {
				t.Errorf("it now holds %.40q, %v", b, err)
			}
		})
	}
}

func TestFileGuardBoundsItsData(t *testing.T) {
	g, _ := tempGuard(t)
	if err := g.Write(1, make([]byte, FileBytesMax+1)); !errors.Is(err, ErrLimit) {
		t.Errorf("one byte too many: %v", err)
	}
	if err := g.Write(1, make([]byte, FileBytesMax)); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	if _, d, err := g.Read(); len(d) != FileBytesMax || err != nil {
		t.Errorf("read %d bytes, %v", len(d), err)
	}
}

// increment adds one to the number in the file, with no lock but the guard's own: what Update promises.
func increment(g *FileGuard) error {
	return g.Update(1, func(old []byte) ([]byte, error) {
		n, _ := strconv.Atoi(string(old))
		return []byte(strconv.Itoa(n + 1)), nil
	})
}

const incrementsEach = 20

func TestFileGuardExcludesGoroutinesAndProcesses(t *testing.T) {
	if path := os.Getenv("LATCHKEY_TEST_GUARDED"); path != "" { // the child process
		for range incrementsEach {
			if err := increment(NewFileGuard(path)); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	g, path := tempGuard(t)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			cmd := exec.Command(os.Args[0], "-test.run=^TestFileGuardExcludesGoroutinesAndProcesses$")
			cmd.Env = append(os.Environ(), "LATCHKEY_TEST_GUARDED="+path)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
		wg.Go(func() {
			for range incrementsEach {
				if err := increment(g); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	mustRead(t, g, 1, fmt.Sprint(4*incrementsEach))
}

func FuzzDecodeGuardFile(f *testing.F) {
	f.Add([]byte("400\n"))
	good := encodeGuardFile(17, []byte("hello"))
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte("latchkey-guard 1 token=1 bytes=0 sha256=\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		token, data, err := decodeGuardFile(b)
		if err != nil {
			return
		}
		if again := encodeGuardFile(token, data); !bytes.Equal(again, b) {
			t.Errorf("%q is written back as %q", b, again)
		}
	})
}
