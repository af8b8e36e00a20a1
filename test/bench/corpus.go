package bench

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A mark makes every message a different one, and findable after any encoding
// that leaves ASCII alone: a tilde, two digits of the connection, nine of the
// message's number on it, a tilde. The corpus has no other tildes.
const (
	blank   = "~00000000000~"
	markLen = len(blank)
)

// pool is rendered traffic, larger than any compressor's window, so that sending
// costs next to nothing and going round does not show.
type pool struct {
	data  []byte // messages, each with its LF
	start []int  // of each message, and the end of the last
	mark  []int  // where each message's digits begin
}

// len is the number of messages.
func (p *pool) len() int { return len(p.mark) }

// corpora are the kinds of traffic, by name.
var corpora = map[string]func(g *writer, b []byte) []byte{
	"mixed":   func(g *writer, b []byte) []byte { return g.syslog(b, g.IntN(2) == 0) }, // half RFC 3164, half RFC 5424
	"rfc5424": func(g *writer, b []byte) []byte { return g.syslog(b, true) },
	"vault":   (*writer).vault, // audit entries as JSON lines, 1.4 KiB
}

// newPool renders at least size bytes, the same for the same corpus and size.
func newPool(corpus string, size int) *pool {
	g := newWriter()
	p := &pool{data: make([]byte, 0, size+4096)}
	for len(p.data) < size {
		from := len(p.data)
		p.data = corpora[corpus](g, p.data)
		p.start = append(p.start, from)
		p.mark = append(p.mark, from+bytes.Index(p.data[from:], []byte(blank))+1)
		p.data = append(p.data, '\n')
	}
	p.start = append(p.start, len(p.data))
	return p
}

// writer invents log lines. Values recur as they do in logs (few hosts and users,
// some addresses far more often than others), so that they compress about five to one.
type writer struct {
	*rand.Rand
	now              time.Time
	addresses, paths []string
	address, path    *rand.Zipf
}

func newWriter() *writer {
	g := &writer{Rand: rand.New(rand.NewPCG(2026, 11)), now: time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC)}
	for range 4096 {
		g.addresses = append(g.addresses, fmt.Sprintf("%d.%d.%d.%d", 1+g.IntN(223), g.IntN(256), g.IntN(256), 1+g.IntN(254)))
	}
	for range 512 {
		g.paths = append(g.paths, fmt.Sprintf(g.of("/api/v2/devices/%06d/telemetry", "/api/v1/sites/%d/alarms?open=true", "/assets/panel.%08x.js", "/firmware/image-%d.swu", "/login?next=%d"), g.IntN(1<<20)))
	}
	g.address = rand.NewZipf(g.Rand, 1.2, 4, uint64(len(g.addresses)-1))
	g.path = rand.NewZipf(g.Rand, 1.1, 3, uint64(len(g.paths)-1))
	return g
}

func (g *writer) of(s ...string) string { return s[g.IntN(len(s))] }
func (g *writer) ip() string            { return g.addresses[g.address.Uint64()] }
func (g *writer) port() int             { return 1024 + g.IntN(64000) }
func (g *writer) user() string {
	return g.of("root", "admin", "operator", "deploy", "backup", "postgres", "ansible", "svc-scada", "maintenance", "guest", "night-shift", "test")
}
func (g *writer) hex(n int) string {
	const digits = "0123456789abcdef"
	b := make([]byte, n)
	for i := range b {
		b[i] = digits[g.IntN(16)]
	}
	return string(b)
}
func (g *writer) uuid() string {
	return g.hex(8) + "-" + g.hex(4) + "-4" + g.hex(3) + "-9" + g.hex(3) + "-" + g.hex(12)
}

// header appends a header of RFC 5424 or of RFC 3164.
func (g *writer) header(b []byte, rfc5424 bool, pri int, app string, pid int, sd string) []byte {
	g.now = g.now.Add(time.Duration(g.IntN(800)) * time.Microsecond)
	n := g.IntN(20)
	host := fmt.Sprintf("%s-%02d", []string{"gateway", "plc", "cam", "hmi"}[n%4], n)
	b = fmt.Appendf(b, "<%d>", pri)
	if !rfc5424 {
		b = g.now.AppendFormat(b, time.Stamp)
		if pid == 0 {
			return fmt.Appendf(b, " %s %s: ", host, app)
		}
		return fmt.Appendf(b, " %s %s[%d]: ", host, app, pid)
	}
	id := "-"
	if pid > 0 {
		id = strconv.Itoa(pid)
	}
	b = append(b, "1 "...)
	b = g.now.AppendFormat(b, "2006-01-02T15:04:05.000000Z07:00")
	return fmt.Appendf(b, " %s.%s.example.net %s %s - %s ", host, []string{"oslo", "turin", "pune"}[n%3], app, id, sd)
}

