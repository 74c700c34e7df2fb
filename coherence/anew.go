package coherence

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"latchkey/coherence/appmanager"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// AnewMax bounds the applications of which a group remembers why they began anew. The one that did so the longest ago is forgotten first.
const AnewMax = 64

// Cause is why an application began anew.
type Cause uint8

// The causes.
const (
	Silent   Cause = iota + 1 // Node, which had it open, did not answer for seconds
	Returned                  // Node has begun again, or closed the application and left threads behind that nobody else could run
	Needed                    // Object needed what Node had, and Node is lost
	Asked                     // somebody asked for it, on Node
	Blank                     // the group of Object has lost its state
)

// String names the cause in one word.
func (c Cause) String() string {
	if c < Silent || c > Blank {
		return fmt.Sprintf("cause-%d", uint8(c))
	}
	return [...]string{"silent", "returned", "needed", "asked", "blank"}[c-1]
}

// Anew tells why an application began anew the last time. A group forgets it when the last node that has the application open has left it.
type Anew struct {
	Epoch  protocol.Epoch // of the execution that began
	Cause  Cause
	Node   protocol.NodeRef      // zero where it is about none
	Object keyspace.Key          // zero where it is about none
	From   protocol.CheckpointID // that it began from, 0 for none: with empty objects
	At     time.Time             // by the clock of who led the group; zero where that is not known
}

// String says it in a sentence.
func (a *Anew) String() string { return a.say(fmt.Sprintf("node %v", a.Node)) }

// say says it in a sentence, of a node that is called who.
func (a *Anew) say(who string) string {
	switch a.Cause {
	case Silent:
		return who + ", which has it open, does not answer"
	case Returned:
		return who + " is a later start of one that had it open"
	case Asked:
		return "somebody restarted it on " + who
	case Needed:
		return fmt.Sprintf("%s, which object %s needs, is lost", who, protocol.Name(a.Object))
	}
	return fmt.Sprintf("the group of object %s has lost its state", protocol.Name(a.Object))
}

// restartedSince is [ErrRestarted] with the reason, if the application's group tells it in a moment.
func (s *Service) restartedSince(ctx context.Context, app keyspace.Key) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	a, err := s.anew(ctx, app)
	if a == nil || err != nil {
		return ErrRestarted
	}
	who := fmt.Sprintf("node %v", a.Node)
	if p, ok := s.overlay.PeerOf(a.Node.ID); ok {
		who = fmt.Sprintf("peer %v", p)
	}
	return fmt.Errorf("%w: %s", ErrRestarted, a.say(who))
}

// timeMax is the last millisecond of the year 9999, after which times cannot be written down.
const timeMax = 253402300799999

// note remembers why an event has an application begin anew.
func (m *Machine) note(app keyspace.Key, am *appmanager.Manager, ev appmanager.Event) *Anew {
	a := Anew{Epoch: am.Epoch(), From: am.SavedID()}
	if ev.At > 0 && ev.At <= timeMax {
		a.At = time.UnixMilli(ev.At)
	}
	switch in := ev.Msg; {
	case ev.Kind != appmanager.Receive:
		a.Cause, a.Node = Silent, ev.Node
	case in.From.Party == protocol.Node:
		a.Cause, a.Node = Returned, in.From.Node
	case in.Kind == protocol.RestartReq && in.Object == asked:
		a.Cause, a.Node = Asked, in.Requester
	case in.Kind == protocol.RestartReq:
		a.Cause, a.Node, a.Object = Needed, in.Requester, in.Object
	default:
		a.Cause, a.Object = Blank, in.Object
	}
	m.anew = slices.DeleteFunc(m.anew, func(b beganAnew) bool { return b.app == app })
	if len(m.anew) == AnewMax {
		m.anew = slices.Delete(m.anew, 0, 1)
	}
	m.anew = append(m.anew, beganAnew{app, a})
	return &a
}

func (a *Anew) append(b []byte) []byte {
	b = append(binary.AppendUvarint(b, uint64(a.Epoch)), byte(a.Cause))
	b = append(a.Node.Append(b), a.Object[:]...)
	at := uint64(0)
	if !a.At.IsZero() {
		at = uint64(a.At.UnixMilli())
	}
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(a.From)), at)
}

func (r *reader) anew() (a Anew) {
	a.Epoch = protocol.Epoch(r.uint())
	if a.Cause = Cause(r.byte()); a.Cause < Silent || a.Cause > Blank {
		r.fail("cause %d", a.Cause)
	}
	a.Node, a.Object = r.node(), r.key()
	a.From = protocol.CheckpointID(r.uint())
	if at := r.uint(); at > timeMax {
		r.fail("time %d", at)
	} else if at > 0 {
		a.At = time.UnixMilli(int64(at))
	}
	return a
}

// anewAnswer begins what [Machine.Query] says of an application's last beginning. A program that does not know the question answers with something else.
const anewAnswer = 2

func (m *Machine) queryAnew(app keyspace.Key) []byte {
	b := []byte{anewAnswer}
	if i := slices.IndexFunc(m.anew, func(a beganAnew) bool { return a.app == app }); i >= 0 {
		b = m.anew[i].append(b)
	}
	return b
}

func decodeAnew(b []byte) (*Anew, error) {
	r := &reader{b: b}
	if v := r.byte(); v != anewAnswer {
		r.fail("answer %d", v)
	}
	if r.err == nil && len(r.b) == 0 {
		return nil, nil
	}
	a := r.anew()
	if err := r.end(); err != nil {
		return nil, err
	}
	return &a, nil
}

// Anew tells why an application began anew the last time, by its name; nil if it has not, or nobody remembers. It blocks until its group answers or
// ctx ends.
func (s *Service) Anew(ctx context.Context, app string) (*Anew, error) {
	if err := checkName("an application", app); err != nil {
		return nil, err
	}
	return s.anew(ctx, AppKey(app))
}

func (s *Service) anew(ctx context.Context, app keyspace.Key) (*Anew, error) {
	b, err := s.client.Query(ctx, app, ServiceName, append(app[:len(app):len(app)], 0))
	if err != nil {
		return nil, err
	}
	return decodeAnew(b)
}

// PeerOf returns a node's peer. One that is not known here is asked for, for some seconds at most.
func (s *Service) PeerOf(ctx context.Context, app string, id keyspace.NodeID) (string, bool) {
	p, ok := s.peerOf(ctx, AppKey(app), id)
	return p.String(), ok
}
