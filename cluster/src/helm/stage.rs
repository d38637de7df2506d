//! The directory in which helm works: the chart's copy, the values, and a home.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use nix::unistd::Uid;
use tempfile::TempDir;

use super::{Rendering, run};

/// A directory in memory. A stage lives for a tenth of a second, and on a disk the next one pays for it: ext4 does not use
/// again the inodes of what was deleted just now, and looks for others for a millisecond a file.
const IN_MEMORY: &str = "/dev/shm";

/// A directory that goes when this goes.
pub(super) struct Stage(TempDir);

impl Stage {
    pub(super) fn write(rendering: &Rendering<'_>) -> io::Result<Self> {
        // It may be absent, and in a container it is small.
        Self::write_in(Path::new(IN_MEMORY), rendering)
            .or_else(|_| Self::write_in(&std::env::temp_dir(), rendering))
    }

    fn write_in(dir: &Path, rendering: &Rendering<'_>) -> io::Result<Self> {
        let stage = Self(tempfile::Builder::new().prefix("nydus-cluster-helm-").tempdir_in(dir)?);
        folder(&stage.home())?;
        let chart = stage.chart();
        let mut made: BTreeSet<PathBuf> = BTreeSet::new();
        for (path, content) in rendering.chart {
            let path = chart.join(path);
            let parents = path.ancestors().skip(1).take_while(|above| above.starts_with(&chart));
            let missing: Vec<&Path> = parents.take_while(|above| !made.contains(*above)).collect();
            for missing in missing.into_iter().rev() {
                folder(missing)?;
                made.insert(missing.to_owned());
            }
            file(&path, content)?;
        }
        for (index, content) in rendering.values.iter().enumerate() {
            file(&stage.values(index), content)?;
        }
        if Uid::effective().is_root() {
            // The folder itself stays closed to all others.
            chown(stage.path(), Some(run::USER), Some(run::USER))?;
            chown(stage.home(), Some(run::USER), Some(run::USER))?;
        }
        Ok(stage)
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn chart(&self) -> PathBuf {
        self.path().join("chart")
    }

    pub(super) fn home(&self) -> PathBuf {
        self.path().join("home")
    }

    pub(super) fn values(&self, index: usize) -> PathBuf {
        self.path().join(format!("values-{index}.yaml"))
    }
}

// Modes are set for themselves: this process may have any umask.
fn folder(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

fn file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    file.set_permissions(Permissions::from_mode(0o644))
}
