package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"latchkey/internal/durablefile"
)

// FileBytesMax bounds a configuration file, comments included.
const FileBytesMax = 64 << 10

// decode reads a configuration file: the fields that it sets, by name and of their types, and the lines where it does. Errors
// begin with the line. Whether values are in range is not its business.
func decode(b []byte) (values map[string]any, lines map[string]int, err error) {
	values, lines = make(map[string]any), make(map[string]int)
	if len(b) > FileBytesMax {
		return nil, nil, fmt.Errorf("1: the file has more than %d bytes", FileBytesMax)
	}
	d := yaml.NewDecoder(bytes.NewReader(b))
	var doc, second yaml.Node
	if err := d.Decode(&doc); errors.Is(err, io.EOF) {
		return values, lines, nil
	} else if err != nil {
		return nil, nil, syntax(err)
	}
	if err := d.Decode(&second); err == nil {
		return nil, nil, fmt.Errorf("%d: a second document; want one", second.Line)
	} else if !errors.Is(err, io.EOF) {
		return nil, nil, syntax(err)
	}
	if len(doc.Content) == 0 {
		return values, lines, nil
	}
	err = entries(doc.Content[0], "", func(name string, key, value *yaml.Node) error {
		if isSection(name) {
			return entries(value, name+".", func(name string, key, value *yaml.Node) error {
				return field(name, key, value, values, lines)
			})
		}
		return field(name, key, value, values, lines)
	})
	return values, lines, err
}

// syntax is the error for what is not YAML. The library's own begin with its name, and mostly have the line.
func syntax(err error) error {
	text := strings.TrimPrefix(strings.Join(strings.Fields(err.Error()), " "), "yaml: ")
	line := "1"
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if n, what, ok := strings.Cut(rest, ": "); ok {
			line, text = n, what
		}
	}
	return fmt.Errorf("%s: not YAML: %s", line, text)
}

// entries calls each for the entries of a mapping. Nothing at all counts as an empty one.
func entries(n *yaml.Node, prefix string, each func(name string, key, value *yaml.Node) error) error {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("%d: %swant lines of the form \"field: value\"", n.Line, strings.ReplaceAll(prefix, ".", ": "))
	}
	var seen []string
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		name := prefix + key.Value
		switch {
		case key.Kind != yaml.ScalarNode:
			return fmt.Errorf("%d: want the name of a field", key.Line)
		case slices.Contains(seen, name):
			return fmt.Errorf("%d: %s is there twice", key.Line, excerpt(name))
		}
		// At most one name more than there are fields is remembered: an unknown one ends the reading.
		seen = append(seen, name)
		if err := each(name, key, n.Content[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// field reads one field.
func field(name string, key, value *yaml.Node, values map[string]any, lines map[string]int) error {
	f, err := lookup(name)
	if err != nil {
		return fmt.Errorf("%d: %w", key.Line, err)
	}
	v, err := f.fromYAML(value)
	if err != nil {
		return fmt.Errorf("%d: %s: %w", value.Line, name, err)
	}
	values[name], lines[name] = v, key.Line
	return nil
}

// fromYAML reads a value of the field's type.
func (f Field) fromYAML(n *yaml.Node) (any, error) {
	scalar := func(n *yaml.Node, tag string) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == tag }
	switch f.at(new(Config)).(type) {
	case *bool:
		if scalar(n, "!!bool") {
			return f.parse(strings.ToLower(n.Value))
		}
	case *int:
		if scalar(n, "!!int") {
			return f.parse(n.Value)
		}
	case *string:
		if scalar(n, "!!str") {
			return n.Value, nil
		}
	case *[]string:
		if n.Kind != yaml.SequenceNode {
			return nil, fmt.Errorf("want a list: %s, each on a line of its own after \"- \", or []", f.Want)
		}
		list := make([]string, 0, len(n.Content))
		for _, item := range n.Content {
			if !scalar(item, "!!str") {
				return nil, fmt.Errorf("entry %d is no text; want %s", len(list)+1, f.Want)
			}
			list = append(list, item.Value)
		}
		return list, nil
	}
	if n.Kind == yaml.ScalarNode && n.Value != "" {
		return nil, fmt.Errorf("%s: %w", excerpt(n.Value), f.wants())
	}
	return nil, f.wants()
}

// Write puts the configuration into a file, with a comment that explains each field; fields that have their profile's
// default are comments as a whole. The file is replaced in one step and is its owner's only (mode 0600). Comments that
// somebody else wrote into it are lost. Errors match [ErrInvalid], but for those of writing the file.
func Write(file string, c Config) error {
	b, err := Encode(c)
	if err != nil {
		return err
	}
	if err := durablefile.Replace(file, b, 0o600); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	return nil
}

const header = `# Configuration of a latchkey peer. A line with one # before its field shows the profile's default; remove the # to
# set the field. Variables (LATCHKEY_NETWORK_LISTEN and so on) and flags of "latchkey daemon" go before what is here.
# "latchkey config show" tells each value and where it is from, "latchkey config edit" checks what you write.
`

// Encode returns the file that [Write] writes. Errors match [ErrInvalid].
func Encode(c Config) ([]byte, error) {
	if err := (Loaded{}).explain(c.outOfRange()); err != nil {
		return nil, err
	}
	standard, err := Default(c.Profile)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString(header)
	section := ""
	for _, f := range fields {
		name, indent := f.Name, ""
		if s, field, ok := strings.Cut(f.Name, "."); ok {
			if s != section {
				fmt.Fprintf(&b, "\n%s:\n", s)
			}
			section, name, indent = s, field, "  "
		} else {
			b.WriteByte('\n')
		}
		off := "#"
		v := f.Value(c)
		if f.Name == "profile" || text(v) != text(f.Value(standard)) {
			off = ""
		}
		fmt.Fprintf(&b, "%s## %s: %s\n", indent, f.Doc, f.Want)
		list, ok := v.([]string)
		switch {
		case !ok:
			fmt.Fprintf(&b, "%s%s%s: %v\n", indent, off, name, v)
		case len(list) == 0:
			fmt.Fprintf(&b, "%s%s%s: []\n", indent, off, name)
		default:
			fmt.Fprintf(&b, "%s%s%s:\n", indent, off, name)
			for _, s := range list {
				fmt.Fprintf(&b, "%s%s  - %s\n", indent, off, quoted(s))
			}
		}
	}
	return b.Bytes(), nil
}

// quoted writes a string so that YAML reads it back: as it is where that is certain, else in quotes.
func quoted(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-:", r)
	}
	if strings.HasPrefix(s, "/") && !strings.HasSuffix(s, ":") && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return strconv.QuoteToASCII(s)
}
