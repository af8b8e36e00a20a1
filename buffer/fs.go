package buffer

import "io"

// FS is the little that a buffer needs of one directory. It belongs to the
// buffer from Open to Close. The default is the operating system's; tests
// replace it by one that forgets, tears and fails.
//
// Names are single path elements, or "quarantine/" or "rejected/" and one element.
type FS interface {
	// List returns the regular files of the directory (sub "") or of its
	// sub-directory sub; one that does not exist is empty.
	List(sub string) ([]FileInfo, error)
	// Create makes a new file, open for reading and writing, and the sub-directory it
	// lies in; it is an error if the file exists.
	Create(name string) (File, error)
	// Open opens an existing file, for reading or for both.
	Open(name string, write bool) (File, error)
	// Remove unlinks a file.
	Remove(name string) error
	// Quarantine moves a file of the directory to quarantine/, which it creates.
	Quarantine(name string) error
	// SyncDir makes every earlier Create, Remove and Quarantine durable.
	SyncDir() error
	// Free returns the bytes that may still be written and the size of the file system.
	Free() (free, total int64, err error)
	// Close gives the directory back. Open files stay open.
	Close() error
}

// File is one open file of an FS.
type File interface {
	io.ReaderAt
	io.WriterAt
	// Size is the present length in bytes.
	Size() (int64, error)
	// Sync makes the file's bytes and length durable (fdatasync), but not its name.
	Sync() error
	// Evict lets go of what memory holds of the file's synced bytes, as far as the system
	// can, so that the next read asks the disk.
	Evict()
	Close() error
}

// FileInfo is one entry of FS.List.
type FileInfo struct {
	Name string
	Size int64
}

// Sub-directories.
const (
	quarantine = "quarantine" // damaged segments
	rejected   = "rejected"   // what no output takes
)
