//! Asking containerd which image a bootstrap belongs to, and which indexes a manifest is in.
//!
//! CRI and BuildKit say it in a label. Other clients (`ctr` with the transfer service, Docker) do not, but containerd
//! knows: when an image is unpacked, its config is labelled with the uppermost snapshot's chain id; the manifest is
//! labelled with its config, an index with its manifests; and an image is a name for a manifest or an index.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{
    Info, InfoRequest, ListContentRequest, ListImagesRequest, ReadContentRequest,
};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// containerd answers from its own database; it must not take longer to say whose a snapshot is.
const DEADLINE: Duration = Duration::from_secs(10);
/// Label of a config: chain id of the snapshot that was unpacked from it, by snapshotter.
pub(crate) const UNPACKED_TO: &str = "containerd.io/gc.ref.snapshot.";
/// Label of a manifest: its config.
pub(crate) const CONFIG: &str = "containerd.io/gc.ref.content.config";
/// Beginning of labels of an index: its manifests.
const MANIFESTS: &str = "containerd.io/gc.ref.content.m.";
/// Manifests of an index are looked for up to this number: more platforms than any image has.
const MANIFESTS_LIMIT: usize = 32;
/// An index is no larger than this.
const INDEX_LIMIT_BYTES: i64 = 4 << 20;
/// Header that names the namespace.
pub(crate) const NAMESPACE: &str = "containerd-namespace";

/// Who made a call, and under which name it knows us.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The namespace.
    pub(crate) namespace: String,
    /// Our name in containerd's configuration.
    pub(crate) snapshotter: String,
}

/// Why containerd could not say it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LookupError {
    /// containerd cannot be reached.
    #[error("cannot connect to containerd at {}", .0.display())]
    Connect(PathBuf, #[source] tonic::transport::Error),
    /// containerd refused.
    #[error("containerd answers {}: {}", .0.code(), .0.message())]
    Refused(Box<Status>),
    /// No answer in time.
    #[error("containerd did not answer within {} seconds", .0.as_secs())]
    Deadline(Duration),
}

impl From<Status> for LookupError {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl Caller {
    /// The caller that uses a snapshot's key. containerd puts the namespace in front of it (`default/12/name`), and does
    /// not always send the header that names it; a client that talks to us by itself sends just that.
    pub(crate) fn of(key: &str, header: Option<&str>, snapshotter: &str) -> Self {
        let mut parts = key.splitn(3, '/');
        let namespace = match (parts.next(), parts.next(), parts.next()) {
            (Some(namespace), Some(number), Some(_)) if number.parse::<u64>().is_ok() => namespace,
            _ => header.unwrap_or_default(),
        };
        Self { namespace: namespace.to_owned(), snapshotter: snapshotter.to_owned() }
    }
}

/// The names of images that were unpacked to one of the snapshots with these chain ids, in order.
pub(crate) async fn images_unpacked_to(
    socket: &Path,
    caller: &Caller,
    chain_ids: &[String],
) -> Result<Vec<String>, LookupError> {
    match tokio::time::timeout(DEADLINE, look_up(socket, caller, chain_ids)).await {
        Ok(result) => result,
        Err(_) => Err(LookupError::Deadline(DEADLINE)),
    }
}

/// The indexes in containerd's content store that name `manifest`.
pub(crate) async fn indexes_of(
    socket: &Path,
    caller: &Caller,
    manifest: &str,
) -> Result<Vec<Vec<u8>>, LookupError> {
    let looking = async {
        let channel = connect(socket).await?;
        Query { channel, namespace: &caller.namespace }.indexes(manifest).await
    };
    tokio::time::timeout(DEADLINE, looking).await.unwrap_or(Err(LookupError::Deadline(DEADLINE)))
}

pub(crate) async fn connect(socket: &Path) -> Result<Channel, LookupError> {
    let channel = containerd_client::connect(socket).await;
    channel.map_err(|error| LookupError::Connect(socket.to_owned(), error))
}

async fn look_up(socket: &Path, caller: &Caller, chain_ids: &[String]) -> Result<Vec<String>, LookupError> {
    let channel = connect(socket).await?;
    let query = Query { channel, namespace: &caller.namespace };
    let configs = query.labelled(&format!("{UNPACKED_TO}{}", caller.snapshotter), chain_ids).await?;
    let manifests: BTreeSet<_> = query.labelled(CONFIG, &configs).await?.into_iter().collect();
    if manifests.is_empty() {
        return Ok(Vec::new());
    }
    let names = query.images_of(&manifests).await?;
    // CRI also names images by their ids alone, from which nothing can be fetched.
    Ok(names.into_iter().filter(|name| name.contains('/')).collect())
}

/// Questions in one namespace.
pub(crate) struct Query<'c> {
    pub(crate) channel: Channel,
    pub(crate) namespace: &'c str,
}

