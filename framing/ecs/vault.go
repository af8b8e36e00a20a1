package ecs

import (
	"bytes"
	"net/netip"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"spillway/framing"
	"spillway/framing/vault"
)

// Tags of AppendVault.
const (
	TagVaultFailure     = "_vaultparsefailure" // error.message says why it is no audit entry
	TagVaultTorn        = "vault_torn"         // its connection ended in the middle of it; Vault sends it again as a whole
	TagVaultProbe       = "vault_probe"        // the entry that enabling an audit device writes
	TagVaultRawSecret   = "vault_raw_secret"   // it holds a token that is not hashed (log_raw)
	TagVaultRawAccessor = "vault_raw_accessor" // it holds an accessor that is not hashed (hmac_accessor=false)
	TagDuplicate        = "duplicate"          // the same bytes came before
)

// AppendVault appends the record of an audit entry of Vault, open at its end:
// AppendTail completes it. v is what vault.Parse found in msg.Data. It differs from
// other records in this, here over several lines:
//
//	{"@timestamp":"2026-11-20T12:00:00.356625452Z",        time, else receive time
//	 "event":{"created":"2026-11-20T12:00:00.36Z",["original":"…",]
//	          "kind":"event","category":["authentication"],"type":["info","start"],
//	          ["action":"read",]"outcome":"success",       see appendOutcome
//	          ["id":"cd09…:response",]["reason":"permission denied",]
//	          "dataset":"vault.audit"},
//	 …,                                                    what Options give
//	 "service":{"type":"vault"[,"name":"vault-a"]},        the prefix without ": "
//	 ["http":{"request":{"id":"cd09…"}},]                  joins request and response
//	 ["user":{"name":"oidc-1","id":"e4f5…","email":"a@example.org","roles":["default"]},]
//	 ["source":{"address":"198.51.100.7","ip":"198.51.100.7","port":51422},]  Vault's client
//	 ["related":{"ip":["198.51.100.7"]},]
//	 ["url":{"path":"secret/data/a"},]
//	 ["tls":{"client":{"x509":{"serial_number":"4711"}}},] Vault's client, decimal
//	 ["vault":{"audit":{"type":"response","error":"…","accessor":"…","mount_type":"kv",
//	                    "mount_point":"secret/","namespace":{"path":"n/"},"client_id":"…",
//	                    "forwarded":true,"forwarded_from":"…","prefix":"vault-a: "}},]
//	 ["observer":{"ip":"192.0.2.7"[,"nat":{…}][,"tls":{…}]},]  Vault itself: who sent it, and how
//	 "hashicorp_vault":{"audit":{"time":"2026-…",…}},      the entry, byte for byte
//	 ["log":{["source":{"address":"192.0.2.7:44214"}][,"flags":[…]]},]
//	 ["tags":["vault_probe"],]
//
// The entry is one that was sent: numbers keep their digits, members their order, and
// only line breaks and tabs between tokens become spaces. So as in no other part of a
// record null is a value in it, and a name that vault.Parse does not look for may stand
// twice in an object, if that was sent. An entry in jsonx is no JSON;
// it is the message instead of hashicorp_vault.audit. So is what is no entry, and
// its record has nothing but this and error.message: nobody knows whose words the
// members of half an entry are.
//
// The category is that of the path: iam for identity/ and sys/polic…, both for auth/,
// where some log in and others manage who may.
func (e *Encoder) AppendVault(dst []byte, msg framing.Message, v *vault.Entry, received time.Time) []byte {
	e.invalid = false
	dst = slices.Grow(dst, len(msg.Data)+2048)

	stamp := received
	if t, ok := v.When(); v.Err == "" && ok && writable(t) {
		stamp = t
	}
	dst = append(dst, `{"@timestamp":"`...)
	dst = e.stamp.appendTime(dst, stamp)
	dst = append(dst, `","event":{"created":"`...)
	dst = e.created.appendTime(dst, received)
	dst = append(dst, '"')
	dst = e.appendOriginal(dst, msg.Data)
	if v.Err != "" {
		dst = append(dst, e.middle[:e.fixed]...)
		dst = e.appendObserver(dst)
		dst = append(dst, `,"message":"`...)
		dst = e.appendText(dst, msg.Data)
		dst = append(dst, '"')
		dst = e.appendLog(dst, msg.Flags)
		dst = appendVaultError(dst, msg, v)
	} else {
		dst = e.appendEntry(dst, v)
		dst = e.appendLog(dst, msg.Flags)
		if msg.Err != "" {
			dst = appendVaultError(dst, msg, v)
		}
	}

	start := len(dst)
	dst = append(dst, e.tags...)
	switch {
	case v.Err == "":
	case v.Torn && msg.Flags&framing.Unterminated != 0:
		dst = appendTag(dst, start, TagVaultTorn)
	default:
		dst = appendTag(dst, start, TagVaultFailure)
	}
	if v.IsProbe() && v.Err == "" {
		dst = appendTag(dst, start, TagVaultProbe)
	}
	if v.RawToken() {
		dst = appendTag(dst, start, TagVaultRawSecret)
	}
	if v.RawAccessor() {
		dst = appendTag(dst, start, TagVaultRawAccessor)
	}
	if v.Duplicate {
		dst = appendTag(dst, start, TagDuplicate)
	}
	if e.invalid {
		dst = appendTag(dst, start, TagInvalidUTF8)
	}
	if len(dst) > start {
		dst = append(dst, ']')
	}
	return append(dst, `,"spillway":{`...)
}

