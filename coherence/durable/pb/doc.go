// Package pb turns the messages of durable objects, and the entries of their group's log, into bytes and back: the protobuf messages of
// durable.proto, and the conversion from and to those of packages durable and store.
//
// What is decoded is bounded, and of a form that the automata send: each kind has its fields and no others. All else matches [ErrMalformed]. A
// message does not say which node it is of: that is whoever is at the other end of its stream.
//
// Whoever changes the .proto file needs protoc; the generated code is committed, so nobody else does.
package pb

//go:generate sh -c "protoc --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) -I ../../.. --go_out=../../.. --go_opt=module=latchkey coherence/durable/pb/durable.proto"
