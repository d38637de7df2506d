//! What every registry must do for the client.

use std::path::Path;

use bytes::Bytes;
use http::StatusCode;
use registry::client::Error;
use registry::digest::sha256;

use crate::support::{Kind, MANIFEST, Registry, client, folder, manifest, noise, push_image, read_blob};

crate::with_both_registries! {
    a_pushed_blob_reads_back_whole_and_in_parts,
    a_blob_written_in_small_bits_goes_out_in_pieces,
    an_empty_blob_can_be_pushed,
    a_blob_with_another_digest_is_refused,
    a_cancelled_upload_leaves_nothing,
    an_image_is_found_by_tag_and_by_digest,
    a_manifest_without_its_blobs_is_refused,
    what_does_not_exist_is_not_found,
    tags_are_listed,
    a_blob_is_mounted_from_another_repository,
    referrers_are_listed_and_filtered,
    manifests_and_blobs_can_be_deleted,
    ten_uploads_at_a_time_do_not_mix,
}

/// How many uploads have data. CNCF distribution leaves empty folders behind.
fn uploads_of(dir: &Path, name: &str) -> usize {
    let uploads = dir.join(format!("root/docker/registry/v2/repositories/{name}/_uploads"));
    let Ok(uploads) = std::fs::read_dir(uploads) else { return 0 };
    uploads.filter(|upload| upload.as_ref().unwrap().path().join("data").exists()).count()
}

async fn a_pushed_blob_reads_back_whole_and_in_parts(kind: Kind) {
    let dir = folder();
    let registry = Registry::start(kind, dir.path()).await;
    let (client, repository) = (client(), registry.repository("team/app"));
    let data = noise(1, 3_000_001);
    let digest = client.push_blob(&repository, data.clone()).await.unwrap();
    assert_eq!(digest, sha256(&data));
    assert_eq!(client.blob_size(&repository, &digest).await.unwrap(), Some(3_000_001));
    assert!(client.has_blob(&repository, &digest).await.unwrap());
    assert_eq!(read_blob(&client, &repository, &digest).await, data);
    for (offset, len) in [(0u64, 1u64), (0, 3_000_001), (1_234_567, 890_123), (3_000_000, 1), (5, 0)] {
        let part = client.blob_range(&repository, &digest, offset, len).await.unwrap();
        assert_eq!(part, data.slice(offset as usize..(offset + len) as usize), "{offset}+{len}");
    }
    for (offset, len) in [(3_000_000, 2), (3_000_001, 1), (u64::MAX, 2)] {
        client.blob_range(&repository, &digest, offset, len).await.unwrap_err();
    }
}

async fn a_blob_written_in_small_bits_goes_out_in_pieces(kind: Kind) {
    let dir = folder();
    let registry = Registry::start(kind, dir.path()).await;
    let (client, repository) = (client(), registry.repository("app"));
    let data = noise(2, 2_500_000);
    let mut upload = client.begin_upload(&repository).await.unwrap();
    for start in (0..data.len()).step_by(77_777) {
        upload.write(data.slice(start..(start + 77_777).min(data.len()))).await.unwrap();
    }
    assert_eq!(upload.written(), 2_500_000);
    let digest = sha256(&data);
    assert_eq!(upload.finish(&digest).await.unwrap(), 2_500_000);
    assert_eq!(read_blob(&client, &repository, &digest).await, data);
}

async fn an_empty_blob_can_be_pushed(kind: Kind) {
    let dir = folder();
    let registry = Registry::start(kind, dir.path()).await;
    let (client, repository) = (client(), registry.repository("app"));
    let digest = client.push_blob(&repository, Bytes::new()).await.unwrap();
    assert_eq!(client.blob_size(&repository, &digest).await.unwrap(), Some(0));
    assert!(read_blob(&client, &repository, &digest).await.is_empty());
}

async fn a_blob_with_another_digest_is_refused(kind: Kind) {
    let dir = folder();
    let registry = Registry::start(kind, dir.path()).await;
    let (client, repository) = (client(), registry.repository("app"));
    for len in [1000, 1_000_000] {
        let mut upload = client.begin_upload(&repository).await.unwrap();
        upload.write(noise(3, len)).await.unwrap();
        let wrong = sha256(b"something else");
        let error = upload.finish(&wrong).await.unwrap_err();
        assert_eq!(error.status(), Some(StatusCode::BAD_REQUEST), "{error}");
        assert!(error.to_string().contains("DIGEST_INVALID"), "{error}");
        assert!(!client.has_blob(&repository, &wrong).await.unwrap());
        assert!(!client.has_blob(&repository, &sha256(&noise(3, len))).await.unwrap());
    }
}

