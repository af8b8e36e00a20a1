package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"

	"spillway/outputs"
	"spillway/outputs/file"
)

func init() {
	kinds = append(kinds, kind{
		name: "file", schemes: []string{"file"}, example: "file:///var/spool/spillway",
		config: func() any { return new(file.Config) },
		url: func(config any, raw string) (err error) {
			config.(*file.Config).Dir, err = fileDir(raw)
			return err
		},
		fit: func(e *environment, under string, config any) {
			if c := config.(*file.Config); c.MaxBytes > 0 && c.RollBytes > c.MaxBytes && !e.has(under+"ROLL_BYTES") {
				c.RollBytes = c.MaxBytes
				e.follow(under+"ROLL_BYTES", c.RollBytes.String())
			}
		},
		place:   func(config any) string { return config.(*file.Config).Dir },
		largest: func(config any) outputs.Size { return config.(*file.Config).MaxBytes },
		open: func(config any, name string, env OpenEnv) (outputs.Inspector, error) {
			return file.New(name, env.Site, *config.(*file.Config))
		},
		source: func(_ context.Context, raw string) (outputs.Source, error) {
			dir, err := fileDir(raw)
			if err != nil {
				return nil, err
			}
			return file.NewSource(dir), nil
		},
	})
}

// fileDir returns the directory of file:///dir.
func fileDir(raw string) (string, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return "", urlCause(err)
	case u.Host != "":
		return "", fmt.Errorf("%q stands where a host would: write three slashes, as in file:///%s", u.Host, u.Host+u.Path)
	case u.RawQuery != "" || u.Fragment != "":
		return "", errors.New("has more than a path: write ? and # in it as %3F and %23")
	case u.Path == "" || u.Path == "/":
		return "", errors.New("names no directory: write it as in file:///var/spool/spillway")
	}
	return filepath.Clean(u.Path), nil
}
