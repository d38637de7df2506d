//! What binds saved images to their cluster image: an annotation of what the cluster image's name leads to, its index or only manifest.
//! So the cluster image's digest covers them: what its nodes run is decided by that digest, not by a tag that is moved.

use bytes::Bytes;
use image::document::{DocumentError, parse};
use registry::reference::InvalidReference;
use registry::{Digest, Reference};
use serde_json::{Map, Value};

/// Annotation with the digest of the index that names the saved images. Saved in several repositories they may have several:
/// then they are separated by commas, and each repository has one of them.
pub const IMAGES_ANNOTATION: &str = "io.nydus-cluster.images";

const DOCUMENT: &str = "cluster image's manifest";

/// The index or manifest `root` of a cluster image, bound to the saved images with these digests; to none if there are none.
///
/// # Errors
///
/// When it is no JSON object.
pub fn bind(root: &Bytes, images: &[Digest]) -> Result<Bytes, DocumentError> {
    let mut document = parse(DOCUMENT, root)?;
    let annotations = document.entry("annotations").or_insert_with(|| Map::new().into());
    let annotations = annotations.as_object_mut().ok_or_else(|| wrong("its annotations are no object"))?;
    let before = annotations.remove(IMAGES_ANNOTATION);
    if before.is_none() && images.is_empty() {
        return Ok(root.clone());
    }
    if !images.is_empty() {
        let digests: Vec<&str> = images.iter().map(AsRef::as_ref).collect();
        annotations.insert(IMAGES_ANNOTATION.to_owned(), digests.join(",").into());
    }
    if annotations.is_empty() {
        document.remove("annotations");
    }
    Ok(Value::Object(document).to_string().into())
}

/// The digests of the saved images that the index or manifest `root` of a cluster image is bound to.
///
/// # Errors
///
/// When it is no JSON object, or says something else there.
pub fn bound(root: &[u8]) -> Result<Vec<Digest>, DocumentError> {
    let document = parse(DOCUMENT, root)?;
    let said = document.get("annotations").and_then(|annotations| annotations.get(IMAGES_ANNOTATION));
    let Some(said) = said else { return Ok(Vec::new()) };
    let expected = || wrong(format!("its annotation {IMAGES_ANNOTATION} is {said}: expected a digest"));
    let said = said.as_str().ok_or_else(expected)?;
    said.split(',').map(|digest| digest.trim().parse().map_err(|_| expected())).collect()
}

/// Where the images of the cluster image `image` are saved where nobody says otherwise: in its repository, under its tag with `-images` behind it.
///
/// # Errors
///
/// When that is too long for a tag.
pub fn images_name(image: &Reference) -> Result<Reference, InvalidReference> {
    image.repository().with_tag(&format!("{}-images", image.tag().unwrap_or("latest")))
}

fn wrong(reason: impl Into<String>) -> DocumentError {
    DocumentError::new(DOCUMENT, reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(words: &[&str]) -> Vec<Digest> {
        words.iter().map(|word| registry::digest::sha256(word.as_bytes())).collect()
    }

    #[test]
    fn what_an_image_is_bound_to_is_read_again_and_goes_again() {
        let root = Bytes::from_static(br#"{"annotations":{"a":"b"},"layers":[]}"#);
        for images in [digests(&["x"]), digests(&["x", "y"])] {
            let bound_root = bind(&root, &images).unwrap();
            assert_eq!(bound(&bound_root).unwrap(), images);
            let again = bind(&bound_root, &digests(&["z"])).unwrap();
            assert_eq!(bound(&again).unwrap(), digests(&["z"]));
            assert_eq!(bind(&again, &[]).unwrap(), root);
        }
        let bare = Bytes::from_static(br#"{"manifests":[]}"#);
        assert_eq!(bind(&bare, &[]).unwrap(), bare);
        let there_and_back = bind(&bind(&bare, &digests(&["x"])).unwrap(), &[]).unwrap();
        assert_eq!(there_and_back, bare);
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        for said in ["\"\"", "\"sha256:12\"", "7"] {
            let root = format!("{{\"annotations\":{{\"{IMAGES_ANNOTATION}\":{said}}}}}");
            assert!(bound(root.as_bytes()).unwrap_err().to_string().contains(IMAGES_ANNOTATION), "{said}");
        }
    }
}
