package replicagroup

import (
	"time"

	"latchkey/replicagroup/placement"
)

// Limits and periods of a host. Each says what happens at its edge.
const (
	// groupsMax bounds the replicas one host runs. A peer that is asked for one more declines, and the parent asks the next
	// closest.
	groupsMax = placement.HostedMax
	// mailboxMax bounds the events that wait for one shard. Engine messages beyond it are dropped, which engines allow for;
	// commands and queries are answered BUSY.
	mailboxMax = 16 << 10
	// engineBytesMax bounds the engine messages that wait for one shard, besides their number; more are dropped.
	engineBytesMax = 64 << 20
	// sliceMax is how many events a shard handles before it stores and sends: a group takes no more commands than that at once,
	// however many have come.
	sliceMax = 256
	// answerEvery is how many events a shard handles before it answers who asks for the state of its replicas.
	answerEvery = 16
	// waitersMax bounds the commands and queries one replica has taken and not yet answered. More are answered BUSY, but for
	// the first [assuredMax] of each peer.
	waitersMax = 8192
	// ensuresPerPeerMax bounds the groups that one peer has asked the root for and that are not ready yet. More are answered BUSY.
	ensuresPerPeerMax = 32
	// looksMax bounds the look-ups around anchors that run at a time for the plans of the groups led here. Further ones wait.
	looksMax = 8
	// probesMax is from how many peers on what they said of themselves is forgotten once it is too old to be used again.
	probesMax = 4096
	// patrolShare is how many plans that rest are roused in each [placement.PlanTimes].Idle at most: where more groups sleep that are led
	// here, it takes longer before the turn of one comes again.
	patrolShare = 120
	// appearedMax bounds the peers that plans which begin are told about, as ones that have just become reachable. The oldest is
	// forgotten first.
	appearedMax = 64
	// rousesMax bounds the sleeping replicas of a shard that a suspicion wakes at a time; further ones wait for rouseEvery, and so on.
	// One that is asked for something does not wait.
	rousesMax  = 64
	rouseEvery = 100 * time.Millisecond
	// startsAtOnce is how many of the replicas that a shard finds in its store begin at the start; of the others startsMax do every
	// rouseEvery. One that is asked for something does not wait.
	startsAtOnce = 256
	startsMax    = 16
	// stirringMax bounds the replicas of a shard that woke, or began, in their turn and have no leader yet: no more do then. One counts
	// for no longer than stirringPatience, and not at all while too few of its voters are there to elect anybody, lest it hold up those
	// that can.
	stirringMax      = 64
	stirringPatience = 10 * time.Second
	// batchBytesMax is where a batch of engine messages to one peer is cut (replica-groups.md section 3.3). One larger message
	// still goes alone.
	batchBytesMax = 64 << 10
	// spareEvery is how often a member that a majority does not need is told of new entries: so much later than the others it may have them.
	spareEvery = time.Millisecond
	// transferBytesMin is the largest snapshot that goes along with other engine messages; a larger one gets a stream of its own, within
	// the limits of package transfer.
	transferBytesMin = 64 << 10
	// commandOverhead is room for what an encoded command has beside its data, as a guess for buffers.
	commandOverhead = 128
	// descriptorsMax bounds the descriptor cache of a host: those of the groups it keeps, which others ask it for, and as many again as the
	// deepest overlay has prefixes ([groupsMax], 4096). The one not used for longest goes first.
	descriptorsMax = 20 << 10
	// overMax bounds the own groups that a client remembers one by one as ones with which it has given a session up; of the keys of all
	// former ones it remembers the latest generation.
	overMax = 1024

	// compactEvery is how many applied entries a replica lets gather before it takes a snapshot and drops them, compactBytes
	// how many bytes of data in them.
	compactEvery = 8192
	compactBytes = 16 << 20

	// rollTime bounds the question who of a group's members is there. Those that do not answer are asked again every rollPause
	// until then: a suspicion may be wrong, and a call to a suspect fails at once.
	rollTime  = 3 * time.Second
	rollPause = 500 * time.Millisecond
	// rumourPause is the shortest time between two questions to the parent because somebody spoke of a generation not known here.
	rumourPause = time.Second
	// auditPause is how long a host waits before it compares its groups with the parent's directory, so that one question serves
	// several links that came up together, and auditRetry before it tries again when the parent did not answer.
	auditPause = time.Second
	auditRetry = 5 * time.Second

	// commandTimeout is how long a client waits for one answer of one voter before it asks the next. It is above the time a
	// group needs to elect a leader, since a command that waits for its commit is not lost.
	commandTimeout = 2 * time.Second
	// locateTimeout bounds one search for a group.
	locateTimeout = 5 * time.Second
	// askTimeout bounds one question about placement (host, start, locate, confirm).
	askTimeout = 2 * time.Second
	// lookupPatience bounds the look-up of the peers closest to a group whose members are known.
	lookupPatience = 250 * time.Millisecond
	// seekingMax bounds the searches for the group of a prefix that run because a stranger has spoken for it; for others meanwhile it is
	// declined.
	seekingMax = 64
	// updateEvery is how often at most the parent is told of one child's new view, updateLook how often at least somebody looks
	// whether it is time for that while there is something to tell.
	updateEvery = 10 * time.Second
	updateLook  = time.Second
	// tickPause is the shortest time between two ticks of one group, so that one the engine has no room for is not repeated
	// before there may be.
	tickPause = time.Millisecond
	// resendEvery is how often a leader repeats the outputs its machines still await an effect of.
	resendEvery = time.Second
	// lostTurns is after how many turns round the voters a query looks for the group anew.
	lostTurns = 3
	// movingMin and movingMax bound the pause of a client to whom both of two groups say that the other one serves a key: it is on its way.
	movingMin = 10 * time.Millisecond
	movingMax = 100 * time.Millisecond
	// returnTime bounds one attempt to take a key back from its own group. Whoever asked for it asks again.
	returnTime = 30 * time.Second
	// ownLinger is how long the replicas of an own group that was taken back go on to answer who asks again what became of a command:
	// longer than a session lives without a word.
	ownLinger = 2 * sessionTTL
	// sealedEvery is how often a host looks what has become of an own group that waits to be taken back, ownEvery how often it compares
	// others with what the groups of their prefixes know of them; at least four times in a quarantine.
	sealedEvery = time.Second
	ownEvery    = time.Minute
	// retryPause is how long a query waits before it goes round the voters again.
	retryPause = 50 * time.Millisecond
)
