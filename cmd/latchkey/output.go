package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
)

// Formats of -o.
const (
	formatText  = "text"
	formatJSON  = "json"  // one indented document
	formatJSONL = "jsonl" // one compact document a line
)

// printer writes what a verb found, in the format of -o. Errors and progress go to err, never through here.
//
//	p.value(v, func(w io.Writer) { fmt.Fprintf(w, "peer\t%s\n", v.Peer) })  // one result; tabs align
//	p.list("peers", anys(peers), func(w io.Writer) { ... })                 // many; jsonl gives one a line
//	p.event(v, "killed peer 3")                                             // something that has just happened
//
// JSON comes from the struct tags of v: names in snake_case, stable; 64-bit numbers as strings (`json:"token,string"`); units in
// the name (ttl_ms).
type printer struct {
	out, err io.Writer
	format   string
}

// value prints one result.
func (p *printer) value(v any, text func(w io.Writer)) error {
	switch p.format {
	case formatJSON:
		return p.json(v, "  ")
	case formatJSONL:
		return p.json(v, "")
	}
	w := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	text(plainWriter{w}) // in front of it, for a byte of value 255 would turn its tabs off
	return w.Flush()
}

// list prints many results of one kind: in JSON as the one field name of an object.
func (p *printer) list(name string, items []any, text func(w io.Writer)) error {
	if p.format == formatJSONL {
		for _, v := range items {
			if err := p.json(v, ""); err != nil {
				return err
			}
		}
		return nil
	}
	if items == nil {
		items = []any{}
	}
	return p.value(map[string]any{name: items}, text)
}

// event prints something at once, while the verb goes on: a line of text, or a line of JSON in jsonl. In json, whose one document
// comes at the end, the line goes to stderr.
func (p *printer) event(v any, text string) error {
	switch p.format {
	case formatJSONL:
		return p.json(v, "")
	case formatJSON:
		_, err := fmt.Fprintln(p.err, plain(text))
		return err
	}
	_, err := fmt.Fprintln(p.out, plain(text))
	return err
}

func (p *printer) json(v any, indent string) error {
	e := json.NewEncoder(p.out)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	return e.Encode(v)
}

// anys turns a slice into what list takes.
func anys[T any](s []T) []any {
	out := make([]any, len(s))
	for i, v := range s {
		out[i] = v
	}
	return out
}

// isTerminal reports whether a person may be reading f.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && !isNull(f)
}
