package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	logging "github.com/ipfs/go-log/v2"
	"github.com/libp2p/go-libp2p/gologshim"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"latchkey/internal/loglevels"
	"latchkey/lockservice"
	"latchkey/node/api"
)

// verbs makes each verb of the command line. A new verb is a function here, in a file of its own.
var verbs = []func(*app) *cobra.Command{
	initVerb, inviteVerb, joinVerb, overlayVerb, tokenVerb, daemonVerb, configVerb, idVerb, peersVerb, pingVerb, statusVerb, keyVerb, groupVerb, lockVerb, electVerb, observeVerb, objectVerb, appVerb, logVerb, shutdownVerb, testnetVerb, benchVerb, versionVerb, completionVerb,
}

// app is what every verb shares: the global flags and where output goes. Its fields are set before a verb's RunE runs.
type app struct {
	printer
	path             string        // directory of the peer
	apiAddr          string        // address of the daemon's API; empty: the socket in path
	tokenFile, apiCA string        // for an address of HTTP: what holds the token, and who is trusted to vouch for the daemon
	timeout          time.Duration // of one call to the daemon
	logLevel         string

	timeoutSet bool // somebody asked for this timeout
	// parsed tells that flags and arguments were in order, so that whatever fails now is not wrong usage.
	parsed bool
}

// run is the whole program. It returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	a := &app{printer: printer{out: stdout, err: stderr}}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(context.Background())
	if err == nil {
		return exitOK
	}
	code := exitUsage
	if a.parsed {
		code = exitCode(err)
	}
	if e, ok := err.(*exitError); !ok || e.err != nil {
		if advice := permissionAdvice(err); advice != "" {
			err = fmt.Errorf("%w; %s", err, advice)
		}
		a.fail(err, code)
	}
	return code
}

// fail tells, in the format asked for, of an error that ends the program with code.
func (a *app) fail(err error, code int) {
	text := strings.TrimPrefix(withoutTokens(oneLine(err)), "latchkey: ")
	if a.format == formatJSON || a.format == formatJSONL {
		b, _ := json.Marshal(struct { // of a string and a number, which cannot fail
			Error string `json:"error"`
			Code  int    `json:"code"` // with which we exit
		}{text, code})
		text = string(b)
	} else {
		text = "latchkey: " + text
	}
	fmt.Fprintln(a.err, text)
}

// withoutTokens takes invitations out of a text: an error may quote an argument, and who misplaces an invitation on a command
// line should not find it in a log as well.
func withoutTokens(text string) string { return tokens.ReplaceAllString(text, "${1}[invitation]") }

var tokens = regexp.MustCompile(`(latchkey\d+\.)[-_A-Za-z0-9]{12,}`)

func (a *app) root() *cobra.Command {
	root := group(&cobra.Command{
		Use:   "latchkey",
		Short: "a peer-to-peer node with built-in locks and shared objects",
		Long: `latchkey runs one peer of an overlay that keeps locks: whoever holds a lock by its name holds it
on every machine of the overlay, and no server is in charge. Peers also share objects, which all see alike.

Exit codes: 0 ok, 1 error, also when the peers of an invitation refuse it, 2 wrong usage, 3 daemon not
reachable, 4 not found, 75 lock not acquired in time, 76 lock lost while the command ran, 130/143
interrupted; lock and object update otherwise end as their command did, and with 126 or 127 where that cannot run.`,
		Example: `  latchkey init                            make a peer and a new overlay
  latchkey daemon                          run the peer
  latchkey invite                          print what another machine needs to join
  latchkey join -                          there: make a peer from what is pasted
  latchkey lock nightly -- ./build.sh      run a command while holding a lock
  latchkey testnet demo                    seven peers on this machine, with faults`,
	})
	var version bool
	root.RunE = func(c *cobra.Command, _ []string) error {
		if version {
			fmt.Fprintln(c.OutOrStdout(), buildLine())
			return nil
		}
		return c.Help()
	}
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(flagError)
	// A template of cobra's would call methods by their names, and the linker keep every method of every type for it.
	root.Flags().BoolVarP(&version, "version", "v", false, "print which build this is, as the verb version does")
	root.SetHelpCommand(helpVerb(a))

	f := root.PersistentFlags()
	f.StringVar(&a.path, "path", defaultPath(), "directory of the peer (LATCHKEY_PATH)")
	f.StringVar(&a.apiAddr, "api", os.Getenv("LATCHKEY_API"), "unix socket of the daemon, or http(s)://HOST:PORT (LATCHKEY_API; default api.sock in --path)")
	f.StringVar(&a.tokenFile, "api-token-file", os.Getenv("LATCHKEY_API_TOKEN_FILE"), "file with the token for http(s) (LATCHKEY_API_TOKEN_FILE; else the token in LATCHKEY_API_TOKEN)")
	f.StringVar(&a.apiCA, "api-ca", os.Getenv("LATCHKEY_API_CA"), "file with the certificate authority to trust for https, in PEM (LATCHKEY_API_CA; default the system's)")
	f.DurationVar(&a.timeout, "timeout", 30*time.Second, "how long one call to the daemon may take, when a lock's group is asked 5s by default; 0 is no limit")
	f.StringVarP(&a.format, "output", "o", formatText, "text, json or jsonl")
	f.StringVar(&a.logLevel, "log-level", "warn", "debug, info, warn or error; of libraries: GOLOG_LOG_LEVEL")
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error {
		a.timeoutSet = c.Flags().Changed("timeout")
		return a.prepare()
	}
	for _, verb := range verbs {
		root.AddCommand(verb(a))
	}
	return root
}

