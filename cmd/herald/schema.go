package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker"
	"github.com/herald-mqtt/herald/broker/config"
	"github.com/herald-mqtt/herald/persistence/pebble"
	"github.com/herald-mqtt/herald/persistence/scylla"
)

// schema is what the commands need of a store engine.
type schema struct {
	// version is 0 for have if there is no data yet. It changes nothing.
	version func(config.Config) (have, want uint32, err error)
	// apply makes or migrates, and says nothing if there is nothing to do.
	apply func(config.Config) error
}

// engine is the schema of the store that the configuration names.
func engine(c config.Config) schema {
	if c.Store.Engine == config.Scylla {
		return shared
	}
	return embedded
}

// where names the data.
func where(c config.Config) string {
	if c.Store.Engine == config.Scylla {
		return c.Store.Scylla.Keyspace
	}
	return c.Node.Data
}

// schemaPatience is for a shared store: another program may be migrating.
const schemaPatience = 2 * time.Minute

var shared = schema{
	version: func(c config.Config) (have, want uint32, err error) {
		o, err := broker.SharedStore(c, zap.NewNop())
		if err != nil {
			return 0, 0, err
		}
		ctx, cancel := context.WithTimeout(context.Background(), schemaPatience)
		defer cancel()
		st, err := scylla.SchemaStatus(ctx, o)
		return uint32(st.Version), uint32(st.Newest), err
	},
	apply: func(c config.Config) error {
		o, err := broker.SharedStore(c, zap.NewNop())
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), schemaPatience)
		defer cancel()
		_, err = scylla.ApplySchema(ctx, o)
		return err
	},
}

var embedded = schema{
	version: func(c config.Config) (uint32, uint32, error) { return pebble.SchemaVersion(c.Node.Data) },
	apply: func(c config.Config) error {
		s, err := pebble.Open(c.Node.Data, pebble.Options{Logger: zap.NewNop()})
		if err != nil {
			return err
		}
		return s.Close()
	},
}

func newSchemaCommand() *cobra.Command {
	return group("schema", "Version of the stored data",
		newSchemaStep("status", "Show the version of the stored data", func(c config.Config, out io.Writer) error {
			return engine(c).status(c, out)
		}),
		newSchemaStep("apply", "Make the store's schema, or bring it up to this release; with the embedded store, the node must not run", func(c config.Config, out io.Writer) error {
			s := engine(c)
			if err := s.apply(c); err != nil {
				return refused(err)
			}
			return s.status(c, out)
		}))
}

func newSchemaStep(use, short string, run func(config.Config, io.Writer) error) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: exactly(0, "")}
	from := sources(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := loadConfig(from())
		if err != nil {
			return err
		}
		return run(c, cmd.OutOrStdout())
	}
	return cmd
}

// status prints one line. Data of a newer release is refused, as serve would.
func (s schema) status(c config.Config, out io.Writer) error {
	have, want, err := s.version(c)
	switch {
	case errors.Is(err, herald.ErrInUse):
		return refused(fmt.Errorf("%w: stop the node first", err))
	case err != nil:
		return refused(err)
	case have > want:
		return refused(fmt.Errorf("%s: schema %d, this release knows up to %d: %w", where(c), have, want, herald.ErrSchemaNewer))
	}
	state := "up to date"
	switch {
	case have == 0:
		state = "not made yet"
	case have < want:
		state = "to be migrated"
	}
	_, err = fmt.Fprintf(out, "store %s %s: schema %d of %d, %s\n", c.Store.Engine, where(c), have, want, state)
	return err
}
