package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"latchkey/internal/durablefile"
	"latchkey/node"
	"latchkey/node/config"
)

func configVerb(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "config",
		Short: "show and change the configuration of the peer in --path",
		Long: `The configuration is config.yaml in --path. Over its values go those of the environment, LATCHKEY_NETWORK_LISTEN
and so on, and over these the flags of "latchkey daemon". A daemon reads it when it starts.

The fields:
` + fieldTable(),
		Example: `  latchkey config show
  latchkey config set network.announce /dns/build1.example/tcp/4701
  latchkey config unset network.announce
  LATCHKEY_NETWORK_MDNS=false latchkey daemon`,
	})
	c.AddCommand(configShowVerb(a), configGetVerb(a), configSetVerb(a), configUnsetVerb(a), configEditVerb(a))
	return c
}

// fieldTable explains every field.
func fieldTable() string {
	var b strings.Builder
	for _, f := range config.Fields() {
		fmt.Fprintf(&b, "  %-19s %s: %s\n", f.Name, f.Doc, f.Want)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// fieldValue is a field as show and get print it.
type fieldValue struct {
	Field  string `json:"field"`
	Value  any    `json:"value"` // true or false, a number, a string, or a list of strings
	Source string `json:"source"`
	text   string
}

func valueOf(l config.Loaded, name string) (fieldValue, error) {
	text, err := config.Get(l.Config, name)
	if err != nil {
		return fieldValue{}, usagef("%w%s", err, fieldMeant(name))
	}
	v := fieldValue{Field: name, Source: l.Source(name), text: text}
	for _, f := range config.Fields() {
		if f.Name == name {
			v.Value = f.Value(l.Config)
		}
	}
	return v, nil
}

// fieldMeant names the fields that end as a name that is none.
func fieldMeant(name string) string {
	var near []string
	for _, f := range config.Fields() {
		if strings.HasSuffix(f.Name, "."+name) {
			near = append(near, f.Name)
		}
	}
	if len(near) == 0 {
		return ""
	}
	return "; did you mean " + strings.Join(near, " or ") + "?"
}

// loadConfig reads what a daemon without flags would run with.
func (a *app) loadConfig() (config.Loaded, error) {
	if _, err := a.peekDir(); err != nil {
		return config.Loaded{}, err
	}
	return config.Load(node.ConfigFile(a.path), os.Environ(), nil)
}

func configShowVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "list every field, its value, and where that comes from",
		Example: `  latchkey config show
  latchkey config show -o json`,
		Args: exactly(0),
		RunE: func(*cobra.Command, []string) error {
			l, err := a.loadConfig()
			if err != nil {
				return err
			}
			var all []fieldValue
			for _, f := range config.Fields() {
				v, err := valueOf(l, f.Name)
				if err != nil {
					return err
				}
				all = append(all, v)
			}
			return a.list("fields", anys(all), func(w io.Writer) {
				fmt.Fprintf(w, "FIELD\tVALUE\tFROM\n")
				for _, v := range all {
					shown, source := strings.Split(v.text, ","), v.Source
					for i, s := range shown { // lists take a line for each entry
						name := v.Field
						if i > 0 {
							name, source = "", ""
						}
						fmt.Fprintf(w, "%s\t%s\t%s\n", name, s, source)
					}
				}
			})
		},
	}
}

func configGetVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "get FIELD",
		Short:             "print a field's value; lists are joined by commas",
		Example:           `  latchkey config get network.listen`,
		Args:              exactly(1),
		ValidArgsFunction: completeField,
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := a.loadConfig()
			if err != nil {
				return err
			}
			v, err := valueOf(l, args[0])
			if err != nil {
				return err
			}
			return a.value(v, func(w io.Writer) { fmt.Fprintln(w, v.text) })
		},
	}
}

func configSetVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "set FIELD VALUE",
		Short: "set a field in the file; lists are joined by commas",
		Example: `  latchkey config set network.listen /ip4/0.0.0.0/tcp/4701,/ip6/::/tcp/4701
  latchkey config set network.mdns false
  latchkey config set network.announce ""`,
		Args:              exactly(2),
		ValidArgsFunction: completeField,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.configChange(cmd.Context(), args[0], func(c config.Config) (config.Config, error) { return config.Set(c, args[0], args[1]) })
		},
	}
}

func configUnsetVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "unset FIELD",
		Short: "take a field out of the file, so that it has its profile's default again",
		Example: `  latchkey config unset network.listen
  latchkey config unset network.mdns`,
		Args:              exactly(1),
		ValidArgsFunction: completeField,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.configChange(cmd.Context(), args[0], func(c config.Config) (config.Config, error) { return config.Unset(c, args[0]) })
		},
	}
}

// configChange puts another value of a field into the file.
func (a *app) configChange(ctx context.Context, field string, change func(config.Config) (config.Config, error)) (err error) {
	if _, err := a.peekDir(); err != nil && !errors.Is(err, config.ErrInvalid) {
		return err // before a lock is made where no peer is
	}
	unlock, err := a.lockConfig(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	dir, err := a.peekDir()
	if errors.Is(err, config.ErrInvalid) {
		return fmt.Errorf("%w; mend it by: latchkey config edit%s", err, a.pathFlag())
	} else if err != nil {
		return err
	}
	c, err := change(dir.Config)
	if err == nil {
		err = c.Validate(dir.SwarmKey != nil)
	}
	if err != nil {
		return usagef("%w%s", err, fieldMeant(field))
	}
	if err := config.Write(node.ConfigFile(a.path), c); err != nil {
		return err
	}
	a.changed(field)
	return nil
}

// lockConfig keeps other changes of the configuration out, for the moment that one takes.
func (a *app) lockConfig(ctx context.Context) (unlock func() error, err error) {
	ctx, cancel := context.WithTimeout(ctx, configLockWait)
	defer cancel()
	return node.LockConfig(ctx, a.path)
}

// configLockWait is how long a change of the configuration waits for others.
const configLockWait = 5 * time.Second

// changed says what a change of the file does not do. An empty field stands for any.
func (a *app) changed(field string) {
	for _, f := range config.Fields() {
		if (f.Name == field || field == "") && os.Getenv(f.Env()) != "" {
			fmt.Fprintf(a.err, "latchkey: note: %s is set in the environment, and goes before what is in the file\n", f.Env())
		}
	}
	fmt.Fprintln(a.err, "latchkey: note: a daemon reads the configuration when it starts")
}

func configEditVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "edit",
		Short: "open the file in $VISUAL or $EDITOR, and take it if it is in order",
		Example: `  latchkey config edit
  EDITOR=nano latchkey config edit`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error { return a.configEdit(c.Context()) },
	}
}

