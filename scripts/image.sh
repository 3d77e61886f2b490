#!/usr/bin/env bash
# Builds the CPU image as $1 without a container daemon or registry: buildah, on a base that debootstrap makes once.
# Needs root, buildah, debootstrap and crun. What this machine uses to reach its package sources is lent to the build.
set -euo pipefail
cd "$(dirname "$0")/.."
image=${1:?usage: scripts/image.sh NAME}
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
base=localhost/dfmr-base:bookworm

if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  mirror=$(awk '/^(deb |URIs: )/ {for (i = 1; i <= NF; i++) if ($i ~ /^https?:/) {print $i; exit}}' \
    /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || true)
  debootstrap --variant=minbase --include=ca-certificates bookworm "$folder/root" ${mirror:+"$mirror"} >/dev/null
  container=$(buildah from scratch)
  buildah add --quiet "$container" "$folder/root" / >/dev/null
  # Up to date before the build, where certificates are lent and cannot be written.
  buildah run -v /etc/apt:/etc/apt:ro "$container" -- sh -c \
    'apt-get update && apt-get install --yes ca-certificates && rm -rf /var/lib/apt/lists/*' >/dev/null
  buildah commit --quiet --rm "$container" "$base" >/dev/null
fi

lent=(-v /etc/ssl/certs:/etc/ssl/certs:ro -v /etc/apt:/etc/apt:ro)
arguments=(--build-arg BASE_IMAGE="$base")
for file in /etc/pip.conf /etc/uv; do
  [ -e "$file" ] && lent+=(-v "$file:$file:ro")
done
if [ -n "${PIP_FIND_LINKS:-}" ]; then
  arguments+=(--build-arg FIND_LINKS="$PIP_FIND_LINKS" --build-arg TORCH_BACKEND=)
  [ -d "$PIP_FIND_LINKS" ] && lent+=(-v "$PIP_FIND_LINKS:$PIP_FIND_LINKS:ro")
fi
buildah build --format docker --target cpu --tag "$image" "${arguments[@]}" "${lent[@]}" .
