# Shared by the scripts beside this folder: where things are, and how a step is made once.
# shellcheck shell=bash disable=SC2034

repo_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache_dir=${NYDUS_CLUSTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nydus-cluster}
peers_dir=$cache_dir/peers
rootfs_dir=$cache_dir/rootfs
export NYDUS_CLUSTER_CACHE=$cache_dir

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# as_root COMMAND…: for what only root may do (packages, root file systems).
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -- "$@"; fi
}

# make_once TARGET VERSION FUNCTION: runs FUNCTION in a fresh directory and renames that to TARGET, unless TARGET
# already carries VERSION. An interrupted run leaves no TARGET that looks finished.
make_once() {
    local target=$1 version=$2 make=$3 work
    [ "$(cat "$target/.version" 2>/dev/null)" = "$version" ] && return 0
    say "making $(basename "$target") ($version)"
    mkdir -p "$(dirname "$target")"
    work=$(mktemp -d "$(dirname "$target")/.making-$(basename "$target").XXXXXX")
    # Not in an `if`: there the shell would ignore `set -e` inside.
    set +e
    (set -e; cd "$work"; "$make" "$work")
    local status=$?
    set -e
    if [ $status != 0 ]; then
        as_root rm -rf --one-file-system "$work"
        fail "could not make $target; the output above says why"
    fi
    printf '%s\n' "$version" >"$work/.version"
    chmod 755 "$work"
    as_root rm -rf --one-file-system "$target"
    mv "$work" "$target"
}
