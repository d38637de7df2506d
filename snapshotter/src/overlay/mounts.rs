//! Mount instructions for containerd.

use std::path::{Path, PathBuf};

use super::attributes::mapping_options;
use crate::state::{Kind, Labels};

/// One mount for containerd to make.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Mount {
    /// `bind` or `overlay`.
    pub(crate) kind: &'static str,
    /// The directory to bind, or `overlay`.
    pub(crate) source: String,
    /// Options, one each.
    pub(crate) options: Vec<String>,
}

/// What a snapshot consists of.
#[derive(Clone, Debug)]
pub(crate) struct Layers<'l> {
    /// What it is.
    pub(crate) kind: Kind,
    /// Its own directory.
    pub(crate) upper: &'l Path,
    /// Its work directory.
    pub(crate) work: &'l Path,
    /// What lies beneath, nearest first.
    pub(crate) lowers: &'l [PathBuf],
    /// Its labels, for id mappings.
    pub(crate) labels: &'l Labels,
}

/// The mounts that show a snapshot: a bind mount where one directory is all there is, which overlayfs does not accept,
/// else an overlay.
pub(crate) fn mounts(layers: &Layers<'_>, overlay_options: &[String]) -> Vec<Mount> {
    let mut options = mapping_options(layers.labels);
    let writable = layers.kind == Kind::Active;
    let lower = match layers.lowers {
        [] => return vec![bind(layers.upper, writable, options)],
        [only] if !writable => return vec![bind(only, false, options)],
        lowers => lowers.iter().map(|lower| lower.display().to_string()).collect::<Vec<_>>().join(":"),
    };
    if writable {
        options.push(format!("workdir={}", layers.work.display()));
        options.push(format!("upperdir={}", layers.upper.display()));
    }
    options.push(format!("lowerdir={lower}"));
    options.extend_from_slice(overlay_options);
    vec![Mount { kind: "overlay", source: "overlay".to_owned(), options }]
}

fn bind(source: &Path, writable: bool, mut options: Vec<String>) -> Mount {
    options.extend([if writable { "rw" } else { "ro" }.to_owned(), "rbind".to_owned()]);
    Mount { kind: "bind", source: source.display().to_string(), options }
}
