//! Launches of a cluster, measured: seconds until it serves, and what left the registry until then.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::access_log::{Request, bytes_sent};
use crate::cluster_image::{ClusterImage, Pull, Services};
use crate::cluster_lab::ClusterLab;
use crate::process::Server;

/// How long all of it may take on a loaded host.
const DEADLINE: Duration = Duration::from_secs(900);
/// How often the cluster is asked: seldom enough to cost it little.
const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// What one launch took.
#[derive(Debug, Clone, Serialize)]
pub struct LaunchFigures {
    /// The cluster image and all container images in the registry, blobs that they share once.
    pub stored_bytes: u64,
    /// What the registry sent until all pods served.
    pub registry_bytes: u64,
    /// What of this was blobs of the services' images alone.
    pub services_bytes: u64,
    /// Seconds until all nodes were ready.
    pub ready_s: f64,
    /// Seconds until all pods served.
    pub serving_s: f64,
}

/// What a launch reads from.
#[derive(Debug, Default)]
pub struct Stored {
    /// How many bytes it has.
    pub bytes: u64,
    /// Digests of the blobs of the services' images.
    pub services_blobs: BTreeSet<String>,
}

impl Stored {
    /// What the registry has.
    pub fn of(image: &ClusterImage, services: Services, pull: Pull) -> Result<Self> {
        let services_blobs = image.blobs_of_services(services, pull)?;
        Ok(Self { bytes: image.stored_bytes(services, pull)?, services_blobs })
    }

    /// What of `requests` was blobs of the services' images: whoever asked, in whichever repository, for all of a blob or a part.
    fn services_bytes(&self, requests: &[Request]) -> u64 {
        let is_services =
            |request: &&Request| request.blob().is_some_and(|blob| self.services_blobs.contains(blob));
        requests.iter().filter(is_services).map(|request| request.bytes_sent).sum()
    }
}

/// Launches with `command`, whose output goes to a file in `dir`, and measures until all pods serve.
///
/// # Errors
///
/// If the launch fails, with what it said, or takes longer than a loaded host would.
pub fn measure(lab: &ClusterLab, dir: &Path, command: Command, stored: &Stored) -> Result<LaunchFigures> {
    // What the run before wrote and removed is not on the disk yet.
    nix::unistd::sync();
    let log = lab.registry().access_log();
    let mark = log.mark()?;
    let start = Instant::now();
    let mut run = Server::spawn("cluster run", command, dir.join("cluster-run.log"))?;
    let said = |run: &Server| format!("cluster run said:\n{}", run.log_text());
    // Before there is a cluster, nobody answers.
    ask("all nodes are ready", &mut run, || Ok(lab.nodes_ready().unwrap_or(0) == lab.machines().all().len()))
        .with_context(|| said(&run))?;
    let ready_s = start.elapsed().as_secs_f64();
    let mut ended = None;
    while ended.is_none() && start.elapsed() < DEADLINE {
        ended = run.exited()?;
        thread::sleep(Duration::from_millis(50));
    }
    if !ended.is_some_and(|status| status.success()) {
        bail!("{}", said(&run));
    }
    lab.wait_serving(DEADLINE)?;
    let serving_s = start.elapsed().as_secs_f64();
    let requests = log.since(mark)?;
    let (stored_bytes, registry_bytes) = (stored.bytes, bytes_sent(&requests));
    let services_bytes = stored.services_bytes(&requests);
    Ok(LaunchFigures { stored_bytes, registry_bytes, services_bytes, ready_s, serving_s })
}

fn ask(what: &str, run: &mut Server, condition: impl Fn() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !condition()? {
        if run.exited()?.is_some_and(|status| !status.success()) {
            bail!("cluster run failed before {what}");
        }
        if start.elapsed() > DEADLINE {
            bail!("{what}: not so within {DEADLINE:?}");
        }
        thread::sleep(ASK_INTERVAL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::access_log::AccessLog;

    /// A blob of a service's image, and one that another container image or the cluster image has.
    const SERVICES: &str = "sha256:3c8fad0281a3542598da5a83c2a443b6af171c5d2d8de40823f54a50fbba6b6b";
    const OTHERS: &str = "sha256:8b8fda5e955956de8f96e7871f7eaaa558fc336207a5b64d2ea2e46620641cde";

    /// A line as the registry writes it.
    fn line(method: &str, path: &str, status: u16, range: &str, bytes_sent: u64) -> String {
        let path = format!("/v2/cluster/five-services/{path}");
        format!(
            r#"{{"method":"{method}","path":"{path}","query":"ns=registry.example","status":{status},"range":{range},"bytes_sent":{bytes_sent},"bytes_received":0,"milliseconds":0,"agent":"nydus-cluster/0.1.0"}}"#
        )
    }

    #[test]
    fn what_was_sent_of_services_blobs_is_for_services_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let log = AccessLog::new(dir.path().join("access.log"));
        let [services, others] = [SERVICES, OTHERS].map(|digest| format!("blobs/{digest}"));
        let before = [line("GET", &services, 200, "null", 1_000_000)];
        fs::write(log.path(), before.join("\n") + "\n").unwrap();
        let mark = log.mark().unwrap();
        let during = [
            // For services: a part of a blob, the same for a further node, and the whole.
            line("GET", &services, 206, r#""bytes=3249-3831""#, 583),
            line("GET", &services, 206, r#""bytes=3249-3831""#, 583),
            line("GET", &services, 200, "null", 4000),
            line("HEAD", &services, 200, "null", 0),
            // Not: blobs of others, and documents, even those of services.
            line("GET", &others, 200, "null", 3077),
            line("GET", &others, 206, r#""bytes=0-1142""#, 1143),
            line("GET", "manifests/v1", 200, "null", 4448),
            line("GET", &format!("manifests/{SERVICES}"), 200, "null", 869),
            line("GET", &format!("referrers/{SERVICES}"), 200, "null", 90),
        ];
        let text = fs::read_to_string(log.path()).unwrap() + &during.join("\n") + "\n";
        fs::write(log.path(), text).unwrap();
        let requests = log.since(mark).unwrap();
        let stored = Stored { bytes: 0, services_blobs: [SERVICES.to_owned()].into() };
        assert_eq!(stored.services_bytes(&requests), 583 + 583 + 4000);
        assert_eq!(bytes_sent(&requests), 583 + 583 + 4000 + 3077 + 1143 + 4448 + 869 + 90);
        // Of a package, nothing in the registry is the services'.
        assert_eq!(Stored::default().services_bytes(&requests), 0);
    }
}
