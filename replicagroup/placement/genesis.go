package placement

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
)

// Limits and defaults of a genesis document. Every peer of an overlay uses the same values, because the overlay's id is the
// hash of them.
const (
	NameBytesMax = 64

	DepthMin     = 1
	DepthMax     = 12 // 4,096 prefixes: enough for some 10^4 peers, and a directory that fits one snapshot of a few MiB
	DepthDefault = 8

	FMax     = 3 // seven voters
	FDefault = 2

	LeaseMin     = time.Second
	LeaseMax     = time.Hour
	LeaseDefault = 120 * time.Second

	DriftMin automaton.Drift = 1       // a clock without any drift does not exist
	DriftMax automaton.Drift = 200_000 // 20 %: beyond that leases shrink to nothing useful

	DeadAfterMax     = 7 * 24 * time.Hour
	DeadAfterDefault = 300 * time.Second

	TTLMaxMin     = time.Second
	TTLMaxMax     = time.Hour
	TTLMaxDefault = 60 * time.Second
)

// GenesisTextBytesMax bounds a genesis file, comments included.
const GenesisTextBytesMax = 64 << 10

// Versions of the encoding. One of policy [Manual] is written as version 1, which has no word for a policy, so the overlays of
// programs that knew none keep their ids; version 2 holds another policy, and only that; version 3 says that reads go by leases, and
// the policy besides, whichever it is; version 4 says that voters keep locks, and how reads go besides.
const (
	genesisVersion1 = 1
	genesisVersion2 = 2
	genesisVersion3 = 3
	genesisVersion4 = 4
	genesisHeader   = "latchkey genesis 1" // of the file, whatever the version of the encoding in it
	textWidth       = 76
)

// Regenesis says how a prefix's group that has lost its majority for good comes back (replica-groups.md section 6.5).
type Regenesis uint8

// The policies.
const (
	// Manual: it stays down until an operator revives it. Groups need nothing of the root to answer.
	Manual Regenesis = iota
	// Leased: groups answer under a lease from the root only, and the root revives by itself a group that has had none for too
	// long. While the root is away for longer than a lease, no group answers.
	Leased
	regenesisEnd
)

// String returns the policy as users write it.
func (r Regenesis) String() string {
	if r >= regenesisEnd {
		return fmt.Sprintf("Regenesis(%d)", uint8(r))
	}
	return [...]string{"manual", "lease"}[r]
}

// ParseRegenesis is the inverse of [Regenesis.String]. Errors match [ErrGenesis].
func ParseRegenesis(s string) (Regenesis, error) {
	for r := range regenesisEnd {
		if r.String() == s {
			return r, nil
		}
	}
	return 0, fmt.Errorf("%w: regenesis %q (lease or manual)", ErrGenesis, s)
}

// How reads go, as users write it ([Genesis.LeaseReads]).
const (
	ReadsQuorum = "quorum"
	ReadsLease  = "lease"
)

// ParseReads reads [ReadsLease] as true and [ReadsQuorum] as false. Errors match [ErrGenesis].
func ParseReads(s string) (leases bool, err error) {
	if s != ReadsLease && s != ReadsQuorum {
		return false, fmt.Errorf("%w: reads %q (%s or %s)", ErrGenesis, s, ReadsQuorum, ReadsLease)
	}
	return s == ReadsLease, nil
}

// Reads returns how reads go, as users write it.
func (g Genesis) Reads() string {
	if g.LeaseReads {
		return ReadsLease
	}
	return ReadsQuorum
}

// ErrGenesis is matched by every error about a genesis document whose values are out of range.
var ErrGenesis = errors.New("placement: genesis")

// Genesis is the document that founds an overlay (replica-groups.md section 6.3). Its hash is the overlay's id, so nobody
// can change it and stay in the same overlay. Fill in what [Defaults] leaves empty. Treat it as a value that does not change.
type Genesis struct {
	Name      string            // for people; two overlays of one name have different ids
	Founders  []Host            // the root group's first voters, an odd number, at most 2F+1; replica i+1 is Founders[i]
	RootKey   ed25519.PublicKey // signs reseed documents, nothing else
	Depth     int               // a key's group is that of its first Depth bits
	F         int               // crashes a full group survives: it has 2F+1 voters
	Lease     time.Duration     // of a group from its parent
	Drift     automaton.Drift   // bound on the rate of every peer's clock
	DeadAfter time.Duration     // how long a group must have been gone before it is made anew
	OwnGroups bool              // whether a single key may get a group of its own (rule G7); not under [Leased]
	Regenesis Regenesis         // how a lost group comes back; Lease and DeadAfter count under [Leased] only
	// LeaseReads has leaders answer reads without asking the other members, for as long as a majority has promised to help elect nobody
	// else (package raft, lease.go). It needs every clock to keep its rate within Drift: where one does not, a read may miss what another
	// leader has committed meanwhile. All members of a group must keep those promises, which is why it is the overlay's to say.
	LeaseReads bool
	// Sigma has the voters of a group keep locks by protocol sigma, beside the group's log. What the log says is executed by all members
	// alike, and a name must not be locked in two ways, so it is the overlay's to say.
	Sigma  bool
	TTLMax time.Duration // longest lease of a lock
	Nonce  [16]byte      // drawn by the founding act; makes the id unique
}

