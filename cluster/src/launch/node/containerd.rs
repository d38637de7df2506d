//! containerd's configuration: what it needs to unpack with our snapshotter, put into what is there.
//!
//! | format | of containerd | where CRI's images are set |
//! |---|---|---|
//! | 2 | 1.7, read by 2.x | `plugins."io.containerd.grpc.v1.cri".containerd` |
//! | 3, 4 | 2.x | `plugins."io.containerd.cri.v1.images"`, and the transfer service |

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use image::platform::PlatformName;
use toml::{Table, Value};

use super::commands::say;
use super::mirrors::CERTS_DIR;
use crate::launch::error::LaunchError;

/// The file, where containerd is told no other.
pub(super) const CONFIG: &str = "/etc/containerd/config.toml";
/// What containerd knows our snapshotter as.
pub(super) const NAME: &str = "nydus-cluster";

/// What containerd 2 takes as `config_path` where nothing is said. Its transfer service, with which CRI pulls, reads none of several.
const CERTS_DIRS: &str = "/etc/containerd/certs.d:/etc/docker/certs.d";

const CRI: &str = "io.containerd.grpc.v1.cri";
const IMAGES: &str = "io.containerd.cri.v1.images";
const TRANSFER: &str = "io.containerd.transfer.v1.local";

/// The text of the configuration `file` with our snapshotter, which listens on `socket`, and with the folder of mirrors; without a socket with
/// that folder alone. Where there is no file, or an empty one, `default` is
/// asked for what that stands for: the text of `containerd config default`.
pub(super) fn configured(
    file: &Path,
    text: Option<&str>,
    socket: Option<&Path>,
    default: impl FnOnce() -> Result<String, LaunchError>,
) -> Result<String, LaunchError> {
    let wrong = |reason: String| LaunchError::wrong(file.display().to_string(), reason);
    let parse = |text: &str| toml::from_str::<Table>(text).map_err(|error| wrong(error.to_string()));
    let mut config = parse(text.unwrap_or_default())?;
    if config.is_empty() {
        let default = parse(&default()?)?;
        // Files that are read where there is none are read on.
        let names = ["version"].into_iter().chain(text.is_none().then_some("imports"));
        config.extend(names.filter_map(|name| Some((name.to_owned(), default.get(name)?.clone()))));
    }
    put(&mut config, file, socket).map_err(wrong)?;
    toml::to_string(&config).map_err(|error| wrong(error.to_string()))
}

/// What `program`, a containerd, has for its configuration where nothing is said.
pub(super) fn default_of(program: &Path) -> Result<String, LaunchError> {
    say(Command::new(program).args(["config", "default"]))
}

fn put(config: &mut Table, file: &Path, socket: Option<&Path>) -> Result<(), String> {
    let cri = match config.get("version").and_then(Value::as_integer) {
        Some(2) => CRI,
        Some(3 | 4) => IMAGES,
        _ => {
            let reason =
                "expected version = 2, 3 or 4: `containerd config migrate` makes one of an older file";
            return Err(reason.to_owned());
        }
    };
    certs_dir(table(config, &["plugins", cri, "registry"])?)?;
    if let Some(socket) = socket {
        snapshotter(config, cri, socket)?;
    }
    check_imports(config, file)
}

/// Puts our snapshotter in, for the plugin `cri`.
fn snapshotter(config: &mut Table, cri: &str, socket: &Path) -> Result<(), String> {
    let proxy = table(config, &["proxy_plugins", NAME])?;
    proxy.insert("type".to_owned(), "snapshot".into());
    proxy.insert("address".to_owned(), socket.to_string_lossy().into_owned().into());
    if cri == CRI {
        let containerd = table(config, &["plugins", cri, "containerd"])?;
        containerd.insert("snapshotter".to_owned(), NAME.into());
        containerd.insert("disable_snapshot_annotations".to_owned(), false.into());
    } else {
        let exports = table(proxy, &["exports"])?;
        exports.insert("enable_remote_snapshot_annotations".to_owned(), "true".into());
        table(config, &["plugins", cri])?.insert("snapshotter".to_owned(), NAME.into());
        unpack(table(config, &["plugins", TRANSFER])?)?;
    }
    Ok(())
}

