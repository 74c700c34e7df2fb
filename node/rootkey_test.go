package node

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"latchkey/node/api"
	"latchkey/replicagroup/placement"
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

// The document that gave the overlay another root is kept beside the store; one that was changed is refused, and says what to do.
func TestAReseedDocumentIsKeptAndChecked(t *testing.T) {
	dir := initDir(t)
	key, err := ReadRootKey(RootKeyFile(dir))
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, dir, nil)
	p, err := r.node.ProposeRoot(t.Context())
	if err != nil || p.Generation != 1 || p.Volatile {
		t.Fatalf("proposal %+v, %v", p, err)
	}
	g := r.node.Genesis()
	proposal, err := placement.DecodeProposal(g, p.Document)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := proposal.Sign(g, key)
	if err != nil {
		t.Fatal(err)
	}
	ctx := within(t, waitMax)
	if _, err := r.node.Reseed(ctx, p.Document, true); !errors.Is(err, api.ErrReseed) {
		t.Errorf("without a signature: %v", err)
	}
	eventually(t, "the first root leads", func() bool {
		s, err := r.node.GroupStanding(ctx, "root")
		return err == nil && s.State == api.GroupServing
	})
	if _, err := r.node.Reseed(ctx, doc, false); !errors.Is(err, api.ErrAlive) {
		t.Errorf("while the root lives: %v", err)
	}
	for range 2 { // it may be repeated
		v, err := r.node.Reseed(ctx, doc, true)
		if err != nil || v.Generation != 1 || v.Founder != r.node.ID().String() || v.QuarantineMS != v.Quarantine.Milliseconds() || v.Quarantine == 0 {
			t.Fatalf("reseeded %+v, %v", v, err)
		}
	}
	r.stop(t)
	kept, err := os.ReadFile(filepath.Join(dir, reseedFile))
	if err != nil || !bytes.Equal(kept, doc) {
		t.Fatalf("kept %d bytes of %d, %v", len(kept), len(doc), err)
	}
	kept[len(kept)-1]++
	if err := os.WriteFile(filepath.Join(dir, reseedFile), kept, 0o644); err != nil {
		t.Fatal(err)
	}
	runFails(t, dir, nil, ErrDamaged, reseedFile, "remove it")
}
