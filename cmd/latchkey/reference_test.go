package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"latchkey/testnet"
)

var rewriteReference = flag.Bool("rewrite-reference", false, "write docs/commands.md anew")

const referenceFile = "../../docs/commands.md"

// reference writes the whole command line down, from what --help says.
func reference() []byte {
	root := (&app{printer: printer{out: io.Discard, err: io.Discard}}).root()
	root.PersistentFlags().Lookup("path").DefValue = "~/.latchkey" // and nothing else of this machine
	for _, name := range []string{"api", "api-token-file", "api-ca"} {
		root.PersistentFlags().Lookup(name).DefValue = ""
	}
	var b bytes.Buffer
	b.WriteString("# Commands\n\nWhat `latchkey VERB --help` says, of every verb. This page is made from the program; to make it anew:\n" +
		"`go test ./cmd/latchkey -run TestTheReferenceIsCurrent -rewrite-reference`.\n\n")
	var index func(c *cobra.Command)
	var page func(c *cobra.Command)
	anchor := func(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }
	index = func(c *cobra.Command) {
		if c.Hidden {
			return
		}
		fmt.Fprintf(&b, "%s- [`%s`](#%s): %s\n", strings.Repeat("  ", strings.Count(c.CommandPath(), " ")), c.CommandPath(), anchor(c), c.Short)
		for _, sub := range c.Commands() {
			index(sub)
		}
	}
	block := func(text string) {
		fmt.Fprintf(&b, "```\n%s\n```\n\n", strings.TrimRight(text, " \n"))
	}
	page = func(c *cobra.Command) {
		if c.Hidden {
			return
		}
		fmt.Fprintf(&b, "\n## %s\n\n", c.CommandPath())
		long := c.Long
		if long == "" {
			long = strings.ToUpper(c.Short[:1]) + c.Short[1:] + "."
		}
		c.InitDefaultHelpFlag()
		block(c.UseLine() + "\n\n" + strings.TrimSpace(long))
		if c.Example != "" {
			block(c.Example)
		}
		flags := c.NonInheritedFlags()
		flags.SortFlags = true
		if usages := flags.FlagUsages(); usages != "" {
			block(usages)
		}
		for _, sub := range c.Commands() {
			page(sub)
		}
	}
	index(root)
	page(root)
	text := bytes.ReplaceAll(b.Bytes(), []byte(testnet.DefaultDir()), []byte("~/.cache/latchkey/testnet"))
	return append(bytes.TrimRight(text, "\n"), '\n')
}

func TestTheReferenceIsCurrent(t *testing.T) {
	want := reference()
	if *rewriteReference {
		if err := os.WriteFile(referenceFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(referenceFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		g, w := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
		for i := range w {
			if i >= len(g) || g[i] != w[i] {
				t.Fatalf("docs/commands.md is not current from line %d on: the program says\n%s\nmake it anew: go test ./cmd/latchkey -run TestTheReferenceIsCurrent -rewrite-reference", i+1, w[i])
			}
		}
		t.Fatal("docs/commands.md has more lines than the program")
	}
}
