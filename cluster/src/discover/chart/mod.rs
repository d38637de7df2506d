//! Charts: their files, what they say of themselves, and what their renderings ask for.
//!
//! | file | does |
//! |---|---|
//! | `archive` | the files of a `.tgz` |
//! | `load` | the files of a folder, with the dependencies that lie elsewhere in the tree |
//! | `metadata` | `Chart.yaml` |
//! | `annotation` | images that charts name beside their templates |
//! | `rendered` | what helm prints, split by template |

mod annotation;
pub(crate) mod archive;
pub(crate) mod load;
pub(crate) mod metadata;
mod rendered;

use super::ask::{Requests, Way};
use super::manifest::{self, Context};
use crate::helm::{Files, Helm, HelmError, Rendering};
use metadata::Metadata;

/// A chart that was found.
#[derive(Debug)]
pub(crate) struct Chart {
    /// Its folder or archive, as a path in the tree.
    pub(crate) place: String,
    /// Its `Chart.yaml`.
    pub(crate) metadata: Metadata,
    /// Its files.
    pub(crate) files: Files,
    /// Values for every rendering.
    pub(crate) overlay: Option<Values>,
    /// Further sets: a rendering more for each.
    pub(crate) sets: Vec<Values>,
}

/// A file of values.
#[derive(Clone, Debug)]
pub(crate) struct Values {
    /// What it is called in messages: its path.
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

impl Chart {
    /// The file that a template of helm's is, by the name helm has for it, which begins with the chart's name.
    fn file(&self, source: &str) -> String {
        let within = source.split_once('/').map_or(source, |(_, within)| within);
        format!("{}/{within}", self.place)
    }

    /// What the chart asks for when it is rendered with `set` over its overlay.
    pub(crate) async fn requests(
        &self,
        helm: &Helm,
        set: Option<&Values>,
        kube_version: Option<&str>,
    ) -> Requests {
        let mut requests = Requests::default();
        // A library chart has nothing to render.
        if self.metadata.is_library {
            return requests;
        }
        let named = annotation::read(&self.place, &self.metadata, &self.files, &mut requests);
        let with_probe;
        let files = if named.iter().any(|named| named.condition.is_some()) {
            with_probe = annotation::with_probe(&self.files);
            &with_probe
        } else {
            &self.files
        };
        let values = self.overlay.iter().chain(set).map(|values| values.content.as_slice()).collect();
        let release = self.metadata.release();
        let rendering = Rendering { chart: files, release: &release, values, kube_version };
        match helm.render(&rendering, |output| self.asked(output, &named, set)).await {
            Ok(asked) => requests.add(asked),
            Err(error) => self.failed(&error, set, &mut requests),
        }
        requests
    }

    /// What a rendering with `set` asks for, of which helm printed `output`.
    fn asked(&self, output: &str, named: &[annotation::Named], set: Option<&Values>) -> Requests {
        let mut requests = Requests::default();
        let parts = rendered::split(output);
        let set = set.map(|set| set.name.clone());
        annotation::ask(named, &parts, &set, &mut requests);
        for part in parts.iter().filter(|part| !annotation::is_probe(part.source)) {
            let context = Context { file: self.file(part.source), way: Way::Chart, values: set.clone() };
            requests.add(manifest::read(&context, part.text));
        }
        requests
    }

    /// Says why there is no rendering, of the template that helm names.
    fn failed(&self, error: &HelmError, set: Option<&Values>, requests: &mut Requests) {
        let text = error.to_string();
        let located = rendered::locate(&text, &self.metadata.name);
        let (file, line) = match located {
            Some((source, line)) => (self.file(source), Some(line)),
            None => (self.place.clone(), None),
        };
        let with = set.map(|set| format!("with {}: ", set.name)).unwrap_or_default();
        requests.problem(file, line, format!("{with}{text}"));
    }
}
