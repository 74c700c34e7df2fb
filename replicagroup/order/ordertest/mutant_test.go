package ordertest

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"latchkey/replicagroup/order"
)

// bent is an engine with a mistake planted around it.
type bent struct {
	order.Orderer
	self    order.ReplicaID
	hasty   bool                                        // says that it is ready as soon as it leads
	event   func(order.Event) order.Event               // changes what it hears
	actions func(ev order.Event, a *order.Actions)      // changes what it asks for
	status  func(order.Status) order.Status             // changes what it says
	answers func(ev order.Event, a *order.Actions) bool // handles an event in its place
}

func (b *bent) Step(ev order.Event, a *order.Actions) {
	if b.event != nil {
		ev = b.event(ev)
	}
	if b.answers != nil && b.answers(ev, a) {
		return
	}
	b.Orderer.Step(ev, a)
	if b.actions != nil {
		b.actions(ev, a)
	}
}

func (b *bent) Leader() (order.ReplicaID, bool) {
	leader, ready := b.Orderer.Leader()
	if b.hasty {
		ready = leader == b.self
	}
	return leader, ready
}

func (b *bent) Status() order.Status {
	st := b.Orderer.Status()
	if b.status != nil {
		st = b.status(st)
	}
	return st
}

// bend returns a factory of engines with a mistake.
func bend(plant func(c Config, e order.Orderer) *bent) Factory {
	return func(c Config, img order.Image) (order.Orderer, error) {
		e, err := raftFactory(c, img)
		if err != nil {
			return nil, err
		}
		b := plant(c, e)
		b.self = c.Self
		return b, nil
	}
}

// shifted has an event tell another time.
func shifted(ev order.Event, by func(time.Duration) time.Duration) order.Event {
	switch e := ev.(type) {
	case order.Recv:
		e.Now = by(e.Now)
		return e
	case order.Timer:
		e.Now = by(e.Now)
		return e
	case order.Read:
		e.Now = by(e.Now)
		return e
	case order.Suspect:
		e.Now = by(e.Now)
		return e
	}
	return ev
}

// What engine raft's messages are, in their second byte: the group falls asleep, it wakes, a successor is to campaign.
const quiesceType, wakeType, transferType = 0x40, 0x41, 14

