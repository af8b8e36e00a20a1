package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"regexp"
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

// TestRecords: what is set of records is in them.
func TestRecords(t *testing.T) {
	t.Parallel()
	const in = "SPILLWAY_INPUT_TCP_"
	a := start(t, in+"PARSE=rfc3164", in+"TIMEZONE=Asia/Tokyo", in+"PRESERVE_ORIGINAL=true", in+"DATASET=plant.plc", in+"PIPELINE=plc", in+"TAGS=a,b", "SPILLWAY_AGENT=gw1", "SPILLWAY_OUTPUT_OUTBOX_ROLL_AGE=0s")
	fmt.Fprintln(a.dial("tcp"), "<13>Oct 11 22:14:15 host su: x")
	r := a.outbox(1)[0]
	for _, want := range []string{`-10-11T13:14:15Z"`, `"original":"<13>Oct 11 22:14:15 host su: x"`, `"event":{`, `"dataset":"plant.plc"`, `"labels":{"pipeline":"plc"}`, `"tags":["a","b"`, `"agent":{"name":"gw1"}`, `"appname":"su"`} {
		if !strings.Contains(r, want) {
			t.Errorf("no %s in %s", want, r)
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

// TestFilters: what is to go becomes no record, and is counted.
func TestFilters(t *testing.T) {
	t.Parallel()
	a := start(t, "SPILLWAY_INPUTS=tcp,raw", "SPILLWAY_INPUT_TCP_DROP_SEVERITY_ABOVE=info", "SPILLWAY_INPUT_TCP_DROP_REGEX=^GET /health", "SPILLWAY_OUTPUT_OUTBOX_ROLL_AGE=0s",
		"SPILLWAY_INPUT_RAW_URL=tcp://127.0.0.1:0", "SPILLWAY_INPUT_RAW_PARSE=none", "SPILLWAY_INPUT_RAW_DROP_REGEX=^<14>", "SPILLWAY_INPUT_RAW_LANE=other")
	fmt.Fprint(a.dial("tcp"), "<14>web: GET /health 200\n<15>web: a debug line\n<14>web: GET / 200\nno severity\n")
	for i, want := range []string{`"message":"GET / 200"`, `"message":"no severity"`} {
		if r := a.outbox(2)[i]; !strings.Contains(r, want) {
			t.Errorf("no %s in %s", want, r)
		}
	}
	fmt.Fprint(a.dial("raw"), "<14>header and all\n<15>stays\n")
	if r := a.outbox(3); !strings.Contains(strings.Join(r, ""), `"message":"<15>stays"`) {
		t.Errorf("not there: %s", r)
	}
	m := a.metrics()
	for metric, want := range map[string]float64{`messages_total{input="tcp"}`: 4, `records_admitted_total{input="tcp"}`: 2, `filtered_total{input="tcp",reason="severity"}`: 1,
		`filtered_total{input="tcp",reason="text"}`: 1, `filtered_total{input="raw",reason="text"}`: 1} {
		if got := m["spillway_input_"+metric]; got != want {
			t.Errorf("%s is %v, want %v", metric, got, want)
		}
	}
}

// TestVaultInput: audit entries become records in a lane of their own, and one that
// is missing is told.
func TestVaultInput(t *testing.T) {
	t.Parallel()
	a := start(t, "SPILLWAY_INPUTS=vault", "SPILLWAY_INPUT_VAULT_URL=tcp://127.0.0.1:0", "SPILLWAY_INPUT_VAULT_PAIR_TIMEOUT=1s", "SPILLWAY_INPUT_VAULT_PREFIX=@cee: ",
		"SPILLWAY_INPUT_VAULT_DEDUPE=true", "SPILLWAY_INPUT_VAULT_RAW_SECRETS=drop", "SPILLWAY_OUTPUT_OUTBOX_ROLL_AGE=0s")
	c := a.dial("vault")
	entry := func(kind, id, token string) {
		fmt.Fprintf(c, `@cee: {"time":"2026-11-21T12:00:00Z","type":%q,"auth":{"client_token":%q},"request":{"id":%q,"operation":"read","path":"secret/x"}}`+"\n", kind, token, id)
	}
	hashed := "hmac-sha256:" + strings.Repeat("0", 64)
	entry("request", "one", hashed)
	entry("response", "one", hashed)
	entry("response", "one", hashed)
	entry("request", "two", hashed)
	entry("request", "three", "hvs.clear")
	entry("response", "three", hashed)
	fmt.Fprintln(c, `@cee: {"type":"request","request":{"id":"probe","operation":"update","path":"sys/audit/test"}}`)
	fmt.Fprintln(c, `{"type":"response","request":{"id":"two"}}`)
	a.until("the device was enabled", func() bool { return a.metrics()[`spillway_input_vault_probes_total{input="vault"}`] == 1 })
	torn := a.dial("vault")
	fmt.Fprint(torn, `@cee: {"type":"request","request":{"id":"four",`)
	torn.Close()
	a.until("an entry is cut off", func() bool { return a.metrics()[`spillway_input_vault_torn_total{input="vault"}`] == 1 })
	fmt.Fprintln(a.dial("vault"), `@cee: {"type":"request","request":{"id":"four","path":"x"}}`)
	records := strings.Join(a.outbox(8), "\n") // with the alert, without what was cut off: it may hold a token
	for _, want := range []string{`"dataset":"vault.audit"`, `"action":"vault-audit-gap"`, `"http":{"request":{"id":"four"}},"url":{"path":"x"},"vault":{"audit":{"gap":{"missing":"response"`} {
		if !strings.Contains(records, want) {
			t.Errorf("no %s in\n%s", want, records)
		}
	}
	m := a.metrics()
	for metric, want := range map[string]float64{`messages_total{input="vault"}`: 10, `records_admitted_total{input="vault"}`: 8, `vault_entries_total{input="vault"}`: 9, `parse_failures_total{input="vault"}`: 1,
		`vault_prefix_missing_total{input="vault"}`: 1, `vault_resent_total{input="vault"}`: 1,
		`vault_missing_total{entry="response",input="vault"}`: 1, `vault_alerts_total{input="vault"}`: 1, `vault_duplicates_total{input="vault"}`: 1, `vault_raw_secrets_total{input="vault"}`: 1,
		`filtered_total{input="vault",reason="duplicate"}`: 1, `filtered_total{input="vault",reason="raw_secret"}`: 2} {
		if got := m["spillway_input_"+metric]; got != want {
			t.Errorf("%s is %v, want %v", metric, got, want)
		}
	}
	if m[`spillway_lane_records_admitted_total{lane="audit"}`] != 8 {
		t.Error("not in the lane audit")
	}
}

func TestInAnyText(t *testing.T) {
	for r, want := range map[string]bool{"": true, ".*": true, "(?s).": true, "^.+$": true, "a|[^a]": true,
		"^.$": false, "^.{1,900}$": false, "^$": false, "[^x]": false, `\S`: false, "a*b": false} {
		if got := inAnyText(regexp.MustCompile(r)); got != want {
			t.Errorf("%s: %t, want %t", r, got, want)
		}
	}
}
