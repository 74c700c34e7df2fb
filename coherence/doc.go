// Package coherence shares objects between the nodes of an overlay: an application's nodes have copies of its objects in their memory, read and write
// them at the speed of memory while nobody else wants them, and see one sequentially consistent memory. The protocol is that of Rilling and Morin
// (INRIA RR-5059), as docs/deviations.md corrects it.
//
//	app, err := node.Objects().Open(ctx, "render-farm") // joins or founds the application
//	frame := app.Object("frame/42")                     // up to 1 MiB
//	err = frame.Set(ctx, pixels)
//	err = frame.View(ctx, func(b []byte) error { … })   // no copy, and no message while nobody has written it since
//	err = frame.Update(ctx, func(b []byte) ([]byte, error) { … })
//
// # Who does what
//
// Each object has a manager, and so has each application. They are automata (packages manager and appmanager) in the replica groups of their keys,
// beside the locks: a group's log orders what they are told ([Machine]), and the host of its leader sends what they say, and says it again as long
// as it is waited for. So they survive what their groups survive, and a new leader goes on where the former one was. On each node a [Service]
// moves the messages and has an [App] for each application that is open there, with the copies of its objects (packages cachedcopy and access).
//
// A request for an object goes to the voters of its group (route_replica in the paper), or to the one that is known to lead; a value goes from its
// owner to who asked for it, and never through a group. Who sends is authenticated by the stream, nobody speaks for another, and for managers
// only members of their group do. All messages may be lost, late and repeated: who waits for an answer asks again.
//
// # Threads
//
// What is to survive the failure of its node runs as a thread of a kind that nodes register:
//
//	err = app.Register("worker", func(ctx context.Context, t *coherence.Thread) error {
//		var next int // what it saves
//		if _, err := t.State(&next); err != nil {
//			return err
//		}
//		for ; next < 1000; next++ {
//			if err := t.SafePoint(ctx, next); err != nil { // it could be begun again from here
//				return err
//			}
//			… t.Object("row/1") …
//		}
//		return nil
//	})
//	err = app.Go(ctx, "worker-1", "worker", args)
//	id, err := app.Checkpoint(ctx)
//
// The application's manager knows where each thread is ([App.Go], a [Policy] chooses). A thread moves at its safe points: when somebody wants it to
// ([Service.Migrate]), and when its node leaves. [App.Checkpoint] stops all threads at safe points, reads all objects as they are at one instant, and
// stores both at the 2f+1 peers closest to each piece (package chunks).
//
// # What becomes of the objects
//
// Those of an [App] are volatile. What an object holds is in the memory of the nodes that have copies, and lives as long as the application is open somewhere. A node
// that leaves ([App.Close]) hands over what it owns. If one fails that has the application open, or is silent for three seconds, the application
// begins anew, in the next epoch, from its last checkpoint, or with empty objects and its first threads if it has none: every call of the former execution
// fails with [ErrRestarted] from when its node hears of it. Threads need not care: their functions are called again, with what they saved for that
// checkpoint. Objects have the values they had at that instant, each as soon as somebody uses it. Other callers have no saved state; what they
// remember is of an execution that did not happen, so an [App] stays ended, and who wants to go on opens the application again:
//
//	for {
//		app, err := objects.Open(ctx, "render-farm")
//		if err != nil {
//			return err
//		}
//		if err := work(ctx, app); !errors.Is(err, coherence.ErrRestarted) {
//			return errors.Join(err, app.Close(ctx))
//		}
//	}
//
// A node that has registered kinds of threads, or a function for [App.OnRestart], takes part in the next execution by itself, so that threads
// find a place; Open returns what is there. A restart waits until every thread has a node that can run it, and says what it waits for ([Service.Status]).
//
// When all nodes leave while there are threads, these wait: who opens the application next, and can run them, has it begin anew from its last checkpoint.
// When the last one leaves and no thread is left, the application is over, and what its checkpoint kept is collected.
//
// A node that is cut off hears nothing, and goes on reading the copies it has until it does.
//
// # Durable objects
//
// What must not be lost is kept by the groups themselves (package durable):
//
//	app, err := node.Objects().Durable("shop") // nobody has it open: it is there
//	tea := app.Object("prices/tea")
//	v, err := tea.Write(ctx, price, coherence.IfAbsent())
//	v, err = tea.CompareAndSwap(ctx, v, other) // versions rise for ever
//	err = tea.Update(ctx, func(b []byte) ([]byte, error) { … })
//	err = tea.Watch(ctx, 0, func(c coherence.Change) error { … })
//	names, err := app.Directory("prices").List(ctx, "", 100)
//
// A write returns when the object's group has it in its log, and no copy of what was there before can be read any more. So f failures of the group's
// 2f+1 peers lose nothing, that of a peer which uses the object loses nothing, and nothing begins anew. Reads are served by copies at the speed
// of memory, which a lease of two seconds protects: who is cut off, or was stopped, reads nothing stale, and a writer waits for such a reader for
// one lease at most. When the group's leader fails, reads of what is settled go on with the next one, and writes return one lease later.
//
// The volatile application and the durable one of one name have nothing to do with each other.
package coherence
