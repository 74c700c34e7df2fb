package node

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"

	"github.com/libp2p/go-libp2p/core/host"

	"latchkey/replicagroup"
	"latchkey/replicagroup/placement"
)

// FoundOptions say what overlay is founded. The zero value takes the defaults of placement.Defaults.
type FoundOptions struct {
	Name  string // of the overlay, for people; default "latchkey"
	F     *int   // crashes a full group survives
	Depth int    // of the prefixes; 0: default
	// Regenesis says how a group that is lost for good comes back. nil: by hand ([placement.Manual]); [InitDir] takes [placement.Leased]
	// for the profile public.
	Regenesis *placement.Regenesis
	// LeaseReads has the leaders of groups answer reads without asking the other members each time (placement.Genesis.LeaseReads). It wants
	// clocks that keep their rate, also against a virtual machine that is suspended: without that a read may be out of date.
	LeaseReads bool
	// OwnGroups allows keys to have groups of their own (placement.Genesis.OwnGroups). A group of a prefix that was lost and revived then
	// grants nothing for the overlay's Lease, if that is longer than locks may last. It cannot be had together with placement.Leased.
	OwnGroups bool
	// NoSigma has every lock kept in the log of its group, as in overlays of before, instead of those that one holds at a time by the
	// group's voters, protocol sigma (placement.Genesis.Sigma).
	NoSigma bool
}

// Found founds a new overlay with the peer of a libp2p host as its founder. It returns the genesis document, which every
// other peer needs, and the store with which the founder's node must be made ([WithStore]): it holds the beginning of the
// root group, nobody else can have it, and the overlay ends with it. Peers that are given the document find the founder at
// the addresses the host has now.
func Found(h host.Host, o FoundOptions) (placement.Genesis, *replicagroup.MemoryStore, error) {
	g, store, _, err := FoundWithRootKey(h, o)
	return g, store, err
}

// FoundWithRootKey does what [Found] does and returns the overlay's root key too, a secret: it signs the admin keys of allow-lists
// (package allowlist), and documents that give the overlay a new root.
func FoundWithRootKey(h host.Host, o FoundOptions) (placement.Genesis, *replicagroup.MemoryStore, ed25519.PrivateKey, error) {
	founder := placement.Peer{ID: string(h.ID())}
	for _, a := range h.Addrs() {
		if len(founder.Addrs) < placement.AddrsMax {
			founder.Addrs = append(founder.Addrs, a.String())
		}
	}
	g, root, err := drawGenesis(founder, o)
	if err != nil {
		return placement.Genesis{}, nil, nil, err
	}
	store := replicagroup.NewMemoryStoreAs(g.Founders[0].Store)
	return g, store, root, replicagroup.Found(store, g, founder.Node())
}

// drawGenesis draws the document of a new overlay, and the private half of its root key.
func drawGenesis(founder placement.Peer, o FoundOptions) (placement.Genesis, ed25519.PrivateKey, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return placement.Genesis{}, nil, fmt.Errorf("node: found: %w", err)
	}
	g := placement.Defaults()
	g.Name, g.RootKey = "latchkey", public
	if o.Name != "" {
		g.Name = o.Name
	}
	if o.F != nil {
		g.F = *o.F
	}
	if o.Depth != 0 {
		g.Depth = o.Depth
	}
	if o.Regenesis != nil {
		g.Regenesis = *o.Regenesis
	}
	g.LeaseReads, g.OwnGroups, g.Sigma = o.LeaseReads, o.OwnGroups, !o.NoSigma
	host := placement.Host{Peer: founder}
	rand.Read(host.Store[:])
	rand.Read(g.Nonce[:])
	g.Founders = []placement.Host{host}
	return g, private, g.Validate()
}
