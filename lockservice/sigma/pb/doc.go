// Package pb turns the messages of protocol sigma into bytes and back: the protobuf messages of sigma.proto, and the conversion
// from and to those of package sigma. [Decode] is bounded and accepts only what [Encode] could have written.
//
// Whoever changes the .proto file needs protoc; the generated code is committed, so nobody else does.
package pb

//go:generate sh -c "protoc --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) -I ../../.. --go_out=../../.. --go_opt=module=latchkey lockservice/sigma/pb/sigma.proto"
