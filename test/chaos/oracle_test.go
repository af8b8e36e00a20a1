package chaos

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const epoch = "00c0ffee00c0ffee"

// line is a record as the agent delivers it.
func line(seq int, message string) string {
	return fmt.Sprintf(`{"@timestamp":"2026-11-20T12:00:00Z","event":{"dataset":"tcp.generic"},"message":%q,"spillway":{"epoch":%q,"seq":%d}}`+"\n", message, epoch, seq)
}

func gap(seq int, members string) string {
	return fmt.Sprintf(`{"@timestamp":"2026-11-20T12:00:00Z","event":{"kind":"pipeline_error"},"message":"gap: x","spillway":{"gap":{%s},"epoch":%q,"seq":%d}}`+"\n", members, epoch, seq)
}

func sent(conn, i int) string { return fmt.Sprintf("c%d i%d  .", conn, i) }

// The oracle finds each violation, and nothing else.
func TestJudge(t *testing.T) {
	tcp := []Conn{{ID: 0, Input: "tcp", Sent: 3, Whole: true}, {ID: 1, Input: "tcp", Sent: 3}}
	good := []string{line(1, sent(0, 0)), line(2, sent(1, 0)), line(3, sent(0, 1)), line(4, sent(1, 1)), line(5, sent(0, 2)), line(6, sent(1, 2))}
	without := func(seqs ...int) (rest []string) {
		for i, l := range good {
			keep := true
			for _, s := range seqs {
				keep = keep && s != i+1
			}
			if keep {
				rest = append(rest, l)
			}
		}
		return rest
	}
	old := []Conn{tcp[0], {ID: 1, Input: "tcp", Sent: 3, ended: time.Unix(100, 0), marks: []mark{{0, time.Unix(97, 0)}, {1, time.Unix(98, 0)}, {2, time.Unix(99, 0)}}}}
	promise := []Promise{{Lane: "main", Epoch: epoch, First: 1, Last: 4}}
	udp := []Conn{{ID: 0, Input: "udp", Sent: 3}}
	stops := Rules{Stops: true}
	dropped := `"reason":"full_oldest","count":1,"epoch":"` + epoch + `","first":4,"last":4`
	for _, c := range []struct {
		name     string
		lines    []string
		promises []Promise
		conns    []Conn
		rules    Rules
		want     string // "": no violation
	}{
		{"all is there", good, promise, tcp, stops, ""},
		{"twice with the same bytes", append(without(), good[2]), promise, tcp, stops, ""},
		{"one number for two records", append(without(), line(3, sent(0, 2))), promise, tcp, stops, "number 3 of epoch " + epoch + " stands for two records"},
		{"durable and missing", without(4, 6), promise, tcp, stops, "1 to 4 were durable, and 1 of them are not delivered: 4 … 4"},
		{"another epoch's promise", good, []Promise{{Lane: "main", Epoch: "00000000deadbeef", First: 6, Last: 6}}, tcp, stops, "durable"},
		{"dropped to make room, told", append(without(4), gap(7, dropped)), promise, tcp, Rules{Stops: true, Drops: true}, ""},
		{"dropped to make room where the buffer holds", append(without(4), gap(7, dropped)), promise, tcp, stops, "although the buffer holds"},
		{"dropped to make room, not told", without(4), promise, tcp, Rules{Stops: true, Drops: true}, "durable"},
		{"rejected, told", append(without(4), gap(7, strings.Replace(dropped, "full_oldest", "rejected", 1))), promise, tcp, Rules{Stops: true, Unfit: true}, ""},
		{"rejected where an output takes it", append(without(4), gap(7, strings.Replace(dropped, "full_oldest", "rejected", 1))), promise, tcp, stops, "although an output takes them"},
		{"told as damaged", append(without(4, 6), gap(7, strings.Replace(dropped, "full_oldest", "damaged", 1))), promise, tcp, stops, "durable"},
		{"told of another epoch", append(without(4, 6), gap(7, `"reason":"full_oldest","count":4,"epoch":"0000000000000001","first":1,"last":4`)), promise, tcp, Rules{Stops: true, Drops: true}, "durable"},
		{"more missing than told", append(without(1, 3), gap(7, dropped)), nil, tcp, Rules{Stops: true, Drops: true}, "2 lines are missing, and gap records tell of 1"},
		{"a hole in a connection that broke", without(4), nil, tcp, stops, "connection 1 to tcp: 1 of 3 lines are missing, 0 of them at its end: the first are 1 to 1, before number 6"},
		{"the end of a connection that broke", without(4, 6), nil, tcp, stops, ""},
		{"the last moment of it", without(4, 6), nil, old, Rules{Stops: true, Loss: 2 * time.Second}, ""},
		{"more of it", without(4, 6), nil, old, Rules{Stops: true, Loss: 1900 * time.Millisecond}, "connection 1 to tcp: line 1 is lost, although it was sent 2s before the end"},
		{"the end of a connection that did not", without(5), nil, tcp, stops, "connection 0 to tcp: 1 of 3 lines are missing, 1 of them at its end: they are the last, from 2 on"},
		{"out of order", []string{line(1, sent(0, 1)), line(2, sent(0, 0)), line(3, sent(0, 2))}, nil, tcp[:1], stops, "line 0, number 2"},
		{"a line under two numbers", append(without(), line(7, sent(1, 2))), nil, tcp, stops, "comes after line 2"},
		{"nobody sent it", append(without(), line(7, sent(1, 3))), nil, tcp, stops, "which nobody sent"},
		{"nobody sent that either", append(without(), line(7, sent(2, 0))), nil, tcp, stops, "which nobody sent"},
		{"a line that was cut", append(without(6), line(6, "c1 i")), nil, tcp, stops, ""},
		{"a line that was cut by nobody", append(without(6), line(6, "c1 i")), nil, tcp, Rules{}, `"c1 i" was sent by nobody`},
		{"of others", append(without(), line(7, "hello")), nil, tcp, Rules{Others: []string{"hello"}}, ""},
		{"of others, missing", good, nil, tcp, Rules{Others: []string{"hello"}}, `"hello" is there 0 times`},
		{"a datagram that is missing", []string{line(1, sent(0, 0)), line(2, sent(0, 2))}, nil, udp, Rules{}, "1 lines are missing, and gap records tell of 0"},
		{"told", []string{line(1, sent(0, 0)), line(2, sent(0, 2)), gap(3, `"reason":"buffer_full","input":"udp","count":1`)}, nil, udp, Rules{}, ""},
		{"known to the kernel", []string{line(1, sent(0, 0)), line(2, sent(0, 2))}, nil, udp, Rules{Kernel: 1}, ""},
		{"more told than missing", []string{line(1, sent(0, 0)), line(2, sent(0, 1)), gap(3, `"reason":"buffer_full","input":"udp","count":2`)}, nil, udp, Rules{}, "1 lines are missing, and gap records tell of 2"},
		{"of a stopped agent's datagrams", []string{line(1, sent(0, 2))}, nil, udp, stops, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := NewDelivered()
			if err := d.read(strings.NewReader(strings.Join(c.lines, "")), 0); err != nil {
				t.Fatal(err)
			}
			err := d.Judge(c.promises, c.conns, c.rules)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("judged %v, want %q", err, c.want)
			}
		})
	}
}

