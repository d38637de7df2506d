//! A package on a node of the control plane, which serves it to all nodes: the cluster image and all container images.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::commands::systemctl;
use super::image::UNITS;
use super::ledger::{self, Ledger};
use super::{ports, unit};
use crate::launch::error::LaunchError;
use crate::launch::task::{ServedPackage, Site};

/// The unit that serves it.
pub(super) const UNIT: &str = "nydus-cluster-package.service";

/// Where the port is kept, so that it stays the same.
const PORT_FILE: &str = "package-port";
/// An address of no network (RFC 5737): nothing is sent to it.
const FAR: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);
/// How long those that serve may take until they answer: they open packages that may be large.
const SERVING_DEADLINE: Duration = Duration::from_secs(120);
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Where this node can serve. It says the same each time.
pub(super) fn site(dir: &Path) -> Result<Site, LaunchError> {
    let file = dir.join(PORT_FILE);
    let kept = match fs::read_to_string(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        text => text.map_err(LaunchError::io(&file))?.trim().parse().ok(),
    };
    let port = match kept {
        Some(port) => port,
        None => {
            let port = ports::free(Ipv4Addr::UNSPECIFIED, ports::PACKAGE)?;
            ledger::write(&file, format!("{port}\n").as_bytes(), 0o644)?;
            port
        }
    };
    Ok(Site { address: own_address(), port })
}

/// The address by which this node would go to other networks.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(FAR).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// Serves the package, from now on and after each boot.
pub(super) fn serve(ledger: &mut Ledger, program: &Path, package: &ServedPackage) -> Result<(), LaunchError> {
    let (file, text) = (Path::new(UNITS).join(UNIT), unit(program, package));
    let restart = || {
        systemctl(&["daemon-reload"])?;
        // One that runs may serve another package.
        systemctl(&["try-restart", UNIT])
    };
    ledger.put_for(UNIT, |ledger| ledger.file(&file, &text), restart)?;
    systemctl(&["enable", "--now", UNIT])
}

/// Waits until one of those that serve the package can be connected to.
pub(super) fn wait(serving: &[String]) -> Result<(), LaunchError> {
    let start = Instant::now();
    while !serving.is_empty() {
        let mut last = String::new();
        for site in serving {
            match connect(site) {
                Ok(()) => return Ok(()),
                Err(error) => last = format!("{site}: {error}"),
            }
        }
        if start.elapsed() > SERVING_DEADLINE {
            let reason = format!(
                "no node of the control plane served the package within {} seconds; {last}",
                SERVING_DEADLINE.as_secs()
            );
            return Err(LaunchError::wrong(serving.join(", "), reason));
        }
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

fn connect(site: &str) -> io::Result<()> {
    let address = site.to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound)?;
    TcpStream::connect_timeout(&address, CONNECT_DEADLINE).map(drop)
}

fn unit(program: &Path, package: &ServedPackage) -> String {
    let (program, file, listen) = (program.display(), package.file.display(), package.listen);
    unit::serving(
        "nydus-cluster registry serve, with the package of the cluster",
        "After=network-online.target\nBefore=nydus-cluster-image.service containerd.service",
        &format!("{program} registry serve --package {file} --listen {listen}"),
    )
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_node_says_the_same_port_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = site(dir.path()).unwrap();
        assert!(ports::PACKAGE.contains(&first.port));
        // Also while something listens on it, which is what serves the package.
        let _taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, first.port)).unwrap();
        assert_eq!(site(dir.path()).unwrap(), first);
        assert!(wait(&[format!("127.0.0.1:{}", first.port)]).is_ok());
        assert!(wait(&[]).is_ok());
    }
}
