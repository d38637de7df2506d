//! What in a cluster image asks for container images.
//!
//! | folder, file | finds |
//! |---|---|
//! | [`mod@layout`] | which system's conventions a tree follows |
//! | `tree` | files, never beyond the tree; `ignore`: not those that nobody wants read |
//! | `list` | lists that people wrote: `imageList`, `images/shim`, `images/skopeo/tar.txt` |
//! | `manifest` | images in Kubernetes' objects, wherever a pod is described |
//! | `template` | `.tmpl` files, rendered with the image's environment; `rendered`: all of a tree, for nodes |
//! | `chart` | charts, rendered by `helm` |
//!
//! Every source gives *requests* ([`ask`]) with the place that they stand at. Text that only looks like a reference gives none.

pub mod ask;
pub(crate) mod chart;
mod collect;
mod ignore;
pub mod layout;
pub(crate) mod list;
pub(crate) mod manifest;
mod render;
mod rendered;
mod template;
mod tree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

pub use ask::{Archive, ArchiveKind, AskedImage, Discovery, Origin, Problem, Way};
pub use layout::Layout;

pub use rendered::rendered;

use crate::helm::Helm;
use tree::Tree;
pub use tree::{TreeError, Unreadable};

/// What may be told to discovery.
#[derive(Clone, Debug)]
pub struct Options {
    /// What templates are rendered with: the environment of the image.
    pub environment: BTreeMap<String, String>,
    /// Files that are left out, in the syntax of `.gitignore`, beside what `.sealignore` in the tree says.
    pub ignore: Vec<String>,
    /// Further sets of values for a chart: its name, and a file of this machine. Each is a rendering more.
    pub values: Vec<(String, PathBuf)>,
    /// The version of Kubernetes that charts are rendered for. Default: what the tree's `Metadata` says, else helm's own.
    pub kube_version: Option<String>,
    /// The program `helm`. Default: the first one in `PATH`.
    pub helm: Option<PathBuf>,
    /// What one rendering may take. Default: 60 s.
    pub helm_deadline: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            environment: BTreeMap::new(),
            ignore: Vec::new(),
            values: Vec::new(),
            kube_version: None,
            helm: None,
            helm_deadline: Duration::from_secs(60),
        }
    }
}

/// Why nothing could be looked for at all. What is wrong with single files is part of what was found.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DiscoverError {
    /// The tree cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A pattern of files to ignore is none.
    #[error("ignoring {pattern:?}: {reason}")]
    Ignore {
        /// The pattern, or the file that holds it.
        pattern: String,
        /// What is wrong.
        reason: String,
    },
    /// A file of values for a chart cannot be read.
    #[error("values for chart {chart}: {}: {error}", path.display())]
    Values {
        /// The chart's name.
        chart: String,
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A template cannot be rendered.
    #[error("{place}: {reason}")]
    Template {
        /// The file, with the line where it is known.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// The thread that reads the tree is gone.
    #[error("reading the tree ended unexpectedly: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

/// Whether a file, by its path in a cluster image, says what the image is, which images it asks for, or is a template for nodes. Of what it stands in
/// only the folders are needed, by which layouts are told apart. Archives of images are large, and are not among them.
pub fn matters(path: &[u8]) -> bool {
    let folders: &[&[u8]] = &[b"manifests", b"charts", b"application", b"images/shim"];
    let files: &[&[u8]] = &[
        b"imageList",
        b"Metadata",
        b".sealignore",
        b"init.sh",
        b"Sealfile",
        b"images.lock",
        b"images",
        b"images/skopeo",
        b"images/skopeo/tar.txt",
    ];
    let marks: &[&[u8]] = &[b"plugins", b"cri", b"statics", b"opt"];
    let within = |folder: &&[u8]| {
        path.strip_prefix(*folder).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    };
    let template = path.ends_with(rendered::TEMPLATE.as_bytes());
    let of_nodes: &[&[u8]] = &[b"etc", b"scripts"];
    folders.iter().any(within)
        || template && of_nodes.iter().any(within)
        || files.contains(&path)
        || marks.contains(&path)
}

/// Whose conventions the tree `dir` follows; `None` if it shows none, or cannot be read.
pub fn layout(dir: &Path) -> Option<Layout> {
    Tree::open(dir).ok().and_then(|tree| Layout::detect(&tree))
}

/// What in the tree `dir` asks for images.
///
/// # Errors
///
/// When the tree itself cannot be read, or an option cannot be followed.
pub async fn discover(dir: &Path, options: &Options) -> Result<Discovery, DiscoverError> {
    let root = dir.to_owned();
    let patterns = options.ignore.clone();
    let mut collected = tokio::task::spawn_blocking(move || {
        let tree = Tree::open(&root)?;
        let ignore = ignore::Ignore::new(&tree, &patterns)?;
        collect::collect(&tree, &ignore)
    })
    .await??;
    let helm = Helm::new(options.helm.as_deref(), options.helm_deadline);
    render::render(&helm, options, &mut collected).await?;
    Ok(collected.requests.finish(collected.layout))
}
