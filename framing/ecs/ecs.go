// Package ecs encodes records: one message and what is known of it become one
// line of JSON with the field names of the Elastic Common Schema.
//
// An ordinary record is drawn here over several lines; on the wire it is one.
// What stands in [ ] is left out when there is nothing to say.
//
//	{"@timestamp":"2003-10-11T22:14:15.003Z",              header time, else receive time
//	 "event":{"created":"2026-11-20T12:00:00.25Z",         receive time
//	          ["original":"<165>1 2003-…",]                Options.PreserveOriginal
//	          ["sequence":29,]                             of a Cisco header
//	          ["timezone":"IST",]                          of a Cisco header, if it is not known
//	          "dataset":"tcp.generic"},
//	 "data_stream":{"type":"logs","dataset":"tcp.generic","namespace":"default"},
//	 "ecs":{"version":"8.11.0"},["input":{"type":"tcp"},]
//	 ["host":{"name":"gw1"},]"agent":{"name":"gw1"},["labels":{"pipeline":"p"},]
//	 ["source":{"address":"192.0.2.7","ip":"192.0.2.7","port":44214
//	            [,"nat":{"ip":"10.0.0.5","port":50422}]},]  Source.Proxy
//	 ["tls":{…},]                                          Source.TLS
//	 ["message":"this is the message",]
//	 ["log":{["source":{"address":"192.0.2.7:44214"},]
//	         ["syslog":{["priority":165,"facility":{"code":20,"name":"local4"},
//	                     "severity":{"code":5,"name":"Notice"},]
//	                    ["version":"1",]["appname":"a",]["procid":"1024",]["msgid":"ID47",]
//	                    ["structured_data":{"id@32473":{"iut":"3"}},]["hostname":"h"]},]
//	         ["flags":["truncated"]]},]
//	 ["error":{"message":"…"},]["tags":["…"],]
//	 "spillway":{                                          AppendRecord ends here, behind the brace,
//	             "epoch":"00c0ffee00c0ffee","seq":123}}\n  AppendTail writes this
//
// A gap record has no sender and says what is missing (see Gap); it differs in
// "event", which has "kind":"pipeline_error", and in "spillway", where "gap"
// stands before "epoch" and "seq". These two are the last members of every
// line, so whoever wants only them reads a line from its end.
//
// Rules that hold for every line, whatever the sender sent:
//
//   - It is valid JSON and valid UTF-8 and has one line feed, at its end.
//   - No object has two members of one name.
//   - A byte that is not part of valid UTF-8 becomes U+FFFD, and the record is
//     tagged invalid_utf8. All other text is carried without a change.
//   - Times are UTC with a "Z" and as many digits as the nanoseconds need:
//     zeros at the end of the fraction are not written.
//   - Members without a value are left out; none is null.
//
// The order is one for the compressor: the constants lie in one piece, which is
// one match for it and one copy for us; the message stands before what its
// header said, and the host last. With syslog of many programs and zstd that is
// 6 to 8 % fewer bytes than in the order they were sent, for the end of a message
// tells more of its header than the other way round.
package ecs

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"spillway/framing"
	"spillway/framing/syslog"
)

// Version is the version of the Elastic Common Schema that records name.
const Version = "8.11.0"

// Tags that the encoder adds behind those of Options.Tags.
const (
	TagInvalidUTF8    = "invalid_utf8"            // bytes were replaced by U+FFFD
	TagParseFailure   = "_syslogparsefailure"     // error.message says what was wrong with the header
	TagOriginal       = "preserve_original_event" // event.original is there
	TagOriginalBase64 = "event_original_base64"   // and is base64
	TagMark           = "mark"                    // a "-- MARK --" of a syslogd
)

// Original says whether records carry the message as it was received.
type Original uint8

// Values of Original.
const (
	OriginalNone   Original = 0 // event.original is left out
	OriginalText   Original = 1 // as text, invalid UTF-8 replaced as anywhere else
	OriginalBase64 Original = 2 // as standard base64 with padding: every byte is kept
)

