// Package version determines which version of qlock this program was built from. The go
// command writes that into every binary, so there is no constant that somebody must
// remember to raise.
package version

import (
	"runtime/debug"
	"strings"
	"sync"
)

// Devel is the version of a build that has no release version: a build of a working copy
// whose history does not show the last release. It is a semantic version, because NATS
// microservices must have one, and it is lower than every release.
const Devel = "0.0.0-devel"

const module = "github.com/qlock/qlock"

// linked is for builds that have neither a module version nor the repository, such as that
// of a container image from a bare source tree:
//
//	go build -ldflags "-X github.com/qlock/qlock/internal/version.linked=0.2.0" ./cmd/qlock
var linked string

// String returns the version without a leading v, such as 0.2.0. It is safe for concurrent
// use.
var String = sync.OnceValue(func() string {
	if linked != "" {
		return strings.TrimPrefix(linked, "v")
	}
	info, _ := debug.ReadBuildInfo() // nil if there is none
	return Of(info)
})

// Of returns the version according to build information, or Devel if that has none. All
// modules of qlock are released under one version. So if the program is one of these
// modules, its own version counts, and otherwise the version of the library.
func Of(info *debug.BuildInfo) string {
	if info == nil {
		return Devel
	}
	if info.Main.Path == module || strings.HasPrefix(info.Main.Path, module+"/") {
		if v := released(&info.Main); v != "" {
			return v
		}
	}
	for _, m := range info.Deps {
		if m.Path == module {
			if v := released(m); v != "" {
				return v
			}
		}
	}
	return Devel
}

func released(m *debug.Module) string {
	// The replacement is what was built. A replacement by a directory has no version.
	for m.Replace != nil {
		m = m.Replace
	}
	if m.Version == "(devel)" {
		return ""
	}
	return strings.TrimPrefix(m.Version, "v")
}
