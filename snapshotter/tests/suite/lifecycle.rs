//! The rules of keys, kinds and parents.

use containerd_client::services::v1::snapshots::{Info, Kind};
use tonic::Code;

use crate::harness::{Harness, code, map};

fn kind(info: &Info) -> Kind {
    Kind::try_from(info.kind).unwrap()
}

#[tokio::test]
async fn a_committed_snapshot_takes_the_place_of_the_active_one() {
    let harness = Harness::start().await;
    harness.prepare_with("preparing", "", &[("temporary", "1")]).await.unwrap();
    assert_eq!(kind(&harness.stat("preparing").await.unwrap()), Kind::Active);
    harness.commit_with("committed", "preparing", &[("final", "2")]).await.unwrap();
    let info = harness.stat("committed").await.unwrap();
    assert_eq!((kind(&info), info.parent.as_str()), (Kind::Committed, ""));
    assert_eq!(info.labels, map(&[("final", "2")]), "labels are replaced, not inherited");
    assert_eq!(code(harness.stat("preparing").await), Code::NotFound);
}

#[tokio::test]
async fn parents_are_known_through_the_chain() {
    let harness = Harness::start().await;
    harness.prepare("a1", "").await.unwrap();
    harness.commit("A", "a1").await.unwrap();
    harness.prepare("b1", "A").await.unwrap();
    assert_eq!(harness.stat("b1").await.unwrap().parent, "A");
    harness.commit("B", "b1").await.unwrap();
    let b = harness.stat("B").await.unwrap();
    assert_eq!(b.parent, "A");
    assert_eq!(harness.stat(&b.parent).await.unwrap().parent, "");
}

#[tokio::test]
async fn a_key_is_given_once() {
    let harness = Harness::start().await;
    harness.prepare("base-a", "").await.unwrap();
    harness.commit("base", "base-a").await.unwrap();
    harness.prepare("active", "base").await.unwrap();
    harness.view("view", "base").await.unwrap();
    for key in ["active", "view", "base"] {
        assert_eq!(code(harness.prepare(key, "base").await), Code::AlreadyExists);
        assert_eq!(code(harness.view(key, "base").await), Code::AlreadyExists);
    }
    assert_eq!(code(harness.commit("base", "active").await), Code::AlreadyExists);
    harness.stat("active").await.unwrap();
    assert_eq!(code(harness.prepare("", "").await), Code::InvalidArgument);
}

#[tokio::test]
async fn a_refused_snapshot_leaves_no_directory() {
    let harness = Harness::start().await;
    harness.prepare("a", "").await.unwrap();
    let before = harness.directories();
    assert_eq!(code(harness.prepare("a", "").await), Code::AlreadyExists);
    assert_eq!(code(harness.prepare("b", "a").await), Code::InvalidArgument, "the parent is not committed");
    assert_eq!(code(harness.prepare("b", "nowhere").await), Code::NotFound);
    let long = "x".repeat(5000);
    assert_eq!(code(harness.prepare_with("b", "", &[("label", &long)]).await), Code::InvalidArgument);
    assert_eq!(harness.directories(), before);
}

#[tokio::test]
async fn only_active_snapshots_are_committed_and_only_uncommitted_ones_mounted() {
    let harness = Harness::start().await;
    harness.prepare("a", "").await.unwrap();
    harness.commit("c", "a").await.unwrap();
    harness.view("v", "c").await.unwrap();
    assert_eq!(code(harness.commit("x", "v").await), Code::FailedPrecondition);
    assert_eq!(code(harness.commit("x", "c").await), Code::FailedPrecondition);
    assert_eq!(code(harness.commit("x", "nowhere").await), Code::NotFound);
    assert_eq!(code(harness.mounts("c").await), Code::FailedPrecondition);
    assert_eq!(code(harness.mounts("nowhere").await), Code::NotFound);
    assert_eq!(harness.mounts("v").await.unwrap(), harness.mounts("v").await.unwrap());
}

#[tokio::test]
async fn a_parent_is_removed_after_its_children() {
    let harness = Harness::start().await;
    harness.prepare("base-a", "").await.unwrap();
    harness.commit("base", "base-a").await.unwrap();
    harness.prepare("middle-a", "base").await.unwrap();
    harness.commit("middle", "middle-a").await.unwrap();
    harness.prepare("top", "middle").await.unwrap();
    let refused = harness.remove("middle").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("remove"), "containerd's suite looks for the word: {refused}");
    for key in ["top", "middle", "base"] {
        harness.remove(key).await.unwrap();
    }
    assert_eq!(code(harness.remove("base").await), Code::NotFound);
}

#[tokio::test]
async fn a_removed_key_is_free_for_anything() {
    let harness = Harness::start().await;
    harness.prepare("committed-a", "").await.unwrap();
    harness.commit("committed-1", "committed-a").await.unwrap();
    harness.prepare("reuse-1", "committed-1").await.unwrap();
    harness.remove("reuse-1").await.unwrap();
    harness.view("reuse-1", "committed-1").await.unwrap();
    harness.remove("reuse-1").await.unwrap();
    harness.prepare("reuse-1", "").await.unwrap();
    harness.remove("committed-1").await.unwrap();
    harness.commit("committed-1", "reuse-1").await.unwrap();
}

#[tokio::test]
async fn concurrent_requests_for_one_key_have_one_winner() {
    let harness = Harness::start().await;
    let attempts = (0..16).map(|_| harness.prepare("same", ""));
    let results = futures_join(attempts).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(results.iter().flat_map(|result| result.as_ref().err()).all(|e| e.code() == Code::AlreadyExists));
    assert_eq!(harness.directories().len(), 1);
}

/// Runs futures at once.
async fn futures_join<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut pending: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = pending.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, slot) in pending.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let std::task::Poll::Ready(output) = future.as_mut().poll(context)
            {
                *slot = Some(output);
            }
        }
        if done.iter().all(Option::is_some) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}

#[tokio::test]
async fn usage_is_counted_while_active_and_kept_when_committed() {
    let harness = Harness::start().await;
    let mounts = harness.prepare("a", "").await.unwrap();
    let empty = harness.usage("a").await.unwrap();
    assert_eq!(empty.inodes, 1, "the root directory");
    std::fs::write(format!("{}/file", mounts[0].source), vec![7; 1 << 20]).unwrap();
    let full = harness.usage("a").await.unwrap();
    assert_eq!(full.inodes, 2);
    assert!(full.size >= empty.size + (1 << 20));
    harness.commit("c", "a").await.unwrap();
    assert_eq!(harness.usage("c").await.unwrap(), full);
    harness.prepare("on-top", "c").await.unwrap();
    assert_eq!(harness.usage("on-top").await.unwrap(), empty, "parents do not count");
    harness.view("v", "c").await.unwrap();
    let view = harness.usage("v").await.unwrap();
    assert_eq!((view.inodes, view.size), (0, 0));
    assert_eq!(code(harness.usage("nowhere").await), Code::NotFound);
}
