package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/herald-mqtt/herald/broker/config"
)

func newConfigCommand() *cobra.Command {
	check := &cobra.Command{
		Use:   "check FILE",
		Short: "Say whether a configuration file is valid, and what is wrong if not",
		Args:  exactly(1, "one FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			// The environment of this shell is not part of the file.
			if _, err := config.Load(config.Sources{File: args[0]}); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: valid\n", args[0])
			return err
		},
	}
	show := &cobra.Command{
		Use:   "print",
		Short: "Show the configuration in force, from file, environment and flags, secrets masked",
		Args:  exactly(0, ""),
	}
	from := sources(show)
	show.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := loadConfig(from())
		if err != nil {
			return err
		}
		text, err := c.Print()
		if err != nil {
			return err
		}
		_, err = cmd.OutOrStdout().Write(text)
		return err
	}
	return group("config", "Check and show configuration", check, show)
}
