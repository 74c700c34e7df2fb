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
// # What becomes of the objects
//
// They are volatile. What an object holds is in the memory of the nodes that have copies, and lives as long as the application is open somewhere. A node
// that leaves ([App.Close]) hands over what it owns. If one fails that has the application open, or is silent for three seconds, the application
// begins anew, in the next epoch, with empty objects: every call of the former execution fails with [ErrRestarted] from when its node hears of it, and
// who wants to go on opens the application again:
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
// A node that is cut off hears nothing, and goes on reading the copies it has until it does.
//
// Threads that survive by checkpoints, directories, and objects that survive their owners are not there yet.
package coherence
