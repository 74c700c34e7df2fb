package placement

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"

	"latchkey/replicagroup/order"
)

// OverlayGenMax is the last generation of an overlay: a token has eight bits for it. One whose root would need another one cannot be
// given a new root.
const OverlayGenMax = 1<<8 - 1

// ReseedBytesMax bounds an encoded reseed document.
const ReseedBytesMax = 1 + 32 + 1 + 1 + MembersMax*(1+PeerIDBytesMax+1+AddrsMax*(1+AddrBytesMax)+16) + ed25519.SignatureSize

const reseedVersion = 1

// reseedDomain keeps a signature of a reseed document from being one of anything else.
const reseedDomain = "latchkey reseed document\x00"

// ErrReseed is matched by every error about a reseed document that is not to be believed, or cannot be made.
var ErrReseed = errors.New("placement: reseed document")

// Reseed names a new root for an overlay whose root group is lost for good (replica-groups.md section 6.5). It counts only with
// the signature of the overlay's root key, which [Genesis.RootKey] verifies, and only where its generation is larger than any known.
type Reseed struct {
	Overlay    order.OverlayID
	OverlayGen uint8  // above zero; one more than the last
	Founders   []Host // the new root's voters, an odd number, at most 2F+1; replica i+1 is Founders[i]
}

// RootGroup returns the id of the new root group.
func (r Reseed) RootGroup() order.GroupID {
	return order.GroupID{Overlay: r.Overlay, Gen: uint64(r.OverlayGen) << 32}
}

// RootDescriptor returns the new root's descriptor as the document knows it.
func (r Reseed) RootDescriptor() Descriptor { return describe(r.RootGroup(), r.Founders) }

func (r Reseed) check(g Genesis) error {
	switch {
	case r.Overlay != g.ID():
		return fmt.Errorf("%w: it is of overlay %v, and this is %v", ErrReseed, r.Overlay, g.ID())
	case r.OverlayGen == 0:
		return fmt.Errorf("%w: generation 0 is that of the genesis document", ErrReseed)
	}
	if err := checkHosts(r.Founders, g.F); err != nil {
		return fmt.Errorf("%w: founders: %v", ErrReseed, err)
	}
	return nil
}

func (r Reseed) body() []byte {
	b := append([]byte{reseedVersion}, r.Overlay[:]...)
	return appendHosts(append(b, r.OverlayGen), r.Founders)
}

// Propose returns the document without a signature, for whoever has the key. It counts for nothing. Errors match [ErrReseed].
func (r Reseed) Propose(g Genesis) ([]byte, error) {
	if err := r.check(g); err != nil {
		return nil, err
	}
	return r.body(), nil
}

// DecodeProposal reads what [Reseed.Propose] wrote. Errors match [ErrMalformed], and [ErrReseed] where it is of another overlay.
func DecodeProposal(g Genesis, b []byte) (Reseed, error) {
	if len(b) > ReseedBytesMax {
		return Reseed{}, fmt.Errorf("%w: reseed document of %d bytes (at most %d)", ErrMalformed, len(b), ReseedBytesMax)
	}
	r := reader{b: b}
	if v := r.u8(); r.err == nil && v != reseedVersion {
		r.fail("reseed document of version %d, this program reads %d", v, reseedVersion)
	}
	var doc Reseed
	r.fixed(doc.Overlay[:])
	doc.OverlayGen = r.u8()
	doc.Founders = r.hosts()
	if err := r.end(); err != nil {
		return Reseed{}, err
	}
	return doc, doc.check(g)
}

// Sign returns the document with the signature of the overlay's root key. A key that is not the overlay's, like every other error,
// matches [ErrReseed].
func (r Reseed) Sign(g Genesis, key ed25519.PrivateKey) ([]byte, error) {
	if err := r.check(g); err != nil {
		return nil, err
	}
	if len(key) != ed25519.PrivateKeySize || !bytes.Equal(key.Public().(ed25519.PublicKey), g.RootKey) {
		return nil, fmt.Errorf("%w: this is not the root key of overlay %v", ErrReseed, r.Overlay)
	}
	b := r.body()
	return append(b, ed25519.Sign(key, append([]byte(reseedDomain), b...))...), nil
}

// OpenReseed reads a document that [Reseed.Sign] made and verifies it. Errors match [ErrMalformed] where it cannot be read, and
// [ErrReseed] where it is of another overlay or not signed by its root key.
func OpenReseed(g Genesis, b []byte) (Reseed, error) {
	if len(b) > ReseedBytesMax || len(b) < ed25519.SignatureSize {
		return Reseed{}, fmt.Errorf("%w: reseed document of %d bytes (%d to %d)", ErrMalformed, len(b), ed25519.SignatureSize, ReseedBytesMax)
	}
	body, signature := b[:len(b)-ed25519.SignatureSize], b[len(b)-ed25519.SignatureSize:]
	doc, err := DecodeProposal(g, body)
	if err != nil {
		return Reseed{}, err
	}
	if !ed25519.Verify(g.RootKey, append([]byte(reseedDomain), body...), signature) {
		return Reseed{}, fmt.Errorf("%w: it is not signed by the root key of overlay %v", ErrReseed, doc.Overlay)
	}
	return doc, nil
}
