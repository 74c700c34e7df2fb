package detector

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"pgregory.net/rapid"

	"latchkey/internal/automaton"
)

func print(now automaton.Instant, actions []Action) string {
	var b strings.Builder
	for _, a := range actions {
		name := strings.ToLower(strings.TrimPrefix(fmt.Sprintf("%T", a), "detector."))
		fmt.Fprintf(&b, "%v %s %v\n", time.Duration(now), name, strings.Trim(fmt.Sprintf("%+v", a), "{}"))
	}
	return b.String()
}

// TestTraces replays the stories in testdata/traces. The instant of a directive is the sum of all run= before and its own at=;
// `run for=` gives every tick that is due, each late by late=.
func TestTraces(t *testing.T) {
	datadriven.Walk(t, "testdata/traces", func(t *testing.T, path string) {
		var d Detector
		now := automaton.Instant(0)
		datadriven.RunTest(t, path, func(t *testing.T, td *datadriven.TestData) string {
			var name, talks string
			var active, answer bool
			var nonce uint64
			var span, late, echo time.Duration
			length := func(s string) time.Duration {
				x, err := time.ParseDuration(s)
				if err != nil {
					td.Fatalf(t, "%v", err)
				}
				return x
			}
			for _, a := range td.CmdArgs {
				value := strings.Join(a.Vals, "")
				switch a.Key {
				case "peer":
					name = value
				case "active":
					active = value != "no"
				case "for":
					span = length(value)
				case "late":
					late = length(value)
				case "talks":
					talks = value
				case "answer":
					answer, echo = true, length(value)
				case "nonce":
					fmt.Sscan(value, &nonce)
				default:
					td.Fatalf(t, "unknown argument %q", a.Key)
				}
			}
			p := Peer(name)
			switch td.Cmd {
			case "watch":
				return print(now, d.Step(Watch{p, active}, now, nil))
			case "unwatch":
				return print(now, d.Step(Unwatch{p}, now, nil))
			case "heard":
				return print(now, d.Step(Heard{p}, now, nil))
			case "lost":
				return print(now, d.Step(Lost{p}, now, nil))
			case "beat":
				return print(now, d.Step(Beat{p, nonce, answer, now.Add(-echo)}, now, nil))
			case "run":
				var out string
				end := now.Add(span)
				for d.Next() <= end && d.Next().Add(late) <= end {
					now = d.Next().Add(late)
					if talks != "" {
						out += print(now, d.Step(Heard{Peer(talks)}, now, nil))
					}
					out += print(now, d.Step(Tick{}, now, nil))
				}
				now = end
				return out
			}
			td.Fatalf(t, "unknown directive")
			return ""
		})
	})
}

// steps drives a detector by hand: answers come at once from the peers in alive.
type steps struct {
	d     Detector
	now   automaton.Instant
	alive map[Peer]bool
	rtt   time.Duration
	at    map[Peer]automaton.Instant // of suspicions that stand
	all   int                        // suspicions
	wrong int                        // those of the living
	pings int
}

func (s *steps) step(ev Event) {
	for _, a := range s.d.Step(ev, s.now, nil) {
		switch a := a.(type) {
		case Ping:
			s.pings++
			if s.alive[a.Peer] {
				echo := s.now
				s.step(Beat{a.Peer, 1, true, echo.Add(-s.rtt)})
			}
		case Suspect:
			s.at[a.Peer] = s.now
			s.all++
			if s.alive[a.Peer] {
				s.wrong++
			}
		case Trust:
			delete(s.at, a.Peer)
		}
	}
}

func (s *steps) run(span, late time.Duration) {
	for end := s.now.Add(span); s.d.Next().Add(late) <= end; {
		s.now = s.d.Next().Add(late)
		s.step(Tick{})
	}
}

func TestAStoppedPeerIsSuspectedWithinItsPatience(t *testing.T) {
	for _, x := range []struct {
		name   string
		active bool
		rtt    time.Duration
		lo, hi time.Duration
	}{
		{"active", true, time.Millisecond, 250 * time.Millisecond, 550 * time.Millisecond},
		{"idle", false, time.Millisecond, time.Second, 2250 * time.Millisecond},
		{"active and far away", true, 400 * time.Millisecond, 400 * time.Millisecond, 850 * time.Millisecond},
		{"active, beyond reason", true, 10 * time.Second, 3 * time.Second, 4500 * time.Millisecond},
	} {
		t.Run(x.name, func(t *testing.T) {
			s := steps{alive: map[Peer]bool{"a": true}, at: map[Peer]automaton.Instant{}, rtt: x.rtt, now: automaton.Instant(2 * time.Minute)}
			s.step(Watch{"a", x.active})
			s.run(30*time.Second, 0)
			if s.wrong > 0 {
				t.Fatalf("suspected %d times while it answered", s.wrong)
			}
			frozen := s.now
			s.alive["a"] = false
			s.run(10*time.Second, 0)
			if at, ok := s.at["a"]; !ok || at.Sub(frozen) < x.lo || at.Sub(frozen) > x.hi {
				t.Errorf("suspected %v after it stopped (%v), want %v to %v", at.Sub(frozen), ok, x.lo, x.hi)
			}
			s.alive["a"] = true
			s.run(1100*time.Millisecond, 0)
			if s.d.Suspected("a") {
				t.Error("not trusted again a second after it went on")
			}
		})
	}
}

