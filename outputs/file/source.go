package file

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"

	"spillway/outputs"
)

// source reads a directory tree.
type source struct{ dir string }

// NewSource returns the objects below dir in the order of their keys. Files that
// are no objects of Spillway, temporary ones among them, are stepped over, as is
// what a consumer takes away meanwhile. Names are all that it knows: an Object has
// no seals and no sizes.
func NewSource(dir string) outputs.Source { return source{dir} }

// errStop ends a walk whose consumer has enough.
var errStop = errors.New("stop")

func (s source) Objects(ctx context.Context) iter.Seq2[*outputs.Object, error] {
	return func(yield func(*outputs.Object, error) bool) {
		if _, err := os.ReadDir(s.dir); err != nil {
			yield(nil, err)
			return
		}
		err := walk(s.dir, "", func(rel string, d fs.DirEntry) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if !d.Type().IsRegular() || isTemp(d.Name()) {
				return nil
			}
			object, err := outputs.ParseKey(rel)
			if err != nil {
				outputs.Stranger(ctx, rel, nil)
				return nil
			}
			object.Body, err = os.Open(filepath.Join(s.dir, rel))
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			if !yield(object, nil) {
				return errStop
			}
			return nil
		})
		if err != nil && !errors.Is(err, errStop) {
			yield(nil, err)
		}
	}
}

// walk calls fn for everything below root/rel that is no directory, in the order
// that the paths have as strings (with slashes). What vanishes meanwhile is
// stepped over; a root that is missing is empty.
func walk(root, rel string, fn func(rel string, d fs.DirEntry) error) error {
	entries, err := os.ReadDir(filepath.Join(root, filepath.FromSlash(rel)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	// "gw-1/…" comes before "gw/…".
	sortName := func(d fs.DirEntry) string {
		if d.IsDir() {
			return d.Name() + "/"
		}
		return d.Name()
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(sortName(a), sortName(b)) })
	for _, d := range entries {
		name := path.Join(rel, d.Name())
		if d.IsDir() {
			err = walk(root, name, fn)
		} else {
			err = fn(name, d)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