async fn a_cancelled_upload_leaves_nothing(kind: Kind) {
    let dir = folder();
    let registry = Registry::start(kind, dir.path()).await;
    let (client, repository) = (client(), registry.repository("app"));
    let mut upload = client.begin_upload(&repository).await.unwrap();
    upload.write(noise(4, 700_000)).await.unwrap();
    assert_eq!(uploads_of(dir.path(), "app"), 1);
    upload.cancel().await;
    assert_eq!(uploads_of(dir.path(), "app"), 0);
}

async fn an_image_is_found_by_tag_and_by_digest(kind: Kind) {
    let dir = folder();
    let registry = Registry::start(kind, dir.path()).await;
    let client = client();
    let tagged = registry.reference("team/app:v1");
    let (digest, _) = push_image(&client, &tagged, noise(5, 1000)).await;
    let (descriptor, content) = client.manifest(&tagged).await.unwrap();
    assert_eq!((descriptor.digest(), descriptor.size()), (&digest, content.len() as u64));
    assert_eq!(descriptor.media_type().to_string(), MANIFEST);
    let by_digest = tagged.at_digest(digest.clone());
    assert_eq!(client.manifest(&by_digest).await.unwrap(), (descriptor.clone(), content.clone()));
    assert_eq!(client.head_manifest(&tagged).await.unwrap(), Some(descriptor.clone()));
    assert_eq!(client.head_manifest(&by_digest).await.unwrap(), Some(descriptor));
    // The same content under a second name, by digest alone, and with a digest that is not its own.
    let again = registry.reference("team/app:v2");
    assert_eq!(client.put_manifest(&again, MANIFEST, content.clone()).await.unwrap(), digest);
    assert_eq!(client.put_manifest(&by_digest, MANIFEST, content.clone()).await.unwrap(), digest);
    let other = tagged.at_digest(sha256(b"other"));
    let error = client.put_manifest(&other, MANIFEST, content).await.unwrap_err();
    assert!(matches!(error, Error::Digest { .. }), "{error}");
}

async fn a_manifest_without_its_blobs_is_refused(kind: Kind) {
    let dir = folder();
    let registry = Registry::start(kind, dir.path()).await;
    let client = client();
    let reference = registry.reference("app:v1");
    let config = client.push_blob(reference.repository(), Bytes::from("{}")).await.unwrap();
    let missing = sha256(b"never pushed");
    let error =
        client.put_manifest(&reference, MANIFEST, manifest(&config, 2, &[(&missing, 12)])).await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::BAD_REQUEST), "{error}");
    assert!(error.to_string().contains("MANIFEST_BLOB_UNKNOWN"), "{error}");
    assert_eq!(client.head_manifest(&reference).await.unwrap(), None);
}

async fn what_does_not_exist_is_not_found(kind: Kind) {
    let dir = folder();
    let registry = Registry::start(kind, dir.path()).await;
    let client = client();
    let reference = registry.reference("nothing/here:v1");
    let digest = sha256(b"nothing");
    let error = client.manifest(&reference).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(&registry.host()) && text.contains("nothing/here") && text.contains("v1"),
        "{text}"
    );
    assert_eq!(client.head_manifest(&reference).await.unwrap(), None);
    assert_eq!(client.blob_size(reference.repository(), &digest).await.unwrap(), None);
    assert!(!client.has_blob(reference.repository(), &digest).await.unwrap());
    assert!(client.blob(reference.repository(), &digest).unwrap().next().await.unwrap_err().is_not_found());
    assert!(client.blob_range(reference.repository(), &digest, 0, 1).await.unwrap_err().is_not_found());
    assert!(client.tags(reference.repository()).await.unwrap_err().is_not_found());
}

async fn tags_are_listed(kind: Kind) {
    let dir = folder();
    let registry = Registry::start(kind, dir.path()).await;
    let client = client();
    for tag in ["v2", "v1", "latest"] {
        push_image(&client, &registry.reference(&format!("app:{tag}")), noise(6, 100)).await;
    }
    let mut tags = client.tags(&registry.repository("app")).await.unwrap();
    tags.sort_unstable();
    assert_eq!(tags, ["latest", "v1", "v2"]);
}

