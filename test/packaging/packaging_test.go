// Package packaging builds the packages, looks into them, and installs them on a
// host of their own.
package packaging

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// sh runs a shell line at the root of the project, which must succeed, and returns
// what it printed.
func sh(t *testing.T, line string, env ...string) string {
	t.Helper()
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", line)
	cmd.Dir, cmd.Env = "../..", append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", line, err, out.String(), errs.String())
	}
	return out.String()
}

// build makes the packages of this machine's architecture in a new directory; first
// is a command before that.
func build(t *testing.T, version, first string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	sh(t, first+"; make packages ARCH="+runtime.GOARCH+" VERSION="+version+" DIST="+dir,
		"PKG_VERSION="+version, "SOURCE_DATE_EPOCH=1700000000", "MAKEFLAGS=", "MAINTAINER=Spillway <spillway@example.net>")
	return dir
}

// one returns the one file of dir whose name ends in suffix.
func one(t *testing.T, dir, suffix string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil || len(files) != 1 {
		t.Fatalf("%q in %s: %v", files, dir, err)
	}
	return files[0]
}

func TestPackages(t *testing.T) {
	first := build(t, "1.0.0", "umask 022")
	deb, rpm := one(t, first, ".deb"), one(t, first, ".rpm")

	t.Run("the same bytes each time", func(t *testing.T) {
		second := build(t, "1.0.0", "umask 077; export TZ=Asia/Tokyo LANG=C.UTF-8")
		sh(t, "diff -rq "+first+" "+second)
	})

	fromDeb := t.TempDir()
	sh(t, "dpkg-deb -x "+deb+" "+fromDeb)

	t.Run("both hold the same", func(t *testing.T) {
		inside := sh(t, "cd "+fromDeb+" && find . -type f ! -name changelog.Debian.gz | cut -c2- | sort | sed 's|^|.|' | xargs sha256sum | sed 's|  [.]| |'")
		if got := sh(t, "rpm -qp --qf '[%{FILEDIGESTS} %{FILENAMES}\\n]' "+rpm+" | grep -v '^ ' | sort -k 2"); got != inside {
			t.Errorf(".deb:\n%s.rpm:\n%s", inside, got)
		}
		// Mode, owner, name.
		inDeb := sh(t, `dpkg-deb -c `+deb+` | grep -v '^d' | awk '{ sub("^[.]", "", $6); sub("/", " ", $2); print $1, $2, $6 }' | grep -v changelog.Debian | sort`)
		inRPM := sh(t, `rpm -qlvp `+rpm+` | grep -v '^d' | awk '{ print $1, $3, $4, $NF }' | sort`)
		if inDeb != inRPM {
			t.Errorf(".deb:\n%s.rpm:\n%s", inDeb, inRPM)
		}
		for _, line := range []string{
			"-rwxr-xr-x root root /usr/bin/spillway",
			"-rw-r----- root spillway /etc/spillway/spillway.env",
			"-rw-r--r-- root root /usr/lib/systemd/system/spillway.service",
			"-rw-r--r-- root root /usr/share/doc/spillway/LICENSE",
			"-rw-r--r-- root root /usr/share/doc/spillway/docs/reference.md",
		} {
			if !strings.Contains(inDeb, line+"\n") {
				t.Errorf("no %s in\n%s", line, inDeb)
			}
		}
		if got := strings.TrimSpace(sh(t, "dpkg-deb -I "+deb+" conffiles")); got != "/etc/spillway/spillway.env" {
			t.Errorf("conffiles of the .deb: %s", got)
		}
		if got := strings.TrimSpace(sh(t, "rpm -qcp "+rpm)); got != "/etc/spillway/spillway.env" {
			t.Errorf("configuration of the .rpm: %s", got)
		}
	})

	spillway := filepath.Join(fromDeb, "usr/bin/spillway")
	t.Run("licenses of all modules", func(t *testing.T) {
		info, err := buildinfo.ReadFile(spillway)
		if err != nil {
			t.Fatal(err)
		}
		text := sh(t, "zcat "+fromDeb+"/usr/share/doc/spillway/third-party-licenses.gz")
		for _, m := range info.Deps {
			if !strings.Contains(text, "\n======== "+m.Path+" "+m.Version+": ") {
				t.Errorf("%s has none", m.Path)
			}
		}
	})
	t.Run("manual page", func(t *testing.T) { testManual(t, spillway, fromDeb) })
	t.Run("environment file", func(t *testing.T) { testEnvFile(t, spillway, filepath.Join(fromDeb, "etc/spillway/spillway.env")) })

	t.Run("installed", func(t *testing.T) {
		files := t.TempDir()
		dir := build(t, "1.1.0", "umask 022")
		sh(t, "cp "+deb+" "+files+"/1.deb; cp "+rpm+" "+files+"/1.rpm; cp "+one(t, dir, ".deb")+" "+files+"/2.deb; cp "+one(t, dir, ".rpm")+" "+files+"/2.rpm")
		h := newHost(t, files)
		testDeb(h)
		testRPM(h)
	})
}

