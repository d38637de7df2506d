//! The cluster image and all that it needs, in a directory.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::{ClusterImage, Services};
use crate::{peers, process};

/// Hundreds of megabytes, on a loaded host.
const DEADLINE: Duration = Duration::from_secs(300);

impl ClusterImage {
    /// Writes a package of the cluster image `image`, with container images as they were saved, to a file or to the directory that is there.
    pub fn package(&self, services: Services, image: &str, place: &Path) -> Result<()> {
        let run = tempfile::tempdir()?;
        let registry = self.serve(&run.path().join("registry"), IpAddr::V4(Ipv4Addr::LOCALHOST))?;
        if image != services.image() {
            let at = |name: String| format!("{}/{name}", registry.address());
            let mut copy = Command::new(peers::nydus_cluster()?);
            copy.args(["registry", "copy", &at(services.saved()), &at(format!("{image}-images"))]);
            process::run_within(&mut copy, DEADLINE)?;
        }
        let certs = run.path().join("certs.d");
        for host in ["registry.k8s.io", "registry.example"] {
            fs::create_dir_all(certs.join(host))?;
            let url = format!("http://{}/v2/{host}", registry.address());
            let text = format!("[host.\"{url}\"]\n  override_path = true\n");
            fs::write(certs.join(host).join("hosts.toml"), text)?;
        }
        let config = run.path().join("config.toml");
        fs::write(&config, format!("[registry]\ncerts_dir = \"{}\"\n", certs.display()))?;
        let mut command = Command::new(peers::nydus_cluster()?);
        command.arg("--config").arg(config).args(["cluster", "save", image, "--output"]);
        process::run_within(command.arg(place), DEADLINE).map(drop)
    }
}
