//! A pull reads no byte of a blob; a start reads a small part of the image; readers share a fetch.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration::access_log::{Request, bytes_sent};
use integration::cri::ContainerSpec;
use integration::servers::free_address;
use integration::{demo, wait};

use crate::fixture::{Fixture, nydus_layers};

const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// How soon after its answer a request has to be in the registry's log.
const LOG_DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn byte_counts(fixture: &Fixture) -> Result<()> {
    let image = fixture.demo()?;
    let node = fixture.new_node("lazy", "")?;
    let (blobs, bootstrap) = nydus_layers(&image.manifest)?;
    ensure!(blobs.len() == 3, "three layers make three blobs, not {}", blobs.len());
    let log = fixture.registry()?.access_log();
    // The sandbox image is a plain one and not what is measured.
    let pod = node.pod("lazy")?;

    let start = log.mark()?;
    node.cri().pull(&image.name)?;
    let pulled = log.since(start)?;
    ensure!(
        pulled.iter().any(|request| request.reads_blob(&bootstrap)),
        "the bootstrap was pulled: {pulled:#?}"
    );
    for blob in &blobs {
        ensure!(
            !pulled.iter().any(|request| request.reads_blob(blob)),
            "a blob was read on pull: {pulled:#?}"
        );
    }

    let address = free_address()?;
    let spec = ContainerSpec::new("app", &image.name, &[]).with_env("PORT", &address.port().to_string());
    node.cri().run_container(&pod, &spec)?;
    let answer = demo::ask_until_answered(address, ANSWER_DEADLINE)?;
    ensure!(answer.starts_with(demo::ANSWER_START), "not the application's answer: {answer}");

    let until_answer = log.since(start)?;
    let reads: Vec<_> =
        until_answer.iter().filter(|request| blobs.iter().any(|blob| request.reads_blob(blob))).collect();
    ensure!(!reads.is_empty(), "the application's files came from somewhere else than the registry");
    ensure!(
        reads.iter().all(|request| request.range.is_some() && request.status == 206),
        "every read of a blob is a ranged one: {reads:#?}"
    );
    let layers = image.manifest["layers"].as_array().into_iter().flatten();
    let image_size: u64 = layers.filter_map(|layer| layer["size"].as_u64()).sum();
    let fetched = bytes_sent(&until_answer);
    ensure!(fetched * 2 < image_size, "{fetched} of {image_size} bytes were fetched until the answer");
    Ok(())
}

pub(crate) fn one_fetch(fixture: &Fixture) -> Result<()> {
    const FILE_SIZE: u64 = 4 << 20;
    let context = demo::random_files(fixture.peers(), &fixture.subdir("one-fetch")?, &[("data", FILE_SIZE)])?;
    let image = fixture.build(&context, "one-fetch:v1")?;
    let node = fixture.node()?;
    node.cri().pull(&image.name)?;
    let pod = node.pod("one-fetch")?;
    let container = node.cri().run_container(&pod, &ContainerSpec::new("readers", &image.name, &[]))?;
    let log = fixture.registry()?.access_log();
    let start = log.mark()?;
    let readers = "for i in 1 2 3 4 5 6 7 8; do /bin/busybox sha256sum /data & done; wait";
    let sums = node.cri().exec(&container, &["/bin/busybox", "sh", "-c", readers])?.success()?;
    let expected = integration::tree::content_digest(&context.join("data"))?;
    ensure!(sums.lines().count() == 8 && sums.lines().all(|line| line.starts_with(&expected)), "{sums}");
    // The second layer's: the first has busybox in it.
    let blob = nydus_layers(&image.manifest)?.0.swap_remove(1);
    let sent = |requests: &[Request]| -> u64 {
        let read = requests.iter().filter(|request| request.reads_blob(&blob));
        read.map(|request| request.bytes_sent).sum()
    };
    // A request's line may come after its answer.
    let requests = wait::until("all of it was sent", LOG_DEADLINE, || {
        let requests = log.since(start)?;
        Ok((sent(&requests) >= FILE_SIZE).then_some(requests))
    });
    let requests = requests.with_context(|| format!("requests: {:#?}", log.since(start)))?;
    let bytes = sent(&requests);
    // Incompressible data, and a little for the framing of chunks.
    ensure!(
        (FILE_SIZE..FILE_SIZE + FILE_SIZE / 8).contains(&bytes),
        "{bytes} bytes were read: {requests:#?}"
    );
    node.cri().remove_pod(&pod.id)
}
