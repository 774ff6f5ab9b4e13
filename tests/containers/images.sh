#!/usr/bin/env bash
# Makes the images that Dockerfile and docker-compose.yml begin with, where podman has no registry to pull from:
# a debootstrapped Debian with Python under the name of the base image, and from it NATS and Prometheus.
#
#   tests/containers/images.sh
#
# Needs root on Debian with podman, runc, buildah, netavark, aardvark-dns, debootstrap and prometheus, and nats-server
# on PATH or in .venv.
# It does nothing for images that are there. STOKER_DEBIAN_MIRROR names another mirror.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repository=$here/../..
export CONTAINERS_CONF=$here/containers.conf

say() { printf '%s images.sh: %s\n' "$(date -u +%H:%M:%S)" "$*" >&2; }
image_of() { sed -n "s/^ *image: \(docker.io.*\/$1:.*\)/\1/p" "$repository/docker-compose.yml"; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

base=docker.io/library/$(sed -n 's/^FROM \([^ ]*\)$/\1/p' "$repository/Dockerfile")
if ! podman image exists "$base"; then
  say "debootstrap for $base"
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/root" \
    "${STOKER_DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$work/log" || { tail "$work/log" >&2; exit 1; }
  ln -s python3 "$work/root/usr/bin/python"
  # What this machine trusts, the network that it is on may need.
  cp /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/ca-certificates.crt"
  tar -C "$work/root" -c . | podman import - "$base" >/dev/null
fi

# made NAME BINARY ENTRYPOINT...: an image of the base and one binary of this machine.
made() {
  local name=$1 binary=$2
  shift 2
  podman image exists "$name" && return
  say "$name from $binary"
  mkdir -p "$work/context"
  cp "$binary" "$work/context/program"
  printf 'FROM %s\nCOPY program /usr/bin/program\nENTRYPOINT [%s]\n' "$base" "$*" >"$work/context/Containerfile"
  podman build --quiet --tag "$name" "$work/context" >/dev/null
}
made "$(image_of nats)" "$(PATH=$PATH:$repository/.venv/bin command -v nats-server)" '"/usr/bin/program"'
made "$(image_of prometheus)" "$(command -v prometheus)" \
  '"/usr/bin/program", "--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"'
