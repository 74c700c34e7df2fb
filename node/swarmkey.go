package node

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"runtime"

	"github.com/libp2p/go-libp2p/core/pnet"
)

// swarmKeyBytes is the length of a pre-shared key.
const swarmKeyBytes = 32

// The two lines before the key in a swarm.key file, which is Kubo's.
const (
	swarmKeyHeader   = "/key/swarm/psk/1.0.0/"
	swarmKeyEncoding = "/base16/"
)

// NewSwarmKey draws the pre-shared key of a private overlay.
func NewSwarmKey() pnet.PSK {
	k := make([]byte, swarmKeyBytes)
	rand.Read(k)
	return k
}

func encodeSwarmKey(k pnet.PSK) []byte {
	return []byte(swarmKeyHeader + "\n" + swarmKeyEncoding + "\n" + hex.EncodeToString(k) + "\n")
}

// ReadSwarmKey reads the pre-shared key in a peer's directory; nil where there is none, in a public overlay. The key may be in
// base16, base64 or bare bytes, as Kubo has it. Errors: [ErrDamaged]; what is in the file is never in them.
func ReadSwarmKey(dir string) (pnet.PSK, error) {
	b, err := readFile(dir, swarmKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	k, err := decodeSwarmKey(b)
	if err != nil {
		return nil, damaged(dir, swarmKeyFile, err)
	}
	return k, nil
}

// decodeSwarmKey reads what libp2p reads. Its errors say what is wrong, but hide libp2p's, which quote the file.
func decodeSwarmKey(b []byte) (pnet.PSK, error) {
	if k, err := pnet.DecodeV1PSK(bytes.NewReader(b)); err == nil {
		return k, nil
	}
	header, rest, _ := bytes.Cut(b, []byte("\n"))
	encoding, _, _ := bytes.Cut(rest, []byte("\n"))
	switch e := string(bytes.TrimRight(encoding, "\r")); {
	case string(bytes.TrimRight(header, "\r")) != swarmKeyHeader:
		return nil, errors.New("its first line is not " + swarmKeyHeader)
	case e != "/base16/" && e != "/base64/" && e != "/bin/":
		return nil, errors.New("its second line is none of /base16/, /base64/ and /bin/")
	default:
		return nil, errors.New("after its second line there are no 32 bytes in " + e)
	}
}

// warnIfShared warns of a secret that others on this machine may read or write. Windows keeps no such modes.
func warnIfShared(path string) {
	if info, err := os.Stat(path); err == nil && shared(info) {
		log.Warnw("others on this machine may read a secret; run: chmod 600", "file", path, "mode", info.Mode().Perm())
	}
}

func shared(info fs.FileInfo) bool { return runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 }
