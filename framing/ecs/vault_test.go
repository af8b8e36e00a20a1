package ecs

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"spillway/framing"
	"spillway/framing/vault"
)

var vaultOptions = Options{Dataset: "vault.audit", Agent: "gw1", Host: "gw1.example.net", InputType: "tcp"}

// vaultLine is the complete record of data.
func vaultLine(e *Encoder, m framing.Message, prefix string) []byte {
	var v vault.Entry
	vault.Parse(&v, m.Data, []byte(prefix))
	return AppendTail(e.AppendVault(nil, m, &v, received), epoch, 123)
}

func recordedVault(t testing.TB, file string) []byte {
	t.Helper()
	b, err := os.ReadFile("../vault/testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestVaultRecorded holds the records of what a real Vault wrote against golden files:
// as it was sent, with a prefix, and as jsonx.
func TestVaultRecorded(t *testing.T) {
	entries := bytes.Split(bytes.TrimSuffix(recordedVault(t, "vault-1.21.ndjson"), []byte("\n")), []byte("\n"))
	var prefixed [][]byte
	for _, entry := range entries {
		prefixed = append(prefixed, slices.Concat([]byte("vault-a: "), entry))
	}
	var jsonx [][]byte
	cut := framing.NewSplitter(framing.Options{Mode: framing.JSONX})
	for r := bytes.NewReader(recordedVault(t, "vault-1.21.jsonx")); ; {
		_, err := cut.Fill(r)
		for m, ok := cut.Next(); ok; m, ok = cut.Next() {
			jsonx = append(jsonx, bytes.Clone(m.Data))
		}
		if err != nil {
			break
		}
	}
	for file, entries := range map[string][][]byte{"vault-json.ndjson": entries, "vault-prefix.ndjson": prefixed, "vault-jsonx.ndjson": jsonx} {
		if len(entries) != 33 {
			t.Fatalf("%s: %d entries", file, len(entries))
		}
		e := encoder(t, vaultOptions, sender)
		var all []byte
		for _, entry := range entries {
			l := vaultLine(e, framing.Message{Data: entry}, "")
			if _, err := decodeVault(l); err != nil {
				t.Errorf("%s: %v\n%s", file, err, l)
			}
			if file != "vault-jsonx.ndjson" && !bytes.Contains(l, slices.Concat([]byte(`"hashicorp_vault":{"audit":`), entry[bytes.IndexByte(entry, '{'):], []byte(`},"log":`))) {
				t.Errorf("%s: the entry is not in its record as it was sent\n%s", file, l)
			}
			all = append(all, l...)
		}
		file = "testdata/" + file
		if *update {
			if err := os.WriteFile(file, all, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(all, want) {
			t.Errorf("%s differs: see make golden", file)
		}
	}
}

// decodeVault reads a record as decode does, but for what Vault itself wrote, where
// null is a value.
func decodeVault(line []byte) (map[string]any, error) {
	const lead = `,"hashicorp_vault":{"audit":`
	var entry any
	if i := bytes.Index(line, []byte(lead)); i >= 0 {
		d := json.NewDecoder(bytes.NewReader(line[i+len(lead):]))
		d.UseNumber()
		if err := d.Decode(&entry); err != nil {
			return nil, err
		}
		if !json.Valid(line) || !utf8.Valid(line) || bytes.IndexByte(line, '\n') != len(line)-1 {
			return nil, fmt.Errorf("not valid JSON on one line")
		}
		line = slices.Concat(line[:i], line[i+len(lead)+int(d.InputOffset())+1:])
	}
	v, err := decode(line)
	if err == nil && entry != nil {
		v["hashicorp_vault"] = map[string]any{"audit": entry}
	}
	return v, err
}

// TestVaultRecord holds what a record says besides its frame against what was typed.
func TestVaultRecord(t *testing.T) {
	const raw = `"hmac-sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"`
	for _, c := range []struct {
		name, data, prefix string
		m                  framing.Message // Flags and Err
		source             *Source
		edit               func(*Options)
		want               string // the record; event, log and observer of the frame are added to it
		event              string // members of event
		log, observer      string // nil: those of the frame
	}{
		{
			name: "all of it",
			data: `{"time":"2026-11-20T13:00:00.5+02:00","auth":{"accessor":` + raw + `,"client_token":` + raw + `,"display_name":"oidc-1","entity_id":"e4f5","metadata":{"email":"a@example.org","role":"dev"},"policies":["default","dev"],"policy_results":{"allowed":true}},` +
				`"forwarded":true,"forwarded_from":"10.0.0.9:8201","request":{"client_certificate_serial_number":"123456789012345678901234567890","client_id":"c1","id":"cd09","mount_point":"secret/","mount_type":"kv","namespace":{"id":"x","path":"team/"},"operation":"read","path":"secret/data/a","remote_address":"198.51.100.7","remote_port":51422},"response":{"data":{"n":12345678901234567890}},"type":"response"}`,
			event: `"kind":"event","category":["authentication"],"type":["info","start"],"action":"read","outcome":"success","id":"cd09:response"`,
			want: `"@timestamp":"2026-11-20T11:00:00.5Z","service":{"type":"vault"},"http":{"request":{"id":"cd09"}},"user":{"name":"oidc-1","id":"e4f5","email":"a@example.org","roles":["default","dev"]},
				"source":{"address":"198.51.100.7","ip":"198.51.100.7","port":51422},"related":{"ip":["198.51.100.7"]},"url":{"path":"secret/data/a"},"tls":{"client":{"x509":{"serial_number":"123456789012345678901234567890"}}},
				"vault":{"audit":{"type":"response","accessor":` + raw + `,"mount_type":"kv","mount_point":"secret/","namespace":{"path":"team/"},"client_id":"c1","forwarded":true,"forwarded_from":"10.0.0.9:8201"}}`,
		},
		{
			name:  "denied request",
			data:  `{"error":"1 error occurred:\n\t* permission denied\n\n","request":{"id":"1","operation":"update","path":"auth/userpass/login/bob"},"type":"request"}`,
			event: `"kind":"event","category":["authentication","iam"],"type":["info"],"action":"update","outcome":"failure","id":"1:request","reason":"1 error occurred:\n\t* permission denied\n\n"`,
			want:  `"service":{"type":"vault"},"http":{"request":{"id":"1"}},"url":{"path":"auth/userpass/login/bob"},"vault":{"audit":{"type":"request","error":"1 error occurred:\n\t* permission denied\n\n"}}`,
		},
		{
			name:  "not allowed",
			data:  `{"auth":{"policy_results":{"allowed":false}},"request":{"operation":"patch","path":"sys/policies/acl/dev"},"type":"response"}`,
			event: `"kind":"event","category":["iam"],"type":["change"],"action":"patch","outcome":"failure"`,
			want:  `"service":{"type":"vault"},"url":{"path":"sys/policies/acl/dev"},"vault":{"audit":{"type":"response"}}`,
		},
		{
			name:  "iam, deleted",
			data:  `{"request":{"operation":"delete","path":"identity/entity/id/1"},"type":"response"}`,
			event: `"kind":"event","category":["iam"],"type":["deletion"],"action":"delete","outcome":"success"`,
			want:  `"service":{"type":"vault"},"url":{"path":"identity/entity/id/1"},"vault":{"audit":{"type":"response"}}`,
		},
		{
			name:  "iam, created",
			data:  `{"request":{"operation":"create","path":"identity/entity"},"type":"request"}`,
			event: `"kind":"event","category":["iam"],"type":["creation"],"action":"create","outcome":"unknown"`,
			want:  `"service":{"type":"vault"},"url":{"path":"identity/entity"},"vault":{"audit":{"type":"request"}}`,
		},
		{
			name:  "iam, read",
			data:  `{"request":{"operation":"list","path":"sys/policy"},"type":"request"}`,
			event: `"kind":"event","category":["iam"],"type":["info"],"action":"list","outcome":"unknown"`,
			want:  `"service":{"type":"vault"},"url":{"path":"sys/policy"},"vault":{"audit":{"type":"request"}}`,
		},
		{
			name:  "kmip without an id",
			data:  `{"type":"kmip-response","request":{"operation":"delete","remote_address":"[2001:db8::7]:5696"}}`,
			event: `"kind":"event","category":["authentication"],"type":["info","end"],"action":"delete","outcome":"success"`,
			want: `"service":{"type":"vault"},"source":{"address":"[2001:db8::7]:5696","ip":"2001:db8::7","port":5696},"related":{"ip":["2001:db8::7"]},
				"vault":{"audit":{"type":"kmip-response"}}`,
		},
		{
			name:  "address that is none, and a port that is none",
			data:  `{"type":"kv-request","request":{"id":"1","remote_address":"@","remote_port":65536}}`,
			event: `"kind":"event","category":["authentication"],"type":["info"],"outcome":"unknown","id":"1:kv-request"`,
			want:  `"service":{"type":"vault"},"http":{"request":{"id":"1"}},"source":{"address":"@"},"vault":{"audit":{"type":"kv-request"}}`,
		},
		{
			name:  "nothing in it",
			data:  `{}`,
			event: `"kind":"event","category":["authentication"],"type":["info"],"outcome":"unknown"`,
			want:  `"service":{"type":"vault"}`,
		},
		{
			name:  "members of other kinds than they should be",
			data:  `{"time":5,"type":{"a":1},"error":null,"forwarded":"yes","auth":{"policies":"root","display_name":[]},"request":{"id":7,"path":null,"operation":true,"remote_port":"80"}}`,
			event: `"kind":"event","category":["authentication"],"type":["info"],"outcome":"unknown"`,
			want:  `"service":{"type":"vault"}`,
		},
		{
			name:  "policies that are no strings",
			data:  `{"auth":{"policies":[1,"a",null,"","b",{}]}}`,
			event: `"kind":"event","category":["authentication"],"type":["info"],"outcome":"unknown"`,
			want:  `"service":{"type":"vault"},"user":{"roles":["a","b"]}`,
		},
		{
			name:  "cookie",
			data:  `@cee: {"type":"request"}`,
			event: `"kind":"event","category":["authentication"],"type":["info"],"outcome":"unknown"`,
			want:  `"service":{"type":"vault"},"vault":{"audit":{"type":"request","prefix":"@cee: "}}`,
		},
		{
			name:   "prefix that was asked for",
			data:   `{a}{"type":"request"}`,
			prefix: "{a}",
			event:  `"kind":"event","category":["authentication"],"type":["info"],"outcome":"unknown"`,
			want:   `"service":{"type":"vault","name":"{a}"},"vault":{"audit":{"type":"request","prefix":"{a}"}}`,
		},
		{
			name:  "probe",
			data:  `{"auth":{"client_token":"","accessor":"y"},"request":{"operation":"update","path":"sys/audit/test"},"type":"request"}`,
			event: `"kind":"event","category":["authentication"],"type":["info"],"action":"update","outcome":"unknown"`,
			want:  `"service":{"type":"vault"},"url":{"path":"sys/audit/test"},"vault":{"audit":{"type":"request","accessor":"y"}},"tags":["vault_probe","vault_raw_accessor"]`,
		},
		{
			name:  "none, as it has a token, which is a secret, twice",
			data:  `{"auth":{"client_token":"s.x","accessor":"y"},"request":{"operation":"update","path":"sys/audit/test"},"type":"request"}`,
			event: `"kind":"event","category":["authentication"],"type":["info"],"action":"update","outcome":"unknown"`,
			want:  `"service":{"type":"vault"},"url":{"path":"sys/audit/test"},"vault":{"audit":{"type":"request","accessor":"y"}},"tags":["vault_raw_secret","vault_raw_accessor"]`,
		},
		{
			name:  "jsonx",
			data:  "v: <json:object name=\"auth\"><json:array name=\"policies\"><json:string>a\"b</json:string><json:null /></json:array></json:object><json:string name=\"error\">a<b>&\"c\n\xff</json:string><json:object name=\"request\"><json:string name=\"id\">1\\</json:string><json:number name=\"remote_port\">80</json:number></json:object><json:string name=\"type\">response</json:string>",
			event: `"kind":"event","category":["authentication"],"type":["info"],"outcome":"failure","id":"1\\:response","reason":"a<b>&\"c\n` + "\ufffd" + `"`,
			want: `"service":{"type":"vault","name":"v"},"http":{"request":{"id":"1\\"}},"user":{"roles":["a\"b"]},"vault":{"audit":{"type":"response","error":"a<b>&\"c\n` + "\ufffd" + `","prefix":"v: "}},
				"message":"<json:object name=\"auth\"><json:array name=\"policies\"><json:string>a\"b</json:string><json:null /></json:array></json:object><json:string name=\"error\">a<b>&\"c\n` + "\ufffd" + `</json:string><json:object name=\"request\"><json:string name=\"id\">1\\</json:string><json:number name=\"remote_port\">80</json:number></json:object><json:string name=\"type\">response</json:string>",
				"tags":["invalid_utf8"]`,
		},
		{
			name: "torn tail",
			data: `{"type":"requ`,
			m:    framing.Message{Flags: framing.Unterminated},
			want: `"message":"{\"type\":\"requ","error":{"message":"vault failed to process field \"message\": parsing error at position 14: the end of the entry is missing"},"tags":["vault_torn"]`,
			log:  `"source":{"address":"192.0.2.7:44214"},"flags":["unterminated"]`,
		},
		{
			name: "cut by our limit",
			data: `{"auth":{"client_token":"s.x","a":`,
			m:    framing.Message{Flags: framing.Truncated},
			want: `"message":"{\"auth\":{\"client_token\":\"s.x\",\"a\":","error":{"message":"vault failed to process field \"message\": parsing error at position 35: the end of the entry is missing"},"tags":["_vaultparsefailure","vault_raw_secret"]`,
			log:  `"source":{"address":"192.0.2.7:44214"},"flags":["truncated"]`,
		},
		{
			name: "no entry, and a framing error",
			data: "<13>x \xff",
			m:    framing.Message{Flags: framing.Invalid, Err: "octet count"},
			edit: func(o *Options) { o.Tags = []string{"t"}; o.PreserveOriginal = OriginalText },
			want: `"message":"<13>x ` + "\ufffd" + `","error":{"message":["framing: octet count","vault failed to process field \"message\": parsing error at position 1: no { or <json: that begins an entry"]},
				"tags":["t","preserve_original_event","_vaultparsefailure","invalid_utf8"]`,
			event: `"original":"<13>x ` + "\ufffd" + `"`,
			log:   `"source":{"address":"192.0.2.7:44214"},"flags":["invalid_framing"]`,
		},
		{
			name:     "original with its prefix, base64, from a balancer with TLS",
			data:     `p {"type":"request"}`,
			edit:     func(o *Options) { o.PreserveOriginal = OriginalBase64 },
			source:   &Source{Addr: sender.Addr, Proxy: netip.MustParseAddrPort("10.0.0.5:50422"), TLS: NewTLS("1.3", "TLS_AES_128_GCM_SHA256", nil)},
			event:    `"original":"cCB7InR5cGUiOiJyZXF1ZXN0In0=","kind":"event","category":["authentication"],"type":["info"],"outcome":"unknown"`,
			want:     `"service":{"type":"vault","name":"p"},"vault":{"audit":{"type":"request","prefix":"p "}},"tags":["preserve_original_event","event_original_base64"]`,
			observer: `"ip":"192.0.2.7","nat":{"ip":"10.0.0.5","port":50422},"tls":{"version":"1.3","version_protocol":"tls","cipher":"TLS_AES_128_GCM_SHA256","established":true}`,
		},
		{
			name:     "link-local sender and balancer",
			data:     `{"type":"request"}`,
			source:   &Source{Addr: netip.MustParseAddrPort("[fe80::7%eth0]:44214"), Proxy: netip.MustParseAddrPort("[fe80::5%eth1]:50422")},
			event:    `"kind":"event","category":["authentication"],"type":["info"],"outcome":"unknown"`,
			want:     `"service":{"type":"vault"},"vault":{"audit":{"type":"request"}}`,
			log:      `"source":{"address":"[fe80::7]:44214"}`,
			observer: `"ip":"fe80::7","nat":{"ip":"fe80::5","port":50422}`,
		},
		{
			name:  "a time in the year 10000 of UTC, and a framing error",
			data:  `{"time":"9999-12-31T23:59:59-01:00","type":"request"}`,
			m:     framing.Message{Flags: framing.Invalid, Err: "octet count"},
			event: `"kind":"event","category":["authentication"],"type":["info"],"outcome":"unknown"`,
			want:  `"service":{"type":"vault"},"vault":{"audit":{"type":"request"}},"error":{"message":"framing: octet count"}`,
			log:   `"source":{"address":"192.0.2.7:44214"},"flags":["invalid_framing"]`,
		},
		{
			name:     "unix socket",
			data:     `{"type":"request"}`,
			source:   &Source{Path: "/run/vault.sock"},
			event:    `"kind":"event","category":["authentication"],"type":["info"],"outcome":"unknown"`,
			want:     `"service":{"type":"vault"},"vault":{"audit":{"type":"request"}}`,
			log:      `"source":{"address":"/run/vault.sock"}`,
			observer: "none",
		},
	} {
		o := vaultOptions
		if c.edit != nil {
			c.edit(&o)
		}
		source := sender
		if c.source != nil {
			source = *c.source
		}
		e := encoder(t, o, source)
		c.m.Data = []byte(c.data)
		l := vaultLine(e, c.m, c.prefix)
		got, err := decodeVault(l)
		if err != nil {
			t.Errorf("%s: %v\n%s", c.name, err, l)
			continue
		}
		if c.log == "" {
			c.log = `"source":{"address":"192.0.2.7:44214"}`
		}
		if c.event != "" {
			c.event = "," + c.event
		}
		want := c.want
		if !strings.Contains(want, `"@timestamp"`) {
			want += `,"@timestamp":"2026-11-20T12:00:00Z"`
		}
		want += `,"event":{"created":"2026-11-20T12:00:00Z","dataset":"vault.audit"` + c.event + `},"data_stream":{"type":"logs","dataset":"vault.audit","namespace":"default"},"ecs":{"version":"8.11.0"},
			"input":{"type":"tcp"},"host":{"name":"gw1.example.net"},"agent":{"name":"gw1"},"spillway":{"epoch":"00c0ffee00c0ffee","seq":123},"log":{` + c.log + `}`
		switch c.observer {
		case "":
			want += `,"observer":{"ip":"192.0.2.7"}`
		case "none":
		default:
			want += `,"observer":{` + c.observer + `}`
		}
		body := c.data
		var v vault.Entry
		if vault.Parse(&v, []byte(c.data), []byte(c.prefix)); v.Err == "" && v.Format == vault.JSON {
			want += `,"hashicorp_vault":{"audit":` + body[len(v.Prefix):] + `}`
		}
		d := json.NewDecoder(strings.NewReader("{" + want + "}"))
		d.UseNumber()
		var w map[string]any
		if err := d.Decode(&w); err != nil {
			t.Fatalf("%s: %v in %s", c.name, err, want)
		}
		if !reflect.DeepEqual(got, w) {
			t.Errorf("%s:\n%s want {%s}", c.name, l, want)
		}
		if v.Err == "" && v.Format == vault.JSON && !bytes.Contains(l, []byte(`{"audit":`+body[len(v.Prefix):]+`}`)) {
			t.Errorf("%s: the entry is not in it as it was sent: %s", c.name, l)
		}
	}
}

// TestVaultSpaced: a record is one line, whatever stands between the tokens of an entry.
func TestVaultSpaced(t *testing.T) {
	e := encoder(t, vaultOptions, sender)
	l := vaultLine(e, framing.Message{Data: []byte("{\r\n\t\"error\": \"a\\n b\",\n\t\"type\": \"request\"\r\n}\n")}, "")
	if want := `"hashicorp_vault":{"audit":{   "error": "a\n b",  "type": "request"  }}`; !bytes.Contains(l, []byte(want)) {
		t.Errorf("%s has no %s", l, want)
	}
	if _, err := decodeVault(l); err != nil {
		t.Error(err)
	}
}

func TestVaultDuplicate(t *testing.T) {
	e := encoder(t, vaultOptions, sender)
	var v vault.Entry
	data := []byte(`{"type":"request"}`)
	vault.Parse(&v, data, nil)
	v.Duplicate = true
	if l := AppendTail(e.AppendVault(nil, framing.Message{Data: data}, &v, received), epoch, 1); !bytes.Contains(l, []byte(`"tags":["duplicate"]`)) {
		t.Errorf("not tagged: %s", l)
	}
}

func TestVaultAlert(t *testing.T) {
	o := vaultOptions
	o.Tags = []string{"t"}
	e := encoder(t, o, sender)
	m := vault.Missing{ID: []byte(`cd"09`), Path: []byte("secret/data/a"), Type: "response", Seen: received.Add(-2 * time.Minute), Addr: netip.MustParseAddr("::ffff:192.0.2.9"), Changed: received.Add(-3 * time.Minute)}
	const frame = `,"dataset":"vault.audit"},"data_stream":{"type":"logs","dataset":"vault.audit","namespace":"default"},"ecs":{"version":"8.11.0"},"input":{"type":"tcp"},"host":{"name":"gw1.example.net"},"agent":{"name":"gw1"}`
	want := `{"@timestamp":"2026-11-20T12:00:00Z","event":{"created":"2026-11-20T12:00:00Z","kind":"alert","action":"vault-audit-gap","reason":"no response entry within 2m0s of its request entry"` + frame +
		`,"service":{"type":"vault"},"http":{"request":{"id":"cd\"09"}},"url":{"path":"secret/data/a"},"vault":{"audit":{"gap":{"missing":"response","seen":"2026-11-20T11:58:00Z","connected":"2026-11-20T11:57:00Z"}}},"observer":{"ip":"192.0.2.9"},` +
		`"message":"vault audit gap: request cd\"09 has no response entry","tags":["t"],"spillway":{"epoch":"00c0ffee00c0ffee","seq":5}}` + "\n"
	got := AppendTail(e.AppendVaultAlert(nil, m, 2*time.Minute, received), epoch, 5)
	if string(got) != want {
		t.Errorf("%s want %s", got, want)
	}
	if _, err := decode(got); err != nil {
		t.Error(err)
	}
	m = vault.Missing{ID: []byte("a\xff"), Type: "request", Seen: received}
	want = `{"@timestamp":"2026-11-20T12:00:00Z","event":{"created":"2026-11-20T12:00:00Z","kind":"alert","action":"vault-audit-gap","reason":"no request entry within 1s of its response entry"` + frame +
		`,"service":{"type":"vault"},"http":{"request":{"id":"a` + "\ufffd" + `"}},"vault":{"audit":{"gap":{"missing":"request","seen":"2026-11-20T12:00:00Z"}}},` +
		`"message":"vault audit gap: request a` + "\ufffd" + ` has no request entry","tags":["t","invalid_utf8"],"spillway":{"epoch":"00c0ffee00c0ffee","seq":5}}` + "\n"
	if got := AppendTail(e.AppendVaultAlert(nil, m, time.Second, received), epoch, 5); string(got) != want {
		t.Errorf("%s want %s", got, want)
	}
}

func TestVaultDoesNotAllocate(t *testing.T) {
	e := encoder(t, vaultOptions, sender)
	block := make([]byte, 0, 64<<10)
	for _, data := range []string{
		string(bytes.SplitN(recordedVault(t, "vault-1.21.ndjson"), []byte("\n"), 5)[3]),
		`{"type":"kmip-request","auth":{"policies":["a","b"]},"request":{"remote_address":"[2001:db8::7%eth0]:5696","id":"\u0061"}}`,
		`{"request":{"remote_address":"no address"}}`,
		`{"torn`,
	} {
		m := framing.Message{Data: []byte(data)}
		var v vault.Entry
		if n := testing.AllocsPerRun(100, func() {
			vault.Parse(&v, m.Data, nil)
			block = e.AppendVault(block[:0], m, &v, received)
		}); n != 0 {
			t.Errorf("%s: %v allocations", data, n)
		}
	}
}

// FuzzVaultRecord holds the promises of the package for any bytes: what is an entry is
// in its record as it was sent, and what is none is the message.
func FuzzVaultRecord(f *testing.F) {
	for i, entry := range bytes.Split(recordedVault(f, "vault-1.21.ndjson"), []byte("\n")) {
		f.Add(entry, "", uint16(i))
		f.Add(entry[:len(entry)/2], "vault-a: ", uint16(i<<8))
	}
	f.Add(recordedVault(f, "vault-1.21.jsonx")[:20_000], "", uint16(0))
	f.Add([]byte("{\"error\":\n\"\\u0000\\ud800\",\"auth\":{\"policies\":[\"a\",{\"b\":[]}]},\"request\":{\"id\":\"\\\"\",\"remote_address\":\"1.2.3.4:5\",\"remote_port\":0080}}"), "p", uint16(0xffff))
	f.Add([]byte("p\xff<json:string name=\"error\">\x00\"\n</json:string><json:string name=\"type\">\xfe</json:string>"), "", uint16(0x4800))
	f.Fuzz(func(t *testing.T, data []byte, prefix string, bits uint16) {
		o := vaultOptions
		o.PreserveOriginal = Original(bits >> 8 % 3)
		if bits>>11&1 != 0 {
			o.Tags = []string{"t"}
		}
		e := NewEncoder(o)
		if bits>>12&1 != 0 {
			e.SetSource(sender)
		}
		m := framing.Message{Data: data, Flags: framing.Flags(bits)}
		if bits>>13&1 != 0 {
			m.Err = "framing"
		}
		var v vault.Entry
		vault.Parse(&v, data, []byte(prefix))
		v.Duplicate = bits>>14&1 != 0
		before := bytes.Clone(data)
		line := AppendTail(e.AppendVault(nil, m, &v, received), epoch, 7)
		if !bytes.Equal(before, data) {
			t.Fatal("the message was changed")
		}
		if !json.Valid(line) || !utf8.Valid(line) || bytes.IndexByte(line, '\n') != len(line)-1 || bytes.ContainsAny(line[:len(line)-1], "\r\t\n") {
			t.Fatalf("not one line of valid JSON: %q", line)
		}
		var got struct {
			Time    string `json:"@timestamp"`
			Message *string
			Vault   struct{ Audit json.RawMessage } `json:"hashicorp_vault"`
			Error   any
			Event   struct{ Original string }
		}
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatal(err)
		}
		if _, err := time.Parse(time.RFC3339Nano, got.Time); err != nil {
			t.Fatal(err)
		}
		switch o.PreserveOriginal {
		case OriginalText:
			if got.Event.Original != string([]rune(string(data))) {
				t.Fatalf("event.original is %q", got.Event.Original)
			}
		case OriginalBase64:
			if got.Event.Original != base64.StdEncoding.EncodeToString(data) {
				t.Fatalf("event.original is %q", got.Event.Original)
			}
		}
		switch {
		case v.Err != "":
			if got.Message == nil || *got.Message != string([]rune(string(data))) || got.Vault.Audit != nil || got.Error == nil {
				t.Fatalf("%q of what is no entry", line)
			}
		case v.Format == vault.JSONX:
			if got.Message == nil || *got.Message != string([]rune(string(v.Body))) || got.Vault.Audit != nil {
				t.Fatalf("%q of jsonx", line)
			}
		default:
			want := bytes.Map(func(r rune) rune {
				if r == '\n' || r == '\r' || r == '\t' {
					return ' '
				}
				return r
			}, v.Body)
			if got.Message != nil || !bytes.Equal(got.Vault.Audit, want) {
				t.Fatalf("%q of %q", line, v.Body)
			}
		}
		if (got.Error != nil) != (v.Err != "" || m.Err != "") {
			t.Fatalf("error is %v", got.Error)
		}
		// But for the entry no object has two members of one name.
		if v.Err == "" && v.Format == vault.JSON {
			i := bytes.Index(line, []byte(`,"hashicorp_vault":{"audit":`))
			line = slices.Concat(line[:i], line[i+len(`,"hashicorp_vault":{"audit":`)+len(v.Body)+1:])
		}
		if _, err := decode(line); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		if n := len(line); n > 12*len(data)+4096 && o.PreserveOriginal == OriginalNone {
			t.Fatalf("%d bytes of %d", n, len(data))
		}
	})
}

func BenchmarkVault(b *testing.B) {
	entries := bytes.Split(bytes.TrimSuffix(recordedVault(b, "vault-1.21.ndjson"), []byte("\n")), []byte("\n"))
	size := 0
	for _, e := range entries {
		size += len(e)
	}
	e := encoder(b, vaultOptions, sender)
	block := make([]byte, 0, 256<<10)
	var v vault.Entry
	b.SetBytes(int64(size / len(entries)))
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if len(block) > 200<<10 {
			block = block[:0]
		}
		m := framing.Message{Data: entries[i%len(entries)]}
		vault.Parse(&v, m.Data, nil)
		block = AppendTail(e.AppendVault(block, m, &v, received), epoch, 1<<32)
		i++
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}
