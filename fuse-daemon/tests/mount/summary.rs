//! What a daemon says of itself at once.

use fuse_daemon::control::{BlobId, Summary};
use rafs::build::BuildOptions;
use test_support::{noise, tar_of};

use crate::can_mount;
use crate::control::{Daemon, read, registry};
use crate::image::TestImage;

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_of_life_says_what_is_served_and_the_totals_what_may_give_way() {
    if !can_mount() {
        return;
    }
    let content = noise(22, 500_000);
    let image = TestImage::build(&tar_of(&[("file", &content)]), &BuildOptions::default());
    let (daemon, registry) = (Daemon::start().await, registry(&image).await);
    let (blob, client) = (BlobId(image.blob_ids()[0]), &daemon.client);
    let request = daemon.request("demo", &image.bootstrap(), &registry.image);
    client.mount(&request).await.unwrap();
    assert_eq!(read(request.mountpoint.join("file")).await.unwrap(), content);

    let summary = client.summary().await.unwrap();
    assert_eq!(summary, Summary::from(client.status().await.unwrap()));
    assert_eq!((summary.pid, summary.mounts.len()), (std::process::id(), 1));
    assert_eq!(
        (&summary.mounts[0].mountpoint, &summary.mounts[0].blobs[..]),
        (&request.mountpoint, &[blob][..])
    );
    let answer = daemon.answer_to(r#"{"version":2,"request":"summary"}"#).await;
    assert!(answer.contains(r#""version":2,"answer":{"summary":{"#), "{answer}");

    let totals = client.cache_totals().await.unwrap().unwrap();
    assert_eq!((totals.blobs, totals.quota_bytes, totals.evictable_bytes), (1, None, Some(0)));
    assert_eq!(totals.bytes, client.usage(&[blob]).await.unwrap()[0]);
    client.umount("demo").await.unwrap();
    let free = client.cache_totals().await.unwrap().unwrap();
    assert!(free.bytes >= content.len() as u64 && free.evictable_bytes == Some(free.bytes), "{free:?}");
    client.pin(&[blob], true).await.unwrap();
    assert_eq!(client.cache_totals().await.unwrap().unwrap().evictable_bytes, Some(0));
    daemon.end().await;
}
