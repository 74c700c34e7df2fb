// Package pb holds the messages of allow-lists. Only packages allowlist and node speak them.
//
// Whoever changes the .proto file needs protoc; the generated code is committed, so nobody else does.
package pb

//go:generate sh -c "protoc --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) -I ../../.. --go_out=../../.. --go_opt=module=latchkey node/allowlist/pb/allowlist.proto"
