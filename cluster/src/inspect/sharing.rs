//! How much of what images are made of is the same blob.

use std::collections::BTreeMap;

use registry::client::Descriptor;
use serde::Serialize;

/// What images have in common, in bytes as blobs are stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sharing {
    /// All blobs of all images, each as often as images have it.
    pub bytes: u64,
    /// Each blob once: what is stored.
    pub stored_bytes: u64,
    /// Of these the blobs that two or more images have.
    pub shared_bytes: u64,
    /// The images, in the order in which they were given.
    pub images: Vec<ImageShare>,
}

/// What an image has of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageShare {
    /// How many blobs it has.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Of these the blobs that another image has as well.
    pub shared_bytes: u64,
}

impl Sharing {
    /// Of images that are made of these blobs; each image has a blob once.
    pub fn of(images: &[Vec<Descriptor>]) -> Self {
        let mut counts: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
        for blob in images.iter().flatten() {
            let entry = counts.entry(blob.digest().as_ref()).or_insert((0, blob.size()));
            entry.0 += 1;
        }
        // Sizes are what manifests claim: sums are kept within bounds.
        let sum = |sizes: &mut dyn Iterator<Item = u64>| sizes.fold(0_u64, u64::saturating_add);
        let is_shared =
            |blob: &&Descriptor| counts.get(blob.digest().as_ref()).is_some_and(|(count, _)| *count > 1);
        let share = |blobs: &Vec<Descriptor>| ImageShare {
            blobs: blobs.len(),
            bytes: sum(&mut blobs.iter().map(Descriptor::size)),
            shared_bytes: sum(&mut blobs.iter().filter(is_shared).map(Descriptor::size)),
        };
        let images: Vec<ImageShare> = images.iter().map(share).collect();
        Self {
            bytes: sum(&mut images.iter().map(|image| image.bytes)),
            stored_bytes: sum(&mut counts.values().map(|(_, size)| *size)),
            shared_bytes: sum(&mut counts.values().filter(|(count, _)| *count > 1).map(|(_, size)| *size)),
            images,
        }
    }
}

#[cfg(test)]
mod tests {
    use registry::digest::sha256;

    use super::*;

    fn blob(name: &str, size: u64) -> Descriptor {
        Descriptor::new(registry::media_types::OCI_LAYER.into(), size, sha256(name.as_bytes()))
    }

    #[test]
    fn what_two_images_have_is_stored_once_and_counts_for_both() {
        let images = [
            vec![blob("base", 100), blob("a", 1)],
            vec![blob("base", 100), blob("b", 2)],
            vec![blob("c", u64::MAX)],
            vec![],
        ];
        let sharing = Sharing::of(&images[..2]);
        assert_eq!((sharing.bytes, sharing.stored_bytes, sharing.shared_bytes), (203, 103, 100));
        let share = ImageShare { blobs: 2, bytes: 102, shared_bytes: 100 };
        assert_eq!(sharing.images[1], share);
        let all = Sharing::of(&images);
        assert_eq!(all.bytes, u64::MAX);
        assert_eq!(all.images[3], ImageShare { blobs: 0, bytes: 0, shared_bytes: 0 });
    }
}
