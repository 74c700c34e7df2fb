package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Bounds of the rules socket.
const (
	requestBytesMax = 128 << 10
	answerBytesMax  = 4 << 10
	requestTimeout  = 5 * time.Second
)

// Serve takes rules for w from other processes, by HTTP on l: PUT /rules with [Rules] in JSON. It blocks until l is closed, and
// returns nil then. Who may reach l may set the rules: give it a unix socket of the owner's alone.
func Serve(l net.Listener, w *Wire) error {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /rules", func(rw http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(rw, req.Body, requestBytesMax))
		if err != nil {
			http.Error(rw, err.Error(), http.StatusBadRequest)
			return
		}
		r, err := decodeRules(body)
		if err == nil {
			err = w.SetRules(r)
		}
		switch {
		case errors.Is(err, ErrCut):
			http.Error(rw, err.Error(), http.StatusGone)
		case errors.Is(err, ErrStale):
			http.Error(rw, err.Error(), http.StatusConflict)
		case err != nil:
			http.Error(rw, err.Error(), http.StatusBadRequest)
		default:
			rw.WriteHeader(http.StatusNoContent)
		}
	})
	s := &http.Server{Handler: mux, ReadTimeout: requestTimeout, WriteTimeout: requestTimeout, MaxHeaderBytes: answerBytesMax}
	s.SetKeepAlivesEnabled(false)
	defer s.Close()
	if err := s.Serve(l); !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("wire: rules socket: %w", err)
	}
	return nil
}

// decodeRules reads rules as they are sent. What is no [Rules], or more than that, is refused.
func decodeRules(b []byte) (Rules, error) {
	var r Rules
	if len(b) > requestBytesMax {
		return r, fmt.Errorf("%w: %d bytes; %d are the most", ErrRules, len(b), requestBytesMax)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return Rules{}, fmt.Errorf("%w: %w", ErrRules, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return Rules{}, fmt.Errorf("%w: something follows them", ErrRules)
	}
	return r, r.Validate()
}

// Remote is a wire of another process, which runs [Serve].
type Remote struct {
	Socket string // path of the unix socket
}

// SetRules does what [Wire.SetRules] does. Errors: [ErrRules], [ErrStale], [ErrCut], context.Cause(ctx), or that nobody answers.
func (r Remote) SetRules(ctx context.Context, rules Rules) error {
	if err := rules.Validate(); err != nil {
		return err
	}
	body, err := json.Marshal(rules)
	if err != nil {
		return fmt.Errorf("wire: %w", err)
	}
	var d net.Dialer
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", r.Socket) },
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://wire/rules", bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("wire: %w", err)
	}
	resp, err := client.Do(req)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("wire: no answer at %s: %w", r.Socket, err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, answerBytesMax)) // of an error; the code says enough without it
	switch text = bytes.TrimSpace(text); resp.StatusCode {
	case http.StatusNoContent:
		return nil
	case http.StatusGone:
		return ErrCut
	case http.StatusConflict:
		return fmt.Errorf("%w: refused: %s", ErrStale, text)
	case http.StatusBadRequest:
		return fmt.Errorf("%w: refused: %s", ErrRules, text)
	default:
		return fmt.Errorf("wire: answered %d: %s", resp.StatusCode, text)
	}
}