// UnmarshalText reads "false", "true" or "base64", and the other spellings of
// a boolean: no, off, 0, yes, on, 1.
func (o *Original) UnmarshalText(text []byte) error {
	switch strings.ToLower(string(text)) {
	case "false", "no", "off", "0":
		*o = OriginalNone
	case "true", "yes", "on", "1":
		*o = OriginalText
	case "base64":
		*o = OriginalBase64
	default:
		return fmt.Errorf("%q is neither a boolean nor base64", text)
	}
	return nil
}

// MarshalText writes "false", "true" or "base64".
func (o Original) MarshalText() ([]byte, error) {
	switch o {
	case OriginalText:
		return []byte("true"), nil
	case OriginalBase64:
		return []byte("base64"), nil
	}
	return []byte("false"), nil
}

// Options are what all records of one input have in common.
type Options struct {
	Dataset   string   // event.dataset and data_stream.dataset
	Agent     string   // agent.name
	Host      string   // host.name, and the host of messages from a local socket that name none; "": left out
	InputType string   // input.type: tcp (TLS too), udp, unix or http; "" for an encoder that only writes gap records
	Pipeline  string   // labels.pipeline, handed on and not interpreted; "": left out
	Tags      []string // the first members of tags

	PreserveOriginal Original

	// ShortNames names facilities and severities as syslog.conf does ("auth",
	// "warning") instead of as Elastic does ("security/authorization",
	// "Warning").
	ShortNames bool
}

// maxDataset is the longest dataset that ECS allows, in characters.
const maxDataset = 100

// Validate reports what an Encoder can't be made of. The dataset becomes part
// of a data stream's name: lower case, no "-", at most 100 characters, none
// that an Elasticsearch index name forbids.
func (o Options) Validate() error {
	switch {
	case o.Dataset == "":
		return errors.New("dataset is empty: give a name such as tcp.generic")
	case utf8.RuneCountInString(o.Dataset) > maxDataset:
		return fmt.Errorf("dataset has %d characters: at most %d are allowed", utf8.RuneCountInString(o.Dataset), maxDataset)
	case strings.ContainsRune(o.Dataset, '-'):
		return fmt.Errorf("dataset %q contains %q, which separates the parts of a data stream's name: use %q or %q", o.Dataset, "-", "_", ".")
	case strings.ToLower(o.Dataset) != o.Dataset:
		return fmt.Errorf("dataset %q is not lower case", o.Dataset)
	}
	for _, r := range o.Dataset {
		if r < ' ' || r == 0x7f || r == utf8.RuneError || strings.ContainsRune(` "#*,/:<>?\|`, r) {
			return fmt.Errorf("dataset %q contains %q, which no index name may contain", o.Dataset, r)
		}
	}
	if o.Agent == "" {
		return errors.New("agent has no name")
	}
	switch o.InputType {
	case "", "tcp", "udp", "unix", "http":
	default:
		return fmt.Errorf("input type %q is none of tcp, udp, unix, http", o.InputType)
	}
	for _, t := range o.Tags {
		if t == "" {
			return errors.New("tags contain an empty one")
		}
	}
	for _, s := range append([]string{o.Agent, o.Host, o.Pipeline}, o.Tags...) {
		if !utf8.ValidString(s) {
			return fmt.Errorf("%q is not valid UTF-8", s)
		}
	}
	if o.PreserveOriginal > OriginalBase64 {
		return fmt.Errorf("preserve original has no value %d", o.PreserveOriginal)
	}
	return nil
}

