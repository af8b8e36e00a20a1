package main

import (
	"strings"

	"spillway/outputs"
)

// reload reads the files again that inputs and outputs use: certificates, keys,
// passwords, credentials. Connections stay, and everything else is as it was. What
// was read again is told in one line, what could not be in one line each. So is an env
// file that has changed: that takes a restart.
func (a *agent) reload() {
	files := map[string]string{} // owner, as in INPUT_TCP_, → the variables that name its files
	for _, s := range a.cfg.settings {
		if side, label, ok := labelled(s.Name); ok && s.Value != "" && strings.HasSuffix(s.Name, "_FILE") {
			owner := ownerOf(side, label)
			files[owner] = strings.TrimPrefix(files[owner]+","+s.Name, ",")
		}
	}
	var done []string
	failed := false
	owner := func(key, otherwise string, reload func() error) {
		what := files[key]
		if what == "" {
			what = otherwise
		}
		if what == "" {
			return // it has no files
		}
		if err := reload(); err != nil {
			failed = true
			for line := range strings.Lines(err.Error()) {
				a.log.Error("not read again; what was read before stays in use", "error", strings.TrimSpace(line))
			}
			return
		}
		done = append(done, what)
	}
	for _, in := range a.inputs {
		owner(ownerOf("INPUT", in.cfg.Name), "", in.Reload)
	}
	for i, o := range a.outs {
		if r, ok := o.(outputs.Reloader); ok {
			own := "" // what it reads beside
			if a.cfg.Outputs[i].Kind == "s3" {
				own = "AWS settings of " + o.Name()
			}
			owner(ownerOf("OUTPUT", o.Name()), own, r.Reload)
		}
	}
	if f := a.cfg.EnvFile; f != "" {
		if text, err := readSmall(f); err != nil || text != a.cfg.envText {
			a.log.Warn("SPILLWAY_ENV_FILE is not what it was at the start; a restart uses it", "file", f)
		}
	}
	switch {
	case len(done) > 0:
		a.log.Info("certificates and secrets are read again; new connections use them", "files", strings.Join(done, ","))
	case failed:
		a.log.Warn("nothing was read again")
	default:
		a.log.Info("nothing was read again: no input and no output has a file with a certificate or a secret")
	}
}

func ownerOf(side, label string) string { return side + "_" + strings.ToUpper(label) + "_" }