// Source returns what SetSource said last.
func (e *Encoder) Source() Source { return e.source }

// appendLog appends log, nothing when there is nothing in it.
func (e *Encoder) appendLog(dst []byte, f framing.Flags) []byte {
	dst = append(dst, e.log...)
	if f != 0 {
		dst = appendFlags(dst, f, 0)
	}
	if dst[len(dst)-1] == '{' {
		return dst[:len(dst)-len(emptyLog)]
	}
	return append(dst, '}')
}

// appendVaultError appends error.message, like appendError:
//
//	"vault failed to process field \"message\": parsing error at position 17: the end of the entry is missing"
func appendVaultError(dst []byte, msg framing.Message, v *vault.Entry) []byte {
	both := msg.Err != "" && v.Err != ""
	dst = append(dst, `,"error":{"message":`...)
	if both {
		dst = append(dst, '[')
	}
	if msg.Err != "" {
		dst = append(dst, `"framing: `...)
		dst, _ = appendText(dst, []byte(msg.Err))
		dst = append(dst, '"')
	}
	if both {
		dst = append(dst, ',')
	}
	if v.Err != "" {
		dst = append(dst, `"vault failed to process field \"message\": parsing error at position `...)
		dst = strconv.AppendInt(dst, int64(v.Pos), 10)
		dst = append(dst, `: `...)
		dst, _ = appendText(dst, []byte(v.Err))
		dst = append(dst, '"')
	}
	if both {
		dst = append(dst, ']')
	}
	return append(dst, '}')
}

// appendEntry appends what an entry says, from inside event on.
func (e *Encoder) appendEntry(dst []byte, v *vault.Entry) []byte {
	dst = append(dst, `,"kind":"event"`...)
	dst = append(dst, categoryOf(v)...)
	dst = e.appendString(dst, `,"action":"`, v.Get(vault.Operation))
	dst = appendOutcome(dst, v)
	id, kind := v.Get(vault.RequestID), v.Get(vault.Type)
	if filled(id) {
		dst = append(dst, `,"id":"`...)
		dst = e.appendInside(dst, id)
		if filled(kind) {
			dst = append(dst, ':')
			dst = e.appendInside(dst, kind)
		}
		dst = append(dst, '"')
	}
	dst = e.appendString(dst, `,"reason":"`, v.Get(vault.Error))
	dst = append(dst, e.middle[:e.fixed]...)

	dst = append(dst, `,"service":{"type":"vault"`...)
	dst = e.appendMember(dst, `,"name":"`, serviceName(v.Prefix))
	dst = append(dst, '}')
	if filled(id) {
		dst = e.appendString(dst, `,"http":{"request":{"id":"`, id)
		dst = append(dst, `}}`...)
	}
	dst = e.appendUser(dst, v)
	dst = e.appendClient(dst, v)
	if path := v.Get(vault.Path); filled(path) {
		dst = e.appendString(dst, `,"url":{"path":"`, path)
		dst = append(dst, '}')
	}
	if serial := v.Get(vault.CertificateSerial); filled(serial) {
		dst = e.appendString(dst, `,"tls":{"client":{"x509":{"serial_number":"`, serial)
		dst = append(dst, `}}}`...)
	}
	dst = e.appendAudit(dst, v)
	dst = e.appendObserver(dst)

	if v.Format == vault.JSONX {
		dst = append(dst, `,"message":"`...)
		dst = e.appendText(dst, v.Body)
		return append(dst, '"')
	}
	dst = append(dst, `,"hashicorp_vault":{"audit":`...)
	start := len(dst)
	dst = append(dst, v.Body...)
	if v.Spaced {
		// Inside strings these are escapes, so that each is between two tokens.
		for i, c := range dst[start:] {
			if c == '\n' || c == '\r' || c == '\t' {
				dst[start+i] = ' '
			}
		}
	}
	return append(dst, '}')
}

