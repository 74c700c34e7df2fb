package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"latchkey/internal/durablefile"
	"latchkey/node/api"
)

func tokenVerb(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "token",
		Short: "make and revoke the tokens that clients on TCP need",
		Long: `A daemon answers on its unix socket, which only its owner may open and which needs no token. With api.listen in its configuration, or
daemon --api-listen, it answers on TCP too, and there every call needs a token:

  latchkey --api http://127.0.0.1:4780 status     with the token in LATCHKEY_API_TOKEN, or in a file that
                                                  --api-token-file or LATCHKEY_API_TOKEN_FILE names

Beyond the loopback that takes TLS (api.tls_cert, api.tls_key) and an https:// address. The scopes of a token:
  read     to look: status, peers, groups, who has which lock
  lock     to take, keep, give back and watch locks
  object   to read and write shared objects
  admin    everything, as the unix socket does

The daemon's directory holds the tokens' hashes only (tokens.json). A token that is revoked or expires is refused within a
second, and what was under way with it ends. Requests that come from web pages are refused whatever they have.`,
		Example: `  latchkey token new ci --scope lock,read --expires 720h > token
  latchkey token ls
  latchkey token revoke ci`,
	})
	c.AddCommand(tokenNewVerb(a), tokenLsVerb(a), tokenRevokeVerb(a))
	return c
}

func (a *app) tokensFile() string { return filepath.Join(a.path, api.TokensFile) }

func tokenNewVerb(a *app) *cobra.Command {
	var scopes []string
	var life time.Duration
	c := &cobra.Command{
		Use:   "new NAME",
		Short: "make a token and print it; it is shown this once",
		Example: `  latchkey token new ci --scope lock,read
  (umask 077; latchkey token new ci --scope lock > token)`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			if _, err := a.peekDir(); err != nil {
				return err
			}
			if c.Flags().Changed("expires") && life < time.Second {
				return usagef("token new: --expires %v: want 1s or more", life)
			}
			var list []api.Scope
			for _, s := range scopes {
				list = append(list, api.Scope(strings.TrimSpace(s)))
			}
			token, err := api.MakeToken(a.tokensFile(), args[0], list, life)
			if err != nil {
				return usageUnless(err, "token new")
			}
			v := struct {
				Token string `json:"token"`
				Name  string `json:"name"`
			}{token, args[0]}
			if err := a.value(v, func(w io.Writer) { fmt.Fprintln(w, token) }); err != nil {
				return err
			}
			fmt.Fprintln(a.err, "latchkey: note: this line is a secret, and is shown this once")
			return nil
		},
	}
	c.Flags().StringSliceVar(&scopes, "scope", nil, "read, lock, object or admin; several with commas between them")
	c.Flags().DurationVar(&life, "expires", 0, "how long it is good for (default: until it is revoked)")
	return c
}

// usageUnless makes an error about what was asked for wrong usage; one about a file is none.
func usageUnless(err error, verb string) error {
	if errors.Is(err, api.ErrTokens) && !strings.Contains(err.Error(), api.TokensFile) {
		return usagef("%s: %w", verb, err)
	}
	return err
}

func tokenLsVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Short:   "list the tokens: names, scopes, times; never the tokens themselves",
		Example: `  latchkey token ls -o json`,
		Args:    exactly(0),
		RunE: func(*cobra.Command, []string) error {
			if _, err := a.peekDir(); err != nil {
				return err
			}
			tokens, err := api.ReadTokens(a.tokensFile())
			if err != nil {
				return err
			}
			now := time.Now()
			return a.list("tokens", anys(tokens), func(w io.Writer) {
				if len(tokens) == 0 {
					fmt.Fprintln(w, "no tokens")
				}
				for _, t := range tokens {
					var scopes []string
					for _, s := range t.Scopes {
						scopes = append(scopes, string(s))
					}
					until := "never expires"
					switch {
					case t.Expired(now):
						until = "expired"
					case !t.Expires.IsZero():
						until = "expires in " + t.Expires.Sub(now).Round(time.Second).String()
					}
					fmt.Fprintf(w, "%s\t%s\tmade %s ago\t%s\n", t.Name, strings.Join(scopes, ","), ago(now, t.Made), until)
				}
			})
		},
	}
}

func tokenRevokeVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "revoke NAME",
		Short:   "end a token: the daemon refuses it from then on",
		Example: `  latchkey token revoke ci`,
		Args:    exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if _, err := a.peekDir(); err != nil {
				return err
			}
			err := api.RevokeToken(a.tokensFile(), args[0])
			if errors.Is(err, api.ErrNoToken) {
				return exitf(exitNotFound, "token revoke: %w", err)
			}
			return err
		},
	}
}

const tokenFileMax = 4 << 10 // of a file that holds one token

// dial returns a client of the daemon.
func (a *app) dial() (*api.Client, error) {
	if !api.IsHTTP(a.socket()) {
		return api.Dial(a.socket())
	}
	var opts []api.DialOption
	token, err := a.token()
	if err != nil {
		return nil, err
	}
	if token != "" {
		opts = append(opts, api.WithToken(token))
	}
	if a.apiCA != "" {
		b, err := durablefile.Read(a.apiCA, 1<<20)
		if err != nil {
			return nil, usagef("--api-ca %s: %w", a.apiCA, err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(b) {
			return nil, usagef("--api-ca %s: it holds no certificate in PEM", a.apiCA)
		}
		opts = append(opts, api.WithRoots(roots))
	}
	return api.Dial(a.socket(), opts...)
}

// token is what the file or the variable says.
func (a *app) token() (string, error) {
	file := a.tokenFile
	if file == "" {
		return strings.TrimSpace(os.Getenv("LATCHKEY_API_TOKEN")), nil
	}
	b, err := durablefile.Read(file, tokenFileMax)
	if err != nil {
		return "", usagef("--api-token-file %s: %w", file, err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" || strings.ContainsAny(token, " \t\r\n") {
		return "", usagef("--api-token-file %s: want one token and nothing else, as latchkey token new prints it", file)
	}
	return token, nil
}
