//go:build !unix

package cli

import (
	"errors"
	"os"
)

// duplicate is not needed: this system has no signal for broken pipes.
func duplicate(*os.File) (*os.File, error) { return nil, errors.ErrUnsupported }