// filled reports whether v is a string that is not empty.
func filled(v vault.Value) bool { return v.Kind == vault.String && len(v.Raw) > 0 }

// appendString appends a member that is a string, with the comma before it if it is
// not the first one; nothing without a value.
func (e *Encoder) appendString(dst []byte, lead string, v vault.Value) []byte {
	if !filled(v) {
		return dst
	}
	dst = appendName(dst, lead)
	dst = e.appendInside(dst, v)
	return append(dst, '"')
}

// appendInside appends a string of an entry as the inside of one of JSON, which in
// JSON it is.
func (e *Encoder) appendInside(dst []byte, v vault.Value) []byte {
	if v.Escaped() {
		return append(dst, v.Raw...)
	}
	return e.appendText(dst, v.Raw)
}

// categoryOf returns event.category and event.type.
func categoryOf(v *vault.Entry) string {
	path, op := v.Get(vault.Path), v.Get(vault.Operation)
	if path.Begins("identity/") || path.Begins("sys/policies/") || path.Begins("sys/policy") {
		switch {
		case op.Is("create"):
			return `,"category":["iam"],"type":["creation"]`
		case op.Is("update"), op.Is("patch"):
			return `,"category":["iam"],"type":["change"]`
		case op.Is("delete"):
			return `,"category":["iam"],"type":["deletion"]`
		}
		return `,"category":["iam"],"type":["info"]`
	}
	start, end := op.Is("read") || op.Is("list") || op.Is("create"), op.Is("delete")
	if path.Begins("auth/") {
		switch {
		case start:
			return `,"category":["authentication","iam"],"type":["info","start"]`
		case end:
			return `,"category":["authentication","iam"],"type":["info","end"]`
		}
		return `,"category":["authentication","iam"],"type":["info"]`
	}
	switch {
	case start:
		return `,"category":["authentication"],"type":["info","start"]`
	case end:
		return `,"category":["authentication"],"type":["info","end"]`
	}
	return `,"category":["authentication"],"type":["info"]`
}

// appendOutcome appends event.outcome: failure with an error, or if the policies did
// not allow it; else success of a response (kmip-response and the like too). What
// becomes of a request nobody knows yet.
func appendOutcome(dst []byte, v *vault.Entry) []byte {
	kind, allowed := v.Get(vault.Type), v.Get(vault.Allowed)
	switch {
	case filled(v.Get(vault.Error)), allowed.Kind == vault.Bool && string(allowed.Raw) == "false":
		return append(dst, `,"outcome":"failure"`...)
	case kind.Kind == vault.String && bytes.HasSuffix(kind.Raw, []byte("response")):
		return append(dst, `,"outcome":"success"`...)
	}
	return append(dst, `,"outcome":"unknown"`...)
}

// serviceName is the prefix as a name; nil for none, and for the cookie @cee: of
// syslog, which names nothing.
func serviceName(prefix []byte) []byte {
	if prefix = bytes.Trim(prefix, " \t:"); string(prefix) == "@cee" {
		return nil
	}
	return prefix
}

// appendUser appends user, nothing when nothing is known of it.
func (e *Encoder) appendUser(dst []byte, v *vault.Entry) []byte {
	start := len(dst)
	dst = append(dst, `,"user":{`...)
	empty := len(dst)
	dst = e.appendString(dst, `,"name":"`, v.Get(vault.DisplayName))
	dst = e.appendString(dst, `,"id":"`, v.Get(vault.EntityID))
	dst = e.appendString(dst, `,"email":"`, v.Get(vault.Email))
	roles := v.Get(vault.Policies)
	sep := byte('[')
	for item := roles.Item(); item.Kind != vault.None; item = roles.Item() {
		if !filled(item) {
			continue
		}
		if sep == '[' {
			dst = appendName(dst, `,"roles":`)
		}
		dst = append(dst, sep, '"')
		dst = e.appendInside(dst, item)
		dst = append(dst, '"')
		sep = ','
	}
	if sep == ',' {
		dst = append(dst, ']')
	}
	if len(dst) == empty {
		return dst[:start]
	}
	return append(dst, '}')
}

