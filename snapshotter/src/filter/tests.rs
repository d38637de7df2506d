use super::*;
use crate::state::{Kind, SnapshotId, Timestamp, Usage};

fn record(kind: Kind, parent: Option<&str>, labels: &[(&str, &str)]) -> Record {
    Record {
        id: SnapshotId(1),
        kind,
        parent: parent.map(str::to_owned),
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        created: Timestamp::now(),
        updated: Timestamp::now(),
        usage: Usage::default(),
        lazy: false,
    }
}

fn matches(filters: &[&str]) -> bool {
    let filters: Vec<_> = filters.iter().map(|f| (*f).to_owned()).collect();
    let record = record(
        Kind::Active,
        Some("k8s.io/1/base"),
        &[("l", "1"), ("containerd.io/snapshot.ref", "sha256:ab")],
    );
    Filters::parse(&filters).unwrap().matches("k8s.io/2/app", &record)
}

#[test]
fn no_filter_and_an_empty_filter_match_everything() {
    assert!(matches(&[]));
    assert!(matches(&[""]));
}

#[test]
fn fields_compare_by_value() {
    assert!(matches(&["kind==active"]));
    assert!(!matches(&["kind==view"]));
    assert!(matches(&["name==k8s.io/2/app"]));
    assert!(matches(&["parent==\"k8s.io/1/base\""]));
    assert!(matches(&["parent!=\"\""]));
    assert!(!matches(&["kind!=active"]));
}

#[test]
fn labels_are_fields_whose_names_may_be_quoted() {
    assert!(matches(&["labels.l"]));
    assert!(matches(&["labels.l==1"]));
    assert!(!matches(&["labels.m"]));
    assert!(matches(&["labels.m!=1"]), "an absent field has another value");
    assert!(matches(&[r#"labels."containerd.io/snapshot.ref"==sha256:ab"#]));
    // What containerd asks for after a target was said to exist.
    assert!(matches(&[r#"labels."containerd.io/snapshot.ref"==sha256:ab,parent=="k8s.io/1/base""#]));
}

#[test]
fn a_comma_is_and_and_several_filters_are_or() {
    assert!(!matches(&["kind==active,labels.l==2"]));
    assert!(matches(&["kind==active,labels.l==1"]));
    assert!(matches(&["kind==view", "labels.l==1"]));
    assert!(!matches(&["kind==view", "labels.l==2"]));
}

#[test]
fn regular_expressions_are_searched_for() {
    assert!(matches(&["name~=^k8s"]));
    assert!(!matches(&["name~=^app"]));
    assert!(matches(&[r"name~=|^k8s\\.io/|"]), "a backslash is escaped inside quotes");
    assert!(matches(&["name~=|^k8s.io/[0-9]+/app$|"]));
    assert!(matches(&[r#"name~="app$""#]));
}

#[test]
fn unknown_fields_are_absent() {
    assert!(!matches(&["size"]));
    assert!(!matches(&["size==1"]));
}

#[test]
fn escapes_are_those_of_go() {
    let record = record(Kind::Active, None, &[("a\"b", "x\ty\u{e9}")]);
    let filters = Filters::parse(&[r#"labels."a\"b"=="x\ty\u00e9""#.to_owned()]).unwrap();
    assert!(filters.matches("k", &record));
}

#[test]
fn malformed_filters_say_where() {
    for (filter, position) in [
        ("kind=active", 4),
        ("kind==", 6),
        ("==active", 0),
        ("kind==active,", 13),
        ("kind==a b", 8),
        ("name==\"open", 11),
        ("name==/x/", 6),
        ("name~=(", 6),
        ("labels.", 7),
        ("name==\"\\q\"", 9),
    ] {
        let error = Filters::parse(&[filter.to_owned()]).unwrap_err();
        assert_eq!((error.filter.as_str(), error.position), (filter, position), "{error}");
    }
}
