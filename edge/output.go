package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"spillway/outputs"
)

// OutputConfig is one output of SPILLWAY_OUTPUTS.
type OutputConfig struct {
	Name string
	URL  string // as it was set: it may hold a password
	Kind string // jetstream, s3 or file

	Place   string       // what no other output of its kind may have
	Largest outputs.Size // batch that it takes as a rule; 0: any
	Quiet   bool         // Open talks to nobody and changes nothing

	// Open makes the output. It waits for nobody: an error is one of the settings.
	Open func(OpenEnv) (outputs.Inspector, error)
}

// outputURL is the variable that all outputs share.
type outputURL struct {
	URL string `env:"URL" doc:"the far side; it says which kind of output this is" default:"file://<STATE_DIR>/outbox for an output called outbox"`
}

// OpenEnv is what an output must know beyond its own variables.
type OpenEnv struct {
	Site, Agent string
	Log         *slog.Logger
}

// kind is a kind of outputs. Each is in a file of its own with a build tag.
type kind struct {
	name    string
	schemes []string // of URLs
	example string   // a URL

	// config returns a pointer to the kind's Config, whose tags are its variables.
	config func() any
	// url puts the output's URL into config.
	url func(config any, url string) error
	// fit adjusts defaults to what was set; nil: there is nothing to adjust.
	fit func(e *environment, under string, config any)
	// place says where config sends to: no two outputs send to one place.
	place func(config any) string
	// largest is the largest batch that such an output takes as a rule; 0: any.
	largest func(config any) outputs.Size
	// quiet: open talks to nobody and changes nothing.
	quiet bool
	// open makes an output. It waits for nobody.
	open func(config any, name string, env OpenEnv) (outputs.Inspector, error)
	// source reads back what such outputs stored.
	source func(ctx context.Context, url string) (outputs.Source, error)
}

// kinds are those of this binary. They are added by the init of their files.
var kinds []kind

// schemes are all URL schemes of outputs and the kind that speaks them, also
// when this binary was built without it.
var schemes = map[string]string{
	"nats": "jetstream", "tls": "jetstream", "ws": "jetstream", "wss": "jetstream", "s3": "s3", "file": "file",
}

// output reads SPILLWAY_OUTPUT_<NAME>_*. It returns false when the URL does not
// say which kind of output it is.
func (c *Config) output(e *environment, name string) (OutputConfig, bool) {
	under := prefix + "OUTPUT_" + strings.ToUpper(name) + "_"
	defaults := map[string]string{"URL": ""}
	if name == "outbox" {
		defaults["URL"] = (&url.URL{Scheme: "file", Path: filepath.Join(c.StateDir, "outbox")}).String()
	}
	var u outputURL
	e.parse(&u, under, defaults)
	if u.URL == "" {
		e.problem(under+"URL", "not set: say where output %s sends to, as in %s", name, or(examples()))
		return OutputConfig{}, false
	}
	k := c.kindOf(e, under+"URL", u.URL)
	if k == nil {
		return OutputConfig{}, false
	}
	return c.open(e, k, name, u.URL), true
}

// kindOf returns the kind of outputs that url is for, nil after a problem.
func (c *Config) kindOf(e *environment, variable, raw string) *kind {
	scheme, _, ok := strings.Cut(raw, "://")
	scheme = strings.ToLower(scheme)
	switch i := slices.IndexFunc(kinds, func(k kind) bool { return slices.Contains(k.schemes, scheme) }); {
	case i >= 0 && ok:
		return &kinds[i]
	case !ok:
		e.problem(variable, "has no scheme: write it as in %s", or(examples()))
	case schemes[scheme] != "":
		e.problem(variable, "this binary was built without %s (tag no_%s): use one with it", schemes[scheme], schemes[scheme])
	case strings.HasPrefix(scheme, "syslog"):
		e.problem(variable, "this version has no syslog outputs: use %s", or(examples()))
	default:
		e.problem(variable, "%s is no kind of output: use %s", scheme, or(examples()))
	}
	return nil
}

func examples() (s []string) {
	for _, k := range kinds {
		s = append(s, k.example)
	}
	return s
}

// open reads the variables of one output of kind k.
func (c *Config) open(e *environment, k *kind, name, url string) OutputConfig {
	under := prefix + "OUTPUT_" + strings.ToUpper(name) + "_"
	config, before := k.config(), len(e.problems)
	e.parse(config, under, nil)
	if k.fit != nil {
		k.fit(e, under, config)
	}
	if err := k.url(config, url); err != nil {
		e.problem(under+"URL", "%v", err)
	} else if v, ok := config.(validator); ok && len(e.problems) == before {
		for line := range strings.Lines(errorText(v.Validate())) {
			option, what, _ := strings.Cut(strings.TrimSpace(line), ": ")
			option, _, _ = strings.Cut(option, "=")
			e.problem(under+option, "%s", what)
		}
	}
	return OutputConfig{Name: name, URL: url, Kind: k.name, Place: k.place(config), Largest: k.largest(config), Quiet: k.quiet, Open: func(env OpenEnv) (outputs.Inspector, error) {
		o, err := k.open(config, name, env)
		if err != nil {
			return nil, settingError{k.named(err, name)}
		}
		return o, nil
	}}
}

// named begins the text of err with the variable that it is about, if it begins with
// an option, as those of Validate do.
func (k *kind) named(err error, name string) error {
	text := strings.TrimPrefix(err.Error(), "output "+name+": ")
	option, what, _ := strings.Cut(text, ": ")
	if slices.ContainsFunc(k.options(""), func(s *setting) bool { return s.Name == option }) {
		return errors.New(prefix + "OUTPUT_" + strings.ToUpper(name) + "_" + option + ": " + what)
	}
	return fmt.Errorf("output %s: %s", name, text)
}

// validator is an output's Config that can judge itself. Its error has a line
// for each problem, each beginning with the variable behind SPILLWAY_OUTPUT_<NAME>_.
type validator interface{ Validate() error }

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// otherKind returns the kind of outputs that has the option of variable, "" when
// there is none.
func otherKind(variable, label string) string {
	option := strings.TrimPrefix(variable, prefix+"OUTPUT_"+strings.ToUpper(label)+"_")
	for _, k := range kinds {
		if slices.ContainsFunc(k.options(""), func(s *setting) bool { return s.Name == option }) {
			return k.name
		}
	}
	return ""
}

// options are the variables of outputs of kind k.
func (k *kind) options(under string) []*setting {
	e := newEnvironment(nil)
	e.parse(k.config(), under, nil)
	return e.settings
}
