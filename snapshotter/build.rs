//! Generates the server half of containerd's snapshots service.
//!
//! `containerd-client` has the messages and the client only, so the service is described here by hand; the messages are
//! that crate's.

use tonic_build::manual::{Builder, Method, Service};

/// Methods of the service: name in Rust, name on the wire, request, response, whether the response is a stream.
const METHODS: &[(&str, &str, &str, &str, bool)] = &[
    ("prepare", "Prepare", "PrepareSnapshotRequest", "PrepareSnapshotResponse", false),
    ("view", "View", "ViewSnapshotRequest", "ViewSnapshotResponse", false),
    ("mounts", "Mounts", "MountsRequest", "MountsResponse", false),
    ("commit", "Commit", "CommitSnapshotRequest", "Empty", false),
    ("remove", "Remove", "RemoveSnapshotRequest", "Empty", false),
    ("stat", "Stat", "StatSnapshotRequest", "StatSnapshotResponse", false),
    ("update", "Update", "UpdateSnapshotRequest", "UpdateSnapshotResponse", false),
    ("list", "List", "ListSnapshotsRequest", "ListSnapshotsResponse", true),
    ("usage", "Usage", "UsageRequest", "UsageResponse", false),
    ("cleanup", "Cleanup", "CleanupRequest", "Empty", false),
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let service = METHODS.iter().fold(
        Service::builder().package("containerd.services.snapshots.v1").name("Snapshots"),
        |service, &(name, route, request, response, streams)| {
            let method = Method::builder()
                .name(name)
                .route_name(route)
                .input_type(format!("super::messages::{request}"))
                .output_type(format!("super::messages::{response}"))
                .codec_path("tonic_prost::ProstCodec");
            service.method(if streams { method.server_streaming().build() } else { method.build() })
        },
    );
    Builder::new().build_client(false).compile(&[service.build()]);
}
