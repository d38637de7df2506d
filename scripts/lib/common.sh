# Shared by the scripts in the folder above: where things are, and how a step is made once.
# shellcheck shell=bash disable=SC2034

repo_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache_dir=${NYDUS_CLUSTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nydus-cluster}
peers_dir=$cache_dir/peers
rootfs_dir=$cache_dir/rootfs
export NYDUS_CLUSTER_CACHE=$cache_dir
# The oldest Go that builds the peers.
go_version=1.26.8

# Whoever asks a script for help gets its first comment, before anything is installed or built.
for argument in "$@"; do
    case $argument in
    -h | --help)
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    esac
done

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# as_root COMMAND…: for what only root may do (packages, root file systems).
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -- "$@"; fi
}

# How often a step that takes long says so.
clock_seconds=15

# with_clock WHAT COMMAND…: runs COMMAND and says every `clock_seconds` how long it has been at it. Compilers are silent for
# minutes, and silence looks like a hang.
with_clock() {
    local what=$1 flags=$- status ticker
    shift
    say "$what"
    tick "$what" &
    ticker=$!
    # Not `"$@" || …`: there the shell would ignore `set -e` inside.
    set +e
    (set -e; "$@")
    status=$?
    [[ $flags != *e* ]] || set -e
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    return "$status"
}

# `read` with a timeout and not `sleep`: a child would outlive the kill and keep our standard error open.
tick() {
    local what=$1 never
    SECONDS=0
    exec {never}<> <(:)
    while ! read -r -t "$clock_seconds" -u "$never"; do
        printf '    %s: %d:%02d so far\n' "$what" $((SECONDS / 60)) $((SECONDS % 60)) >&2
    done
}

# build_release: the release build of the product and of its tools, as whoever runs the script.
build_release() {
    (cd "$repo_root" && with_clock "building nydus-cluster" \
        cargo build --release --locked --package cli --package integration --bins)
}

# run_as_root PROGRAM ARGUMENTS…: becomes PROGRAM, as root, with what it needs of the environment.
run_as_root() {
    [ "$(id -u)" = 0 ] && exec "$@"
    exec sudo --preserve-env=PATH,HOME,NYDUS_CLUSTER_CACHE -- "$@"
}

# check_tools: says which tool is missing or too old before anything is installed.
check_tools() {
    local wanted found
    wanted=$(sed -n 's/^channel = "\(.*\)"$/\1/p' "$repo_root/rust-toolchain.toml")
    command -v cargo >/dev/null || fail "cargo is missing: install Rust $wanted (rustup reads rust-toolchain.toml)"
    found=$(cd "$repo_root" && rustc --version 2>&1 | cut -d' ' -f2) || true
    [ "$found" = "$wanted" ] || fail "Rust $wanted is needed, rustc says: $found"
    command -v go >/dev/null || fail "go is missing: install Go $go_version or newer"
    found=$(go env GOVERSION)
    [ "$(printf '%s\n' "$go_version" "${found#go}" | sort -V | head -n 1)" = "$go_version" ] ||
        fail "Go $go_version or newer is needed, this is $found"
}

# require_room DIR GB WHAT: fails where WHAT would fill the disk of DIR, rather than with whatever a full disk does to it later.
require_room() {
    local left
    left=$(($(df --output=avail -B1 "$1" | tail -n 1) / 1000000000))
    [ "$left" -ge "$2" ] || fail "$3 takes $2 GB of disk in $1, where $left GB are left"
}

make_in() {
    cd "$1"
    "$2" "$1"
}

# make_once TARGET VERSION FUNCTION: runs FUNCTION in a fresh directory and renames that to TARGET, unless TARGET
# already carries VERSION. An interrupted run leaves no TARGET that looks finished.
make_once() {
    local target=$1 version=$2 make=$3 work status
    [ "$(cat "$target/.version" 2>/dev/null)" = "$version" ] && return 0
    mkdir -p "$(dirname "$target")"
    work=$(mktemp -d "$(dirname "$target")/.making-$(basename "$target").XXXXXX")
    set +e
    with_clock "making $(basename "$target") ($version)" make_in "$work" "$make"
    status=$?
    set -e
    if [ "$status" != 0 ]; then
        as_root rm -rf --one-file-system "$work"
        fail "could not make $target; the output above says why"
    fi
    printf '%s\n' "$version" >"$work/.version"
    chmod 755 "$work"
    as_root rm -rf --one-file-system "$target"
    mv "$work" "$target"
}
