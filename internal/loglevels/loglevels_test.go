package loglevels

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	logging "github.com/ipfs/go-log/v2"
)

func TestEachPartHasALevelOfItsOwn(t *testing.T) {
	logging.Logger("latchkey/levels-one")
	logging.Logger("latchkey/levels-two")
	if _, err := Set("latchkey/levels-*", "warn"); err != nil {
		t.Fatal(err)
	}
	changed, err := Set("latchkey/levels-one", "debug")
	if err != nil || len(changed) != 1 || changed[0] != (Level{"latchkey/levels-one", "debug"}) {
		t.Fatalf("%v, %v", changed, err)
	}
	got, err := List("latchkey/levels-*")
	if want := (Level{"latchkey/levels-two", "warn"}); err != nil || len(got) != 2 || got[0].Level != "debug" || got[1] != want {
		t.Errorf("%v, %v", got, err)
	}
	if !logging.Logger("latchkey/levels-one").LevelEnabled(logging.LevelDebug) || logging.Logger("latchkey/levels-two").LevelEnabled(logging.LevelInfo) {
		t.Error("what is told is not what is logged")
	}
	all, err := List("all")
	if every, err2 := List(""); err != nil || err2 != nil || len(all) < 2 || len(every) != len(all) {
		t.Errorf("all: %v, %v; %v, %v", all, err, every, err2)
	}
	if _, err := Set("latchkey/levels-none", "debug"); !errors.Is(err, ErrSubsystem) {
		t.Error(err)
	}
	if _, err := List("levels-none*"); !errors.Is(err, ErrSubsystem) {
		t.Error(err)
	}
	for _, level := range []string{"", "DEBUG", "trace", "fatal"} {
		if _, err := Set("all", level); !errors.Is(err, ErrLevel) {
			t.Errorf("%q: %v", level, err)
		}
	}
}

func TestLibrariesThatLogBySlogHaveLevelsToo(t *testing.T) {
	var out bytes.Buffer
	h := Handler(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}), func(name string) slog.Level {
		if name == "levels-loud" {
			return slog.LevelInfo
		}
		return slog.LevelError
	})
	logger := func(name string) *slog.Logger { return slog.New(h.WithAttrs([]slog.Attr{slog.String("logger", name)})) }
	loud, quiet := logger("levels-loud"), logger("levels-quiet").WithGroup("g").With("a", 1)
	loud.Info("first")
	quiet.Warn("second")
	if _, err := Set("levels-quiet", "debug"); err != nil {
		t.Fatal(err)
	}
	if _, err := Set("levels-loud", "error"); err != nil {
		t.Fatal(err)
	}
	quiet.Debug("third")
	loud.Warn("fourth")
	said := out.String()
	for word, want := range map[string]bool{"first": true, "second": false, "third": true, "fourth": false} {
		if strings.Contains(said, word) != want {
			t.Errorf("%s: want %v in:\n%s", word, want, said)
		}
	}
	if got, err := List("levels-quiet"); err != nil || got[0].Level != "debug" {
		t.Errorf("%v, %v", got, err)
	}
	if h.Enabled(context.Background(), slog.LevelWarn) || !h.Enabled(context.Background(), slog.LevelError) {
		t.Error("what has no name begins elsewhere")
	}
}

func TestNoMorePartsAreKeptApartThanTheLimit(t *testing.T) {
	named.mu.Lock()
	saved := named.parts
	named.parts = make(map[string]*slog.LevelVar)
	named.mu.Unlock()
	t.Cleanup(func() { named.mu.Lock(); named.parts = saved; named.mu.Unlock() })
	for i := range subsystemsMax + 1 {
		part(strings.Repeat("x", i+1), slog.LevelError)
	}
	if n := len(named.parts); n != subsystemsMax {
		t.Errorf("%d, want %d", n, subsystemsMax)
	}
	if a := part("x", slog.LevelDebug); a.Level() != slog.LevelError {
		t.Error("a part that was kept is made anew")
	}
}
