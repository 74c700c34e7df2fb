package api

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// strictJSON is Connect's JSON codec with two differences: a field that this daemon does not know is an error that names
// it, rather than a wish silently ignored, and answers show fields that are false, zero or empty.
type strictJSON struct{ name string }

// Connect registers its codec under these two names.
var jsonCodecs = []strictJSON{{"json"}, {"json; charset=utf-8"}}

func (c strictJSON) Name() string { return c.name }

func (strictJSON) Marshal(m any) ([]byte, error) {
	p, ok := m.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("api: %T is no protobuf message", m)
	}
	return protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(p)
}

func (strictJSON) Unmarshal(b []byte, m any) error {
	p, ok := m.(proto.Message)
	if !ok {
		return fmt.Errorf("api: %T is no protobuf message", m)
	}
	if len(b) == 0 {
		return errors.New("empty body; send a JSON object, at least {}")
	}
	return protojson.Unmarshal(b, p)
}
