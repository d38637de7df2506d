//! The snapshotter's own control socket: which images are run as RAFS whatever they are called.
//!
//! One connection carries one request and its answer, each a line of JSON, as on the daemon's control socket. `cluster run` puts
//! a *set* here: of each chain of layers that containerd may ask for, by its chain id, where it is as RAFS. A chain id binds the
//! content, so the names, digests and signatures of the images stay what they are.
//!
//! ```text
//! client ── put, remove, list ──> server ──> state (redb)
//! ```
//!
//! - `protocol`: the messages.
//! - `set`: what a set is made of, and what makes it a sound one.

mod client;
pub mod protocol;
mod server;
pub(crate) mod set;

pub use client::{Client, ClientError};
pub use fuse_daemon::control::BackendSpec;
pub use protocol::SetStatus;
pub use set::{ImageSet, MergedBootstrap, SetBlob, SetChain, SetError, SetImage, TreePlace, chain_id};

pub(crate) use server::serve;
