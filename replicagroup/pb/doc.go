// Package pb holds the messages between the hosts of replica groups. Only package replicagroup speaks them.
//
// Whoever changes the .proto file needs protoc; the generated code is committed, so nobody else does.
package pb

//go:generate sh -c "protoc --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) -I ../.. --go_out=../.. --go_opt=module=latchkey replicagroup/pb/replicagroup.proto"
