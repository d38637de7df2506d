//! Another client's view of the embedded server.

use std::io::Write as _;
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::support::{Kind, Registry, client, folder, have, noise, push_image};

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_an_image_out_of_the_embedded_server_and_in_again() {
    if !have("skopeo") {
        return;
    }
    let dir = folder();
    let registry = Registry::start(Kind::Embedded, dir.path()).await;
    let client = client();
    let image = registry.reference("team/app:v1");
    // Compressed: skopeo leaves such layers as they are.
    let mut layer = GzEncoder::new(Vec::new(), Compression::fast());
    layer.write_all(&noise(51, 3_000_000)).unwrap();
    let (digest, _) = push_image(&client, &image, layer.finish().unwrap().into()).await;
    let layout = format!("oci:{}:v1", dir.path().join("layout").display());
    let copied = format!("docker://{}/copied/app:v2", registry.host());
    for (from, to) in [(format!("docker://{image}"), layout.clone()), (layout, copied)] {
        let (from, to) = (from.clone(), to.clone());
        let output = tokio::task::spawn_blocking(move || {
            Command::new("skopeo")
                .args([
                    "--insecure-policy",
                    "copy",
                    "--src-tls-verify=false",
                    "--dest-tls-verify=false",
                    &from,
                    &to,
                ])
                .output()
        });
        let output = output.await.unwrap().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let copied = registry.reference("copied/app:v2");
    assert_eq!(client.manifest(&copied).await.unwrap().0.digest(), &digest);
}
