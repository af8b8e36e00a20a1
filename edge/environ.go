package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/caarlos0/env/v11"

	"spillway/buffer/batch"
	"spillway/framing"
	"spillway/outputs"
)

// prefix is the beginning of every name that is ours.
const prefix = "SPILLWAY_"

// setting is one variable, as `spillway env` and the reference show it.
type setting struct {
	Name    string
	Value   string // effective
	Default string
	Origin  string // "default", "environment" or "file <name>:<line>", with ", adjusted" behind it
	Doc     string
	Secret  bool // the value is one, or (File) the content of the file that it names
	File    bool

	field string // of the struct that holds it
}

// variable is a value that somebody set.
type variable struct{ text, origin string }

// environment is the variables that were set, and what the structs that were
// filled from them asked for. Problems are gathered, not returned, so that a
// person sees all of them at once.
type environment struct {
	vars     map[string]variable // SPILLWAY_* only; an empty value counts as not set
	settings []*setting          // in the order of parsing
	problems []error
	bad      map[string]bool // has a problem: what else is said of it would follow from that
	notes    []string
	fileText string // of the env file
}

// newEnvironment reads the process environment and the file that
// SPILLWAY_ENV_FILE names. The environment wins over the file.
func newEnvironment(environ []string) *environment {
	e := &environment{vars: map[string]variable{}, bad: map[string]bool{}}
	for _, kv := range environ {
		if k, v, _ := strings.Cut(kv, "="); strings.HasPrefix(k, prefix) && v != "" {
			e.vars[k] = variable{v, "environment"}
		}
	}
	const name = prefix + "ENV_FILE"
	file, ok := e.vars[name]
	if !ok {
		return e
	}
	text, err := readSmall(file.text)
	if err != nil {
		e.problem(name, "%v: name a file that this user may read", err)
		return e
	}
	e.fileText = text
	fromFile, errs := parseEnvFile(file.text, text)
	for _, err := range errs {
		e.problems = append(e.problems, fmt.Errorf("%s: %w", name, err))
	}
	for k, v := range fromFile {
		if _, set := e.vars[k]; k == name {
			e.problem(name, "an env file can't name another one: remove the line from %s", file.text)
		} else if !set && v.text != "" {
			e.vars[k] = v
		}
	}
	return e
}

// readSmall returns the content of a file that a variable names: at most 1 MiB,
// so that a wrong path can't take all memory.
func readSmall(name string) (string, error) {
	const limit = 1 << 20
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && len(text) > limit {
		err = fmt.Errorf("%s is larger than 1 MiB", name)
	}
	return string(text), err
}

// envName is what may be a variable's name. What stands before = and is none is not
// shown: it may be a part of a secret.
var envName = regexp.MustCompile(`^[A-Za-z0-9_]+$`)

// parseEnvFile reads lines of KEY=VALUE. Empty lines and lines that begin with #
// are skipped, blanks around key and value are cut, and a value in ” or "" is
// taken without them and otherwise as it is: nothing is expanded. A byte order mark
// at the beginning does not count.
func parseEnvFile(name, text string) (vars map[string]variable, errs []error) {
	vars = map[string]variable{}
	n := 0
	for line := range strings.Lines(strings.TrimPrefix(text, "\ufeff")) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		// The line itself is not shown: it may hold a secret.
		k, v, ok := strings.Cut(line, "=")
		k, v = strings.TrimSpace(k), strings.TrimSpace(v)
		_, twice := vars[k]
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("%s:%d: want KEY=VALUE, or # before a comment", name, n))
			continue
		case strings.HasPrefix(k, "export "):
			errs = append(errs, fmt.Errorf("%s:%d: begins with export: remove that word, as no shell reads this file", name, n))
			continue
		case !envName.MatchString(k):
			errs = append(errs, fmt.Errorf("%s:%d: no name of a variable stands before =: want KEY=VALUE, or # before a comment", name, n))
			continue
		case !strings.HasPrefix(k, prefix):
			errs = append(errs, fmt.Errorf("%s:%d: %q does not begin with %s: an env file holds Spillway's own names only, set others in the environment", name, n, k, prefix))
			continue
		case twice:
			errs = append(errs, fmt.Errorf("%s:%d: %s is there twice: remove one", name, n, k))
			continue
		}
		if len(v) > 0 && (v[0] == '"' || v[0] == '\'') {
			if len(v) < 2 || v[len(v)-1] != v[0] {
				what := fmt.Sprintf("the quote %c before the value of %s is not closed", v[0], k)
				if strings.Contains(v[1:], v[:1]) {
					what = fmt.Sprintf("something stands behind the value of %s in quotes: remove it; a comment has a line of its own", k)
				}
				errs = append(errs, fmt.Errorf("%s:%d: %s", name, n, what))
				continue
			}
			v = v[1 : len(v)-1]
		}
		vars[k] = variable{v, fmt.Sprintf("file %s:%d", name, n)}
	}
	return vars, errs
}

