//! Tables, united: each describes what its own save made, and two saves may have made something else of the same layers.
//!
//! | of several | becomes |
//! |---|---|
//! | blobs | those that are still named |
//! | a layer, an image | that of the first table |
//! | a whole chain's bootstrap, and the blobs that it names | those of the first table, for all images with this chain |

use std::collections::{HashMap, HashSet};

use rafs::blob::BlobIndex;
use registry::Digest;

use crate::merge::Conflict;
use crate::saved::{BlobEntry, BootstrapEntry, ChainEntry, ImageEntry, Table};

/// What has been united so far.
#[derive(Default)]
struct UnitedTable<'a> {
    /// The tables, and whose they are.
    tables: &'a [(&'a str, &'a Table)],
    table: Table,
    /// Of each whole chain its bootstrap and the blobs that this names.
    whole: HashMap<&'a Digest, (&'a BootstrapEntry, &'a Vec<Digest>)>,
}

/// The table of all that these tables of the images with these names describe; `None` if there are none.
pub(super) fn unite(tables: &[(&str, &Table)]) -> Result<Option<Table>, Conflict> {
    let Some((one, first)) = tables.first() else { return Ok(None) };
    let mut united = UnitedTable { tables, ..UnitedTable::default() };
    (united.table.chunk_size, united.table.digester) = (first.chunk_size, first.digester.clone());
    for (name, table) in tables {
        if (table.chunk_size, &table.digester) != (first.chunk_size, &first.digester) {
            return Err(Conflict::Chunks { one: (*one).to_owned(), other: (*name).to_owned() });
        }
        united.add(name, table)?;
    }
    united.finish().map(Some)
}

