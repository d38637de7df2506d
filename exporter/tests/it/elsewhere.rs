//! Blobs that are in another registry than the one that is pushed to.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use registry::server::{Server, ServerConfig};
use test_support::noise;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::http1::{Head, answer};
use crate::support::{Stack, wait_for};

/// Layers that buildkitd asks for at once.
const SLOTS: u64 = 4;
const LAYERS: u64 = 3 * SLOTS;

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
    let mut hole = None;
    wait_for("the port", || {
        hole = std::net::TcpListener::bind(address).ok();
        hole.is_some()
    })
    .await;
    let hole = hole.unwrap();
    hole.set_nonblocking(true).unwrap();
    let hole = TcpListener::from_std(hole).unwrap();
    // Connections are taken, and nobody reads from them.
    let taken = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&taken);
    let taking = tokio::spawn(async move {
        while let Ok((stream, _)) = hole.accept().await {
            all.lock().unwrap().push(stream);
        }
    });
    let text = stack.build(&context, &["--output", &stack.output("again:v1")]).await.success();
    // Those that were asked for at first have waited, and none after them.
    let asked = taken.lock().unwrap().len() as u64;
    assert!((1..=SLOTS).contains(&asked), "{asked} connections: {text}");
    let converted: BTreeSet<&str> = text
        .split_whitespace()
        .skip_while(|word| *word != "converting")
        .filter(|word| word.starts_with("sha256:"))
        .collect();
    assert!(converted.len() as u64 >= LAYERS, "{text}");
    taking.abort();
    stack.stop().await;
}

/// Stands before `server` and answers whoever wants a blob mounted with `refusal`.
async fn refusing_mounts(server: &str, refusal: &'static str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (host, server) = (listener.local_addr().unwrap().to_string(), server.to_owned());
    let refused = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refused);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (server, count) = (server.clone(), Arc::clone(&count));
            tokio::spawn(async move {
                let Some(head) = Head::read(&mut stream).await else { return };
                if head.path.contains("mount=") {
                    count.fetch_add(1, Ordering::SeqCst);
                    return answer(&mut stream, refusal, "").await;
                }
                head.forward(stream, &server).await;
            });
        }
    });
    (host, refused)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_may_not_be_mounted_is_copied() {
    let Some(stack) = Stack::start().await else { return };
    for (seed, refusal) in [(85, "403 Forbidden"), (87, "401 Unauthorized")] {
        let case = &refusal[..3];
        let (host, refused) = refusing_mounts(&stack.registry, refusal).await;
        let base = noise(seed, 2 << 20);
        let context = stack.context(case, "FROM scratch\nCOPY base /base\n", &[("base", &base)]);
        let output = |name: &str| format!("type=nydus-cluster,name={host}/{name}");
        stack.build(&context, &["--output", &output(&format!("from-{case}:v1"))]).await.success();
        let text = stack.build(&context, &["--output", &output(&format!("to-{case}:v1"))]).await.success();
        assert!(refused.load(Ordering::SeqCst) > 0, "{case}: {text}");
        assert!(text.contains("copying sha256:") && !text.contains("converting"), "{case}: {text}");
        let [from, to] = [
            stack.manifest(&format!("from-{case}:v1")).await,
            stack.manifest(&format!("to-{case}:v1")).await,
        ];
        assert_eq!(from.0, to.0);
        // It is there, and not only named.
        let digest = to.1["layers"][0]["digest"].as_str().unwrap();
        assert!(!stack.blob(&format!("to-{case}:v1"), digest).await.is_empty());
    }
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
