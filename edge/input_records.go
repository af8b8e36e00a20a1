package main

import (
	"cmp"
	"strings"
	"time"

	"spillway/framing/ecs"
	"spillway/framing/syslog"
)

// parseOptions checks what is read out of messages.
func (in *Input) parseOptions(e *environment, under string) {
	switch p := strings.ToLower(in.ParseName); p {
	case "none":
	case "vault":
		e.problem(under+"PARSE", "this version does not know Vault's entries: use none, and the entries are kept as they are")
	default:
		f, err := syslog.ParseFormat(p)
		if err != nil {
			e.problem(under+"PARSE", "unknown: use auto, rfc3164, rfc5424 or none")
		}
		in.Parse, in.Format = true, f
	}
	loc, err := time.LoadLocation(in.TimezoneName)
	if err != nil {
		e.problem(under+"TIMEZONE", "%v: use Local, UTC or a name such as Europe/Berlin (names need the system's tzdata)", err)
		loc = time.Local
	}
	in.Timezone = loc
}

// records checks what goes into the records.
func (in *Input) records(e *environment, under string, c *Config) {
	// Each is looked at alone, so that the problem has a name.
	for _, o := range []struct {
		variable string
		options  ecs.Options
	}{
		{"DATASET", ecs.Options{Dataset: in.Dataset}},
		{"TAGS", ecs.Options{Tags: in.Tags}},
		{"PIPELINE", ecs.Options{Pipeline: in.Pipeline}},
	} {
		o.options.Agent = "agent"
		o.options.Dataset = cmp.Or(o.options.Dataset, "generic")
		if err := o.options.Validate(); err != nil {
			e.problem(under+o.variable, "%s", withoutValue(err, e.vars[under+o.variable].text))
		}
	}
	if c.Encoding == "raw" {
		for _, o := range []string{"PARSE", "DATASET", "PIPELINE", "TAGS", "TIMEZONE", "PRESERVE_ORIGINAL"} {
			if e.has(under+o) && !(o == "PARSE" && !in.Parse) { // PARSE=none says the same
				e.problem(under+o, "changes nothing with SPILLWAY_ENCODING=raw, where a record is the message and nothing else: remove it")
			}
		}
	} else if !in.Parse && e.has(under+"TIMEZONE") {
		e.problem(under+"TIMEZONE", "changes nothing with %sPARSE=none: remove it", under)
	}
}