impl<'a> UnitedTable<'a> {
    fn add(&mut self, name: &str, table: &'a Table) -> Result<(), Conflict> {
        for (id, layer) in &table.layers {
            self.table.layers.entry(id.clone()).or_insert_with(|| layer.clone());
        }
        for (id, chain) in &table.chains {
            let entry = ChainEntry { bootstrap: None, ..chain.clone() };
            let first = self.table.chains.entry(id.clone()).or_insert_with(|| entry.clone());
            if *first != entry {
                return Err(self.contradicts("chain", id, name, |table| table.chains.contains_key(id)));
            }
        }
        // Several images with one chain have the same blobs, as long as one save made them.
        for (_, image) in sorted(&table.images) {
            let bootstrap = table.chains.get(&image.chain).and_then(|chain| chain.bootstrap.as_ref());
            if let Some(bootstrap) = bootstrap {
                self.whole.entry(&image.chain).or_insert((bootstrap, &image.blobs));
            }
        }
        for (id, image) in &table.images {
            self.table.images.entry(id.clone()).or_insert_with(|| image.clone());
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Table, Conflict> {
        for (chain, (bootstrap, _)) in &self.whole {
            if let Some(entry) = self.table.chains.get_mut(*chain) {
                entry.bootstrap = Some((*bootstrap).clone());
            }
        }
        for image in self.table.images.values_mut() {
            if let Some((_, blobs)) = self.whole.get(&image.chain) {
                image.blobs.clone_from(blobs);
            }
        }
        self.table.blobs = self.blobs()?;
        self.check_limit()?;
        Ok(self.table)
    }

    /// The blobs that are named, as the tables describe them.
    fn blobs(&self) -> Result<HashMap<Digest, BlobEntry>, Conflict> {
        let named = self.table.layers.values().flat_map(|layer| layer.foreign.iter().chain([&layer.blob]));
        let named: HashSet<&Digest> =
            named.chain(self.table.images.values().flat_map(|image| &image.blobs)).collect();
        let mut blobs: HashMap<Digest, BlobEntry> = HashMap::new();
        for (name, table) in self.tables {
            for (id, blob) in table.blobs.iter().filter(|(id, _)| named.contains(id)) {
                if blobs.entry(id.clone()).or_insert_with(|| blob.clone()) != blob {
                    return Err(self.contradicts("blob", id, name, |table| table.blobs.contains_key(id)));
                }
            }
        }
        Ok(blobs)
    }

    /// Whether a node can merge the trees of each chain: its layers may come from several saves, each of which kept to what RAFS allows.
    fn check_limit(&self) -> Result<(), Conflict> {
        for (id, _) in sorted(&self.table.chains).into_iter().filter(|(_, chain)| chain.bootstrap.is_none()) {
            let layers = self.table.layers_of(id).unwrap_or_default();
            let blobs: HashSet<&Digest> =
                layers.iter().flat_map(|layer| layer.foreign.iter().chain([&layer.blob])).collect();
            if blobs.len() > BlobIndex::LIMIT {
                let images = self.tables.iter().map(|(name, _)| (*name).to_owned()).collect();
                return Err(Conflict::Blobs { chain: id.clone(), blobs: blobs.len(), images });
            }
        }
        Ok(())
    }

    fn contradicts(
        &self,
        what: &'static str,
        digest: &Digest,
        other: &str,
        has: impl Fn(&Table) -> bool,
    ) -> Conflict {
        let one = self.tables.iter().find(|(_, table)| has(table)).map(|(name, _)| *name).unwrap_or_default();
        Conflict::Described { what, digest: digest.clone(), one: one.to_owned(), other: other.to_owned() }
    }
}

/// In the order of digests: that of a map is another one each time.
pub(super) fn sorted<T>(entries: &HashMap<Digest, T>) -> Vec<(&Digest, &T)> {
    let mut entries: Vec<_> = entries.iter().collect();
    entries.sort_by(|(one, _), (other, _)| one.as_ref().cmp(other.as_ref()));
    entries
}

/// The nydus images of `table` that others stand for in `united`, each with the manifest's digest and size that it is replaced with.
pub(super) fn replaced(table: &Table, united: &Table) -> HashMap<Digest, (Digest, u64)> {
    let kept: HashSet<&Digest> = united.images.values().map(|image| &image.manifest).collect();
    let mut replaced = HashMap::new();
    for (id, image) in sorted(&table.images) {
        let Some(ImageEntry { manifest, size, .. }) = united.images.get(id) else { continue };
        if !kept.contains(&image.manifest) {
            replaced.entry(image.manifest.clone()).or_insert((manifest.clone(), *size));
        }
    }
    replaced
}

#[cfg(test)]
mod tests {
    use registry::digest::sha256;

    use super::*;
    use crate::saved::{LayerEntry, TreeEntry};

    fn id(text: &str) -> Digest {
        sha256(text.as_bytes())
    }

    /// What the save `save` made of the images `image`, each of these layers.
    fn table(save: &str, images: &[(&str, &[&str])]) -> Table {
        let mut table = Table { chunk_size: 4096, digester: "blake3".to_owned(), ..Table::default() };
        let shared = id(&format!("{save} shared"));
        for (image, layers) in images {
            let (mut parent, mut blobs): (Option<Digest>, Vec<Digest>) = (None, Vec::new());
            for layer in *layers {
                let blob = id(&format!("{save} {layer}"));
                let tree = TreeEntry { offset: 1, size: 2, digest: id("tree"), uncompressed_size: 3 };
                let entry = LayerEntry { blob: blob.clone(), tree, foreign: vec![shared.clone()] };
                table.layers.insert(id(layer), entry);
                let chain = match &parent {
                    None => id(layer),
                    Some(parent) => id(&format!("{parent} {}", id(layer))),
                };
                let entry = ChainEntry { parent: parent.take(), layer: id(layer), bootstrap: None };
                table.chains.entry(chain.clone()).or_insert(entry);
                parent = Some(chain);
                blobs.push(blob);
            }
            let chain = parent.unwrap();
            let bootstrap =
                BootstrapEntry { digest: id(&format!("{save} {chain}")), size: 4, diff_id: id("tar") };
            table.chains.get_mut(&chain).unwrap().bootstrap = Some(bootstrap);
            blobs.push(shared.clone());
            let manifest = id(&format!("{save} {image}"));
            let platform = "linux/amd64".parse().unwrap();
            table.images.insert(id(image), ImageEntry { platform, chain, manifest, size: 5, blobs });
        }
        let blobs: HashSet<Digest> =
            table.layers.values().map(|layer| layer.blob.clone()).chain([shared]).collect();
        table.blobs = blobs.into_iter().map(|blob| (blob, BlobEntry { size: 10, toc: id("toc") })).collect();
        table
    }

    fn united(one: &Table, other: &Table) -> Table {
        let table = unite(&[("a", one), ("b", other)]).unwrap().unwrap();
        // A reader finds whatever a line names.
        assert_eq!(Table::parse(&table.to_string()).unwrap(), table);
        table
    }

    #[test]
    fn what_only_one_table_has_is_kept_as_it_is() {
        let (one, other) =
            (table("1", &[("nginx", &["base", "nginx"])]), table("2", &[("redis", &["redis"])]));
        let table = united(&one, &other);
        assert_eq!(
            (table.images.len(), table.layers.len(), table.chains.len(), table.blobs.len()),
            (2, 3, 3, 5)
        );
        for (of, image) in [(&one, "nginx"), (&other, "redis")] {
            assert_eq!(table.images[&id(image)], of.images[&id(image)]);
            let chain = &of.images[&id(image)].chain;
            assert_eq!(table.chains[chain], of.chains[chain]);
        }
        assert!(replaced(&other, &table).is_empty());
        assert_eq!(unite(&[]).unwrap(), None);
    }

    #[test]
    fn what_two_saves_made_of_one_image_is_that_of_the_first() {
        let one = table("1", &[("nginx", &["base", "nginx"])]);
        let other = table("2", &[("nginx", &["base", "nginx"]), ("redis", &["base", "redis"])]);
        let table = united(&one, &other);
        assert_eq!(table.images[&id("nginx")], one.images[&id("nginx")]);
        assert_eq!(table.layers[&id("base")], one.layers[&id("base")]);
        // The image of the other one keeps its own bootstrap, and with it all blobs that this names.
        let redis = &table.images[&id("redis")];
        assert_eq!(*redis, other.images[&id("redis")]);
        assert!(redis.blobs.contains(&id("2 base")) && table.blobs.contains_key(&id("2 base")));
        assert!(!table.blobs.contains_key(&id("2 nginx")), "nothing names it any more");
        let expected = HashMap::from([(id("2 nginx"), (id("1 nginx"), 5))]);
        assert_eq!(replaced(&other, &table), expected);
    }

    #[test]
    fn images_with_one_chain_have_the_blobs_that_the_bootstrap_of_it_names() {
        // Two images of the same layers, whose configs are not the same.
        let one = table("1", &[("nginx", &["base", "nginx"])]);
        let other = table("2", &[("labelled", &["base", "nginx"])]);
        let table = united(&one, &other);
        let (nginx, labelled) = (&table.images[&id("nginx")], &table.images[&id("labelled")]);
        assert_eq!((&nginx.chain, &nginx.blobs), (&labelled.chain, &labelled.blobs));
        assert_eq!(table.chains[&nginx.chain], one.chains[&nginx.chain]);
        assert_eq!(labelled.manifest, id("2 labelled"));
    }

    #[test]
    fn tables_that_contradict_each_other_are_named() {
        let one = table("1", &[("nginx", &["base", "nginx"])]);
        let mut other = Table { chunk_size: 8192, ..one.clone() };
        let error = unite(&[("a", &one), ("b", &other)]).unwrap_err().to_string();
        assert!(error.contains("a and b"), "{error}");
        other = one.clone();
        other.blobs.get_mut(&id("1 base")).unwrap().size = 11;
        let error = unite(&[("a", &one), ("b", &other)]).unwrap_err();
        assert!(
            matches!(&error, Conflict::Described { what: "blob", digest, .. } if *digest == id("1 base")),
            "{error}"
        );
        other = one.clone();
        other.chains.get_mut(&id("base")).unwrap().layer = id("nginx");
        let error = unite(&[("a", &one), ("b", &other)]).unwrap_err();
        assert!(matches!(error, Conflict::Described { what: "chain", .. }), "{error}");
    }

    #[test]
    fn a_chain_of_more_blobs_than_rafs_allows_is_refused() {
        let names: Vec<String> = (0..200).map(|layer| format!("layer {layer}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut one = table("1", &[("one", &names)]);
        for (number, layer) in names.iter().enumerate() {
            let foreign = id(&format!("foreign {}", number / 3));
            one.blobs.insert(foreign.clone(), BlobEntry { size: 10, toc: id("toc") });
            one.layers.get_mut(&id(layer)).unwrap().foreign = vec![foreign];
        }
        // The whole chain has a bootstrap already, and what is below it is merged on nodes.
        let error = unite(&[("a", &one)]).unwrap_err().to_string();
        assert!(error.contains("254"), "{error}");
    }
}
