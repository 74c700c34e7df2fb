// Package pb holds the generated protobuf messages of the overlay's message layer. Package dht encodes and decodes items
// by hand, to the same bytes; a test and a fuzz target hold the two against each other.
package pb

//go:generate sh -c "protoc --plugin=protoc-gen-go=$DOLLAR(go tool -n protoc-gen-go) --go_out=. --go_opt=paths=source_relative dht.proto"
