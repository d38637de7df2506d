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

/// The file.
pub(super) const CONFIG: &str = "/etc/containerd/config.toml";
/// What containerd knows our snapshotter as.
const NAME: &str = "nydus-cluster";

const CRI: &str = "io.containerd.grpc.v1.cri";
const IMAGES: &str = "io.containerd.cri.v1.images";
const TRANSFER: &str = "io.containerd.transfer.v1.local";

/// The file's text with our snapshotter, which listens on `socket`. An empty text is one for the containerd that is installed.
pub(super) fn configured(text: &str, socket: &Path) -> Result<String, LaunchError> {
    let mut config: Table =
        toml::from_str(text).map_err(|error| LaunchError::wrong(CONFIG, error.to_string()))?;
    if config.is_empty() {
        config.insert("version".to_owned(), Value::Integer(version_installed()?));
    }
    let version = config.get("version").and_then(Value::as_integer);
    let cri = match version {
        Some(2) => {
            let cri = table(&mut config, &["plugins", CRI])?;
            let containerd = table(cri, &["containerd"])?;
            containerd.insert("snapshotter".to_owned(), NAME.into());
            containerd.insert("disable_snapshot_annotations".to_owned(), false.into());
            cri
        }
        Some(3 | 4) => {
            unpack(table(&mut config, &["plugins", TRANSFER])?)?;
            let images = table(&mut config, &["plugins", IMAGES])?;
            images.insert("snapshotter".to_owned(), NAME.into());
            images
        }
        _ => {
            let reason =
                "expected version = 2, 3 or 4: `containerd config migrate` makes one of an older file";
            return Err(LaunchError::wrong(CONFIG, reason));
        }
    };
    certs_dir(table(cri, &["registry"])?)?;
    let proxy = table(&mut config, &["proxy_plugins", NAME])?;
    proxy.insert("type".to_owned(), "snapshot".into());
    proxy.insert("address".to_owned(), socket.to_string_lossy().into_owned().into());
    if version != Some(2) {
        let exports = table(proxy, &["exports"])?;
        exports.insert("enable_remote_snapshot_annotations".to_owned(), "true".into());
    }
    check_imports(&config)?;
    toml::to_string(&config).map_err(|error| LaunchError::wrong(CONFIG, error.to_string()))
}

/// The table at `path`, made if it is not there.
fn table<'a>(mut at: &'a mut Table, path: &[&str]) -> Result<&'a mut Table, LaunchError> {
    for name in path {
        let next = at.entry(*name).or_insert_with(|| Table::new().into());
        at = next
            .as_table_mut()
            .ok_or_else(|| LaunchError::wrong(CONFIG, format!("expected a table at {}", path.join("."))))?;
    }
    Ok(at)
}

/// Has the transfer service unpack with our snapshotter too.
fn unpack(transfer: &mut Table) -> Result<(), LaunchError> {
    let platform = PlatformName::host().to_string();
    let entry = |snapshotter: &str| {
        let pairs = [("platform", platform.as_str()), ("snapshotter", snapshotter)];
        Value::Table(pairs.map(|(name, value)| (name.to_owned(), value.into())).into_iter().collect())
    };
    // A list takes the place of the default, which has this alone.
    let list = transfer.entry("unpack_config").or_insert_with(|| vec![entry("overlayfs")].into());
    let reason = format!("expected a list at plugins.{TRANSFER}.unpack_config");
    let list = list.as_array_mut().ok_or_else(|| LaunchError::wrong(CONFIG, reason))?;
    if !list.iter().any(|entry| entry.get("snapshotter").and_then(Value::as_str) == Some(NAME)) {
        list.insert(0, entry(NAME));
    }
    Ok(())
}

/// Has containerd look for mirrors where we put them.
fn certs_dir(registry: &mut Table) -> Result<(), LaunchError> {
    for old in ["mirrors", "configs"] {
        if registry.get(old).and_then(Value::as_table).is_some_and(|table| !table.is_empty()) {
            let reason =
                format!("registry.{old} keeps containerd from reading {CERTS_DIR}: move what it says there");
            return Err(LaunchError::wrong(CONFIG, reason));
        }
    }
    let path = registry.entry("config_path").or_insert_with(|| "".into());
    match path.as_str() {
        Some("") => *path = CERTS_DIR.into(),
        Some(path) if path.split(':').any(|path| Path::new(path) == Path::new(CERTS_DIR)) => {}
        _ => {
            let reason = format!("registry.config_path is {path}: expected {CERTS_DIR} in it");
            return Err(LaunchError::wrong(CONFIG, reason));
        }
    }
    Ok(())
}

/// Files that are read after this one must not set what we set: containerd takes a plugin's settings whole from the last that has any.
fn check_imports(config: &Table) -> Result<(), LaunchError> {
    let imports = config.get("imports").and_then(Value::as_array).into_iter().flatten();
    for file in imports.filter_map(Value::as_str).flat_map(imported) {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let Ok(imported) = toml::from_str::<Table>(&text) else { continue };
        let plugins = imported.get("plugins").and_then(Value::as_table);
        if let Some(name) =
            [CRI, IMAGES, TRANSFER].iter().find(|name| plugins.is_some_and(|all| all.contains_key(**name)))
        {
            let reason =
                format!("it would hide what {CONFIG} says of the plugin {name}: move its settings there");
            return Err(LaunchError::wrong(file.display().to_string(), reason));
        }
    }
    Ok(())
}

/// The files that a pattern may mean: all of its directory where its last part is one.
fn imported(pattern: &str) -> Vec<PathBuf> {
    let path = Path::new("/etc/containerd").join(pattern);
    if !pattern.contains('*') {
        return vec![path];
    }
    let entries = path.parent().and_then(|directory| fs::read_dir(directory).ok());
    entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The format that the installed containerd writes.
fn version_installed() -> Result<i64, LaunchError> {
    let said = say(Command::new("containerd").arg("--version"))?;
    let major =
        said.split_whitespace().find_map(|word| word.strip_prefix('v')?.split('.').next()?.parse().ok());
    match major {
        Some(1_u32) => Ok(2),
        Some(_) => Ok(3),
        None => Err(LaunchError::wrong("containerd --version", format!("expected a version in {said:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured_as(text: &str) -> Result<Table, String> {
        let text = configured(text, Path::new("/run/s.sock")).map_err(|error| error.to_string())?;
        // What is there already is not put there twice.
        assert_eq!(configured(&text, Path::new("/run/s.sock")).unwrap(), text);
        Ok(toml::from_str(&text).unwrap())
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
        assert!(configured_as(&text).unwrap_err().contains("x.toml: it would hide"));
    }
}