func TestPromises(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	text := `time=2026-11-21T12:00:00.000Z level=INFO msg="buffer open" lane=main dir=/x epoch=00c0ffee00c0ffee next=1 pending=0 unclean=false
time=2026-11-21T12:00:00.000Z level=INFO msg="buffer open" lane=audit dir=/y epoch=00000000deadbeef next=5 pending=0 unclean=false
time=2026-11-21T12:00:00.001Z level=INFO msg=ready version=v1 agent=gw1
time=2026-11-21T12:00:01.000Z level=DEBUG msg=durable lane=main last=10
time=2026-11-21T12:00:02.000Z level=DEBUG msg=durable lane=main last=20
time=2026-11-21T12:00:02.500Z level=INFO msg="stopping; a second signal stops at once" signal=terminated grace=10s
time=2026-11-21T12:00:03.000Z level=INFO msg="buffer open" lane=main dir=/x epoch=00c0ffee00c0ffee next=23 pending=0 unclean=false
time=2026-11-21T12:00:03.001Z level=INFO msg=ready version=v1 agent=gw1
time=2026-11-21T12:00:04.000Z level=DEBUG msg=durable lane=main last=30
time=2026-11-21T12:00:05.000Z level=INFO msg="buffer open" lane=main dir=/x epoch=00c0ffee00c0ff00 next=31 pending=0 unclean=true
`
	if err := os.WriteFile(log, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Promises(log)
	want := []Promise{{"main", epoch, 1, 20}, {"audit", "00000000deadbeef", 5, 4}, {"main", epoch, 23, 30}, {"main", "00c0ffee00c0ff00", 31, 30}}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if err := os.WriteFile(log, []byte(strings.ReplaceAll(text, "ff00 next", "ffee next")), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Promises(log); err == nil {
		t.Errorf("an epoch that goes on after a kill: %v", got)
	}
}

func TestRepeats(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	var b strings.Builder
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for i := range 40 {
		at = at.Add(150 * time.Millisecond) // up to seven in a second
		say := func(level, msg, rest string) {
			fmt.Fprintf(&b, "time=%s level=%s msg=%s%s\n", at.Format("2006-01-02T15:04:05.000Z07:00"), level, msg, rest)
		}
		say("DEBUG", "durable", " lane=main last=1")
		say("INFO", `"said by turns"`, fmt.Sprint(" lane=l", i%2))
		if i >= 20 {
			say("WARN", `"it \"loops\""`, fmt.Sprint(" lane=main n=", i))
		}
		say("INFO", fmt.Sprint(i), " lane=main")
	}
	if err := os.WriteFile(log, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Repeats(log, 5)
	if err != nil || len(got) != 1 || !strings.HasSuffix(got[0], `WARN "it \"loops\"" lane=main`) {
		t.Errorf("%q, %v", got, err)
	}
}
