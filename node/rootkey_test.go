package node

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Whoever has the root key can give the overlay a new root, so it leaves the founder's directory in no invitation, nor in anything
// that a joiner gets by one.
func TestNoInvitationCarriesTheRootKey(t *testing.T) {
	founder := initDir(t)
	seed, err := os.ReadFile(RootKeyFile(founder))
	if err != nil || len(seed) != ed25519.SeedSize {
		t.Fatalf("root key of %d bytes, %v", len(seed), err)
	}
	info, err := PeekDir(founder)
	if err != nil {
		t.Fatal(err)
	}
	if public := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey); !public.Equal(info.Genesis.RootKey) {
		t.Error("it is not the one whose public half the genesis document has")
	}
	i := invitation(t, founder, nil)
	token, err := i.Token()
	if err != nil {
		t.Fatal(err)
	}
	body, err := base64.RawURLEncoding.DecodeString(token[strings.IndexByte(token, '.')+1:])
	if err != nil {
		t.Fatal(err)
	}
	leaks := func(what string, b []byte) {
		for half := range 2 { // a part is as bad
			part := seed[half*16:][:16]
			for _, form := range [][]byte{part, []byte(hex.EncodeToString(part)), []byte(base64.StdEncoding.EncodeToString(part)[:20])} {
				if bytes.Contains(b, form) {
					t.Errorf("%s has the root key", what)
				}
			}
		}
	}
	leaks("the invitation", body)
	dir, _ := joinDir(t, i, "")
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		leaks(path, b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if identity, err := os.ReadFile(filepath.Join(founder, rootKeyFile)); err != nil || !bytes.Equal(identity, seed) {
		t.Errorf("joining changed the founder's key: %v", err)
	}
}
