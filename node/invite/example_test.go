package invite_test

import (
	"crypto/ed25519"
	"errors"
	"fmt"

	"latchkey/node/invite"
	"latchkey/replicagroup/placement"
)

// A token goes from one machine to another as text.
func Example() {
	g := placement.Defaults()
	g.Name, g.RootKey, g.Nonce = "farm", make([]byte, ed25519.PublicKeySize), [16]byte{1}
	g.Founders = []placement.Host{{Peer: placement.Peer{ID: "a founder"}, Store: [16]byte{1}}}
	token, err := invite.Invite{Genesis: g, SwarmKey: make([]byte, invite.SwarmKeyBytes)}.Token()
	if err != nil {
		fmt.Println(err)
		return
	}

	i, err := invite.Parse(token)
	fmt.Println(i, err)
	_, err = invite.Parse(token[:len(token)-1])
	fmt.Println(errors.Is(err, invite.ErrDamaged))
	// Output:
	// invitation to private overlay "farm", id 2d261c80 <nil>
	// true
}