// Source is where messages come from, the same for all of one connection.
type Source struct {
	// Addr is the peer of an IP socket. An IPv4 address mapped into IPv6 is
	// written as IPv4; a zone is written in source.address only.
	Addr netip.AddrPort
	// Path is the path of a unix socket, for log.source.address; used when
	// Addr is not valid.
	Path string
	// Proxy is the balancer that the connection came through and that told
	// Addr; not valid: none. It is source.nat, which is for what a balancer
	// makes of a source's address; source and log.source.address stay the
	// sender's, which is what whoever reads a record asks for.
	Proxy netip.AddrPort
	// TLS of the connection; nil: plain.
	TLS *TLS
}

// Encoder appends records of one input. It is not safe for concurrent use:
// every connection and every datagram reader has its own. It keeps no
// reference to the bytes it is given beyond a call.
//
// The methods grow dst as append does, and allocate nothing else. A record is
// at most 6 bytes per byte of the message (a control character is \u0000; 12
// with PreserveOriginal) longer than its constant part.
type Encoder struct {
	priorities *[192]string
	original   Original
	local      []byte // the host of local messages

	// middle is the constant part of a record: what Options give, [:fixed],
	// and behind it what source gives. log is the beginning of "log".
	middle []byte
	fixed  int
	log    []byte
	source Source
	tags   []byte // `,"tags":["a","b"`, open, or nothing

	stamp   clock // of @timestamp
	created clock // of event.created

	invalid bool    // a text of this record was not valid UTF-8
	params  []param // scratch: the structured data of this record
	scratch []byte  // texts that had to be changed before they could be escaped
}

// NewEncoder returns an Encoder for o, which has been validated, and no
// source.
func NewEncoder(o Options) *Encoder {
	e := &Encoder{priorities: &longPriorities, original: o.PreserveOriginal}
	if o.ShortNames {
		e.priorities = &shortPriorities
	}
	if o.InputType == "unix" {
		e.local = []byte(o.Host)
	}

	b := e.appendField(nil, `,"dataset":"`, o.Dataset)
	b = e.appendField(b, `},"data_stream":{"type":"logs","dataset":"`, o.Dataset)
	b = append(b, `,"namespace":"default"},"ecs":{"version":"`+Version+`"}`...)
	b = e.appendObject(b, `,"input":{"type":"`, o.InputType)
	b = e.appendObject(b, `,"host":{"name":"`, o.Host)
	b = e.appendObject(b, `,"agent":{"name":"`, o.Agent)
	b = e.appendObject(b, `,"labels":{"pipeline":"`, o.Pipeline)
	e.middle, e.fixed = b, len(b)
	e.renderSource()

	tags := o.Tags
	switch o.PreserveOriginal {
	case OriginalText:
		tags = append(tags[:len(tags):len(tags)], TagOriginal)
	case OriginalBase64:
		tags = append(tags[:len(tags):len(tags)], TagOriginal, TagOriginalBase64)
	}
	for _, t := range tags {
		e.tags = appendTag(e.tags, 0, t)
	}
	return e
}

// appendField appends lead, which opens a string, text and the closing quote.
func (e *Encoder) appendField(dst []byte, lead, text string) []byte {
	dst = append(dst, lead...)
	dst = e.appendText(dst, []byte(text))
	return append(dst, '"')
}

// appendObject appends an object of one member, nothing when text is "".
func (e *Encoder) appendObject(dst []byte, lead, text string) []byte {
	if text == "" {
		return dst
	}
	return append(e.appendField(dst, lead, text), '}')
}

// SetSource says where the messages of the following records come from. It
// is a comparison when that has not changed, and never allocates but for the
// first sources longer than all before.
func (e *Encoder) SetSource(s Source) {
	if s == e.source {
		return
	}
	e.source = s
	e.renderSource()
}

