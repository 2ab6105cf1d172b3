// Package version tells which version of qlock this program was built from. The go
// command writes it into every binary, so no constant has to be raised by hand, and
// none can be forgotten.
package version

import (
	"runtime/debug"
	"strings"
	"sync"
)

// Devel is the version of a build that no release names: one of a working copy,
// without the history that tells the last release. It is a semantic version, because
// NATS microservices must have one, and it is lower than every release.
const Devel = "0.0.0-devel"

const module = "github.com/qlock/qlock"

// linked is for builds that see neither a module version nor the repository, such
// as that of a container image from a bare source tree:
//
//	go build -ldflags "-X github.com/qlock/qlock/internal/version.linked=0.2.0" ./cmd/qlock
var linked string

// String is the version without a leading v, such as 0.2.0.
var String = sync.OnceValue(func() string {
	if linked != "" {
		return strings.TrimPrefix(linked, "v")
	}
	info, _ := debug.ReadBuildInfo() // nil if there is none
	return Of(info)
})

// Of reads the version from build information. All modules of qlock are released
// under one version, so the program's own counts if it is one of them; in all other
// programs it is that of the library.
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
	for m.Replace != nil { // what was built is what stands in its place; a directory has no version
		m = m.Replace
	}
	if m.Version == "(devel)" {
		return ""
	}
	return strings.TrimPrefix(m.Version, "v")
}
