//! containerd's settings of registries: folders with one folder a host, `HOST_PORT_`, `HOST` or `_default`, each with a file
//! `hosts.toml`. They are read as containerd reads them, so that what it can pull can be read here.
//!
//! Of several such folders the first that has one of those three counts for a host, and nothing of the others: `_default` in the
//! first hides a folder of the host's own in the second (`hostDirFromRoots` of containerd 2.4).
//!
//! Of each host on the list there is used: its URL, `capabilities`, `ca`, `client`, `skip_verify`, `header`, `override_path`.
//! `dial_timeout` is not: the client has deadlines of its own.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue};
use reqwest::Url;
use serde::Deserialize;
use toml::Spanned;

use super::access::{ClientCertificate, Connection, Pem};

/// Files are read again after this: they are changed by hand, and each read of a blob asks for them.
pub(super) const KNOWN_FOR: Duration = Duration::from_secs(5);
/// No such file is larger.
const FILE_LIMIT_BYTES: u64 = 1 << 20;

/// The folders of such settings.
#[derive(Debug)]
pub(super) struct CertsDir {
    /// In the order in which they are looked into.
    roots: Vec<PathBuf>,
    known: Mutex<HashMap<String, (Instant, Arc<Hosts>)>>,
}

/// Where a registry's repositories are read, in order. Empty: from itself, by the defaults.
pub(super) type Hosts = Vec<ListedHost>;

/// One place to read from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ListedHost {
    /// Scheme and authority; `None` is the registry itself.
    pub(super) base: Option<String>,
    /// Path of the API there: `/v2`, unless it is overridden.
    pub(super) api: String,
    /// How it is reached.
    pub(super) connection: Arc<Connection>,
}

/// A file `hosts.toml`.
#[derive(Deserialize)]
struct HostsFile {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<String, Spanned<HostFile>>,
    #[serde(flatten)]
    itself: HostFile,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HostFile {
    capabilities: Vec<String>,
    ca: OneOrMany,
    client: Option<ClientCertificates>,
    skip_verify: Option<bool>,
    header: BTreeMap<String, OneOrMany>,
    override_path: bool,
}

#[derive(Default, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ClientCertificates {
    One(String),
    Many(Vec<Pair>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Pair {
    Both(String),
    Apart([String; 2]),
}

impl CertsDir {
    pub(super) fn new(roots: Vec<PathBuf>) -> Self {
        Self { roots, known: Mutex::default() }
    }

    /// Where to read the repositories of `host`. Settings that cannot be read count as none, and are logged.
    pub(super) fn hosts(&self, host: &str) -> Arc<Hosts> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, hosts)) = known.get(host)
            && read.elapsed() < KNOWN_FOR
        {
            return Arc::clone(hosts);
        }
        let hosts = read(&self.roots, host).unwrap_or_else(|(path, reason)| {
            tracing::warn!(registry = host, path = %path.display(), reason, "settings of a registry are not used");
            Hosts::new()
        });
        let hosts = Arc::new(hosts);
        known.insert(host.to_owned(), (Instant::now(), Arc::clone(&hosts)));
        hosts
    }
}

/// What the first folder that is there for `host` says; nothing if none is.
fn read(roots: &[PathBuf], host: &str) -> Result<Hosts, (PathBuf, String)> {
    let with_port = host.rsplit_once(':').map(|(name, port)| format!("{name}_{port}_"));
    let names: Vec<&str> = with_port.as_deref().into_iter().chain([host, "_default"]).collect();
    for folder in roots.iter().flat_map(|root| names.iter().map(move |name| root.join(name))) {
        let file = folder.join("hosts.toml");
        let text = match fs::metadata(&file) {
            Ok(metadata) if metadata.len() > FILE_LIMIT_BYTES => Err("larger than 1 MiB".to_owned()),
            Ok(_) => fs::read_to_string(&file).map_err(|error| error.to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.is_dir() => continue,
            // Docker's layout of a folder: certificates alone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return certificates(&folder).map_err(|error| (folder, error.to_string()));
            }
            Err(error) => Err(error.to_string()),
        };
        return text.and_then(|text| parse(&folder, &text)).map_err(|reason| (file, reason));
    }
    Ok(Hosts::new())
}

