// Package release has no code. Its tests keep the modules of this repository fit to be
// released together, under one version. They also rehearse the release: they pack the
// modules as the module proxy would, and use them as other programs do. docs/RELEASING.md
// has the procedure.
package release
