//go:build !unix

package statedir

import "os"

func identify(*os.File) (identity, error) { return identity{}, nil }
