// Command herald is an MQTT 3.1.1 and 5.0 broker with its tools: see
// "herald help".
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/herald-mqtt/herald/broker/config"
)

// Exit statuses, on which scripts may rely.
const (
	exitDone    = 0 // done
	exitFailed  = 1 // failed at work
	exitUsage   = 2 // wrong command line
	exitRefused = 3 // configuration or environment refused
)

// exitError is an error with the exit status that it ends the program with.
type exitError struct {
	status int
	err    error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func usage(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

func refused(err error) error { return &exitError{exitRefused, err} }

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the program: it returns the exit status, and has said why on errs if
// that is not 0.
func run(args []string, in io.Reader, out, errs io.Writer) int {
	root := newRoot()
	root.SetArgs(joinProperties(root, args))
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errs)
	err := root.ExecuteContext(context.Background())
	if err == nil {
		return exitDone
	}
	fmt.Fprintln(errs, "herald: "+oneLine(err.Error()))
	var e *exitError
	var c *config.Error
	switch {
	case errors.As(err, &e):
		return e.status
	case errors.As(err, &c):
		return exitRefused
	}
	return exitFailed
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "herald",
		Short: "An MQTT 3.1.1 and 5.0 broker that keeps its promise",
		Long: `Herald is an MQTT broker. A message that it has acknowledged reaches every
matching session, in order; QoS 2 reaches it exactly once.

Exit status: 0 done, 1 failed at work, 2 wrong command line, 3 configuration or
environment refused. One line on standard error says why.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage("unknown command %q; \"herald help\" lists them", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Usage()
			return usage("which command?")
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage("%s: %v", cmd.Name(), err)
	})
	root.AddCommand(
		newServeCommand(openNode),
		newConfigCommand(),
		newSchemaCommand(),
		newCtlCommand(),
		newPubCommand(),
		newSubCommand(),
		newBenchCommand(),
		newVersionCommand(),
	)
	return root
}

// exactly wants n arguments.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			if n == 0 {
				return usage("%s: takes no arguments, got %q", cmd.CommandPath(), args[0])
			}
			return usage("%s: wants %s", cmd.CommandPath(), what)
		}
		return nil
	}
}

// group is a command that only has commands.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use:   use,
		Short: short,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage("unknown command %q for %q", args[0], cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			var names []string
			for _, sub := range cmd.Commands() {
				names = append(names, sub.Name())
			}
			return usage("%s: wants one of: %s", cmd.CommandPath(), strings.Join(names, ", "))
		},
	}
	c.AddCommand(commands...)
	return c
}

// sources are the flags with which a command is told its configuration.
func sources(cmd *cobra.Command) func() config.Sources {
	file := cmd.Flags().String("config", "", "configuration `FILE` (YAML); without it the defaults")
	set := cmd.Flags().StringArray("set", nil, "`key=value` over file and environment, as often as needed")
	return func() config.Sources {
		return config.Sources{File: *file, Environ: os.Environ(), Set: *set}
	}
}

func loadConfig(s config.Sources) (config.Config, error) {
	for _, kv := range s.Set {
		if !strings.Contains(kv, "=") {
			return config.Config{}, usage("--set %s: want key=value", kv)
		}
	}
	return config.Load(s)
}

// interrupted ends with SIGINT or SIGTERM.
func interrupted(parent context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(parent, syscall.SIGINT, syscall.SIGTERM)
}
