#!/usr/bin/env bash
# Builds kube-apiserver and kube-controller-manager from Debian's source package, once, as root on Debian.
#
#   tests/kubernetes/build.sh [FOLDER]
#
# FOLDER holds the two binaries afterwards; by default the one where the tests look. It does nothing when they are there.
# It adds no source to the machine's apt configuration. STOKER_DEBIAN_MIRROR names another mirror.
set -euo pipefail

version=1.20.2
programs=(kube-apiserver kube-controller-manager)
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/stoker/kubernetes-$version}
mirror=${STOKER_DEBIAN_MIRROR:-http://deb.debian.org/debian}

say() { printf '%s build.sh: %s\n' "$(date -u +%H:%M:%S)" "$*" >&2; }

missing=()
for program in "${programs[@]}"; do
  [ -x "$folder/$program" ] || missing+=("$program")
done
if [ ${#missing[@]} = 0 ] && command -v etcd >/dev/null; then
  say "nothing to do: $folder has ${programs[*]}"
  exit 0
fi
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
  say "needs root on Debian, to install the compiler and etcd"
  exit 1
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
say "installing etcd"
apt-get install -y -qq --no-install-recommends etcd-server >/dev/null
if [ ${#missing[@]} = 0 ]; then
  exit 0
fi
say "installing the compiler and its tools"
apt-get install -y -qq --no-install-recommends \
  ca-certificates dpkg-dev golang-go jq rsync make golang-github-modern-go-reflect2-dev >/dev/null

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say "fetching the source package"
mkdir -p "$work/lists/partial" "$work/gopath/src/k8s.io"
echo "deb-src $mirror bookworm main" >"$work/sources.list"
private=(-o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$work/lists")
apt-get "${private[@]}" update -qq
(cd "$work/gopath/src/k8s.io" && apt-get "${private[@]}" -o APT::Sandbox::User=root source -qq kubernetes >/dev/null)
mv "$work/gopath/src/k8s.io"/kubernetes-*/ "$work/gopath/src/k8s.io/kubernetes"
cd "$work/gopath/src/k8s.io/kubernetes"

# The vendored reflect2 reads runtime types as they were before Go 1.18: custom resources would crash the server.
reflect2=vendor/github.com/modern-go/reflect2
find "$reflect2" \( -name '*.go' -o -name '*.s' \) -delete
cp /usr/share/gocode/src/github.com/modern-go/reflect2/*.go /usr/share/gocode/src/github.com/modern-go/reflect2/*.s "$reflect2/"
rm -f "$reflect2"/*_test.go

export GOPATH=$work/gopath GO111MODULE=off CGO_ENABLED=0 GOFLAGS= GOCACHE=$work/gocache
export KUBE_GIT_VERSION=v$version KUBE_GIT_MAJOR=1 KUBE_GIT_MINOR=20 KUBE_GIT_COMMIT=debian KUBE_GIT_TREE_STATE=clean
for program in "${missing[@]}"; do
  say "building $program"
  make WHAT="cmd/$program" >"$work/build.log" 2>&1 || { tail -n 60 "$work/build.log" >&2; exit 1; }
  mkdir -p "$folder"
  install -m 755 "_output/local/bin/linux/$(go env GOARCH)/$program" "$folder/$program.partial"
  mv "$folder/$program.partial" "$folder/$program"
done
say "done: $folder"