// syslog appends one message of 150 to 330 bytes.
func (g *writer) syslog(b []byte, rfc5424 bool) []byte {
	switch n := g.IntN(100); {
	case n < 18:
		b = g.header(b, rfc5424, 86, "sshd", 700+g.IntN(30000), "-")
		switch g.IntN(3) {
		case 0:
			b = fmt.Appendf(b, "Accepted publickey for %s from %s port %d ssh2: ED25519 SHA256:%s session=", g.user(), g.ip(), g.port(), g.hex(40))
		case 1:
			b = fmt.Appendf(b, "Failed password for invalid user %s from %s port %d ssh2, method password, peer offers SSH-2.0-Go, try %d of 6, session=", g.user(), g.ip(), g.port(), 1+g.IntN(6))
		default:
			b = fmt.Appendf(b, "Disconnected from authenticating user %s %s port %d [preauth] kex curve25519-sha256 cipher chacha20-poly1305 mac none session=", g.user(), g.ip(), g.port())
		}
	case n < 50:
		b = g.header(b, rfc5424, 190, "nginx", 0, "-")
		b = fmt.Appendf(b, `%s - %s [%s] "%s %s HTTP/1.1" %s %d "-" "%s" %.3f `, g.ip(), g.of("-", "-", "-", g.user()), g.now.Format("02/Jan/2006:15:04:05 -0700"), g.of("GET", "GET", "GET", "POST", "PUT"),
			g.paths[g.path.Uint64()], g.of("200", "200", "200", "204", "304", "401", "404", "502"), g.IntN(70000),
			g.of("Mozilla/5.0 (X11; Linux aarch64; rv:140.0) Gecko/20100101 Firefox/140.0", "Mozilla/5.0 (Linux; Android 15; panel) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0", "device-agent/3.2", "python-requests/2.32.4"), g.Float64())
	case n < 60:
		b = g.header(b, rfc5424, 4, "kernel", 0, "-")
		b = fmt.Appendf(b, "[%d.%06d] nft drop IN=wan0 OUT= MAC=52:54:00:%s:%s:%s SRC=%s DST=10.20.%d.%d LEN=%d TTL=%d ID=%d PROTO=TCP SPT=%d DPT=%s WINDOW=1024 SYN URGP=0 mark=", 200000+g.IntN(90000), g.IntN(1000000),
			g.hex(2), g.hex(2), g.hex(2), g.ip(), g.IntN(8), g.IntN(256), 40+g.IntN(24), 32+g.IntN(90), g.IntN(65536), g.port(), g.of("22", "23", "443", "502", "8080"))
	case n < 66:
		b = g.header(b, rfc5424, 78, "CRON", 900+g.IntN(30000), "-")
		b = fmt.Appendf(b, "(%s) CMD (%s) took %d ms, env %s run=", g.user(), g.of("/usr/lib/sysstat/debian-sa1 1 1", "test -x /usr/sbin/anacron || run-parts --report /etc/cron.hourly", "/opt/site/rotate --keep 14 >/dev/null 2>&1"), g.IntN(9000), "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin SHELL=/bin/sh LANG=C.UTF-8")
	case n < 88:
		b = g.header(b, rfc5424, 134, g.of("collector", "historian", "mqtt-bridge", "authz"), 1+g.IntN(60), "-")
		b = fmt.Appendf(b, `{"level":"%s","msg":"%s","request":"%s","device":%d,"status":%s,"took_ms":%d.%03d,"n":"%s"}`, g.of("info", "info", "info", "warn", "error"),
			g.of("reading stored", "publish acknowledged", "value outside of band", "retry of upstream call", "session renewed"), g.uuid(), g.IntN(400000), g.of("200", "201", "202", "404", "503"), g.IntN(800), g.IntN(1000), blank)
		return b
	default:
		b = g.header(b, rfc5424, 30, g.of("systemd", "haproxy", "containerd"), 1+g.IntN(4000), fmt.Sprintf(`[origin@32473 unit="%s.service" zone="%s"]`, g.of("nginx", "redis", "opcua", "vault"), g.of("a", "b", "c")))
		b = fmt.Appendf(b, "%s:%d [%s] front line/%s %d/0/%d/%d/%d %s %d - - ---- %d/%d/%d/0/0 0/0 ", g.ip(), g.port(), g.now.Format("02/Jan/2006:15:04:05.000"), g.of("s1", "s2", "s3", "s4"), g.IntN(9), g.IntN(5), g.IntN(900), g.IntN(1400), g.of("200", "204", "503"), g.IntN(90000), g.IntN(2000), g.IntN(2000), g.IntN(400))
	}
	return append(b, blank...)
}

