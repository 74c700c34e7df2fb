// Package pb turns the messages of the coherence protocol, and the events that a manager's group orders, into bytes and back: the protobuf
// messages of coherence.proto, and the conversion from and to those of packages protocol, manager and appmanager.
//
// What is decoded is bounded, and is of one of the [forms] that the automata send: who may say what to whom, and with which fields. All else
// matches [ErrMalformed]. That a message is in the name of the peer whose stream it came on, is for the driver to see. States of managers are not
// messages: see manager.Restore and appmanager.Restore.
//
// Whoever changes the .proto file needs protoc; the generated code is committed, so nobody else does.
package pb

//go:generate sh -c "protoc --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) -I ../.. --go_out=../.. --go_opt=module=latchkey coherence/pb/coherence.proto"
