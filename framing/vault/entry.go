// Package vault reads the audit entries of HashiCorp Vault and OpenBao as their
// socket device sends them, and finds out which ones are missing.
//
// It is pure: no sockets, no clock, no files, no goroutines. Parse allocates
// nothing; what it finds aliases its input.
//
// # An entry
//
//	vault-a: {"time":"2026-11-20T12:00:00.356625452Z","type":"request","auth":{…},"request":{"id":"cd09…",…}}
//	└prefix─┘└──────────────────────────────────body──────────────────────────────────────────────────────┘
//
// The body is one JSON object (RFC 8259, UTF-8), or what format=jsonx writes:
// elements without a root, sorted by name, so that the last one at the top is
// "type":
//
//	<json:object name="auth">…</json:object><json:object name="request"><json:string name="id">cd09…</json:string>…</json:object>
//	<json:string name="time">2026-…Z</json:string><json:string name="type">request</json:string>
//
// Names of elements are escaped as in XML, values are not. A value that holds the
// text "</json:string>" can't be told from its end: format=json has no such hole.
//
// Every member may be missing (filters of Vault Enterprise), and the values of type
// are not a closed list (kmip-request; OpenBao makes them of the mount's type). So an
// entry is what is whole, not what has certain members.
//
// # What is not an entry
//
// An entry whose end is missing (Entry.Torn), which is what a connection that was
// cut leaves, and all that is not valid: Entry.Err says what, and Entry.Pos where.
// So does a member that Parse reads and that stands there twice: readers of JSON
// differ in which of the two they take.
package vault

import (
	"bytes"
	"unicode/utf8"
)

// Limits of an entry.
const (
	MaxPrefix = 1024 // bytes in front of the body
	MaxDepth  = 512  // objects and arrays in one another: many readers of JSON end at 1,000, Vault itself at 300
)

// Format of a body.
type Format uint8

// Formats.
const (
	JSON  Format = 0
	JSONX Format = 1
)

// Field names a member that Parse extracts.
type Field uint8

// Fields, each with its place in an entry. One that does not say otherwise is a
// string in what Vault writes.
const (
	Time              Field = 0  // time: RFC 3339
	Type              Field = 1  // type
	Error             Field = 2  // error
	Forwarded         Field = 3  // forwarded: boolean
	ForwardedFrom     Field = 4  // forwarded_from
	DisplayName       Field = 5  // auth.display_name
	EntityID          Field = 6  // auth.entity_id
	Accessor          Field = 7  // auth.accessor
	ClientToken       Field = 8  // auth.client_token
	Policies          Field = 9  // auth.policies: array of strings
	Email             Field = 10 // auth.metadata.email
	Allowed           Field = 11 // auth.policy_results.allowed: boolean
	RequestID         Field = 12 // request.id
	Operation         Field = 13 // request.operation
	Path              Field = 14 // request.path
	RemoteAddress     Field = 15 // request.remote_address; of KMIP ip:port
	RemotePort        Field = 16 // request.remote_port: number
	MountType         Field = 17 // request.mount_type
	MountPoint        Field = 18 // request.mount_point
	NamespacePath     Field = 19 // request.namespace.path
	ClientID          Field = 20 // request.client_id
	CertificateSerial Field = 21 // request.client_certificate_serial_number: decimal digits in a string
	RequestToken      Field = 22 // request.client_token
	RequestAccessor   Field = 23 // request.client_token_accessor
	ResponseToken     Field = 24 // response.auth.client_token
	ResponseAccessor  Field = 25 // response.auth.accessor
	WrapToken         Field = 26 // response.wrap_info.token
	WrapAccessor      Field = 27 // response.wrap_info.accessor
	WrappedAccessor   Field = 28 // response.wrap_info.wrapped_accessor

	fields = 29
)

// Entry is what Parse found. It may be used again; its slices alias the input.
type Entry struct {
	Data   []byte // the input: prefix, body and what white space is around it
	Prefix []byte
	Body   []byte // the entry itself
	Format Format

	// Err says why this is no entry, "" for one. It is a constant text. Pos is the
	// position in Data, from 1, that it is about.
	Err string
	Pos int

	Torn     bool // with Err: all that is there is right, and its end is missing
	NoPrefix bool // the prefix that was asked for is not there
	Spaced   bool // a JSON body has CR, LF or TAB between its tokens

	// Duplicate says that the same entry came before. Parse clears it; it is for whoever
	// holds entries against each other (Pairs.See) to set.
	Duplicate bool

	values [fields]Value
	seen   uint64 // fields, and objects that hold fields

	// own is how many bytes of Data there are up to the end of its time or its id, whichever
	// comes first. No other entry begins with the same. 0: neither is there.
	own int
}