func (e *Encoder) renderSource() {
	middle, log := e.middle[:e.fixed], append(e.log[:0], emptyLog...)
	switch s := e.source; {
	case s.Addr.IsValid():
		addr := s.Addr.Addr().Unmap()
		e.scratch = addr.AppendTo(e.scratch[:0]) // a zone is any text
		middle = append(middle, `,"source":{"address":"`...)
		middle = e.appendText(middle, e.scratch)
		middle = append(middle, `","ip":"`...)
		addr = addr.WithZone("")
		middle = addr.AppendTo(middle)
		middle = append(middle, `","port":`...)
		middle = strconv.AppendUint(middle, uint64(s.Addr.Port()), 10)
		if s.Proxy.IsValid() {
			middle = append(middle, `,"nat":{"ip":"`...)
			middle = s.Proxy.Addr().Unmap().WithZone("").AppendTo(middle)
			middle = append(middle, `","port":`...)
			middle = strconv.AppendUint(middle, uint64(s.Proxy.Port()), 10)
			middle = append(middle, '}')
		}
		middle = append(middle, '}')
		log = append(log, `"source":{"address":"`...)
		log = netip.AddrPortFrom(addr, s.Addr.Port()).AppendTo(log)
		log = append(log, `"}`...)
	case s.Path != "":
		e.scratch = append(e.scratch[:0], s.Path...)
		log = append(log, `"source":{"address":"`...)
		log = e.appendText(log, e.scratch)
		log = append(log, `"}`...)
	}
	if e.source.TLS != nil {
		middle = append(middle, e.source.TLS.member...)
	}
	e.middle, e.log = middle, log
}

// emptyLog is how e.log begins; it is taken back when nothing follows.
const emptyLog = `,"log":{`

// AppendRecord appends the record of msg, open at its end: AppendTail
// completes it. m is what the header parse of msg.Data found, nil when it was
// not parsed; then the message is all of msg.Data.
//
// A header time whose year in UTC is not one of 0000 to 9999 counts as none. A
// message without a host from a unix socket gets Options.Host, if its header
// was read at all. More than maxParams parameters of structured data stand
// before the message, as they were sent, instead of in structured_data; then
// log.flags has structured_data_in_message.
func (e *Encoder) AppendRecord(dst []byte, msg framing.Message, m *syslog.Message, received time.Time) []byte {
	e.invalid = false

	stamp := received
	if m != nil && m.HasTime && writable(m.Time) {
		stamp = m.Time
	}
	dst = append(dst, `{"@timestamp":"`...)
	dst = e.stamp.appendTime(dst, stamp)
	dst = append(dst, `","event":{"created":"`...)
	dst = e.created.appendTime(dst, received)
	dst = append(dst, '"')
	dst = e.appendOriginal(dst, msg.Data)
	if m != nil && len(m.Sequence) > 0 {
		dst = appendSequence(dst, m.Sequence)
	}
	if m != nil && m.Flags&syslog.UnknownZone != 0 && m.Err == "" {
		dst = e.appendMember(dst, `,"timezone":"`, m.Fault)
	}
	dst = append(dst, e.middle...)

	text, many := msg.Data, false
	if m != nil {
		text = m.Text
		many = !e.collect(m.SD)
	}
	if len(text) > 0 || many {
		dst = append(dst, `,"message":"`...)
		if many {
			dst = e.appendText(dst, m.SD)
			dst = append(dst, ' ')
		}
		dst = e.appendText(dst, text)
		dst = append(dst, '"')
	}

	dst = append(dst, e.log...)
	var flags syslog.Flags
	if m != nil {
		dst = e.appendSyslog(dst, m)
		e.release()
		if flags = m.Flags &^ syslog.YearGuessed; many {
			flags |= syslog.SDInText
		}
	}
	if msg.Flags != 0 || flags != 0 {
		dst = appendFlags(dst, msg.Flags, flags)
	}
	if dst[len(dst)-1] == '{' {
		dst = dst[:len(dst)-len(emptyLog)]
	} else {
		dst = append(dst, '}')
	}

	unparsed := m != nil && m.Err != ""
	if unparsed || msg.Err != "" {
		dst = e.appendError(dst, msg, m)
	}

	start := len(dst)
	dst = append(dst, e.tags...)
	if unparsed {
		dst = appendTag(dst, start, TagParseFailure)
	}
	if flags&syslog.Mark != 0 {
		dst = appendTag(dst, start, TagMark)
	}
	if e.invalid {
		dst = appendTag(dst, start, TagInvalidUTF8)
	}
	if len(dst) > start {
		dst = append(dst, ']')
	}
	return append(dst, `,"spillway":{`...)
}

