package api

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"latchkey/internal/durablefile"
	"latchkey/internal/filelock"
)

// Scope is what a token allows.
type Scope string

// The scopes. Admin allows everything; each of the others what it says, and Read, Lock and Object tell of no more than they are about.
const (
	ScopeRead   Scope = "read"   // to look at the peer, its groups and who has which lock
	ScopeLock   Scope = "lock"   // to take, keep, give back and watch locks
	ScopeObject Scope = "object" // to read and write shared objects
	ScopeAdmin  Scope = "admin"  // everything, as the unix socket does
)

// Scopes returns every scope.
func Scopes() []Scope { return []Scope{ScopeRead, ScopeLock, ScopeObject, ScopeAdmin} }

// Limits of tokens.
const (
	// TokensMax bounds the tokens of one daemon.
	TokensMax = 256
	// TokenNameMax bounds a token's name, in bytes.
	TokenNameMax = 64
	// tokensFileMax bounds the file that holds them.
	tokensFileMax = 256 << 10
	// tokenBytes is how much of a token was drawn by lot.
	tokenBytes = 32
	// tokenRecheck is how often a call under way is held against the tokens.
	tokenRecheck = time.Second
)

// tokenPrefix begins every token, so that whoever finds one knows what it is.
const tokenPrefix = "lkapi_"

var (
	// ErrToken is matched when a daemon refuses a call for want of a token, a good one, or the scope.
	ErrToken = errors.New("api: token refused")
	// ErrTokens is matched by errors about the file of tokens and what is to be done to it.
	ErrTokens = errors.New("api: tokens")
	// ErrNoToken is matched when there is no token of a name.
	ErrNoToken = errors.New("api: no such token")
)

// Token is what a daemon knows of a token: its hash, not the token.
type Token struct {
	Name    string    `json:"name"`
	Scopes  []Scope   `json:"scopes"`
	Made    time.Time `json:"made"`
	Expires time.Time `json:"expires,omitzero"` // zero: never
	Hash    string    `json:"sha256"`           // hex, of the token
}

// Expired reports whether a token's time is over.
func (t Token) Expired(now time.Time) bool { return !t.Expires.IsZero() && !now.Before(t.Expires) }

// allows reports whether the token is good for a call.
func (t Token) allows(s Scope) bool {
	return slices.Contains(t.Scopes, s) || slices.Contains(t.Scopes, ScopeAdmin)
}

var tokenName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

func (t Token) check() error {
	switch {
	case len(t.Name) > TokenNameMax || !tokenName.MatchString(t.Name):
		return fmt.Errorf("%w: name %.80q: want up to %d letters, digits, dots, dashes and underscores", ErrTokens, t.Name, TokenNameMax)
	case len(t.Scopes) == 0:
		return fmt.Errorf("%w: %s has no scope; there are read, lock, object and admin", ErrTokens, t.Name)
	case len(t.Hash) != 2*sha256.Size:
		return fmt.Errorf("%w: %s has no hash", ErrTokens, t.Name)
	}
	for i, s := range t.Scopes {
		if !slices.Contains(Scopes(), s) || slices.Contains(t.Scopes[:i], s) {
			return fmt.Errorf("%w: scope %.20q: want each of read, lock, object and admin once at most", ErrTokens, s)
		}
	}
	return nil
}

// TokensFile is what the file of a daemon's tokens is called in the peer's directory.
const TokensFile = "tokens.json"