// Get returns a member; Kind None if it is not there.
func (e *Entry) Get(f Field) Value { return e.values[f] }

// Parse reads one entry. Its prefix is prefix, or if that is empty whatever stands
// before the first { or <json:.
func Parse(e *Entry, data, prefix []byte) {
	*e = Entry{Data: data}
	start := 0
	if len(prefix) > 0 {
		if bytes.HasPrefix(data, prefix) {
			start = len(prefix)
		} else if e.NoPrefix = true; len(data) < len(prefix) && bytes.HasPrefix(prefix, data) {
			e.fail(errTorn, len(data))
			e.Torn = true
			return
		}
	}
	if start == 0 {
		if start, e.Torn = begin(data); start < 0 {
			e.fail(errBegin, 0)
			return
		}
	}
	e.Prefix = data[:start:start]
	s := scanner{b: data, i: start}
	s.space()
	s.spaced = false
	body := s.i
	ok := false
	if hasOrBegins(data[s.i:], opening) && s.i < len(data) {
		e.Format = JSONX
		ok = s.xml(e)
	} else {
		ok = s.json(e)
	}
	end := s.i
	if ok {
		spaced := s.spaced
		if s.space(); s.i < len(data) {
			ok = s.fail("text behind the end of the entry")
		}
		s.spaced = spaced
	}
	e.Spaced = s.spaced
	if !ok {
		e.fail(s.err, s.i)
		e.Torn = s.torn
	}
	if i := invalidUTF8(data[start:]); i >= 0 && e.Format == JSON && (e.Err == "" || start+i < e.Pos-1) && !(e.Torn && !utf8.FullRune(data[start+i:])) {
		e.fail("invalid UTF-8", start+i)
		e.Torn = false
	}
	if e.Err != "" {
		return
	}
	e.Body = data[body:end:end]
}

const (
	errTorn  = "the end of the entry is missing"
	errBegin = "no { or <json: that begins an entry"
	errTwice = "a member that stands there twice"
	errDepth = "objects and arrays lie too deep in one another"
)

func (e *Entry) fail(text string, i int) { e.Err, e.Pos = text, i+1 }

// begin returns where the body begins behind a prefix that is not known, negative
// if it doesn't. torn says that it may in what is missing.
func begin(data []byte) (start int, torn bool) {
	head := data[:min(len(data), MaxPrefix+len(opening))]
	start = bytes.IndexByte(head, '{')
	if x := bytes.Index(head, []byte(opening)); x >= 0 && (start < 0 || x < start) {
		start = x
	}
	if start > MaxPrefix {
		start = -1
	}
	return start, start < 0 && len(data) <= MaxPrefix
}

// invalidUTF8 returns where b is not valid UTF-8, negative for nowhere.
func invalidUTF8(b []byte) int {
	if utf8.Valid(b) {
		return -1
	}
	for i := 0; ; {
		r, n := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && n <= 1 {
			return i
		}
		i += n
	}
}

// Is reports whether the entry has the string text at f.
func (e *Entry) Is(f Field, text string) bool { return e.values[f].Is(text) }

// IsProbe reports whether this is the entry that Vault writes when an audit device
// is enabled. Nothing answers it. Vault makes it itself: it has no client, no token and
// no error, which the entry of a client that writes to this path has.
func (e *Entry) IsProbe() bool {
	return e.Is(Type, "request") && e.Is(Operation, "update") && e.Is(Path, "sys/audit/test") &&
		e.none(RemoteAddress) && e.none(ClientToken) && e.none(RequestToken) && e.none(Error)
}

// none reports whether a member is not there, or empty.
func (e *Entry) none(f Field) bool { return len(e.values[f].Raw) == 0 || e.values[f].Kind == Null }

// RawToken reports whether the entry holds a token that was not hashed (log_raw):
// whoever reads it can use it.
func (e *Entry) RawToken() bool {
	return e.raw(ClientToken) || e.raw(RequestToken) || e.raw(ResponseToken) || e.raw(WrapToken)
}