var mutants = []struct {
	name    string
	driver  mistakes
	factory Factory // nil is raft
	test    func(suite) error
	effort  float64
	finds   string // what the failure says
}{
	// Drivers and disks.
	{name: "driver reports Stored before the disk has it", driver: mistakes{storedEarly: true}, test: crashEverywhere, effort: 1, finds: "I12"},
	{name: "driver sends before Stored", driver: mistakes{sendEarly: true}, test: totalOrder, effort: .1, finds: "I12"},
	{name: "driver never syncs", driver: mistakes{neverSyncs: true}, test: restartAll, effort: 1, finds: "I"},
	{name: "disk keeps the first hard state", driver: mistakes{dropState: true}, test: forks, effort: 1, finds: "I6"},
	{name: "disk loses entries", driver: mistakes{dropEntries: true}, test: restartAll, effort: 1, finds: ""},
	{name: "driver delivers an entry twice", driver: mistakes{deliverTwice: true}, test: totalOrder, effort: .1, finds: "I2"},
	{name: "driver leaves an entry out", driver: mistakes{deliverSkips: true}, test: totalOrder, effort: .1, finds: "I2"},
	{name: "driver answers reads without a read point", driver: mistakes{readAtOnce: true}, test: staleReads, effort: 1, finds: "I9"},
	{name: "divided driver answers reads without a read point", driver: mistakes{readAtOnce: true}, test: primaryOnly, effort: 1, finds: "I9"},
	{name: "driver answers before its entry is delivered", driver: mistakes{answerEarly: true}, test: linearizability, effort: .1, finds: "I9"},
	{name: "majority down, driver answers before delivery", driver: mistakes{answerEarly: true}, test: majorityDown, effort: 1, finds: "majority is down"},
	{name: "machine executes repeats again", driver: mistakes{forgetful: true}, test: noDuplication, effort: .2, finds: "I4"},
	{name: "member without its disk keeps the store id", driver: mistakes{keepStoreID: true}, test: lostDisk, effort: 1, finds: "I1"},
	{name: "snapshot is labelled with another index", driver: mistakes{staleSnapshot: true}, test: restartAll, effort: 1, finds: "I2"},

	// Engines.
	{name: "engine draws its own randomness", test: determinism, effort: .05, finds: "differ at step",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, event: func(ev order.Event) order.Event {
				if _, ok := ev.(order.Rand); ok {
					return order.Rand{Bits: rand.Uint64()}
				}
				return ev
			}}
		})},
	{name: "engine does not wait for its persists", test: restartAll, effort: 4, finds: "I",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, actions: func(_ order.Event, a *order.Actions) {
				for i := range a.Send {
					a.Send[i].After = 0
				}
			}}
		})},
	{name: "engine counts a foreign store", test: lostDisk, effort: 1, finds: "I1",
		factory: bend(func(c Config, e order.Orderer) *bent {
			return &bent{Orderer: e, event: func(ev order.Event) order.Event {
				if r, ok := ev.(order.Recv); ok {
					m, _ := c.View.Member(r.From)
					r.Store = m.Store
					return r
				}
				return ev
			}}
		})},
	{name: "engine gives read points at once", test: staleReads, effort: 1, finds: "I16",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, answers: func(ev order.Event, a *order.Actions) bool {
				r, ok := ev.(order.Read)
				if ok {
					a.ReadOK = append(a.ReadOK, order.ReadPoint{Ref: r.Ref})
				}
				return ok
			}}
		})},
	{name: "one engine delivers another command", test: totalOrder, effort: .1, finds: "I1",
		factory: bend(func(c Config, e order.Orderer) *bent {
			return &bent{Orderer: e, actions: func(_ order.Event, a *order.Actions) {
				for i := range a.Deliver {
					if d := &a.Deliver[i]; c.Self == 2 && d.Kind == order.Normal && d.Index%50 == 0 {
						d.Stamp.At++
					}
				}
			}}
		})},
	{name: "engines deliver a command that nobody issued", test: totalOrder, effort: .1, finds: "I3",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, actions: func(_ order.Event, a *order.Actions) {
				for i := range a.Deliver {
					if d := &a.Deliver[i]; d.Kind == order.Normal && d.Index%50 == 0 {
						d.Cmd.Data = bytes.ToUpper(append([]byte(nil), d.Cmd.Data...))
						d.Cmd.Seq++
					}
				}
			}}
		})},
	{name: "engine answers a proposal twice", test: totalOrder, effort: .1, finds: "not open",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, actions: func(_ order.Event, a *order.Actions) { a.Done = append(a.Done, a.Done...) }}
		})},
	{name: "engine says done before it delivers", test: totalOrder, effort: .1, finds: "stands at",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, answers: func(ev order.Event, a *order.Actions) bool {
				p, ok := ev.(order.Propose)
				if ok {
					a.Done = append(a.Done, order.Outcome{Ref: p.Ref, Index: 1 << 40})
				}
				return ok
			}}
		})},
	{name: "engine forgets a proposal's answer", test: totalOrder, effort: .1, finds: "no progress",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, actions: func(_ order.Event, a *order.Actions) { a.Done = a.Done[:0] }}
		})},
	{name: "engine hears no timer", test: majorityDown, effort: .1, finds: "no progress",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, answers: func(ev order.Event, _ *order.Actions) bool {
				_, ok := ev.(order.Timer)
				return ok
			}}
		})},
	{name: "engine panics", test: determinism, effort: .05, finds: "panic",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, event: func(ev order.Event) order.Event {
				if tm, ok := ev.(order.Timer); ok && tm.Epoch > 10 {
					panic("cannot be")
				}
				return ev
			}}
		})},
	{name: "engine halts", test: totalOrder, effort: .1, finds: "halted: tired",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, actions: func(ev order.Event, a *order.Actions) {
				if ap, ok := ev.(order.Applied); ok && ap.Index > 100 {
					a.Halt = &order.Halt{Reason: "tired"}
				}
			}}
		})},
	{name: "engine sends in whatever order", test: determinism, effort: .05, finds: "differ at step",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, actions: func(_ order.Event, a *order.Actions) {
				rand.Shuffle(len(a.Send), func(i, j int) { a.Send[i], a.Send[j] = a.Send[j], a.Send[i] })
			}}
		})},
	{name: "leader serves before it is up to date", test: restartAll, effort: 1, finds: "I5",
		factory: bend(func(_ Config, e order.Orderer) *bent { return &bent{Orderer: e, hasty: true} })},
	{name: "engine speaks for a member from another's store", test: lostDisk, effort: 1, finds: "I11",
		factory: func(c Config, img order.Image) (order.Orderer, error) {
			m, _ := c.View.Member(c.Self)
			c.Store = m.Store
			return raftFactory(c, img)
		}},
	{name: "engine changes its view", test: totalOrder, effort: .1, finds: "I10",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, status: func(s order.Status) order.Status { s.View.Num++; return s }}
		})},
	{name: "engine hands an id out twice", test: replaceAll, effort: .1, finds: "I11",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, actions: func(_ order.Event, a *order.Actions) {
				for _, v := range a.Views {
					if m := &v.View.Members[len(v.View.Members)-1]; m.Role == order.Learner {
						m.ID--
					}
				}
			}}
		})},
	{name: "engine changes its view when it proposes to", test: replaceAll, effort: .1, finds: "I10",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, actions: func(ev order.Event, a *order.Actions) {
				if c, ok := ev.(order.Change); ok && len(a.Persist) > 0 {
					st := e.Status()
					if v, err := st.View.Change(c); err == nil {
						a.Views = append(a.Views, order.ViewNote{View: v, Index: st.Last, Joint: v.Joint()})
					}
				}
			}}
		})},
	{name: "engine changes voters without a joint view", test: replaceAll, effort: .1, finds: "I10",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, actions: func(_ order.Event, a *order.Actions) {
				for i := range a.Views {
					if v := &a.Views[i]; v.Joint {
						v.View, v.Joint = v.View.Settle(), false
						v.View.Num--
					}
				}
			}}
		})},
	{name: "engine counts a learner that it was asked to promote", test: replaceAll, effort: .1, finds: "I10",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, actions: func(_ order.Event, a *order.Actions) {
				for _, v := range a.Views {
					for i := range v.View.Members {
						if m := &v.View.Members[i]; m.Role == order.Learner {
							m.Role = order.Voter
						}
					}
				}
			}}
		})},
	{name: "engine begins a change within a change", test: racingChanges, effort: .2, finds: "I13",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, answers: func(ev order.Event, a *order.Actions) bool {
				c, ok := ev.(order.Change)
				if ok = ok && e.Status().View.Joint(); ok {
					a.Done = append(a.Done, order.Outcome{Ref: c.Ref, Index: e.Status().Commit})
				}
				return ok
			}}
		})},
	{name: "engine does not tell of what it appends", test: replaceAll, effort: .1, finds: "not told of",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, actions: func(_ order.Event, a *order.Actions) { a.Prospects = nil }}
		})},
	{name: "engine tells of clients' commands", test: totalOrder, effort: .1, finds: "for the group's own",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, actions: func(_ order.Event, a *order.Actions) {
				for _, d := range a.Deliver {
					a.Prospects = append(a.Prospects, order.Prospect{Index: d.Index, Cmd: &d.Cmd})
				}
			}}
		})},
	{name: "engine keeps its views to itself", test: replaceAll, effort: .1, finds: "I10",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, actions: func(_ order.Event, a *order.Actions) { a.Views = a.Views[:0] }}
		})},
	{name: "removed leader goes on answering reads", test: replaceAll, effort: 1, finds: "I7",
		factory: bend(func(c Config, e order.Orderer) *bent {
			return &bent{Orderer: e, answers: func(ev order.Event, a *order.Actions) bool {
				r, ok := ev.(order.Read)
				if _, is := e.Status().View.Member(c.Self); !ok || is {
					return false
				}
				a.ReadOK = append(a.ReadOK, order.ReadPoint{Ref: r.Ref})
				return true
			}}
		})},
	{name: "engine halts as removed and is not", test: replaceAll, effort: .1, finds: "halted",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, actions: func(_ order.Event, a *order.Actions) {
				if len(a.Views) > 0 {
					a.Halt = &order.Halt{Reason: order.Removed}
				}
			}}
		})},
	{name: "removed replica never halts", test: replaceAll, effort: .1, finds: "goes on",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, actions: func(_ order.Event, a *order.Actions) { a.Halt = nil }}
		})},
	{name: "engine never ends a joint view", test: replaceAll, effort: .1, finds: "no progress",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, answers: func(ev order.Event, _ *order.Actions) bool {
				_, ok := ev.(order.Applied)
				return ok && e.Status().View.Joint()
			}}
		})},
	{name: "new member takes itself for a founder", test: replaceAll, effort: .1, finds: "I",
		factory: func(c Config, img order.Image) (order.Orderer, error) {
			c.Join = false
			return raftFactory(c, img)
		}},
	{name: "engine does not start from its image", test: restartAll, effort: .1, finds: "own disk",
		factory: func(c Config, img order.Image) (order.Orderer, error) {
			if len(img.Entries) > 0 {
				img.Entries = img.Entries[1:]
			}
			return raftFactory(c, img)
		}},
	{name: "engine starts empty", test: restartAll, effort: 1, finds: "",
		factory: func(c Config, _ order.Image) (order.Orderer, error) { return raftFactory(c, order.Image{}) }},

	{name: "slow disk, driver reports Stored before the disk has it", driver: mistakes{storedEarly: true}, test: slowDisks, effort: .2, finds: "I12"},
	{name: "slow disk, engine takes its newest write for stored", test: slowDisks, effort: 1, finds: "",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			newest := uint64(0)
			return &bent{Orderer: e, event: func(ev order.Event) order.Event {
				if _, ok := ev.(order.Stored); ok {
					return order.Stored{Seq: newest}
				}
				return ev
			}, actions: func(_ order.Event, a *order.Actions) {
				for _, p := range a.Persist {
					newest = p.Seq
				}
			}}
		})},

	// Load.
	{name: "engine hears nothing of the snapshots it sends", test: lateJoiner, effort: 1, finds: "",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, answers: func(ev order.Event, _ *order.Actions) bool {
				_, ok := ev.(order.Carried)
				return ok
			}}
		})},
	{name: "leader waits for the slowest", test: backPressure, effort: .3, finds: "beside a slow member",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, answers: func(ev order.Event, a *order.Actions) bool {
				p, ok := ev.(order.Propose)
				if !ok {
					return false
				}
				for _, behind := range e.Status().Behind {
					if behind > 64 {
						a.Done = append(a.Done, order.Outcome{Ref: p.Ref, Err: order.ErrBusy})
						return true
					}
				}
				return false
			}}
		})},
	{name: "slow member acknowledges before it has stored", test: backPressure, effort: .3, finds: "bytes wait",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, actions: func(_ order.Event, a *order.Actions) {
				for i := range a.Send {
					a.Send[i].After = 0
				}
			}}
		})},
	{name: "engine hands nothing over", test: gracefulLeave, effort: .1, finds: "not every founder",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, answers: func(ev order.Event, _ *order.Actions) bool {
				_, ok := ev.(order.Transfer)
				return ok
			}}
		})},
	{name: "engine hands over to nobody, and waits", test: gracefulLeave, effort: 1, finds: "waited for",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			lost := 0
			return &bent{Orderer: e, actions: func(_ order.Event, a *order.Actions) {
				a.Send = slices.DeleteFunc(a.Send, func(s order.Send) bool {
					if s.Msg[1] == transferType {
						lost++
					}
					return s.Msg[1] == transferType && lost%3 > 0
				})
			}}
		})},

	// Reads on a lease.
	{name: "lease that does not allow for drift", test: leaseReads, effort: 4, finds: "I16",
		factory: func(c Config, img order.Image) (order.Orderer, error) {
			c.Drift = 0
			return raftFactory(c, img)
		}},
	{name: "a clock is slower than the bound", test: leaseReads, effort: 4, finds: "I16",
		factory: bend(func(c Config, e order.Orderer) *bent {
			return &bent{Orderer: e, event: func(ev order.Event) order.Event {
				if c.Self == 1 {
					return shifted(ev, func(now time.Duration) time.Duration { return now / 2 })
				}
				return ev
			}}
		})},
	{name: "a suspicion ends a promise", test: leaseReads, effort: 4, finds: "I16",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, event: func(ev order.Event) order.Event {
				if _, ok := ev.(order.Suspect); ok {
					return shifted(ev, func(now time.Duration) time.Duration { return now + patience })
				}
				return ev
			}}
		})},
	{name: "a restart ends a promise", test: leaseReads, effort: 4, finds: "I16",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, event: func(ev order.Event) order.Event {
				if r, ok := ev.(order.Rand); ok {
					return r
				}
				return shifted(ev, func(now time.Duration) time.Duration { return now + patience })
			}}
		})},
	{name: "the lease is never used", test: leaseReads, effort: .1, finds: "messages",
		factory: func(c Config, img order.Image) (order.Orderer, error) {
			c.LeaseReads = false
			return raftFactory(c, img)
		}},

	// Groups that sleep.
	{name: "engine never sleeps", test: sleeping, effort: .1, finds: "does not sleep",
		factory: func(c Config, img order.Image) (order.Orderer, error) {
			c.Quiesce = -1
			return raftFactory(c, img)
		}},
	{name: "one follower does not sleep", test: sleeping, effort: .1, finds: "sleep",
		factory: bend(func(c Config, e order.Orderer) *bent {
			return &bent{Orderer: e, answers: func(ev order.Event, _ *order.Actions) bool {
				r, ok := ev.(order.Recv)
				return ok && c.Self == 2 && r.Msg[1] == quiesceType
			}}
		})},
	{name: "driver does not report suspicions to who sleeps", driver: mistakes{sleepsDeaf: true}, test: sleeping, effort: 1, finds: "nobody takes over"},
	{name: "engine that sleeps is not woken by a suspicion", test: sleeping, effort: 1, finds: "nobody takes over",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, answers: func(ev order.Event, _ *order.Actions) bool {
				_, ok := ev.(order.Suspect)
				return ok && e.Quiesced()
			}}
		})},
	{name: "a follower that is gone keeps a group awake", test: sleeping, effort: 1, finds: "does not sleep without",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, answers: func(ev order.Event, _ *order.Actions) bool {
				s, ok := ev.(order.Suspect)
				leader, _ := e.Leader()
				return ok && s.Member != leader
			}}
		})},
	{name: "engine that sleeps is not woken by a command", test: sleeping, effort: .2, finds: "had no answer",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, answers: func(ev order.Event, a *order.Actions) bool {
				switch ev := ev.(type) {
				case order.Propose:
					if e.Quiesced() {
						a.Done = append(a.Done, order.Outcome{Ref: ev.Ref, Err: order.ErrNotLeader})
						return true
					}
				case order.Read:
					if e.Quiesced() {
						a.Done = append(a.Done, order.Outcome{Ref: ev.Ref, Err: order.ErrNotLeader})
						return true
					}
				}
				return false
			}}
		})},
	{name: "engine that sleeps is not woken by messages", test: sleeping, effort: 1, finds: "",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, answers: func(ev order.Event, _ *order.Actions) bool {
				_, ok := ev.(order.Recv)
				return ok && e.Quiesced()
			}}
		})},
	{name: "engine that is woken campaigns", test: sleeping, effort: 1, finds: "now",
		factory: bend(func(c Config, e order.Orderer) *bent {
			return &bent{Orderer: e, answers: func(ev order.Event, a *order.Actions) bool {
				slept := e.Quiesced()
				if e.Step(ev, a); slept && !e.Quiesced() {
					if leader, _ := e.Leader(); leader != c.Self {
						e.Step(order.Suspect{Member: leader}, a)
						e.Step(order.Trust{Member: leader}, a)
					}
				}
				return true
			}}
		})},
	{name: "a node of a thousand groups stops, and no engine hears of it", test: manyGroups, effort: .1, finds: "no leader after",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, answers: func(ev order.Event, _ *order.Actions) bool {
				_, ok := ev.(order.Suspect)
				return ok
			}}
		})},
	{name: "groups never sleep, a thousand", test: manyGroups, effort: .1, finds: "a group that sleeps sends",
		factory: func(c Config, img order.Image) (order.Orderer, error) {
			c.Quiesce = -1
			return raftFactory(c, img)
		}},
	{name: "engines wake nobody", test: sleeping, effort: 1, finds: "unheard",
		factory: bend(func(_ Config, e order.Orderer) *bent {
			return &bent{Orderer: e, actions: func(_ order.Event, a *order.Actions) {
				a.Send = slices.DeleteFunc(a.Send, func(s order.Send) bool { return s.Msg[1] == wakeType })
			}}
		})},
}

