//! Saved images as a node's snapshotter has them: a set, by which it runs them as RAFS whatever they are called.

use std::collections::HashMap;

use registry::Digest;
use snapshotter::control::{
    BackendSpec, ImageSet, MergedBootstrap, SetBlob, SetChain, SetError, SetImage, TreePlace,
};

use super::{ChainEntry, ImageEntry, Table};

impl Table {
    /// The set that has all of these images. `backends` have the blobs and bootstraps. The same table gives the same set.
    ///
    /// # Errors
    ///
    /// When the table is no sound set: its chain ids are those of other layers, or a limit is exceeded.
    pub fn image_set(&self, name: &str, backends: Vec<BackendSpec>) -> Result<ImageSet, SetError> {
        let images: HashMap<&Digest, &ImageEntry> =
            self.images.values().map(|image| (&image.chain, image)).collect();
        let mut set = ImageSet { name: name.to_owned(), backends, ..ImageSet::default() };
        set.blobs = self
            .blobs
            .iter()
            .map(|(blob, entry)| SetBlob { blob: blob.clone(), size: entry.size, toc: entry.toc.clone() })
            .collect();
        for (chain, entry) in &self.chains {
            let ChainEntry { parent, layer, bootstrap } = entry;
            let described = self.layers.get(layer).ok_or_else(|| SetError {
                name: name.to_owned(),
                problem: format!("chain {chain} names layer {layer}, which is not described"),
            })?;
            let tree = TreePlace {
                offset: described.tree.offset,
                size: described.tree.size,
                digest: described.tree.digest.clone(),
                uncompressed_size: described.tree.uncompressed_size,
            };
            set.chains.push(SetChain {
                chain: chain.clone(),
                parent: parent.clone(),
                diff_id: layer.clone(),
                blob: described.blob.clone(),
                tree,
                foreign: described.foreign.clone(),
            });
            if let (Some(bootstrap), Some(image)) = (bootstrap, images.get(chain)) {
                let (digest, diff_id) = (bootstrap.digest.clone(), bootstrap.diff_id.clone());
                let bootstrap = MergedBootstrap { digest, size: bootstrap.size, diff_id };
                let mut blobs = image.blobs.clone();
                in_order(&mut blobs, |blob| blob);
                blobs.dedup();
                set.images.push(SetImage { chain: chain.clone(), bootstrap, blobs });
            }
        }
        // The set is compared with what a node has: its order must not depend on that of a map.
        in_order(&mut set.blobs, |blob| &blob.blob);
        in_order(&mut set.chains, |chain| &chain.chain);
        in_order(&mut set.images, |image| &image.chain);
        set.check()?;
        Ok(set)
    }
}

fn in_order<T>(parts: &mut [T], id: impl Fn(&T) -> &Digest) {
    parts.sort_by(|one, other| id(one).as_ref().cmp(id(other).as_ref()));
}

#[cfg(test)]
mod tests {
    use registry::digest::sha256;
    use snapshotter::control::chain_id;

    use super::super::{BlobEntry, BootstrapEntry, LayerEntry, TreeEntry};
    use super::*;

    /// Two images on one base, one of them for two platforms.
    fn table() -> Table {
        let id = |text: &str| sha256(text.as_bytes());
        let mut table = Table::default();
        for layer in ["base", "one", "two"] {
            let blob = id(&format!("blob {layer}"));
            table.blobs.insert(blob.clone(), BlobEntry { size: 100, toc: id("toc") });
            let tree = TreeEntry { offset: 10, size: 20, digest: id("tree"), uncompressed_size: 30 };
            table.layers.insert(id(layer), LayerEntry { blob, tree, foreign: vec![id("shared")] });
        }
        table.blobs.insert(id("shared"), BlobEntry { size: 100, toc: id("toc") });
        let base = id("base");
        table.chains.insert(base.clone(), ChainEntry { parent: None, layer: base.clone(), bootstrap: None });
        for layer in ["one", "two"] {
            let chain = chain_id(Some(&base), &id(layer));
            let bootstrap = BootstrapEntry { digest: id("gz"), size: 4, diff_id: id("tar") };
            let parent = Some(base.clone());
            let entry = ChainEntry { parent, layer: id(layer), bootstrap: Some(bootstrap) };
            table.chains.insert(chain.clone(), entry);
            for platform in ["linux/amd64", "linux/arm64"] {
                let image = ImageEntry {
                    platform: platform.parse().unwrap(),
                    chain: chain.clone(),
                    manifest: id("nydus"),
                    size: 5,
                    blobs: vec![id("blob base"), id(&format!("blob {layer}")), id("shared")],
                };
                table.images.insert(id(&format!("{layer} {platform}")), image);
            }
        }
        table
    }

    #[test]
    fn a_table_is_a_set_of_its_chains_and_of_one_image_for_each_whole_chain() {
        let backends = vec![BackendSpec::Registry { repository: "registry.example/cluster".to_owned() }];
        let set = table().image_set("cluster", backends.clone()).unwrap();
        assert_eq!((set.blobs.len(), set.chains.len(), set.images.len()), (4, 3, 2));
        assert!(set.images.iter().all(|image| image.blobs.len() == 3));
        assert!(set.chains.iter().all(|chain| chain.foreign == [sha256(b"shared")]));
        assert_eq!(table().image_set("cluster", backends).unwrap(), set);
    }

    #[test]
    fn a_table_whose_chain_ids_are_wrong_is_none() {
        let mut table = table();
        for chain in table.chains.values_mut() {
            chain.layer = sha256(b"base");
        }
        let backends = vec![BackendSpec::Directory { path: "/blobs".into() }];
        let error = table.image_set("cluster", backends).unwrap_err();
        assert!(error.to_string().contains("that of other layers"), "{error}");
    }
}
