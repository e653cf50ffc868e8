#!/usr/bin/env bash
# Builds the static binary and an image FROM scratch with it. Needs a Rust toolchain and Docker; no registry.
#   deploy/build-image.sh [TAG]      (default: embermesh:latest)
set -euo pipefail
cd "$(dirname "$0")/.."
tag="${1:-embermesh:latest}"

# For this binary alone: set for the whole build, the flag would break proc-macros.
cargo rustc --release --locked -p embermesh --bin embermesh -- -C target-feature=+crt-static
context="$(mktemp -d)"
trap 'rm -rf "$context"' EXIT
cp target/release/embermesh deploy/Dockerfile "$context"
docker build --quiet --tag "$tag" "$context" >/dev/null
docker image inspect --format "{{.RepoTags}} {{.Size}} bytes" "$tag"