async fn a_blob_is_mounted_from_another_repository(kind: Kind) {
    let dir = folder();
    let registry = Registry::start(kind, dir.path()).await;
    let client = client();
    let (from, to) = (registry.repository("from"), registry.repository("to/here"));
    let data = noise(7, 5000);
    let digest = client.push_blob(&from, data.clone()).await.unwrap();
    assert!(!client.has_blob(&to, &digest).await.unwrap());
    assert!(client.mount_blob(&to, &from, &digest).await.unwrap());
    assert_eq!(read_blob(&client, &to, &digest).await, data);
    assert!(!client.mount_blob(&to, &from, &sha256(b"not there")).await.unwrap());
    // The upload that the registry began instead was cancelled.
    assert_eq!(uploads_of(dir.path(), "to/here"), 0);
}

async fn referrers_are_listed_and_filtered(kind: Kind) {
    let dir = folder();
    let registry = Registry::start(kind, dir.path()).await;
    let client = client();
    let image = registry.reference("app:v1");
    let repository = image.repository();
    let (subject, _) = push_image(&client, &image, noise(8, 1000)).await;
    assert_eq!(client.referrers(repository, &subject, None).await.unwrap(), []);
    let (descriptor, _) = client.manifest(&image).await.unwrap();
    let empty = client.push_blob(repository, Bytes::from("{}")).await.unwrap();
    let mut pushed = Vec::new();
    for kind in ["application/vnd.test.sbom", "application/vnd.test.signature"] {
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "annotations": {"of": kind},
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty.to_string(), "size": 2},
            "layers": [{"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty.to_string(), "size": 2}],
            "subject": descriptor,
        });
        let manifest = Bytes::from(manifest.to_string());
        let reference = image.at_digest(sha256(&manifest));
        pushed.push(client.put_manifest(&reference, MANIFEST, manifest).await.unwrap());
    }
    let found = client.referrers(repository, &subject, None).await.unwrap();
    assert_eq!(found.iter().map(|one| one.digest().clone()).collect::<Vec<_>>(), pushed);
    let found = client.referrers(repository, &subject, Some("application/vnd.test.signature")).await.unwrap();
    assert_eq!(found.iter().map(|one| one.digest().clone()).collect::<Vec<_>>(), pushed[1..]);
    assert_eq!(found[0].annotations().as_ref().unwrap()["of"], "application/vnd.test.signature");
}

async fn manifests_and_blobs_can_be_deleted(kind: Kind) {
    let dir = folder();
    let registry = Registry::start(kind, dir.path()).await;
    let client = client();
    let (one, two) = (registry.reference("app:v1"), registry.reference("app:v2"));
    let (digest, layer) = push_image(&client, &one, noise(9, 1000)).await;
    push_image(&client, &two, noise(9, 1000)).await;
    client.delete_manifest(&one.at_digest(digest.clone())).await.unwrap();
    for gone in [&one, &two, &one.at_digest(digest.clone())] {
        assert_eq!(client.head_manifest(gone).await.unwrap(), None, "{gone}");
    }
    assert!(client.delete_manifest(&one.at_digest(digest)).await.unwrap_err().is_not_found());
    client.delete_blob(one.repository(), &layer).await.unwrap();
    assert!(!client.has_blob(one.repository(), &layer).await.unwrap());
    assert!(client.delete_blob(one.repository(), &layer).await.unwrap_err().is_not_found());
}

async fn ten_uploads_at_a_time_do_not_mix(kind: Kind) {
    let dir = folder();
    let registry = Registry::start(kind, dir.path()).await;
    let (client, repository) = (client(), registry.repository("app"));
    let push = |seed| {
        let (client, repository) = (client.clone(), repository.clone());
        tokio::spawn(async move {
            let data = noise(seed, 900_000 + usize::try_from(seed).unwrap());
            let digest = client.push_blob(&repository, data.clone()).await.unwrap();
            assert_eq!(read_blob(&client, &repository, &digest).await, data);
        })
    };
    for task in (100..110).map(push).collect::<Vec<_>>() {
        task.await.unwrap();
    }
}
