#!/usr/bin/env bash
# An image for Python actions: the Embermesh executable, and Debian's python3 of this host with its standard library.
#
#   python.sh EMBERMESH [IMAGE]
. "$(dirname "$0")/rootfs.sh"

[ $# -ge 1 ] || fail "usage: python.sh EMBERMESH [IMAGE]"
PYTHON=$(readlink -f /usr/bin/python3) || true
[ -x "$PYTHON" ] || fail "there is no /usr/bin/python3: apt-get install python3"
LIBRARY=$("$PYTHON" -I -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')

put "$1" /embermesh
put "$PYTHON"
ln -s "$PYTHON" "$ROOT/usr/bin/python3"
mkdir -p "$ROOT$LIBRARY"
# Without what an action has no use for.
tar -C "$LIBRARY" --exclude=test --exclude=idlelib --exclude=tkinter --exclude=turtledemo --exclude=lib2to3 \
    --exclude='config-*' --exclude=ensurepip -c . | tar -C "$ROOT$LIBRARY" -x
put_libraries "$LIBRARY"/lib-dynload/*.so
import_as "${2:-embermesh-python}"
