# Real root file systems made from Debian's packages: layers of the demonstration, and the big one of the benchmarks.
# shellcheck shell=bash disable=SC2154

# Packages of the big root file system: about 860 MB in 20,000 files.
big_packages=python3-numpy,nodejs,default-jre-headless,postgresql,nginx,git,etcd-server

# Fixed, so that the same packages give the same tar.
rootfs_epoch=1735689600

# make_rootfs DIR [PACKAGES [SUITE]]: unpacks a minimal Debian, with PACKAGES, into DIR.
make_rootfs() {
    local dir=$1 include=${2:-} suite=${3:-$rootfs_suite} options=(--variant=minbase --quiet)
    [ -n "$include" ] && options+=("--include=$include")
    as_root env "SOURCE_DATE_EPOCH=$rootfs_epoch" mmdebstrap "${options[@]}" \
        --aptopt='APT::Install-Recommends "false"' "$suite" "$dir" "$(debian_source "$suite")" >&2
}

# tar_tree DIR FILE [TAR OPTIONS…]: a reproducible tar of DIR, extended attributes and ACLs included.
tar_tree() {
    local dir=$1 file=$2
    shift 2
    as_root tar -C "$dir" --numeric-owner --xattrs --xattrs-include='*' --format=posix --sort=name \
        --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime --mtime="@$rootfs_epoch" --clamp-mtime \
        "$@" -cf - . >"$file"
}

# list_tree DIR: one NUL-ended line for each path, with all that makes it differ from the same path elsewhere.
list_tree() {
    (cd "$1" && as_root find . -mindepth 1 -printf '%P\t%y %m %U:%G %s %T@ %l\0')
}

# tar_difference LOWER UPPER FILE: what UPPER adds to or changes in LOWER, as a layer.
tar_difference() {
    local lower=$1 upper=$2 file=$3
    comm -z -13 <(list_tree "$lower" | LC_ALL=C sort -z) <(list_tree "$upper" | LC_ALL=C sort -z) |
        sed -z 's/\t.*//' >changed
    as_root tar -C "$upper" --numeric-owner --xattrs --xattrs-include='*' --format=posix --no-recursion \
        --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime --mtime="@$rootfs_epoch" --clamp-mtime \
        --null --verbatim-files-from --files-from=changed -cf - >"$file"
    rm changed
}

# Two layers: a base, and Python with numpy on it.
make_demo_rootfs() {
    make_rootfs "$1/base"
    make_rootfs "$1/numpy" python3-numpy
    tar_tree base base.tar
    tar_difference base numpy numpy.tar
    as_root rm -rf --one-file-system base numpy
}

make_big_rootfs() {
    make_rootfs "$1/big" "$big_packages"
    tar_tree big big.tar
    as_root rm -rf --one-file-system big
}

# The smallest thing that stays alive: what pod sandboxes run.
make_pause_rootfs() {
    mkdir -p root/bin
    apt-get -qq -o APT::Sandbox::User=root download busybox-static >&2
    dpkg --fsys-tarfile busybox-static_*.deb | tar -C root -xf - ./bin/busybox
    ln -s busybox root/bin/sleep
    tar_tree root pause.tar
    rm -rf root busybox-static_*.deb
}

# What a bare node of a cluster has of Debian: an init, ssh, and what the kubelet and kube-proxy call. Nothing that a
# cluster image brings.
node_packages=conntrack,dbus,ethtool,fuse3,iproute2,iptables,kmod,nftables,openssh-server,socat,systemd,systemd-sysv

# make_node_root DIR [SUITE]: a directory that nodes are booted with as the lower layer of their root.
make_node_root() {
    make_rootfs "$1/root" "$node_packages" "${2:-$rootfs_suite}"
    # Each node gets its own.
    as_root rm -f root/etc/ssh/ssh_host_* root/etc/machine-id root/etc/resolv.conf
    as_root rm -rf root/var/lib/apt root/var/cache root/var/log root/usr/share/doc root/usr/share/locale
    as_root mkdir -p root/var/cache root/var/log
}

part_node_root() {
    make_once "$rootfs_dir/node" "$rootfs_suite-1" make_node_root
}

make_newer_node_root() {
    make_node_root "$1" "$newer_node_suite"
}

part_newer_node_root() {
    make_once "$rootfs_dir/newer-node" "$newer_node_suite-1" make_newer_node_root
}

part_rootfs() {
    make_once "$rootfs_dir/pause" "$rootfs_suite-1" make_pause_rootfs
    make_once "$rootfs_dir/demo" "$rootfs_suite-1" make_demo_rootfs
}

part_bench_rootfs() {
    make_once "$rootfs_dir/big" "$rootfs_suite-1" make_big_rootfs
}
