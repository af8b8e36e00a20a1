// Spillway is a small edge agent: syslog in, sealed batches in a durable local
// buffer, the same bytes out. This is its binary; docs/ says the rest.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
)

// version is set by the linker.
var version = "dev"

// Exit codes of every command.
const (
	exitOK      = 0
	exitFailure = 1 // the work failed, or damage was found
	exitUsage   = 2 // wrong arguments or configuration
)

// command is one word after `spillway`.
type command struct {
	name, args, what string
	run              func(ctx context.Context, args []string, stdout, stderr io.Writer, environ []string) int
}

// commands are in the order in which help prints them. The first is the default.
var commands = []command{
	{"run", "", "run the agent (also without a command)", cmdRun},
	{"check", "[--probe]", "look at configuration and host; --probe: also at the far sides", cmdCheck},
	{"env", "[--markdown]", "print every variable, its value and where that is from", cmdEnv},
	{"cat", "SOURCE...", "print what a directory, file, bucket or stream holds, as NDJSON", cmdCat},
	{"verify", "SOURCE... [--json] [--from-start]", "what is missing, doubled or changed in directories, buckets and streams together", cmdVerify},
	{"buffer", "ls|cat|verify|stats|salvage|rewind|trim DIR [--json]", "look into a buffer or a copy of one, save what it has, go back, make room", cmdBuffer},
	{"version", "", "print the version", cmdVersion},
}

func main() { os.Exit(realMain()) }

func realMain() int {
	ctx, args := context.Background(), os.Args[1:]
	if len(args) == 0 {
		args = []string{"run"}
	}
	switch args[0] {
	case "help", "-h", "-help", "--help":
		usage(os.Stdout)
		return exitOK
	case "-version", "--version":
		args[0] = "version"
	}
	for _, c := range commands {
		if c.name == args[0] {
			return c.run(ctx, args[1:], os.Stdout, os.Stderr, os.Environ())
		}
	}
	fmt.Fprintf(os.Stderr, "spillway: no command %q\n", args[0])
	usage(os.Stderr)
	return exitUsage
}

func usage(w io.Writer) {
	fmt.Fprintln(w, "usage: spillway COMMAND, configured by SPILLWAY_* variables alone")
	for _, c := range commands {
		fmt.Fprintf(w, "  %-43s %s\n", c.name+" "+c.args, c.what)
	}
}

func cmdVersion(_ context.Context, _ []string, stdout, _ io.Writer, _ []string) int {
	fmt.Fprintf(stdout, "spillway %s %s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return exitOK
}
