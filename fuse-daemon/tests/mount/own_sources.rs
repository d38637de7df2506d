//! What is cached of a blob is for mounts whose own sources have it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fuse_daemon::control::BlobId;
use fuse_daemon::worker::{Backend, BackendError, DirectoryBackend};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use rafs::build::BuildOptions;
use test_support::{noise, tar_of};

use crate::faults::EIO;
use crate::image::{FIRST_BOOT, Node, SECOND_BOOT, Settings, TestImage};
use crate::{can_mount, eventually};

#[test]
fn a_cached_blob_is_read_once_an_own_source_has_it_and_from_then_on_without_any() {
    if !can_mount() {
        return;
    }
    let (secret, own) = (noise(70, 60_000), noise(71, 60_000));
    let base_tar = tar_of(&[("secret", &secret)]);
    let options = BuildOptions::default();
    let owner = TestImage::build(&base_tar, &options);
    let other = TestImage::build_layers(&[&base_tar, &tar_of(&[("own", &own)])], &options);
    // The other's source has its own layer alone, though its image names both.
    let dir = tempfile::tempdir().unwrap();
    let ids = other.blob_ids();
    let shared = ids.iter().find(|id| owner.blob_ids().contains(id)).unwrap().to_string();
    let kept = ids.iter().map(ToString::to_string).find(|id| *id != shared).unwrap();
    std::fs::copy(other.blobs().join(&kept), dir.path().join(&kept)).unwrap();
    let source = || Arc::new(DirectoryBackend::new(dir.path())) as Arc<dyn Backend>;

    let cache = tempfile::tempdir().unwrap();
    {
        let node = Node::new(cache.path(), &Settings { boot: FIRST_BOOT, ..Settings::default() });
        let first = node.mount(&owner);
        assert!(first.read("secret").unwrap() == secret);
        let second = node.mount_from(&other, source());
        assert!(second.read("own").unwrap() == own);
        let log = crate::log::lines();
        let refused = second.read("secret").unwrap_err();
        assert_eq!(refused.raw_os_error(), EIO);
        eventually("the log names image and path", || {
            log.count(|line| line.contains("image=\"test\" path=\"/secret\"") && line.contains("own sources"))
                > 0
        });
        assert!(first.read("secret").unwrap() == secret);

        std::fs::copy(owner.blobs().join(&shared), dir.path().join(&shared)).unwrap();
        eventually("what the own source has is read", || {
            second.read("secret").is_ok_and(|bytes| bytes == secret)
        });
    }
    // After a reboot nobody is in reach, and what has been allowed is in the cache.
    for id in [&shared, &kept] {
        std::fs::remove_file(dir.path().join(id)).unwrap();
    }
    let node = Node::new(cache.path(), &Settings { boot: SECOND_BOOT, ..Settings::default() });
    let again = node.mount_from(&other, source());
    assert!(again.read("secret").unwrap() == secret && again.read("own").unwrap() == own);
    // But not to somebody else.
    let stranger = tempfile::tempdir().unwrap();
    let foreign = node.mount_from(&owner, Arc::new(DirectoryBackend::new(stranger.path())));
    assert_eq!(foreign.read("secret").unwrap_err().raw_os_error(), EIO);
}

/// Does not answer the first time that it is asked whether it has a blob.
struct SilentAtFirst {
    inner: Arc<dyn Backend>,
    asked: AtomicUsize,
}

impl Backend for SilentAtFirst {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn size(&self, blob: BlobId) -> BoxFuture<'_, Result<u64, BackendError>> {
        match self.asked.fetch_add(1, Ordering::SeqCst) {
            0 => Box::pin(futures::future::pending()),
            _ => self.inner.size(blob),
        }
    }

    fn read(&self, blob: BlobId, range: Range<u64>) -> BoxStream<'static, Result<Bytes, BackendError>> {
        self.inner.read(blob, range)
    }
}

#[test]
fn a_reader_has_its_own_time_however_long_a_source_was_asked_before() {
    if !can_mount() {
        return;
    }
    let content = noise(72, 60_000);
    let image = TestImage::build(&tar_of(&[("file", &content)]), &BuildOptions::default());
    let cache = tempfile::tempdir().unwrap();
    let deadline = Duration::from_secs(6);
    let node = Node::new(cache.path(), &Settings { deadline, ..Settings::default() });
    let source = Arc::new(SilentAtFirst { inner: image.backend(), asked: AtomicUsize::new(0) });
    let mount = node.mount_from(&image, source.clone());
    eventually("it is asked with the mount", || source.asked.load(Ordering::SeqCst) == 1);
    // The reader comes when half of that question's time is over.
    std::thread::sleep(deadline / 2);
    assert!(mount.read("file").unwrap() == content);
    assert_eq!(source.asked.load(Ordering::SeqCst), 2);
}
