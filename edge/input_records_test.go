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
