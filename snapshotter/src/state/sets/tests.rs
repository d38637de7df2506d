use redb::ReadableTableMetadata as _;

use super::*;
use crate::control::chain_id;
use crate::control::set::tests::set;
use crate::state::{Creation, Kind, Labels};

fn state() -> (tempfile::TempDir, State) {
    let root = tempfile::tempdir().unwrap();
    let state = State::open(&root.path().join("snapshots.redb")).unwrap();
    (root, state)
}

/// The chain id of these layers.
fn chain(layers: &[&str]) -> String {
    let chain =
        layers.iter().fold(None, |below, layer| Some(chain_id(below.as_ref(), &sha256(layer.as_bytes()))));
    chain.unwrap().to_string()
}

fn layer_of(id: u64, chain: &str) -> Creation {
    let (id, key) = (SnapshotId(id), chain.to_owned());
    Creation { id, kind: Kind::Committed, key, parent: None, labels: Labels::new() }
}

#[test]
fn a_chain_is_found_with_what_shows_it() {
    let (_root, state) = state();
    let put = set("a", "a", &[&["base", "nginx"]]);
    assert!(state.put_set(&put).unwrap());
    let top = state.lazy_chain(&chain(&["base", "nginx"])).unwrap().unwrap();
    assert_eq!(top.source, ChainSource::Merged(put.images[0].bootstrap.clone()));
    assert_eq!((top.set.as_str(), &top.backends, &top.blobs), ("a", &put.backends, &put.images[0].blobs));
    assert_eq!(top.blob, put.chains[1].blob);
    let base = state.lazy_chain(&chain(&["base"])).unwrap().unwrap();
    let ChainSource::Layers(layers) = &base.source else { panic!("{base:?}") };
    assert_eq!(layers.iter().map(|layer| &layer.blob).collect::<Vec<_>>(), [&put.chains[0].blob]);
    assert_eq!(base.blobs, [put.chains[0].blob.clone()]);
    assert_eq!(state.lazy_chain(&chain(&["nginx"])).unwrap(), None);
}

#[test]
fn layers_of_a_chain_are_the_lowest_first_and_their_foreign_blobs_are_kept() {
    let (_root, state) = state();
    let mut put = set("a", "a", &[&["one", "two", "three"]]);
    put.images.clear();
    let shared = put.blobs[0].blob.clone();
    put.chains[2].foreign.push(shared.clone());
    state.put_set(&put).unwrap();
    let found = state.lazy_chain(&chain(&["one", "two", "three"])).unwrap().unwrap();
    let ChainSource::Layers(layers) = &found.source else { panic!("{found:?}") };
    let expected: Vec<_> = put.chains.iter().map(|chain| &chain.blob).collect();
    assert_eq!(layers.iter().map(|layer| &layer.blob).collect::<Vec<_>>(), expected);
    assert_eq!(found.blobs.len(), 3);
    assert!(found.blobs.contains(&shared));
}

#[test]
fn putting_a_set_again_changes_nothing() {
    let (_root, state) = state();
    let put = set("a", "a", &[&["base", "nginx"]]);
    assert!(state.put_set(&put).unwrap());
    assert!(!state.put_set(&put).unwrap());
    assert_eq!(state.sets().unwrap().len(), 1);
}

#[test]
fn a_set_takes_the_place_of_the_one_of_its_name() {
    let (_root, state) = state();
    state.put_set(&set("a", "old", &[&["base", "nginx"]])).unwrap();
    assert!(state.put_set(&set("a", "new", &[&["base", "redis"]])).unwrap());
    assert_eq!(state.lazy_chain(&chain(&["base", "nginx"])).unwrap(), None);
    let base = state.lazy_chain(&chain(&["base"])).unwrap().unwrap();
    assert_eq!(base.blob, sha256(b"new base"));
    let sets = state.sets().unwrap();
    assert_eq!((sets.len(), sets[0].chains, sets[0].images), (1, 2, 1));
}

