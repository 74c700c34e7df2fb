package lockservice

import "strconv"

// Token is a fencing token: a number that rises strictly with every grant of one lock, for ever, across restarts, moves
// and revivals of the group that keeps it. A resource that remembers the highest token it has seen, and refuses lower
// ones, is safe from a holder that has been delayed past the end of its lease ([Guard], [FileGuard]).
//
// From its top: generation of the overlay (8 bits), generation of the group (16), counter of the group's grants (40). The
// group's is that of its prefix (10 bits) and, below it, that of a key's own group (6), so that a revived prefix outranks
// whatever any group of its keys has issued.
// Tokens of different locks are not comparable. Zero is no token.
type Token uint64

// Limits of what a token has room for. Nothing wraps: a prefix, or an overlay, that would need a further generation cannot be
// revived.
const (
	OverlayGenMax = 1<<8 - 1
	PrefixGenMax  = 1<<10 - 1

	keyGenBits  = 6
	counterBits = 40
)

// String returns the token in decimal, which is how programs pass it on.
func (t Token) String() string { return strconv.FormatUint(uint64(t), 10) }
