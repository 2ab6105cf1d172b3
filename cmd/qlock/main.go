// Qlock runs nodes, runs commands under a lock, and shows what a cluster does.
// See qlock --help, and package internal/cli.
package main

import (
	"os"

	"github.com/qlock/qlock/cmd/qlock/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
