package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/version"
)

func (a *app) version() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "version [flags]",
		Short:   "Show the version",
		Args:    noArgs,
		Example: "  qlock version --json",
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version  string `json:"version"`
				Revision string `json:"revision,omitempty"`
				Modified bool   `json:"modified,omitempty"`
				Go       string `json:"go"`
				Platform string `json:"platform"`
			}{Version: qlock.Version(), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
			if b, ok := debug.ReadBuildInfo(); ok {
				for _, s := range b.Settings {
					switch s.Key {
					case "vcs.revision":
						v.Revision = s.Value
					case "vcs.modified":
						v.Modified = s.Value == "true"
					}
				}
			}
			if asJSON {
				return a.json(v)
			}
			fmt.Fprintf(a.out, "qlock %s", v.Version)
			var origin []string
			if v.Version == version.Devel {
				origin = append(origin, "built from a working copy")
			}
			if v.Revision != "" {
				origin = append(origin, fmt.Sprintf("commit %.12s", v.Revision))
			}
			if v.Modified {
				origin = append(origin, "with changes")
			}
			if len(origin) > 0 {
				fmt.Fprintf(a.out, " (%s)", strings.Join(origin, ", "))
			}
			fmt.Fprintf(a.out, ", %s, %s\n", v.Go, v.Platform)
			return nil
		},
	}
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "write JSON")
	return cmd
}
