package main

import (
	"cmp"
	"errors"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"spillway/edge/pipeline"
	"spillway/framing/ecs"
	"spillway/framing/syslog"
)

// parseOptions checks what is read out of messages.
func (in *Input) parseOptions(e *environment, under string) {
	switch p := strings.ToLower(in.ParseName); p {
	case "none", "vault":
	default:
		f, err := syslog.ParseFormat(p)
		if err != nil {
			e.problem(under+"PARSE", "unknown: use auto, rfc3164, rfc5424, vault or none")
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

// severities are the names of severities, the most severe first (RFC 5424 section
// 6.2.1), with what else they are called.
var severities = [][]string{{"emerg", "emergency", "panic"}, {"alert"}, {"crit", "critical"}, {"err", "error"}, {"warning", "warn"}, {"notice"}, {"info", "informational"}, {"debug"}}

// severity is the number of a severity, by number or name; -1: it is none.
func severity(text string) int {
	text = strings.ToLower(text)
	for n, names := range severities {
		if text == strconv.Itoa(n) || slices.Contains(names, text) {
			return n
		}
	}
	return -1
}

// filter reads which messages become no record.
func (in *Input) filter(e *environment, under string) {
	const above, regex = "DROP_SEVERITY_ABOVE", "DROP_REGEX"
	f := pipeline.Filter{SeverityAbove: -1}
	if !in.Parse {
		e.idle(under+above, "changes nothing with %sPARSE=%s, which reads no severity: remove it", under, strings.ToLower(in.ParseName))
	} else if in.DropSeverityAbove != "" {
		f.SeverityAbove = severity(in.DropSeverityAbove)
		switch f.SeverityAbove {
		case -1:
			e.problem(under+above, "no severity: use emerg, alert, crit, err, warning, notice or info, or 0 to 6")
		case len(severities) - 1:
			e.problem(under+above, "changes nothing, as nothing is less severe: use info or a more severe one, or remove it")
		}
	}
	if in.DropRegex != "" {
		var err error
		f.Drop, err = regexp.Compile(in.DropRegex)
		if bad := new(syntax.Error); errors.As(err, &bad) {
			e.problem(under+regex, "%v at %q: write it as RE2 has it (https://github.com/google/re2/wiki/Syntax)", bad.Code, bad.Expr)
		} else if inAnyText(f.Drop) {
			e.problem(under+regex, "is found in every message, so that no record is left: name what stands in those that are to go")
		}
	}
	if f.SeverityAbove >= 0 || f.Drop != nil {
		in.Filter = &f
	}
}

// inAnyText reports whether r is found in any text, as far as trying each character of
// ASCII and a long text of all of them says.
func inAnyText(r *regexp.Regexp) bool {
	var all strings.Builder
	for c := range rune(unicode.MaxASCII + 1) {
		if c == '\n' {
			continue // not found by a dot, and no text is that alone
		}
		if !r.MatchString(string(c)) {
			return false
		}
		all.WriteRune(c)
	}
	return r.MatchString(strings.Repeat(all.String(), 16)) // r may count to 1000
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
		if in.Vault != nil {
			e.problem(under+"PARSE", "not with SPILLWAY_ENCODING=raw, where a record is the message and nothing else: use ndjson, or none here")
		}
		const nothing = "changes nothing with SPILLWAY_ENCODING=raw, where a record is the message and nothing else: remove it"
		if in.Parse { // PARSE=none says the same
			e.idle(under+"PARSE", nothing)
		}
		for _, o := range []string{"DATASET", "PIPELINE", "TAGS", "TIMEZONE", "PRESERVE_ORIGINAL", "DROP_SEVERITY_ABOVE"} {
			e.idle(under+o, nothing)
		}
	} else if !in.Parse {
		e.idle(under+"TIMEZONE", "changes nothing with %sPARSE=%s: remove it", under, strings.ToLower(in.ParseName))
	}
}
