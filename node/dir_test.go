package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"latchkey/node/config"
	"latchkey/replicagroup/placement"
)

func initDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "peer")
	if _, _, err := InitDir(dir, InitOptions{FoundOptions: FoundOptions{Name: "test"}, Profile: config.Test}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestInitDirNeverOverwrites(t *testing.T) {
	dir := initDir(t)
	before := contents(t, dir)
	_, _, err := InitDir(dir, InitOptions{FoundOptions: FoundOptions{Name: "other"}})
	if !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), dir) {
		t.Errorf("second init: %v", err)
	}
	if after := contents(t, dir); len(after) != len(before) {
		t.Errorf("second init left %d files, there were %d", len(after), len(before))
	} else {
		for name, b := range before {
			if after[name] != b {
				t.Errorf("second init changed %s", name)
			}
		}
	}
	// A file of a former peer is not built upon either.
	for _, name := range madeFiles {
		half := t.TempDir()
		if err := os.WriteFile(filepath.Join(half, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := InitDir(half, InitOptions{}); !errors.Is(err, ErrExists) {
			t.Errorf("init beside %s: %v", name, err)
		}
	}
}

func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(b)
	}
	return all
}

func TestInitRefusesWhatNoOverlayCanHave(t *testing.T) {
	f, leased := placement.FMax+1, placement.Leased
	for name, o := range map[string]FoundOptions{
		"too many faults": {F: &f}, "too deep": {Depth: placement.DepthMax + 1}, "name": {Name: strings.Repeat("n", placement.NameBytesMax+1)},
		"own groups under leases": {OwnGroups: true, Regenesis: &leased},
	} {
		dir := filepath.Join(t.TempDir(), "peer")
		if _, _, err := InitDir(dir, InitOptions{FoundOptions: o}); !errors.Is(err, placement.ErrGenesis) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: a refused init left files", name)
		}
	}
}

func TestOpenDirSaysWhatIsWrong(t *testing.T) {
	if _, err := OpenDir(t.TempDir()); !errors.Is(err, ErrNotInitialised) || !strings.Contains(err.Error(), "latchkey init") {
		t.Errorf("empty directory: %v", err)
	}
	dir := initDir(t)
	d, err := OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDir(dir); !errors.Is(err, ErrInUse) {
		t.Errorf("second daemon: %v", err)
	}
	if err := errors.Join(d.Close(), d.Close()); err != nil {
		t.Error(err)
	}
	if d, err = OpenDir(dir); err != nil {
		t.Fatalf("after the first one closed: %v", err)
	}
	d.Close()
	for _, name := range []string{identityFile, genesisFile} {
		dir := initDir(t)
		if err := os.WriteFile(filepath.Join(dir, name), []byte("garbage"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenDir(dir); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), name) {
			t.Errorf("damaged %s: %v", name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, fileBytesMax+1), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenDir(dir); err == nil {
			t.Errorf("oversize %s was taken", name)
		}
	}
}
