//! `helm template`, over a chart that nobody here wrote.
//!
//! A chart is a program: it is run over a copy that holds nothing but the chart, by a user who owns nothing else, without
//! network, without this process's environment, with limits of memory and time, and ended with everything that it started.

mod run;
mod stage;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

/// A chart's files by their paths in the chart.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// Why there is no rendering.
#[derive(Clone, Debug, Error)]
pub(crate) enum HelmError {
    /// There is no such program.
    #[error("helm is needed to render this: {0}")]
    Absent(String),
    /// It could not be run.
    #[error("running helm: {0}")]
    Io(String),
    /// It says no.
    #[error("{0}")]
    Failed(String),
    /// It did not come to an end.
    #[error("helm did not end within {} s", .0.as_secs())]
    Deadline(Duration),
    /// It said too much.
    #[error("helm rendered more than {0} bytes")]
    TooLarge(usize),
}

impl HelmError {
    fn io(error: io::Error) -> Self {
        Self::Io(error.to_string())
    }
}

/// What to render.
#[derive(Debug)]
pub(crate) struct Rendering<'a> {
    /// The chart.
    pub(crate) chart: &'a Files,
    /// The release's name.
    pub(crate) release: &'a str,
    /// Files of values, the last one counting most.
    pub(crate) values: Vec<&'a [u8]>,
    /// The version of Kubernetes that it is for.
    pub(crate) kube_version: Option<&'a str>,
}

/// The program.
#[derive(Debug)]
pub(crate) struct Helm {
    program: Result<PathBuf, HelmError>,
    deadline: Duration,
}

impl Helm {
    /// The program at `path`, or the first one in `PATH`.
    pub(crate) fn new(path: Option<&Path>, deadline: Duration) -> Self {
        let program = match path {
            Some(path) if path.is_file() => Ok(path.to_owned()),
            Some(path) => Err(HelmError::Absent(format!("{} is no file", path.display()))),
            None => std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
                .map(|folder| folder.join("helm"))
                .find(|candidate| candidate.is_file())
                .ok_or_else(|| HelmError::Absent("it is not in PATH".to_owned())),
        };
        Self { program, deadline }
    }

    /// What `read` makes of what `helm template` prints.
    pub(crate) async fn render<T>(
        &self,
        rendering: &Rendering<'_>,
        read: impl FnOnce(&str) -> T,
    ) -> Result<T, HelmError> {
        let program = self.program.clone()?;
        let stage = stage::Stage::write(rendering).map_err(HelmError::io)?;
        let mut words: Vec<OsString> = ["template", rendering.release].map(OsString::from).into();
        words.push(stage.chart().into());
        words.extend(["--namespace", "default", "--include-crds"].map(OsString::from));
        if let Some(version) = rendering.kube_version {
            words.extend(["--kube-version", version].map(OsString::from));
        }
        for index in 0..rendering.values.len() {
            words.push("--values".into());
            words.push(stage.values(index).into());
        }
        let output = run::run(&program, &words, stage.path(), self.deadline).await;
        // Files of another user, but of nobody else: they go while the output is read, and are gone before anybody has the result.
        let removing = tokio::task::spawn_blocking(|| drop(stage));
        let result = output.map(|output| read(&output));
        removing.await.map_err(|error| HelmError::Io(error.to_string()))?;
        result
    }
}

#[cfg(test)]
mod tests;
