//! The command line of `nydus-cluster cluster`.

use std::path::PathBuf;

use clap::Subcommand;
use cluster::launch::Place;
use image::platform::PlatformName;
use registry::Reference;
use service::TcpAddress;

use crate::status;

/// Work on cluster images
#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// Show which container images a cluster image asks for
    ///
    /// Read are image lists (imageList, manifests/imageList, images/shim, images/skopeo/tar.txt), manifests and templates in
    /// manifests/ and application/apps/, and charts, which helm renders. What could not be read is said, for images may be
    /// missing then. With --lock or --check the images are looked up too: that one which is asked for outright is not there, or
    /// that the lock says something else, is a finding as well.
    #[command(after_help = status::help())]
    Images(Images),
    /// Show what a cluster image or a package is made of: components, container images, and what these have in common
    ///
    /// The container images are those of the lock in the image or package; of packages of other systems all that are there.
    #[command(after_help = status::help())]
    Inspect(Inspect),
    /// Put cluster images on one another: the files of each come over those of the one before
    ///
    /// Locks and registry/ directories unite, labels and environment too; commands come one after the other. The layers stay what
    /// they are: what the registry has is not sent. Images that contradict each other are refused.
    Merge(Merge),
    /// Bring all container images of a cluster image to a directory or a repository
    ///
    /// They are saved as RAFS, chunks that several of them have stored once; with --plain as they are, too. What they are says
    /// images.lock in the directory, or --lock; without one they are looked up. Without --to they go to DIR/registry, in the
    /// storage layout of CNCF distribution, which a registry serves as it is; with --output to a package, which the cluster image is
    /// in as well, in the same forms. What is there already is not fetched again, so an interrupted save goes on where it was.
    #[command(after_help = status::help())]
    Save(Save),
    /// Answer for saved images on this node, as the registries that they are of would: all but their layers
    ///
    /// Their own indexes, manifests and configs are fetched once and kept, so that they are answered from then on, wherever they
    /// were saved. Containers read the layers through the snapshotter, which `cluster run` tells of the images. Images of
    /// which nothing was saved as RAFS are not answered. Read-only, for this machine alone.
    Serve(Serve),
    /// Run a cluster of an image: prepare its nodes, begin on the first, let the others join, launch
    ///
    /// Nodes need systemd, ssh and root. On each, nydus-cluster mounts the image, installs what the node lacks of it (containerd,
    /// runc, kubeadm, kubelet, network plugins, units) as links into the mount, and kubeadm makes the cluster. Without --masters
    /// this machine is the first node. What was done is not done again: a second run changes nothing, one that was interrupted
    /// goes on. The administrator's kubeconfig is written, and its path printed.
    Run(Run),
    /// Show the clusters that were run from here, and how their nodes are
    #[command(after_help = status::help())]
    Ps(Ps),
    /// Show what the nodes of a cluster said while it was run
    Logs(Logs),
    /// Take a cluster away from its nodes
    ///
    /// kubeadm resets each node, everything that was put there goes, and files that were there before come back.
    Rm(Rm),
    /// Do a task of `cluster run` on a node
    #[command(hide = true)]
    Node,
    /// Lay the tree of a cluster image on what the daemon has mounted, for a node's unit
    #[command(hide = true)]
    Tree(Tree),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Tree {
    /// The image, as the snapshotter knows it
    pub(crate) image: String,
    /// Where the node keeps what it has of a cluster
    #[arg(long, value_name = "DIR", default_value = cluster::launch::node::NODE_DIR)]
    pub(crate) dir: PathBuf,
}

