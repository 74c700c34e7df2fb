package invariant

import (
	"strings"
	"testing"
)

func TestCheckPanicsWithTheState(t *testing.T) {
	Check(true, "never printed", 0)
	defer func() {
		got, _ := recover().(string)
		if !strings.Contains(got, "one owner") || !strings.Contains(got, "{N:2}") {
			t.Errorf("panic said %q", got)
		}
	}()
	Check(false, "one owner", struct{ N int }{2})
}
