//! One walk through a tree: what can be read at once is read, what has to be rendered is put aside.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::DiscoverError;
use super::ask::{Requests, Way};
use super::chart::{self, Chart, Values};
use super::ignore::Ignore;
use super::layout::Layout;
use super::list::{self, List};
use super::manifest::{self, Context, kustomize::Kustomization};
use super::template::Templates;
use super::tree::{PathEntry, Tree, TreeError};

/// Folders that hold manifests, templates and charts.
const FOLDERS: &[&str] = &["manifests", "charts", "application/apps"];

/// What a walk gave.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) layout: Option<Layout>,
    pub(crate) requests: Requests,
    /// Templates of manifests.
    pub(crate) templates: Templates,
    pub(crate) charts: Vec<Chart>,
    pub(crate) kustomizations: Vec<Kustomization>,
    /// The version of Kubernetes that the image is of.
    pub(crate) kube_version: Option<String>,
}

/// Goes through the tree.
pub(crate) fn collect(tree: &Tree, ignore: &Ignore) -> Result<Collected, DiscoverError> {
    let mut collected = Collected { layout: Layout::detect(tree), ..Collected::default() };
    collected.kube_version = kube_version(tree);
    let walk = Walk { tree, ignore };
    walk.lists(&mut collected)?;
    for folder in FOLDERS {
        let path = Path::new(folder);
        if tree.is_dir(path) && !ignore.covers(path, true) {
            walk.folder(path, *folder == "charts", &mut collected)?;
        }
    }
    Ok(collected)
}

/// What sealer's `Metadata` says. Its `kubeVersion` is none: a range of versions, for what comes on top of a cluster.
fn kube_version(tree: &Tree) -> Option<String> {
    #[derive(Deserialize)]
    struct Metadata {
        version: Option<String>,
    }
    let text = tree.text(Path::new("Metadata")).ok()?;
    let metadata: Metadata = serde_json::from_str(&text).ok()?;
    // An application's version may be anything, and helm takes only versions.
    let numbers = |version: &String| {
        let plain = version.strip_prefix('v').unwrap_or(version);
        plain.split('.').count() == 3 && plain.split('.').all(|part| part.parse::<u32>().is_ok())
    };
    metadata.version.filter(numbers)
}

struct Walk<'a> {
    tree: &'a Tree,
    ignore: &'a Ignore,
}

impl Walk<'_> {
    /// The lists at their places.
    fn lists(&self, collected: &mut Collected) -> Result<(), TreeError> {
        for (file, list) in [
            ("imageList", List::References),
            ("manifests/imageList", List::References),
            ("images/skopeo/tar.txt", List::Archives),
        ] {
            let path = Path::new(file);
            if self.tree.exists(path) && !self.ignore.covers(path, false) {
                self.list(list, path, collected);
            }
        }
        let shims = Path::new("images/shim");
        if self.tree.is_dir(shims) {
            for path in self.files(shims, |_| true)? {
                let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
                if !hidden {
                    self.list(List::Shim, &path, collected);
                }
            }
        }
        Ok(())
    }

    fn list(&self, list: List, path: &Path, collected: &mut Collected) {
        let file = path.display().to_string();
        match self.tree.text(path) {
            Ok(text) => collected.requests.add(list::read(list, &file, &text)),
            Err(error) => collected.requests.problem(file, None, error.reason),
        }
    }

    /// The files in `path` that are not left out, without those in folders which `enter` does not want.
    fn files(
        &self,
        path: &Path,
        mut enter: impl FnMut(&PathEntry) -> bool,
    ) -> Result<Vec<PathBuf>, TreeError> {
        let mut files = Vec::new();
        self.tree.walk(path, &mut |entry| {
            if self.ignore.covers(&entry.path, entry.is_dir) {
                return false;
            }
            if !entry.is_dir {
                files.push(entry.path.clone());
            }
            enter(entry)
        })?;
        Ok(files)
    }

    /// Manifests, templates and charts. A folder with a `Chart.yaml` is a chart, and all in it the chart's.
    fn folder(&self, path: &Path, of_charts: bool, collected: &mut Collected) -> Result<(), DiscoverError> {
        let mut charts = Vec::new();
        let files = self.files(path, |entry| {
            let is_chart = entry.is_dir && self.tree.exists(&entry.path.join("Chart.yaml"));
            if is_chart {
                charts.push(entry.path.clone());
            }
            !is_chart
        })?;
        for chart in charts {
            if let Some(chart) = chart::load::folder(self.tree, self.ignore, &chart, &mut collected.requests)?
            {
                collected.charts.push(self.with_values(chart, &files, &mut collected.requests));
            }
        }
        for file in &files {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(".tgz") || name.ends_with(".tar.gz") {
                if let Some(chart) = chart::load::packed(self.tree, file, &mut collected.requests) {
                    collected.charts.push(self.with_values(chart, &files, &mut collected.requests));
                }
            } else if !of_charts {
                self.manifest(file, &files, collected);
            }
        }
        Ok(())
    }

    /// Reads a manifest, or puts its template aside.
    fn manifest(&self, path: &Path, all: &[PathBuf], collected: &mut Collected) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = path.display().to_string();
        if path != Path::new("manifests/imageList") && name == "imageList" {
            return self.list(List::References, path, collected);
        }
        let template = name.strip_suffix(".tmpl");
        let plain = template.unwrap_or(&name);
        let is_manifest = match plain.rsplit_once('.') {
            Some((_, "yaml" | "yml" | "json")) => true,
            // Of a template the name may say no more.
            None => template.is_some() || manifest::kustomize::is_kustomization(&file),
            Some(_) => false,
        };
        // What a template is rendered to is overwritten by that.
        let overwritten = all.contains(&PathBuf::from(format!("{file}.tmpl")));
        if !is_manifest || overwritten {
            return;
        }
        let text = match self.tree.text(path) {
            Ok(text) => text,
            Err(error) => return collected.requests.problem(file, None, error.reason),
        };
        if template.is_some() {
            collected.templates.insert(file, text);
            return;
        }
        if manifest::kustomize::is_kustomization(&file) {
            collected.kustomizations.push(Kustomization::read(path, &text));
        }
        let context = Context { file, way: Way::Manifest, values: None };
        collected.requests.add(manifest::read(&context, &text));
    }

    /// Gives a chart the values that lie beside it: `NAME.values.yaml` for every rendering, `NAME.values.SET.yaml` for one more.
    fn with_values(&self, mut chart: Chart, files: &[PathBuf], requests: &mut Requests) -> Chart {
        let folder = Path::new(&chart.place).parent().unwrap_or(Path::new("")).to_owned();
        let prefix = format!("{}.values.", chart.metadata.name);
        for file in files.iter().filter(|file| file.parent() == Some(&folder)) {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let plain = name.strip_suffix(".tmpl").unwrap_or(&name);
            let Some(rest) = plain.strip_prefix(&prefix) else { continue };
            let is_overlay = matches!(rest, "yaml" | "yml");
            let is_set = matches!(rest.rsplit_once('.'), Some((set, "yaml" | "yml")) if !set.is_empty());
            if !is_overlay && !is_set {
                continue;
            }
            let path = file.display().to_string();
            if files.contains(&PathBuf::from(format!("{path}.tmpl"))) {
                continue;
            }
            match self.tree.read(file) {
                Ok(content) if is_overlay => chart.overlay = Some(Values { name: path, content }),
                Ok(content) => chart.sets.push(Values { name: path, content }),
                Err(error) => requests.problem(path, None, error.reason),
            }
        }
        chart
    }
}
