//! What the response to Solve says of images. Its entries are one map for all outputs: of two that say the same, BuildKit keeps what the
//! later one says.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use image::document::Stored;
use serde_json::Value;

use super::message::{self, Export};
use crate::build::{Build, Output, Reported};
use crate::grpc::{Code, Status};
use crate::http2::unary::Failed;

/// The entry with the digest of what was exported.
const IMAGE_DIGEST: &str = "containerimage.digest";
/// The entry with the digest of the image's config, of images for one platform.
const CONFIG_DIGEST: &str = "containerimage.config.digest";
/// The entry with the descriptor of what was exported: JSON in base64.
const DESCRIPTOR: &str = "containerimage.descriptor";
/// The entry with the image's names, as BuildKit's own image exporter reports them.
const IMAGE_NAME: &str = "image.name";

/// Which of `ours` the response is about, given all outputs of the build.
pub(super) fn reported(exports: &[Export], ours: &[Arc<Output>]) -> Reported {
    let is_ours = |index: usize| ours.iter().any(|output| output.index() == index);
    let last = exports.iter().enumerate().rfind(|(index, export)| is_ours(*index) || export.is_image());
    let digest = last.map(|(index, _)| index).filter(|index| is_ours(*index));
    // A client writes the index of its directory by descriptor and name, so these are of the image there.
    let store = ours.iter().find(|output| output.is_client_store()).map(|output| output.index());
    let has_other = exports.iter().enumerate().any(|(index, export)| !is_ours(index) && export.is_store());
    Reported { digest, descriptor: store.or(digest.filter(|_| !has_other)) }
}

/// The response with what our image is, where that is what it is to say.
pub(super) fn report(build: &Build, images: &[Stored], response: Bytes) -> Result<Bytes, Failed> {
    for image in images {
        tracing::info!(build = build.reference, digest = %image.digest, "export done");
    }
    let of = |index: Option<usize>| {
        let index = index?;
        build.outputs.iter().zip(images).find(|(output, _)| output.index() == index)
    };
    let malformed = |error| Failed::Ours(Status::new(Code::Internal, format!("Solve response: {error}")));
    let mut entries = Vec::new();
    if let Some((_, image)) = of(build.reported.digest) {
        entries.push((IMAGE_DIGEST, image.digest.to_string()));
        entries.extend(config_of(image).map(|config| (CONFIG_DIGEST, config)));
    }
    if let Some((output, image)) = of(build.reported.descriptor) {
        let names = output.names(&image.digest);
        if !names.is_empty() {
            entries.push((IMAGE_NAME, names.join(",")));
        }
        let theirs = message::exporter_response(&response).map_err(malformed)?;
        let descriptor = theirs.get(DESCRIPTOR).and_then(|text| descriptor_of(text, image));
        entries.extend(descriptor.map(|descriptor| (DESCRIPTOR, descriptor)));
    }
    let changed = entries.into_iter().try_fold(response.to_vec(), |message, (key, value)| {
        message::set_exporter_response(&message, key, &value)
    });
    changed.map(Bytes::from).map_err(malformed)
}

/// The digest of an image's config; an index has none.
fn config_of(image: &Stored) -> Option<String> {
    let manifest: Value = serde_json::from_slice(&image.content).ok()?;
    Some(manifest.pointer("/config/digest")?.as_str()?.to_owned())
}

/// The descriptor that buildkitd reports, of our image instead of the one that it handed over.
fn descriptor_of(theirs: &str, image: &Stored) -> Option<String> {
    let mut descriptor: Value = serde_json::from_slice(&STANDARD.decode(theirs).ok()?).ok()?;
    let object = descriptor.as_object_mut()?;
    object.insert("mediaType".to_owned(), image.media_type.clone().into());
    object.insert("digest".to_owned(), image.digest.to_string().into());
    object.insert("size".to_owned(), image.content.len().into());
    if let (Some(Value::Object(annotations)), Some(config)) =
        (object.get_mut("annotations"), config_of(image))
        && annotations.contains_key(CONFIG_DIGEST)
    {
        annotations.insert(CONFIG_DIGEST.to_owned(), config.into());
    }
    Some(STANDARD.encode(descriptor.to_string()))
}
