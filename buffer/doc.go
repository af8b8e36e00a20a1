// Package buffer is a durable first-in-first-out queue of sealed batches in one
// directory: the disk between a lane's inputs and its outputs.
package buffer
