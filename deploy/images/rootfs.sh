# For the scripts beside it, which source it: a root file system out of this host's files, and its import.
# Nothing is downloaded; the engine needs no registry.
set -euo pipefail

ROOT=$(mktemp -d)
trap 'rm -rf "$ROOT"' EXIT
mkdir -p "$ROOT/etc" "$ROOT/tmp" "$ROOT/run/embermesh"
chmod 1777 "$ROOT/tmp"
printf 'root:x:0:0:root:/:/none\naction:x:65532:65532:action:/tmp:/none\n' > "$ROOT/etc/passwd"

fail() { echo "error: $*" >&2; exit 1; }

# What a program or library links to, with its loader, at the paths where the loader looks.
put_libraries() {
    local library
    for library in $(ldd "$@" 2>/dev/null | grep -o '/[^ ]*' | grep -v ':$' | sort -u); do
        [ -e "$ROOT$library" ] || install -D -m 755 "$library" "$ROOT$library"
    done
}

# put PROGRAM [PLACE]: an executable with its libraries.
put() {
    [ -x "$1" ] || fail "$1 is no executable file"
    install -D -m 755 "$1" "$ROOT${2:-$1}"
    put_libraries "$1"
}

# import_as IMAGE
import_as() {
    command -v docker > /dev/null || fail "docker is not on the PATH"
    # With its times: Python trusts its compiled files by those of their sources.
    tar -C "$ROOT" --sort=name --owner=0 --group=0 -c . | docker import - "$1" > /dev/null
    echo "$1: $(docker image inspect -f '{{.Size}}' "$1" | awk '{ printf "%.1f MB", $1 / 1e6 }')"
}
