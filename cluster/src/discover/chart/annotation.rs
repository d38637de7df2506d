//! Images that a chart names itself, in its annotation `helm.sh/images`: those that its templates do not show, such as what an
//! operator starts later.
//!
//! An entry counts if its chart renders anything (a dependency may be switched off) and if its `condition`, a path in the
//! chart's values, is true.

use serde_json::Value as Json;

use super::archive;
use super::load::metadata;
use super::metadata::Metadata;
use super::rendered::RenderedPart;
use crate::discover::ask::{Origin, Request, Requests, Way};
use crate::helm::Files;
use yaml::Value;

/// A template that shows the values which a rendering had. It is put to a chart's others, under a name that none has.
const PROBE: &str = "templates/zz-nydus-cluster-values.yaml";

/// How deep dependencies are looked for in dependencies.
const DEPTH_LIMIT: usize = 8;

/// An image that a chart names.
#[derive(Debug)]
pub(super) struct Named {
    text: String,
    origin: Origin,
    /// The chart as helm calls it: `web`, `web/charts/sub`.
    chart: String,
    /// The names under which the chart's values are in those of the outermost.
    values: Vec<String>,
    /// A path in the chart's values.
    pub(super) condition: Option<String>,
}

/// What the chart at `place` and those within it name.
pub(super) fn read(place: &str, metadata: &Metadata, files: &Files, requests: &mut Requests) -> Vec<Named> {
    let mut named = Vec::new();
    let within =
        Within { place: place.to_owned(), chart: metadata.name.clone(), values: Vec::new(), depth: 0 };
    within.read(metadata, files, &mut named, requests);
    named
}

/// A chart within others.
struct Within {
    place: String,
    chart: String,
    values: Vec<String>,
    depth: usize,
}

impl Within {
    fn read(&self, metadata: &Metadata, files: &Files, named: &mut Vec<Named>, requests: &mut Requests) {
        if let Some((text, line)) = &metadata.images {
            self.annotation(text, *line, named, requests);
        }
        if self.depth == DEPTH_LIMIT {
            return;
        }
        for (folder, files) in dependencies(files) {
            // What is broken in them helm says.
            let Ok(inner) = self::metadata(&files) else { continue };
            let aliases = metadata.dependencies.iter().filter(|dependency| dependency.name == inner.name);
            let mut names: Vec<String> = aliases.filter_map(|dependency| dependency.alias.clone()).collect();
            names.push(inner.name.clone());
            for name in names {
                let values = self.values.iter().cloned().chain([name.clone()]).collect();
                let chart = format!("{}/charts/{name}", self.chart);
                let place = format!("{}/{folder}", self.place);
                Self { place, chart, values, depth: self.depth + 1 }.read(&inner, &files, named, requests);
            }
        }
    }

    fn annotation(&self, text: &str, line: usize, named: &mut Vec<Named>, requests: &mut Requests) {
        let file = format!("{}/Chart.yaml", self.place);
        let parsed = yaml::parse(text);
        if let Some(error) = parsed.errors.first() {
            requests.problem(file, line, format!("annotation helm.sh/images: {}", error.reason));
            return;
        }
        for entry in parsed.documents.iter().flat_map(|document| document.root().items()) {
            let Some(image) = entry.get("image").and_then(Value::text) else { continue };
            named.push(Named {
                text: image.to_owned(),
                origin: Origin {
                    file: file.clone(),
                    line: line + entry.line() - 1,
                    way: Way::Annotation,
                    values: None,
                },
                chart: self.chart.clone(),
                values: self.values.clone(),
                condition: entry.get("condition").and_then(Value::text).map(str::to_owned),
            });
        }
    }
}

/// The charts in the folder `charts`, each with the folder or archive that it is in.
fn dependencies(files: &Files) -> Vec<(String, Files)> {
    let mut found: Vec<(String, Files)> = Vec::new();
    for (path, content) in files {
        let Some(rest) = path.strip_prefix("charts/") else { continue };
        match rest.split_once('/') {
            Some((name, rest)) => {
                let folder = format!("charts/{name}");
                if found.last().is_none_or(|(last, _)| *last != folder) {
                    found.push((folder, Files::new()));
                }
                if let Some((_, files)) = found.last_mut() {
                    files.insert(rest.to_owned(), content.clone());
                }
            }
            None if rest.ends_with(".tgz") => {
                found.extend(archive::read(content).ok().map(|files| (path.clone(), files)));
            }
            None => {}
        }
    }
    found
}

/// The files with the template that shows the values.
pub(super) fn with_probe(files: &Files) -> Files {
    let mut files = files.clone();
    let probe = "apiVersion: v1\nkind: ConfigMap\nvalues: {{ .Values | toJson }}\n";
    files.insert(PROBE.to_owned(), probe.as_bytes().to_vec());
    files
}

/// Whether a template is the one that shows the values.
pub(super) fn is_probe(source: &str) -> bool {
    source.ends_with(PROBE)
}

/// Asks for what is needed by a rendering whose objects are `parts`.
pub(super) fn ask(
    named: &[Named],
    parts: &[RenderedPart<'_>],
    set: &Option<String>,
    requests: &mut Requests,
) {
    let shown =
        parts.iter().find(|part| is_probe(part.source)).and_then(|part| part.text.split_once("values: "));
    let values: Json =
        shown.and_then(|(_, text)| serde_json::from_str(text.lines().next()?).ok()).unwrap_or_default();
    for image in named {
        let templates = format!("{}/templates/", image.chart);
        // The outermost chart may have no templates of its own.
        let renders = image.values.is_empty() || parts.iter().any(|part| part.source.starts_with(&templates));
        let own = image.values.iter().try_fold(&values, |values, name| values.get(name));
        let holds = image.condition.as_ref().is_none_or(|path| {
            path.split('.').try_fold(own.unwrap_or(&Json::Null), |values, name| values.get(name))
                == Some(&Json::Bool(true))
        });
        if renders && holds {
            let origin = Origin { values: set.clone(), ..image.origin.clone() };
            requests.requests.push(Request { text: image.text.clone(), origin, archive: None });
        }
    }
}
