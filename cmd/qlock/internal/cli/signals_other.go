//go:build !unix

package cli

import "os"

// hangup hears nothing: there is no such signal.
func hangup() (<-chan os.Signal, func()) { return nil, func() {} }
