package vaultsender

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Operation is one operation as Vault audits it: an entry before it is carried out
// and one behind it, both with the operation's id. Each entry is one line.
type Operation struct {
	ID                string
	Request, Response []byte
}

// Operations makes operations of the shape that a recorded stream of Vault 1.21 has:
// reads, writes and lists of a key-value mount, logins, denied ones. Two with the
// same seed make the same, times excepted. For one goroutine.
type Operations struct {
	// Pad is how many more bytes each response has, about: hashed values of its data.
	Pad int

	rand *rand.Rand
	made int
}

// NewOperations returns operations that seed decides.
func NewOperations(seed uint64) *Operations {
	return &Operations{rand: rand.New(rand.NewPCG(seed, seed))}
}

// Next makes one operation, requested at now and answered within milliseconds.
func (o *Operations) Next(now time.Time) Operation {
	o.made++
	op := Operation{ID: o.id()}
	name := fmt.Sprintf("app-%d", o.rand.IntN(40))
	token, accessor := o.hmac(), o.hmac()
	kind := kinds[o.rand.IntN(len(kinds))]
	auth := map[string]any{
		"accessor": accessor, "client_token": token, "display_name": "approle-" + name, "entity_id": o.id(), "metadata": map[string]any{"role_name": name},
		"policies": []string{"default", name}, "policy_results": map[string]any{"allowed": !kind.denied},
		"token_issue_time": now.Add(-time.Minute).UTC().Format(time.RFC3339), "token_policies": []string{"default", name}, "token_ttl": 3600, "token_type": "service",
	}
	request := map[string]any{
		"client_id": auth["entity_id"], "client_token": token, "client_token_accessor": accessor, "headers": map[string]any{"user-agent": []string{"Go-http-client/1.1"}},
		"id": op.ID, "mount_class": kind.class, "mount_point": kind.mount, "mount_running_version": "v1.21.0+builtin.vault", "mount_type": kind.typ,
		"namespace": map[string]any{"id": "root"}, "operation": kind.operation, "path": kind.mount + kind.path + name,
		"remote_address": fmt.Sprintf("198.51.100.%d", 1+o.rand.IntN(250)), "remote_port": 1024 + o.rand.IntN(60000),
	}
	if kind.operation == "update" || kind.operation == "create" {
		request["data"] = map[string]any{"data": map[string]any{"password": o.hmac(), "turns": o.rand.IntN(9)}, "options": map[string]any{}}
	}
	entry := map[string]any{"auth": auth, "request": request, "type": "request"}
	if kind.denied {
		entry["error"] = "permission denied"
	}
	op.Request = line(entry, now)
	data := map[string]any{"value": o.hmac(), "version": 1 + o.rand.IntN(30), "destroyed": false}
	if o.Pad > 0 {
		keys := make([]string, 1+o.Pad/len(token+`"",`))
		for i := range keys {
			keys[i] = o.hmac()
		}
		data["keys"] = keys
	}
	entry["type"], entry["response"] = "response", map[string]any{"data": data, "mount_class": kind.class, "mount_point": kind.mount, "mount_type": kind.typ}
	if kind.denied {
		entry["error"] = "1 error occurred:\n\t* permission denied\n\n"
	}
	op.Response = line(entry, now.Add(time.Duration(1+o.rand.IntN(3_000_000))*time.Nanosecond))
	return op
}

var kinds = []struct {
	operation, class, typ, mount, path string
	denied                             bool
}{
	{"read", "secret", "kv", "secret/", "data/", false},
	{"update", "secret", "kv", "secret/", "data/", false},
	{"list", "secret", "kv", "secret/", "metadata/", false},
	{"update", "auth", "approle", "auth/approle/", "login/", false},
	{"read", "secret", "kv", "secret/", "data/others/", true},
}

// line prints an entry as Vault does: members by name, < > & escaped, a line feed at
// its end.
func line(entry map[string]any, at time.Time) []byte {
	entry["time"] = at.UTC().Format(time.RFC3339Nano)
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(entry); err != nil {
		panic(err) // of maps, strings and numbers
	}
	return bytes.Clone(b.Bytes())
}

func (o *Operations) bytes(n int) []byte {
	b := make([]byte, 0, n+8)
	for len(b) < n {
		b = binary.LittleEndian.AppendUint64(b, o.rand.Uint64())
	}
	return b[:n]
}

func (o *Operations) id() string {
	h := hex.EncodeToString(o.bytes(16))
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}

func (o *Operations) hmac() string { return "hmac-sha256:" + hex.EncodeToString(o.bytes(32)) }

// JSONX prints a JSON entry as Vault's format=jsonx does (github.com/jefferai/jsonx
// 1.0.1): members sorted by name at every level, names escaped, values not, no root,
// nothing behind it. Numbers keep their text.
func JSONX(entry []byte) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(entry))
	d.UseNumber()
	var members map[string]any
	if err := d.Decode(&members); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	for _, name := range sorted(members) {
		jsonx(&b, name, members[name])
	}
	return b.Bytes(), nil
}

func sorted(members map[string]any) (names []string) {
	for name := range members {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

var escapeName = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&#34;", "'", "&#39;", "\t", "&#x9;", "\n", "&#xA;", "\r", "&#xD;")

// jsonx prints one member, or with name "" one item of an array.
func jsonx(w io.Writer, name string, v any) {
	attr := ""
	if name != "" {
		attr = ` name="` + escapeName.Replace(name) + `"`
	}
	switch v := v.(type) {
	case nil:
		fmt.Fprintf(w, "<json:null%s />", attr)
	case bool:
		fmt.Fprintf(w, "<json:boolean%s>%t</json:boolean>", attr, v)
	case json.Number:
		fmt.Fprintf(w, "<json:number%s>%s</json:number>", attr, v)
	case string:
		fmt.Fprintf(w, "<json:string%s>%s</json:string>", attr, v)
	case []any:
		fmt.Fprintf(w, "<json:array%s>", attr)
		for _, item := range v {
			jsonx(w, "", item)
		}
		fmt.Fprint(w, "</json:array>")
	case map[string]any:
		fmt.Fprintf(w, "<json:object%s>", attr)
		for _, n := range sorted(v) {
			jsonx(w, n, v[n])
		}
		fmt.Fprint(w, "</json:object>")
	}
}
