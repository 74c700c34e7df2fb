// Package pb holds the message inside an invitation. Only package invite speaks it.
//
// Whoever changes the .proto file needs protoc; the generated code is committed, so nobody else does.
package pb

//go:generate sh -c "protoc --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) -I ../../.. --go_out=../../.. --go_opt=module=latchkey node/invite/pb/invite.proto"
