#!/usr/bin/env bash
# An image for built-in, native and ActionLoop actions: FROM scratch, the Embermesh executable and its libraries.
# Agents make this very image by themselves when docker.images.native is not set; make it here to add to it.
#
#   native.sh EMBERMESH [IMAGE [PROGRAM...]]     PROGRAMs go in as well, e.g. /bin/sh for ActionLoop scripts
. "$(dirname "$0")/rootfs.sh"

[ $# -ge 1 ] || fail "usage: native.sh EMBERMESH [IMAGE [PROGRAM...]]"
put "$1" /embermesh
for program in "${@:3}"; do
    put "$program"
done
import_as "${2:-embermesh-native}"
