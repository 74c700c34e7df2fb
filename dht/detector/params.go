package detector

import "time"

// Times of the detector.
const (
	// IntervalActive and IntervalIdle are how long a watched peer may be silent before it is pinged. The shortest patience is twice
	// that.
	IntervalActive = 250 * time.Millisecond
	IntervalIdle   = time.Second

	// NonceInterval is how often a peer is pinged at least, however much it talks: its boot nonce and its round trip come with
	// that, and so does the sign that those who suspect us wait for.
	NonceInterval = time.Second

	// AnswerMax is the longest that an answer is waited for, beyond the interval, from a peer that was heard before. It covers
	// the round trip of a connection with 2 s one way.
	AnswerMax = 4 * time.Second

	// DeviationMin is the least deviation of round trips that is reckoned with: a few regular ones promise nothing.
	DeviationMin = 25 * time.Millisecond

	// FirstPatience is the patience with a peer that was never heard: it must be found and dialled first.
	FirstPatience = 3 * time.Second

	// TickActive and TickIdle are the time between two ticks, with and without active watches.
	TickActive = 50 * time.Millisecond
	TickIdle   = 250 * time.Millisecond

	// TickSlack is how much of a tick's lateness counts as silence of the others, and StallMin the lateness from which on nothing
	// does.
	TickSlack = 10 * time.Millisecond
	StallMin  = 250 * time.Millisecond

	// NonceGrace is how long messages of a peer's former start may still come after the first of the new one.
	NonceGrace = 2 * time.Second

	// AlarmInterval is the shortest time between two alarms about one peer, and the longest between two returns of a nonce that
	// belong together.
	AlarmInterval = time.Minute
)

// noncesMax is how many replaced nonces of a peer are remembered.
const noncesMax = 4
