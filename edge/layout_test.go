package main

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// allowed says which packages of ours a package may import; "x/..." is x and all
// below it. What is not listed may import none. docs/design.md draws it.
var allowed = map[string][]string{
	"spillway/edge":               {"spillway/..."},
	"spillway/edge/listen":        {"spillway/framing"},
	"spillway/edge/pipeline":      {"spillway/edge/listen", "spillway/framing/...", "spillway/buffer/...", "spillway/outputs"},
	"spillway/edge/admin":         {},
	"spillway/edge/ledger":        {"spillway/buffer/batch", "spillway/outputs"},
	"spillway/framing":            {},
	"spillway/framing/syslog":     {"spillway/framing"},
	"spillway/framing/vault":      {},
	"spillway/framing/ecs":        {"spillway/framing", "spillway/framing/syslog", "spillway/framing/vault"},
	"spillway/buffer/batch":       {},
	"spillway/buffer":             {"spillway/buffer/batch"},
	"spillway/outputs":            {"spillway/buffer/batch"},
	"spillway/outputs/outputtest": {"spillway/outputs", "spillway/buffer/batch"},
	"spillway/outputs/file":       {"spillway/outputs", "spillway/buffer/batch"},
	"spillway/outputs/jetstream":  {"spillway/outputs", "spillway/buffer/batch"},
	"spillway/outputs/s3":         {"spillway/outputs", "spillway/buffer/batch"},
}

// sdk says which package alone may know a library: one far side, one package.
var sdk = map[string]string{
	"github.com/nats-io/nats.go":          "spillway/outputs/jetstream",
	"github.com/aws/aws-sdk-go-v2":        "spillway/outputs/s3",
	"github.com/aws/smithy-go":            "spillway/outputs/s3",
	"github.com/klauspost/compress":       "spillway/buffer/batch",
	"github.com/prometheus/client_golang": "spillway/edge/admin",
	"github.com/caarlos0/env":             "spillway/edge",
	"github.com/youmark/pkcs8":            "spillway/edge/listen",
}

type goPackage struct {
	ImportPath, Dir string
	Imports         []string
	GoFiles         []string
}

func packages(t *testing.T) (ps []goPackage) {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,GoFiles", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	d := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return ps
		} else if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
}

func matches(pattern, path string) bool {
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == base || strings.HasPrefix(path, base+"/")
	}
	return path == pattern
}

func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		rules, known := allowed[p.ImportPath]
		if !known {
			t.Errorf("%s: a package that docs/design.md does not name", p.ImportPath)
		}
		for _, imp := range p.Imports {
			if strings.HasPrefix(imp, "spillway/") && !slices.ContainsFunc(rules, func(r string) bool { return matches(r, imp) }) {
				t.Errorf("%s imports %s", p.ImportPath, imp)
			}
			for lib, owner := range sdk {
				if (imp == lib || strings.HasPrefix(imp, lib+"/")) && p.ImportPath != owner {
					t.Errorf("%s imports %s, which belongs to %s", p.ImportPath, imp, owner)
				}
			}
		}
	}
}

// TestLeavesStartNothing holds two more rules by reading the code: framing,
// buffer, outputs and edge/ledger start no goroutine that outlives a call, and nothing but
// edge reads the environment.
func TestLeavesStartNothing(t *testing.T) {
	for _, p := range packages(t) {
		if p.ImportPath == "spillway/outputs/outputtest" {
			continue // part of tests
		}
		if p.ImportPath != "spillway/edge/ledger" && (p.ImportPath == "spillway/edge" || strings.HasPrefix(p.ImportPath, "spillway/edge/")) {
			continue
		}
		for _, name := range p.GoFiles {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.GoStmt:
					t.Errorf("%s: a go statement outside edge", fset.Position(n.Pos()))
				case *ast.SelectorExpr:
					if x, ok := n.X.(*ast.Ident); ok && x.Name == "os" && slices.Contains([]string{"Getenv", "LookupEnv", "Environ", "ExpandEnv"}, n.Sel.Name) {
						t.Errorf("%s: reads the environment", fset.Position(n.Pos()))
					}
				}
				return true
			})
		}
	}
}

// TestTopLevel keeps the house as it is drawn.
func TestTopLevel(t *testing.T) {
	rooms := strings.Fields("edge outputs framing buffer infra lambda test docs go.mod go.sum Makefile README.md LICENSE CHANGELOG.md .ci .gitignore .golangci.yml .git")
	out, err := exec.Command("git", "-C", "..", "ls-files").Output()
	if err != nil {
		var missing *exec.Error
		if errors.As(err, &missing) || errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("git: %v", err)
		}
		t.Log("not a git checkout: nothing to look at")
		return
	}
	for _, f := range strings.Fields(string(out)) {
		if top, _, _ := strings.Cut(f, "/"); !slices.Contains(rooms, top) {
			t.Errorf("%s at top level: docs/design.md knows no such room", top)
		}
	}
}
