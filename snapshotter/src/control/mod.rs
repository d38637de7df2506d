//! The snapshotter's own control socket: which images are run as RAFS whatever they are called, and which are mounted for the node itself.
//!
//! One connection carries one request and its answer, each a line of JSON, as on the daemon's control socket. `cluster run` puts
//! a *set* here: of each chain of layers that containerd may ask for, by its chain id, where it is as RAFS. A chain id binds the
//! content, so the names, digests and signatures of the images stay what they are.
//!
//! A *node image* is what the node itself runs from, such as a cluster image with containerd and the kubelet in it. It is mounted like an
//! image of containers, from a start of the node on until somebody says otherwise.
//!
//! ```text
//! client ── put, remove, list ────────────> server ──> state (redb)
//!        ── mount, unmount, node_images ──>        ──> state, mounted images
//! ```
//!
//! - `protocol`: the messages.
//! - `set`: what a set is made of, and what makes it a sound one.
//! - `node_image`: the same of a node image.

mod client;
mod node_image;
pub mod protocol;
mod server;
pub(crate) mod set;

pub use client::{Client, ClientError};
pub use fuse_daemon::control::BackendSpec;
pub use node_image::{NodeImage, NodeImageError};
pub use protocol::{NodeImageStatus, SetStatus};
pub use set::{ImageSet, MergedBootstrap, SetBlob, SetChain, SetError, SetImage, TreePlace, chain_id};

pub(crate) use server::serve;
