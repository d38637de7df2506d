//! Images from registry to registry.

use bytes::Bytes;
use registry::client::{Copied, PlacedBlobs};
use registry::digest::sha256;
use serde_json::json;

use crate::support::{Kind, MANIFEST, Registry, client, folder, noise, push_image, read_blob};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

crate::with_both_registries! {
    an_index_is_copied_whole_and_nothing_is_sent_twice,
    what_refers_to_an_image_comes_along_if_asked_for,
}

async fn an_index_is_copied_whole_and_nothing_is_sent_twice(kind: Kind) {
    let (there, here) = (folder(), folder());
    let (from, to) =
        (Registry::start(Kind::Embedded, there.path()).await, Registry::start(kind, here.path()).await);
    let client = client();
    let (one, two) = (from.reference("app:one"), from.reference("app:two"));
    let layer = noise(91, 1_000_000);
    let (first, digest) = push_image(&client, &one, layer.clone()).await;
    let (second, _) = push_image(&client, &two, noise(92, 1000)).await;
    let entries: Vec<_> = [first, second]
        .iter()
        .map(|digest| json!({"mediaType": MANIFEST, "digest": digest.to_string(), "size": 1}))
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string();
    let image = from.reference("app:v1");
    client.put_manifest(&image, INDEX, Bytes::from(index.clone())).await.unwrap();

    let copy = to.reference("mirror/app:v1");
    let copied = client.copy_image(&image, &copy, false, &PlacedBlobs::default()).await.unwrap();
    assert_eq!((copied.manifests, copied.blobs, copied.mounted), (3, 4, 0), "{copied:?}");
    assert!(copied.bytes > 1_001_000, "{copied:?}");
    assert_eq!(client.manifest(&copy).await.unwrap().1, index);
    assert_eq!(read_blob(&client, copy.repository(), &digest).await, layer);
    let again = client.copy_image(&image, &copy, false, &PlacedBlobs::default()).await.unwrap();
    assert_eq!(again, Copied { present: 1, ..Copied::default() });
    // Under another name of that repository: the manifests are there. In another one blobs are mounted.
    let tagged = client
        .copy_image(&one, &to.reference("mirror/app:one"), false, &PlacedBlobs::default())
        .await
        .unwrap();
    assert_eq!((tagged.manifests, tagged.blobs, tagged.bytes), (1, 0, 0), "{tagged:?}");
    let other = client
        .copy_image(&copy, &to.reference("other/app:v1"), false, &PlacedBlobs::default())
        .await
        .unwrap();
    assert_eq!((other.manifests, other.blobs, other.mounted), (3, 0, 4), "{other:?}");
}

async fn what_refers_to_an_image_comes_along_if_asked_for(kind: Kind) {
    let (there, here) = (folder(), folder());
    let (from, to) =
        (Registry::start(Kind::Embedded, there.path()).await, Registry::start(kind, here.path()).await);
    let client = client();
    let image = from.reference("app:v1");
    let (subject, _) = push_image(&client, &image, noise(93, 1000)).await;
    let (descriptor, _) = client.manifest(&image).await.unwrap();
    let empty = client.push_blob(image.repository(), Bytes::from("{}")).await.unwrap();
    let empty =
        json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty.to_string(), "size": 2});
    let signature = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.test.signature",
        "config": empty, "layers": [empty], "subject": descriptor,
    });
    let signature = Bytes::from(signature.to_string());
    client.put_manifest(&image.at_digest(sha256(&signature)), MANIFEST, signature.clone()).await.unwrap();

    let copy = to.reference("app:v1");
    client.copy_image(&image, &copy, false, &PlacedBlobs::default()).await.unwrap();
    assert_eq!(client.referrers(copy.repository(), &subject, None).await.unwrap(), []);
    client.copy_image(&image, &copy, true, &PlacedBlobs::default()).await.unwrap();
    let found = client.referrers(copy.repository(), &subject, None).await.unwrap();
    assert_eq!(found.iter().map(|one| one.digest().clone()).collect::<Vec<_>>(), [sha256(&signature)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_repositories_of_a_registry_are_listed() {
    let dir = folder();
    let registry = Registry::start(Kind::Embedded, dir.path()).await;
    let client = client();
    for name in ["b", "a/nested", "c"] {
        push_image(&client, &registry.reference(&format!("{name}:v1")), noise(94, 10)).await;
    }
    let names: Vec<String> = client
        .repositories(&registry.host())
        .await
        .unwrap()
        .iter()
        .map(|one| one.name().to_owned())
        .collect();
    assert_eq!(names, ["a/nested", "b", "c"]);
}
