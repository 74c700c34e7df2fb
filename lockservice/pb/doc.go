// Package pb holds the messages of the lock service of protocol group: commands, queries and their answers, pushed outputs,
// and the snapshot of a lock table. Only package lockservice speaks them.
//
// Whoever changes the .proto file needs protoc; the generated code is committed, so nobody else does.
package pb

//go:generate sh -c "protoc --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) -I ../.. --go_out=../.. --go_opt=module=latchkey lockservice/pb/lockservice.proto"
