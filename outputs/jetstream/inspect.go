package jetstream

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"spillway/buffer/batch"
	"spillway/outputs"
)

var _ outputs.Inspector = (*Output)(nil)

const (
	codeNoStream jetstream.ErrorCode = 10059 // stream not found

	// goodWindow is the duplicate window of the command that makes a stream.
	goodWindow = time.Hour

	// syncInterval is nats-server's default: how long it may take from an
	// acknowledgement to the disk.
	syncInterval = 2 * time.Minute

	// soon is how long before its end a certificate or a user is worth a word.
	soon = 14 * 24 * time.Hour
)

// inspection is one call of Inspect.
type inspection struct {
	*Output
	need     outputs.Need
	subjects []string // of need.Lanes
	indirect bool     // the stream has no direct get, which was told
	all      []outputs.Finding
}

func (i *inspection) good(what, format string, args ...any) {
	i.all = append(i.all, outputs.Finding{Level: outputs.Good, What: what, Text: fmt.Sprintf(format, args...)})
}

func (i *inspection) add(level outputs.Level, what, text, hint string) {
	i.all = append(i.all, outputs.Finding{Level: level, What: what, Text: text, Hint: hint})
}

// Inspect implements outputs.Inspector. It connects, publishes what no stream takes
// (see Probe) for each lane, and asks for the last message (see Last) and for the
// stream's settings ($JS.API.STREAM.INFO.<stream>), which the agent itself need not
// see: a user that may not is told so.
func (o *Output) Inspect(ctx context.Context, need outputs.Need) []outputs.Finding {
	i := &inspection{Output: o, need: need}
	for _, lane := range need.Lanes {
		i.subjects = append(i.subjects, o.fill(o.c.Subject, lane))
	}
	s, ok := i.connect(ctx)
	if !ok {
		return i.all
	}
	stream, asked := i.find(ctx, s)
	if asked != nil {
		i.indirect = !asked.Config.AllowDirect
		i.all = append(i.all, i.stream(asked)...)
	}
	for n, lane := range need.Lanes {
		i.lane(ctx, lane, i.subjects[n], stream)
	}
	return i.all
}

// connect waits for the connection and tells whose it is.
func (i *inspection) connect(ctx context.Context) (s session, ok bool) {
	start := time.Now()
	where := redacted(i.c.Servers) + " as " + i.who()
	s, err := i.ready(ctx, i.subjects[0])
	if err != nil {
		f := outputs.FindingOf("connect", i.fail("connect to "+where+", "+outputs.Took(start), i.subjects[0], outputs.StoredNo, err))
		if f.Hint == "" {
			f.Hint = hintReach
		}
		i.all = append(i.all, f)
		return s, false
	}
	took := outputs.Took(start)
	nc := s.l.nc
	secure := ""
	if state, err := nc.TLSConnectionState(); err == nil {
		secure = ", " + tls.VersionName(state.Version)
		if len(state.PeerCertificates) > 0 {
			secure += " with " + state.PeerCertificates[0].Subject.String()
		}
	}
	account := ""
	if a := i.account(ctx, s); a != "" {
		account = ", account " + a
	}
	name := ""
	if n := nc.ConnectedServerName(); n != nc.ConnectedServerId() { // it has one
		name = " " + n
	}
	i.good("connect", "%s%s: nats-server %s%s at %s%s in %s", where, account, nc.ConnectedServerVersion(), name, nc.ConnectedAddr(), secure, took)
	for _, end := range i.ends() {
		if left := time.Until(end.at); left < soon {
			i.add(outputs.Warning, "connect", fmt.Sprintf("%s ends %s", end.what, end.at.UTC().Format(time.RFC3339)), "put a new one into the file: it is read at the next connection, or with SIGHUP")
		}
	}
	payload := i.Limits().BatchBytes
	switch text := fmt.Sprintf("max_payload of the server leaves %s for a batch", outputs.Human(payload)); {
	case payload < i.need.Sealing:
		i.add(outputs.Problem, "payload", text+", and batches are sealed at "+outputs.Human(i.need.Sealing),
			"raise max_payload of the server to 1MB (its default), or lower SPILLWAY_BATCH_MAX_BYTES below what it leaves")
	case payload < batch.MaxPayload:
		i.add(outputs.Warning, "payload", text+", and one can have "+outputs.Human(batch.MaxPayload), "raise max_payload of the server to 1MB (its default), or have another output for larger ones")
	default:
		i.good("payload", "%s, enough for the largest (%s)", text, outputs.Human(batch.MaxPayload))
	}
	return s, true
}

