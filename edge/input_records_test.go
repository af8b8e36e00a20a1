package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// outbox returns the records that the agent's default output has, once there are n.
func (r *running) outbox(n int) (records []string) {
	r.t.Helper()
	r.until(fmt.Sprintf("%d records in the outbox", n), func() bool {
		var out, errs bytes.Buffer
		cmdCat(r.t.Context(), []string{filepath.Join(r.state, "outbox")}, &out, &errs, nil)
		records = strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		return len(records) >= n && out.Len() > 0
	})
	if len(records) != n {
		r.t.Errorf("%d records, want %d:\n%s", len(records), n, strings.Join(records, "\n"))
	}
	return records
}

func TestSyslogNames(t *testing.T) {
	t.Parallel()
	for names, want := range map[string]string{"elastic": `"severity":{"code":4,"name":"Warning"}`, "short": `"severity":{"code":4,"name":"warning"}`} {
		a := start(t, "SPILLWAY_SYSLOG_NAMES="+names, "SPILLWAY_OUTPUT_OUTBOX_ROLL_AGE=0s")
		fmt.Fprintln(a.dial("tcp"), "<36>Oct 11 22:14:15 host su: x")
		if r := a.outbox(1)[0]; !strings.Contains(r, want) {
			t.Errorf("%s: no %s in %s", names, want, r)
		}
	}
}

// TestMultiline: lines are joined, and the last message waits for nobody.
func TestMultiline(t *testing.T) {
	t.Parallel()
	a := start(t, "SPILLWAY_INPUT_TCP_MULTILINE=pri", "SPILLWAY_OUTPUT_OUTBOX_ROLL_AGE=0s")
	fmt.Fprint(a.dial("tcp"), "<11>app: failed\n  at f()\n  at g()\n<11>app: again\n  at h()\n") // stays open
	for i, want := range []string{`"message":"failed\n  at f()\n  at g()"`, `"message":"again\n  at h()"`} {
		if r := a.outbox(2)[i]; !strings.Contains(r, want) {
			t.Errorf("no %s in %s", want, r)
		}
	}
}
