package syslog

import (
	"testing"
	"time"
)

// Messages of the length that edge hosts send, 180 to 300 bytes.
var samples = []struct{ name, in string }{
	{"5424", `<190>1 2026-11-20T09:00:03.482913Z web-04.fra1.example.net nginx - - - 203.0.113.87 - - [20/Nov/2026:09:00:03 +0000] "GET /api/v2/users/88213/sessions HTTP/1.1" 200 48211 "-" "Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0" rt=0.041`},
	{"5424-sd", `<30>1 2026-11-20T09:00:03.482913+01:00 edge-07.ams3.example.net postfix/smtpd 2207 - [meta@48577 unit="redis.service" env="prod" zone="b"] 198.51.100.4:49220 [20/Nov/2026:09:00:03.482] fe_https~ be_app/app-2 4/0/2/311/902 200 5120 - - ----`},
	{"3164", `<86>Nov 20 09:00:03 ci-09 sshd[21944]: Failed password for invalid user oracle from 203.0.113.87 port 51022 ssh2 (attempt 3 of 6, method password, banner SSH-2.0-libssh_0.9.6) session 4411 from the jump host of the customer network`},
	{"3164-nohost", `<86>Nov 20 09:00:03 sshd[21944]: Failed password for invalid user oracle from 203.0.113.87 port 51022 ssh2 (attempt 3 of 6, method password, banner SSH-2.0-libssh_0.9.6) session 4411 from the jump host of the customer network today`},
	{"3164-iso", `<86>2026-11-20T09:00:03.482913+00:00 ci-09 sshd[21944]: Failed password for invalid user oracle from 203.0.113.87 port 51022 ssh2 (attempt 3 of 6, method password, banner SSH-2.0-libssh_0.9.6) session 4411 from the jump host`},
	{"cisco", `<189>782431: edge-sw-07: *Nov 20 09:00:03.631 GMT: %SEC-6-IPACCESSLOGP: list 110 denied tcp 203.0.113.87(51022) -> 198.51.100.4(445), 1 packet, hash 0x5063B9E, flow 812, interface GigabitEthernet1/0/24, vlan 210, zone outside`},
	{"json", `<134>{"level":"info","msg":"request completed","request_id":"5d2c3f8e-95b1-4d1c-a7aa-60f0b9d1a3c5","user_id":1188213,"status":200,"duration_ms":41.107,"path":"/api/v1/orders/55121","host":"orders-3","zone":"b"}`},
	{"plain", `orders: 2026/11/20 request completed for user 1188213 with status 200 in 41.107 ms on path /api/v1/orders/55121, host orders-3 zone b, cache miss, loading from primary, payment authorised, upstream retried once, token refreshed`},
}

var received = time.Date(2026, 11, 20, 9, 0, 4, 0, time.UTC)

func BenchmarkParse(b *testing.B) {
	for _, s := range samples {
		b.Run(s.name, func(b *testing.B) {
			p, m, in := NewParser(Auto, time.UTC), Message{}, []byte(s.in)
			b.ReportAllocs()
			b.SetBytes(int64(len(in)))
			for b.Loop() {
				p.Parse(&m, in, received)
			}
		})
	}
}

func TestParseDoesNotAllocate(t *testing.T) {
	budapest, err := time.LoadLocation("Europe/Budapest")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range samples {
		p, m, in := NewParser(Auto, budapest), Message{}, []byte(s.in)
		if n := testing.AllocsPerRun(100, func() { p.Parse(&m, in, received) }); n != 0 {
			t.Errorf("%s: %v allocations", s.name, n)
		}
	}
	var cases []corpusCase
	for _, f := range corpusFiles(t) {
		cases = append(cases, readCorpus(t, f)...)
	}
	p, m := NewParser(Auto, budapest), Message{}
	n := testing.AllocsPerRun(5, func() {
		for i := range cases {
			p.Parse(&m, cases[i].in, cases[i].received)
		}
	})
	if n != 0 {
		t.Errorf("corpus: %v allocations", n)
	}
}

func TestIteratorsDoNotAllocate(t *testing.T) {
	p, m := NewParser(Auto, nil), Message{}
	p.Parse(&m, []byte(`<13>1 - - - - - [a@1 x="1" y="\"2\""][b]`), received)
	var buf [64]byte
	elements, params := 0, 0
	n := testing.AllocsPerRun(100, func() {
		elements, params = 0, 0
		for _, ps, sd, ok := NextElement(m.SD); ok; _, ps, sd, ok = NextElement(sd) {
			elements++
			for _, v, rest, ok := NextParam(ps); ok; _, v, rest, ok = NextParam(rest) {
				params++
				AppendUnescaped(buf[:0], v)
			}
		}
	})
	if n != 0 || elements != 2 || params != 2 {
		t.Errorf("%v allocations, %d elements, %d parameters", n, elements, params)
	}
}
