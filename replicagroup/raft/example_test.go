package raft_test

import (
	"fmt"

	"latchkey/replicagroup/order"
	"latchkey/replicagroup/raft"
)

// A group of one voter, driven by hand: the disk is told what to keep, the timer runs, and a command goes through the log.
func Example() {
	view := order.View{Num: 1, Next: 2, Members: []order.Member{{ID: 1, Store: order.StoreID{1}, Role: order.Voter}}}
	engine, err := raft.New(raft.Config{Self: 1, Store: order.StoreID{1}, View: view}, order.Image{})
	if err != nil {
		fmt.Println(err)
		return
	}
	var out order.Actions
	step := func(ev order.Event) {
		for events := []order.Event{ev}; len(events) > 0; events = events[1:] {
			out.Reset()
			engine.Step(events[0], &out)
			for _, p := range out.Persist {
				events = append(events, order.Stored{Seq: p.Seq})
			}
			for _, t := range out.Timers {
				if t.After == 0 {
					events = append(events, order.Timer{Kind: t.Kind, Epoch: t.Epoch})
				}
			}
			for _, e := range out.Deliver {
				fmt.Printf("entry %d: %q\n", e.Index, e.Cmd.Data)
				events = append(events, order.Applied{Index: e.Index})
			}
			for _, d := range out.Done {
				fmt.Printf("command %d stands at %d\n", d.Ref, d.Index)
			}
		}
	}
	step(order.Rand{Bits: 42})
	leader, leading := engine.Leader()
	fmt.Println("leader", leader, leading)
	step(order.Propose{Ref: 7, Cmd: order.Command{Client: order.ClientID{1}, Seq: 1, Service: "locks", Data: []byte("take it")}})
	// Output:
	// entry 11: ""
	// leader 1 true
	// entry 12: "take it"
	// command 7 stands at 12
}
