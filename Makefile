# What people look for. .ci/run has everything that a change must pass.

.PHONY: help build test race lint ci demo

help: ## show the targets
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' Makefile

build: ## build the command, as bin/qlock
	go build -o bin/qlock ./cmd/qlock

test: ## run the tests of all modules, under three minutes on two cores
	go test work

race: ## run them with the race detector, in random order
	go test -race -shuffle=on work

lint: ## gofmt, go vet, and the rules about what may import what
	@test -z "$$(gofmt -l -s .)" || { gofmt -l -s .; echo "not formatted: gofmt -s -w ."; exit 1; }
	go vet work
	GOOS=windows go vet work
	go test ./internal/rules ./internal/release

ci: ## run all checks, about 40 minutes on two cores
	.ci/run

demo: ## three nodes, five services and the death of a node, in one process
	go run ./examples/quickstart
