package placement

import (
	"testing"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

func TestEndorsement(t *testing.T) {
	r := newRig(2, 0)
	view := order.View{Num: 4, Next: 9, Members: []order.Member{
		r.member(1, 1, order.Voter), r.member(2, 3, order.Voter), r.member(3, 5, order.Voter), r.member(4, 2, order.Learner)}}
	reached := map[int]Reach{1: Reached, 3: Reached, 5: Suspected, 2: Reached, 7: Suspected, 4: Reached}
	reach := func(n keyspace.NodeID) Reach { return reached[r.number[n]] }
	add := func(peers ...int) (list []keyspace.NodeID) {
		for _, i := range peers {
			list = append(list, r.node(i))
		}
		return list
	}
	remove := func(why Reason, ids ...order.ReplicaID) (list []Removal) {
		for _, id := range ids {
			list = append(list, Removal{id, why})
		}
		return list
	}
	for _, c := range []struct {
		name string
		q    Question
		want Verdict
	}{
		{"grow by one", Question{View: 4, Add: add(4)}, Yes},
		{"grow by a learner", Question{View: 4, Add: add(2)}, Yes},
		{"a stranger it does not watch", Question{View: 4, Add: add(9)}, Yes},
		{"a candidate it suspects", Question{View: 4, Add: add(7)}, CandidateDown},
		{"one of two", Question{View: 4, Add: add(2, 7)}, CandidateDown},
		{"a victim it suspects too", Question{View: 4, Add: add(9), Remove: remove(Failed, 3)}, Yes},
		{"a victim it reaches", Question{View: 4, Add: add(4), Remove: remove(Failed, 2)}, VictimLive},
		{"a victim it reaches, for a closer peer", Question{View: 4, Add: add(2), Remove: remove(Failed, 2)}, Yes},
		{"a victim it reaches, for nobody", Question{View: 4, Remove: remove(Failed, 2, 3)}, VictimLive},
		{"two that failed", Question{View: 4, Remove: remove(Failed, 3)}, Yes},
		{"a farther one", Question{View: 4, Add: add(2), Remove: remove(Farther, 2)}, Yes},
		{"a closer one", Question{View: 4, Add: add(4), Remove: remove(Farther, 2)}, NoSense},
		// The design's rule, no if I reach the victim and the candidate is not closer, would refuse these three.
		{"leaves", Question{View: 4, Add: add(9), Remove: remove(Leaving, 1)}, Yes},
		{"hosts nothing", Question{View: 4, Add: add(9), Remove: remove(NotHosting, 1)}, Yes},
		{"lost its store, its peer comes back", Question{View: 4, Add: add(1), Remove: remove(LostStore, 1)}, Yes},
		{"an older view", Question{View: 3, Add: add(4)}, OtherView},
		{"a newer view", Question{View: 5, Add: add(4)}, OtherView},
		{"nothing", Question{View: 4}, NoSense},
		{"too many", Question{View: 4, Add: add(8, 9, 10)}, NoSense},
		{"twice the same", Question{View: 4, Add: add(9, 9)}, NoSense},
		{"no peer", Question{View: 4, Add: make([]keyspace.NodeID, 1)}, NoSense},
		{"a voter already", Question{View: 4, Add: add(1)}, NoSense},
		{"removes nobody", Question{View: 4, Add: add(9), Remove: remove(Failed, 8)}, NoSense},
		{"removes a learner", Question{View: 4, Add: add(9), Remove: remove(Failed, 4)}, NoSense},
		{"removes one twice", Question{View: 4, Add: add(9), Remove: remove(Failed, 3, 3)}, NoSense},
		{"for no reason", Question{View: 4, Add: add(9), Remove: remove(0, 3)}, NoSense},
		{"for no known reason", Question{View: 4, Add: add(9), Remove: remove(Farther+1, 3)}, NoSense},
		{"removes everybody", Question{View: 4, Remove: remove(Leaving, 1, 2, 3)}, NoSense},
		{"replaces everybody", Question{View: 4, Add: add(9), Remove: remove(Leaving, 1, 2, 3)}, Yes},
		{"a crowd", Question{View: 4, Add: add(9), Remove: make([]Removal, 1000)}, NoSense},
	} {
		if got := c.q.Endorses(view, r.point, reach); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