// appendClient appends source and related, which are Vault's client. remote_address of
// KMIP entries is ip:port.
func (e *Encoder) appendClient(dst []byte, v *vault.Entry) []byte {
	text := v.Get(vault.RemoteAddress)
	if !filled(text) {
		return dst
	}
	e.scratch = text.AppendText(e.scratch[:0])
	ip, port := parseClient(e.scratch)
	if n := v.Get(vault.RemotePort); n.Kind == vault.Number {
		if p, ok := parsePort(n.Raw); ok {
			port = p
		}
	}
	dst = append(dst, `,"source":{"address":"`...)
	dst = e.appendInside(dst, text)
	dst = append(dst, '"')
	if ip.IsValid() {
		dst = append(dst, `,"ip":"`...)
		dst = ip.AppendTo(dst)
		dst = append(dst, '"')
	}
	if port > 0 {
		dst = append(dst, `,"port":`...)
		dst = strconv.AppendUint(dst, uint64(port), 10)
	}
	dst = append(dst, '}')
	if ip.IsValid() {
		dst = append(dst, `,"related":{"ip":["`...)
		dst = ip.AppendTo(dst)
		dst = append(dst, `"]}`...)
	}
	return dst
}

// parseClient reads ip or ip:port, and writes over text. The address has no zone, and
// no IPv4 in IPv6.
func parseClient(text []byte) (ip netip.Addr, port uint16) {
	if i := bytes.IndexByte(text, '%'); i >= 0 {
		end := i + bytes.IndexByte(text[i:], ']')
		if end < i {
			end = len(text)
		}
		text = append(text[:i], text[end:]...)
	}
	colons := 0
	for _, c := range text {
		switch {
		case c == ':':
			colons++
		case '0' <= c && c <= '9', 'a' <= c && c <= 'f', 'A' <= c && c <= 'F', c == '.', c == '[', c == ']':
		default:
			return netip.Addr{}, 0 // no error of netip's has to be made
		}
	}
	if len(text) == 0 {
		return netip.Addr{}, 0
	}
	// Without a zone what is parsed keeps no part of the text, so that it need not
	// become a string of its own.
	s := unsafe.String(&text[0], len(text))
	if text[0] == '[' || colons == 1 {
		both, _ := netip.ParseAddrPort(s)
		return both.Addr().Unmap(), both.Port()
	}
	ip, _ = netip.ParseAddr(s)
	return ip.Unmap(), 0
}

// parsePort reads a number of at most 65535, digits only.
func parsePort(digits []byte) (port uint16, ok bool) {
	n := 0
	for _, c := range digits {
		if c < '0' || c > '9' || n > 6553 {
			return 0, false
		}
		n = 10*n + int(c-'0')
	}
	return uint16(n), n <= 65535
}

// appendAudit appends vault.audit: what has no place in ECS.
func (e *Encoder) appendAudit(dst []byte, v *vault.Entry) []byte {
	start := len(dst)
	dst = append(dst, `,"vault":{"audit":{`...)
	empty := len(dst)
	dst = e.appendString(dst, `,"type":"`, v.Get(vault.Type))
	dst = e.appendString(dst, `,"error":"`, v.Get(vault.Error))
	dst = e.appendString(dst, `,"accessor":"`, v.Get(vault.Accessor))
	dst = e.appendString(dst, `,"mount_type":"`, v.Get(vault.MountType))
	dst = e.appendString(dst, `,"mount_point":"`, v.Get(vault.MountPoint))
	if path := v.Get(vault.NamespacePath); filled(path) {
		dst = e.appendString(dst, `,"namespace":{"path":"`, path)
		dst = append(dst, '}')
	}
	dst = e.appendString(dst, `,"client_id":"`, v.Get(vault.ClientID))
	if f := v.Get(vault.Forwarded); f.Kind == vault.Bool && (string(f.Raw) == "true" || string(f.Raw) == "false") {
		dst = appendName(dst, `,"forwarded":`)
		dst = append(dst, f.Raw...)
	}
	dst = e.appendString(dst, `,"forwarded_from":"`, v.Get(vault.ForwardedFrom))
	dst = e.appendMember(dst, `,"prefix":"`, v.Prefix)
	if len(dst) == empty {
		return dst[:start]
	}
	return append(dst, `}}`...)
}