// The peer is well; what is late is our own ticks, by all that a scheduler or a stop signal can do.
func TestOurOwnLatenessIsNotThePeersSilence(t *testing.T) {
	for _, late := range []time.Duration{0, 10 * time.Millisecond, 100 * time.Millisecond, 249 * time.Millisecond, 250 * time.Millisecond, 10 * time.Second, time.Hour} {
		s := steps{alive: map[Peer]bool{}, at: map[Peer]automaton.Instant{}}
		s.step(Watch{"a", true})
		s.step(Heard{"a"})
		// Its answer lies unread for as long as our reader is as late as our timer: four ticks.
		for range 200 {
			for range 4 {
				s.now = s.d.Next().Add(late)
				s.step(Tick{})
			}
			s.step(Heard{"a"})
		}
		if s.all > 0 {
			t.Errorf("ticks late by %v: suspected", late)
		}
		s.run(time.Minute+20*late, min(late, StallMin-1))
		if len(s.at) == 0 {
			t.Errorf("ticks late by %v: a silent peer is never suspected", late)
		}
	}
}

func TestAProcessThatWasStoppedSuspectsNobodyOnWaking(t *testing.T) {
	// Stopped at every point of the exchange, for short and long.
	for start := time.Duration(0); start < 600*time.Millisecond; start += 7 * time.Millisecond {
		for _, span := range []time.Duration{400 * time.Millisecond, time.Second, time.Hour} {
			s := steps{alive: map[Peer]bool{"a": true, "b": true}, at: map[Peer]automaton.Instant{}, rtt: time.Millisecond}
			s.step(Watch{"a", true})
			s.step(Watch{"b", false})
			s.run(5*time.Second+start, 0)
			s.alive["a"], s.alive["b"] = false, false // their answers lie unread
			s.now = s.now.Add(span)
			s.step(Tick{})
			s.alive["a"], s.alive["b"] = true, true
			s.pings = 0
			s.run(time.Second, 0)
			if s.wrong > 0 || len(s.at) > 0 {
				t.Fatalf("stopped for %v after %v: suspected somebody", span, start)
			}
		}
	}
}

// Round trips that waited for a connection, or for us, say nothing about the network: they would make us patient for long.
func TestRoundTripsThatMeasureSomethingElseAreDropped(t *testing.T) {
	s := steps{alive: map[Peer]bool{}, at: map[Peer]automaton.Instant{}, now: automaton.Instant(time.Hour)}
	start := s.now
	s.step(Watch{"a", true})
	s.run(2*time.Second, 0)
	s.step(Beat{"a", 1, true, start})
	s.step(Beat{"a", 1, true, s.now.Add(-time.Second)})
	patience := s.d.of("a").patience()
	if patience != 2*IntervalActive {
		t.Errorf("patience %v after answers that had waited for the connection", patience)
	}
	sent := s.now
	s.now = s.now.Add(3 * time.Second) // stopped; the answer is read before the timer runs
	s.step(Beat{"a", 1, true, sent})
	s.step(Beat{"a", 1, true, s.now.Add(1)}) // the peer makes it up
	s.step(Beat{"a", 1, true, -1})
	if got := s.d.of("a").patience(); got != patience {
		t.Errorf("patience %v after an answer that waited for us", got)
	}
	if s.all > 0 {
		t.Error("suspected")
	}
	// Stopped itself for a minute, it then answers all our pings.
	stopped := s.now
	s.run(time.Minute, 0)
	for at := stopped; at < s.now; at = at.Add(time.Second) {
		s.step(Beat{"a", 1, true, at})
	}
	if got := s.d.of("a").patience(); got == patience || got > 2*patience {
		t.Errorf("patience %v after answers that waited for the peer", got)
	}
	// The network has become slower, which looks the same at first.
	s.rtt, s.alive["a"] = 700*time.Millisecond, true
	s.run(10*time.Second, 0)
	if got := s.d.of("a").patience(); got < IntervalActive+s.rtt {
		t.Errorf("patience %v with round trips of %v", got, s.rtt)
	}
}

