package main

import (
	"errors"
	"flag"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

var update = flag.Bool("update", false, "rewrite golden files")

// TestMain makes the test binary the real program when it is called spillway, so
// that scripts drive what main runs.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"spillway": func() { os.Exit(realMain()) }})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", UpdateScripts: *update, RequireExplicitExec: true, RequireUniqueNames: true,
		Condition: func(name string) (bool, error) { // [s3]: this build has such outputs
			return slices.ContainsFunc(kinds, func(k kind) bool { return k.name == name }), nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"code": scriptCode, "flip": scriptFlip, "lines": scriptLines, "listen": scriptListen, "make": scriptMake, "only": scriptOnly, "records": scriptRecords,
		},
	})
}

// scriptCode is `code N command…`: the command must end with exit code N.
func scriptCode(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}

// scriptListen is `listen VAR`: a TCP port of 127.0.0.1 is in use till the end of
// the script, and VAR is its number.
func scriptListen(ts *testscript.TestScript, _ bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	ts.Setenv(args[0], strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
}