#[test]
fn of_two_sets_with_a_chain_the_one_put_last_is_meant_and_the_other_when_that_is_gone() {
    let (_root, state) = state();
    let old = set("old", "old", &[&["base", "nginx"]]);
    state.put_set(&old).unwrap();
    state.put_set(&set("new", "new", &[&["base", "redis"], &["base", "nginx"]])).unwrap();
    let of = |layers: &[&str]| state.lazy_chain(&chain(layers)).unwrap().map(|found| found.set);
    assert_eq!(of(&["base"]).as_deref(), Some("new"));
    assert_eq!(of(&["base", "nginx"]).as_deref(), Some("new"));
    // As it was: that does not make it the last one.
    state.put_set(&old).unwrap();
    assert_eq!(of(&["base"]).as_deref(), Some("new"));
    assert!(state.remove_set("new").unwrap());
    assert_eq!(of(&["base"]).as_deref(), Some("old"));
    assert_eq!(of(&["base", "redis"]), None);
    assert!(state.remove_set("old").unwrap());
    assert_eq!(of(&["base"]), None);
    assert!(!state.remove_set("old").unwrap());
    let chains = state.read().unwrap().open_table(SET_CHAINS).unwrap().len().unwrap();
    assert_eq!(chains, 0);
}

#[test]
fn a_merged_bootstrap_is_preferred_to_one_that_is_to_be_made() {
    let (_root, state) = state();
    state.put_set(&set("old", "old", &[&["base"]])).unwrap();
    state.put_set(&set("new", "new", &[&["base", "nginx"]])).unwrap();
    let base = state.lazy_chain(&chain(&["base"])).unwrap().unwrap();
    assert_eq!(base.set, "old");
    assert!(matches!(base.source, ChainSource::Merged(_)));
}

#[test]
fn what_a_layer_needs_outlives_its_set_and_goes_with_its_snapshot() {
    let (root, state) = state();
    state.put_set(&set("a", "a", &[&["base", "nginx"]])).unwrap();
    let name = chain(&["base", "nginx"]);
    let layer = state.lazy_chain(&name).unwrap().unwrap();
    let record = state.create_lazy(layer_of(7, &name), &layer).unwrap();
    assert!(record.lazy);
    assert_eq!(state.sets().unwrap()[0].layers, 1);
    state.remove_set("a").unwrap();
    drop(state);
    let state = State::open(&root.path().join("snapshots.redb")).unwrap();
    assert_eq!(state.lazy_layer(SnapshotId(7)).unwrap(), layer);
    assert!(state.get(&name).unwrap().lazy);
    state.remove(&name).unwrap();
    assert!(matches!(state.lazy_layer(SnapshotId(7)), Err(Error::Record { .. })));
}

#[test]
fn who_has_a_layers_blobs_is_what_sets_say_now_and_what_was_recorded() {
    let (_root, state) = state();
    let mut put = set("a", "a", &[&["base"]]);
    let recorded = put.backends.clone();
    state.put_set(&put).unwrap();
    let name = chain(&["base"]);
    state.create_lazy(layer_of(7, &name), &state.lazy_chain(&name).unwrap().unwrap()).unwrap();
    let moved = BackendSpec::Directory { path: "/moved".into() };
    put.backends = vec![moved.clone()];
    state.put_set(&put).unwrap();
    // Of other blobs.
    state.put_set(&set("b", "b", &[&["base"]])).unwrap();
    let backends = state.lazy_layer(SnapshotId(7)).unwrap().backends;
    assert_eq!(backends, [vec![moved], recorded.clone()].concat());
    state.remove_set("a").unwrap();
    assert_eq!(state.lazy_layer(SnapshotId(7)).unwrap().backends, recorded);
}

#[test]
fn a_data_layer_that_is_there_becomes_one_of_a_set() {
    let (_root, state) = state();
    state.put_set(&set("a", "a", &[&["base"]])).unwrap();
    let name = chain(&["base"]);
    state.create(layer_of(3, &name)).unwrap();
    let layer = state.lazy_chain(&name).unwrap().unwrap();
    state.make_lazy(&name, &layer).unwrap();
    assert!(state.get(&name).unwrap().lazy);
    assert_eq!(state.lazy_layer(SnapshotId(3)).unwrap(), layer);
}

#[test]
fn sets_are_listed_in_order_of_their_names() {
    let (_root, state) = state();
    for name in ["b", "a", "c"] {
        state.put_set(&set(name, name, &[&["base"]])).unwrap();
    }
    let names: Vec<_> = state.sets().unwrap().into_iter().map(|set| set.name).collect();
    assert_eq!(names, ["a", "b", "c"]);
}
