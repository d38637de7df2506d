//! What Prometheus finds of a node.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use fuse_daemon::control::BackendSpec;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use test_support::log::address_in;
use test_support::noise;

use crate::node::{Node, Process, bound};
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

/// A daemon that serves metrics, and where it does.
fn daemon(node: &Node, settings: &str) -> (Process, SocketAddr) {
    let config = format!("{settings}[daemon]\nmetrics_listen = \"127.0.0.1:0\"\n");
    fs::write(node.path("config.toml"), config + "[daemon.read]\ndeadline_seconds = 20\n").unwrap();
    let log = node.path("daemon.log");
    let output = File::create(&log).unwrap();
    let daemon = Process::spawn(node.daemon_command().stdout(output.try_clone().unwrap()).stderr(output));
    node.daemon().wait();
    let address = eventually("metrics are served", || {
        address_in(&fs::read_to_string(&log).unwrap(), "metrics are served")
    });
    (daemon, address)
}

fn assert_documented(metrics: &str) {
    for line in metrics.lines() {
        let name = line.split(['{', ' ']).next().unwrap();
        let name = ["_bucket", "_sum", "_count"].iter().find_map(|of| name.strip_suffix(of)).unwrap_or(name);
        assert!(DOCUMENTED.contains(&format!("`{name}`")), "docs/node.md does not tell of {name}");
    }
}

#[test]
fn the_daemon_counts_what_is_read_and_documents_all_names() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let (content, lost) = (noise(1, 300_000), noise(2, 300_000));
    let image = node.image("i", &[("file", &content)]);
    let damaged = node.image("damaged", &[("file", &lost)]);
    damaged.corrupt();
    let (_daemon, address) = daemon(&node, "");
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
    assert_documented(&metrics);
}

/// A registry that shows nothing to anybody: where it is.
fn refusing_registry() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut asked = Vec::new();
            // Requests of readers have no body.
            while !asked.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if stream.read(&mut byte).unwrap_or(0) == 0 {
                    break;
                }
                asked.push(byte[0]);
            }
            let challenge = "WWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\nConnection: close";
            let _ = write!(stream, "HTTP/1.1 401 Unauthorized\r\n{challenge}\r\n\r\n");
        }
    });
    address
}

/// What is said of a registry's host: the value of the metric with this name, and with one more label if there is a comma.
fn of_host(metrics: &str, host: &str, name: &str) -> f64 {
    let (name, more) =
        name.split_once(',').map_or((name, String::new()), |(name, more)| (name, format!(",{more}")));
    value(metrics, &format!("nydus_cluster_daemon_{name}{{kind=\"registry\",host=\"{host}\"{more}}}"))
}

#[test]
fn sources_are_counted_by_host_over_workers_and_mounts_that_are_gone() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let (first, second) = (noise(3, 300_000), noise(4, 300_000));
    let image = node.image("first", &[("file", &first)]);
    let next = node.image("second", &[("file", &second)]);
    // Nobody listens there.
    let bound = bound();
    let dead = bound.local_addr().unwrap().to_string();
    let (refusing, living) = (refusing_registry().to_string(), node.registry().to_string());
    let settings = "[registry.retries]\nattempts = 2\nfirst_delay_seconds = 0.05\n";
    let (_daemon, address) = daemon(&node, settings);
    let backends = [&dead, &refusing, &living]
        .map(|host| BackendSpec::Registry { repository: format!("{host}/first") })
        .to_vec();
    let place = node.daemon().try_mount_from("first", &image, backends).unwrap();
    assert!(fs::read(place.join("file")).unwrap() == first);

    let metrics = eventually("it is counted who answers and who does not", || {
        let metrics = scrape(address);
        let is_told = of_host(&metrics, &dead, "sources,state=\"fails\"") == 1.0
            && of_host(&metrics, &refusing, "sources,state=\"fails\"") == 1.0
            && of_host(&metrics, &living, "sources,state=\"answers\"") == 1.0;
        is_told.then_some(metrics)
    });
    let at_least_one = [
        (&dead, "source_requests_total"),
        (&dead, "source_retries_total"),
        (&dead, "source_failures_total,cause=\"other\""),
        (&refusing, "source_failures_total,cause=\"denied\""),
        (&refusing, "source_credentials_refused_total"),
        (&living, "source_answer_seconds_count"),
    ];
    for (host, name) in at_least_one {
        assert!(of_host(&metrics, host, name) >= 1.0, "{name} of {host} in {metrics}");
    }
    for name in ["source_retries_total", "source_failures_total,cause=\"other\"", "sources,state=\"fails\""] {
        assert_eq!(of_host(&metrics, &living, name), 0.0, "{name} in {metrics}");
    }
    let bytes = of_host(&metrics, &living, "source_bytes_total");
    assert!(bytes >= first.len() as f64, "{metrics}");
    assert!(!metrics.contains("/first"), "repositories are as many as whoever runs images likes: {metrics}");
    assert_documented(&metrics);

    // Another worker begins to count at nothing, and a mount that is gone has no sources: what came, came.
    let worker = node.daemon().worker().pid.unwrap();
    kill(Pid::from_raw(worker.try_into().unwrap()), Signal::SIGKILL).unwrap();
    let place = node.daemon().mount("second", &next);
    assert!(fs::read(place.join("file")).unwrap() == second);
    node.daemon().unmount("first");
    node.daemon().unmount("second");
    // A worker that is too busy to answer is told of as it was.
    eventually("all bytes are counted, and no sources", || {
        let metrics = scrape(address);
        let sum = of_host(&metrics, &living, "source_bytes_total");
        let number = |state| of_host(&metrics, &living, &format!("sources,state=\"{state}\""));
        let has_none =
            ["silent", "fails", "unknown", "answers", "unasked"].iter().all(|state| number(state) == 0.0);
        (sum >= bytes + second.len() as f64 && has_none).then_some(())
    });
}
