mod faults;

use super::*;
use crate::error::Error;

mod power_cut;

fn state() -> (tempfile::TempDir, State) {
    let root = tempfile::tempdir().unwrap();
    let state = State::open(&root.path().join("snapshots.redb")).unwrap();
    (root, state)
}

fn creation(id: u64, kind: Kind, key: &str, parent: Option<&str>) -> Creation {
    Creation {
        id: SnapshotId(id),
        kind,
        key: key.to_owned(),
        parent: parent.map(ToOwned::to_owned),
        labels: Labels::new(),
    }
}

fn commit(name: &str, usage: Usage) -> Commit<'_> {
    Commit { name, parent: None, labels: Labels::new(), usage }
}

/// A committed `base` (1), a committed `top` (2) on it, an active `app` (3) on that.
fn three(state: &State) {
    state.create(creation(1, Kind::Active, "base-a", None)).unwrap();
    state.commit("base-a", commit("base", Usage { inodes: 2, size: 4096 })).unwrap();
    state.create(creation(2, Kind::Active, "top-a", Some("base"))).unwrap();
    state.commit("top-a", commit("top", Usage::default())).unwrap();
    state.create(creation(3, Kind::Active, "app", Some("top"))).unwrap();
}

#[test]
fn a_commit_renames_and_keeps_the_id() {
    let (_root, state) = state();
    three(&state);
    assert!(matches!(state.get("base-a"), Err(Error::NotFound { .. })));
    let base = state.get("base").unwrap();
    assert_eq!((base.id, base.kind), (SnapshotId(1), Kind::Committed));
    assert_eq!(base.usage, Usage { inodes: 2, size: 4096 });
}

#[test]
fn parents_come_nearest_first() {
    let (_root, state) = state();
    three(&state);
    let (_, parents) = state.get_with_parents("app").unwrap();
    let names: Vec<_> = parents.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["top", "base"]);
}

#[test]
fn a_parent_cannot_be_removed_before_its_children() {
    let (_root, state) = state();
    three(&state);
    let error = state.remove("base").unwrap_err();
    assert!(matches!(&error, Error::HasChildren { child, .. } if child == "top"), "{error}");
    for key in ["app", "top", "base"] {
        state.remove(key).unwrap();
    }
    assert!(state.ids().unwrap().is_empty());
}

#[test]
fn a_refused_change_leaves_nothing_behind() {
    let (_root, state) = state();
    three(&state);
    assert!(matches!(
        state.create(creation(9, Kind::View, "v", Some("nowhere"))),
        Err(Error::ParentNotFound { .. })
    ));
    assert!(matches!(
        state.create(creation(9, Kind::View, "v", Some("app"))),
        Err(Error::ParentNotCommitted { kind: Kind::Active, .. })
    ));
    assert!(matches!(
        state.create(creation(9, Kind::View, "app", Some("top"))),
        Err(Error::AlreadyExists { .. })
    ));
    assert!(matches!(state.get("v"), Err(Error::NotFound { .. })));
    // Were a child of "top" left from these, it could not be removed.
    state.remove("app").unwrap();
    state.remove("top").unwrap();
}

#[test]
fn a_commit_needs_an_active_snapshot_and_a_free_name() {
    let (_root, state) = state();
    three(&state);
    state.create(creation(4, Kind::View, "v", Some("top"))).unwrap();
    let commit = |key: &str, name: &str| state.commit(key, commit(name, Usage::default()));
    assert!(matches!(commit("v", "x"), Err(Error::WrongKind { kind: Kind::View, .. })));
    assert!(matches!(commit("base", "x"), Err(Error::WrongKind { kind: Kind::Committed, .. })));
    assert!(matches!(commit("nowhere", "x"), Err(Error::NotFound { .. })));
    assert!(matches!(commit("app", "base"), Err(Error::AlreadyExists { .. })));
    assert_eq!(state.get("app").unwrap().kind, Kind::Active);
}

#[test]
fn labels_without_a_value_are_no_labels() {
    let (_root, state) = state();
    let labels = |pairs: &[(&str, &str)]| -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    let with = |pairs| Creation { labels: labels(pairs), ..creation(1, Kind::Active, "a", None) };
    assert_eq!(state.create(with(&[("x", "1"), ("y", "")])).unwrap().labels, labels(&[("x", "1")]));
    let changes = vec![("x".to_owned(), None), ("z".to_owned(), Some("2".to_owned()))];
    assert_eq!(state.update("a", LabelUpdate::Some(changes)).unwrap().labels, labels(&[("z", "2")]));
    let all = LabelUpdate::All(labels(&[("w", "3"), ("v", "")]));
    assert_eq!(state.update("a", all).unwrap().labels, labels(&[("w", "3")]));
}

#[test]
fn everything_is_there_after_opening_again_and_ids_go_on() {
    let (root, state) = state();
    three(&state);
    state.remove("app").unwrap();
    let image =
        MountedImage { reference: "r/i:t".to_owned(), names: Vec::new(), blobs: vec!["sha256:b".to_owned()] };
    state.remember_image(SnapshotId(2), &image).unwrap();
    let base = state.get("base").unwrap();
    drop(state);
    let state = State::open(&root.path().join("snapshots.redb")).unwrap();
    assert_eq!(state.get("base").unwrap(), base);
    assert_eq!(state.next_id().unwrap(), SnapshotId(4), "the id of a removed snapshot is not given again");
    assert_eq!(state.images().unwrap(), [(SnapshotId(2), image)]);
    state.forget_images(&[SnapshotId(2)]).unwrap();
    assert!(state.images().unwrap().is_empty());
}

#[test]
fn a_second_process_cannot_open_it() {
    let (root, _state) = state();
    let error = State::open(&root.path().join("snapshots.redb")).err().unwrap();
    assert!(matches!(error, Error::State { doing: "open the file", .. }), "{error}");
}

#[test]
fn a_file_of_another_version_is_refused() {
    let (root, state) = state();
    let transaction = state.write("put another version").unwrap();
    transaction.open_table(NUMBERS).unwrap().insert("version", 7).unwrap();
    transaction.commit().unwrap();
    drop(state);
    let error = State::open(&root.path().join("snapshots.redb")).err().unwrap();
    assert!(error.to_string().contains("it is 7, expected 1"), "{error}");
}

#[test]
fn a_snapshot_without_a_parent_gets_one_when_it_is_committed_and_no_other_changes_it() {
    let (_root, state) = state();
    three(&state);
    let on = |parent| Commit { parent: Some(parent), ..commit("new", Usage::default()) };
    state.create(creation(4, Kind::Active, "apart", None)).unwrap();
    assert!(matches!(state.commit("apart", on("nowhere")), Err(Error::ParentNotFound { .. })));
    assert!(matches!(state.commit("apart", on("app")), Err(Error::ParentNotCommitted { .. })));
    state.commit("apart", on("top")).unwrap();
    assert_eq!(state.get("new").unwrap().parent.as_deref(), Some("top"));
    state.remove("app").unwrap();
    assert!(matches!(state.remove("top"), Err(Error::HasChildren { child, .. }) if child == "new"));
    state.create(creation(5, Kind::Active, "made-on", Some("base"))).unwrap();
    let elsewhere = Commit { name: "elsewhere", ..on("top") };
    assert!(matches!(state.commit("made-on", elsewhere), Err(Error::ParentChanged { .. })));
    let same = Commit { name: "same", ..on("base") };
    state.commit("made-on", same).unwrap();
    assert_eq!(state.get("same").unwrap().parent.as_deref(), Some("base"));
}
