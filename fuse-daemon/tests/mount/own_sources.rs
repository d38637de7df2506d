//! What is cached of a blob is for mounts whose own sources have it.

use std::sync::Arc;

use fuse_daemon::worker::{Backend, DirectoryBackend};
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
