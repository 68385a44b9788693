# Needs Go and, where it says root, a Debian with network. `make` lists the targets.

# What runs pods and the image of the first run; what the tests compile with.
packages := ca-certificates containernetworking-plugins iptables iproute2 busybox-static \
            gcc libc6-dev binutils erofs-utils

# Semantic, for the CRI wants it so: that of the tag, or of what comes next and the commit.
version := $(or $(patsubst v%,%,$(shell git describe --tags --exact-match --dirty=+dirty 2>/dev/null)), \
             0.1.0-dev$(addprefix +,$(shell git describe --always --exclude='*' --dirty=.dirty 2>/dev/null)))

# Otherwise a build fails where git distrusts the owner of the tree.
export GOFLAGS += -buildvcs=false

static := CGO_ENABLED=0 go build -trimpath
race   := CGO_ENABLED=1 go test -race
gvisor := gvisor.dev/gvisor

.NOTPARALLEL:
.PHONY: help setup build run check test soak e2e deb bench clean bin/runscd .cache/bin/registry

help:
	@sed -n 's/^\([a-z0-9]*\):.*## /\1\t/p' Makefile

setup: ## install the Debian packages that are missing (root)
	@[ "$$(id -u)" = 0 ] || { echo "root is needed: pods are made of mounts, namespaces and networks" >&2; exit 1; }
	@command -v dpkg-query >/dev/null || { echo "not a Debian; install what these packages have: $(packages)" >&2; exit 1; }
	@missing=; for p in $(packages); do \
		dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q ' installed$$' || missing="$$missing $$p"; \
	done; \
	[ -z "$$missing" ] || { \
		apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing; }

build: bin/runscd bin/runsc ## build bin/runscd, and bin/runsc of the pinned version

bin/runscd:
	$(static) -ldflags '-s -w -X main.version=$(strip $(version))' -o $@ ./cmd/runscd

# In its own module, so that gVisor keeps the dependencies that it was tested with.
bin/runsc: build/runsc/go.mod build/runsc/go.sum
	cd build/runsc && version=$$(go list -m -f '{{slice .Version 1}}' $(gvisor)) && \
	$(static) -ldflags "-s -w -X $(gvisor)/runsc/version.version=$$version" -o $(CURDIR)/$@ $(gvisor)/runsc

run: setup build .cache/bin/registry ## run a first pod and clean up; IMAGE=… and CMD=… choose another (root)
	@test/first-run.sh

.cache/bin/registry:
	$(static) -o $@ ./test/registry

check: .cache/bin/staticcheck .cache/bin/checklocks ## check the form of the code and run the unit tests
	@files=$$(gofmt -s -l *.go */) && [ -z "$$files" ] || { echo "gofmt -s changes: $$files" >&2; exit 1; }
	go vet ./...
	go vet -vettool=$(CURDIR)/.cache/bin/checklocks -inferred=false ./...
	.cache/bin/staticcheck -checks all,-ST1000,-ST1020,-ST1021,-ST1022 ./...
	$(race) . ./cmd/... ./internal/...

.cache/bin/staticcheck: build/tools/go.mod build/tools/go.sum
	cd build/tools && $(static) -o $(CURDIR)/$@ honnef.co/go/tools/cmd/staticcheck

.cache/bin/checklocks: build/runsc/go.mod build/runsc/go.sum
	cd build/runsc && $(static) -o $(CURDIR)/$@ $(gvisor)/tools/checklocks/cmd/checklocks

# Whose service manager the tests start in namespaces of their own.
test: packages += systemd
test: setup build check ## all tests, also with the real runsc, CNI plugins and a registry (root)
	$(race) -count=1 -timeout=30m ./test/...

soak: setup build ## live 1,000 lives of pods, fill the disk at each step of one, look what is left (root)
	RUNSCD_TEST_LIVES=1000 $(race) -count=1 -v -timeout=60m -run='ManyLives|RefusedAtEveryStep' ./internal/pod ./test/integration

e2e: setup build $(addprefix .cache/kubernetes/,etcd kube-apiserver kubectl kubelet) ## run pods on a real kubelet; the first time builds it (root)
	cd test/e2e && RUNSCD_KUBERNETES=$(CURDIR)/.cache/kubernetes go test -count=1 -timeout=20m -parallel=6

.cache/kubernetes/etcd: package := go.etcd.io/etcd/server/v3
.cache/kubernetes/kube%: package = k8s.io/kubernetes/cmd/$(@F)
.cache/kubernetes/%: build/kubernetes/go.mod build/kubernetes/go.sum
	cd build/kubernetes && version=$$(go list -m -f '{{.Version}}' k8s.io/kubernetes) && \
	$(static) -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$$version" -o $(CURDIR)/$@ $(package)

deb: build ## build bin/runscd.deb
	deploy/debian/build.sh bin '$(strip $(version))' bin/runscd.deb

bench: setup build ## measure, print JSON (root)
	go run ./test/bench

clean: ## remove what was built
	rm -rf bin .cache
