//go:build unix && !linux

package cli

import "os"

// thisProgram returns the file of the running program.
func thisProgram() (string, error) { return os.Executable() }