// configEdit lets an editor change a draft, which replaces the file when it is in order. What is not stays beside it, and is where
// the next edit begins, unless the file has changed since.
func (a *app) configEdit(ctx context.Context) (err error) {
	if _, err := a.peekDir(); err != nil && !errors.Is(err, config.ErrInvalid) {
		return err
	}
	psk, err := node.ReadSwarmKey(a.path)
	if err != nil {
		return err
	}
	file := node.ConfigFile(a.path)
	draft := node.ConfigDraft(a.path)
	before, err := durablefile.Read(file, config.FileBytesMax)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("config: %w", err)
	}
	switch former, err := durablefile.Read(draft, config.FileBytesMax); {
	case errors.Is(err, os.ErrNotExist):
		if err := durablefile.Replace(draft, before, 0o600); err != nil { // whole from the beginning: it may be where the next edit goes on
			return fmt.Errorf("config: %w", err)
		}
	case err != nil:
		return fmt.Errorf("config: %w", err)
	case bytes.Equal(former, before): // of an edit that was killed
	case older(draft, file): // it would take back what has been changed since
		return fmt.Errorf("config: the draft of a former edit, %s, is older than %s; to edit the file as it is, drop the draft: rm %s", draft, file, draft)
	default:
		fmt.Fprintf(a.err, "latchkey: note: going on with the draft of a former edit, %s\n", draft)
	}
	edited := runEditor(ctx, draft)
	after, err := durablefile.Read(draft, config.FileBytesMax)
	if err != nil {
		return fmt.Errorf("config: %w", errors.Join(edited, err))
	}
	blank, same := len(bytes.TrimSpace(after)) == 0, bytes.Equal(before, after)
	if blank || same { // it holds no work of anybody's
		if err := durablefile.Remove(draft); err != nil {
			return fmt.Errorf("config: %w", err)
		}
	}
	switch {
	case edited != nil && (blank || same):
		return fmt.Errorf("config: %w; nothing was changed", edited)
	case edited != nil:
		return fmt.Errorf("config: %w; nothing was changed, the draft is kept: %s", edited, a.draftHelp(draft))
	case blank && !same:
		return errors.New("config: the file was emptied, which ends the edit; nothing was changed")
	}
	edit := draft
	if same {
		edit = file // which may have been out of order before
	}
	l, err := config.Load(edit, nil, nil)
	if err == nil {
		err = l.Validate(psk != nil)
	}
	switch {
	case err != nil && same:
		return fmt.Errorf("%w; nothing was changed", err)
	case err != nil:
		return fmt.Errorf("%w; nothing was changed, the draft is kept: %s", err, a.draftHelp(draft))
	case same:
		fmt.Fprintln(a.err, "latchkey: note: nothing was changed")
		return nil
	}
	unlock, err := a.lockConfig(ctx)
	if err != nil {
		return fmt.Errorf("%w; nothing was changed, the draft is kept: %s", err, a.draftHelp(draft))
	}
	defer func() { err = errors.Join(err, unlock()) }()
	switch now, err := durablefile.Read(file, config.FileBytesMax); {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("config: %w", err)
	case !bytes.Equal(now, before):
		return fmt.Errorf("config: %s was changed while you edited; nothing was changed by the edit, and its draft is kept: see diff %s %s", file, file, draft)
	}
	if err := durablefile.Replace(file, after, 0o600); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	a.changed("")
	return durablefile.Remove(draft)
}

// draftHelp says what can be done about a draft.
func (a *app) draftHelp(draft string) string {
	return fmt.Sprintf("latchkey config edit%s goes on with it, rm %s drops it", a.pathFlag(), draft)
}

// older reports whether one file was last changed before another. One that is not there is not.
func older(file, other string) bool {
	f, err1 := os.Stat(file)
	o, err2 := os.Stat(other)
	return err1 == nil && err2 == nil && f.ModTime().Before(o.ModTime())
}

// runEditor runs the user's editor on a file.
func runEditor(ctx context.Context, file string) error {
	editor := os.Getenv("VISUAL")
	if editor == "" {
		editor = os.Getenv("EDITOR")
	}
	if editor == "" {
		editor = "vi"
	}
	words := strings.Fields(editor) // such as: code --wait
	if len(words) == 0 {
		return errors.New("EDITOR is blank")
	}
	e := exec.CommandContext(ctx, words[0], append(words[1:], file)...)
	e.Stdin, e.Stdout, e.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := e.Run(); err != nil {
		return fmt.Errorf("editor %s: %w", words[0], err)
	}
	return nil
}

// completeField completes the first argument.
func completeField(_ *cobra.Command, args []string, _ string) (names []string, _ cobra.ShellCompDirective) {
	if len(args) == 0 {
		for _, f := range config.Fields() {
			names = append(names, f.Name+"\t"+f.Doc)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