// appendOriginal appends event.original, if Options ask for it.
func (e *Encoder) appendOriginal(dst, data []byte) []byte {
	switch e.original {
	case OriginalText:
		dst = append(dst, `,"original":"`...)
		dst = e.appendText(dst, data)
		dst = append(dst, '"')
	case OriginalBase64:
		dst = append(dst, `,"original":"`...)
		dst = base64.StdEncoding.AppendEncode(dst, data)
		dst = append(dst, '"')
	}
	return dst
}

// AppendTail completes a record or gap record with the epoch and the sequence
// it was given:
//
//	"epoch":"<16 hex digits>","seq":<decimal>}}\n
func AppendTail(dst []byte, epoch, seq uint64) []byte {
	dst = append(dst, `"epoch":"`...)
	dst = appendEpoch(dst, epoch)
	dst = append(dst, `","seq":`...)
	dst = strconv.AppendUint(dst, seq, 10)
	return append(dst, "}}\n"...)
}

func appendEpoch(dst []byte, epoch uint64) []byte {
	for shift := 60; shift >= 0; shift -= 4 {
		dst = append(dst, hexDigits[epoch>>shift&15])
	}
	return dst
}

// AppendRaw appends a message as a raw line: its bytes and a line feed. A line
// feed inside the message becomes the two characters \n, as rsyslog writes
// #012, so that a record stays a line. A backslash stays one: every message
// without a line feed, and that is nearly all, is stored exactly as it was
// sent. The price is that a message that had the characters \n can't be told
// from one that had a line feed; where that matters, records are the right
// encoding.
func AppendRaw(dst, raw []byte) []byte {
	for {
		i := indexLF(raw)
		if i < 0 {
			break
		}
		dst = append(dst, raw[:i]...)
		dst = append(dst, `\n`...)
		raw = raw[i+1:]
	}
	dst = append(dst, raw...)
	return append(dst, '\n')
}

// flagNames are the members of log.flags and what sets them. YearGuessed has
// no name: nearly every RFC 3164 message would carry it. Mark is a tag.
var flagNames = [...]struct {
	framing framing.Flags
	header  syslog.Flags
	name    string
}{
	{framing.Truncated, 0, `"truncated"`},
	{framing.Unterminated, 0, `"unterminated"`},
	{framing.Invalid, 0, `"invalid_framing"`},
	{framing.Counted, syslog.OctetCount, `"octet_counted"`},
	{framing.Multiline, 0, `"multiline"`},
	{framing.Part, 0, `"part"`},
	{0, syslog.ClockUnset, `"clock_unset"`},
	{0, syslog.ClockLost, `"clock_lost"`},
	{0, syslog.Uptime, `"uptime"`},
	{0, syslog.UnknownZone, `"unknown_zone"`},
	{0, syslog.FractionCut, `"fraction_cut"`},
	{0, syslog.LeapSecond, `"leap_second"`},
	{0, syslog.SDInText, `"structured_data_in_message"`},
	{0, syslog.DuplicateID, `"duplicate_sd_id"`},
}

// appendFlags appends log.flags, nothing when no flag has a name.
func appendFlags(dst []byte, f framing.Flags, h syslog.Flags) []byte {
	sep := byte('[')
	for i := range flagNames {
		n := &flagNames[i]
		if f&n.framing == 0 && h&n.header == 0 {
			continue
		}
		if sep == '[' {
			dst = appendName(dst, `,"flags":`)
		}
		dst = append(dst, sep)
		dst = append(dst, n.name...)
		sep = ','
	}
	if sep == '[' {
		return dst
	}
	return append(dst, ']')
}

