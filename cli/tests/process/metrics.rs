//! What Prometheus finds of a node.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use test_support::log::address_in;
use test_support::noise;

use crate::node::{Node, Process};
use crate::{can_mount, eventually};

const DOCUMENTED: &str = include_str!("../../../docs/node.md");

/// The metrics, without what describes them.
fn scrape(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    answer.lines().filter(|line| line.starts_with("nydus_cluster_")).map(|line| format!("{line}\n")).collect()
}

/// A metric's value; 0 if there is none yet.
fn value(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

#[test]
fn the_daemon_counts_what_is_read_and_documents_all_names() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let config = "[daemon]\nmetrics_listen = \"127.0.0.1:0\"\n[daemon.read]\ndeadline_seconds = 5\n";
    fs::write(node.path("config.toml"), config).unwrap();
    let (content, lost) = (noise(1, 300_000), noise(2, 300_000));
    let image = node.image("i", &[("file", &content)]);
    let damaged = node.image("damaged", &[("file", &lost)]);
    damaged.corrupt();
    let log = node.path("daemon.log");
    let output = File::create(&log).unwrap();
    let _daemon = Process::spawn(node.daemon_command().stdout(output.try_clone().unwrap()).stderr(output));
    node.daemon().wait();
    let address = eventually("metrics are served", || {
        address_in(&fs::read_to_string(&log).unwrap(), "metrics are served")
    });
    let none = scrape(address);
    assert_eq!(value(&none, "nydus_cluster_daemon_reads_waited_total"), 0.0);

    let place = node.daemon().mount("i", &image);
    assert!(fs::read(place.join("file")).unwrap() == content);
    let place = node.daemon().mount("damaged", &damaged);
    assert!(fs::read(place.join("file")).is_err());
    let metrics = scrape(address);
    let at_least = [
        ("mounts", 2.0),
        ("reads_waited_total", 2.0),
        ("reads_failed_total", 1.0),
        ("read_wait_seconds_count", 2.0),
        // Of 64 KiB.
        ("chunks_total{outcome=\"kept\"}", 5.0),
        ("chunks_total{outcome=\"corrupt\"}", 1.0),
        ("chunks_total{outcome=\"failed\"}", 1.0),
        ("chunk_bytes_total", 300_000.0),
        ("cached_blobs", 1.0),
        ("cache_bytes", 300_000.0),
        ("worker_ready", 1.0),
    ];
    for (name, least) in at_least {
        assert!(value(&metrics, &format!("nydus_cluster_daemon_{name}")) >= least, "{name} in {metrics}");
    }
    for line in metrics.lines() {
        let name = line.split(['{', ' ']).next().unwrap();
        let name = ["_bucket", "_sum", "_count"].iter().find_map(|of| name.strip_suffix(of)).unwrap_or(name);
        assert!(DOCUMENTED.contains(&format!("`{name}`")), "docs/node.md does not tell of {name}");
    }
}
