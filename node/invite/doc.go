// Package invite makes and reads invitations: one line of text that holds all a machine needs to join an overlay.
//
//	latchkey1.BASE64URL( version byte | protobuf of pb.Invite | first 4 bytes of SHA-256 of what precedes )
//
// The checksum finds what was mistyped or cut off; it protects against nobody. An invitation to a private overlay holds the
// overlay's swarm key, so it is a secret like a password: whoever has read it can join, for as long as the key is in use.
// In an overlay with an allow-list it holds besides, unless it is for one peer id, the key of a peer that may enrol the joiner until it
// expires and may do nothing else.
// Neither a token nor what it holds appears in this package's errors, and an [Invite] prints without its key.
package invite
