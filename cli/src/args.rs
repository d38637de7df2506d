//! The command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use fuse_daemon::control::BlobId;
use image::location::Location;
use service::{TcpAddress, UnixAddress};

use crate::config::Config;
use crate::words::{ForConvert, ForMerge, Words};
use crate::{cluster, logging, status, stdout};

/// Build, distribute and lazily launch Kubernetes cluster images.
///
/// Every role is a subcommand of this one binary. On the build side `exporter` stands between buildctl and buildkitd
/// and turns `--output type=nydus-cluster` into a nydus image in a registry. On a node containerd talks to
/// `snapshotter`, which starts `daemon`; that one serves files and loads chunks when they are first read.
/// `registry serve` is an OCI registry for where there is none.
#[derive(Debug, Parser)]
#[command(name = "nydus-cluster", version, propagate_version = true, max_term_width = 110, after_help = status::help())]
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
    /// Copy images from registry to registry, and serve an OCI registry
    #[command(subcommand)]
    Registry(Registry),
    /// What this node serves, and what was read of it
    #[command(subcommand)]
    Node(Node),
    /// Have a new version of the program take over from the running daemon, while containers read on
    ///
    /// Replace the program's file by renaming another one over it first. If that would not work as a daemon, the running one
    /// goes on. The snapshotter has to run: it holds the mounts meanwhile.
    Upgrade {
        #[command(flatten)]
        socket: DaemonSocket,
    },
    /// Fetch and decode for the daemon, which starts it
    #[command(hide = true)]
    Worker,
    /// What the daemon of this node has cached
    #[command(subcommand)]
    Cache(Cache),
    /// Work on images: convert them, look at them, check, compare, merge, mount, unpack
    #[command(subcommand)]
    Image(Image),
    /// Work on cluster images: the container images that they ask for
    #[command(subcommand)]
    Cluster(Box<cluster::Cluster>),
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
    pub(crate) upstream: Option<UnixAddress>,
    /// Where buildctl will connect, such as unix:///run/nydus-cluster/exporter.sock
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<UnixAddress>,
    /// Directory of buildkitd's content store, such as /var/lib/buildkit/runc-overlayfs/content, if it can be read here
    #[arg(long, value_name = "DIR")]
    pub(crate) content_store: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Snapshotter {
    /// Directory of snapshots, state and the chunk cache
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Where containerd will connect, such as unix:///run/nydus-cluster/snapshotter.sock
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<UnixAddress>,
    /// Its own control socket, such as unix:///run/nydus-cluster/snapshotter-control.sock
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) socket: Option<UnixAddress>,
    /// The daemon's control socket
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) daemon_socket: Option<UnixAddress>,
    /// Start no daemon: it is a service of its own
    #[arg(long)]
    pub(crate) no_daemon: bool,
    /// Serve nothing: wait until a snapshotter answers, a minute at most
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Daemon {
    /// Control socket, such as unix:///run/nydus-cluster/daemon.sock
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) socket: Option<UnixAddress>,
    /// Directory of the chunk cache
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Only say whether it would work, to the daemon that runs
    #[arg(long, hide = true)]
    pub(crate) probe: bool,
}

/// What this node serves, and what was read of it
#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// List the mounted images, with how much of each is cached and where the rest comes from, and the image sets
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        socket: DaemonSocket,
        /// The snapshotter's control socket, which is asked for image sets [default: as configured]
        #[arg(long, value_name = "ADDRESS")]
        snapshotter_socket: Option<UnixAddress>,
    },
    /// Print which files of a mounted image were read, in the order in which each was first
    ///
    /// In the form that `image convert --prefetch-list` takes, so that the next start of the image is faster.
    Trace {
        /// The image's name, or the mount's id, as `node status` shows them
        #[arg(value_name = "IMAGE")]
        image: String,
        #[command(flatten)]
        socket: DaemonSocket,
    },
}

