package framing

import (
	"strings"
	"testing"
)

func TestParseDelimiter(t *testing.T) {
	for in, want := range map[string]string{
		`\n`:         "\n",
		`\r\n`:       "\r\n",
		`\t`:         "\t",
		`\0`:         "\x00",
		`\x1e`:       "\x1e",
		`\x0A\xff`:   "\n\xff",
		`\\n`:        `\n`,
		`<END>`:      "<END>",
		"\n":         "\n",
		`a\0b`:       "a\x00b",
		`\x00123`:    "\x00123",
		"é":          "é",
		`\08`:        "\x008",
		`;\x20end\n`: "; end\n",
	} {
		got, err := ParseDelimiter(in)
		if err != nil || string(got) != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	for in, why := range map[string]string{
		``:      "empty",
		`a\`:    "lone backslash",
		`\x`:    "two hex digits",
		`\x1`:   "two hex digits",
		`\xg0`:  "two hex digits",
		`\x+1`:  "two hex digits",
		`\012`:  "octal",
		`\q`:    `\\q`,
		`\N`:    `\\N`,
		`x\x_1`: "two hex digits",
	} {
		got, err := ParseDelimiter(in)
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %q, %v; want an error about %s", in, got, err, why)
		}
	}
}

func TestNames(t *testing.T) {
	for _, m := range []Mode{Auto, Delimiter, RFC6587, Octet, NUL, JSONX} {
		if got, err := ParseMode(m.String()); err != nil || got != m {
			t.Errorf("%s: %v, %v", m, got, err)
		}
	}
	for _, m := range []MultilineRule{MultilineNone, MultilinePRI} {
		if got, err := ParseMultiline(m.String()); err != nil || got != m {
			t.Errorf("%s: %v, %v", m, got, err)
		}
	}
	for _, o := range []Oversize{Truncate, Split, Drop, Close} {
		if got, err := ParseOversize(o.String()); err != nil || got != o {
			t.Errorf("%s: %v, %v", o, got, err)
		}
	}
	if _, err := ParseMode("xml"); err == nil || !strings.Contains(err.Error(), `"xml"`) || !strings.Contains(err.Error(), "jsonx") {
		t.Errorf("xml: %v", err)
	}
	if _, err := ParseMultiline("true"); err == nil || !strings.Contains(err.Error(), "off or pri") {
		t.Errorf("true: %v", err)
	}
	if _, err := ParseOversize(""); err == nil {
		t.Error("an empty policy is no policy")
	}
	if Mode(99).String() != "99" {
		t.Error(Mode(99))
	}
}
