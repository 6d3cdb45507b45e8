#!/bin/sh
# Generates internal/wire/pb from internal/wire/wire.proto with the pinned generators. Needs protoc (apt-get install protobuf-compiler).
set -eu
cd "$(dirname "$0")"
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
go build -o "$bin/" google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
cd ../../internal/wire
PATH="$bin:$PATH" protoc --go_out=pb --go_opt=paths=source_relative --go-grpc_out=pb --go-grpc_opt=paths=source_relative wire.proto