// testManual compares the page's commands with what `spillway help` says.
func testManual(t *testing.T, spillway, root string) {
	// Each line is two blanks, the command with its arguments, what it does.
	var want, got []string
	for _, m := range regexp.MustCompile(`(?m)^  (\S+( (\[|[A-Z]|ls\|)\S*)*) `).FindAllStringSubmatch(sh(t, spillway+" help"), -1) {
		want = append(want, m[1])
	}
	page := sh(t, "zcat "+root+"/usr/share/man/man1/spillway.1.gz")
	_, page, _ = strings.Cut(page, ".SH COMMANDS\n")
	page, _, _ = strings.Cut(page, ".SH ")
	plain := strings.NewReplacer(`\fR`, "", `\fB`, "", `\fI`, "", `"`, "", `\-`, "-")
	tight := strings.NewReplacer("[ ", "[", " ]", "]", " ...", "...", " | ", "|")
	for _, m := range regexp.MustCompile(`(?m)^\.TP\n\.\w+ (.*)$`).FindAllStringSubmatch(page, -1) {
		got = append(got, tight.Replace(strings.Join(strings.Fields(plain.Replace(m[1])), " ")))
	}
	if len(want) < 5 || !slices.Equal(got, want) {
		t.Errorf("the page has\n%s\n`spillway help` has\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// testEnvFile takes the # from lines that stand together, from one such block after
// the other and from all: each is a configuration without a problem.
func testEnvFile(t *testing.T, spillway, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	setting := regexp.MustCompile(`(?m)^#(SPILLWAY_\w+=.+)$`)
	var blocks [][]string
	all := map[string]string{}
	for block := range strings.SplitSeq(string(text), "\n\n") {
		var lines []string
		for _, m := range setting.FindAllStringSubmatch(block, -1) {
			lines = append(lines, m[1])
			name, value, _ := strings.Cut(m[1], "=")
			if all[name] != "" {
				t.Errorf("%s is there twice", name)
			}
			all[name] = value
		}
		if len(lines) > 0 {
			blocks = append(blocks, lines)
		}
	}
	if len(blocks) < 5 {
		t.Fatalf("%d blocks", len(blocks))
	}
	for line := range strings.Lines(string(text)) {
		if line != "\n" && !strings.HasPrefix(line, "#") {
			t.Errorf("not a comment: %s", line)
		}
	}
	good := func(lines []string) {
		t.Helper()
		// From a file as the agent reads it, and as systemd does.
		env := filepath.Join(t.TempDir(), "env")
		if err := os.WriteFile(env, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, environ := range [][]string{{"SPILLWAY_ENV_FILE=" + env}, lines} {
			cmd := exec.Command(spillway, "env")
			cmd.Env = append([]string{"SPILLWAY_STATE_DIR=" + t.TempDir()}, environ...)
			var errs bytes.Buffer
			cmd.Stderr = &errs
			out, err := cmd.Output()
			if err != nil || errs.Len() > 0 {
				t.Errorf("%q: %v\n%s", lines, err, errs.String())
			}
			for _, line := range lines {
				if name, value, _ := strings.Cut(line, "="); !strings.Contains(string(out), value) || !strings.Contains(string(out), name) {
					t.Errorf("%s had no effect:\n%s", line, out)
				}
			}
		}
	}
	for _, lines := range blocks {
		good(lines)
	}
	// SPILLWAY_INPUTS=tcp leaves no udp input to configure.
	delete(all, "SPILLWAY_INPUTS")
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		lines = append(lines, name+"="+all[name])
	}
	good(lines)
}

// What `make sbom` writes lists the modules of the binary: all, and no other.
func TestSBOM(t *testing.T) {
	dir := t.TempDir()
	sh(t, "make -o build sbom DIST="+dir, "MAKEFLAGS=") // the binary is there, and other tests run it
	info, err := buildinfo.ReadFile("../../bin/spillway")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "spillway.cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	var bom struct {
		BOMFormat  string
		Metadata   struct{ Component struct{ Name string } }
		Components []struct{ Name, Version, PURL string }
	}
	if err := json.Unmarshal(text, &bom); err != nil {
		t.Fatal(err)
	}
	if bom.BOMFormat != "CycloneDX" || bom.Metadata.Component.Name != "spillway" {
		t.Errorf("%s of %s", bom.BOMFormat, bom.Metadata.Component.Name)
	}
	want := []string{"std " + info.GoVersion}
	for _, m := range info.Deps {
		want = append(want, m.Path+" "+m.Version)
	}
	var got []string
	for _, c := range bom.Components {
		got = append(got, c.Name+" "+c.Version)
		if !strings.HasPrefix(c.PURL, "pkg:golang/"+c.Name+"@") {
			t.Errorf("%s has the purl %s", c.Name, c.PURL)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the SBOM has\n%s\nthe binary has\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
