//! Blobs that are in another registry than the one that is pushed to.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod support;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use registry::server::{Server, ServerConfig};
use support::{Stack, wait_for};
use test_support::noise;
use tokio_util::sync::CancellationToken;

/// Three times as many as buildkitd asks for at once.
const LAYERS: u64 = 12;

async fn registry_at(stack: &Stack, address: Option<SocketAddr>, stop: CancellationToken) -> Server {
    let mut config = ServerConfig::new(stack.path("other"));
    config.listen.set_port(address.map_or(0, |address| address.port()));
    registry::server::serve(config, stop).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_has_died_is_waited_for_once_and_not_for_each_layer() {
    let Some(stack) = Stack::start().await else { return };
    let names: Vec<String> = (0..LAYERS).map(|number| format!("file{number}")).collect();
    let contents: Vec<Vec<u8>> = (0..LAYERS).map(|number| noise(90 + number * 2, 50_000)).collect();
    let files: Vec<(&str, &[u8])> =
        names.iter().map(String::as_str).zip(contents.iter().map(Vec::as_slice)).collect();
    let mut dockerfile = "FROM scratch\n".to_owned();
    for name in &names {
        writeln!(dockerfile, "COPY {name} /").unwrap();
    }
    let context = stack.context("context", &dockerfile, &files);

    let stop = CancellationToken::new();
    let other = registry_at(&stack, None, stop.clone()).await;
    let address = other.address();
    let output = format!("type=nydus-cluster,name={address}/app:v1");
    stack.build(&context, &["--output", &output]).await.success();
    stop.cancel();
    other.stopped().await;
    // Connections are taken by the kernel, and nobody reads from them.
    let mut hole = None;
    wait_for("the port", || {
        hole = std::net::TcpListener::bind(address).ok();
        hole.is_some()
    })
    .await;
    let begin = Instant::now();
    let text = stack.build(&context, &["--output", &stack.output("again:v1")]).await.success();
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    let converted: BTreeSet<&str> = text
        .split_whitespace()
        .skip_while(|word| *word != "converting")
        .filter(|word| word.starts_with("sha256:"))
        .collect();
    assert!(converted.len() as u64 >= LAYERS, "{text}");
    drop(hole);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_copied_from_another_registry_is_shown_while_it_moves() {
    let Some(stack) = Stack::start().await else { return };
    let base = noise(89, 2 << 20);
    let files: &[(&str, &[u8])] = &[("base", &base), ("app", b"one")];
    let context = stack.context("context", "FROM scratch\nCOPY base /base\nCOPY app /app\n", files);
    let stop = CancellationToken::new();
    let other = registry_at(&stack, None, stop.clone()).await;
    let output = format!("type=nydus-cluster,name={}/app:v1", other.address());
    stack.build(&context, &["--output", &output]).await.success();
    let text = stack.build(&context, &["--output", &stack.output("copied:v1")]).await.success();
    let (_, manifest) = stack.manifest("copied:v1").await;
    let blob: String = manifest["layers"][0]["digest"].as_str().unwrap().chars().take(19).collect();
    // As buildctl writes it: bytes done, and all of them.
    let line = text.lines().find(|line| line.contains(&format!("copying {blob} 2.10MB / 2.10MB")));
    assert!(line.is_some(), "{text}");
    assert!(!text.contains("converting"), "{text}");
    stop.cancel();
    stack.stop().await;
}