/// What the daemon of this node has cached
#[derive(Debug, Subcommand)]
pub(crate) enum Cache {
    /// List the blobs, with the bytes on disk that they take
    Ls {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        socket: DaemonSocket,
    },
    /// Free all that no mount uses and that is not pinned
    Prune {
        #[command(flatten)]
        socket: DaemonSocket,
    },
    /// Keep blobs from being pruned, and from giving way to others where the cache has a quota
    Pin {
        /// Blobs by digest.
        #[arg(required = true, value_name = "BLOB")]
        blobs: Vec<BlobId>,
        /// No longer.
        #[arg(long)]
        undo: bool,
        #[command(flatten)]
        socket: DaemonSocket,
    },
    /// Verify cached chunks against their digests; what is bad is fetched again when it is read
    #[command(after_help = status::help())]
    Verify {
        /// Blobs by digest [default: all]
        #[arg(value_name = "BLOB")]
        blobs: Vec<BlobId>,
        #[command(flatten)]
        socket: DaemonSocket,
    },
}

/// Where the daemon listens.
#[derive(Debug, Args)]
pub(crate) struct DaemonSocket {
    /// The daemon's control socket [default: as configured]
    #[arg(long, value_name = "ADDRESS")]
    socket: Option<UnixAddress>,
}

impl DaemonSocket {
    /// The socket's path.
    pub(crate) fn of(&self, config: &Config) -> PathBuf {
        self.socket.as_ref().unwrap_or(&config.daemon.socket).path().to_owned()
    }
}

