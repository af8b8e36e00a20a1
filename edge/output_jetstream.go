//go:build !no_jetstream

package main

import (
	"context"

	"spillway/buffer/batch"
	"spillway/outputs"
	"spillway/outputs/jetstream"
)

func init() {
	kinds = append(kinds, kind{
		name: "jetstream", schemes: []string{"nats", "tls", "ws", "wss"}, example: "nats://host:4222",
		config: func() any { return new(jetstream.Config) },
		url: func(config any, raw string) error {
			config.(*jetstream.Config).Servers = raw
			return nil // Validate looks at it
		},
		place: func(config any) string { // servers of one name may lead to several domains and streams
			c := config.(*jetstream.Config)
			return c.Servers + " " + c.Domain + " " + c.Stream + " " + c.Subject
		},
		largest: func(any) outputs.Size { return batch.MaxPayload },
		open: func(config any, name string, env OpenEnv) (outputs.Inspector, error) {
			return jetstream.New(name, env.Site, env.Agent, *config.(*jetstream.Config), env.Log)
		},
		source: func(ctx context.Context, raw string) (outputs.Source, error) {
			return jetstream.NewSource(ctx, raw, jetstream.Config{})
		},
	})
}