/// The table at `path`, made if it is not there.
fn table<'a>(mut at: &'a mut Table, path: &[&str]) -> Result<&'a mut Table, String> {
    for name in path {
        let next = at.entry(*name).or_insert_with(|| Table::new().into());
        at = next.as_table_mut().ok_or_else(|| format!("expected a table at {}", path.join(".")))?;
    }
    Ok(at)
}

/// Has the transfer service unpack with our snapshotter too.
fn unpack(transfer: &mut Table) -> Result<(), String> {
    let platform = PlatformName::host().to_string();
    let entry = |snapshotter: &str| {
        let pairs = [("platform", platform.as_str()), ("snapshotter", snapshotter)];
        Value::Table(pairs.map(|(name, value)| (name.to_owned(), value.into())).into_iter().collect())
    };
    // A list takes the place of the default, which has this alone.
    let list = transfer.entry("unpack_config").or_insert_with(|| vec![entry("overlayfs")].into());
    let list =
        list.as_array_mut().ok_or_else(|| format!("expected a list at plugins.{TRANSFER}.unpack_config"))?;
    if !list.iter().any(|entry| entry.get("snapshotter").and_then(Value::as_str) == Some(NAME)) {
        list.insert(0, entry(NAME));
    }
    Ok(())
}

/// Has containerd look for mirrors where we put them.
fn certs_dir(registry: &mut Table) -> Result<(), String> {
    for old in ["mirrors", "configs"] {
        if registry.get(old).and_then(Value::as_table).is_some_and(|table| !table.is_empty()) {
            return Err(format!(
                "registry.{old} keeps containerd from reading {CERTS_DIR}: move what it says there"
            ));
        }
    }
    let path = registry.entry("config_path").or_insert_with(|| "".into());
    match path.as_str() {
        Some("" | CERTS_DIRS) => *path = CERTS_DIR.into(),
        Some(path) if path.split(':').any(|path| Path::new(path) == Path::new(CERTS_DIR)) => {}
        _ => return Err(format!("registry.config_path is {path}: expected {CERTS_DIR} in it")),
    }
    Ok(())
}

/// Files that are read after this one must not set what we set: containerd takes a plugin's settings whole from the last that has any.
fn check_imports(config: &Table, file: &Path) -> Result<(), String> {
    let imports = config.get("imports").and_then(Value::as_array).into_iter().flatten();
    for import in imports.filter_map(Value::as_str).flat_map(|pattern| imported(file, pattern)) {
        let Ok(text) = fs::read_to_string(&import) else { continue };
        let Ok(imported) = toml::from_str::<Table>(&text) else { continue };
        let plugins = imported.get("plugins").and_then(Value::as_table);
        if let Some(name) =
            [CRI, IMAGES, TRANSFER].iter().find(|name| plugins.is_some_and(|all| all.contains_key(**name)))
        {
            return Err(format!(
                "what it says of the plugin {name} would be hidden by {}, which it imports: move that file's settings here",
                import.display()
            ));
        }
    }
    Ok(())
}