fn parse(folder: &Path, text: &str) -> Result<Hosts, String> {
    let file: HostsFile = toml::from_str(text).map_err(|error| error.to_string())?;
    // The order in the file is the order in which they are asked.
    let mut listed: Vec<_> = file.host.into_iter().collect();
    listed.sort_by_key(|(_, settings)| settings.span().start);
    let listed = listed.into_iter().map(|(url, settings)| (Some(url), settings.into_inner()));
    let itself = (file.server.filter(|server| !server.is_empty()), file.itself);
    let mut hosts = Hosts::new();
    for (url, settings) in listed.chain([itself]) {
        if settings.can_pull()? {
            hosts.push(settings.at(folder, url.as_deref())?);
        }
    }
    Ok(hosts)
}

impl HostFile {
    /// Whether blobs may be read there; without a list everything may be done.
    fn can_pull(&self) -> Result<bool, String> {
        for capability in &self.capabilities {
            if !["pull", "resolve", "push", "referrers"].contains(&capability.to_lowercase().as_str()) {
                return Err(format!("unknown capability {capability}"));
            }
        }
        Ok(self.capabilities.is_empty()
            || self.capabilities.iter().any(|each| each.eq_ignore_ascii_case("pull")))
    }

    fn at(self, folder: &Path, url: Option<&str>) -> Result<ListedHost, String> {
        let (base, api) = match url {
            None => (None, "/v2".to_owned()),
            Some(url) => {
                let (base, api) = place(url, self.override_path)?;
                (Some(base), api)
            }
        };
        let read = |path: String| Pem::read(&folder.join(path));
        let both = |path| ClientCertificate { chain: read(path), key: None };
        let client = match self.client {
            None => None,
            Some(ClientCertificates::One(path)) => Some(both(path)),
            // A registry has one authority: of several certificates containerd too shows the first that fits.
            Some(ClientCertificates::Many(pairs)) => pairs.into_iter().next().map(|pair| match pair {
                Pair::Both(path) => both(path),
                Pair::Apart([chain, key]) => ClientCertificate { chain: read(chain), key: Some(read(key)) },
            }),
        };
        let authorities = self.ca.into_vec().into_iter().map(read).collect();
        let mut headers = Vec::new();
        for (name, values) in self.header {
            let bad = |error: &dyn std::fmt::Display| format!("header {name}: {error}");
            name.parse::<HeaderName>().map_err(|error| bad(&error))?;
            for value in values.into_vec() {
                HeaderValue::from_str(&value).map_err(|error| bad(&error))?;
                headers.push((name.clone(), value));
            }
        }
        let skip_verify = self.skip_verify.unwrap_or(false);
        let connection = Connection { authorities, client, skip_verify, headers, without_system: false };
        Ok(ListedHost { base, api, connection: Arc::new(connection) })
    }
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::None => Vec::new(),
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// Scheme and authority of `url`, and the API's path there: with `/v2` at its end unless that is overridden.
fn place(url: &str, override_path: bool) -> Result<(String, String), String> {
    let full = if url.starts_with("http") { url.to_owned() } else { format!("https://{url}") };
    let parsed = Url::parse(&full).map_err(|error| format!("host {url}: {error}"))?;
    let host = parsed.host_str().ok_or_else(|| format!("host {url}: no name of a host"))?;
    let port = parsed.port().map(|port| format!(":{port}")).unwrap_or_default();
    let mut api = parsed.path().trim_end_matches('/').to_owned();
    if !override_path && !api.ends_with("/v2") {
        api.push_str("/v2");
    }
    Ok((format!("{}://{host}{port}", parsed.scheme()), api))
}

/// Files `*.crt` are authorities; `*.cert` are certificates to show, with `*.key` next to them.
fn certificates(folder: &Path) -> io::Result<Hosts> {
    let mut paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    let has = |path: &&PathBuf, extension: &str| path.extension().is_some_and(|found| found == extension);
    let authorities: Vec<_> =
        paths.iter().filter(|path| has(path, "crt")).map(|path| Pem::read(path)).collect();
    let pair = |path: &PathBuf| {
        let key = path.with_extension("key");
        ClientCertificate { chain: Pem::read(path), key: key.exists().then(|| Pem::read(&key)) }
    };
    let client = paths.iter().find(|path| has(path, "cert")).map(pair);
    if authorities.is_empty() && client.is_none() {
        return Ok(Hosts::new());
    }
    let connection = Connection { authorities, client, ..Connection::default() };
    Ok(vec![ListedHost { base: None, api: "/v2".to_owned(), connection: Arc::new(connection) }])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(folders: &[(&str, &str)]) -> (tempfile::TempDir, CertsDir) {
        let root = tempfile::tempdir().unwrap();
        for (folder, text) in folders {
            fs::create_dir(root.path().join(folder)).unwrap();
            fs::write(root.path().join(folder).join("hosts.toml"), text).unwrap();
        }
        let certs = CertsDir::new(vec![root.path().to_owned()]);
        (root, certs)
    }

    fn bases(hosts: &Hosts) -> Vec<String> {
        let base = |host: &ListedHost| format!("{}{}", host.base.as_deref().unwrap_or("itself"), host.api);
        hosts.iter().map(base).collect()
    }

    #[test]
    fn mirrors_are_asked_in_the_order_of_the_file_and_then_the_registry() {
        let text = r#"
server = "https://registry.example"

[host."https://zebra.example"]
  capabilities = ["pull", "resolve"]

[host."http://aardvark.example:5000/cache"]

[host."https://push.example"]
  capabilities = ["push"]

[host."https://odd.example/api/registry/"]
  capabilities = ["pull"]
  override_path = true
"#;
        let (_root, certs) = settings(&[("registry.example", text)]);
        let expected = [
            "https://zebra.example/v2",
            "http://aardvark.example:5000/cache/v2",
            "https://odd.example/api/registry",
            "https://registry.example/v2",
        ];
        assert_eq!(bases(&certs.hosts("registry.example")), expected);
    }

    #[test]
    fn the_folder_is_that_of_host_and_port_or_of_the_host_or_the_default() {
        let host = |name: &str| format!("[host.\"http://{name}\"]\n");
        let (_root, certs) = settings(&[
            ("a_5000_", &host("one")),
            ("a:5000", &host("two")),
            ("b:5000", &host("three")),
            ("_default", &host("four")),
        ]);
        for (registry, mirror) in [("a:5000", "one"), ("b:5000", "three"), ("c", "four")] {
            let expected = [format!("http://{mirror}/v2"), "itself/v2".to_owned()];
            assert_eq!(bases(&certs.hosts(registry)), expected, "{registry}");
        }
        let (_root, certs) = settings(&[]);
        assert_eq!(bases(&certs.hosts("a")), Vec::<String>::new());
    }

    #[test]
    fn of_several_folders_the_first_with_a_folder_for_the_host_or_a_default_counts() {
        let host = |name: &str| format!("[host.\"http://{name}\"]\n");
        let (first, _) =
            settings(&[("both", &host("one")), ("a:5000", &host("one")), ("mine", &host("one"))]);
        let (second, _) = settings(&[
            ("both", &host("two")),
            ("a_5000_", &host("two")),
            ("other", &host("two")),
            ("_default", &host("default")),
        ]);
        let (first, second) = (first.path().to_owned(), second.path().to_owned());
        let certs = CertsDir::new(vec![first.clone(), second.clone()]);
        let there =
            [("both", "one"), ("a:5000", "one"), ("mine", "one"), ("other", "two"), ("no", "default")];
        for (registry, mirror) in there {
            let expected = [format!("http://{mirror}/v2"), "itself/v2".to_owned()];
            assert_eq!(bases(&certs.hosts(registry)), expected, "{registry}");
        }
        let certs = CertsDir::new(vec![second, first]);
        for (registry, mirror) in [("both", "two"), ("a:5000", "two"), ("mine", "default")] {
            let expected = [format!("http://{mirror}/v2"), "itself/v2".to_owned()];
            assert_eq!(bases(&certs.hosts(registry)), expected, "{registry}, the other way round");
        }
    }

    #[test]
    fn certificates_alone_are_found_in_a_later_folder_and_hidden_by_an_empty_one_of_the_host() {
        let (root, _) = settings(&[]);
        let [missing, first, second] = ["missing", "first", "second"].map(|name| root.path().join(name));
        fs::create_dir(&first).unwrap();
        fs::create_dir_all(second.join("r")).unwrap();
        fs::write(second.join("r/ca.crt"), "").unwrap();
        let roots = vec![missing, first.clone(), second.clone()];
        let hosts = CertsDir::new(roots.clone()).hosts("r");
        assert_eq!(bases(&hosts), ["itself/v2"]);
        assert_eq!(hosts[0].connection.authorities, [Pem::read(&second.join("r/ca.crt"))]);
        fs::create_dir(first.join("r")).unwrap();
        assert_eq!(bases(&CertsDir::new(roots).hosts("r")), Vec::<String>::new());
    }

    #[test]
    fn certificates_and_headers_are_those_of_their_host() {
        let text = r#"
ca = "/etc/own.pem"
skip_verify = true

[host."https://m"]
  ca = ["one.pem", "/two.pem"]
  client = [["client.cert", "client.key"], "both.pem"]
  [host."https://m".header]
    x-one = "1"
    x-two = ["2", "3"]
"#;
        let (root, certs) = settings(&[("r", text)]);
        let at = |name: &str| root.path().join("r").join(name).display().to_string();
        let hosts = certs.hosts("r");
        let mirror = &hosts[0].connection;
        let names = |pems: &[Pem]| pems.iter().map(|pem| pem.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&mirror.authorities), [at("one.pem"), "/two.pem".to_owned()]);
        let client = mirror.client.as_ref().unwrap();
        assert_eq!(names(std::slice::from_ref(&client.chain)), [at("client.cert")]);
        assert_eq!(names(client.key.as_slice()), [at("client.key")]);
        assert!(!mirror.skip_verify);
        let headers = [("x-one", "1"), ("x-two", "2"), ("x-two", "3")];
        assert_eq!(mirror.headers, headers.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let itself = &hosts[1];
        assert_eq!((itself.base.as_deref(), itself.connection.skip_verify), (None, true));
        assert_eq!(names(&itself.connection.authorities), ["/etc/own.pem"]);
    }

    #[test]
    fn certificates_alone_are_settings_too() {
        let (root, certs) = settings(&[]);
        fs::create_dir(root.path().join("r")).unwrap();
        for name in ["ca.crt", "me.cert", "me.key", "note.txt"] {
            fs::write(root.path().join("r").join(name), "").unwrap();
        }
        let at = |name: &str| Pem::read(&root.path().join("r").join(name));
        let hosts = certs.hosts("r");
        assert_eq!(bases(&hosts), ["itself/v2"]);
        assert_eq!(hosts[0].connection.authorities, [at("ca.crt")]);
        let own = ClientCertificate { chain: at("me.cert"), key: Some(at("me.key")) };
        assert_eq!(hosts[0].connection.client, Some(own));
    }

    #[test]
    fn what_cannot_be_read_counts_as_nothing() {
        for text in ["[host", "[host.\"https://m\"]\ncapabilities = [\"fly\"]", "[host.\"https://\"]"] {
            let (_root, certs) = settings(&[("r", text)]);
            assert_eq!(bases(&certs.hosts("r")), Vec::<String>::new(), "{text}");
        }
    }
}
