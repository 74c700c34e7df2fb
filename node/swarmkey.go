package node

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"

	"github.com/libp2p/go-libp2p/core/pnet"
)

// swarmKeyBytes is the length of a pre-shared key.
const swarmKeyBytes = 32

// NewSwarmKey draws the pre-shared key of a private overlay.
func NewSwarmKey() pnet.PSK {
	k := make([]byte, swarmKeyBytes)
	rand.Read(k)
	return k
}

// encodeSwarmKey writes a key as Kubo does.
func encodeSwarmKey(k pnet.PSK) []byte {
	return []byte("/key/swarm/psk/1.0.0/\n/base16/\n" + hex.EncodeToString(k) + "\n")
}

// readSwarmKey reads a directory's key, nil where there is none.
func readSwarmKey(dir string) (pnet.PSK, error) {
	b, err := readFile(dir, swarmKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	k, err := pnet.DecodeV1PSK(bytes.NewReader(b))
	if err != nil {
		return nil, damaged(dir, swarmKeyFile, errors.New("not a swarm key"))
	}
	return k, nil
}
