#!/usr/bin/env bash
# Starts the three nodes, waits until they form a mesh, and shows how to talk to them.
#   EMBERMESH_DATA=DIR deploy/compose/up.sh      (an absolute path without spaces; default: ./embermesh-data)
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
export EMBERMESH_DATA="${EMBERMESH_DATA:-$PWD/embermesh-data}"
mkdir -p "$EMBERMESH_DATA"/n1 "$EMBERMESH_DATA"/n2 "$EMBERMESH_DATA"/n3
docker-compose --file "$here/docker-compose.yml" --project-name embermesh up --detach

api="http://127.0.0.1:${EMBERMESH_PORT1:-3233}"
for _ in $(seq 100); do
  live="$(curl --silent --fail "$api/mesh/v1/members" | grep --only-matching '"state":"live"' | wc --lines || true)"
  if [ "$live" = 3 ]; then
    printf 'Three nodes are up. Try:\n  export EMBERMESH_API=%s\n  embermesh members\n' "$api"
    printf 'Stop them with:\n  EMBERMESH_DATA=%s docker-compose -f %s -p embermesh down\n' \
      "$EMBERMESH_DATA" "$here/docker-compose.yml"
    exit 0
  fi
  sleep 0.2
done
echo "the nodes do not see each other after 20 s; see: docker-compose -f $here/docker-compose.yml -p embermesh logs" >&2
exit 1
