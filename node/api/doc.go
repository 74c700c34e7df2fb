// Package api is the way into a running daemon: the Connect services published in latchkey/v1/*.proto, their server and
// their client.
//
// The [Server] answers on a unix socket that only its owner may open, in gRPC, gRPC-Web and Connect (JSON over HTTP/1.1
// included), all from one handler. [Dial] gives the client; its Locks are a [lockservice.Service] like a node's own, whose
// leases are counted by the client's clock.
//
// # How a lock lives through a daemon
//
// The daemon uses a [lockservice.Backend] and renews nothing by itself: every renewal is a call of the client. So a client
// that stops calling, whether it was killed or its daemon was, loses the lock when the lease runs out, and nobody gets it
// earlier. The client counts each lease from before it sent the call that granted or renewed it. The daemon sent its own
// command to the group later than that, so the client always stops first. A client that goes away while it waits leaves
// the queue, because its stream ends.
//
// The daemon remembers live grants in memory only, at most [GrantsMax], so that calls cannot name grants it has not given.
// A restarted daemon has another session with the groups: renewals of older grants answer [lockservice.ErrNotHeld].
//
// # Errors
//
// Each error of LockService carries an ErrorDetail whose reason stands for one sentinel of package lockservice, so
// errors.Is with them works on the client's side as it does beside a node; lock.proto lists reasons and codes. When nobody
// answers at all, the error matches [ErrUnreachable].
//
// Whoever changes a .proto file needs protoc; the generated code is committed, so nobody else does.
package api

//go:generate sh -c "protoc --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --plugin=protoc-gen-connect-go=$(go tool -n protoc-gen-connect-go) -I . --go_out=../.. --go_opt=module=latchkey --connect-go_out=../.. --connect-go_opt=module=latchkey,simple latchkey/v1/node.proto latchkey/v1/lock.proto latchkey/v1/object.proto latchkey/v1/durable.proto"
