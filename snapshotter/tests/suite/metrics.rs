//! What Prometheus is told.

use std::net::SocketAddr;

use test_support::Log;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

use crate::fake_daemon;
use crate::harness::{Harness, code};
use crate::needs_root;
use crate::nydus::Node;

async fn scrape(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// The value of a metric; `None` if it is not there.
fn value(scraped: &str, name: &str) -> Option<f64> {
    let line = scraped.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map(|value| value.parse().unwrap())
}

#[tokio::test]
async fn calls_images_and_daemons_are_counted() {
    needs_root!();
    let (log, _guard) = Log::of_thread();
    let harness = Harness::start_with(|dir, config| {
        config.daemon = fake_daemon::config(dir);
        config.metrics_listen = Some("127.0.0.1:0".parse().unwrap());
    })
    .await;
    let node = Node { harness };
    let upper = node.pull("r/i:1", 'a', &node.content("i")).await;
    node.harness.prepare("container", &upper).await.unwrap();
    assert_eq!(code(node.harness.prepare("container", &upper).await), Code::AlreadyExists);
    assert_eq!(code(node.harness.stat("nobody").await), Code::NotFound);
    let name = |name: &str| format!("nydus_cluster_snapshotter_{name}");
    let scraped = scrape(log.address("metrics are served").unwrap()).await;
    let expected = [
        ("calls_total{call=\"stat\",code=\"NOT_FOUND\"}", 1.0),
        ("call_seconds_count{call=\"commit\"}", 1.0),
        ("images_mounted", 1.0),
        ("daemon_ready", 1.0),
        ("daemons_total", 1.0),
    ];
    for (metric, expected) in expected {
        assert_eq!(value(&scraped, &name(metric)), Some(expected), "{metric} in {scraped}");
    }
    let counted = |metric: &str| value(&scraped, &name(metric)).unwrap_or_default();
    assert!(counted("snapshots") >= 2.0, "{scraped}");
    assert!(counted("calls_total{call=\"prepare\",code=\"OK\"}") >= 2.0, "{scraped}");
    assert!(counted("calls_total{call=\"prepare\",code=\"ALREADY_EXISTS\"}") >= 1.0, "{scraped}");
}
