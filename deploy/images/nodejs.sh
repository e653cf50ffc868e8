#!/usr/bin/env bash
# An image for Node.js actions: the Embermesh executable, and Debian's node of this host.
#
#   nodejs.sh EMBERMESH [IMAGE]
. "$(dirname "$0")/rootfs.sh"

[ $# -ge 1 ] || fail "usage: nodejs.sh EMBERMESH [IMAGE]"
NODE=$(readlink -f /usr/bin/node) || true
[ -x "$NODE" ] || fail "there is no /usr/bin/node: apt-get install nodejs"

put "$1" /embermesh
put "$NODE"
[ "$NODE" = /usr/bin/node ] || ln -s "$NODE" "$ROOT/usr/bin/node"
# Debian's own package keeps the built-in modules' JavaScript outside of the executable.
for folder in /usr/share/nodejs; do
    [ ! -d "$folder" ] || { mkdir -p "$ROOT/usr/share" && cp -a "$folder" "$ROOT$folder"; }
done
import_as "${2:-embermesh-nodejs}"