/// Where images are looked for, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Discovery {
    /// The cluster image: its directory, a package (file or directory), `[docker://]REF`, `oci:DIR[:IMAGE]` or `oci-archive:FILE[:IMAGE]`, plain or nydus
    pub(crate) source: String,
    /// Leave out what fits this pattern, in the syntax of .gitignore; may be given several times
    #[arg(long, value_name = "PATTERN", allow_hyphen_values = true)]
    pub(crate) ignore: Vec<String>,
    /// Render templates with this; may be given several times
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) environment: Vec<(String, String)>,
    /// Render a chart once more with these values; may be given several times
    #[arg(long, value_name = "CHART=FILE", value_parser = values)]
    pub(crate) values: Vec<(String, PathBuf)>,
    /// The version of Kubernetes that charts are rendered for [default: what the image's Metadata says]
    #[arg(long, value_name = "VERSION")]
    pub(crate) kube_version: Option<String>,
    /// The program helm [default: the first one in PATH]
    #[arg(long, value_name = "FILE")]
    pub(crate) helm: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Images {
    #[command(flatten)]
    pub(crate) discovery: Discovery,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Show every file and line that asks for this image; without tag and digest for all of its repository
    #[arg(long, value_name = "IMAGE", conflicts_with = "json")]
    pub(crate) why: Option<String>,
    /// Look up the images and write what they are to this file. Images that it has stay as they are there
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "why"])]
    pub(crate) lock: Option<PathBuf>,
    /// With --lock: look up all images, also those that the lock has
    #[arg(long, requires = "lock")]
    pub(crate) update: bool,
    /// Look up the images and compare them with this lock
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "why", "lock"])]
    pub(crate) check: Option<PathBuf>,
    /// Lock the images of these platforms [default: those of a lock that is there, else all that each image has]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_delimiter = ',')]
    pub(crate) platform: Vec<PlatformName>,
    /// Do not fail if an image that fits this pattern is not there; may be given several times
    #[arg(long, value_name = "PATTERN")]
    pub(crate) allow_missing: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Inspect {
    /// The cluster image: its directory, a package (file or directory), `[docker://]REF`, `oci:DIR[:IMAGE]` or
    /// `oci-archive:FILE[:IMAGE]`, plain or nydus
    pub(crate) source: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Read the files of the image for this platform [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(crate) platform: Option<PlatformName>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Merge {
    /// The images, the lowest first: packages, `[docker://]REF`, `oci:DIR[:IMAGE]` or `oci-archive:FILE[:IMAGE]`, all plain or all nydus
    #[arg(required = true, num_args = 2..)]
    pub(crate) images: Vec<String>,
    /// The name of the merged image
    #[arg(long, short, value_name = "REPOSITORY:TAG", value_parser = super::save::target)]
    pub(crate) tag: Reference,
    /// Merge the images for these platforms [default: all that they have in common]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_delimiter = ',')]
    pub(crate) platform: Vec<PlatformName>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Save {
    #[command(flatten)]
    pub(crate) discovery: Discovery,
    /// Save the images as they are too, layers and all
    #[arg(long)]
    pub(crate) plain: bool,
    /// With --plain: save them as they are alone
    #[arg(long, requires = "plain")]
    pub(crate) no_rafs: bool,
    /// Use what was saved before under this tag of the same repository: what is in there is not stored again
    #[arg(long, value_name = "REPOSITORY:TAG", value_parser = super::save::target, requires = "to")]
    pub(crate) base: Option<Reference>,
    /// The lock [default: images.lock in the directory, if it is there]
    #[arg(long, value_name = "FILE")]
    pub(crate) lock: Option<PathBuf>,
    /// Save to this repository, under this tag
    #[arg(long, value_name = "REPOSITORY:TAG", value_parser = super::save::target)]
    pub(crate) to: Option<Reference>,
    /// Bind the cluster image to what is saved: its tag gets an image that names that by digest, and is the same otherwise
    #[arg(long, requires = "to")]
    pub(crate) bind: bool,
    /// Write a package to this file, or to this directory if it is there or its name ends in `/`: the cluster image, if it is in
    /// a registry, and all container images
    #[arg(long, short, value_name = "FILE|DIR", conflicts_with = "to")]
    pub(crate) output: Option<PathBuf>,
    /// Save the images of these platforms: without a lock, or of one to a package [default: all]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_delimiter = ',')]
    pub(crate) platform: Vec<PlatformName>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Serve {
    /// Where the images were saved: a repository's tag, or the directory `registry`. Named by a digest (REPOSITORY@DIGEST) it is
    /// not asked again
    #[arg(value_name = "SAVED")]
    pub(crate) source: String,
    /// Directory in which the documents are kept, of this command alone
    #[arg(long, value_name = "DIR", default_value = "/var/lib/nydus-cluster/documents")]
    pub(crate) root: PathBuf,
    /// A loopback address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5100")]
    pub(crate) listen: TcpAddress,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// The cluster image: an image in a registry, a package (FILE or DIR) with the image and all container images in it, or on this machine
    /// the directory of a root file system
    pub(crate) source: String,
    /// The cluster's name
    #[arg(long, default_value = "default", value_parser = cluster_name)]
    pub(crate) name: String,
    /// Nodes with the control plane, as HOST or HOST:PORT [default: this machine]
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    pub(crate) masters: Vec<Place>,
    /// Where nodes find the control plane, such as a load balancer before all masters [default: the first master, if it is named by its
    /// address]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) endpoint: Option<String>,
    /// The other nodes
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    pub(crate) nodes: Vec<Place>,
    #[command(flatten)]
    pub(crate) login: Login,
    /// Where nodes ask for the images of all hosts that the lock names, and for the cluster image: HOST is added to it, such as
    /// http://10.0.0.1:5000/v2/HOST. Without it they ask the hosts themselves
    #[arg(long, value_name = "URL")]
    pub(crate) registry: Option<String>,
    /// Where the container images were saved as RAFS (`cluster save --to`), for nodes to read them lazily [default: what the image is
    /// bound to; else the image's tag with `-images` behind it, if there is such a tag]
    #[arg(long, value_name = "REPOSITORY[:TAG][@DIGEST]")]
    pub(crate) images: Option<Reference>,
    /// Have nodes pull all container images whole, wherever they were saved; a package has to have them as they are
    #[arg(long, conflicts_with = "images")]
    pub(crate) plain: bool,
    /// Leave a containerd that a node has already as it is: that node pulls all container images whole
    #[arg(long)]
    pub(crate) keep_containerd: bool,
    /// How long each command that launches the image may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(crate) launch_timeout: u64,
}

/// How nodes are logged in to.
#[derive(Debug, clap::Args)]
pub(crate) struct Login {
    /// Log in as this user, who may use sudo if it is not root [default: ssh's own choice]
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// Log in with this private key
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Log in with this password
    #[arg(long, env = "NYDUS_CLUSTER_SSH_PASSWORD", hide_env_values = true, conflicts_with = "key")]
    pub(crate) password: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Ps {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) login: Login,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Logs {
    /// The cluster's name
    #[arg(default_value = "default", value_parser = cluster_name)]
    pub(crate) name: String,
    /// Of this node alone
    #[arg(long, value_name = "HOST")]
    pub(crate) node: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Rm {
    /// The cluster's name
    #[arg(default_value = "default", value_parser = cluster_name)]
    pub(crate) name: String,
    /// Only leave the cluster: the image, what was installed and all container images stay on the nodes for the next run
    #[arg(long)]
    pub(crate) keep_images: bool,
    #[command(flatten)]
    pub(crate) login: Login,
}

/// A name of which a directory can be made.
fn cluster_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(fits) && text.len() <= 63 {
        true => Ok(text.to_owned()),
        false => {
            Err(format!("{text:?}: expected up to 63 lower-case letters, digits and `-`, a letter first"))
        }
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?}: expected NAME=VALUE")),
    }
}

fn values(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => Ok((name.to_owned(), file.into())),
        _ => Err(format!("{text:?}: expected CHART=FILE")),
    }
}
