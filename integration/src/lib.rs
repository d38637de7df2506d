//! End-to-end tests and benchmarks against real peers: BuildKit, containerd, runc, registries, upstream's nydus.
//!
//! The library holds what tests, benchmarks and the quick start share: guards that start a real server under a
//! directory of its own and stop it again ([`servers`]), a CRI client that does what the kubelet does ([`cri`]),
//! a listing of everything a file system tree shows ([`tree`]), layers with everything that may be in one
//! ([`corpus`]), whole machines that boot ([`machines`]), a cluster image for them ([`cluster_image`], [`cluster_lab`]), images as files ([`image_files`]), a proxy that breaks connections on purpose ([`fault_proxy`]), and
//! what the test programs do alike ([`suite`]).

pub mod access_log;
pub mod cluster_image;
pub mod cluster_lab;
#[cfg(test)]
mod conventions;
pub mod corpus;
pub mod cri;
pub mod demo;
#[cfg(test)]
mod documents;
pub mod fault_proxy;
pub mod gnu_tar;
pub mod held_download;
pub mod image_files;
pub mod launches;
pub mod leftovers;
pub mod machines;
pub mod node;
pub mod nydus_image;
pub mod oci_layout;
pub mod peers;
pub mod process;
#[cfg(test)]
mod scripts;
pub mod servers;
pub mod suite;
pub mod tree;
pub mod wait;
