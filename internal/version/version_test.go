package version

import (
	"runtime/debug"
	"testing"
)

func TestOf(t *testing.T) {
	lib := func(version string) *debug.Module { return &debug.Module{Path: module, Version: version} }
	for _, c := range []struct {
		name string
		info *debug.BuildInfo
		want string
	}{
		{"no build information", nil, Devel},
		{"installed command",
			&debug.BuildInfo{Main: debug.Module{Path: module + "/cmd/qlock", Version: "v0.2.0"}, Deps: []*debug.Module{lib("v0.2.0")}}, "0.2.0"},
		{"installed command, newer than the library",
			&debug.BuildInfo{Main: debug.Module{Path: module + "/cmd/qlock", Version: "v0.2.1"}, Deps: []*debug.Module{lib("v0.2.0")}}, "0.2.1"},
		{"command of a workspace",
			&debug.BuildInfo{Main: debug.Module{Path: module + "/cmd/qlock", Version: "(devel)"}, Deps: []*debug.Module{lib("(devel)")}}, Devel},
		{"command of a repository with tags",
			&debug.BuildInfo{Main: debug.Module{Path: module + "/cmd/qlock", Version: "v0.2.1-0.20261126235538-d8df91212345+dirty"}, Deps: []*debug.Module{lib("(devel)")}},
			"0.2.1-0.20261126235538-d8df91212345+dirty"},
		{"example of this module", &debug.BuildInfo{Main: *lib("(devel)")}, Devel},
		{"test binary", &debug.BuildInfo{Main: *lib("")}, Devel},
		{"another program",
			&debug.BuildInfo{Main: debug.Module{Path: "example.com/shop", Version: "v3.1.4"}, Deps: []*debug.Module{{Path: module + "/metrics", Version: "v0.2.2"}, lib("v0.2.0")}}, "0.2.0"},
		{"another program, of a similar name",
			&debug.BuildInfo{Main: debug.Module{Path: module + "er", Version: "v3.1.4"}, Deps: []*debug.Module{lib("v0.2.0")}}, "0.2.0"},
		{"another program with a fork",
			&debug.BuildInfo{Main: debug.Module{Path: "example.com/shop"}, Deps: []*debug.Module{
				{Path: module, Version: "v0.2.0", Replace: &debug.Module{Path: "example.com/fork", Version: "v0.2.9"}}}}, "0.2.9"},
		{"another program with a directory in its place",
			&debug.BuildInfo{Main: debug.Module{Path: "example.com/shop"}, Deps: []*debug.Module{
				{Path: module, Version: "v0.2.0", Replace: &debug.Module{Path: "../qlock"}}}}, Devel},
		{"a program without the library", &debug.BuildInfo{Main: debug.Module{Path: "example.com/shop"}}, Devel},
	} {
		if got := Of(c.info); got != c.want {
			t.Errorf("%s: %s, not %s", c.name, got, c.want)
		}
	}
	if got := String(); got != Devel {
		t.Errorf("this test is of version %s", got)
	}
}
