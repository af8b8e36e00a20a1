package buffer

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMutants is the test of the tests: each patch in testdata/mutants takes out
// one thing that this package is careful about, and the simulator must notice. A
// patch that does not apply any more is a failure too: write it anew.
func TestMutants(t *testing.T) {
	patches, err := filepath.Glob("testdata/mutants/*.patch")
	if err != nil || len(patches) < 3 {
		t.Fatalf("%d patches, %v", len(patches), err)
	}
	t.Run("unpatched", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		copyModule(t, dir)
		if out, err := simulate(t, dir, "SPILLWAY_CRASH_BUDGET=0.1"); err != nil { // the tests themselves do all of it
			t.Fatalf("%v\n%s", err, out)
		}
	})
	for _, patch := range patches {
		name := strings.TrimSuffix(filepath.Base(patch), ".patch")
		abs, err := filepath.Abs(patch)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			copyModule(t, dir)
			apply := exec.Command("git", "apply", "--whitespace=nowarn", abs)
			apply.Dir = dir
			apply.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir)) // no repository around it
			if out, err := apply.CombinedOutput(); err != nil {
				t.Fatalf("%s does not apply: %v\n%s", patch, err, out)
			}
			out, err := simulate(t, dir)
			switch {
			case err == nil:
				t.Errorf("nobody noticed:\n%s", out)
			case !bytes.Contains(out, []byte("--- FAIL: Test")) || bytes.Contains(out, []byte("[build failed]")):
				t.Errorf("it did not fail by a test: %v\n%s", err, out)
			default:
				i := bytes.Index(out, []byte("SPILLWAY_CRASH_SEED"))
				line, _, _ := bytes.Cut(out[max(i, 0):], []byte("\n"))
				t.Logf("noticed: %s", line)
			}
		})
	}
}

// simulate runs the simulator's tests in a copy.
func simulate(t *testing.T, dir string, env ...string) ([]byte, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "test", "-vet=off", "-ldflags=-s -w", "-failfast", "-run", "^(TestPowerCuts|TestEveryCall|TestEveryFault|TestBitFlips)$", "./buffer")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false -mod=mod", "GOWORK=off", "SPILLWAY_CRASH_SEED=1")
	cmd.Env = append(cmd.Env, env...)
	return cmd.CombinedOutput()
}

// copyModule copies what buffer and its tests need of this module.
func copyModule(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if d.Name() == "testdata" {
				return fs.SkipDir
			}
			return os.MkdirAll(filepath.Join(dir, "buffer", path), 0o755)
		}
		if !strings.HasSuffix(path, ".go") || strings.HasPrefix(path, "batch/") && strings.HasSuffix(path, "_test.go") {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "buffer", path), data, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}