// account asks the server whose connection this is, "" when it does not say.
func (i *inspection) account(ctx context.Context, s session) string {
	answer, err := s.request(ctx, &nats.Msg{Subject: "$SYS.REQ.USER.INFO"}, time.Second)
	if err != nil {
		return ""
	}
	var info struct {
		Data struct {
			Account string `json:"account"`
		} `json:"data"`
	}
	if json.Unmarshal(answer.Data, &info) != nil {
		return ""
	}
	return info.Data.Account
}

// who is whom this output says to be.
func (i *inspection) who() string {
	var who []string
	if c := i.c.CredsFile; c != "" {
		claims := i.claims()
		who = append(who, fmt.Sprintf("user %s (%s, %s)", claims.Name, claims.Subject, c))
	}
	if i.c.NkeyFile != "" {
		seed, _ := i.c.seed() // New read it
		user, _ := publicKey(seed)
		who = append(who, fmt.Sprintf("nkey %s (%s)", user, i.c.NkeyFile))
	}
	if i.c.User != "" {
		who = append(who, "user "+i.c.User)
	}
	if i.c.Token != "" {
		who = append(who, "the holder of a token")
	}
	first, _, _ := strings.Cut(i.c.Servers, ",")
	if u, err := url.Parse(first); err == nil && u.User != nil {
		if _, both := u.User.Password(); both {
			who = append(who, "user "+u.User.Username())
		} else {
			who = append(who, "the holder of a token")
		}
	}
	if c, err := i.c.certificate(); i.c.TLSCertFile != "" && err == nil {
		who = append(who, "certificate "+c.Leaf.Subject.String())
	}
	if len(who) == 0 {
		return "nobody (no user, no token, no certificate)"
	}
	return strings.Join(who, " with ")
}

// end is when something that lets us in stops to do so.
type end struct {
	what string
	at   time.Time
}

func (i *inspection) ends() (all []end) {
	if c, err := i.c.certificate(); i.c.TLSCertFile != "" && err == nil {
		all = append(all, end{"the certificate of " + i.variable("TLS_CERT_FILE"), c.Leaf.NotAfter})
	}
	if expires := i.claims().Expires; expires != 0 {
		all = append(all, end{"the user of " + i.variable("CREDS_FILE"), time.Unix(expires, 0)})
	}
	return all
}

// claims are what a user's JWT says of itself.
type claims struct {
	Name    string `json:"name"`
	Subject string `json:"sub"`
	Expires int64  `json:"exp"`
}

func (i *inspection) claims() (c claims) {
	if i.c.CredsFile == "" {
		return c
	}
	creds, err := i.c.credentials()
	if err != nil {
		return c
	}
	if parts := strings.Split(creds.jwt, "."); len(parts) == 3 {
		if text, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil {
			_ = json.Unmarshal(text, &c) // what is not there stays empty
		}
	}
	return c
}

// redacted is servers without their users, passwords and tokens.
func redacted(servers string) string {
	list := strings.Split(servers, ",")
	for n, s := range list {
		u, err := url.Parse(s)
		if err != nil {
			list[n] = "(no URL)"
			continue
		}
		u.User = nil
		list[n] = u.String()
	}
	return strings.Join(list, ",")
}

// streamInfo is the answer of $JS.API.STREAM.INFO.
type streamInfo struct {
	Error *jetstream.APIError `json:"error"`
	jetstream.StreamInfo
}

// find returns the name of the stream, and what it says of itself; nil when it can't
// be asked.
func (i *inspection) find(ctx context.Context, s session) (stream string, info *streamInfo) {
	subject := i.subjects[0]
	stream = i.c.Stream
	if stream == "" {
		var err error
		stream, err = i.streamOf(ctx, s, subject)
		var why *unaskable
		switch {
		case errors.As(err, &why):
			i.good("stream", "not known: %v", why)
			return "", nil
		case err != nil:
			i.noStream(ctx, s, err)
			return "", nil
		}
	}
	answer, err := i.ask(ctx, s, subject, "STREAM.INFO."+stream, nil)
	var why *unaskable
	switch {
	case errors.As(err, &why):
		i.good("stream", "%s: its settings can't be seen, which the agent need not: %v", stream, why)
		return stream, nil
	case err != nil:
		i.noStream(ctx, s, err)
		return "", nil
	}
	info = &streamInfo{}
	if err := json.Unmarshal(answer.Data, info); err != nil {
		i.noStream(ctx, s, fmt.Errorf("%w: %w", jetstream.ErrInvalidJSAck, err))
		return "", nil
	}
	if e := info.Error; e != nil && e.ErrorCode == codeNoStream {
		i.add(outputs.Problem, "stream", fmt.Sprintf("there is no stream %s", stream), "correct "+i.variable("STREAM")+", or make it: "+i.addStream(stream))
		return "", nil
	} else if e != nil {
		i.noStream(ctx, s, e)
		return "", nil
	}
	return stream, info
}