// flagError says what to do about a flag that is wrong.
func flagError(c *cobra.Command, err error) error {
	var value *pflag.InvalidValueError
	if errors.As(err, &value) {
		f, v := value.GetFlag(), value.GetValue()
		if m := noUnit.FindStringSubmatch(err.Error()); m != nil {
			return fmt.Errorf("--%s %s: want a duration with its unit; write %ss for seconds", f.Name, v, m[1])
		}
		between, want := " ", ""
		switch f.Value.Type() {
		case "duration":
			want = "want a duration, like 30s or 2m"
		case "bool":
			between, want = "=", "want true or false" // a word that stands apart is none of its
		case "int", "uint", "int64", "uint64":
			if want = "want a whole number"; errors.Is(err, strconv.ErrRange) {
				want = "the number is too large"
			}
		}
		if want != "" {
			return fmt.Errorf("--%s%s%s: %s; see %s --help", f.Name, between, v, want, c.CommandPath())
		}
	}
	return fmt.Errorf("%w; see %s --help", err, c.CommandPath())
}

// noUnit matches what is said of a duration without a unit.
var noUnit = regexp.MustCompile(`missing unit in duration "(\d+(?:\.\d+)?)"`)

// group completes a verb that has subverbs: an unknown one, or none, is wrong usage.
func group(c *cobra.Command) *cobra.Command {
	c.SuggestionsMinimumDistance = 2
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		hint := ""
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			hint = fmt.Sprintf("did you mean %s? ", strings.Join(near, " or "))
		}
		return fmt.Errorf("unknown verb %q; %s%s --help lists them", args[0], hint, c.CommandPath())
	}
	c.RunE = func(c *cobra.Command, _ []string) error {
		return usagef("%s: which verb? %s --help lists them", c.Name(), c.CommandPath())
	}
	return c
}

// exactly says that a verb takes n arguments.
func exactly(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != n {
			verb := strings.TrimPrefix(c.CommandPath(), c.Root().Name()+" ")
			return fmt.Errorf("%s: got %d arguments; usage: %s", verb, len(args), c.UseLine())
		}
		return nil
	}
}

// atMost says that a verb takes up to n arguments.
func atMost(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) > n {
			return exactly(n)(c, args)
		}
		return nil
	}
}

// prepare checks the global flags and applies them.
func (a *app) prepare() error {
	if !slices.Contains([]string{formatText, formatJSON, formatJSONL}, a.format) {
		return fmt.Errorf("-o %s: use text, json or jsonl", a.format)
	}
	if a.timeout < 0 {
		return fmt.Errorf("--timeout %v: it must not be negative", a.timeout)
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, a.logLevel) {
		return fmt.Errorf("--log-level %s: use debug, info, warn or error", a.logLevel)
	}
	libraryLogs()
	if err := logging.SetLogLevelRegex("^latchkey/", a.logLevel); err != nil {
		return fmt.Errorf("--log-level: %w", err)
	}
	for _, note := range strangeVariables(os.Environ()) {
		a.note(note)
	}
	a.parsed = true
	return nil
}

