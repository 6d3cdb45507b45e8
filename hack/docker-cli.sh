#!/bin/sh
# Makes sure that a current docker CLI is on the PATH of make: the one that is
# installed if it is new enough, else bin/docker, built from hack/dockercli.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
want=28
version=29.7.2 # keep in step with hack/dockercli/go.mod

major() { "$1" --version 2>/dev/null | sed -n 's/^Docker version \([0-9]*\)\..*/\1/p'; }

if [ "${FORCE:-}" = "" ] && found=$(command -v docker) && have=$(major "$found") && [ -n "$have" ] && [ "$have" -ge $want ]; then
	exit 0
fi
echo "docker-cli: no docker CLI $want or newer here; building $version from the Go module proxy into bin/docker (a minute, once)"
mkdir -p bin
cd hack/dockercli
CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -trimpath -tags grpcnotrace \
	-ldflags "-s -w -X github.com/docker/cli/cli/version.Version=$version -X github.com/docker/cli/cli/version.GitCommit=v$version" \
	-o "$root/bin/docker" github.com/docker/cli/cmd/docker
