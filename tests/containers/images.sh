#!/usr/bin/env bash
# Has podman's images ready ahead of the tests here: what Dockerfile and docker-compose.yml begin with is pulled or, where
# no registry is reached, made: a debootstrapped Debian with Python under the name of the base image, and from it NATS
# and Prometheus. Then the project's own image is built, so that the tests find its layers.
#
#   tests/containers/images.sh
#
# Where it makes them it needs root on Debian with podman, debootstrap and prometheus, and nats-server on PATH or in
# .venv. It does nothing for images that are there. STOKER_DEBIAN_MIRROR names another mirror.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repository=$here/../..
export CONTAINERS_CONF=$here/containers.conf

say() { printf '%s images.sh: %s\n' "$(date -u +%H:%M:%S)" "$*" >&2; }
image_of() { sed -n "s/^ *image: \(docker.io.*\/$1:.*\)/\1/p" "$repository/docker-compose.yml"; }
had() { podman image exists "$1" || timeout 300 podman pull --quiet "$1" >/dev/null 2>&1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

tag=$(sed -n 's/^FROM python:\([^ ]*\)$/\1/p' "$repository/Dockerfile")
base=docker.io/library/python:$tag
if ! had "$base"; then
  say "debootstrap for $base"
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates trixie "$work/root" \
    "${STOKER_DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$work/log" || { tail "$work/log" >&2; exit 1; }
  version=$(chroot "$work/root" python3 --version)
  [[ $version == "Python ${tag%-slim}."* ]] || { say "$base cannot be made of a Debian with $version"; exit 1; }
  ln -s python3 "$work/root/usr/bin/python"
  # What this machine trusts, the network that it is on may need.
  cp /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/ca-certificates.crt"
  tar -C "$work/root" -c . | podman import - "$base" >/dev/null
fi

# made NAME BINARY ENTRYPOINT...: an image of the base and one binary of this machine.
made() {
  local name=$1 binary=$2
  shift 2
  if had "$name"; then
    return
  fi
  say "$name from $binary"
  mkdir -p "$work/context"
  cp "$binary" "$work/context/program"
  printf 'FROM %s\nCOPY program /usr/bin/program\nENTRYPOINT [%s]\n' "$base" "$*" >"$work/context/Containerfile"
  podman build --quiet --tag "$name" "$work/context" >/dev/null
}
made "$(image_of nats)" "$(PATH=$PATH:$repository/.venv/bin command -v nats-server)" '"/usr/bin/program"'
made "$(image_of prometheus)" "$(command -v prometheus)" \
  '"/usr/bin/program", "--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"'

say "the image of the services"
podman build --quiet --network host --tag stoker:local "$repository" >/dev/null