impl Query<'_> {
    /// Digests of the content whose label has one of the values.
    pub(crate) async fn labelled(&self, label: &str, values: &[String]) -> Result<Vec<String>, LookupError> {
        if values.is_empty() {
            return Ok(Vec::new());
        }
        self.found(values.iter().map(|value| format!("labels.{label:?}=={value:?}")).collect()).await
    }

    /// Digests of the content that one of the filters is true of.
    pub(crate) async fn found(&self, filters: Vec<String>) -> Result<Vec<String>, LookupError> {
        let request = self.request(ListContentRequest { filters })?;
        let mut stream = ContentClient::new(self.channel.clone()).list(request).await?.into_inner();
        let mut digests = Vec::new();
        while let Some(message) = stream.message().await? {
            digests.extend(message.info.into_iter().map(|info| info.digest));
        }
        Ok(digests)
    }

    /// The indexes that name a manifest.
    async fn indexes(&self, manifest: &str) -> Result<Vec<Vec<u8>>, LookupError> {
        let label = |number| format!("labels.{:?}=={manifest:?}", format!("{MANIFESTS}{number}"));
        let request =
            self.request(ListContentRequest { filters: (0..MANIFESTS_LIMIT).map(label).collect() })?;
        let mut found = ContentClient::new(self.channel.clone()).list(request).await?.into_inner();
        let mut indexes = Vec::new();
        while let Some(message) = found.message().await? {
            for info in message.info.into_iter().filter(|info| info.size <= INDEX_LIMIT_BYTES) {
                indexes.push(self.content(info.digest).await?);
            }
        }
        Ok(indexes)
    }

    /// All of a document.
    pub(crate) async fn content(&self, digest: String) -> Result<Vec<u8>, LookupError> {
        let request = self.request(ReadContentRequest { digest, offset: 0, size: 0 })?;
        let mut parts = ContentClient::new(self.channel.clone()).read(request).await?.into_inner();
        let mut content = Vec::new();
        while let Some(part) = parts.message().await? {
            content.extend_from_slice(&part.data);
        }
        Ok(content)
    }

    /// The images, by all of their names, that are one of the manifests or an index of one of them.
    pub(crate) async fn images_of(&self, manifests: &BTreeSet<String>) -> Result<Vec<String>, LookupError> {
        let request = self.request(ListImagesRequest { filters: Vec::new() })?;
        let mut images = ImagesClient::new(self.channel.clone()).list(request).await?.into_inner().images;
        images.sort_by(|one, other| one.name.cmp(&other.name));
        let mut names = Vec::new();
        for image in images {
            let Some(target) = image.target else { continue };
            if manifests.contains(&target.digest)
                || is_index(&target.media_type) && self.leads_to(&target.digest, manifests).await?
            {
                names.push(image.name);
            }
        }
        Ok(names)
    }

    /// Whether an index has one of the manifests.
    async fn leads_to(&self, index: &str, manifests: &BTreeSet<String>) -> Result<bool, LookupError> {
        // It may have been removed since it was listed.
        let info = self.info(index).await?.unwrap_or_default();
        Ok(info
            .labels
            .iter()
            .any(|(label, digest)| label.starts_with(MANIFESTS) && manifests.contains(digest)))
    }

    /// What is known of content that is there.
    pub(crate) async fn info(&self, digest: &str) -> Result<Option<Info>, LookupError> {
        let request = self.request(InfoRequest { digest: digest.to_owned() })?;
        match ContentClient::new(self.channel.clone()).info(request).await {
            Ok(response) => Ok(response.into_inner().info),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    pub(crate) fn request<T>(&self, message: T) -> Result<Request<T>, Status> {
        let namespace = MetadataValue::try_from(self.namespace).map_err(|_| {
            Status::invalid_argument(format!("namespace {:?} is no header value", self.namespace))
        })?;
        let mut request = Request::new(message);
        request.metadata_mut().insert(NAMESPACE, namespace);
        Ok(request)
    }
}

fn is_index(media_type: &str) -> bool {
    media_type.contains("image.index") || media_type.contains("manifest.list")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_is_in_the_key_or_else_in_the_header() {
        let namespace = |key, header| Caller::of(key, header, "nydus-cluster").namespace;
        assert_eq!(namespace("k8s.io/12/sha256:ab", None), "k8s.io");
        assert_eq!(namespace("k8s.io/12/a/b", Some("default")), "k8s.io");
        assert_eq!(namespace("my/own/key", Some("default")), "default");
        assert_eq!(namespace("key", None), "");
    }
}
