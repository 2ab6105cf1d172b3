//go:build !unix

package cli

import (
	"context"
	"os"
)

func stayAwake() {}

func inBackground(*os.File) bool { return false }

func withParent(ctx context.Context) (context.Context, context.CancelFunc, error) {
	return ctx, nil, usage("--until parent: this system does not report when a parent ends; use --until signal")
}