// Defaults returns a genesis document whose parameters have their default values. Name, Founders, RootKey and Nonce are the
// founder's to fill in.
func Defaults() Genesis {
	return Genesis{
		Depth:     DepthDefault,
		F:         FDefault,
		Lease:     LeaseDefault,
		Drift:     automaton.DriftDefault,
		DeadAfter: DeadAfterDefault,
		TTLMax:    TTLMaxDefault,
	}
}

// Validate says which value is out of range, if any. Errors match [ErrGenesis].
func (g Genesis) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrGenesis}, args...)...)
	}
	switch {
	case g.Name == "" || len(g.Name) > NameBytesMax:
		return bad("name of %d bytes (1 to %d)", len(g.Name), NameBytesMax)
	case !utf8.ValidString(g.Name) || strings.ContainsFunc(g.Name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return bad("name %q has characters that cannot be printed", g.Name)
	case g.Depth < DepthMin || g.Depth > DepthMax:
		return bad("depth %d (%d to %d)", g.Depth, DepthMin, DepthMax)
	case g.F < 0 || g.F > FMax:
		return bad("f is %d (0 to %d)", g.F, FMax)
	case g.Lease < LeaseMin || g.Lease > LeaseMax:
		return bad("group lease %v (%v to %v)", g.Lease, LeaseMin, LeaseMax)
	case g.Drift < DriftMin || g.Drift > DriftMax:
		return bad("clock drift of %d parts per million (%d to %d)", g.Drift, DriftMin, DriftMax)
	case g.DeadAfter < 0 || g.DeadAfter > DeadAfterMax:
		return bad("dead after %v (0 to %v)", g.DeadAfter, DeadAfterMax)
	case g.Regenesis >= regenesisEnd:
		return bad("regenesis %d (lease or manual)", g.Regenesis)
	case g.OwnGroups && g.Regenesis == Leased:
		return bad("own groups of keys and regenesis %v exclude each other: leases of such groups would have to be chained", g.Regenesis)
	case g.TTLMax < TTLMaxMin || g.TTLMax > TTLMaxMax:
		return bad("longest lock lease %v (%v to %v)", g.TTLMax, TTLMaxMin, TTLMaxMax)
	case len(g.RootKey) != ed25519.PublicKeySize:
		return bad("root key of %d bytes (%d)", len(g.RootKey), ed25519.PublicKeySize)
	case g.Nonce == [16]byte{}:
		return bad("no nonce was drawn")
	}
	if err := checkHosts(g.Founders, g.F); err != nil {
		return bad("founders: %v", err)
	}
	return nil
}

// Encode returns the canonical encoding: equal documents have equal bytes, and [DecodeGenesis] accepts no other bytes for
// them. Errors match [ErrGenesis].
func (g Genesis) Encode() ([]byte, error) {
	if err := g.Validate(); err != nil {
		return nil, err
	}
	version := byte(genesisVersion1)
	switch {
	case g.Sigma:
		version = genesisVersion4
	case g.LeaseReads:
		version = genesisVersion3
	case g.Regenesis != Manual:
		version = genesisVersion2
	}
	b := appendText([]byte{version}, g.Name)
	b = append(b, byte(g.Depth), byte(g.F))
	b = binary.BigEndian.AppendUint64(b, uint64(g.Lease))
	b = binary.BigEndian.AppendUint64(b, uint64(g.Drift))
	b = binary.BigEndian.AppendUint64(b, uint64(g.DeadAfter))
	b = binary.BigEndian.AppendUint64(b, uint64(g.TTLMax))
	b = appendBool(b, g.OwnGroups)
	if version >= genesisVersion2 {
		b = append(b, byte(g.Regenesis))
	}
	if version >= genesisVersion3 {
		b = appendBool(b, g.LeaseReads)
	}
	if version >= genesisVersion4 {
		b = appendBool(b, g.Sigma)
	}
	b = append(b, g.Nonce[:]...)
	b = append(b, g.RootKey...)
	return appendHosts(b, g.Founders), nil
}

