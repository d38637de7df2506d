//! The cluster image as the node's daemon mounts it: at a place of the snapshotter's, which holds the mount and has it mounted again when the
//! node boots.
//!
//! ```text
//! snapshotter/mounts/N   the image, by the daemon: a kill, an update or a start of either changes nothing
//! tree                   an overlay on it, by a unit that lays it and looks after it
//! ```
//!
//! The tree goes only where the mount goes. Then the unit ends, and is started again with all that runs out of the tree.

mod watch;

use std::path::Path;

use image::document::ImageConfig;
use image::location::Location;
use image::platform::PlatformName;
use image::source::Source;
use registry::client::{Client, ClientConfig};
use snapshotter::control::{BackendSpec, MergedBootstrap, NodeImage};
use tokio::runtime::Handle;

use super::commands::progress;
use super::lazy;
use crate::launch::error::LaunchError;

pub use watch::lay_tree;

/// Has the daemon mount the image at `source`, unless it does: then nobody is asked for anything.
pub(super) fn mount(source: &str, registry: &ClientConfig) -> Result<(), LaunchError> {
    let wrong = |error: String| LaunchError::wrong(source, error);
    let (runtime, client) = (Handle::current(), lazy::control());
    let known = runtime.block_on(client.node_images()).map_err(|error| wrong(error.to_string()))?;
    // Its name has its digest.
    if known.iter().any(|image| image.name == source) {
        return Ok(());
    }
    let image = runtime.block_on(described(source, registry)).map_err(wrong)?;
    runtime.block_on(client.mount(&image)).map(drop).map_err(|error| wrong(error.to_string()))
}

/// Has the daemon mount no image any more but that of the name `kept`. What cannot be done is said: whoever takes all away goes on.
pub(super) fn release(kept: Option<&str>) {
    let client = lazy::control();
    let released = Handle::current().block_on(async {
        for image in client.node_images().await? {
            if kept != Some(image.name.as_str()) {
                client.unmount(&image.name).await?;
            }
        }
        Ok::<_, snapshotter::control::ClientError>(())
    });
    if let Err(error) = released {
        progress(format_args!("the cluster image may still be mounted: {error}"));
    }
}

/// What the snapshotter is told of the nydus image at `source`.
async fn described(source: &str, registry: &ClientConfig) -> Result<NodeImage, String> {
    let location: Location = source.parse().map_err(|error| format!("{error}"))?;
    let backend = match &location {
        Location::Registry(reference) => BackendSpec::of_image(&reference.to_string()),
        Location::Oci(layout) => Ok(BackendSpec::Directory { path: layout.path.join("blobs/sha256") }),
        _ => return Err("expected an image in a registry or an OCI layout".to_owned()),
    };
    let backend = backend.map_err(|error| error.to_string())?;
    let image = async {
        let client = Client::new(registry.clone()).map_err(image::source::SourceError::from)?;
        let image = Source::open(&location, &client).await?;
        let manifest = image.nydus_manifest(&PlatformName::host()).await?;
        let config = image.document(&manifest.config).await?;
        Ok::<_, image::source::SourceError>((manifest, config))
    };
    let (manifest, config) = image.await.map_err(|error| error.to_string())?;
    let diff_ids = ImageConfig::parse(&config).and_then(|config| config.diff_ids());
    let diff_ids = diff_ids.map_err(|error| error.to_string())?;
    let is_bootstrap = |digest| manifest.bootstrap().is_some_and(|layer| layer.digest() == digest);
    let mut blobs = Vec::new();
    let mut bootstrap = None;
    for (layer, diff_id) in manifest.layers.iter().zip(&diff_ids) {
        if is_bootstrap(layer.digest()) {
            let (digest, diff_id) = (layer.digest().clone(), diff_id.clone());
            bootstrap = Some(MergedBootstrap { digest, size: layer.size(), diff_id });
        } else {
            blobs.push(layer.digest().clone());
        }
    }
    let bootstrap = bootstrap.ok_or("its config has no diff id of its bootstrap")?;
    Ok(NodeImage { name: source.to_owned(), backends: vec![backend], bootstrap, blobs })
}

/// The unit that lays the tree under `dir`.
pub(super) fn unit(dir: &Path, program: &Path, source: &str) -> String {
    let (dir, program) = (dir.display(), program.display());
    let [_, snapshotter] = lazy::MOUNTING;
    format!(
        "# Written by nydus-cluster cluster run.
[Unit]
Description=The cluster image {source}
Wants={snapshotter}
After={snapshotter} local-fs.target
Before=containerd.service kubelet.service
# Who has the image may be back only after this node.
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={program} cluster tree {source} --dir {dir}
ExecStopPost=-/bin/umount -l {dir}/tree
Restart=always
RestartSec=2s
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
"
    )
}

#[cfg(test)]
mod tests;