// appendName appends the name of a member with the comma before it, which the
// first member of an object does without.
func appendName(dst []byte, name string) []byte {
	if dst[len(dst)-1] == '{' {
		name = name[1:]
	}
	return append(dst, name...)
}

// appendSyslog appends log.syslog, nothing when the header gave nothing.
func (e *Encoder) appendSyslog(dst []byte, m *syslog.Message) []byte {
	start := len(dst)
	dst = appendName(dst, `,"syslog":{`)
	empty := len(dst)
	if uint(m.Priority) < uint(len(e.priorities)) {
		dst = append(dst, e.priorities[m.Priority]...)
	}
	dst = e.appendMember(dst, `,"version":"`, m.Version)
	dst = e.appendMember(dst, `,"appname":"`, m.AppName)
	dst = e.appendMember(dst, `,"procid":"`, m.ProcID)
	dst = e.appendMember(dst, `,"msgid":"`, m.MsgID)
	if len(e.params) > 0 {
		dst = e.appendParams(dst)
	}
	host := m.Hostname
	if len(host) == 0 && (m.Priority >= 0 || m.HasTime || len(m.AppName) > 0) {
		host = e.local
	}
	dst = e.appendMember(dst, `,"hostname":"`, host)
	if len(dst) == empty {
		return dst[:start]
	}
	return append(dst, '}')
}

// appendSequence appends event.sequence, which is a number: without zeros in
// front, and not if it is beyond 64 bits.
func appendSequence(dst, digits []byte) []byte {
	for len(digits) > 1 && digits[0] == '0' {
		digits = digits[1:]
	}
	if len(digits) > 18 {
		return dst
	}
	dst = append(dst, `,"sequence":`...)
	return append(dst, digits...)
}

// appendMember appends a member of log.syslog, nothing without a value.
func (e *Encoder) appendMember(dst []byte, name string, value []byte) []byte {
	if len(value) == 0 {
		return dst
	}
	dst = appendName(dst, name)
	dst = e.appendText(dst, value)
	return append(dst, '"')
}

// appendError appends error.message: a string, an array when both the framing
// and the header were wrong. Of a header one fault is told, and with it the word
// that no other member holds:
//
//	"framing: octet count is not a number"
//	"syslog failed to process field \"message\": parsing error at position 8: invalid timestamp: 10-11-2003T22:14:15Z"
func (e *Encoder) appendError(dst []byte, msg framing.Message, m *syslog.Message) []byte {
	unparsed, both := m != nil && m.Err != "", false
	dst = append(dst, `,"error":{"message":`...)
	if msg.Err != "" {
		if both = unparsed; both {
			dst = append(dst, '[')
		}
		dst = append(dst, `"framing: `...)
		dst, _ = appendText(dst, []byte(msg.Err))
		dst = append(dst, '"')
		if both {
			dst = append(dst, ',')
		}
	}
	if unparsed {
		dst = append(dst, `"syslog failed to process field \"message\": parsing error at position `...)
		dst = strconv.AppendInt(dst, int64(m.Pos), 10)
		dst = append(dst, `: `...)
		dst, _ = appendText(dst, []byte(m.Err))
		if len(m.Fault) > 0 {
			dst = append(dst, `: `...)
			dst = e.appendText(dst, m.Fault)
		}
		dst = append(dst, '"')
		if both {
			dst = append(dst, ']')
		}
	}
	return append(dst, '}')
}

// appendTag appends a tag to the array that is open since dst[start:], or
// opens it.
func appendTag(dst []byte, start int, tag string) []byte {
	if len(dst) == start {
		dst = append(dst, `,"tags":["`...)
	} else {
		dst = append(dst, `,"`...)
	}
	dst, _ = appendText(dst, []byte(tag))
	return append(dst, '"')
}