// appendObserver appends observer, nothing for a local program.
func (e *Encoder) appendObserver(dst []byte) []byte {
	s := &e.source
	if !s.Addr.IsValid() {
		return dst
	}
	dst = append(dst, `,"observer":{"ip":"`...)
	dst = s.Addr.Addr().Unmap().WithZone("").AppendTo(dst)
	dst = append(dst, '"')
	if s.Proxy.IsValid() {
		dst = append(dst, `,"nat":{"ip":"`...)
		dst = s.Proxy.Addr().Unmap().WithZone("").AppendTo(dst)
		dst = append(dst, `","port":`...)
		dst = strconv.AppendUint(dst, uint64(s.Proxy.Port()), 10)
		dst = append(dst, '}')
	}
	if s.TLS != nil {
		dst = append(dst, s.TLS.member...)
	}
	return append(dst, '}')
}

// AppendVaultAlert appends the record of an entry that did not come, open at its end
// like those of AppendRecord. now is its time. Of e it carries what Options give, not
// the source.
//
//	{"@timestamp":"2026-11-20T12:02:00Z",
//	 "event":{"created":"2026-11-20T12:02:00Z","kind":"alert","action":"vault-audit-gap",
//	          "reason":"no response entry within 2m0s of its request entry","dataset":"vault.audit"},
//	 …,"service":{"type":"vault"},"http":{"request":{"id":"cd09…"}},["url":{"path":"secret/data/a"},]
//	 "vault":{"audit":{"gap":{"missing":"response",                     or request
//	                          "seen":"2026-11-20T12:00:00Z",            its other half was received
//	                          ["connected":"2026-11-20T11:59:59Z"]}}},  the newest connection of who sent that
//	 ["observer":{"ip":"192.0.2.7"},]
//	 "message":"vault audit gap: request cd09… has no response entry",["tags":[…],]
func (e *Encoder) AppendVaultAlert(dst []byte, m vault.Missing, timeout time.Duration, now time.Time) []byte {
	e.invalid = false
	other := "request"
	if m.Type == other {
		other = "response"
	}
	dst = append(dst, `{"@timestamp":"`...)
	dst = e.stamp.appendTime(dst, now)
	dst = append(dst, `","event":{"created":"`...)
	dst = e.created.appendTime(dst, now)
	dst = append(dst, `","kind":"alert","action":"vault-audit-gap","reason":"no `...)
	dst = append(dst, m.Type...)
	dst = append(dst, ` entry within `...)
	dst = append(dst, timeout.String()...)
	dst = append(dst, ` of its `...)
	dst = append(dst, other...)
	dst = append(dst, ` entry"`...)
	dst = append(dst, e.middle[:e.fixed]...)
	dst = append(dst, `,"service":{"type":"vault"},"http":{"request":{"id":"`...)
	dst = e.appendText(dst, m.ID)
	dst = append(dst, `"}}`...)
	if len(m.Path) > 0 {
		dst = append(dst, `,"url":{"path":"`...)
		dst = e.appendText(dst, m.Path)
		dst = append(dst, `"}`...)
	}
	dst = append(dst, `,"vault":{"audit":{"gap":{"missing":"`...)
	dst = append(dst, m.Type...)
	dst = append(dst, '"')
	dst = e.appendMoment(dst, `,"seen":"`, m.Seen)
	dst = e.appendMoment(dst, `,"connected":"`, m.Changed)
	dst = append(dst, `}}}`...)
	if m.Addr.IsValid() {
		dst = append(dst, `,"observer":{"ip":"`...)
		dst = m.Addr.Unmap().WithZone("").AppendTo(dst)
		dst = append(dst, `"}`...)
	}
	dst = append(dst, `,"message":"vault audit gap: request `...)
	dst = e.appendText(dst, m.ID)
	dst = append(dst, ` has no `...)
	dst = append(dst, m.Type...)
	dst = append(dst, ` entry"`...)
	start := len(dst)
	dst = append(dst, e.tags...)
	if e.invalid {
		dst = appendTag(dst, start, TagInvalidUTF8)
	}
	if len(dst) > start {
		dst = append(dst, ']')
	}
	return append(dst, `,"spillway":{`...)
}
