// A module of its own: what packs modules is for these tests alone.
module github.com/qlock/qlock/internal/release

go 1.26.0

require golang.org/x/mod v0.41.0
