//! Kustomizations: which images they put in place of which others, and in which files.

use std::path::{Path, PathBuf};

use super::{Reader, Role};
use crate::discover::ask::Requests;
use yaml::Value;

/// Whether `file` is a kustomization by its name, as kustomize has it.
pub(crate) fn is_kustomization(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    matches!(name, "kustomization.yaml" | "kustomization.yml" | "Kustomization")
}

impl Reader<'_> {
    /// A kustomization's `images`.
    pub(super) fn kustomization(&mut self, object: Value<'_>) {
        if let Some(images) = object.get("images") {
            self.replacements(images);
        }
    }

    /// What each entry of `images` puts in place of the images of its name.
    pub(super) fn replacements(&mut self, images: Value<'_>) {
        for entry in images.items() {
            if !self.first(Role::Container, entry) {
                continue;
            }
            let at = |key: &str| entry.get(key).and_then(Value::text).filter(|text| !text.is_empty());
            let Some(name) = at("newName").or(at("name")) else { continue };
            let text = match (at("digest"), at("newTag")) {
                (Some(digest), _) => format!("{name}@{digest}"),
                (None, Some(tag)) => format!("{name}:{tag}"),
                // With the tag of what it replaces: that one is known where it is used.
                (None, None) => continue,
            };
            self.ask_text(&text, entry.line(), self.context.way);
        }
    }
}

/// What a kustomization does to the files that it names.
#[derive(Debug, Default)]
pub(crate) struct Kustomization {
    /// The files, as paths in the tree.
    resources: Vec<PathBuf>,
    replacements: Vec<Replacement>,
}

#[derive(Debug)]
struct Replacement {
    name: String,
    new_name: Option<String>,
    /// Whether it says the tag or digest too.
    complete: bool,
}

impl Kustomization {
    /// Reads the kustomization `text` of `file`.
    pub(crate) fn read(file: &Path, text: &str) -> Self {
        let folder = file.parent().unwrap_or(Path::new(""));
        let mut kustomization = Self::default();
        for document in &yaml::parse(text).documents {
            let texts = |key: &str| {
                document.root().get(key).into_iter().flat_map(Value::items).filter_map(Value::text)
            };
            kustomization.resources.extend(texts("resources").map(|path| normalised(&folder.join(path))));
            for entry in document.root().get("images").into_iter().flat_map(Value::items) {
                let at = |key: &str| entry.get(key).and_then(Value::text).map(str::to_owned);
                let complete = at("newTag").or(at("digest")).is_some();
                if let Some(name) = at("name") {
                    kustomization.replacements.push(Replacement { name, new_name: at("newName"), complete });
                }
            }
        }
        kustomization
    }

    /// Puts its images in place of those that the files which it names ask for.
    pub(crate) fn apply(&self, requests: &mut Requests) {
        requests.requests.retain_mut(|request| {
            if !self.resources.iter().any(|resource| resource == Path::new(&request.origin.file)) {
                return true;
            }
            let (name, rest) = split(&request.text);
            let Some(replacement) = self.replacements.iter().find(|replacement| replacement.name == name)
            else {
                return true;
            };
            if let Some(new_name) = &replacement.new_name {
                request.text = format!("{new_name}{rest}");
            }
            // The complete ones are asked for where they stand.
            !replacement.complete
        });
    }
}

/// An image's name, and the tag or digest with what comes before it.
fn split(text: &str) -> (&str, &str) {
    let end = text.find('@').unwrap_or(text.len());
    let folder = text[..end].rfind('/').map_or(0, |slash| slash + 1);
    let end = text[folder..end].find(':').map_or(end, |colon| folder + colon);
    text.split_at(end)
}

/// `path` without `.` and `..`.
fn normalised(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                result.pop();
            }
            std::path::Component::Normal(name) => result.push(name),
            _ => {}
        }
    }
    result
}