// DecodeGenesis reads what [Genesis.Encode] wrote. Errors match [ErrMalformed], or [ErrGenesis] when a value is out of range.
func DecodeGenesis(b []byte) (Genesis, error) {
	r := reader{b: b}
	version := r.u8()
	if r.err == nil && (version < genesisVersion1 || version > genesisVersion4) {
		r.fail("genesis of version %d, this program reads %d to %d", version, genesisVersion1, genesisVersion4)
	}
	g := Genesis{
		Name:      r.text("name", NameBytesMax),
		Depth:     int(r.u8()),
		F:         int(r.u8()),
		Lease:     r.duration(),
		Drift:     automaton.Drift(r.u64()),
		DeadAfter: r.duration(),
		TTLMax:    r.duration(),
		OwnGroups: r.bool(),
	}
	if version >= genesisVersion2 {
		if g.Regenesis = Regenesis(r.u8()); r.err == nil && g.Regenesis == Manual && version == genesisVersion2 {
			r.fail("genesis of version %d with the policy of version %d", genesisVersion2, genesisVersion1)
		}
	}
	if version >= genesisVersion3 {
		if g.LeaseReads = r.bool(); r.err == nil && !g.LeaseReads && version == genesisVersion3 {
			r.fail("genesis of version %d with the reads of version %d", genesisVersion3, genesisVersion2)
		}
	}
	if version >= genesisVersion4 {
		if g.Sigma = r.bool(); r.err == nil && !g.Sigma {
			r.fail("genesis of version %d with the locks of version %d", genesisVersion4, genesisVersion3)
		}
	}
	r.fixed(g.Nonce[:])
	g.RootKey = bytes.Clone(r.take(ed25519.PublicKeySize))
	g.Founders = r.hosts()
	if err := r.end(); err != nil {
		return Genesis{}, err
	}
	if err := g.Validate(); err != nil {
		return Genesis{}, err
	}
	return g, nil
}

// ID returns the overlay's id: SHA-256 of the encoding. It is zero for a document that is not valid.
func (g Genesis) ID() order.OverlayID {
	b, err := g.Encode()
	if err != nil {
		return order.OverlayID{}
	}
	return sha256.Sum256(b)
}

// RootGroup returns the id of the root group: the whole key space, first generation.
func (g Genesis) RootGroup() order.GroupID { return order.GroupID{Overlay: g.ID()} }

// RootView returns the view the root group begins with: the founders, with replica ids from 1.
func (g Genesis) RootView() order.View { return firstView(g.Founders) }

// RootDescriptor returns the root's descriptor as the document knows it.
func (g Genesis) RootDescriptor() Descriptor {
	return describe(g.RootGroup(), g.Founders)
}

// PrefixOf returns the prefix whose group owns k.
func (g Genesis) PrefixOf(k keyspace.Key) keyspace.Prefix { return keyspace.PrefixOf(k, g.Depth) }

// Anchor returns the preimage of the point at which the members of p's group should live: the peers closest to it. For the
// whole key space it is the root's anchor. It takes about 2^p.Len hashes; callers keep the result. Errors match
// [keyspace.ErrPrefix].
func Anchor(overlay order.OverlayID, p keyspace.Prefix) (keyspace.Preimage, error) {
	if p == (keyspace.Prefix{}) {
		return keyspace.Preimage("root" + string(overlay[:])), nil
	}
	return keyspace.Anchor(string(overlay[:]), p)
}

// Text returns the genesis file: comments for people, a line that says what it is, and the encoding in base64. Errors match
// [ErrGenesis].
func (g Genesis) Text() ([]byte, error) {
	enc, err := g.Encode()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Overlay %q, id %s.\n", g.Name, g.ID().Hex())
	fmt.Fprintf(&b, "# Give this file to every peer that shall join. Lines like this one do not count.\n")
	for _, h := range g.Founders {
		fmt.Fprintf(&b, "# Founder %s at %s\n", hex.EncodeToString([]byte(h.ID)), strings.Join(h.Addrs, " "))
	}
	fmt.Fprintln(&b, genesisHeader)
	for s := base64.StdEncoding.EncodeToString(enc); s != ""; {
		n := min(textWidth, len(s))
		fmt.Fprintln(&b, s[:n])
		s = s[n:]
	}
	return b.Bytes(), nil
}

// ReadGenesis reads a genesis file. Lines that are empty or begin with # do not count. It reads at most
// [GenesisTextBytesMax] bytes. Errors match [ErrMalformed], [ErrGenesis] or are r's own.
func ReadGenesis(r io.Reader) (Genesis, error) {
	text, err := io.ReadAll(io.LimitReader(r, GenesisTextBytesMax+1))
	if err != nil {
		return Genesis{}, fmt.Errorf("placement: genesis file: %w", err)
	}
	if len(text) > GenesisTextBytesMax {
		return Genesis{}, fmt.Errorf("%w: genesis file of more than %d bytes", ErrMalformed, GenesisTextBytesMax)
	}
	var header bool
	var enc strings.Builder
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#':
		case !header && line != genesisHeader:
			return Genesis{}, fmt.Errorf("%w: not a genesis file this program reads: it should begin with %q", ErrMalformed, genesisHeader)
		case !header:
			header = true
		default:
			enc.WriteString(line)
		}
	}
	b, err := base64.StdEncoding.Strict().DecodeString(enc.String())
	if err != nil {
		return Genesis{}, fmt.Errorf("%w: genesis file: %v", ErrMalformed, err)
	}
	if !header {
		return Genesis{}, fmt.Errorf("%w: genesis file without the line %q", ErrMalformed, genesisHeader)
	}
	return DecodeGenesis(b)
}
