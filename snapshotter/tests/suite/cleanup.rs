//! Removal marks, clean-up deletes.

use crate::harness::Harness;

#[tokio::test]
async fn a_removed_snapshot_keeps_its_files_until_clean_up() {
    let harness = Harness::start().await;
    let mounts = harness.prepare("a", "").await.unwrap();
    std::fs::write(format!("{}/file", mounts[0].source), "content").unwrap();
    harness.prepare("b", "").await.unwrap();
    harness.remove("a").await.unwrap();
    assert_eq!(harness.directories(), ["1", "2"]);
    harness.cleanup().await.unwrap();
    assert_eq!(harness.directories(), ["2"]);
    harness.cleanup().await.unwrap();
    harness.mounts("b").await.unwrap();
}

#[tokio::test]
async fn clean_up_leaves_alone_what_is_being_made() {
    let harness = Harness::start().await;
    let makers = (0..4).map(|maker| {
        let mut client = harness.client();
        tokio::spawn(async move {
            for number in 0..40 {
                let request = containerd_client::services::v1::snapshots::PrepareSnapshotRequest {
                    key: format!("{maker}/{number}"),
                    ..Default::default()
                };
                client.prepare(request).await.unwrap();
            }
        })
    });
    let makers: Vec<_> = makers.collect();
    while makers.iter().any(|maker| !maker.is_finished()) {
        harness.cleanup().await.unwrap();
    }
    for maker in makers {
        maker.await.unwrap();
    }
    harness.cleanup().await.unwrap();
    assert_eq!(harness.list(&[]).await.unwrap().len(), 160);
    assert_eq!(harness.directories().len(), 160);
}