/// Images from registry to registry, and an OCI registry for where there is none
#[derive(Debug, Subcommand)]
pub(crate) enum Registry {
    /// Serve a directory in the storage layout of CNCF distribution, or a package
    Serve(RegistryServe),
    /// Copy an image, all its platforms, from one registry to another
    ///
    /// Digests stay as they are. What is there already is not sent.
    Copy {
        /// The image, such as registry.example/app:v1; or `package:PATH[:IMAGE]`, `oci:DIR[:IMAGE]`, `oci-archive:FILE[:IMAGE]`
        from: String,
        /// The name that it is to have
        to: String,
        /// Copy what refers to it as well: signatures, attestations
        #[arg(long)]
        referrers: bool,
    },
    /// Copy all images of a registry, of one repository, or of a package to another registry
    ///
    /// Whatever fails is named at the end; the rest is copied. A second run sends only what has changed.
    Sync {
        /// `HOST[:PORT]`, or `HOST[:PORT]/REPOSITORY`, or the file or directory of a package
        from: String,
        /// `HOST[:PORT]`, or for a repository `HOST[:PORT]/REPOSITORY`, for a package `HOST[:PORT]/FOLDER`
        to: String,
        /// Images under way at a time
        #[arg(long, value_name = "NUMBER", default_value_t = 2)]
        jobs: usize,
        /// Copy what refers to the images as well: signatures, attestations
        #[arg(long)]
        referrers: bool,
    },
    /// Give a user a password, which is read from standard input
    Passwd {
        /// The file of users, as `htpasswd -B` makes it; created if missing
        file: PathBuf,
        /// The user
        user: String,
        /// Take the user out of the file instead
        #[arg(long)]
        remove: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct RegistryServe {
    /// Directory that holds `docker/registry/v2`
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Serve what is in this package instead; nothing can be pushed then
    #[arg(long, value_name = "FILE|DIR", conflicts_with = "root")]
    pub(crate) package: Option<PathBuf>,
    /// Address to listen on, such as 127.0.0.1:5000; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<TcpAddress>,
    /// File that gets one JSON object a request
    #[arg(long, value_name = "FILE")]
    pub(crate) access_log: Option<PathBuf>,
    /// File of the users that are let in; `registry passwd` makes it
    #[arg(long, value_name = "FILE")]
    pub(crate) htpasswd: Option<PathBuf>,
    /// Certificate for HTTPS (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_certificate: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub(crate) tls_key: Option<PathBuf>,
}

/// Which image a command works on.
#[derive(Debug, clap::Args)]
pub(crate) struct Source {
    /// A reference in a registry (`registry.example/app:v1`), `oci:DIR[:IMAGE]`, `oci-archive:FILE[:IMAGE]`,
    /// `files:DIR`, or the path of a bootstrap file
    pub(crate) image: String,
    /// With a bootstrap file: the directory that holds its blobs, each under its digest
    #[arg(long, value_name = "DIR")]
    pub(crate) blobs: Option<PathBuf>,
    /// Which image of an index, such as linux/arm64 [default: this machine's]
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
}

/// How `image convert` works.
#[derive(Debug, clap::Args)]
pub(crate) struct Convert {
    /// The image to convert: `[docker://]REF`, `oci:DIR[:IMAGE]`, `oci-archive:FILE[:IMAGE]`, `docker-archive:FILE[:IMAGE]` or
    /// directory:DIR
    pub(crate) source: Location,
    /// Where the nydus image goes: `[docker://]REF`, `oci:DIR[:IMAGE]`, `oci-archive:FILE[:IMAGE]`, or `files:DIR` for
    /// image.boot and blobs/ alone
    pub(crate) destination: Location,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Directory that keeps what is known of converted layers, so that the next conversion into a registry does not read and
    /// convert them again; "": none.
    /// Default: exporter.layer_cache_dir, of users other than root nydus-cluster/layers in $XDG_CACHE_HOME or ~/.cache
    #[arg(long, value_name = "DIR")]
    // No path of clap's, which refuses an empty one.
    pub(crate) layer_cache: Option<OsString>,
    /// Read and convert all layers, whatever is known of them
    #[arg(long, conflicts_with = "layer_cache")]
    pub(crate) fresh: bool,
    #[command(flatten)]
    pub(crate) options: Words<ForConvert>,
}

/// What a mount may do.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum MountOption {
    /// Set-uid programs work
    Suid,
    /// Device files work
    Dev,
    /// Other users see it
    #[value(name = "allow_other")]
    AllowOther,
}

/// Work on one image
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Convert an image of layers, or a directory, to a nydus image
    ///
    /// From and to a registry, an OCI image layout or files of this machine. All platforms of an index are converted
    /// unless --platform says which. Nothing is under the destination's name before all is there.
    Convert(Box<Convert>),
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
        /// Show the bootstrap field by field, as it is stored
        #[arg(long, conflicts_with_all = ["json", "file"])]
        dump: bool,
    },
    /// Check structure and every digest, each blob in one transfer
    ///
    /// With --source, also that every path is what it is in the image that this one was made from: type, mode, owner, mtime,
    /// size, extended attributes, link target, device, content, hard links. Nothing is mounted, and nothing is kept.
    #[command(after_help = status::help())]
    Check {
        #[command(flatten)]
        source: Source,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Check the bootstrap alone, fetch no blob
        #[arg(long)]
        metadata_only: bool,
        /// Compare with the image that it was made from: a reference in a registry, `oci:DIR[:IMAGE]`,
        /// `oci-archive:FILE[:IMAGE]`, `docker-archive:FILE[:IMAGE]`, or `directory:DIR`
        #[arg(long = "source", value_name = "IMAGE")]
        original: Option<String>,
    },
    /// Show which files and bytes differ between two images, and what a node that has A fetches for B
    ///
    /// A node keeps chunks by blob: what both images have in the same blob is not fetched again. Content of B that A has in
    /// another blob is, and the last line says how much of it there is.
    #[command(after_help = status::help())]
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
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The bootstrap to write
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
        #[command(flatten)]
        options: Words<ForMerge>,
    },
    /// Mount an image in the foreground until interrupted
    ///
    /// Read-only, without devices, without set-uid programs, and for the user who mounts alone, unless --options says
    /// otherwise. A mountpoint that is made for it is removed afterwards.
    Mount {
        #[command(flatten)]
        source: Source,
        /// Where to mount
        mountpoint: PathBuf,
        /// Directory of the chunk cache, and of the bootstraps of images that are named by digest: what is there is not asked for again
        /// [default: a temporary one]
        #[arg(long, value_name = "DIR")]
        cache: Option<PathBuf>,
        /// Fetch all of the image so long after the mount: it needs no registry from then on [default: what is read alone]
        #[arg(long, value_name = "SECONDS")]
        complete_after: Option<u64>,
        /// What the mount may do beyond showing files to the user who mounts
        #[arg(long, short, value_enum, value_name = "OPTION", value_delimiter = ',')]
        options: Vec<MountOption>,
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
pub(crate) fn completions(shell: Shell) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "nydus-cluster", &mut text);
    stdout::print(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a manual page for each subcommand into `directory`.
pub(crate) fn man_pages(directory: &Path) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(Arguments::command(), directory)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests;