// vault appends one audit entry as Vault's file and socket devices write it.
func (g *writer) vault(b []byte) []byte {
	g.now = g.now.Add(time.Duration(g.IntN(3000)) * time.Microsecond)
	hmac := func() string { return "hmac-sha256:" + g.hex(64) }
	mount, entity, role := g.of("secret/", "kv/", "pki/", "transit/"), g.uuid(), g.user()
	b = fmt.Appendf(b, `{"time":"%s","type":"%s","auth":{"client_token":"%s","accessor":"%s","display_name":"approle-%s","policies":["default","%s-read","site"],"token_policies":["default","%s-read","site"],"policy_results":{"allowed":true},"metadata":{"role_name":"%s"},"entity_id":"%s","token_type":"service","token_ttl":%d,"token_issue_time":"%s"},`,
		g.now.Format(time.RFC3339Nano), g.of("request", "response"), hmac(), hmac(), role, role, role, role, entity, 3600*(1+g.IntN(24)), g.now.Add(-time.Duration(g.IntN(3600))*time.Second).Format(time.RFC3339))
	b = fmt.Appendf(b, `"request":{"id":"%s","client_id":"%s","operation":"%s","mount_point":"%s","mount_type":"kv","mount_accessor":"kv_%s","mount_running_version":"v0.24.0+builtin","mount_class":"secret","client_token":"%s","client_token_accessor":"%s","namespace":{"id":"root"},"path":"%sdata/%s-%d","remote_address":"%s","remote_port":%d,"n":"%s"}`,
		g.uuid(), entity, g.of("read", "read", "update", "list", "create"), mount, g.hex(8), hmac(), hmac(), mount, role, g.IntN(300), g.ip(), g.port(), blank)
	if g.IntN(3) > 0 {
		b = fmt.Appendf(b, `,"response":{"mount_point":"%s","mount_type":"kv","mount_accessor":"kv_%s","data":{"data":{"password":"%s","username":"%s"},"metadata":{"created_time":"%s","destroyed":false,"version":%d}}}`, mount, g.hex(8), hmac(), hmac(), hmac(), g.IntN(40))
	}
	return append(b, '}')
}

// digits are a mark's: connection and number, counted up in place.
type digits [markLen - 2]byte

func newDigits(conn int) (d digits) {
	copy(d[:], fmt.Sprintf("%02d%09d", conn, 0))
	return d
}

func (d *digits) next() {
	for i := len(d) - 1; ; i-- {
		if d[i]++; d[i] <= '9' {
			return
		}
		d[i] = '0'
	}
}

// send writes n messages to c with the marks of connection conn: as many in a
// write as 128 KiB hold, or with a rate (messages per second) one in each write.
// Datagrams go without LF, sixteen at a time.
func (p *pool) send(c net.Conn, conn, n int, rate float64) error {
	_, datagrams := c.(*net.UDPConn)
	block, burst := 128<<10, 1
	if rate > 0 {
		block = 0
	}
	if datagrams {
		block, burst = 0, 16
	}
	d, i, begin := newDigits(conn), p.len()/16*(conn%16), time.Now()
	buf := make([]byte, 0, block+8<<10)
	for done := 0; done < n; {
		first, end := i, p.start[i]+block
		for i++; i < p.len() && p.start[i+1] <= end && done+i-first < n; i++ {
		}
		from := p.start[first]
		buf = append(buf[:0], p.data[from:p.start[i]]...)
		for _, m := range p.mark[first:i] {
			copy(buf[m-from:], d[:])
			d.next()
		}
		done += i - first
		if i == p.len() {
			i = 0
		}
		if datagrams {
			buf = buf[:len(buf)-1]
		}
		if _, err := c.Write(buf); err != nil {
			return err
		}
		if rate > 0 && done%burst == 0 {
			sleep(time.Until(begin.Add(time.Duration(float64(done) / rate * 1e9))))
		}
	}
	return nil
}

// sleep is exact to some ten microseconds, which a timer of the runtime is not.
func sleep(d time.Duration) {
	if d > 0 {
		t := unix.NsecToTimespec(d.Nanoseconds())
		unix.Nanosleep(&t, nil)
	}
}
