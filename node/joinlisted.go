package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/internal/durablefile"
	"latchkey/node/allowlist"
	"latchkey/node/config"
	"latchkey/node/invite"
)

// joiningFile holds the private key of a peer that is to be made in the directory, from the time when others are told its id until it is
// made. What has been enrolled is that id, so it must not be lost in between.
const joiningFile = "joining.key"

// ErrNotInvited is matched when an invitation is for another peer than the one that would be made in the directory.
var ErrNotInvited = errors.New("node: invitation for another peer")

// PrepareDir draws the key of the peer that a join will make in an empty or absent directory, or finds the one that was drawn before, and
// returns the peer's id: an invitation can be for that id alone. Errors are those of [CreateDir].
func PrepareDir(dir string) (peer.ID, error) {
	if err := checkVacant(dir); err != nil {
		return "", err
	}
	key, err := joiningKey(dir)
	if err != nil {
		return "", err
	}
	return peer.IDFromPrivateKey(key)
}

// joiningKey reads the directory's joining key, or draws it.
func joiningKey(dir string) (crypto.PrivKey, error) {
	b, err := readFile(dir, joiningFile)
	if err == nil {
		key, err := crypto.UnmarshalPrivateKey(b)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w; remove it and join by a new invitation", ErrDamaged, filepath.Join(dir, joiningFile), err)
		}
		return key, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("node: join: %w", err)
	}
	if b, err = crypto.MarshalPrivateKey(key); err != nil {
		return nil, fmt.Errorf("node: join: %w", err)
	}
	if err := makeDir(dir); err != nil {
		return nil, fmt.Errorf("node: %s: make the directory: %w", dir, err)
	}
	if err := durablefile.Replace(filepath.Join(dir, joiningFile), b, 0o600); err != nil {
		return nil, fmt.Errorf("node: join: %w", err)
	}
	return key, nil
}

// joinListed is JoinDir in an overlay with an allow-list.
func joinListed(ctx context.Context, dir string, i invite.Invite, c config.Config) (Joined, error) {
	key, err := joiningKey(dir)
	if err != nil {
		return Joined{}, err
	}
	j := Joined{Config: c}
	if j.ID, err = peer.IDFromPrivateKey(key); err != nil {
		return Joined{}, fmt.Errorf("node: join: %w", err)
	}
	if i.Peer != "" && i.Peer != j.ID {
		return Joined{}, fmt.Errorf("%w: it is for %s, and the peer in %s would be %s; ask for one for that id", ErrNotInvited, i.Peer, dir, j.ID)
	}
	as := key
	if i.Key != nil {
		if as, err = crypto.UnmarshalEd25519PrivateKey(i.Key); err != nil {
			return Joined{}, fmt.Errorf("node: join: %w", err)
		}
	}
	doc, met, err := enrol(ctx, i, as, key)
	if errors.Is(err, ErrRefused) && i.Key != nil { // we may have been enrolled before an interruption
		if d, m, err2 := fetchList(ctx, i, key, j.ID); err2 == nil {
			doc, met, err = d, m, nil
		}
	}
	switch {
	case ctx.Err() != nil:
		return Joined{}, context.Cause(ctx)
	case err != nil && time.Now().After(i.Expires) && !strings.Contains(err.Error(), gated[gatedExpired]):
		return Joined{}, fmt.Errorf("%w; the invitation expired at %s by this machine's clock; ask for a new one", err, i.Expires.Format(time.RFC3339))
	case errors.Is(err, ErrUnreachable):
		return Joined{}, fmt.Errorf("%w; the overlay has an allow-list, so somebody has to enrol this peer: run join again when the peer that made the invitation runs", err)
	case err != nil:
		return Joined{}, fmt.Errorf("%w; nothing was joined", err)
	}
	j.Met = met
	if err := CreateDir(dir, DirSpec{Key: key, Genesis: i.Genesis, SwarmKey: i.SwarmKey, Config: c, AllowList: doc}); err != nil {
		return Joined{}, err
	}
	if err := os.Remove(filepath.Join(dir, joiningFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warnw("the file is not needed any more and cannot be removed", "err", err)
	}
	return j, nil
}

// enrol asks the peers of an invitation, one after another, to put the owner of key on the list, as the peer that as is the key of.
func enrol(ctx context.Context, i invite.Invite, as, key crypto.PrivKey) ([]byte, peer.ID, error) {
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, "", fmt.Errorf("node: join: %w", err)
	}
	return fromPeers(ctx, i, as, id, func(ctx context.Context, h host.Host, p peer.ID) ([]byte, error) {
		return enrolAt(ctx, h, i.Genesis, key, p)
	})
}

// fetchList asks them for the list as one who may be on it.
func fetchList(ctx context.Context, i invite.Invite, key crypto.PrivKey, self peer.ID) ([]byte, peer.ID, error) {
	return fromPeers(ctx, i, key, self, func(ctx context.Context, h host.Host, p peer.ID) ([]byte, error) {
		return listAt(ctx, h, i.Genesis, p)
	})
}

// fromPeers gets a list with joiner on it from one of the peers of an invitation, or the verdict that tells most.
func fromPeers(ctx context.Context, i invite.Invite, as crypto.PrivKey, joiner peer.ID, get func(context.Context, host.Host, peer.ID) ([]byte, error)) ([]byte, peer.ID, error) {
	peers := named(i)
	if len(peers) == 0 {
		return nil, "", fmt.Errorf("%w: the invitation names no address", ErrUnreachable)
	}
	h, err := newAsker(as, i.SwarmKey)
	if err != nil {
		return nil, "", err
	}
	defer h.Close()
	var verdict error
	for _, p := range peers {
		found := func() error {
			ctx, cancel := context.WithTimeout(ctx, JoinWait)
			defer cancel()
			return diagnose(ctx, h, i.Genesis, i.SwarmKey, p, false)
		}()
		var doc []byte
		if found == nil {
			doc, found = get(ctx, h, p.ID)
			var reset *network.StreamError
			switch {
			case found == nil, errors.Is(found, ErrRefused):
			case errors.As(found, &reset) && reset.Remote && reset.ErrorCode == network.StreamGated:
				found = fmt.Errorf("%w: %s does not know of the invitation; if the peer that made it runs, run join again in a moment", ErrRefused, p.ID)
			default:
				found = fmt.Errorf("%w: %s: %w", ErrUnreachable, p.ID, found)
			}
		}
		if found == nil {
			l, err := allowlist.Open(i.Genesis, doc)
			if err == nil && l.Judge(joiner, time.Now()) == allowlist.Admitted {
				return doc, p.ID, nil
			}
			found = fmt.Errorf("%w: %s: its allow-list does not name this peer", ErrRefused, p.ID)
		}
		if ctx.Err() != nil {
			return nil, "", context.Cause(ctx)
		}
		if verdict == nil || tells(found) > tells(verdict) {
			verdict = found
		}
	}
	return nil, "", verdict
}
