// Package arch reads and writes a buffer on other architectures: 32 bits, and the other
// order of bytes. Programs for them run under qemu's user mode emulation.
package arch

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// arches are the architectures and what runs a program of each; "": this host.
var arches = []struct{ name, emulator string }{
	{runtime.GOARCH, ""},
	{"386", ""}, // of which qemu makes crashes of the Go runtime, and which amd64 runs
	{"arm", "qemu-arm"},
	{"arm64", "qemu-aarch64"},
	{"s390x", "qemu-s390x"}, // big-endian; nobody is given a binary for it
}

// root is the project's directory.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// build runs the go command for an architecture in the project's directory.
func build(t *testing.T, arch string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = root(t)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOARM=7")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("GOARCH=%s go %s: %v\n%s", arch, strings.Join(args, " "), err, out)
	}
}

// command is a program of an architecture.
func command(t *testing.T, emulator, bin string, args ...string) *exec.Cmd {
	t.Helper()
	if emulator == "" {
		return exec.CommandContext(t.Context(), bin, args...)
	}
	path, err := exec.LookPath(emulator)
	if err != nil {
		t.Fatalf("%v: it is of Debian's package qemu-user; as root, make tools installs it", err)
	}
	return exec.CommandContext(t.Context(), path, append([]string{bin}, args...)...)
}

// goldens are the directories in buffer/testdata that version 1 wrote.
var goldens = []string{"v1", "v1-ring"}

// TestGolden runs the tests of the golden files on each architecture: what version 1
// wrote is read to the letter, and written again to the byte.
func TestGolden(t *testing.T) {
	for _, a := range arches {
		t.Run(a.name, func(t *testing.T) {
			bin := filepath.Join(t.TempDir(), "buffer.test")
			build(t, a.name, "test", "-c", "-vet=off", "-ldflags=-s -w", "-o", bin, "./buffer")
			cmd := command(t, a.emulator, bin, "-test.v", "-test.run=^TestGolden|^TestNames$|^TestSlot|^TestLongestSlotFits$")
			cmd.Dir = filepath.Join(root(t), "buffer")
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			names := []string{"TestGoldenCursor", "TestGoldenSegment"}
			for _, name := range goldens {
				names = append(names, "TestGoldenDirectoryRead/"+name, "TestGoldenDirectoryWritten/"+name)
			}
			for _, name := range names {
				if !bytes.Contains(out, []byte("--- PASS: "+name+" ")) {
					t.Errorf("%s did not run:\n%s", name, out)
				}
			}
		})
	}
}

// TestTools runs `spillway buffer` on the same directories: each architecture says what
// this one says.
func TestTools(t *testing.T) {
	want := map[string]string{}
	for _, a := range arches {
		t.Run(a.name, func(t *testing.T) {
			bin := filepath.Join(t.TempDir(), "spillway")
			build(t, a.name, "build", "-ldflags=-s -w", "-tags=no_s3,no_jetstream", "-o", bin, "./edge")
			for _, golden := range goldens {
				dir := filepath.Join(t.TempDir(), "main")
				if err := os.CopyFS(dir, os.DirFS(filepath.Join(root(t), "buffer/testdata", golden))); err != nil {
					t.Fatal(err)
				}
				for _, args := range []string{"verify", "verify --deep", "cat", "ls"} {
					cmd := command(t, a.emulator, bin, append(strings.Fields("buffer "+args), dir)...)
					out, err := cmd.CombinedOutput()
					got := strings.ReplaceAll(string(out), dir, "DIR")
					if err != nil {
						got += err.Error()
					}
					name := "buffer " + args + " " + golden
					if a.name == runtime.GOARCH {
						want[name] = got
					}
					if got != want[name] {
						t.Errorf("%s:\n%s\non %s:\n%s", name, got, runtime.GOARCH, want[name])
					}
				}
			}
			for name, part := range map[string]string{"cat v1": `{"message":"line 19","host":{"name":"plant-7"}}`, "verify v1": "torn", "ls v1": "sealed", "verify v1-ring": "clean"} {
				if !strings.Contains(want["buffer "+name], part) {
					t.Errorf("buffer %s does not say %q:\n%s", name, part, want["buffer "+name])
				}
			}
		})
	}
}