// has reports whether name was set, by the environment or the file.
func (e *environment) has(name string) bool {
	_, ok := e.vars[name]
	return ok
}

// setting returns the setting called name, nil when no struct asked for it.
func (e *environment) setting(name string) *setting {
	for _, s := range e.settings {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// hide takes a setting that is none here out of the list.
func (e *environment) hide(name string) {
	e.settings = slices.DeleteFunc(e.settings, func(s *setting) bool { return s.Name == name })
}

// idle is a problem for a variable that was set and changes nothing; one that was
// not set is hidden.
func (e *environment) idle(name, format string, args ...any) {
	if e.has(name) {
		e.problem(name, format, args...)
	} else {
		e.hide(name)
	}
}

// adjust says that value is used instead of what was set, or of the default, and
// why.
func (e *environment) adjust(name, value, format string, args ...any) {
	if value == e.setting(name).Value {
		return
	}
	e.note(name, format, args...)
	e.follow(name, value)
}

// follow is adjust of a default that only follows another setting: that is not worth
// a note.
func (e *environment) follow(name, value string) {
	s := e.setting(name)
	s.Value, s.Origin = value, s.Origin+", adjusted"
}

// note adds a line, to be said at start, that begins with name as a problem does.
func (e *environment) note(name, format string, args ...any) {
	e.notes = append(e.notes, e.subject(name)+": "+fmt.Sprintf(format, args...))
}

// problem adds a line that begins with name and, when it has one, its value. Only
// the first of a variable counts.
func (e *environment) problem(name, format string, args ...any) {
	if e.bad[name] {
		return
	}
	e.bad[name] = true
	e.problems = append(e.problems, errors.New(e.subject(name)+": "+fmt.Sprintf(format, args...)))
}

// subject is `NAME`, or `NAME="value"` and where it comes from.
func (e *environment) subject(name string) string {
	v, set := e.vars[name]
	s := e.setting(name)
	if !set && s != nil {
		v.text = s.Value
	}
	switch {
	case v.text == "":
		return name
	case s != nil && s.Secret && !s.File:
		v.text = mask
	default:
		v.text = redactOf(name, v.text)
	}
	return name + "=" + strconv.Quote(v.text) + e.place(name)
}

// place is where a variable is from, if that is a file: " (in file:line)".
func (e *environment) place(name string) string {
	if file, ok := strings.CutPrefix(e.vars[name].origin, "file "); ok {
		return " (in " + file + ")"
	}
	return ""
}

// mask stands for a secret wherever values are shown.
const mask = "***"

// plainServer is a server without user and password.
var plainServer = regexp.MustCompile(`^\s*([A-Za-z][A-Za-z0-9+.-]*://)?([A-Za-z0-9._-]*|\[[0-9A-Fa-f:.%]*\])(:[0-9]*)?/?$`)

// paths are URLs of paths alone, in which an @ is nothing but an @.
var paths = regexp.MustCompile(`^(?i:file|unix|unixgram|unixpacket):///`)

// redact hides what stands before the last @ of each server in a URL: a password, or
// a token. What is no URL stays as it is.
func redact(v string) string {
	if !strings.Contains(v, "://") {
		return v
	}
	return redactURL(v)
}

// redactOf is redact of the value of the variable called name: one that is to be a
// URL is taken for one, also when its scheme is missing. Those of inputs have no query:
// what stands in one by mistake may be a token.
func redactOf(name, v string) string {
	if strings.HasPrefix(name, prefix+"INPUT_") && strings.HasSuffix(name, "_URL") {
		if url, _, query := strings.Cut(v, "?"); query {
			return redactURL(url) + "?" + mask
		}
	}
	if strings.HasSuffix(name, "_URL") || strings.HasSuffix(name, "_ENDPOINT") {
		return redactURL(v)
	}
	return redact(v)
}

func redactURL(v string) string {
	if paths.MatchString(v) {
		return v
	}
	servers := strings.Split(v, ",")
	secret := false // behind this one: a comma may be a part of a password
	for i := len(servers) - 1; i >= 0; i-- {
		s := servers[i]
		at := strings.LastIndexByte(s, '@')
		if at >= 0 {
			secret = true
		} else if !secret || plainServer.MatchString(s) {
			continue
		} else {
			at = len(s)
		}
		scheme := ""
		if j := strings.Index(s[:at], "://"); j >= 0 {
			scheme = s[:j+len("://")]
		}
		servers[i] = scheme + mask + s[at:]
	}
	return strings.Join(servers, ",")
}

// shown is the value of s as people may see it.
func (s *setting) shown() string {
	if s.Secret && !s.File && s.Value != "" {
		return mask
	}
	v := redactOf(s.Name, s.Value)
	if strings.ContainsFunc(v, unicode.IsControl) {
		return strconv.Quote(v)
	}
	return v
}

// parse fills dst, a pointer to a struct, from the variables whose names are
// under followed by its env tags. defaults are by tag and win over envDefault.
//
// Tags: env, envDefault, envPrefix as caarlos0/env has them; doc is for the
// reference; default says there what no envDefault can; secret:"true" hides the
// value and adds a variable with _FILE at its end, whose value goes to a string
// field with File at its end, if there is one; secret:"file" is for a variable that
// names a file with a secret.
func (e *environment) parse(dst any, under string, defaults map[string]string) {
	values := map[string]string{}
	var own []*setting
	walk(reflect.TypeOf(dst).Elem(), under, func(f reflect.StructField, name string) {
		secret := f.Tag.Get("secret")
		s := &setting{Name: name, Doc: f.Tag.Get("doc"), Secret: secret != "", File: secret == "file", Origin: "default", field: f.Name}
		s.Default = f.Tag.Get("envDefault")
		d, given := defaults[strings.TrimPrefix(name, under)]
		if given {
			s.Default = d
		}
		s.Value = s.Default
		if s.Default == "" && !given {
			s.Default = f.Tag.Get("default")
		}
		own = append(own, s)
		e.settings = append(e.settings, s)
		if v, ok := e.vars[name]; ok {
			s.Value, s.Origin = v.text, v.origin
		}
		switch {
		case s.File:
			e.open(name, s.Value)
		case s.Secret:
			file := e.secretFile(s)
			if f := reflect.ValueOf(dst).Elem().FieldByName(f.Name + "File"); f.IsValid() {
				f.SetString(file)
			}
		}
		values[name] = s.Value
	})
	err := env.ParseWithOptions(dst, env.Options{Environment: values, Prefix: under, FuncMap: parsers})
	var all env.AggregateError
	if err == nil {
		return
	}
	if !errors.As(err, &all) {
		all.Errors = []error{err}
	}
	for _, err := range all.Errors {
		var p env.ParseError
		if !errors.As(err, &p) {
			e.problems = append(e.problems, err)
			continue
		}
		i := slices.IndexFunc(own, func(s *setting) bool { return s.field == p.Name && s.Value != "" })
		if i < 0 {
			e.problems = append(e.problems, err)
			continue
		}
		e.problem(own[i].Name, "%s", withoutValue(p.Err, own[i].Value))
	}
}

// withoutValue is the text of err without value, which stands before it anyway, and
// may hold a secret.
func withoutValue(err error, value string) string {
	text := err.Error()
	if short := strings.Replace(text, " "+strconv.Quote(value), "", 1); short != text {
		return short
	}
	return strings.Replace(text, " "+strconv.Quote(strings.ToLower(value)), "", 1)
}

// secretFile takes s from the file that its _FILE form names, and returns that; ""
// when it is not set.
func (e *environment) secretFile(s *setting) string {
	name := s.Name + "_FILE"
	file := &setting{Name: name, Origin: "default", Doc: "file that holds `" + path.Base(s.Name) + "`; a line feed at its end is cut", Secret: true, File: true}
	e.settings = append(e.settings, file)
	v, ok := e.vars[name]
	if !ok {
		return ""
	}
	file.Value, file.Origin = v.text, v.origin
	if e.has(s.Name) {
		e.problem(name, "%s is set too: set one of them", s.Name)
		return ""
	}
	text, err := readSmall(v.text)
	if err != nil {
		e.problem(name, "%v: name a file that this user may read", err)
		return ""
	}
	s.Value, s.Origin = strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r"), "file "+v.text
	if s.Value == "" {
		e.problem(name, "the file is empty: it should hold the secret")
	}
	e.open(name, v.text)
	return v.text
}

// open adds a note when everybody on this host may read a file with a secret. That
// it is there and readable is for others to say.
func (e *environment) open(name, file string) {
	if file == "" {
		return
	}
	if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode()&0o007 != 0 {
		e.note(name, "mode %04o lets every user of this host at the secret in it: chmod it to 0640 if it belongs to root and to the group of the agent (root:spillway), else to 0600", info.Mode().Perm())
	}
}

// secretsInFile adds a note when everybody on this host may read the env file and
// there is a secret in it.
func (e *environment) secretsInFile() {
	const name = prefix + "ENV_FILE"
	file := e.vars[name].text
	for _, s := range e.settings {
		secret := s.Secret && !s.File || redactOf(s.Name, s.Value) != s.Value
		if secret && file != "" && strings.HasPrefix(s.Origin, "file "+file+":") {
			e.open(name, file)
			return
		}
	}
}

// walk calls f for every field of t that is a variable, with its full name.
func walk(t reflect.Type, under string, f func(f reflect.StructField, name string)) {
	for i := range t.NumField() {
		field := t.Field(i)
		key, _, _ := strings.Cut(field.Tag.Get("env"), ",")
		switch {
		case key == "-" || !field.IsExported():
		case key != "":
			f(field, under+key)
		case field.Type.Kind() == reflect.Struct:
			walk(field.Type, under+field.Tag.Get("envPrefix"), f)
		}
	}
}

// list is values with commas between them; blanks around them do not count.
type list []string

// UnmarshalText reads "a, b".
func (l *list) UnmarshalText(text []byte) error {
	*l = nil
	for v := range strings.SplitSeq(string(text), ",") {
		if v = strings.TrimSpace(v); v == "" {
			return errors.New("an empty name between commas: remove it")
		} else if slices.Contains(*l, v) {
			return fmt.Errorf("%q is there twice: remove one", redact(v))
		}
		*l = append(*l, v)
	}
	return nil
}

// parsers read types that can't read themselves, or not with errors for people.
var parsers = map[reflect.Type]env.ParserFunc{
	reflect.TypeFor[bool]():                  asParser(parseBool),
	reflect.TypeFor[int]():                   asParser(parseInt),
	reflect.TypeFor[time.Duration]():         asParser(parseDuration),
	reflect.TypeFor[[]byte]():                asParser(framing.ParseDelimiter),
	reflect.TypeFor[framing.Mode]():          asParser(anyCase(framing.ParseMode)),
	reflect.TypeFor[framing.Oversize]():      asParser(anyCase(framing.ParseOversize)),
	reflect.TypeFor[framing.MultilineRule](): asParser(anyCase(framing.ParseMultiline)),
	reflect.TypeFor[batch.Codec]():           asParser(anyCase(batch.ParseCodec)),
}

// anyCase is a parser of names in lower case that takes capitals too.
func anyCase[T any](f func(string) (T, error)) func(string) (T, error) {
	return func(v string) (T, error) { return f(strings.ToLower(v)) }
}

func asParser[T any](f func(string) (T, error)) env.ParserFunc {
	return func(v string) (any, error) { return f(v) }
}

func parseBool(v string) (bool, error) {
	switch strings.ToLower(v) {
	case "true", "yes", "on", "1":
		return true, nil
	case "false", "no", "off", "0":
		return false, nil
	}
	return false, errors.New("not a boolean: use true or false (also yes, no, on, off, 1, 0)")
}

func parseInt(v string) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		return 0, errors.New("not a whole number: write digits only, as in 5000")
	}
	return n, nil
}

