//go:build !linux

package main

import (
	"errors"

	"github.com/spf13/cobra"
)

// newBenchCommand says that the load generator, which is built on epoll, is not
// to be had on this system.
func newBenchCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "bench",
		Short: "Measure a broker (needs Linux)",
		RunE: func(*cobra.Command, []string) error {
			return errors.New("bench: needs Linux")
		},
	}
}
