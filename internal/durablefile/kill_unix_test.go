//go:build unix

package durablefile

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

const childPath = "DURABLEFILE_TEST_PATH"

var versions = [2][]byte{bytes.Repeat([]byte("a"), 4_000_000), bytes.Repeat([]byte("b"), 2_000_000)}

// TestChildReplaces is not a test: it is what the child of the next one does.
func TestChildReplaces(t *testing.T) {
	path := os.Getenv(childPath)
	if path == "" {
		t.Skip("it is for the child process of another test")
	}
	os.Stdout.WriteString("begun\n")
	for i := 0; ; i++ {
		if err := Replace(path, versions[i%2], 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A process that is killed while it replaces a file leaves one content or the other.
func TestKilledReplaceLeavesAWholeFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := Replace(path, versions[0], 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		c := exec.CommandContext(t.Context(), self, "-test.run=^TestChildReplaces$")
		c.Env = append(os.Environ(), childPath+"="+path)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * 413 * time.Microsecond) // another moment each time
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := c.Wait(); err == nil {
			t.Fatal("the child was not killed")
		}
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, versions[0]) && !bytes.Equal(b, versions[1]) {
			t.Fatalf("left %d bytes, %v", len(b), err)
		}
	}
}