// noStream is a Problem: the stream can't be found, as err says.
func (i *inspection) noStream(ctx context.Context, s session, err error) {
	f := outputs.FindingOf("stream", i.fail("look for the stream of "+i.subjects[0], i.subjects[0], outputs.StoredNo, err))
	if errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
		f.Text, f.Hint = "no stream takes "+i.subjects[0], i.addStream(i.streamName())
		if _, err := s.request(ctx, &nats.Msg{Subject: i.api() + "STREAM.NAMES"}, time.Second); errors.Is(err, nats.ErrNoResponders) {
			f.Text, f.Hint = "nobody answers on "+i.api()+">", "enable JetStream on the server and for this account"
			if i.c.Domain != "" {
				f.Hint = "correct " + i.variable("DOMAIN") + ", or e" + f.Hint[1:]
			}
		}
	}
	i.all = append(i.all, f)
}

// stream compares a stream's settings with what delivery needs.
func (i *inspection) stream(info *streamInfo) (all []outputs.Finding) {
	c, state := &info.Config, &info.State
	edit := "nats stream edit " + c.Name
	limit := func(v int64, text string) string {
		if v <= 0 {
			return "any"
		}
		return text
	}
	all = append(all, outputs.Finding{Level: outputs.Good, What: "stream", Text: fmt.Sprintf(
		"%s: %v, %s, %s, discards %v, keeps %s for %s (%s in it), duplicate window %s", c.Name, c.Subjects, plural(c.Replicas, "replica"), strings.ToLower(c.Storage.String()),
		discards(c.Discard), limit(c.MaxBytes, outputs.Human(c.MaxBytes)), limit(int64(c.MaxAge), short(c.MaxAge)), outputs.Human(int64(state.Bytes)), short(c.Duplicates))})
	judge := func(bad bool, level outputs.Level, text, hint string) {
		if bad {
			all = append(all, outputs.Finding{Level: level, What: "stream", Text: c.Name + ": " + text, Hint: hint})
		}
	}
	for _, subject := range i.subjects {
		judge(!taken(c.Subjects, subject), outputs.Problem, fmt.Sprintf("it takes %v, not %s", c.Subjects, subject),
			"correct "+i.variable("STREAM")+" or "+i.variable("SUBJECT")+", or: "+edit+" --subjects '"+strings.Join(append(c.Subjects, i.filter()), ",")+"'")
	}
	judge(c.Sealed, outputs.Problem, "it is sealed, for ever", "make another one: "+i.addStream("LOGS2"))
	judge(c.Mirror != nil, outputs.Problem, "it is a mirror, which takes nothing from anybody else", "name the stream that it mirrors in "+i.variable("STREAM"))
	judge(c.NoAck, outputs.Problem, "it acknowledges nothing (no_ack), so that no batch counts as delivered", edit+" --ack")
	if room := int64(c.MaxMsgSize); c.MaxMsgSize > 0 {
		text := fmt.Sprintf("max_msg_size is %s", outputs.Human(room))
		switch {
		case room < i.need.Sealing+headerRoom:
			judge(true, outputs.Problem, text+", and batches are sealed at "+outputs.Human(i.need.Sealing)+" and have headers", edit+" --max-msg-size=-1")
		case room < batch.MaxPayload+headerRoom:
			judge(true, outputs.Warning, text+", and a batch can have "+outputs.Human(batch.MaxPayload+headerRoom)+" with its headers", edit+" --max-msg-size=-1")
		}
	}
	judge(c.Duplicates < i.need.Repeat, outputs.Warning, fmt.Sprintf("its duplicate window is %s, and batches may be sent again for %s (SPILLWAY_BUFFER_KEEP_ACKED): those are stored twice, with the same identity", short(c.Duplicates), short(i.need.Repeat)),
		fmt.Sprintf("%s --dupe-window %s", edit, short(max(goodWindow, i.need.Repeat))))
	judge(i.need.Kept < syncInterval, outputs.Warning, fmt.Sprintf("a server may acknowledge %s before it has written to its disk (sync_interval), and delivered batches are kept for %s: what a power cut takes from it can't be sent again", short(syncInterval), short(i.need.Kept)),
		"raise SPILLWAY_BUFFER_KEEP_ACKED to 10m, or set sync_interval: always on the server")
	judge(!c.AllowDirect, outputs.Warning, "it has no direct get, by which the agent sees after a reconnect whether the server lost what it had acknowledged", edit+" --allow-direct")
	judge(c.MaxMsgsPerSubject > 0, outputs.Warning, fmt.Sprintf("it keeps %s of each agent and lane (max_msgs_per_subject)", plural(int(c.MaxMsgsPerSubject), "batch")), edit+" --max-msgs-per-subject=-1")
	judge(c.MaxAge > 0 && c.MaxAge < goodWindow, outputs.Warning, fmt.Sprintf("it keeps batches for %s only", short(c.MaxAge)), edit+" --max-age 30d")
	judge(c.Retention == jetstream.InterestPolicy, outputs.Warning, "its retention is interest: what comes while it has no consumer is gone", "make one with --retention limits")
	judge(c.Storage == jetstream.MemoryStorage, outputs.Warning, "it is in memory: a restart of the server takes what it acknowledged", "make one with --storage file")
	judge(c.PersistMode == jetstream.AsyncPersistMode, outputs.Warning, "its persist_mode is async: it acknowledges before it writes", "use the default mode for what must not be lost")
	if full := c.MaxBytes > 0 && int64(state.Bytes) > c.MaxBytes/10*9; c.Discard == jetstream.DiscardNew {
		judge(full, outputs.Warning, fmt.Sprintf("%s of %s are used, and it refuses what does not fit (discard new): agents keep it, or go to the next output", outputs.Human(int64(state.Bytes)), outputs.Human(c.MaxBytes)),
			"raise its limit, or let old batches go: "+edit+" --discard old")
	}
	return all
}