// libraryLogs has libp2p log through us, so that its levels can be changed while a daemon runs (latchkey log level). The libraries below us
// log errors only, unless GOLOG_LOG_LEVEL says otherwise.
func libraryLogs() {
	first := func(string) slog.Level { return slog.LevelError }
	if os.Getenv("GOLOG_LOG_LEVEL") != "" {
		first = gologshim.ConfigFromEnv().LevelForSystem
	}
	everything := &slog.HandlerOptions{Level: slog.LevelDebug}
	var h slog.Handler = slog.NewTextHandler(os.Stderr, everything)
	if os.Getenv("GOLOG_LOG_FORMAT") == "json" || os.Getenv("GOLOG_LOG_FMT") == "json" {
		h = slog.NewJSONHandler(os.Stderr, everything)
	}
	if h = loglevels.Handler(h, first); os.Getenv("GOLOG_LOG_LEVEL") == "" {
		h = startSilently{h}
	}
	gologshim.SetDefaultHandler(h)
}

// startSilently drops what libp2p logs about a host that did not start: it comes back as an error too, which we print.
type startSilently struct{ slog.Handler }

// WithAttrs implements [slog.Handler]. libp2p names a part of itself so.
func (h startSilently) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		if a.Key == "logger" && a.Value.String() == "p2p-config" {
			return slog.DiscardHandler
		}
	}
	return h.Handler.WithAttrs(attrs)
}

// defaultPath is LATCHKEY_PATH, else .latchkey in the home directory, else here.
func defaultPath() string {
	if p := os.Getenv("LATCHKEY_PATH"); p != "" {
		return p
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ".latchkey"
	}
	return filepath.Join(home, ".latchkey")
}

// socket returns the address of the daemon's API.
func (a *app) socket() string {
	if a.apiAddr != "" {
		return a.apiAddr
	}
	return filepath.Join(a.path, "api.sock")
}

// call runs fn with a client of the daemon and a context that --timeout ends.
func (a *app) call(c *cobra.Command, fn func(ctx context.Context, daemon *api.Client) error) error {
	daemon, err := a.dial()
	if err != nil {
		return err
	}
	defer daemon.Close()
	ctx, cancel := a.bounded(c.Context())
	defer cancel()
	return a.explain(fn(ctx, daemon))
}

// bounded returns a context that --timeout ends.
func (a *app) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if a.timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, a.timeout, a.daemonSilent(a.timeout))
}

// denied says what to do where this user may not speak to the daemon's socket; "" where that is not what is wrong.
func (a *app) denied() string {
	conn, err := net.Dial("unix", a.socket())
	if err == nil {
		conn.Close()
	}
	return permissionAdvice(err)
}

// explain adds to the error of a call what to do when nobody answered it.
func (a *app) explain(err error) error {
	if exitCode(err) != exitUnreachable {
		return err
	}
	if info, statErr := os.Stat(a.apiAddr); a.apiAddr != "" && statErr == nil && info.IsDir() {
		return usagef("--api %s: it is a directory; name the daemon's socket, like %s", a.apiAddr, filepath.Join(a.apiAddr, "api.sock"))
	}
	if api.IsHTTP(a.socket()) {
		return fmt.Errorf("%w; a daemon answers there that was started with --api-listen, or has api.listen in its configuration", err)
	}
	if advice := a.denied(); advice != "" { // one may well run there
		return fmt.Errorf("%w; %s", err, advice)
	}
	start := "latchkey daemon" + a.pathFlag()
	if _, statErr := os.Stat(a.path); statErr != nil && a.apiAddr == "" {
		start = "latchkey init" + a.pathFlag() + " && " + start
	}
	if errors.Is(err, lockservice.ErrClosed) {
		err = fmt.Errorf("the daemon at %s is stopping: %w", a.socket(), err)
	}
	return fmt.Errorf("%w; start one with: %s (or name another by --api)", err, start)
}

// pathFlag is the --path that a command line needs to mean our directory.
func (a *app) pathFlag() string {
	if a.path == defaultPath() {
		return ""
	}
	return " --path " + a.path
}

// absolute makes a path good in any working directory.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}