// ReadTokens reads the file of a daemon's tokens, in the order of their names; none where there is no file. Errors match [ErrTokens].
func ReadTokens(file string) ([]Token, error) {
	b, err := durablefile.Read(file, tokensFileMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var tokens []Token
	if err == nil {
		err = json.Unmarshal(b, &tokens)
	}
	if err == nil && len(tokens) > TokensMax {
		err = fmt.Errorf("%d tokens (at most %d)", len(tokens), TokensMax)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w; remove the file to be without tokens", ErrTokens, file, err)
	}
	for i, t := range tokens {
		if err := t.check(); err != nil {
			return nil, fmt.Errorf("%s: %w; remove the file to be without tokens", file, err)
		}
		if i > 0 && t.Name <= tokens[i-1].Name {
			return nil, fmt.Errorf("%w: %s: %s is out of order; remove the file to be without tokens", ErrTokens, file, t.Name)
		}
	}
	return tokens, nil
}

// MakeToken draws a token and puts what is known of it into the file. The token itself is nowhere but in the answer. life 0 is for ever.
// Errors match [ErrTokens].
func MakeToken(file, name string, scopes []Scope, life time.Duration) (string, error) {
	b := make([]byte, tokenBytes)
	rand.Read(b)
	token := tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
	t := Token{Name: name, Scopes: scopes, Made: time.Now().UTC().Truncate(time.Second), Hash: hashOf(token)}
	if life < 0 {
		return "", fmt.Errorf("%w: a token that expires %v ago", ErrTokens, -life)
	}
	if life > 0 {
		t.Expires = time.Now().UTC().Add(life).Truncate(time.Second)
	}
	if err := t.check(); err != nil {
		return "", err
	}
	return token, changeTokens(file, func(tokens []Token) ([]Token, error) {
		i, found := findToken(tokens, name)
		switch {
		case found:
			return nil, fmt.Errorf("%w: there is a token %s already; revoke it first, or choose another name", ErrTokens, name)
		case len(tokens) >= TokensMax:
			return nil, fmt.Errorf("%w: there are %d already; revoke one", ErrTokens, len(tokens))
		}
		return slices.Insert(tokens, i, t), nil
	})
}

// RevokeToken takes a token out of the file. A daemon heeds that within a second, for calls under way too. Errors match [ErrNoToken] or
// [ErrTokens].
func RevokeToken(file, name string) error {
	return changeTokens(file, func(tokens []Token) ([]Token, error) {
		i, found := findToken(tokens, name)
		if !found {
			return nil, fmt.Errorf("%w: %.80q; latchkey token ls lists them", ErrNoToken, name)
		}
		return slices.Delete(tokens, i, i+1), nil
	})
}

func findToken(tokens []Token, name string) (int, bool) {
	return slices.BinarySearchFunc(tokens, name, func(t Token, name string) int { return strings.Compare(t.Name, name) })
}

func changeTokens(file string, change func([]Token) ([]Token, error)) error {
	lock, err := filelock.Take(file + lockSuffix)
	if err != nil {
		return fmt.Errorf("%w: %s is being changed by another: %w", ErrTokens, file, err)
	}
	defer lock.Release()
	tokens, err := ReadTokens(file)
	if err != nil {
		return err
	}
	if tokens, err = change(tokens); err != nil {
		return err
	}
	b, err := json.MarshalIndent(tokens, "", "  ")
	if err == nil {
		err = durablefile.Replace(file, append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrTokens, err)
	}
	return nil
}

func hashOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// tokenFile is a file of tokens as a daemon knows it. It is safe for concurrent use.
type tokenFile struct {
	path string

	mu     sync.Mutex
	info   os.FileInfo
	tokens []Token
	err    error
}

// read returns the tokens, anew when the file has changed.
func (f *tokenFile) read() ([]Token, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	info, err := os.Stat(f.path)
	if err != nil {
		info = nil
	}
	same := (info == nil) == (f.info == nil) &&
		(info == nil || os.SameFile(info, f.info) && info.ModTime().Equal(f.info.ModTime()) && info.Size() == f.info.Size())
	if !same || f.err != nil {
		f.info = info
		f.tokens, f.err = ReadTokens(f.path)
	}
	return f.tokens, f.err
}

// find returns what is known of a token. Errors match [ErrToken].
func (f *tokenFile) find(token string, now time.Time) (Token, error) {
	tokens, err := f.read()
	if err != nil {
		log.Errorw("no token is good", "err", err)
		return Token{}, fmt.Errorf("%w: the daemon cannot read its file of tokens", ErrToken)
	}
	hash := []byte(hashOf(token))
	for _, t := range tokens {
		if subtle.ConstantTimeCompare(hash, []byte(t.Hash)) == 1 {
			if t.Expired(now) {
				return t, fmt.Errorf("%w: token %s expired at %s; make another with latchkey token new", ErrToken, t.Name, t.Expires.Format(time.RFC3339))
			}
			return t, nil
		}
	}
	return Token{}, fmt.Errorf("%w: the daemon does not know this token; it was revoked, or is another daemon's", ErrToken)
}
