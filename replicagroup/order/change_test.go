package order

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"latchkey/dht/keyspace"
)

// viewOf reads a view such as "3: 1v 2v 4l", next id 5; each member's peer and store are numbered as it is.
func viewOf(s string) View {
	num, rest, _ := strings.Cut(s, ":")
	v := View{Next: 5}
	fmt.Sscan(num, &v.Num)
	for _, f := range strings.Fields(rest) {
		m := Member{ID: ReplicaID(f[0] - '0'), Role: Role(strings.IndexByte("vljx", f[1]) + 1)}
		m.Peer, m.Store = keyspace.NodeID{byte(m.ID)}, StoreID{byte(m.ID)}
		v.Members = append(v.Members, m)
	}
	return v
}

func show(v View) string {
	b := fmt.Sprintf("%d:", v.Num)
	for _, m := range v.Members {
		b += fmt.Sprintf(" %d%c", m.ID, "?vljx"[m.Role])
	}
	return fmt.Sprintf("%s next %d", b, v.Next)
}

func TestChangesMakeTheNextView(t *testing.T) {
	newcomer := &Newcomer{Peer: keyspace.NodeID{5}, Store: StoreID{5}, PeerID: "five"}
	for _, c := range []struct {
		from          string
		change        Change
		want, settled string // want is the error's text where it does not begin with a number
	}{
		{"3: 1v 2v 3v", Change{Learn: newcomer}, "4: 1v 2v 3v 5l next 6", ""},
		{"3: 1v", Change{Learn: &Newcomer{Peer: keyspace.NodeID{1}, Store: StoreID{9}}}, "4: 1v 5l next 6", ""}, // a lost store
		{"3: 1v", Change{Learn: &Newcomer{Peer: keyspace.NodeID{1}, Store: StoreID{1}}}, "member already", ""},
		{"3: 1v", Change{Learn: &Newcomer{Peer: keyspace.NodeID{5}, Store: StoreID{5}, PeerID: strings.Repeat("p", PeerIDBytesMax)}}, "4: 1v 5l next 6", ""},
		{"3: 1v", Change{Learn: &Newcomer{Peer: keyspace.NodeID{5}, Store: StoreID{5}, PeerID: strings.Repeat("p", PeerIDBytesMax+1)}}, "peer id of 65 bytes", ""},
		{"3: 1v 2l", Change{Learn: newcomer, Promote: []ReplicaID{2}}, "of its own", ""},
		{"3: 1v 2l", Change{}, "changes nothing", ""},
		{"3: 1v 2l", Change{Remove: []ReplicaID{2}}, "4: 1v next 5", ""},
		{"3: 1v 2l 3l", Change{Remove: []ReplicaID{2, 3}}, "one by one", ""},
		{"3: 1v 2v 3v 4l", Change{Promote: []ReplicaID{4}, Remove: []ReplicaID{1}}, "4: 1x 2v 3v 4j next 5", "5: 2v 3v 4v next 5"},
		{"3: 1v 2l 3l", Change{Promote: []ReplicaID{2, 3}}, "4: 1v 2j 3j next 5", "5: 1v 2v 3v next 5"},
		{"3: 1v 2v 3v 4l", Change{Remove: []ReplicaID{2, 3, 4}}, "4: 1v 2x 3x next 5", "5: 1v next 5"},
		{"3: 1v 2l", Change{Promote: []ReplicaID{2}, Remove: []ReplicaID{1}}, "4: 1x 2j next 5", "5: 2v next 5"},
		{"3: 1v 2l", Change{Promote: []ReplicaID{1}}, "no learner", ""},
		{"3: 1v 2l", Change{Promote: []ReplicaID{2, 2}}, "no learner", ""},
		{"3: 1v 2l", Change{Promote: []ReplicaID{2}, Remove: []ReplicaID{2}}, "cannot be removed", ""},
		{"3: 1v 2v", Change{Remove: []ReplicaID{2, 2}}, "cannot be removed", ""},
		{"3: 1v 2v", Change{Remove: []ReplicaID{7}}, "cannot be removed", ""},
		{"3: 1v 2v", Change{Remove: []ReplicaID{1, 2}}, "no voter", ""},
		{"3: 1v 2v", Change{Remove: make([]ReplicaID, MembersMax+1)}, "at most", ""},
		{"3: 1v 2x 3j", Change{Learn: newcomer}, "under way", ""},
	} {
		v := viewOf(c.from)
		before := show(v)
		c.change.From = 3
		next, err := v.Change(c.change)
		got := show(next)
		if err != nil {
			if !errors.Is(err, ErrChange) {
				t.Errorf("%s %+v: %v", c.from, c.change, err)
			}
			got = err.Error()
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s %+v: %s, want %s", c.from, c.change, got, c.want)
		}
		if next.Joint() != (c.settled != "") {
			t.Errorf("%s %+v: joint %v", c.from, c.change, next.Joint())
		} else if next.Joint() {
			if got := show(next.Settle()); got != c.settled {
				t.Errorf("%s %+v: settles as %s, want %s", c.from, c.change, got, c.settled)
			}
		}
		if show(v) != before {
			t.Errorf("%s %+v: the former view was changed", c.from, c.change)
		}
	}
	if _, err := viewOf("3: 1v").Change(Change{From: 2, Learn: newcomer}); !errors.Is(err, ErrStale) {
		t.Errorf("another view: %v", err)
	}
}

func TestVotersOfAJointViewAreThoseOfBothHalves(t *testing.T) {
	if got := fmt.Sprint(viewOf("3: 1x 2v 3j 4l").Voters()); got != "[1 2 3]" {
		t.Error(got)
	}
}
