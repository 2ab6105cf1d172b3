//go:build !unix

package cli

import "os"

// hangup returns a nil channel: this system has no such signal.
func hangup() (<-chan os.Signal, func()) { return nil, func() {} }
