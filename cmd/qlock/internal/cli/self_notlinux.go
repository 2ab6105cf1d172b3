//go:build unix && !linux

package cli

import "os"

// thisProgram is the file of the program that runs.
func thisProgram() (string, error) { return os.Executable() }
