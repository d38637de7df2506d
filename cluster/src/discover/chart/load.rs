//! The files of a chart in a folder, and the dependencies that it says to lie elsewhere in the tree.

use std::path::{Component, Path, PathBuf};

use super::Chart;
use super::archive::{self, CHART_LIMIT_BYTES, FILES_LIMIT};
use super::metadata::{Dependency, Metadata};
use crate::discover::DiscoverError;
use crate::discover::ask::Requests;
use crate::discover::ignore::Ignore;
use crate::discover::tree::Tree;
use crate::helm::Files;

/// How deep dependencies may depend on others.
const DEPTH_LIMIT: usize = 16;

/// The chart in the folder `path`; `None` if it cannot be read, which `requests` then says.
pub(crate) fn folder(
    tree: &Tree,
    ignore: &Ignore,
    path: &Path,
    requests: &mut Requests,
) -> Result<Option<Chart>, DiscoverError> {
    let mut left = Left { bytes: CHART_LIMIT_BYTES, files: FILES_LIMIT };
    let Some(files) = files(tree, ignore, path, 0, &mut left, requests)? else { return Ok(None) };
    Ok(chart(path, files, requests))
}

/// The chart in the archive `path`.
pub(crate) fn packed(tree: &Tree, path: &Path, requests: &mut Requests) -> Option<Chart> {
    let place = path.display().to_string();
    let bytes = match tree.read_archive(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            requests.problem(place, None, error.reason);
            return None;
        }
    };
    match archive::read(&bytes) {
        Ok(files) => chart(path, files, requests),
        Err(archive::ArchiveError::NoChart) => {
            requests.warning(place, None, archive::ArchiveError::NoChart);
            None
        }
        Err(error) => {
            requests.problem(place, None, error);
            None
        }
    }
}

fn chart(path: &Path, files: Files, requests: &mut Requests) -> Option<Chart> {
    let place = path.display().to_string();
    match metadata(&files) {
        Ok(metadata) => Some(Chart { place, metadata, files, overlay: None, sets: Vec::new() }),
        Err((line, reason)) => {
            requests.problem(format!("{place}/Chart.yaml"), line, reason);
            None
        }
    }
}

/// What the files of a chart say of it.
pub(super) fn metadata(files: &Files) -> Result<Metadata, (usize, String)> {
    let text = |name: &str| files.get(name).map(|content| String::from_utf8_lossy(content));
    let mut metadata = Metadata::read(&text("Chart.yaml").unwrap_or_default())?;
    if let Some(requirements) = text("requirements.yaml") {
        metadata.add_requirements(&requirements);
    }
    Ok(metadata)
}

/// What a chart may still have.
struct Left {
    bytes: u64,
    files: usize,
}

fn files(
    tree: &Tree,
    ignore: &Ignore,
    path: &Path,
    depth: usize,
    left: &mut Left,
    requests: &mut Requests,
) -> Result<Option<Files>, DiscoverError> {
    let mut paths = Vec::new();
    tree.walk(path, &mut |entry| {
        let wanted = !ignore.covers(&entry.path, entry.is_dir);
        if wanted && !entry.is_dir {
            paths.push(entry.path.clone());
        }
        wanted
    })?;
    let mut files = Files::new();
    for file in paths {
        let Some(name) = file.strip_prefix(path).ok().and_then(Path::to_str) else {
            requests.warning(file.display().to_string(), None, "its name is no UTF-8: helm does not see it");
            continue;
        };
        let content = match tree.read_archive(&file) {
            Ok(content) => content,
            Err(error) => {
                requests.problem(file.display().to_string(), None, error.reason);
                continue;
            }
        };
        let fits = left.bytes.checked_sub(content.len() as u64).zip(left.files.checked_sub(1));
        let Some((bytes, count)) = fits else {
            let reason = format!("the chart has more than {CHART_LIMIT_BYTES} bytes or {FILES_LIMIT} files");
            requests.problem(path.display().to_string(), None, reason);
            return Ok(None);
        };
        *left = Left { bytes, files: count };
        files.insert(name.to_owned(), content);
    }
    dependencies(tree, ignore, path, depth, left, &mut files, requests)?;
    Ok(Some(files))
}

/// Puts the charts that are said to lie elsewhere in the tree where helm looks for them.
fn dependencies(
    tree: &Tree,
    ignore: &Ignore,
    path: &Path,
    depth: usize,
    left: &mut Left,
    files: &mut Files,
    requests: &mut Requests,
) -> Result<(), DiscoverError> {
    let Ok(metadata) = metadata(files) else { return Ok(()) };
    for dependency in &metadata.dependencies {
        let Some(relative) = dependency.repository.strip_prefix("file://") else { continue };
        if is_vendored(files, &dependency.name) {
            continue;
        }
        let place = format!("{}/Chart.yaml", path.display());
        let Some(from) = within(path, relative) else {
            let reason =
                format!("dependency {}: {} leads out of the tree", dependency.name, dependency.repository);
            requests.problem(place, dependency.line, reason);
            continue;
        };
        if depth == DEPTH_LIMIT {
            requests.problem(place, dependency.line, format!("dependencies more than {DEPTH_LIMIT} deep"));
            continue;
        }
        take(tree, ignore, &from, depth, left, files, (&place, dependency), requests)?;
    }
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "one step of a recursion")]
fn take(
    tree: &Tree,
    ignore: &Ignore,
    from: &Path,
    depth: usize,
    left: &mut Left,
    files: &mut Files,
    (place, dependency): (&str, &Dependency),
    requests: &mut Requests,
) -> Result<(), DiscoverError> {
    if !tree.exists(&from.join("Chart.yaml")) {
        let reason = format!("dependency {}: there is no chart in {}", dependency.name, from.display());
        requests.problem(place, dependency.line, reason);
        return Ok(());
    }
    if let Some(found) = self::files(tree, ignore, from, depth + 1, left, requests)? {
        for (name, content) in found {
            files.insert(format!("charts/{}/{name}", dependency.name), content);
        }
    }
    Ok(())
}

/// Whether a chart called `name` lies in the folder `charts`, packed or not.
fn is_vendored(files: &Files, name: &str) -> bool {
    let (folder, packed) = (format!("charts/{name}/"), format!("charts/{name}-"));
    let is =
        |path: &String| path.starts_with(&folder) || (path.starts_with(&packed) && path.ends_with(".tgz"));
    files.keys().any(is)
}

/// `relative` from `path`, unless that leads out of the tree.
fn within(path: &Path, relative: &str) -> Option<PathBuf> {
    // An absolute path is one of the machine that the chart was written on.
    if relative.starts_with('/') {
        return None;
    }
    let mut result = path.to_owned();
    for part in Path::new(relative).components() {
        match part {
            Component::Normal(name) => result.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !result.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(result)
}