func TestAPeerThatTalksIsPingedOnceASecond(t *testing.T) {
	s := steps{alive: map[Peer]bool{"a": true}, at: map[Peer]automaton.Instant{}}
	s.step(Watch{"a", true})
	s.pings = 0
	for range 200 { // ten seconds
		s.now = s.d.Next()
		s.step(Heard{"a"})
		s.step(Tick{})
	}
	if s.pings != 10 {
		t.Errorf("%d pings in 10 s", s.pings)
	}
	s.pings = 0
	s.run(10*time.Second, 0)
	if s.pings < 33 || s.pings > 40 {
		t.Errorf("%d pings in 10 s to a silent peer", s.pings)
	}
}

// TestDetectorKeepsItsPromises feeds drawn events, fitting and not: suspicion and trust alternate, a suspicion has its cause, the
// tick that is due is never in the past of the last one, and nothing is said of those that are not watched.
func TestDetectorKeepsItsPromises(t *testing.T) {
	names := []Peer{"a", "b", "c"}
	rapid.Check(t, func(t *rapid.T) {
		var d Detector
		now := automaton.Instant(0)
		watched, suspected, heard := map[Peer]bool{}, map[Peer]bool{}, map[Peer]automaton.Instant{}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(400*time.Millisecond)).Draw(t, "pass")))
			p := rapid.SampledFrom(names).Draw(t, "peer")
			var ev Event
			lost := false
			switch rapid.IntRange(0, 9).Draw(t, "event") {
			case 0:
				ev = Watch{p, rapid.Bool().Draw(t, "active")}
				if !watched[p] {
					watched[p], heard[p] = true, now
				}
			case 1:
				ev = Unwatch{p}
				delete(watched, p)
				delete(suspected, p)
			case 2:
				ev, heard[p] = Heard{p}, now
			case 3:
				ev = Beat{p, rapid.Uint64Range(0, 3).Draw(t, "nonce"), rapid.Bool().Draw(t, "answer"), automaton.Instant(rapid.Int64().Draw(t, "echo"))}
				heard[p] = now
			case 4:
				ev, lost = Lost{p}, true
			default:
				ev = Tick{}
			}
			for _, a := range d.Step(ev, now, nil) {
				switch a := a.(type) {
				case Ping:
					if !watched[a.Peer] {
						t.Fatalf("ping to %s, which is not watched", a.Peer)
					}
				case Suspect:
					if !watched[a.Peer] || suspected[a.Peer] {
						t.Fatalf("%+v: watched %v, suspected %v", a, watched[a.Peer], suspected[a.Peer])
					}
					if silent := now.Sub(heard[a.Peer]); !lost && silent < 2*IntervalActive-TickActive-TickSlack {
						t.Fatalf("%+v after %v", a, silent)
					}
					suspected[a.Peer] = true
				case Trust:
					if !suspected[a.Peer] {
						t.Fatalf("%+v: was not suspected", a)
					}
					delete(suspected, a.Peer)
				case Alarm:
					if !watched[a.Peer] || a.Nonces[0] == a.Nonces[1] || a.Nonces[0] == 0 || a.Nonces[1] == 0 {
						t.Fatalf("%+v", a)
					}
				}
			}
			if (d.Next() == automaton.Never) != (len(watched) == 0) || len(watched) > 0 && d.Next() > now.Add(TickIdle) {
				t.Fatalf("next tick at %v, now %v", d.Next(), now)
			}
			if !slices.IsSortedFunc(d.watches, func(a, b *watch) int { return strings.Compare(string(a.peer), string(b.peer)) }) {
				t.Fatal("out of order")
			}
			for _, w := range d.watches {
				if w.suspected != suspected[w.peer] || len(w.replaced) > noncesMax || w.patience() > w.interval()+AnswerMax {
					t.Fatalf("%+v", w)
				}
			}
		}
	})
}

func BenchmarkTick(b *testing.B) {
	var d Detector
	now := automaton.Instant(0)
	var peers []Peer
	for i := range 30 {
		peers = append(peers, Peer(fmt.Sprintf("a peer id that is about as long as one %d", i)))
		d.Step(Watch{peers[i], true}, 0, nil)
	}
	var out []Action
	b.ReportAllocs()
	for b.Loop() {
		now = d.Next()
		for _, p := range peers {
			out = d.Step(Heard{p}, now, out[:0])
		}
		out = d.Step(Tick{}, now, out[:0])
	}
}