func parseDuration(v string) (time.Duration, error) {
	d, err := time.ParseDuration(v)
	if err != nil {
		if _, err := strconv.ParseFloat(v, 64); err == nil {
			return 0, fmt.Errorf("a duration needs a unit: write %sms, %ss, %sm or %sh", v, v, v, v)
		}
		return 0, errors.New("not a duration: write a number and ms, s, m or h, as in 500ms, 10s or 1m30s")
	}
	if d < 0 {
		return 0, errors.New("a duration can't be negative: write it without the minus")
	}
	return d, nil
}

// oneOf reports v in lower case if it is one of the choices, else a problem.
func (e *environment) oneOf(name, v string, choices ...string) string {
	if low := strings.ToLower(v); slices.Contains(choices, low) {
		return low
	}
	e.problem(name, "unknown: use %s", or(choices))
	return choices[0]
}

// or is "a, b or c".
func or(s []string) string { return enumerate(s, " or ") }

// and is "a, b and c".
func and(s []string) string { return enumerate(s, " and ") }

func enumerate(s []string, last string) string {
	if len(s) < 2 {
		return strings.Join(s, "")
	}
	return strings.Join(s[:len(s)-1], ", ") + last + s[len(s)-1]
}

// between adds a problem unless low ≤ v ≤ high.
func (e *environment) between(name string, v, low, high outputs.Size) {
	if v < low || v > high {
		e.problem(name, "out of bounds: use %v to %v", low, high)
	}
}

