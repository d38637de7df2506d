//! Registries that fall silent after they have answered: their builds fail with their name, and other builds go on.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use exporter::ExporterConfig;
use registry::client::{ClientConfig, Retries, Timeouts, UploadConfig};
use test_support::noise;
use tokio::net::TcpListener;

use crate::support::hanging::{Hanging, slow};
use crate::support::{Stack, run, wait_for};

/// As many layers as buildkitd hands over at once, of all its builds, and one more.
const MANY: &str = "FROM scratch\nCOPY a /a\nCOPY b /b\nCOPY c /c\nCOPY d /d\nCOPY e /e\n";

/// Layers that buildkitd hands over at once.
const SLOTS: usize = 4;

/// A context of `MANY` layers that no other build has.
fn many(stack: &Stack, name: &str, seed: u64) -> PathBuf {
    let files: Vec<Vec<u8>> = (0..5).map(|file| noise(seed + file, 256 << 10)).collect();
    let names = ["a", "b", "c", "d", "e"];
    let files: Vec<(&str, &[u8])> = names.into_iter().zip(files.iter().map(Vec::as_slice)).collect();
    stack.context(name, MANY, &files)
}

/// Settings by which blobs are sent in pieces of so many bytes.
fn in_pieces_of(piece_bytes: usize) -> ClientConfig {
    ClientConfig {
        upload: UploadConfig { piece_bytes, ..UploadConfig::default() },
        ..ClientConfig::default()
    }
}

/// An exporter at `listen` that waits `seconds` for progress.
async fn serve(stack: &Stack, listen: &Path, seconds: u64, registry: ClientConfig) {
    let config = ExporterConfig { registry, registry_silent_seconds: seconds, ..ExporterConfig::default() };
    stack.serve(&stack.path("buildkitd.sock"), listen, config);
    wait_for("exporter", || listen.exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_falls_silent_under_uploads_gives_back_the_slots_of_buildkitd() {
    const SECONDS: u64 = 10;
    // Nothing else ends an upload as soon: deadlines of the client alone are longer than a build may take here.
    const BUILD_LIMIT: Duration = Duration::from_secs(100);
    const CLIENT: Duration = Duration::from_secs(120);
    let Some(stack) = Stack::start().await else { return };
    let mut seed = 100;
    for (at, dies, piece_bytes) in [
        ("PATCH", false, 64 << 10),
        ("PATCH", true, 64 << 10),
        ("PUT", false, 1 << 20),
        ("PUT", true, 64 << 10),
    ] {
        let case = format!("{at}-{dies}").to_lowercase();
        let listen = stack.path(&format!("{case}.sock"));
        // Each request is made once, so that one which is not answered is held until its build fails.
        let retries = Retries { attempts: 1, ..Retries::default() };
        let timeouts = Timeouts { idle: CLIENT, operation: CLIENT, ..Timeouts::default() };
        let registry = ClientConfig { retries, timeouts, ..in_pieces_of(piece_bytes) };
        serve(&stack, &listen, SECONDS, registry).await;
        let silent = Hanging::silent(at, dies).await;
        let context = many(&stack, &format!("{case}-stuck"), seed);
        let output = format!("type=nydus-cluster,name={}/stuck:{case}", silent.host);
        let begin = Instant::now();
        let stuck = tokio::spawn(run(stack.buildctl(&listen, &context, &["--output", &output])));
        wait_for("all slots of buildkitd", || silent.held() >= SLOTS).await;
        // It needs some of them.
        let context = many(&stack, &format!("{case}-free"), seed + 10);
        let free = stack.output(&format!("free:{case}"));
        run(stack.buildctl(&listen, &context, &["--output", &free])).await.success();
        let text = stuck.await.unwrap().failure();
        // The build before it, and the other one, take a part of it.
        assert!(begin.elapsed() < BUILD_LIMIT, "{case}: {:?}", begin.elapsed());
        let named = text.lines().any(|line| line.contains("ERROR: ") && line.contains(&silent.host));
        assert!(named, "{case}: {text}");
        if at == "PUT" && !dies {
            assert!(text.contains("exporter.registry_silent_seconds"), "{case}: {text}");
        }
        seed += 20;
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dictionary_in_a_silent_registry_fails_its_build_and_holds_up_no_other() {
    let Some(stack) = Stack::start().await else { return };
    let listen = stack.path("impatient.sock");
    serve(&stack, &listen, 5, ClientConfig::default()).await;
    // Connections are taken by the kernel, and nobody reads from them.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = silent.local_addr().unwrap().to_string();
    let (stuck, free) = (many(&stack, "stuck", 200), many(&stack, "free", 210));
    let output = format!("{},chunk-dict={host}/dict:v1", stack.output("dictionary:stuck"));
    let stuck = run(stack.buildctl(&listen, &stuck, &["--output", &output]));
    let output = stack.output("dictionary:free");
    let free = run(stack.buildctl(&listen, &free, &["--output", &output]));
    let (stuck, free) = tokio::join!(stuck, free);
    free.success();
    let text = stuck.failure();
    assert!(text.contains(&host) && text.contains("not done within 5s"), "{text}");
    drop(silent);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_slow_and_gets_on_fails_no_build() {
    let Some(stack) = Stack::start().await else { return };
    const SECONDS: u64 = 6;
    let (bytes, rate) = (24 << 20, 2 << 20);
    assert!(
        bytes as u64 / u64::from(rate) > SECONDS,
        "one request has to take longer than the registry may be silent"
    );
    let host = slow(&stack.registry, rate).await;
    let context = stack.context("slow", "FROM scratch\nCOPY app /app\n", &[("app", &noise(220, bytes))]);
    // With the request that ends the blob, and before it.
    for (name, piece_bytes) in [("whole", 32 << 20), ("pieces", 16 << 20)] {
        let listen = stack.path(&format!("{name}.sock"));
        serve(&stack, &listen, SECONDS, in_pieces_of(piece_bytes)).await;
        let output = format!("type=nydus-cluster,name={host}/{name}:v1");
        run(stack.buildctl(&listen, &context, &["--output", &output])).await.success();
        stack.manifest(&format!("{name}:v1")).await;
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_blob_over_a_line_of_a_few_kilobytes_a_second_arrives() {
    let Some(stack) = Stack::start().await else { return };
    const SECONDS: u64 = 6;
    // All of it is in the kernel's hands at once.
    let (bytes, rate) = (160 << 10, 8 << 10);
    assert!(bytes as u64 / u64::from(rate) > 3 * SECONDS);
    let host = slow(&stack.registry, rate).await;
    let context = stack.context("small", "FROM scratch\nCOPY app /app\n", &[("app", &noise(230, bytes))]);
    let listen = stack.path("small.sock");
    serve(&stack, &listen, SECONDS, ClientConfig::default()).await;
    let output = format!("type=nydus-cluster,name={host}/small:v1");
    run(stack.buildctl(&listen, &context, &["--output", &output])).await.success();
    stack.manifest("small:v1").await;
    stack.stop().await;
}