/// The files that a pattern may mean: all of its directory where its last part is one.
fn imported(file: &Path, pattern: &str) -> Vec<PathBuf> {
    let path = file.parent().unwrap_or(file).join(pattern);
    if !pattern.contains('*') {
        return vec![path];
    }
    let entries = path.parent().and_then(|directory| fs::read_dir(directory).ok());
    entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured_with(text: Option<&str>, default: &str) -> Result<Table, String> {
        let configured = |text: Option<&str>| {
            configured(Path::new(CONFIG), text, Some(Path::new("/run/s.sock")), || Ok(default.to_owned()))
        };
        let text = configured(text).map_err(|error| error.to_string())?;
        // What is there already is not put there twice.
        assert_eq!(configured(Some(&text)).unwrap(), text);
        Ok(toml::from_str(&text).unwrap())
    }

    fn configured_as(text: &str) -> Result<Table, String> {
        configured_with(Some(text), "")
    }

    #[test]
    fn format_2_has_it_in_cris_containerd_and_keeps_all_else() {
        let text = "version = 2\nroot = \"/x\"\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"p\"\n  \
                    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n    runtime_type = \"r\"\n";
        let config = configured_as(text).unwrap();
        assert_eq!(config["root"].as_str(), Some("/x"));
        let cri = &config["plugins"][CRI];
        assert_eq!(cri["sandbox_image"].as_str(), Some("p"));
        assert_eq!(cri["containerd"]["runtimes"]["runc"]["runtime_type"].as_str(), Some("r"));
        assert_eq!(cri["containerd"]["snapshotter"].as_str(), Some(NAME));
        assert_eq!(cri["registry"]["config_path"].as_str(), Some(CERTS_DIR));
        assert_eq!(config["proxy_plugins"][NAME]["address"].as_str(), Some("/run/s.sock"));
    }

    #[test]
    fn formats_3_and_4_have_it_in_the_images_plugin_and_the_transfer_service() {
        for version in [3, 4] {
            let config = configured_as(&format!("version = {version}\n")).unwrap();
            assert_eq!(config["plugins"][IMAGES]["snapshotter"].as_str(), Some(NAME));
            let unpack = config["plugins"][TRANSFER]["unpack_config"].as_array().unwrap();
            let names: Vec<_> = unpack.iter().map(|entry| entry["snapshotter"].as_str().unwrap()).collect();
            assert_eq!(names, [NAME, "overlayfs"]);
        }
    }

    #[test]
    fn mirrors_alone_leave_the_snapshotter() {
        for (version, plugin) in [(2, CRI), (4, IMAGES)] {
            let text = format!("version = {version}\n[plugins.\"{plugin}\"]\nx = 1\n");
            let text = configured(Path::new(CONFIG), Some(&text), None, || Ok(String::new())).unwrap();
            let expected = format!(
                "version = {version}\n[plugins.\"{plugin}\"]\nx = 1\nregistry = {{ config_path = \"{CERTS_DIR}\" }}\n"
            );
            let parsed = |text: &str| toml::from_str::<Table>(text).unwrap();
            assert_eq!(parsed(&text), parsed(&expected));
        }
    }

    #[test]
    fn where_there_is_no_file_its_containerd_says_what_that_stands_for() {
        let default = "version = 4\nimports = ['/no/such/conf.d/*.toml']\nroot = '/x'\n[plugins.a]\nb = 1\n";
        let config = configured_with(None, default).unwrap();
        assert_eq!(config["version"].as_integer(), Some(4));
        assert_eq!(config["imports"].as_array().unwrap().len(), 1);
        assert_eq!(config.get("root"), None);
        assert_eq!(config["plugins"].get("a"), None);
        assert_eq!(config["plugins"][IMAGES]["registry"]["config_path"].as_str(), Some(CERTS_DIR));
        // With an empty file nothing is imported.
        let config = configured_with(Some("# nothing\n"), default).unwrap();
        assert_eq!(config["version"].as_integer(), Some(4));
        assert_eq!(config.get("imports"), None);
        let config = configured_with(None, "version = 2\nimports = []\n").unwrap();
        assert_eq!(config["plugins"][CRI]["containerd"]["snapshotter"].as_str(), Some(NAME));
    }

    #[test]
    fn what_would_not_work_is_named() {
        let cri = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n";
        for (text, word) in [
            ("version = 1\n", "containerd config migrate"),
            ("root = \"/x\"\n", "containerd config migrate"),
            ("version = [\n", "line 1"),
            ("version = 2\nplugins = 1\n", "expected a table at plugins"),
            (&format!("{cri}config_path = \"/other\"\n"), "expected /etc/containerd/certs.d"),
            (
                &format!("{cri}[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"a\"]\n"),
                "registry.mirrors",
            ),
        ] {
            let error = configured_as(text).unwrap_err();
            assert!(error.starts_with(CONFIG) && error.contains(word), "{text}: {error}");
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x.toml"), "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n")
            .unwrap();
        let text = format!("version = 2\nimports = [\"{}/*.toml\"]\n", dir.path().display());
        assert!(configured_as(&text).unwrap_err().contains("x.toml, which it imports"));
    }
}