// lane tries what publishing for one lane takes.
func (i *inspection) lane(ctx context.Context, lane, subject, stream string) {
	start := time.Now()
	if err := i.Probe(ctx, lane); err != nil {
		if !errors.Is(err, jetstream.ErrNoStreamResponse) || !i.told("stream") {
			i.all = append(i.all, outputs.FindingOf("publish", err))
		}
		return
	}
	i.good("publish", "%s: a stream answered in %s, nothing was stored", subject, outputs.Took(start))
	if stream == "" {
		return
	}
	start = time.Now()
	mark, err := i.Last(ctx, lane)
	switch {
	case err != nil:
		i.all = append(i.all, outputs.FindingOf("last", err))
	case mark.Unknown != "" && i.indirect:
	case mark.Unknown != "":
		i.add(outputs.Warning, "last", "the last message on "+subject+" can't be asked for, by which the agent sees after a reconnect what the server lost", mark.Unknown)
	case mark.Found:
		i.good("last", "%s: record %d of epoch %s is the last there, asked in %s", subject, mark.Last, mark.Epoch, outputs.Took(start))
	default:
		i.good("last", "%s: nothing there yet, asked in %s", subject, outputs.Took(start))
	}
}

// told reports whether there is a Problem with what.
func (i *inspection) told(what string) bool {
	for _, f := range i.all {
		if f.What == what && f.Level == outputs.Problem {
			return true
		}
	}
	return false
}

// taken reports whether one of a stream's subjects, which may have wildcards, takes
// subject.
func taken(filters []string, subject string) bool {
	for _, f := range filters {
		if matches(strings.Split(f, "."), strings.Split(subject, ".")) {
			return true
		}
	}
	return false
}

func matches(filter, subject []string) bool {
	for n, token := range filter {
		switch {
		case token == ">":
			return len(subject) > n
		case n >= len(subject), token != "*" && token != subject[n]:
			return false
		}
	}
	return len(filter) == len(subject)
}

func discards(d jetstream.DiscardPolicy) string {
	if d == jetstream.DiscardNew {
		return "new"
	}
	return "old"
}

func plural(n int, what string) string {
	switch {
	case n == 1:
		return "1 " + what
	case strings.HasSuffix(what, "ch"):
		return fmt.Sprintf("%d %ses", n, what)
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// short is d as people write it: 1h, not 1h0m0s.
func short(d time.Duration) string {
	s := d.Round(time.Second).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
