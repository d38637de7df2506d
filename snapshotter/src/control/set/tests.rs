use super::*;

/// Makes a set one that is not sound.
type Change = fn(&mut ImageSet);

fn id(text: &str) -> Digest {
    sha256(text.as_bytes())
}

/// A set whose images have these layers, the lowest first; each layer's blob is named by the set's seed and the layer.
pub(crate) fn set(name: &str, seed: &str, images: &[&[&str]]) -> ImageSet {
    let backends = vec![BackendSpec::Registry { repository: format!("registry.example/{seed}") }];
    let mut set = ImageSet { name: name.to_owned(), backends, ..ImageSet::default() };
    for layers in images {
        let (mut parent, mut blobs) = (None, Vec::new());
        for layer in *layers {
            let (blob, diff_id) = (id(&format!("{seed} {layer}")), id(layer));
            let chain = chain_id(parent.as_ref(), &diff_id);
            blobs.push(blob.clone());
            if !set.blobs.iter().any(|known| known.blob == blob) {
                set.blobs.push(SetBlob { blob: blob.clone(), size: 1000, toc: id("toc") });
            }
            if !set.chains.iter().any(|known| known.chain == chain) {
                let tree = TreePlace { offset: 100, size: 50, digest: id("tree"), uncompressed_size: 200 };
                let chain = chain.clone();
                set.chains.push(SetChain { chain, parent, diff_id, blob, tree, foreign: Vec::new() });
            }
            parent = Some(chain);
        }
        let bootstrap = MergedBootstrap {
            digest: id(&format!("{seed} boot {layers:?}")),
            size: 10,
            diff_id: id(&format!("{seed} tar {layers:?}")),
        };
        set.images.extend(parent.map(|chain| SetImage { chain, bootstrap, blobs }));
    }
    set
}

#[test]
fn chain_ids_are_as_the_specification_defines_them() {
    let (a, b): (Digest, Digest) = (
        "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb".parse().unwrap(),
        "sha256:3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d".parse().unwrap(),
    );
    assert_eq!(chain_id(None, &a), a);
    assert_eq!(chain_id(Some(&a), &b), sha256(format!("{a} {b}").as_bytes()));
}

#[test]
fn a_sound_set_is_one() {
    assert_eq!(set("a", "a", &[&["base", "nginx"], &["base", "redis", "config"]]).check(), Ok(()));
}

#[test]
fn what_is_wrong_is_named() {
    let changed = |change: Change| {
        let mut set = set("a", "a", &[&["base", "nginx"]]);
        change(&mut set);
        set.check().unwrap_err().problem
    };
    let cases: [(Change, &str); 16] = [
        (|set| set.name.clear(), "1 to 512 bytes"),
        (|set| set.name.push('\n'), "no control characters"),
        (|set| set.backends.clear(), "0 backends, expected 1 to 16"),
        (|set| set.backends[0] = BackendSpec::Directory { path: "relative".into() }, "not absolute"),
        (|set| set.blobs[0].size = 0, "is empty"),
        (|set| set.blobs.push(set.blobs[0].clone()), "described twice"),
        (|set| drop(set.blobs.remove(0)), "names blob"),
        (|set| set.chains.push(set.chains[0].clone()), "described twice"),
        (|set| drop(set.chains.remove(0)), "names chain"),
        (|set| set.chains[1].parent = None, "is that of other layers"),
        (|set| set.chains[0].tree.size = 901, "901 bytes at 100 of a blob of 1000 bytes"),
        (|set| set.chains[0].tree.uncompressed_size = u64::MAX, "uncompressed"),
        (|set| set.chains[0].foreign.push(id("nowhere")), "names blob"),
        (|set| set.images.push(set.images[0].clone()), "two images"),
        (|set| set.images[0].blobs.push(id("nowhere")), "names blob"),
        (|set| set.images[0].chain = id("nowhere"), "which is not described"),
    ];
    for (change, expected) in cases {
        let problem = changed(change);
        assert!(problem.contains(expected), "{problem}: expected {expected}");
    }
}

#[test]
fn digests_of_other_algorithms_are_refused() {
    let mut set = set("a", "a", &[&["base"]]);
    set.images[0].bootstrap.diff_id = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
    assert!(set.check().unwrap_err().problem.contains("expected a SHA-256 digest"));
}

#[test]
fn chains_have_an_end() {
    let layers: Vec<String> = (0..LAYERS).map(|number| number.to_string()).collect();
    let mut layers: Vec<&str> = layers.iter().map(String::as_str).collect();
    assert_eq!(set("a", "a", &[&layers]).check(), Ok(()));
    layers.push("one more");
    let mut longer = set("a", "a", &[&layers]);
    assert!(longer.check().unwrap_err().problem.contains("more than 256 layers"));
    // In whichever order they come.
    longer.chains.reverse();
    assert!(longer.check().unwrap_err().problem.contains("more than 256 layers"));
}

#[test]
fn a_set_of_thousands_of_images_is_checked_at_once() {
    let names: Vec<String> = (0..2000).map(|number| format!("layer {number}")).collect();
    let mut all = set("a", "a", &[]);
    for name in &names {
        let one = set("a", "a", &[&["base", name]]);
        let known = all.chains.len().min(1);
        all.blobs.extend(one.blobs.into_iter().skip(known));
        all.chains.extend(one.chains.into_iter().skip(known));
        all.images.extend(one.images);
    }
    // Of this thread: others may have the processor meanwhile.
    let used = || {
        let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
        std::time::Duration::from(nix::time::clock_gettime(clock).unwrap())
    };
    let before = used();
    assert_eq!(all.check(), Ok(()));
    let took = used() - before;
    assert!(took < std::time::Duration::from_secs(5), "{took:?}");
}
