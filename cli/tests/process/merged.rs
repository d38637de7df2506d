//! Cluster images merged with what was saved for them, by the commands.

use std::fs;
use std::path::Path;

use registry::Reference;
use registry::client::{Client, ClientConfig};
use registry::digest::sha256;
use serde_json::Value;
use test_support::noise;

use super::packages::{command, push_plain, said};
use super::registry::Serving;

/// What a merge may fetch: documents, bootstraps, locks and tables.
const MERGED_BYTES: u64 = 256 << 10;

/// The names of the container images that `cluster inspect` shows.
fn shown(dir: &Path, source: &str) -> Vec<String> {
    let report: Value = serde_json::from_str(&said(dir, &["cluster", "inspect", source, "--json"])).unwrap();
    let images = report["images"].as_array().unwrap();
    images.iter().map(|image| image["image"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merged_image_has_the_saved_images_of_all_its_parts() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (from, to) =
        (Serving::start(dir, "from", &[]), Serving::start(dir, "to", &["--access-log", "to.json"]));
    let client = Client::new(ClientConfig::default()).unwrap();
    let common = noise(1, 300_000);
    let names = ["both", "one", "other"].map(|name| format!("{}/team/{name}:v1", from.address));
    for (seed, name) in (2..).zip(&names) {
        push_plain(&client, name, &[("common", common.clone()), ("own", noise(seed, 200_000))]).await;
    }
    let [cluster, application, merged] =
        ["k8s", "app", "merged"].map(|name| format!("{}/{name}:v1", to.address));
    for (tree, image, asked) in [("k8s", &cluster, &names[..2]), ("app", &application, &names[..])] {
        // The second one has no `one`.
        let list: String = asked
            .iter()
            .filter(|name| tree == "k8s" || !name.contains("/one:"))
            .map(|name| format!("{name}\n"))
            .collect();
        let place = dir.join(tree).join("manifests");
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("imageList"), list).unwrap();
        said(dir, &["cluster", "images", tree, "--lock", &format!("{tree}/images.lock")]);
        said(dir, &["image", "convert", "--fresh", &format!("directory:{tree}"), image]);
        said(dir, &["cluster", "save", image, "--to", &format!("{image}-images"), "--bind"]);
    }
    let original = client.manifest(&Reference::parse(&names[0]).unwrap()).await.unwrap().1;
    // `cluster inspect` asks the images' own registries; what follows does not.
    let begin = fs::read_to_string(dir.join("to.json")).unwrap().len();
    said(dir, &["cluster", "merge", &cluster, &application, "-t", &merged]);
    let log = fs::read_to_string(dir.join("to.json")).unwrap();
    let requests = log[begin..].lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let fetched: u64 = requests.filter_map(|request| request["bytes_sent"].as_u64()).sum();
    assert!(fetched > 0 && fetched < MERGED_BYTES, "{fetched} bytes came");
    assert_eq!(shown(dir, &merged), names);
    let host = from.address.replace(':', "_");
    drop(from);

    said(dir, &["cluster", "save", &merged, "-o", "cluster.tar"]);
    assert_eq!(shown(dir, "cluster.tar"), names);
    let images = format!("{merged}-images");
    let (_, index) = client.manifest(&Reference::parse(&images).unwrap()).await.unwrap();
    let images = format!("{}/merged@{}", to.address, sha256(&index));
    let serve = ["cluster", "serve", &images, "--root", "documents", "--listen", "127.0.0.1:0"];
    let node = Serving::of(command(dir, &serve), &dir.join("serve.log"));
    for name in ["both", "one", "other"] {
        let name = Reference::parse(&format!("{}/{host}/team/{name}:v1", node.address)).unwrap();
        let (_, answered) = client.manifest(&name).await.unwrap();
        assert!(name.to_string().contains("/both:") == (answered == original), "{name}");
    }
}
