package node

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func writeFile(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestSwarmKeyIsKubos(t *testing.T) {
	key := make([]byte, swarmKeyBytes)
	for i := range key {
		key[i] = byte(i)
	}
	const file = "/key/swarm/psk/1.0.0/\n/base16/\n000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n"
	if got := encodeSwarmKey(key); string(got) != file {
		t.Errorf("wrote %q", got)
	}
	for name, b := range map[string]string{
		"base16":                    file,
		"base16 without a last end": strings.TrimSuffix(file, "\n"),
		"base16 in capitals":        strings.ToUpper(file[len("/key/swarm/psk/1.0.0/\n/base16/\n"):]),
		"base64":                    "/key/swarm/psk/1.0.0/\n/base64/\n" + base64.StdEncoding.EncodeToString(key) + "\n",
		"bin":                       "/key/swarm/psk/1.0.0/\n/bin/\n" + string(key),
		"base16 from Windows":       strings.ReplaceAll(file, "\n", "\r\n"),
	} {
		if name == "base16 in capitals" {
			b = "/key/swarm/psk/1.0.0/\n/base16/\n" + b
		}
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, swarmKeyFile), []byte(b))
		if k, err := ReadSwarmKey(dir); err != nil || !bytes.Equal(k, key) {
			t.Errorf("%s: %x, %v", name, k, err)
		}
	}
	if k, err := ReadSwarmKey(t.TempDir()); k != nil || err != nil {
		t.Errorf("no file: %x, %v", k, err)
	}
	if a, b := NewSwarmKey(), NewSwarmKey(); len(a) != swarmKeyBytes || bytes.Equal(a, b) {
		t.Errorf("drew %x and %x", a, b)
	}
}

func TestDamagedSwarmKeySaysWhatIsWrongWithoutTheKey(t *testing.T) {
	secret := hex.EncodeToString(NewSwarmKey())
	for name, c := range map[string]struct{ file, want string }{
		"empty":             {"", "first line"},
		"bare key":          {secret + "\n", "first line"},
		"another version":   {"/key/swarm/psk/2.0.0/\n/base16/\n" + secret, "first line"},
		"key as encoding":   {"/key/swarm/psk/1.0.0/\n" + secret + "\n", "second line"},
		"no encoding":       {"/key/swarm/psk/1.0.0/\n", "second line"},
		"short key":         {"/key/swarm/psk/1.0.0/\n/base16/\n" + secret[:40] + "\n", "32 bytes in /base16/"},
		"no key":            {"/key/swarm/psk/1.0.0/\n/base64/\n", "32 bytes in /base64/"},
		"not in the base":   {"/key/swarm/psk/1.0.0/\n/base16/\n" + strings.Repeat("xy", 32) + "\n", "32 bytes in /base16/"},
		"short binary":      {"/key/swarm/psk/1.0.0/\n/bin/\n" + secret[:31], "32 bytes in /bin/"},
		"more than a file":  {"/key/swarm/psk/1.0.0/\n/bin/\n" + strings.Repeat(secret, 1100), "more than"},
		"nothing but an LF": {"\n", "first line"},
	} {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, swarmKeyFile), []byte(c.file))
		_, err := ReadSwarmKey(dir)
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), swarmKeyFile) {
			t.Errorf("%s: %v", name, err)
		} else if strings.Contains(err.Error(), secret[:16]) {
			t.Errorf("%s: the error has the key in it", name)
		}
	}
}

func FuzzDecodeSwarmKey(f *testing.F) {
	f.Add(encodeSwarmKey(NewSwarmKey()))
	f.Add([]byte("/key/swarm/psk/1.0.0/\n/bin/\n"))
	f.Add([]byte("/key/swarm/psk/1.0.0/\r\n/base64/\r\nAAAA"))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := decodeSwarmKey(b)
		if err != nil {
			return
		}
		if again, err := decodeSwarmKey(encodeSwarmKey(k)); err != nil || !bytes.Equal(again, k) {
			t.Errorf("%x was read back as %x, %v", k, again, err)
		}
	})
}
