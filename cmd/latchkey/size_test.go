package main

import (
	"bytes"
	"os"
	"testing"
)

// TestNothingCallsMethodsByName holds that the program calls no method by a name that it makes up while it runs, as
// text/template does: where one place does, the linker keeps every exported method of every type, which is a sixth of the
// program, and an idle daemon has most of its program resident.
func TestNothingCallsMethodsByName(t *testing.T) {
	t.Parallel()
	program, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(program, []byte("main.(*app).root")) {
		t.Fatal("the program does not name its functions: this test cannot tell")
	}
	if bytes.Contains(program, []byte("text/template.(*state).evalField")) {
		t.Error("text/template runs templates in the program; go build -ldflags=-dumpdep ./cmd/latchkey says who calls it")
	}
}