// Whatever answers on the side of a minority also reads or writes what does not fit, and is mostly found by that. So the check
// that an answer comes from a majority is shown an answer of each side by hand.
func TestAnswersOfAMinorityAreFound(t *testing.T) {
	c := newCluster(suite{factory: raftFactory, effort: 1}, setup{seed: 8_000, members: 5, clients: 5, keys: 3, faults: calm, think: patience / 20})
	if err := c.warm(2); err != nil {
		t.Fatal(err)
	}
	if err := c.cutInto(0b00011, 0b11100); err != nil {
		t.Fatal(err)
	}
	for i, m := range c.running {
		late := &client{began: c.world.Now()}
		if err := c.answers(m, late); (err != nil) != (i < 2) {
			t.Errorf("an answer of member %d: %v", i, err)
		}
		early := &client{}
		if err := c.answers(m, early); err != nil {
			t.Errorf("an answer of member %d to what was asked before the cut: %v", i, err)
		}
	}
}

func TestSuiteFindsEveryPlantedMistake(t *testing.T) {
	for _, m := range mutants {
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) {
			s := suite{factory: raftFactory, mistakes: m.driver, effort: m.effort}
			if m.factory != nil {
				s.factory = m.factory
			}
			err := m.test(s)
			if err == nil {
				t.Fatal("not found")
			}
			if t.Logf("%.300v", err); !strings.Contains(err.Error(), m.finds) {
				t.Errorf("found for another reason than %q: %.600v", m.finds, err)
			}
		})
	}
}
