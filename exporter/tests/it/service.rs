//! The exporter as a service: health, metrics, a line of the log for each build, and what systemd is told.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use exporter::ExporterConfig;
use h2::client::SendRequest;
use http::Request;
use serde_json::json;
use test_support::{Log, noise};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::support::hanging::Hanging;
use crate::support::{DEADLINE, Stack, is_oldest, run, wait_for};

const TWO_LAYERS: &str = "FROM scratch\nCOPY base /base\nCOPY app /app\n";

async fn connect(socket: &Path) -> SendRequest<Bytes> {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Asks for the health of `service`, and returns the status as it is on the wire, or the number of gRPC's error.
async fn health(client: SendRequest<Bytes>, service: &str) -> Result<u8, u32> {
    let request = Request::post("http://localhost/grpc.health.v1.Health/Check")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let mut message = vec![0, 0, 0, 0, service.len() as u8 + 2, 0x0a, service.len() as u8];
    message.extend_from_slice(service.as_bytes());
    let (response, mut send) = client.ready().await.unwrap().send_request(request, false).unwrap();
    send.send_data(message.into(), true).unwrap();
    let (head, mut body) = response.await.unwrap().into_parts();
    let number = |headers: &http::HeaderMap| {
        headers.get("grpc-status").map(|status| status.to_str().unwrap().parse::<u32>().unwrap())
    };
    if let Some(status) = number(&head.headers).filter(|status| *status != 0) {
        return Err(status);
    }
    let mut answer = BytesMut::new();
    while let Some(data) = body.data().await {
        answer.extend_from_slice(&data.unwrap());
    }
    match number(&body.trailers().await.unwrap().unwrap()) {
        Some(0) => {}
        status => return Err(status.unwrap()),
    }
    // Prefix, tag, number.
    answer.advance(5);
    assert_eq!((answer.len(), answer[0]), (2, 0x08));
    Ok(answer[1])
}

async fn scrape(address: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// The value of a metric, 0 if it was never counted.
fn value(scraped: &str, name: &str) -> f64 {
    let line = scraped.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_exporter_does_is_counted_logged_and_asked_for() {
    let log = Log::of_process();
    let Some(mut stack) = Stack::start().await else { return };
    let socket = stack.path("counted.sock");
    let config =
        ExporterConfig { metrics_listen: Some("127.0.0.1:0".parse().unwrap()), ..ExporterConfig::default() };
    stack.serve(&stack.path("buildkitd.sock"), &socket, config);
    wait_for("exporter", || socket.exists()).await;
    wait_for("metrics", || log.address("metrics are served").is_some()).await;
    let metrics = log.address("metrics are served").unwrap().to_string();
    let client = connect(&socket).await;
    assert_eq!(health(client.clone(), "nydus-cluster.exporter").await, Ok(1));
    // The oldest BuildKit has no such service, which is its own answer.
    let theirs = if is_oldest() { Err(12) } else { Ok(1) };
    assert_eq!(health(client.clone(), "").await, theirs);

    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(1, 2 << 20)), ("app", b"one")]);
    let build = async |context: &Path, output: &str| {
        run(stack.buildctl(&socket, context, &["--output", output])).await
    };
    build(&context, &stack.output("counted:v1")).await.success();
    build(&context, &stack.output("counted:v2")).await.success();
    build(&context, "type=nydus-cluster,name=127.0.0.1:1/counted:v3").await.failure();
    let broken = stack.context("broken", "FROM scratch\nCOPY absent /\n", &[]);
    build(&broken, &stack.output("counted:v4")).await.failure();

    // A connection that was closed is counted until that is noticed.
    let all_have_left = async {
        loop {
            let scraped = scrape(&metrics).await;
            if value(&scraped, "nydus_cluster_exporter_clients") == 1.0 {
                return scraped;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let scraped = timeout(DEADLINE, all_have_left).await.expect("the clients of the builds have left");
    let counted = |name: &str| value(&scraped, &format!("nydus_cluster_exporter_{name}"));
    assert_eq!(counted("builds_total{outcome=\"done\"}"), 2.0, "{scraped}");
    assert_eq!(counted("builds_total{outcome=\"failed\"}"), 2.0, "{scraped}");
    assert_eq!(counted("layers_total{way=\"converted\"}"), 2.0, "{scraped}");
    assert_eq!(counted("layers_total{way=\"known\"}"), 2.0, "{scraped}");
    assert!(counted("blob_bytes_total") > f64::from(2 << 20), "{scraped}");
    assert_eq!(counted("builds_running"), 0.0, "{scraped}");
    // Other tests of the process have builds of their own.
    let of_this = |words: &str| -> Vec<String> {
        log.lines(words).into_iter().filter(|line| line.contains("counted:")).collect()
    };
    let lines = of_this("build ended");
    let told = [("v1", "converted=2", "done"), ("v2", "converted=0", "done"), ("v3", "layers=0", "failed")];
    for (line, (tag, count, outcome)) in lines.iter().zip(told) {
        let words = [
            format!("counted:{tag}"),
            count.to_owned(),
            format!("outcome=\"{outcome}\""),
            "bytes=".to_owned(),
            "seconds=".to_owned(),
        ];
        for word in words {
            assert!(line.contains(&word), "{word} in {line}");
        }
    }
    assert_eq!(lines.len(), 4);
    // The line of a layer names its build, as the build's own does.
    let build = lines[0].split_whitespace().find(|word| word.starts_with("build=")).unwrap();
    let converted = of_this("layer converted");
    assert_eq!(converted.len(), 2);
    for line in converted {
        let says = |word: &str| line.split_whitespace().any(|one| one.starts_with(word));
        assert!(says(build) && line.contains("counted:v1") && says("layer=sha256:"), "{line}");
    }

    // The exporter's own health does not depend on buildkitd's; the empty name's does.
    stack.kill_buildkitd().await;
    assert_eq!(health(client.clone(), "nydus-cluster.exporter").await, Ok(1));
    assert_eq!(health(client.clone(), "").await, Err(14));
    stack.restart_buildkitd().await;
    assert_eq!(health(client, "").await, theirs);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_as_configured_and_no_file_gives_way_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let listen = dir.path().join("run/exporter.sock");
    let group = dir.path().metadata().unwrap().gid();
    let config = json!({
        "listen": listen, "listen_mode": "0660", "listen_group": group.to_string(), "layer_cache_dir": "",
    });
    let config: ExporterConfig = serde_json::from_value(config).unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(exporter::serve(config.clone(), stop.clone()));
    wait_for("exporter", || net::UnixStream::connect(&listen).is_ok()).await;
    let metadata = listen.metadata().unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (0o660, group));
    stop.cancel();
    timeout(STOPPED, serving).await.expect("the exporter stops").unwrap().unwrap();
    assert!(!listen.exists());

    std::fs::write(&listen, "precious").unwrap();
    let error = exporter::serve(config, CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains(listen.to_str().unwrap()), "{error}");
    assert_eq!(std::fs::read(&listen).unwrap(), b"precious");
}

/// What an exporter that was told to stop may take beyond what its settings say.
const STOPPED: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_only_watches_does_not_keep_the_exporter_from_stopping() {
    let Some(stack) = Stack::start().await else { return };
    let listen = stack.path("watched.sock");
    let exporter = stack.serve(&stack.path("buildkitd.sock"), &listen, ExporterConfig::default());
    wait_for("exporter", || listen.exists()).await;
    let seen = stack.path("monitor.log");
    let file = std::fs::File::create(&seen).unwrap();
    let mut monitor = stack.buildctl_command("watched.sock", &["debug", "monitor"]);
    let mut monitor = monitor.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
    let context = stack.context("context", "FROM scratch\nCOPY app /app\n", &[("app", b"one")]);
    stack.build(&context, &["--output", &stack.output("watched:v1")]).await.success();
    wait_for("the monitor", || std::fs::metadata(&seen).unwrap().len() > 0).await;
    assert!(monitor.try_wait().unwrap().is_none());

    stack.stop_exporter();
    timeout(STOPPED, exporter).await.expect("the exporter stops, with 300 s for builds").unwrap();
    timeout(STOPPED, monitor.wait()).await.expect("the monitor ends").unwrap();
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_does_not_end_is_given_up_when_the_drain_is_over_and_so_is_its_upload() {
    let Some(stack) = Stack::start().await else { return };
    let listen = stack.path("drained.sock");
    let config = ExporterConfig { drain_seconds: 1, ..ExporterConfig::default() };
    let exporter = stack.serve(&stack.path("buildkitd.sock"), &listen, config);
    wait_for("exporter", || listen.exists()).await;
    let hanging = Hanging::start(Duration::from_millis(500)).await;
    let context = stack.context("context", "FROM scratch\nCOPY app /app\n", &[("app", &noise(7, 4 << 20))]);
    let output = format!("type=nydus-cluster,name={}/stuck:v1", hanging.host);
    let mut buildctl = stack.buildctl(&listen, &context, &["--output", &output]);
    let mut buildctl = buildctl.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("upload", || hanging.is_stuck()).await;

    stack.stop_exporter();
    timeout(STOPPED, exporter).await.expect("the exporter stops").unwrap();
    assert!(!listen.exists());
    // Whoever ends the process now leaves nothing at the registry.
    assert_eq!(hanging.count(&["DELETE"]), hanging.count(&["POST"]));
    let status = timeout(STOPPED, buildctl.wait()).await.expect("buildctl ends").unwrap();
    assert!(!status.success());
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_says_nothing_does_not_keep_the_exporter_from_ending() {
    let dir = tempfile::tempdir().unwrap();
    let (listen, stop) = (dir.path().join("exporter.sock"), CancellationToken::new());
    let config = ExporterConfig {
        upstream: dir.path().join("buildkitd.sock").try_into().unwrap(),
        listen: listen.clone().try_into().unwrap(),
        layer_cache_dir: dir.path().join("layers"),
        ..ExporterConfig::default()
    };
    let serving = tokio::spawn(exporter::serve(config, stop.clone()));
    // Its socket is there before it is listened on.
    wait_for("exporter", || std::os::unix::net::UnixStream::connect(&listen).is_ok()).await;
    let silent = UnixStream::connect(&listen).await.unwrap();
    // Clients are accepted in the order in which they come.
    let other = connect(&listen).await;
    assert_eq!(health(other.clone(), "nydus-cluster.exporter").await, Ok(1));
    drop(other);
    stop.cancel();
    // Such a client has 10 of them until it is let go.
    timeout(Duration::from_secs(8), serving).await.expect("it has nothing to do").unwrap().unwrap();
    drop(silent);
}
