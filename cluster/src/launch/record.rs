//! What is known of a cluster where it is run from: its nodes and how they are reached, in a directory of its own.
//!
//! The same directory has the nodes' ssh keys, the administrator's credentials, and what each node said (`NODE.log`).

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Run;
use super::error::LaunchError;
use super::place::{Place, SshOptions};

const FILE: &str = "cluster.json";

/// A cluster that was run from here.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Record {
    /// The cluster image.
    pub image: String,
    /// Nodes as they were named; empty: this machine.
    masters: Vec<String>,
    nodes: Vec<String>,
    user: Option<String>,
    key: Option<PathBuf>,
}

impl Record {
    pub(super) fn of(run: &Run) -> Self {
        let named = |places: &[Place]| {
            places.iter().filter(|place| **place != Place::Here).map(Place::name).collect()
        };
        let image = match &run.prepare.image {
            super::task::Image::Mounted(reference) | super::task::Image::Converted(reference) => {
                reference.clone()
            }
            super::task::Image::Directory(directory) => directory.display().to_string(),
        };
        let (masters, nodes) = (named(&run.masters), named(&run.nodes));
        Self { image, masters, nodes, user: run.ssh.user.clone(), key: run.ssh.key.clone() }
    }

    /// Reads the record in `dir`.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn read(dir: &Path) -> Result<Self, LaunchError> {
        let none =
            || LaunchError::wrong(dir.display().to_string(), "no cluster was run from here under this name");
        Self::find(dir)?.ok_or_else(none)
    }

    /// Reads the record in `dir`; none if no node there has ever answered.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn find(dir: &Path) -> Result<Option<Self>, LaunchError> {
        let file = dir.join(FILE);
        let text = match fs::read(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(LaunchError::io(&file))?,
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| LaunchError::wrong(file.display().to_string(), error.to_string()))
    }

    /// What is to be kept of it in `dir`, which is made for its owner alone: nodes that earlier runs named belong to the cluster still.
    pub(super) fn with_earlier(&self, dir: &Path) -> Result<Self, LaunchError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(LaunchError::io(dir))?;
        let Some(earlier) = Self::find(dir)? else { return Ok(self.clone()) };
        if self.masters.first() != earlier.masters.first() {
            let name = dir.file_name().unwrap_or_default().to_string_lossy();
            let first = earlier.places().first().map(Place::name).unwrap_or_default();
            let reason = format!(
                "the first master of the cluster {name} is {first}: give another cluster another name with --name, or take that one away first \
                 with `nydus-cluster cluster rm {name}` (if its machines are gone, remove {})",
                dir.display()
            );
            return Err(LaunchError::wrong("--masters", reason));
        }
        let masters = united(&earlier.masters, &self.masters);
        let mut nodes = united(&earlier.nodes, &self.nodes);
        nodes.retain(|node| !masters.contains(node));
        let login = earlier.ssh(&self.ssh(&SshOptions::default()));
        Ok(Self { image: self.image.clone(), masters, nodes, user: login.user, key: login.key })
    }

    /// Keeps it in `dir`.
    pub(super) fn keep(&self, dir: &Path) -> Result<(), LaunchError> {
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::other);
        write(&dir.join(FILE), &text.map_err(LaunchError::io(dir))?)
    }

    /// Its nodes, the masters first.
    pub(super) fn places(&self) -> Vec<Place> {
        let named: Vec<Place> =
            self.masters.iter().chain(&self.nodes).filter_map(|name| name.parse().ok()).collect();
        if self.masters.is_empty() { [Place::Here].into_iter().chain(named).collect() } else { named }
    }

    /// How many of them are masters.
    pub(super) fn masters(&self) -> usize {
        self.masters.len().max(1)
    }

    /// How its nodes are logged in to, where nothing else is said.
    pub(super) fn ssh(&self, said: &SshOptions) -> SshOptions {
        SshOptions {
            user: said.user.clone().or(self.user.clone()),
            key: said.key.clone().or(self.key.clone()),
            password: said.password.clone(),
        }
    }
}

