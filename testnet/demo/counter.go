package demo

import (
	"encoding/json"
	"fmt"
	"slices"
)

// counter is what the file holds.
type counter struct {
	Value  int     `json:"value"`
	Last   []int   `json:"last"`   // by client: the number of its last increment
	Writes []write `json:"writes"` // the journal: every increment, in the order of the writes
}

// write is one increment as its writer saw it.
type write struct {
	Token  uint64 `json:"token"`
	Client int    `json:"client"`
	N      int    `json:"n"`     // which increment of this client, from 1
	Value  int    `json:"value"` // what it made of the counter
}

// parseCounter reads the file's data. No data is a counter at 0.
func parseCounter(data []byte, clients int) (counter, error) {
	c := counter{Last: make([]int, clients)}
	if len(data) == 0 {
		return c, nil
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("demo: counter file: %w", err)
	}
	if len(c.Last) != clients {
		return c, fmt.Errorf("demo: counter file: it knows %d clients, this run has %d", len(c.Last), clients)
	}
	return c, nil
}

// increment returns c after increment n of a client under token.
func (c counter) increment(token uint64, client, n int) counter {
	c.Value++
	c.Last = slices.Clone(c.Last)
	c.Last[client] = n
	c.Writes = append(slices.Clip(c.Writes), write{Token: token, Client: client, N: n, Value: c.Value})
	return c
}

func (c counter) encode() []byte {
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // integers always have an encoding
	}
	return b
}
