package placement

import (
	"errors"
	"fmt"

	"latchkey/replicagroup/order"
)

const foundingVersion = 1

// FoundingRecord is what the founding act leaves beside the genesis document for the first start of a founder: the right to
// begin the root's replica, once. The first start makes the root's first state durable and removes the record, in this order
// where the store outlives the process; where it does not, it removes the record first. Without the record nobody founds
// (rule G1).
type FoundingRecord struct {
	Overlay order.OverlayID
	Replica order.ReplicaID // from 1
	Store   order.StoreID   // the first start's store takes this id
}

// FoundingRecord returns the record of founder i. Errors match [ErrGenesis].
func (g Genesis) FoundingRecord(i int) (FoundingRecord, error) {
	if err := g.Validate(); err != nil {
		return FoundingRecord{}, err
	}
	if i < 0 || i >= len(g.Founders) {
		return FoundingRecord{}, fmt.Errorf("%w: no founder %d", ErrGenesis, i)
	}
	return FoundingRecord{Overlay: g.ID(), Replica: order.ReplicaID(i + 1), Store: g.Founders[i].Store}, nil
}

// Encode returns the record's bytes.
func (f FoundingRecord) Encode() []byte {
	b := append([]byte{foundingVersion}, f.Overlay[:]...)
	return append(append(b, byte(f.Replica)), f.Store[:]...)
}

// DecodeFoundingRecord reads what [FoundingRecord.Encode] wrote. Errors match [ErrMalformed].
func DecodeFoundingRecord(b []byte) (f FoundingRecord, err error) {
	r := reader{b: b}
	if v := r.u8(); r.err == nil && v != foundingVersion {
		r.fail("founding record of version %d, this program reads %d", v, foundingVersion)
	}
	r.fixed(f.Overlay[:])
	f.Replica = order.ReplicaID(r.u8())
	r.fixed(f.Store[:])
	if f.Replica == 0 || f.Replica > MembersMax || f.Store == (order.StoreID{}) {
		r.fail("founding record of replica %d in store %v", f.Replica, f.Store)
	}
	if err := r.end(); err != nil {
		return FoundingRecord{}, err
	}
	return f, nil
}

// Act is what a starting node may do about the root group.
type Act uint8

// Acts.
const (
	Join     Act = iota + 1 // take no part in the root until it is made a member
	Found                   // begin the root's replica from Genesis.RootView, then forget the record
	Resume                  // go on with the replica in the store; a record that is left over goes
	RootLost                // the root's only voter was this peer, and its store is gone: nobody can bring the overlay back
)

// String names the act.
func (a Act) String() string {
	switch a {
	case Join:
		return "join"
	case Found:
		return "found"
	case Resume:
		return "resume"
	case RootLost:
		return "root lost"
	}
	return fmt.Sprintf("Act(%d)", uint8(a))
}

// ErrFounding is matched when what lies beside the genesis document does not belong to it.
var ErrFounding = errors.New("placement: founding record")

// Start is what a node finds when it starts.
type Start struct {
	PeerID string          // its own peer id, bytes
	Store  order.StoreID   // its store's id
	Holds  bool            // its store holds a replica of the root
	Record *FoundingRecord // nil when there is none
}

// Decide says what a starting node may do about g's root. A start never founds because its store is empty: only the record
// of the founding act lets it, and only into the store the genesis document names. Errors match [ErrFounding].
func Decide(g Genesis, s Start) (Act, error) {
	founder := -1
	for i, h := range g.Founders {
		if h.ID == s.PeerID {
			founder = i
		}
	}
	if r := s.Record; r != nil {
		want, err := FoundingRecord{}, error(nil)
		if founder >= 0 {
			want, err = g.FoundingRecord(founder)
		}
		if err != nil || founder < 0 || *r != want {
			return 0, fmt.Errorf("%w: replica %d of overlay %v is not this peer's part in overlay %v", ErrFounding, r.Replica, r.Overlay, g.ID())
		}
	}
	switch {
	case s.Holds:
		return Resume, nil
	case s.Record != nil && s.Store == s.Record.Store:
		return Found, nil
	case s.Record != nil:
		return 0, fmt.Errorf("%w: it is for store %v, this peer's is %v", ErrFounding, s.Record.Store, s.Store)
	case founder >= 0 && len(g.Founders) == 1:
		return RootLost, nil
	}
	return Join, nil
}
