//! Options that every overlay mount of this host needs.

use std::fs;
use std::path::Path;

/// `configured` and what this kernel needs beside: `index=off`, since the index ties an upper directory to one set of
/// lower file systems, which a remounted image is not; `userxattr` in a user namespace, where overlayfs may not use
/// trusted attributes.
pub(crate) fn overlay_options(configured: &[String]) -> Vec<String> {
    let mut options = configured.to_vec();
    // Of an option given twice the kernel takes the last, so what was configured must not be followed by another.
    if !has(&options, "userxattr") && in_user_namespace() {
        options.push("userxattr".to_owned());
    }
    if !has(&options, "index") && Path::new("/sys/module/overlay/parameters/index").exists() {
        options.push("index=off".to_owned());
    }
    options
}

fn has(options: &[String], name: &str) -> bool {
    options.iter().any(|option| option.split('=').next() == Some(name))
}

/// The initial user namespace maps every id to itself, others do not.
fn in_user_namespace() -> bool {
    fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"])
}
