package node

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"latchkey/dht"
	"latchkey/internal/durablefile"
)

// Limits of the known peers.
const (
	knownPeersMax     = 64
	knownAddrsMax     = 8   // of one peer
	knownAddrBytesMax = 256 // of one address
	knownFileBytesMax = 256 << 10

	// knownInterval is how often changes are looked for, and so the shortest time between two writings of the file.
	knownInterval = 10 * time.Second
)

// knownPeer is a peer that was met, as the file has it.
type knownPeer struct {
	ID    peer.ID  `json:"id"`
	Addrs []string `json:"addrs"`
}

// knownFile is what the file holds: the peers, those met last first.
type knownFile struct {
	Peers []knownPeer `json:"peers"`
}

// knownPeers remembers across restarts the peers that a node was connected to. They are no secret and no promise: a file that
// is lost or damaged costs the node nothing as long as its other bootstrap peers answer.
type knownPeers struct {
	path string
	met  func() []dht.PeerInfo // the peers of the overlay now

	// Owned by run, once it runs.
	peers []knownPeer
	sick  bool // the last writing failed

	stop, done chan struct{}

	mu              sync.Mutex
	started, closed bool
}

// withKnownPeers makes the node remember peers in a file.
func withKnownPeers(path string) Option { return func(c *options) { c.knownPeers = path } }

// openKnownPeers reads the file of known peers. A file that cannot be read counts as an empty one, with a warning.
func openKnownPeers(path string, met func() []dht.PeerInfo) *knownPeers {
	k := &knownPeers{path: path, met: met, stop: make(chan struct{}), done: make(chan struct{})}
	b, err := readFileMax(filepath.Dir(path), filepath.Base(path), knownFileBytesMax)
	if err == nil {
		k.peers, err = decodeKnownPeers(b)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warnw("the file of known peers is of no use; it will be replaced", "file", path, "err", err)
	}
	return k
}

// decodeKnownPeers reads the file's content.
func decodeKnownPeers(b []byte) ([]knownPeer, error) {
	var f knownFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("not what was written: %w", err)
	}
	if len(f.Peers) > knownPeersMax {
		return nil, fmt.Errorf("%d peers, at most %d are written", len(f.Peers), knownPeersMax)
	}
	for i, p := range f.Peers {
		switch _, err := p.info(); {
		case err != nil:
			return nil, fmt.Errorf("peer %d: %w", i, err)
		case slices.ContainsFunc(f.Peers[:i], func(q knownPeer) bool { return q.ID == p.ID }):
			return nil, fmt.Errorf("peer %d is there twice", i)
		}
	}
	return f.Peers, nil
}

// info checks a peer and returns it as libp2p has it.
func (p knownPeer) info() (peer.AddrInfo, error) {
	info := peer.AddrInfo{ID: p.ID}
	if err := p.ID.Validate(); err != nil {
		return info, err
	}
	if len(p.Addrs) == 0 || len(p.Addrs) > knownAddrsMax {
		return info, fmt.Errorf("%d addresses, want 1 to %d", len(p.Addrs), knownAddrsMax)
	}
	for _, s := range p.Addrs {
		if len(s) > knownAddrBytesMax {
			return info, fmt.Errorf("an address of %d bytes", len(s))
		}
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			return info, err
		}
		info.Addrs = append(info.Addrs, a)
	}
	return info, nil
}

// infos returns the peers as libp2p has them.
func (k *knownPeers) infos() []peer.AddrInfo {
	infos := make([]peer.AddrInfo, 0, len(k.peers))
	for _, p := range k.peers {
		if info, err := p.info(); err == nil {
			infos = append(infos, info)
		}
	}
	return infos
}

// start begins to take note of peers, until close. Of a nil k, neither does anything.
func (k *knownPeers) start() {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.started && !k.closed {
		k.started = true
		go k.run()
	}
}

func (k *knownPeers) run() {
	defer close(k.done)
	t := time.NewTicker(knownInterval)
	defer t.Stop()
	for {
		select {
		case <-k.stop:
			k.note()
			return
		case <-t.C:
			k.note()
		}
	}
}

// close takes note for the last time, and waits for that. It is idempotent.
func (k *knownPeers) close() {
	if k == nil {
		return
	}
	k.mu.Lock()
	if !k.closed {
		k.closed = true
		close(k.stop)
	}
	started := k.started
	k.mu.Unlock()
	if started {
		<-k.done
	}
}

// note writes the file anew if the peers have changed.
func (k *knownPeers) note() {
	peers := merge(k.peers, k.met())
	if !k.sick && slices.EqualFunc(peers, k.peers, func(a, b knownPeer) bool { return a.ID == b.ID && slices.Equal(a.Addrs, b.Addrs) }) {
		return
	}
	k.peers = peers
	b, err := json.MarshalIndent(knownFile{peers}, "", " ")
	if err == nil {
		err = durablefile.Replace(k.path, append(b, '\n'), 0o600)
	}
	if err != nil && !k.sick {
		log.Warnw("cannot write the file of known peers", "file", k.path, "err", err)
	}
	k.sick = err != nil
}

// merge puts those connected now before those known from earlier. The order of either does not change by itself, so that
// the same peers are the same list.
func merge(known []knownPeer, now []dht.PeerInfo) []knownPeer {
	met := make(map[peer.ID]knownPeer)
	for _, p := range now {
		if q := (knownPeer{ID: p.ID, Addrs: addrTexts(p.Addrs)}); p.Connected && len(q.Addrs) > 0 {
			met[p.ID] = q
		}
	}
	peers := slices.SortedFunc(maps.Values(met), func(a, b knownPeer) int { return cmp.Compare(a.ID, b.ID) })
	for _, p := range known {
		if _, ok := met[p.ID]; !ok {
			peers = append(peers, p)
		}
	}
	return peers[:min(len(peers), knownPeersMax)]
}

// addrTexts returns addresses as the file has them, always in the same order.
func addrTexts(addrs []ma.Multiaddr) []string {
	var texts []string
	for _, a := range addrs {
		if s := a.String(); len(s) <= knownAddrBytesMax {
			texts = append(texts, s)
		}
	}
	slices.Sort(texts)
	texts = slices.Compact(texts)
	return texts[:min(len(texts), knownAddrsMax)]
}
