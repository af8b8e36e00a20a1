package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"spillway/outputs"
)

// cmdEnv is `spillway env`: every variable with its effective value, and with
// --markdown the reference of all there are.
func cmdEnv(_ context.Context, args []string, stdout, stderr io.Writer, environ []string) int {
	switch {
	case len(args) == 0:
	case len(args) == 1 && args[0] == "--markdown":
		io.WriteString(stdout, reference())
		return exitOK
	default:
		fmt.Fprintf(stderr, "spillway env: unexpected %q: usage: spillway env [--markdown]\n", args)
		return exitUsage
	}
	c, err := loadConfig(environ)
	if err == nil {
		c.showSizes()
	}
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tVALUE\tDEFAULT\tORIGIN")
	for _, s := range c.settings {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", s.Name, s.shown(), redactOf(s.Name, s.Default), s.Origin)
	}
	w.Flush()
	for _, n := range c.Notes {
		fmt.Fprintln(stderr, "note:", n)
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
		return exitUsage
	}
	return exitOK
}

// showSizes gives the limits of the buffer that are not set their effective values.
// A disk that can't be asked leaves them empty: check says why.
func (c *Config) showSizes() {
	most, free, reserve, err := c.sizes()
	if err != nil {
		return
	}
	for name, v := range map[string]int64{"MAX_BYTES": most, "MIN_FREE": free, "RESERVE": reserve} {
		for _, s := range c.settings {
			if s.Name == prefix+"BUFFER_"+name && s.Value == "" {
				s.Value = outputs.Size(v).String()
			}
		}
	}
}

const referenceHead = `# Reference

Every setting of Spillway is an environment variable. This page is printed by ` + "`spillway env --markdown`" + `; ` + "`spillway env`" + ` prints what applies on a host,
and ` + "`spillway check`" + ` says what is wrong with it.

- A name that begins with SPILLWAY_ and is not known is an error at start, with the name that was probably meant. What Kubernetes injects for a service called
  spillway, SPILLWAY_SERVICE_… and SPILLWAY_PORT…, is ignored.
- An empty value is as good as none. Where words are to choose from, capitals count as small letters.
- A size is bytes, or a number with KiB, MiB or GiB. A duration is a number with ms, s, m or h, as in 500ms or 1m30s. A boolean is true or false (also yes, no,
  on, off, 1, 0). A list has commas between its values.
- Names of inputs, outputs and lanes are 1 to 16 of a-z and 0-9, a letter first; no lane is called failover or large. In a variable the name is in capitals:
  the URL of output hub is SPILLWAY_OUTPUT_HUB_URL.
- Where a variable is marked *secret*, the same name with _FILE at its end names a file that holds the value.
- SPILLWAY_ENV_FILE names a file of KEY=VALUE lines with # before comments, which have lines of their own; a value may stand in quotes, nothing is expanded. The
  environment wins over it.
`

// reference is docs/reference.md.
func reference() string {
	var b strings.Builder
	b.WriteString(referenceHead)
	settings := func(dst any, under string) []*setting {
		e := newEnvironment(nil)
		e.parse(dst, under, nil)
		return e.settings
	}
	table(&b, "General", "", settings(&Config{}, prefix))
	table(&b, "Failover", "With more than one output.", settings(&FailoverConfig{}, prefix))
	table(&b, "Buffer", "Each lane has a buffer in `<STATE_DIR>/buffer/<lane>`, with these limits.", settings(&BufferConfig{}, prefix+"BUFFER_"))
	table(&b, "Batches", "An open batch is sealed when it reaches one of these.", settings(&BatchConfig{}, prefix+"BATCH_"))
	table(&b, "Inputs", "For each name in SPILLWAY_INPUTS.", settings(&Input{}, prefix+"INPUT_<NAME>_"))
	vaultTable(&b)
	table(&b, "Outputs", "For each name in SPILLWAY_OUTPUTS. What else there is depends on the URL.", settings(&outputURL{}, prefix+"OUTPUT_<NAME>_"))
	for _, k := range kinds {
		table(&b, "Outputs: "+k.name, fmt.Sprintf("With a URL as in `%s`.", k.example), k.options(prefix+"OUTPUT_<NAME>_"))
	}
	refusedTable(&b)
	return b.String()
}

// vaultTable lists the defaults that PARSE=vault changes.
func vaultTable(b *strings.Builder) {
	const under = prefix + "INPUT_<NAME>_"
	e := newEnvironment(nil)
	e.parse(&Input{}, under, nil)
	changed := map[string]string{}
	(&Input{Socket: "tcp"}).vaultDefaults(changed, "tcp")
	more := map[string]string{
		"ON_FULL":   " where connections can be refused; else drop for datagrams, and block for a unix socket that systemd holds open",
		"SO_RCVBUF": " for tcp and tls",
	}
	b.WriteString("\n### Inputs of audit entries\n\nWith PARSE=vault, which an input called vault has unless it is set, these defaults are others.\n\n| variable | default |\n|---|---|\n")
	for _, s := range e.settings {
		option := strings.TrimPrefix(s.Name, under)
		if v, ok := changed[option]; ok {
			fmt.Fprintf(b, "| `%s` | `%s`%s |\n", s.Name, v, more[option])
		}
	}
}

// refusedTable lists what people may look for and not find.
func refusedTable(b *strings.Builder) {
	b.WriteString("\n## Names that are refused\n\nOptions of syslog-ng, of Elastic's integrations and of Vault's audit devices, and settings that do not exist yet, under the names that one would give them here. They change nothing, so that a start with one fails and says what to use instead.\n\n")
	b.WriteString("| variable | what to use instead |\n|---|---|\n")
	name := strings.NewReplacer("INPUT/*/", "INPUT_<NAME>_", "OUTPUT/*/", "OUTPUT_<NAME>_", "*", "…")
	prose := strings.NewReplacer("|", `\|`, "<", `\<`)
	for _, r := range refused {
		var names []string
		for _, p := range r.patterns {
			names = append(names, "`"+prefix+name.Replace(p)+"`")
		}
		fmt.Fprintf(b, "| %s | %s |\n", strings.Join(names, ", "), prose.Replace(r.what))
	}
}

func table(b *strings.Builder, title, text string, settings []*setting) {
	fmt.Fprintf(b, "\n## %s\n\n", title)
	if text != "" {
		fmt.Fprintf(b, "%s\n\n", text)
	}
	b.WriteString("| variable | default | meaning |\n|---|---|---|\n")
	secret := map[string]bool{}
	for _, s := range settings {
		secret[s.Name] = s.Secret
	}
	cell, prose := strings.NewReplacer("|", `\|`), strings.NewReplacer("|", `\|`, "<", `\<`)
	for _, s := range settings {
		if plain, ok := strings.CutSuffix(s.Name, "_FILE"); ok && secret[plain] {
			continue // said in the head
		}
		doc := prose.Replace(s.Doc)
		if s.Secret && !s.File {
			doc += " (*secret*)"
		}
		def := s.Default
		if def != "" && s.Value != "" {
			def = "`" + cell.Replace(def) + "`"
		} else {
			def = prose.Replace(def)
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", s.Name, def, doc)
	}
}
