//! The command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use crate::logging;

/// Build, distribute and lazily launch Kubernetes cluster images.
///
/// Every role is a subcommand of this one binary. On the build side `exporter` stands between buildctl and buildkitd
/// and turns `--output type=nydus-cluster` into a nydus image in a registry. On a node containerd talks to
/// `snapshotter`, which starts `daemon`; that one serves files and loads chunks when they are first read.
/// `registry serve` is an OCI registry for where there is none.
#[derive(Debug, Parser)]
#[command(name = "nydus-cluster", version, propagate_version = true, max_term_width = 110)]
pub(crate) struct Arguments {
    /// Configuration file (TOML); flags override it [default: /etc/nydus-cluster/config.toml if it exists]
    #[arg(long, global = true, env = "NYDUS_CLUSTER_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) log: logging::Flags,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Stand between buildctl and a stock buildkitd and export builds as nydus images
    ///
    /// Afterwards: `buildctl --addr unix:///run/nydus-cluster/exporter.sock build … --output
    /// type=nydus-cluster,name=registry.example/app:v1`. Any other build through the socket behaves as without it.
    Exporter(Exporter),
    /// Serve containerd as its remote snapshotter (a proxy plugin)
    Snapshotter(Snapshotter),
    /// Serve the file systems of images; the snapshotter starts it
    Daemon(Daemon),
    /// The embedded OCI registry
    #[command(subcommand)]
    Registry(Registry),
    /// Work on images: look at them, check, compare, merge, mount, unpack
    #[command(subcommand)]
    Image(Image),
    /// Print the version
    Version,
    /// Print completions for a shell
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the manual pages
    Man {
        /// The directory to write to.
        directory: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Exporter {
    /// buildkitd's address, such as unix:///run/buildkit/buildkitd.sock
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) upstream: Option<String>,
    /// Where buildctl will connect, such as unix:///run/nydus-cluster/exporter.sock
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Snapshotter {
    /// Directory of snapshots, state and the chunk cache
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Socket to serve containerd on
    #[arg(long, value_name = "SOCKET")]
    pub(crate) listen: Option<PathBuf>,
    /// The daemon's control socket
    #[arg(long, value_name = "SOCKET")]
    pub(crate) daemon_socket: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Daemon {
    /// Control socket
    #[arg(long, value_name = "SOCKET")]
    pub(crate) socket: Option<PathBuf>,
    /// Directory of the chunk cache
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
}

/// The embedded OCI registry
#[derive(Debug, Subcommand)]
pub(crate) enum Registry {
    /// Serve a directory in the storage layout of CNCF distribution
    Serve(RegistryServe),
}

#[derive(Debug, clap::Args)]
pub(crate) struct RegistryServe {
    /// Directory that holds `docker/registry/v2`
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Address to listen on, such as 127.0.0.1:5000; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<String>,
    /// File that gets one JSON object a request
    #[arg(long, value_name = "FILE")]
    pub(crate) access_log: Option<PathBuf>,
}

/// Which image a command works on.
#[derive(Debug, clap::Args)]
pub(crate) struct Source {
    /// A reference in a registry (`registry.example/app:v1`), oci:DIR[:IMAGE], files:DIR, or the path of a bootstrap file
    pub(crate) image: String,
    /// With a bootstrap file: the directory that holds its blobs, each under its digest
    #[arg(long, value_name = "DIR")]
    pub(crate) blobs: Option<PathBuf>,
    /// Which image of an index, such as linux/arm64 [default: this machine's]
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
}

/// Work on one image
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Show what an image is made of
    Inspect {
        #[command(flatten)]
        source: Source,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Show one file's chunks
        #[arg(long, value_name = "PATH")]
        file: Option<PathBuf>,
    },
    /// Check structure and every digest; exit 0 sound, 1 with a finding, 2 when it cannot tell
    ///
    /// With --source, also that every path is what it is in the image that this one was made from: type, mode, owner, mtime,
    /// size, extended attributes, link target, device, content, hard links. Nothing is mounted, and nothing is kept.
    Check {
        #[command(flatten)]
        source: Source,
        /// Check the bootstrap alone, fetch no blob
        #[arg(long)]
        metadata_only: bool,
        /// Compare with the image that it was made from: a reference in a registry, oci:DIR[:IMAGE],
        /// oci-archive:FILE[:IMAGE], docker-archive:FILE[:IMAGE], or directory:DIR
        #[arg(long = "source", value_name = "IMAGE")]
        original: Option<String>,
    },
    /// Show which files and bytes differ between two images, and what a node that has A fetches for B
    ///
    /// A node keeps chunks by blob: what both images have in the same blob is not fetched again. Content of B that A has in
    /// another blob is, and the last line says how much of it there is.
    Diff {
        /// The image that a node has: a reference in a registry, or the path of a bootstrap file
        a: String,
        /// The image that it gets
        b: String,
        /// With bootstrap files: the directory that holds their blobs, each under its digest
        #[arg(long, value_name = "DIR")]
        blobs: Option<PathBuf>,
        /// Which images of an index, such as linux/arm64 [default: this machine's]
        #[arg(long, value_name = "OS/ARCH")]
        platform: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Merge the layers of an image into its bootstrap
    ///
    /// Each layer is a file: its bootstrap, or its blob, whose last part that is. The file's name up to the first dot is the
    /// blob's digest (64 hexadecimal digits). Blobs stay as they are.
    Merge {
        /// The layers, the lowest first
        #[arg(required = true, value_name = "LAYER")]
        layers: Vec<PathBuf>,
        /// The bootstrap to write
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
        /// A file or directory that daemons fetch first; may be given several times
        #[arg(long, value_name = "PATH")]
        prefetch: Vec<PathBuf>,
    },
    /// Mount an image in the foreground until interrupted
    Mount {
        #[command(flatten)]
        source: Source,
        /// Where to mount
        mountpoint: PathBuf,
        /// Directory of the chunk cache [default: a temporary one]
        #[arg(long, value_name = "DIR")]
        cache: Option<PathBuf>,
    },
    /// Unpack an image to a tar or a directory
    Unpack {
        #[command(flatten)]
        source: Source,
        /// A file to write the tar to (`-` is standard output), or with --directory an empty or new directory
        destination: PathBuf,
        /// Unpack to a directory instead of a tar
        #[arg(long)]
        directory: bool,
    },
}

/// Prints the completions of `shell`.
pub(crate) fn completions(shell: Shell) -> ExitCode {
    clap_complete::generate(shell, &mut Arguments::command(), "nydus-cluster", &mut std::io::stdout());
    ExitCode::SUCCESS
}

/// Writes a manual page for each subcommand into `directory`.
pub(crate) fn man_pages(directory: &Path) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(Arguments::command(), directory)?;
    Ok(ExitCode::SUCCESS)
}
