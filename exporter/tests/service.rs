//! The exporter as a service: health, metrics, a line of the log for each build, and what systemd is told.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod support;

use std::path::Path;

use bytes::{Buf, Bytes, BytesMut};
use exporter::ExporterConfig;
use h2::client::SendRequest;
use http::Request;
use support::{Stack, wait_for};
use test_support::{Log, noise};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

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
    assert_eq!(health(client.clone(), "").await, Ok(1));

    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(1, 2 << 20)), ("app", b"one")]);
    let build = async |context: &Path, output: &str| {
        support::run(stack.buildctl(&socket, context, &["--output", output])).await
    };
    build(&context, &stack.output("counted:v1")).await.success();
    build(&context, &stack.output("counted:v2")).await.success();
    build(&context, "type=nydus-cluster,name=127.0.0.1:1/counted:v3").await.failure();
    let broken = stack.context("broken", "FROM scratch\nCOPY absent /\n", &[]);
    build(&broken, &stack.output("counted:v4")).await.failure();

    let scraped = scrape(&metrics).await;
    let counted = |name: &str| value(&scraped, &format!("nydus_cluster_exporter_{name}"));
    assert_eq!(counted("builds_total{outcome=\"done\"}"), 2.0, "{scraped}");
    assert_eq!(counted("builds_total{outcome=\"failed\"}"), 2.0, "{scraped}");
    assert_eq!(counted("layers_total{way=\"converted\"}"), 2.0, "{scraped}");
    assert_eq!(counted("layers_total{way=\"known\"}"), 2.0, "{scraped}");
    assert!(counted("blob_bytes_total") > f64::from(2 << 20), "{scraped}");
    assert_eq!(counted("builds_running"), 0.0, "{scraped}");
    assert_eq!(counted("clients"), 1.0, "{scraped}");
    let lines = log.lines("build ended");
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

    // The exporter's own health does not depend on buildkitd's; the empty name's does.
    stack.kill_buildkitd().await;
    assert_eq!(health(client.clone(), "nydus-cluster.exporter").await, Ok(1));
    assert_eq!(health(client.clone(), "").await, Err(14));
    stack.restart_buildkitd().await;
    assert_eq!(health(client, "").await, Ok(1));
    stack.stop().await;
}
