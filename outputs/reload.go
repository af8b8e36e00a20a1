package outputs

// Reloader is an output that uses files beside its variables: certificates, keys,
// passwords, credentials.
type Reloader interface {
	Output

	// Reload reads the files again. What they hold now is used from the next
	// connection on; those that live are left alone. Of a file that can't be used the
	// former content stays in use, and the error has a line that names the
	// variable and the file.
	//
	// Nobody has to call it for a rotation to be noticed, as files are also read when
	// a connection is made. It is how an operator hears at once whether they are good.
	Reload() error
}