// kubernetes matches what Kubernetes injects for a service called spillway.
var kubernetes = regexp.MustCompile(`^SPILLWAY_(SERVICE_|PORT(_|$))`)

// kubernetesOther matches what it injects for services called spillway-….
var kubernetesOther = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP|SCTP)(_.*)?)?)$`)

// unknown adds a problem, or a note when strict is off, for every variable that
// no struct asked for. listed are the names in SPILLWAY_INPUTS and _OUTPUTS;
// blind are the outputs of which nothing more is known, as their URL is missing.
func (e *environment) unknown(strict bool, listed map[string]list, blind []string) {
	var known []string
	for _, s := range e.settings {
		known = append(known, s.Name)
	}
	unlisted := map[string][]string{} // "INPUT_X" → its variables
	for _, name := range slices.Sorted(maps.Keys(e.vars)) {
		if slices.Contains(known, name) || kubernetes.MatchString(name) {
			continue
		}
		what := refusal(name)
		side, label, isLabelled := labelled(name)
		near := nearest(name, known)
		switch {
		case isLabelled && !slices.Contains(listed[side], label) && (near == "" || distance(near, name) > 1):
			unlisted[side+"_"+strings.ToUpper(label)] = append(unlisted[side+"_"+strings.ToUpper(label)], name)
			continue
		case isLabelled && side == "OUTPUT" && slices.Contains(blind, label):
			continue
		case what != "":
		case ofInputs(strings.TrimPrefix(name, prefix)):
			what = "an option of inputs: set " + prefix + "INPUT_<NAME>_" + strings.TrimPrefix(name, prefix)
		case near != "":
			what = "no such variable: did you mean " + near + "?"
		case isLabelled && side == "OUTPUT" && otherKind(name, label) != "":
			what = fmt.Sprintf("an option of %s outputs, and %s is none: see SPILLWAY_OUTPUT_%s_URL", otherKind(name, label), label, strings.ToUpper(label))
		case kubernetesOther.MatchString(name):
			what = "no such variable; Kubernetes injects it: set enableServiceLinks: false in the pod, or SPILLWAY_STRICT=false"
		default:
			what = "no such variable: remove it; `spillway env` prints all there are"
		}
		// Not with its value: what nobody knows may be a secret, in a name mistyped or of another kind of output.
		e.complain(strict, name+e.place(name)+": "+what)
	}
	for _, key := range slices.Sorted(maps.Keys(unlisted)) {
		side, label, _ := strings.Cut(key, "_")
		label = strings.ToLower(label)
		lists := prefix + side + "S"
		if e.bad[lists] {
			continue // it may well be meant
		}
		// An input that has a default URL may be switched off and keep its settings.
		idle := side == "INPUT" && inputURLs[label] != ""
		e.complain(strict && !idle, fmt.Sprintf("%s: no %s is called %s: %s=%s does not list it; add it there, or remove what is set for it",
			strings.Join(unlisted[key], ", "), strings.ToLower(side), label, lists, strings.Join(listed[side], ",")))
	}
}

// ofInputs reports whether inputs have this option.
func ofInputs(option string) (is bool) {
	walk(reflect.TypeFor[Input](), "", func(_ reflect.StructField, name string) { is = is || name == option })
	return is
}

func (e *environment) complain(strict bool, text string) {
	if strict {
		e.problems = append(e.problems, errors.New(text))
	} else {
		e.notes = append(e.notes, text)
	}
}

// labelled splits SPILLWAY_INPUT_<LABEL>_<OPTION> and its OUTPUT twin.
func labelled(name string) (side, label string, ok bool) {
	for _, side := range []string{"INPUT", "OUTPUT"} {
		if rest, ok := strings.CutPrefix(name, prefix+side+"_"); ok {
			label, option, ok := strings.Cut(rest, "_")
			if label = strings.ToLower(label); ok && option != "" && nameRule.MatchString(label) {
				return side, label, true
			}
		}
	}
	return "", "", false
}

// nearest returns the known name that is most likely meant, "" when none is near.
func nearest(name string, known []string) string {
	best, most := "", max(1, min(3, (len(name)-len(prefix))/4))
	for _, k := range known {
		if d := distance(name, k); d <= most {
			best, most = k, d-1
		}
	}
	return best
}

// distance is the number of inserted, deleted, changed and swapped characters
// that make b of a.
func distance(a, b string) int {
	prev2, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(prev[j+1]+1, row[j]+1, prev[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], prev2[j-1]+1)
			}
		}
		prev2, prev, row = prev, row, prev2
	}
	return prev[len(b)]
}

// secret returns what a secret is now: the content of file, where it stands in one, as
// secretFile reads it; else value.
func secret(value, file string) func() ([]byte, error) {
	return func() ([]byte, error) {
		if file == "" {
			return []byte(value), nil
		}
		text, err := readSmall(file)
		if err != nil {
			return nil, err
		}
		if text = strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r"); text == "" {
			return nil, fmt.Errorf("%s is empty: it should hold the secret", file)
		}
		return []byte(text), nil
	}
}

// each reads the values of a list. The first that can't be read is a problem.
func each[T any](e *environment, name string, values list, parse func(string) (T, error)) (all []T) {
	for _, v := range values {
		t, err := parse(v)
		if err != nil {
			e.problem(name, "%v", err)
			return nil
		}
		all = append(all, t)
	}
	return all
}
