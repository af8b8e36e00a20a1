package crash

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway/test/agent"
)

// Another user than the one the state belongs to is told so, and nothing is touched.
func TestStartAsAnother(t *testing.T) {
	dir := t.TempDir()
	const nobody = 65534
	open := func(name string, mode os.FileMode, uid int) {
		t.Helper()
		if err := errors.Join(os.Chmod(name, mode), os.Chown(name, uid, -1)); err != nil {
			t.Fatal(err)
		}
	}
	open(filepath.Dir(dir), 0o755, 0) // of all temporary directories of this test
	open(dir, 0o755, 0)
	a := agent.New(t, dir)
	text, err := os.ReadFile(a.Bin)
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "spillway")
	if err := os.WriteFile(bin, text, 0o755); err != nil {
		t.Fatal(err)
	}
	a.Start(t)
	a.Stop(t)
	lane := filepath.Join(a.State, "buffer", "main")
	for _, c := range []struct {
		name string
		make func()
		want string // in what it says
	}{
		{"a state directory that it may not enter", func() { open(a.State, 0o700, 0) }, a.State},
		{"a lane of another user", func() { open(a.State, 0o755, 0); open(filepath.Dir(lane), 0o755, 0); open(lane, 0o755, 0) }, lane},
		{"a lane whose directory can't be made", func() {
			if err := os.RemoveAll(lane); err != nil {
				t.Fatal(err)
			}
		}, lane},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.make()
			cmd := exec.Command(bin, "run")
			cmd.Env = append(a.Env, "SPILLWAY_OUTPUTS=outdir", "SPILLWAY_OUTPUT_OUTDIR_URL=file:///tmp")
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Pdeathsig: syscall.SIGKILL}
			timer := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
			defer timer.Stop()
			out, err := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != 1 && code != 2 || !strings.Contains(string(out), c.want) {
				t.Errorf("it exits %d (%v): %s", code, err, out)
			}
			t.Logf("%s", out)
		})
	}
}