/// All names of both, each once.
fn united(earlier: &[String], later: &[String]) -> Vec<String> {
    let new = later.iter().filter(|name| !earlier.contains(name));
    earlier.iter().chain(new).cloned().collect()
}

/// Where the clusters that are run from here are kept, a directory each: `$XDG_STATE_HOME/nydus-cluster/clusters`, by default below
/// `~/.local/state`.
///
/// # Errors
///
/// When there is no home directory.
pub fn clusters_dir() -> Result<PathBuf, LaunchError> {
    let folder = |name: &str| env::var_os(name).map(PathBuf::from).filter(|folder| folder.is_absolute());
    folder("XDG_STATE_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("nydus-cluster/clusters"))
        .ok_or_else(|| {
            LaunchError::wrong("HOME", "expected a home directory, in which clusters are recorded")
        })
}

/// The administrator's credentials.
pub(super) fn kubeconfig(dir: &Path) -> PathBuf {
    dir.join("kubeconfig")
}

/// Writes a file that only its owner may read, so that it is never there half-written.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<(), LaunchError> {
    let temporary = path.with_extension("new");
    let written = (|| {
        let mut file =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    written.map_err(LaunchError::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(masters: &[&str], nodes: &[&str]) -> Record {
        let [masters, nodes] = [masters, nodes].map(|names| names.iter().map(ToString::to_string).collect());
        Record { image: "r.example/c:v1".to_owned(), masters, nodes, user: None, key: None }
    }

    /// As a run does whose nodes answer.
    fn run(dir: &Path, record: &Record) -> Result<Record, LaunchError> {
        record.with_earlier(dir)?.keep(dir)?;
        Record::read(dir)
    }

    #[test]
    fn nodes_that_were_named_once_are_known_until_the_cluster_goes() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("clusters/default");
        assert!(Record::read(&dir).is_err());
        let first = Record { user: Some("admin".to_owned()), ..record(&["10.0.0.1"], &["b:2222", "c"]) };
        assert_eq!(run(&dir, &first).unwrap(), first);
        // Fewer nodes, and one more that is a master now.
        let later = Record { image: "r.example/c:v2".to_owned(), ..record(&["10.0.0.1", "c", "d"], &["e"]) };
        let kept = run(&dir, &later).unwrap();
        let nodes: Vec<_> = kept.places().iter().map(Place::name).collect();
        assert_eq!(nodes, ["10.0.0.1", "c", "d", "b:2222", "e"]);
        assert_eq!(kept.masters(), 3);
        assert_eq!((kept.image.as_str(), kept.user.as_deref()), ("r.example/c:v2", Some("admin")));
        // One that is a master stays one, whatever it is called now.
        let kept = run(&dir, &record(&["10.0.0.1"], &["d"])).unwrap();
        assert_eq!((kept.masters(), kept.places().len()), (3, 5));
    }

    #[test]
    fn a_cluster_does_not_take_the_place_of_another_one() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("default");
        let first = run(&dir, &record(&["10.0.0.1"], &["b"])).unwrap();
        for other in [record(&["10.1.0.1"], &["b"]), record(&[], &[])] {
            let error = run(&dir, &other).unwrap_err().to_string();
            for word in ["cluster default is 10.0.0.1", "--name", "cluster rm default"] {
                assert!(error.contains(word), "{error}");
            }
        }
        assert_eq!(Record::read(&dir).unwrap(), first);

        let here = home.path().join("here");
        run(&here, &record(&[], &[])).unwrap();
        let error = run(&here, &record(&["10.0.0.1"], &[])).unwrap_err().to_string();
        assert!(error.contains("is this machine"), "{error}");
        run(&here, &record(&[], &["b"])).unwrap();
    }

    #[test]
    fn a_run_whose_nodes_do_not_answer_leaves_no_cluster() {
        let home = tempfile::tempdir().unwrap();
        record(&["10.0.0.99"], &[]).with_earlier(home.path()).unwrap();
        assert_eq!(Record::find(home.path()).unwrap(), None);
        run(home.path(), &record(&["10.0.0.9"], &[])).unwrap();
    }
}
