package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// frame is what every record of an input has besides, by its input.type.
var frame = map[string]string{
	"tcp": `{"event":{"created":"<created>","dataset":"tcp.generic"},"data_stream":{"type":"logs","dataset":"tcp.generic","namespace":"default"},"ecs":{"version":"8.11.0"},
		"host":{"name":"<host>"},"agent":{"name":"gw1"},"source":{"address":"<loopback>","ip":"<loopback>","port":"<port>"},"log":{"source":{"address":"<peer>"}},"spillway":{"epoch":"<epoch>","seq":"<seq>"}}`,
	"unix": `{"event":{"created":"<created>","dataset":"unix.generic"},"data_stream":{"type":"logs","dataset":"unix.generic","namespace":"default"},"ecs":{"version":"8.11.0"},
		"host":{"name":"<host>"},"agent":{"name":"gw1"},"spillway":{"epoch":"<epoch>","seq":"<seq>"}}`,
	"udp": `{"event":{"created":"<created>","dataset":"udp.generic"},"data_stream":{"type":"logs","dataset":"udp.generic","namespace":"default"},"ecs":{"version":"8.11.0"},
		"host":{"name":"<host>"},"agent":{"name":"gw1"},"source":{"address":"<loopback>","ip":"<loopback>","port":"<port>"},"log":{"source":{"address":"<peer>"}},"spillway":{"epoch":"<epoch>","seq":"<seq>"}}`,
}

// golden is what the values in < > of wanted records are held against.
type golden struct {
	begin, end time.Time
	host, user string
	record     map[string]any // the one that is looked at
}

// newGolden is made before anything is sent.
func newGolden(t *testing.T) *golden {
	t.Helper()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	g := &golden{begin: time.Now(), host: host, user: me.Username}
	if login, err := exec.Command("logname").Output(); err == nil { // who logged in before sudo or su, as logger tells it
		g.user = strings.TrimSpace(string(login))
	}
	return g
}

// compare holds all records, as lines of JSON, against those that are wanted, each
// without its frame. It is called when nothing more comes.
func (g *golden) compare(t *testing.T, lines, want []string) {
	t.Helper()
	g.end = time.Now()
	got, all := objects(t, lines), objects(t, want)
	if len(got) != len(all) {
		t.Fatalf("%d records, want %d:\n%s", len(got), len(all), strings.Join(lines, "\n"))
	}
	// Connections are read side by side: the order of their records says nothing.
	byMessage := func(a, b map[string]any) int {
		return strings.Compare(fmt.Sprint(a["message"]), fmt.Sprint(b["message"]))
	}
	slices.SortStableFunc(got, byMessage)
	slices.SortStableFunc(all, byMessage)
	for i, o := range all {
		kind := o["input"].(map[string]any)["type"].(string)
		whole := merge(objects(t, []string{frame[kind]})[0], o)
		g.record = got[i]
		if where := g.differ("", whole, got[i], nil); len(where) > 0 {
			line, _ := json.Marshal(got[i])
			t.Errorf("record %d:\n  %s\n%s", i+1, strings.Join(where, "\n  "), line)
		}
	}
}

// rules say what may stand for a value in < >.
func (g *golden) rules(name string, got any) bool {
	s, _ := got.(string)
	n, _ := got.(float64)
	event, _ := g.record["event"].(map[string]any)
	source, _ := g.record["source"].(map[string]any)
	switch name {
	case "<created>": // the test's own time
		return g.during(s, 0, time.RFC3339Nano)
	case "<received>": // no time in the message
		return s == event["created"]
	case "<second>": // the sender's time, without a fraction
		return g.during(s, time.Second, "2006-01-02T15:04:05Z")
	case "<microsecond>": // the sender's time, with six digits at most
		return g.during(s, time.Microsecond, "2006-01-02T15:04:05.999999Z")
	case "<host>":
		return s == g.host || s == strings.SplitN(g.host, ".", 2)[0]
	case "<user>":
		return s == g.user
	case "<pid>":
		return regexp.MustCompile(`^[1-9][0-9]*$`).MatchString(s)
	case "<clock>": // what logger says of the kernel's clock: RFC 5424 section 7.1
		sd, _ := got.(map[string]any)
		return sd["tzKnown"] == "1" && (sd["isSynced"] == "0" && len(sd) == 2 || sd["isSynced"] == "1" && len(sd) == 3 && sd["syncAccuracy"] != nil)
	case "<tls>": // what the two sides agree on is theirs; the certificate is the test's
		o, _ := got.(map[string]any)
		client, _ := o["client"].(map[string]any)
		return o["established"] == true && o["version_protocol"] == "tls" && (o["version"] == "1.3" || o["version"] == "1.2") && o["cipher"] != "" && client["subject"] == "CN=client" && client["issuer"] == "CN=ca"
	case "<loopback>": // localhost is either
		ip, err := netip.ParseAddr(s)
		return err == nil && ip.IsLoopback()
	case "<port>":
		return n >= 1 && n <= 65535 && n == float64(int(n))
	case "<peer>":
		peer, err := netip.ParseAddrPort(s)
		return err == nil && peer.Addr().String() == source["ip"] && float64(peer.Port()) == source["port"]
	case "<epoch>":
		return regexp.MustCompile(`^[0-9a-f]{16}$`).MatchString(s)
	case "<seq>":
		return n >= 1
	}
	return false
}

// during reports whether the time s is written as layout says and lies between the
// beginning, cut to unit, and the end of the sender's life.
func (g *golden) during(s string, unit time.Duration, layout string) bool {
	at, err := time.Parse(time.RFC3339Nano, s)
	return err == nil && at.Format(layout) == s && !at.Before(g.begin.Truncate(unit)) && !at.After(g.end)
}

// differ appends to where each value that is not the wanted one.
func (g *golden) differ(path string, want, got any, where []string) []string {
	if name, ok := want.(string); ok && strings.HasPrefix(name, "<") {
		if !g.rules(name, got) {
			where = append(where, fmt.Sprintf("%s is %v, want %s", path, got, name))
		}
		return where
	}
	w, ok := want.(map[string]any)
	if !ok {
		if got != want {
			where = append(where, fmt.Sprintf("%s is %#v, want %#v", path, got, want))
		}
		return where
	}
	o, ok := got.(map[string]any)
	if !ok {
		return append(where, fmt.Sprintf("%s is %v, want an object", path, got))
	}
	names := slices.Sorted(maps.Keys(w))
	for name := range o {
		if _, ok := w[name]; !ok {
			where = append(where, fmt.Sprintf("%s.%s is %v, want none", path, name, o[name]))
		}
	}
	for _, name := range names {
		v, ok := o[name]
		if !ok {
			where = append(where, fmt.Sprintf("%s.%s is missing", path, name))
			continue
		}
		where = g.differ(path+"."+name, w[name], v, where)
	}
	return where
}

// merge puts what b has into a.
func merge(a, b map[string]any) map[string]any {
	for name, v := range b {
		if under, ok := a[name].(map[string]any); ok {
			a[name] = merge(under, v.(map[string]any))
		} else {
			a[name] = v
		}
	}
	return a
}

// objects are the JSON objects of lines.
func objects(t *testing.T, lines []string) (all []map[string]any) {
	t.Helper()
	for _, line := range lines {
		var o map[string]any
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, o)
	}
	return all
}
