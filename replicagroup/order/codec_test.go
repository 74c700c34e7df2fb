package order

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func sample() (Stamp, Command) {
	return Stamp{Boot: 7, At: 3 * time.Second}, Command{
		Client: ClientID{1, 2}, Seq: 9, Acked: 8, Author: [32]byte{5}, Service: "locks", Data: []byte("take it"),
	}
}

func TestCommandRoundTrips(t *testing.T) {
	s, c := sample()
	b, err := AppendCommand(nil, s, c)
	if err != nil {
		t.Fatal(err)
	}
	s2, c2, err := DecodeCommand(b)
	if err != nil || s2 != s || !reflect.DeepEqual(c2, c) {
		t.Errorf("got %+v %+v, %v", s2, c2, err)
	}
}

func TestCommandLimitsHoldAtTheirEdge(t *testing.T) {
	s, c := sample()
	c.Service, c.Data = strings.Repeat("s", ServiceBytesMax), make([]byte, DataBytesMax)
	b, err := AppendCommand(nil, s, c)
	if err != nil {
		t.Fatalf("at the limit: %v", err)
	}
	if _, _, err := DecodeCommand(b); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	if _, _, err := DecodeCommand(append(b, 0)); !errors.Is(err, ErrMalformed) {
		t.Errorf("a byte more on the wire: %v", err)
	}
	c.Data = append(c.Data, 0)
	if _, err := AppendCommand(nil, s, c); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a byte more of data: %v", err)
	}
	_, c = sample()
	c.Service = strings.Repeat("s", ServiceBytesMax+1)
	if _, err := AppendCommand(nil, s, c); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a byte more of service: %v", err)
	}
}

func TestDecodeCommandRefusesEveryTruncationOfTheHead(t *testing.T) {
	s, c := sample()
	b, _ := AppendCommand(nil, s, c)
	head := len(b) - len(c.Data)
	for i := range head {
		if _, _, err := DecodeCommand(b[:i]); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d of %d bytes: %v", i, head, err)
		}
	}
	b[0]++
	if _, _, err := DecodeCommand(b); !errors.Is(err, ErrMalformed) {
		t.Errorf("unknown version: %v", err)
	}
}

func FuzzDecodeCommand(f *testing.F) {
	s, c := sample()
	b, _ := AppendCommand(nil, s, c)
	f.Add(b)
	f.Add(b[:codecFixed])
	f.Fuzz(func(t *testing.T, b []byte) {
		s, c, err := DecodeCommand(b)
		if err != nil {
			return
		}
		again, err := AppendCommand(nil, s, c)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x encodes again to %x, %v", b, again, err)
		}
	})
}
