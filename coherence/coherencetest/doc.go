// Package coherencetest runs the automata of coherence/manager, coherence/cachedcopy and coherence/appmanager together, as they are shipped: by
// trace files that tell stories, by trying every order of events in small worlds, and by simulation with replicated managers.
//
// It is tests only. The world they share is in world_test.go: entities, a network that delivers in any order, and moves, which print as the
// commands of trace files do. So what the exploration finds can be kept as a trace.
package coherencetest