// RawAccessor reports whether the entry holds an accessor that was not hashed
// (hmac_accessor=false, or log_raw).
func (e *Entry) RawAccessor() bool {
	return e.raw(Accessor) || e.raw(RequestAccessor) || e.raw(ResponseAccessor) || e.raw(WrapAccessor) || e.raw(WrappedAccessor)
}

func (e *Entry) raw(f Field) bool {
	v := e.values[f]
	return v.Kind == String && len(v.Raw) > 0 && !hashed(v.Raw)
}

// hashed reports whether text is what Vault puts in place of a secret.
func hashed(text []byte) bool {
	const lead = "hmac-sha256:"
	if len(text) != len(lead)+64 || string(text[:len(lead)]) != lead {
		return false
	}
	for _, c := range text[len(lead):] {
		if !('0' <= c && c <= '9' || 'a' <= c && c <= 'f') {
			return false
		}
	}
	return true
}

// container is an object that holds fields, or other containers.
type container uint8

const (
	top           container = 0
	auth          container = 1
	metadata      container = 2 // auth.metadata
	policyResults container = 3 // auth.policy_results
	request       container = 4
	namespace     container = 5 // request.namespace
	response      container = 6
	responseAuth  container = 7 // response.auth
	wrapInfo      container = 8 // response.wrap_info

	nothing    Field     = 255
	noneInside container = 255
)

// set notes the value of a field, which ends where end bytes of Data do.
func (e *Entry) set(f Field, v Value, end int) {
	e.values[f] = v
	if e.own == 0 && (f == Time || f == RequestID) {
		e.own = end
	}
}

// lookup returns the field or the container that name is in c, which may be
// neither.
func lookup(c container, name []byte) (Field, container) {
	switch c {
	case top:
		switch string(name) {
		case "time":
			return Time, noneInside
		case "type":
			return Type, noneInside
		case "error":
			return Error, noneInside
		case "forwarded":
			return Forwarded, noneInside
		case "forwarded_from":
			return ForwardedFrom, noneInside
		case "auth":
			return nothing, auth
		case "request":
			return nothing, request
		case "response":
			return nothing, response
		}
	case auth:
		switch string(name) {
		case "display_name":
			return DisplayName, noneInside
		case "entity_id":
			return EntityID, noneInside
		case "accessor":
			return Accessor, noneInside
		case "client_token":
			return ClientToken, noneInside
		case "policies":
			return Policies, noneInside
		case "metadata":
			return nothing, metadata
		case "policy_results":
			return nothing, policyResults
		}
	case metadata:
		if string(name) == "email" {
			return Email, noneInside
		}
	case policyResults:
		if string(name) == "allowed" {
			return Allowed, noneInside
		}
	case request:
		switch string(name) {
		case "id":
			return RequestID, noneInside
		case "operation":
			return Operation, noneInside
		case "path":
			return Path, noneInside
		case "remote_address":
			return RemoteAddress, noneInside
		case "remote_port":
			return RemotePort, noneInside
		case "mount_type":
			return MountType, noneInside
		case "mount_point":
			return MountPoint, noneInside
		case "client_id":
			return ClientID, noneInside
		case "client_certificate_serial_number":
			return CertificateSerial, noneInside
		case "client_token":
			return RequestToken, noneInside
		case "client_token_accessor":
			return RequestAccessor, noneInside
		case "namespace":
			return nothing, namespace
		}
	case namespace:
		if string(name) == "path" {
			return NamespacePath, noneInside
		}
	case response:
		switch string(name) {
		case "auth":
			return nothing, responseAuth
		case "wrap_info":
			return nothing, wrapInfo
		}
	case responseAuth:
		switch string(name) {
		case "client_token":
			return ResponseToken, noneInside
		case "accessor":
			return ResponseAccessor, noneInside
		}
	case wrapInfo:
		switch string(name) {
		case "token":
			return WrapToken, noneInside
		case "accessor":
			return WrapAccessor, noneInside
		case "wrapped_accessor":
			return WrappedAccessor, noneInside
		}
	}
	return nothing, noneInside
}

// longestName is that of the longest name in lookup.
const longestName = len("client_certificate_serial_number")

// first notes that f or inside stands in the entry, and reports whether it is the
// first time.
func (e *Entry) first(f Field, inside container) bool {
	var bit uint64
	switch {
	case f != nothing:
		bit = 1 << f
	case inside != noneInside:
		bit = 1 << (fields + uint(inside))
	}
	if e.seen&bit != 0 {
		return false
	}
	e.seen |= bit
	return true
}
