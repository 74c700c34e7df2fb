// Package voterlog keeps what the voters of one host have promised, over the death of the process: one file, written to before a promise is
// told to anybody, and read when the host starts again.
//
// # What it is good for, and when
//
// Nothing is synced while the host runs. What a process has handed to the operating system outlives the process, however it dies; it does
// not outlive a power cut. So the file is of use to the next life of the host, and only then, if
//
//   - the system has run on since: it has the same boot id; or
//   - the life before has closed the file in good order, with a sync.
//
// The next life is the next start of the host's store, which counts its starts. It takes over the file before it does anything else, so
// that a file is taken up once, and a file that was put back from a copy, or of a life before the last one, or of another store, never.
// All that is damaged, or ends early, is of no use either. Then nothing is known, and voters wait as those do that have lost
// everything.
//
// # A disk that fails
//
// [Log.Write] fails for good then, and who calls it must not promise what it could not record. So the file still has all that was
// promised, and the host stops ([Log.Failed]), as it does when its store fails.
package voterlog
