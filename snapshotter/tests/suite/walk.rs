//! Lists with filters, and updates of labels.

use std::collections::BTreeSet;

use containerd_client::services::v1::snapshots::{Info, Kind};
use tonic::Code;

use crate::harness::{Harness, code, map};

/// The snapshots of containerd's own test of walks.
async fn populated() -> Harness {
    let harness = Harness::start().await;
    let root = ("containerd.io/gc.root", "check-walk");
    harness.prepare_with("a-np", "", &[root]).await.unwrap();
    harness.prepare_with("p-tmp", "", &[root]).await.unwrap();
    harness.commit_with("p", "p-tmp", &[root]).await.unwrap();
    harness.prepare_with("a", "p", &[root]).await.unwrap();
    harness.view_with("v", "p", &[root]).await.unwrap();
    harness.prepare_with("p-wl-tmp", "", &[root]).await.unwrap();
    harness.commit_with("p-wl", "p-wl-tmp", &[("l", "1"), root]).await.unwrap();
    harness.prepare_with("a-wl", "p-wl", &[("l", "2"), root]).await.unwrap();
    harness.view_with("v-wl", "p-wl", &[("l", "3"), root]).await.unwrap();
    harness.prepare_with("a-np-wl", "", &[("l", "2"), root]).await.unwrap();
    harness
}

#[tokio::test]
async fn filters_select_as_in_containerd() {
    let harness = populated().await;
    let root = r#"labels."containerd.io/gc.root"==check-walk"#;
    let cases: &[(&[&str], &[&str])] = &[
        (&["a-np", "p", "a", "v", "p-wl", "a-wl", "v-wl", "a-np-wl"], &[root]),
        (&["a-np", "p", "a", "v", "p-wl", "a-wl", "v-wl", "a-np-wl"], &[]),
        (&["a-np", "a", "a-wl", "a-np-wl"], &[&format!("kind==active,{root}")]),
        (&["v", "v-wl"], &[&format!("kind==view,{root}")]),
        (&["p", "p-wl"], &[&format!("kind==committed,{root}")]),
        (&["p", "a-np-wl"], &["name==p", "name==a-np-wl"]),
        (&["a-wl"], &["name==a-wl,labels.l"]),
        (&["a", "v"], &["parent==p"]),
        (&["a", "v", "a-wl", "v-wl"], &[&format!("parent!=\"\",{root}")]),
        (&["p-wl", "a-wl", "v-wl", "a-np-wl"], &["labels.l"]),
        (&["a-wl", "a-np-wl"], &["labels.l==2"]),
        (&["p-wl", "a-wl", "v-wl", "a-np-wl"], &["name~=.*-wl$"]),
        (&[], &["name==nowhere"]),
    ];
    for (expected, filters) in cases {
        let listed: BTreeSet<_> =
            harness.list(filters).await.unwrap().into_iter().map(|info| info.name).collect();
        let expected: BTreeSet<_> = expected.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(listed, expected, "{filters:?}");
    }
    assert_eq!(code(harness.list(&["kind=active"]).await), Code::InvalidArgument);
}

#[tokio::test]
async fn a_list_says_what_stat_says() {
    let harness = populated().await;
    for info in harness.list(&[]).await.unwrap() {
        assert_eq!(harness.stat(&info.name).await.unwrap(), info);
    }
}

#[tokio::test]
async fn long_lists_come_in_blocks() {
    let harness = Harness::start().await;
    for number in 0..230 {
        harness.prepare(&format!("k8s.io/{number}/a"), "").await.unwrap();
    }
    assert_eq!(harness.list(&[]).await.unwrap().len(), 230);
}

#[tokio::test]
async fn updates_change_labels_and_the_time_alone() {
    let harness = populated().await;
    for (name, kind, parent) in [
        ("p", Kind::Committed, ""),
        ("a", Kind::Active, "p"),
        ("v", Kind::View, "p"),
        ("a-np", Kind::Active, ""),
    ] {
        let before = harness.stat(name).await.unwrap();
        assert_eq!(before.created_at, before.updated_at);
        let wanted = map(&[("l1", "v1"), ("l2", "v2"), ("l3", "v3")]);
        let changed = Info {
            parent: "doesnotexist".to_owned(),
            kind: Kind::Unknown.into(),
            labels: wanted.clone(),
            ..before.clone()
        };
        let after = harness.update(changed, &[]).await.unwrap();
        assert_eq!(after.labels, wanted);
        assert_eq!((after.kind, after.parent.as_str()), (kind.into(), parent));
        assert_eq!((after.name.as_str(), after.created_at), (name, before.created_at));
        let time = |info: &Info| info.updated_at.as_ref().map(|t| (t.seconds, t.nanos)).unwrap();
        assert!(time(&after) > time(&before));

        let some = Info { labels: map(&[("l1", "updated"), ("l4", "v4")]), ..after };
        let after = harness.update(some, &["labels.l1", "labels.l2"]).await.unwrap();
        assert_eq!(after.labels, map(&[("l1", "updated"), ("l3", "v3")]));

        let all = Info { labels: map(&[("l4", "v4")]), ..after };
        let after = harness.update(all, &["labels"]).await.unwrap();
        assert_eq!(after.labels, map(&[("l4", "v4")]));
        assert_eq!(harness.stat(name).await.unwrap(), after);

        assert_eq!(code(harness.update(after, &["parent"]).await), Code::InvalidArgument);
    }
    let nowhere = Info { name: "nowhere".to_owned(), ..Info::default() };
    assert_eq!(code(harness.update(nowhere, &[]).await), Code::NotFound);
}
