//! Addresses of hosts, in a process without files: by what it was told of `/etc/resolv.conf` and `/etc/hosts`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};

use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Hosts, TokioResolver};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use serde::{Deserialize, Serialize};

/// Files are not larger.
const FILE_LIMIT_BYTES: usize = 1 << 20;

/// The texts of the system's files.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NameFiles {
    resolv_conf: String,
    hosts: String,
}

impl NameFiles {
    /// Reads them. What is not there is empty.
    pub(super) fn read() -> Self {
        let text = |path| {
            let bytes = std::fs::read(path).unwrap_or_default();
            String::from_utf8_lossy(bytes.get(..FILE_LIMIT_BYTES).unwrap_or(&bytes)).into_owned()
        };
        Self { resolv_conf: text("/etc/resolv.conf"), hosts: text("/etc/hosts") }
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct HostNames(RwLock<Option<Arc<TokioResolver>>>);

impl HostNames {
    /// Looks up by these files from now on.
    pub(super) fn set(&self, files: &NameFiles) {
        let resolver = resolver(files).map_err(|error| {
            tracing::warn!(error = crate::describe(&error), "names of hosts cannot be looked up");
        });
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = resolver.ok().map(Arc::new);
    }
}

fn resolver(files: &NameFiles) -> Result<TokioResolver, hickory_resolver::net::NetError> {
    // As the C library has it where no server is named.
    let local = || {
        let server = NameServerConfig::udp_and_tcp(IpAddr::from([127, 0, 0, 1]));
        (ResolverConfig::from_parts(None, Vec::new(), vec![server]), ResolverOpts::default())
    };
    let (config, mut options) = parse_resolv_conf(&files.resolv_conf).unwrap_or_else(|_| local());
    options.use_hosts_file = ResolveHosts::Never;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let mut resolver = builder.with_options(options).build()?;
    let mut hosts = Hosts::default();
    if let Err(error) = hosts.read_hosts_conf(files.hosts.as_bytes()) {
        tracing::warn!(%error, "/etc/hosts is not used");
    }
    resolver.set_hosts(Arc::new(hosts));
    Ok(resolver)
}

impl Resolve for HostNames {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(async move {
            let resolver = resolver.ok_or_else(|| io::Error::other("names of hosts cannot be looked up"))?;
            let found = resolver.lookup_ip(name.as_str()).await?;
            let addresses: Vec<_> = found.iter().map(|address| SocketAddr::new(address, 0)).collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use test_support::Need;

    use super::*;

    fn files(resolv_conf: &str, hosts: &str) -> NameFiles {
        NameFiles { resolv_conf: resolv_conf.to_owned(), hosts: hosts.to_owned() }
    }

    async fn addresses(names: &HostNames, host: &str) -> Result<Vec<String>, String> {
        let found = names.resolve(host.parse().unwrap()).await.map_err(|error| error.to_string())?;
        Ok(found.map(|address| address.ip().to_string()).collect())
    }

    #[tokio::test]
    async fn hosts_are_found_by_the_file_of_hosts_which_may_change() {
        let names = HostNames::default();
        names.set(&files("nameserver 127.0.0.1\n", "10.1.2.3 registry.test other\n"));
        assert_eq!(addresses(&names, "registry.test").await.unwrap(), ["10.1.2.3"]);
        names.set(&files("", "10.1.2.4 registry.test\nfd00::1 registry.test\n"));
        let mut found = addresses(&names, "registry.test").await.unwrap();
        found.sort();
        assert_eq!(found, ["10.1.2.4", "fd00::1"]);
    }

    #[tokio::test]
    async fn without_settings_nothing_is_found_and_nothing_hangs() {
        assert!(addresses(&HostNames::default(), "registry.test").await.is_err());
    }

    /// Answers each question with an address, if it is for one of version 4.
    fn answer(socket: &UdpSocket) {
        let mut question = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut question) {
            let mut reply = question[..len].to_vec();
            // Header: an answer, recursion available, one record or none; no additional records.
            (reply[2], reply[3]) = (0x81, 0x80);
            // The question ends with a zero, its type and its class.
            let end = 12 + reply[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
            let is_v4 = reply[end - 3] == 1;
            reply[6..12].copy_from_slice(&[0, u8::from(is_v4), 0, 0, 0, 0]);
            reply.truncate(end);
            if is_v4 {
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 9, 8, 7]);
            }
            socket.send_to(&reply, from).unwrap();
        }
    }

    #[tokio::test]
    async fn other_names_are_asked_of_the_server_of_resolv_conf() {
        // Port 53 of a loopback address that no other run of this test has, where this may be had.
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let address = IpAddr::from([127, 53, high, low]);
        let Ok(socket) = UdpSocket::bind((address, 53)) else {
            test_support::has(&[Need::Other("root, to listen on port 53", false)]);
            return;
        };
        std::thread::spawn(move || answer(&socket));
        let names = HostNames::default();
        names.set(&files(&format!("nameserver {address}\noptions timeout:2\n"), ""));
        assert_eq!(addresses(&names, "registry.test").await.unwrap(), ["10.9.8.7"]);
    }
}
